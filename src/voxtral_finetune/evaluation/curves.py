"""The learning curve of a run, from its events, as lines of an SVG and as words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from voxtral_finetune.data.pages import number, round_step
from voxtral_finetune.run import Event

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 42, 390, 12, 186
"""The size of a plot and of its inside, in units of the SVG."""

MOST_POINTS = 300
MOST_DOTS = 40
"""Points of a line that are drawn, and up to how many each has a dot."""

Line = dict[int, float]
"""Values by update."""


def curves(events: Iterable[Event], unit: str, best: Any = None) -> dict[str, Any]:
    """{"plots": one for the loss and one for the error rate on dev, "table": [(update, loss, rate)] as text}.

    `unit` is what `Score.unit` says, `best` the update that was kept, where it is known. What a run did again after it
    was stopped counts once, as it was the last time.
    """
    training: Line = {}
    dev: Line = {}
    rate: Line = {}
    for event in events:
        if event.kind == "step":
            _put(training, event, "loss", 1)
        elif event.kind == "eval":
            _put(dev, event, "loss", 1)
            _put(rate, event, "wer", 100)
    kept = best if isinstance(best, int) else None
    plots = [
        _plot("Loss", "", {"training": training, "on dev": dev}, kept),
        _plot(f"{unit.capitalize()} error rate on dev", " %", {"on dev": rate}, kept),
    ]
    table = [
        (str(step), *(f"{line[step]:.{digits}f}" if step in line else "" for line, digits in ((dev, 3), (rate, 1))))
        for step in sorted(dev | rate)
    ]
    return {"plots": [plot for plot in plots if plot], "table": _thin(table)}


def _put(line: Line, event: Event, name: str, times: float) -> None:
    step, value = event.fields.get("step"), event.fields.get(name)
    if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
        line[step] = times * value


def _plot(title: str, sign: str, named: dict[str, Line], best: int | None) -> dict[str, Any] | None:
    """A plot of those lines that have at least two points, from zero up; None without any."""
    lines = {name: sorted(line.items()) for name, line in named.items() if len(line) > 1}
    if not lines:
        return None
    far = max(points[-1][0] for points in lines.values()) or 1
    most = max(value for points in lines.values() for _, value in points) or 1
    across, up = max(1, math.ceil(round_step(far / 5))), round_step(most / 5)
    top = math.ceil(most / up - 1e-9) * up

    def x(step: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / far, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    drawn = []
    for name, points in lines.items():
        places = [(x(step), y(value)) for step, value in _thin(points)]
        line = " ".join(f"{across},{down}" for across, down in places)
        dots = places if len(places) <= MOST_DOTS else []
        drawn.append({"name": name, "points": line, "dots": dots, "dashed": name == "on dev" and len(lines) > 1})
    return {
        "title": title,
        "lines": drawn,
        "said": " ".join(_said(title, name, points, sign) for name, points in lines.items()),
        "across": [{"x": x(step), "text": str(step)} for step in range(0, far + 1, across)],
        "up": [{"y": y(tick * up), "text": number(tick * up) + sign} for tick in range(round(top / up) + 1)],
        "best": x(best) if best is not None and 0 <= best <= far else None,
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    }


def _said(title: str, name: str, points: list[tuple[int, float]], sign: str) -> str:
    """The line in words."""
    what = title if name in title else f"{title} {name}"
    (first, begin), (last, end) = points[0], points[-1]
    step, least = min(points, key=lambda point: point[1])
    return (
        f"{what}: {number(begin, 3)}{sign} at update {first}, {number(end, 3)}{sign} at update {last},"
        f" lowest {number(least, 3)}{sign} at update {step}."
    )


def _thin(points: list[Any]) -> list[Any]:
    """At most MOST_POINTS of them and the last, evenly."""
    every = math.ceil(len(points) / MOST_POINTS) or 1
    return [point for index, point in enumerate(points) if index % every == 0 or index == len(points) - 1]

"""What a run's folder says about how far it is: sentences, curves and the end of its log. No widget, no state."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from voxtral_finetune import console
from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Event, Run, Status
from voxtral_finetune.settings import home
from voxtral_finetune.studio import texts
from voxtral_finetune.studio.projects import check_name

MAX_POINTS = 900
"""Of one curve: two on a plot stay under the 2000 points that a browser draws at ease."""

LOG_BYTES, LOG_LINES = 32_000, 200
LAUNCHED = "launched"
"""The event that the Studio writes before it starts a process, which needs some seconds until it holds the lock."""

SECONDS_TO_START = 120
"""A process that has not taken its run's lock after so long did not start."""

WARNINGS = 5
"""So many of a run's warnings are shown, with the number of the others."""


@dataclass(frozen=True)
class View:
    """A run as it is at this moment; `done` is a fraction of the present stage, where it is known."""

    name: str
    status: Status
    sentence: str
    done: float | None
    notes: list[str]
    loss: pd.DataFrame
    wer: pd.DataFrame
    log: str


def find(name: Any) -> Run:
    """The run of that name; raises RunError where there is none."""
    return Run.open(home() / "outputs" / check_name(name, "A run's name"))


def newest() -> Run | None:
    """The run to show to someone who names none: the newest that is going on, else the newest."""
    runs = Run.all()
    return next((run for run in runs if is_going(run)), runs[0] if runs else None)


def launch(run: Run) -> None:
    """Starts the run, or goes on with it, in a process of its own; raises RunError where another one is going on."""
    check_idle()
    run.emit(LAUNCHED)
    run.launch()


def is_going(run: Run) -> bool:
    """Whether a process works on the run or was only just started for it."""
    return run.status() == "running" or _starting(run.events())


def check_idle() -> None:
    """Raises RunError where a run is going on, naming it."""
    going = next((run for run in Run.all() if is_going(run)), None)
    if going:
        raise RunError(*texts.busy(going.name))


def mark(run: Run) -> tuple[Any, ...]:
    """Something that differs as soon as there is more to show."""
    files = (run.folder / "events.jsonl", run.folder / "output.log")
    return run.name, run.status(), run.stop_requested(), *(file.stat().st_size for file in files if file.exists())


def view(run: Run) -> View:
    """Reads the run's folder."""
    events, status = run.events(), run.status()
    steps = [(event.fields["step"], event.fields["loss"], "train") for event in events if event.kind == "step"]
    evals = [event.fields for event in events if event.kind == "eval"]
    loss = thin(steps) + thin([(each["step"], each["loss"], "dev") for each in evals])
    wer = thin([(each["step"], 100 * each["wer"], "dev") for each in evals])
    return View(
        name=run.name,
        status=status,
        sentence=_sentence(run, status, events),
        done=_done(events) if status == "running" else None,
        notes=_notes(events),
        loss=pd.DataFrame(loss, columns=["step", "loss", "set"]),
        wer=pd.DataFrame(wer, columns=["step", "wer", "set"]),
        log=_log(run),
    )


def thin(points: Sequence[Any]) -> list[Any]:
    """At most MAX_POINTS of them, evenly, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MAX_POINTS - 1))] for place in range(MAX_POINTS)]


def _starting(events: list[Event]) -> bool:
    return bool(events) and events[-1].kind == LAUNCHED and time.time() - events[-1].time < SECONDS_TO_START


def _sentence(run: Run, status: Status, events: list[Event]) -> str:
    last = events[-1] if events else Event(0.0, LAUNCHED)
    if status == "running":
        return texts.STOPPING if run.stop_requested() else _stage(events)
    if _starting(events):
        return texts.STARTING
    if last.kind == LAUNCHED:
        return texts.NOT_STARTED
    if status == "failed":
        return f"{last.fields['what']} {last.fields['fix']}"
    return {"finished": texts.FINISHED, "stopped": last.fields.get("what") or texts.STOPPED}.get(status, texts.DIED)


def _stage(events: list[Event]) -> str:
    """The title of the present stage, and the step where it has steps."""
    stage = next((event.fields["title"] for event in reversed(events) if event.kind == "stage"), texts.WORKING)
    place = _place(events)
    return f"{stage}: {place[0]} of {place[1]}" if place else f"{stage}."


def _done(events: list[Event]) -> float | None:
    place = _place(events)
    return place[0] / place[1] if place and place[1] else None


def _place(events: list[Event]) -> tuple[int, int] | None:
    """(done, total) within the present stage, by its latest event that tells."""
    for event in reversed(events):
        if event.kind in ("step", "eval"):
            return event.fields["step"], event.fields["steps"]
        if event.kind == "progress":
            return event.fields["done"], event.fields["total"]
        if event.kind in ("stage", "started"):
            return None
    return None


def _notes(events: list[Event]) -> list[str]:
    """What else is worth knowing: the division of the corpus, what learns, and what was skipped."""
    notes = []
    for event in events:
        if event.kind == "data":
            notes.append(texts.data(event.fields))
        elif event.kind == "plan":
            notes += console.plan_lines(**event.fields)
        elif event.kind == "weights":
            notes.append(texts.weights(event.fields))
        elif event.kind == "early_stop":
            notes.append(texts.early_stop(event.fields))
    warnings = [_warning(**event.fields) for event in events if event.kind == "warning"]
    more = [texts.more_warnings(len(warnings) - WARNINGS)] if len(warnings) > WARNINGS else []
    return notes + warnings[:WARNINGS] + more


def _warning(what: str, line: int | None = None, **_: Any) -> str:
    return f"line {line}: {what}" if line else what


def _log(run: Run) -> str:
    """The last lines of output.log as a terminal would show them: of a bar that redraws itself, the last state."""
    path = run.folder / "output.log"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in lines[-LOG_LINES:])

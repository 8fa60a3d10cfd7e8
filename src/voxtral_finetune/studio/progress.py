"""What a run's folder says about how far it is: sentences, curves and the end of its log. No widget.

Of each run that is looked at, what its log has told so far is kept in memory, so that a look reads what is new only.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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

KEPT = 8
"""Runs whose logs are remembered: those that several people look at."""

HEAD = 256
"""Bytes at the beginning of a log by which it is known again; its first event holds the time to the microsecond."""


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
    return run.status() == "running" or _starting(run.last_events())


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
    """Reads what is new in the run's folder."""
    with _READING:
        told, status = _told(run), run.status()
        loss = [(*point, "train") for point in told.loss.shown()] + [(*point, "dev") for point in told.dev.shown()]
        return View(
            name=run.name,
            status=status,
            sentence=_sentence(run, status, told),
            done=told.place[0] / told.place[1] if status == "running" and told.place and told.place[1] else None,
            notes=told.notes(),
            loss=pd.DataFrame(loss, columns=["step", "loss", "set"]),
            wer=pd.DataFrame([(*point, "dev") for point in told.wer.shown()], columns=["step", "wer", "set"]),
            log=_log(run),
        )


@dataclass
class _Curve:
    """Points by step, of which every `stride`-th is kept, and the last; at most twice MAX_POINTS, however many come."""

    points: list[tuple[int, float]] = field(default_factory=list)
    last: tuple[int, float] | None = None
    stride: int = 1
    count: int = 0

    def add(self, step: int, value: float) -> None:
        """A step that is not above the one before is of a run that went on from an earlier checkpoint."""
        if self.last and step <= self.last[0]:
            self.points = [point for point in self.points if point[0] < step]
        self.last = (step, value)
        if self.count % self.stride == 0:
            self.points.append(self.last)
        self.count += 1
        if len(self.points) >= 2 * MAX_POINTS:
            self.points, self.stride = self.points[::2], 2 * self.stride

    def shown(self) -> list[tuple[int, float]]:
        """At most MAX_POINTS, with the first and the last."""
        last = [self.last] if self.last and self.last not in self.points[-1:] else []
        return thin(self.points + last)


@dataclass
class _Told:
    """What a run's log says as far as it was read: up to the byte `position`, the first of them `head`."""

    head: bytes = b""
    position: int = 0
    loss: _Curve = field(default_factory=_Curve)
    dev: _Curve = field(default_factory=_Curve)
    wer: _Curve = field(default_factory=_Curve)
    last: Event | None = None
    stage: str = texts.WORKING
    place: tuple[int, int] | None = None  # (done, total) within the present stage
    facts: dict[str, list[str]] = field(default_factory=dict)  # by kind; those of a resumed run take their place
    warnings: list[str] = field(default_factory=list)
    more_warnings: int = 0

    def fold(self, event: Event) -> None:
        """Takes in one event more."""
        self.last, facts = event, event.fields
        if event.kind in ("step", "eval"):
            self.place = facts["step"], facts["steps"]
            (self.loss if event.kind == "step" else self.dev).add(facts["step"], facts["loss"])
            if event.kind == "eval":
                self.wer.add(facts["step"], 100 * facts["wer"])
        elif event.kind == "progress":
            self.place = facts["done"], facts["total"]
        elif event.kind in ("stage", "started"):
            self.place, self.stage = None, facts.get("title", self.stage)
        elif event.kind == "data":
            self.facts["data"] = [texts.data(facts)]
        elif event.kind == "plan":
            self.facts["plan"] = console.plan_lines(**facts)
        elif event.kind == "weights":
            self.facts["weights"] = [texts.weights(facts)]
        elif event.kind == "early_stop":
            self.facts["early_stop"] = [texts.early_stop(facts)]
        elif event.kind == "paused":
            self.facts["paused"] = [f"{facts['what']} {facts['fix']}"]
        elif event.kind == "resumed":
            self.facts.pop("paused", None)
        elif event.kind == "skipped_update":
            self.facts["skipped"] = [texts.skipped(facts)]
        elif event.kind == "warning" and len(self.warnings) < WARNINGS:
            self.warnings.append(_warning(**facts))
        elif event.kind == "warning":
            self.more_warnings += 1

    def notes(self) -> list[str]:
        """What else is worth knowing: the division of the corpus, what learns, and what was skipped."""
        more = [texts.more_warnings(self.more_warnings)] if self.more_warnings else []
        return [line for lines in self.facts.values() for line in lines] + self.warnings + more


_TOLD: OrderedDict[Path, _Told] = OrderedDict()

_READING = threading.Lock()
"""Held while a log is read: each browser's look has a thread of its own."""


def _told(run: Run) -> _Told:
    """What the log says by now. One that does not begin as it did, or has shrunk, is another one."""
    path = run.folder / "events.jsonl"
    told = _TOLD.pop(run.folder, _Told())
    if told.position and (_head(path, len(told.head)) != told.head or path.stat().st_size < told.position):
        told = _Told()
    for event, position in run.follow(told.position):
        told.fold(event)
        told.position = position
    told.head = told.head or _head(path, min(HEAD, told.position))
    _TOLD[run.folder] = told
    while len(_TOLD) > KEPT:
        _TOLD.popitem(last=False)
    return told


def _head(path: Path, size: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(size)


def thin(points: Sequence[Any]) -> list[Any]:
    """At most MAX_POINTS of them, evenly, with the first and the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MAX_POINTS - 1))] for place in range(MAX_POINTS)]


def _starting(events: list[Event]) -> bool:
    return bool(events) and events[-1].kind == LAUNCHED and time.time() - events[-1].time < SECONDS_TO_START


def _sentence(run: Run, status: Status, told: _Told) -> str:
    last = told.last or Event(0.0, LAUNCHED)
    if status == "running":
        return texts.STOPPING if run.stop_requested() else _stage(told)
    if _starting([last]):
        return texts.STARTING
    if last.kind == LAUNCHED:
        return texts.NOT_STARTED
    if status == "failed":
        return f"{last.fields['what']} {last.fields['fix']}"
    return {"finished": texts.FINISHED, "stopped": last.fields.get("what") or texts.STOPPED}.get(status, texts.DIED)


def _stage(told: _Told) -> str:
    """The title of the present stage, and the step where it has steps."""
    return f"{told.stage}: {told.place[0]} of {told.place[1]}" if told.place else f"{told.stage}."


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

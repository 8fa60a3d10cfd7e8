"""What the process that reads a stream tells the one that trains, and both of them the run."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence

from voxtral_finetune.data.rows import Problem
from voxtral_finetune.data.stream import MOST_WARNED, Refused, StreamError
from voxtral_finetune.data.windows import Window
from voxtral_finetune.run import Run
from voxtral_finetune.training.distributed import processes

KEPT = 64
"""Updates of which it is kept what they hold: a worker is a few ahead of the trainer, never so many."""

MOST_NAMED = 60
"""Rows of an update that are kept by number."""

ERROR_BYTES = 4000


class Told:
    """What the process that reads tells the one that trains; the same one, or a worker that was forked from it.

    Of each of the last KEPT updates its milliseconds of speech and its rows; how many rows were refused, and how often
    the stream has begun again; and why it ended, where it did. Without locks: one writes, and what is read is finished.
    """

    def __init__(self) -> None:
        self._updates = multiprocessing.Array("q", KEPT * (MOST_NAMED + 3), lock=False)
        self._counts = multiprocessing.Array("q", 2, lock=False)
        self._error = multiprocessing.Array("c", ERROR_BYTES, lock=False)

    def update(self, number: int, epoch: int, windows: Sequence[Window]) -> None:
        lines = [row.line for window in windows for row in window.utterances][:MOST_NAMED]
        place = number % KEPT * (MOST_NAMED + 3)
        facts = [round(1000 * sum(window.seconds for window in windows)), len(lines), *lines]
        self._updates[place] = 0
        self._updates[place + 1 : place + 1 + len(facts)] = facts
        self._updates[place] = number + 1
        self._counts[1] = epoch

    def seconds(self, number: int) -> float:
        """Of speech in an update; 0 where it is not known any more."""
        found = self._of(number)
        return found[0] / 1000 if found else 0.0

    def lines(self, number: int) -> list[int]:
        found = self._of(number)
        return found[2 : 2 + found[1]] if found else []

    def refuse(self) -> int:
        """Counts a refused row; how many there are now."""
        self._counts[0] += 1
        return self._counts[0]

    def begin(self) -> None:
        """From the first row again: what was refused is met again."""
        self._counts[0] = 0

    def fail(self, error: StreamError) -> None:
        self._error.value = json.dumps([error.what[:1000], error.fix[:300]]).encode()[: ERROR_BYTES - 1]

    @property
    def error(self) -> StreamError | None:
        """Why the stream ended: what comes out of a worker is a traceback."""
        return StreamError(*json.loads(self._error.value)) if self._error.value else None

    @property
    def facts(self) -> dict[str, int]:
        refused, epoch = self._counts
        return {"refused": refused, "times": epoch + 1}

    def _of(self, number: int) -> list[int]:
        place = number % KEPT * (MOST_NAMED + 3)
        found: list[int] = self._updates[place : place + MOST_NAMED + 3]
        return found[1:] if found[0] == number + 1 else []


def teller(run: Run, told: Told) -> Refused:
    """What is told of a refused row: it is counted, and the first MOST_WARNED are warnings of the run."""

    def refused(problem: Problem) -> None:
        count = told.refuse()
        if count <= MOST_WARNED:
            run.emit("warning", line=problem.line, file=problem.file, what=problem.what, fix=problem.fix)
        if count == MOST_WARNED:
            run.emit("warning", what="Further rows that are refused are counted, not named.", fix="")

    return refused


def passer(run: Run) -> Callable[[int, int], None]:
    """Progress of a run that reads again up to where it was; raises StreamError where it is asked to stop meanwhile."""
    shown = time.monotonic()

    def passing(done: int, total: int) -> None:
        nonlocal shown
        if run.stop_requested() and processes()[1] == 1:  # of several, one that ends here would leave others waiting
            raise StreamError("The run was asked to stop.")
        if time.monotonic() - shown >= 1:
            shown = time.monotonic()
            run.emit("progress", done=done, total=total)

    return passing

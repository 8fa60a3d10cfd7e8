"""Measuring a trainer: speech trained per second, what fetching batches costs, and the most memory it takes.

On a CPU each measurement runs in a forked child, so that none inherits another's caches, patched functions or memory;
time is that of the process on one thread, which other programs hardly change. On CUDA it is wall time.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

Result = TypeVar("Result")


@dataclass(frozen=True)
class Built:
    """A trainer whose steps train `speech` seconds of recordings each, on the average of an epoch.

    `before` is `memory_before()` with the model loaded.
    """

    trainer: Trainer
    speech: float
    before: int


@dataclass(frozen=True)
class Measured:
    """A step on the average: seconds of speech, of the clock and of fetching its batch; bytes beyond the model."""

    speech: float
    seconds: float
    fetching: float
    memory: int

    @property
    def speed(self) -> float:
        """Speech-seconds trained per second."""
        return self.speech / self.seconds

    @property
    def collation(self) -> float:
        """The share of the time in which batches were read, decoded and put together."""
        return self.fetching / self.seconds


class Timed(Dataset[Any]):
    """A dataset, and with `collating` its collator, that sum up the time they take."""

    def __init__(self, dataset: Any, clock: Callable[[], float]) -> None:
        self.dataset = dataset
        self.clock = clock
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Any:
        return self._timed(self.dataset.__getitem__, index)

    def collating(self, collator: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
        return lambda items: self._timed(collator, items)

    def _timed(self, work: Callable[[Any], Any], given: Any) -> Any:
        start = self.clock()
        done = work(given)
        self.seconds += self.clock() - start
        return done


class Stamps(TrainerCallback):
    """Notes (clock, seconds spent fetching so far) at the end of each step."""

    def __init__(self, timed: Timed) -> None:
        self.timed = timed
        self.stamps: list[tuple[float, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stamps.append((self.timed.clock(), self.timed.seconds))


def measure(built: Built, warm_up: int, steps: int) -> Measured:
    """Trains `warm_up + steps` steps and measures the last `steps`.

    The data loader fetches one batch ahead, so between two ends of steps as many batches are fetched as are trained,
    as long as there are more than these. Speech is the average of an epoch and not that of the few batches: their time
    hardly depends on which they are, and chance would otherwise decide the ratio.
    """
    trainer, clock = built.trainer, time.perf_counter if torch.cuda.is_available() else time.process_time
    timed = Timed(trainer.train_dataset, clock)
    stamps = Stamps(timed)
    trainer.train_dataset, trainer.data_collator = timed, timed.collating(trainer.data_collator)
    trainer.add_callback(stamps)
    for shown in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown)
    trainer.args.max_steps = warm_up + steps
    trainer.args.eval_on_start = False  # dev is no part of what is measured, on either side
    trainer.args.eval_strategy = trainer.args.save_strategy = IntervalStrategy.NO
    trainer.train()
    memory = memory_since(built.before)
    (start, fetched_before), (end, fetched) = stamps.stamps[warm_up - 1], stamps.stamps[-1]
    return Measured(built.speech, (end - start) / steps, (fetched - fetched_before) / steps, memory)


def memory_before() -> int:
    """Bytes in use now; from here on the peak is counted anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    if hasattr(ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what was freed, and would take the peak from it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS
    return _status("RssAnon")


def memory_since(before: int) -> int:
    """The peak since `memory_before`, less what was in use then; pages of files (libraries) are not counted."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated()) - before
    return _status("VmHWM") - _status("RssFile") - before


def in_child(work: Callable[[], Result]) -> Result:
    """What `work` returns, done in a forked child of this process; a failure there ends the program."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(work()))  # multiprocessing prints what goes wrong in it
    child.start()
    sender.close()
    try:
        result: Result = receiver.recv()
    except EOFError:
        raise SystemExit("A measurement failed; its error is above.") from None
    finally:
        child.join()
    return result


def _status(name: str) -> int:
    """A number of bytes from this process's /proc/self/status (Linux, proc(5))."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"This system does not say how much memory a process holds ({name}): the benchmark needs Linux.")

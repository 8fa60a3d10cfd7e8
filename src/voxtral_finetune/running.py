"""What surrounds a run while it is executed: how far it is, how it is asked to stop, what its errors mean."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from voxtral_finetune.errors import FinetuneError, RunError, StopRequested
from voxtral_finetune.run import Run

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


def explained(error: BaseException) -> FinetuneError:
    """What a person can do about an error that is none of ours: a RunError where something can be done."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunError("The disk is full.", "Free some space, then go on with --resume: checkpoints are whole.")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
        return RunError(
            "The GPU's memory is full.", "Free it and go on with --resume, or start anew with --gradient-checkpointing."
        )
    if "CUDA error" in str(error) or type(error).__name__ == "AcceleratorError":
        lines = str(error).splitlines()  # of an error in another process, the first ones say where
        line = next((line[line.index("CUDA error") :] for line in lines if "CUDA error" in line), lines[0])
        what = f"The GPU has failed: {line}"
        return RunError(what, "Go on with --resume; where it fails again, restart the machine and look at its log.")
    if "DataLoader worker" in str(error) and "is killed by signal" in str(error):
        what = "A process that prepares audio was killed, most likely because this machine's memory was full."
        return RunError(what, "Free some memory, then go on with --resume.")
    details = "This is a fault in the program; output.log or the terminal has the details. The run can be resumed."
    return FinetuneError(f"{type(error).__name__}: {error}", details)


def progress_of(run: Run) -> Progress:
    """Events of how far a stage is, at most one a second; also where a run that was asked to stop does."""
    shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        check_stop(run)
        if done == total or time.monotonic() - shown >= 1:
            shown = time.monotonic()
            run.emit("progress", done=done, total=total)

    return progress


def check_stop(run: Run) -> None:
    if run.stop_requested():
        again = f"Go on with: voxtral-finetune train --resume --output-dir {run.folder}"
        raise StopRequested("Stopped before training was done.", again)


@contextmanager
def stop_on_signal(run: Run) -> Iterator[None]:
    """Makes the first Ctrl-C or SIGTERM ask the run to stop, and a second Ctrl-C end it at once."""
    owner, pressed = os.getpid(), 0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal pressed
        if os.getpid() != owner:
            return  # a data loader's worker has inherited this handler
        pressed += number == signal.SIGINT
        if pressed > 1:
            raise KeyboardInterrupt
        run.request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; the stop file works everywhere
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

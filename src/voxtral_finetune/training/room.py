"""A full disk: knowing it when a library hits it, and waiting until it is not full any more."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

from voxtral_finetune.durable import NO_SPACE
from voxtral_finetune.errors import StopRequested
from voxtral_finetune.run import Run

POLL_SECONDS = 2.0
"""How often a run that waits for space looks for it."""

PROBE = b"\0" * (1 << 20)
"""Written where a library does not say why it could not: torch says of a full disk "unexpected pos 576 vs 534"."""


class NoRoomError(OSError):
    """The disk is full; `needed` is what a checkpoint takes, in bytes, as far as it is known."""

    def __init__(self, folder: Path, needed: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        self.needed = needed


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means a full disk: by its number, by its words, or, of one that says neither, by trying."""
    cause: BaseException | None = error
    while cause is not None:
        words = str(cause)
        if getattr(cause, "errno", None) in NO_SPACE or any(os.strerror(number) in words for number in NO_SPACE):
            return True
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, OSError):
        return False
    try:
        (folder / "probe").write_bytes(PROBE)
    except OSError as refused:
        return refused.errno in NO_SPACE
    return False


def wait_for_room(run: Run, needed: int, poll_seconds: float) -> None:
    """Returns when the disk of a run has so many bytes; raises StopRequested where the run is asked to stop first."""
    while not run.stop_requested():
        time.sleep(poll_seconds)
        if shutil.disk_usage(run.folder).free >= needed:
            return
    go_on = f"Free some space, then: voxtral-finetune train --resume --output-dir {run.folder}"
    raise StopRequested("Stopped while the disk was full; the checkpoint before is the last.", go_on)


def amount(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"

"""One run at a time on an accelerator: a lock that the kernel lets go of, however its process ends."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from voxtral_finetune.durable import locked
from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run


@contextmanager
def claimed(device: str, run: Run) -> Iterator[None]:
    """Holds an accelerator ("cuda", "cuda:1", "mps") for a run of this person; "cpu" is never held.

    Raises RunError naming the run that has it, its status, and the time that it still needs, where it says so.
    """
    if device == "cpu":
        yield
        return
    with _opened(_locks() / _name(device)) as file, locked(file) as mine:
        if not mine:
            raise RunError(f"{device} is in use{_owner(file)}.", "Wait for it, stop it, or choose another --device.")
        file.truncate(0)
        file.seek(0)
        file.write(json.dumps({"run": str(run.folder), "pid": os.getpid(), "started": time.time()}))
        file.flush()
        yield


def _name(device: str) -> str:
    """The same name for the same hardware: CUDA numbers depend on CUDA_VISIBLE_DEVICES, a card's UUID does not."""
    if not device.startswith("cuda"):
        return device.replace(":", "-")
    import torch  # whoever has a GPU to claim has loaded it

    return f"cuda-{torch.cuda.get_device_properties(torch.device(device)).uuid}"


def _locks() -> Path:
    """The folder of this person's locks; raises RunError where somebody else has put something in its place."""
    folder = Path(tempfile.gettempdir()) / f"voxtral-finetune-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        what = f"{folder} is not a folder that only you can open, and locks of devices lie there."
        raise RunError(what, "Remove it, or set TMPDIR to a folder of your own.")
    return folder


def _opened(path: Path) -> IO[str]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    return os.fdopen(handle, "r+", encoding="utf-8")


def _owner(file: IO[str]) -> str:
    """Who holds a lock, as far as its file tells: a process that has only just taken it has not written yet."""
    try:
        run = Run(Path(json.loads(file.read())["run"]))
    except (ValueError, KeyError, TypeError):
        return " by another run"
    left = [event for event in run.last_events() if "eta_seconds" in event.fields]
    words: str = run.status()
    if left:
        seconds = max(0.0, left[-1].time + left[-1].fields["eta_seconds"] - time.time())
        words += f", about {seconds / 60:.0f} min left"
    return f" by the run {run.folder} ({words})"

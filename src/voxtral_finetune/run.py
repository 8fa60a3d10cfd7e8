"""The run directory: all that a run was told, did and learned, in one folder that every door reads.

    outputs/<name>/
        config.json     the settings, flat
        split.json      which utterance taught, which chose, which judged
        events.jsonl    one JSON object a line, appended and flushed
        lock            held while a process executes the run
        stop            made to ask that process to end
        output.log      what a detached process printed
        checkpoints/    to go on from
        model/          what was learned
        report.json     how good it is
        README.md       the model card

Its status is derived, never stored: lock held = running; last event finished, stopped or failed = that; none of them
= died (it can be resumed); no event yet = new.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from voxtral_finetune.errors import RunError
from voxtral_finetune.settings import FORMAT, Settings, home, read_config

Status = Literal["new", "running", "finished", "stopped", "failed", "died"]
FINAL = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Event:
    """Something that happened: seconds since 1970, a kind (started, stage, step, eval, warning, …), its facts."""

    time: float
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Run:
    """One run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._watchers: list[Callable[[Event], None]] = []

    @property
    def name(self) -> str:
        return self.folder.name

    @staticmethod
    def create(settings: Settings) -> Run:
        """Makes a new folder for these settings; a name that is taken gets a suffix, nothing is overwritten."""
        wanted = settings.run.output_dir or home() / "outputs" / time.strftime("%Y%m%d-%H%M%S")
        folder = _make_new(wanted.expanduser().absolute())
        run = Run(folder)
        write_durably(run.folder / "config.json", json.dumps({"format": FORMAT, **settings.flat()}, indent=2) + "\n")
        return run

    @staticmethod
    def open(folder: Path) -> Run:
        """An existing run; raises RunError where the folder is none."""
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.json.", "Name a folder under outputs/.")
        return Run(folder)

    @staticmethod
    def all(folder: Path | None = None) -> list[Run]:
        """Every run under `folder` (default: outputs/ of the home), newest first."""
        configs = (folder or home() / "outputs").glob("*/config.json")
        return [Run(path.parent) for path in sorted(configs, key=lambda path: -path.stat().st_mtime)]

    def settings(self) -> Settings:
        return Settings.of(read_config(self.folder / "config.json"))

    def watch(self, watcher: Callable[[Event], None]) -> None:
        """Has `watcher` called with each event that this object emits."""
        self._watchers.append(watcher)

    def emit(self, kind: str, **fields: Any) -> None:
        """Appends one event and flushes it, so that other processes see it at once."""
        event = Event(time.time(), kind, fields)
        line = json.dumps({"time": event.time, "kind": kind, **fields}, ensure_ascii=False)
        append_line(self.folder / "events.jsonl", line)
        for watcher in self._watchers:
            watcher(event)

    def events(self) -> list[Event]:
        """All events so far; a last line that is still being written is left for the next call."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return []
        found = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError):  # a process that was killed in mid-write leaves half a line
                row = json.loads(line)
                found.append(Event(row.pop("time"), row.pop("kind"), row))
        return found

    def status(self) -> Status:
        if self._locked():
            return "running"
        events = self.events()
        if not events:
            return "new"
        kind = events[-1].kind
        return kind if kind in FINAL else "died"  # type: ignore[return-value]  # narrowed by FINAL

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises RunError where another one has it."""
        with (self.folder / "lock").open("a") as file:
            if not _taken(file):
                raise RunError(f"{self.folder} is being run by another process.", "Wait for it or stop it.")
            yield

    def request_stop(self) -> None:
        """Asks the process that executes the run to save a checkpoint and end."""
        (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        return (self.folder / "stop").exists()

    def clear_stop(self) -> None:
        (self.folder / "stop").unlink(missing_ok=True)

    def launch(self) -> int:
        """Executes the run in a detached process that outlives this one; returns its process id."""
        with (self.folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "voxtral_finetune", "execute", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            )
        return process.pid

    def _locked(self) -> bool:
        path = self.folder / "lock"
        if not path.exists():
            return False
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def peak_rss() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in ru_maxrss also what the process that started this one held
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write_durably(path: Path, data: str | bytes) -> None:
    """Writes a file so that after a crash either the old or the new one is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file durably; half a line that a crash left there stays alone on its own."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _taken(file: IO[str]) -> bool:
    """Takes the lock of an open file; somebody who only looks at a run's status holds it for an instant."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait)
    return False


def sync_files(folder: Path) -> None:
    """Makes every file below a folder durable, and the folder's names."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def _make_new(wanted: Path) -> Path:
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        except OSError as error:
            raise RunError(
                f"{folder} cannot be made: {error.strerror}.", "Choose another --output-dir or VOXTRAL_FINETUNE_HOME."
            ) from error

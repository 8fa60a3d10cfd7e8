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
        report.html     the same as a page, with the recordings that changed most
        README.md       the model card

Its status is derived, never stored: lock held = running; last event finished, stopped or failed = that; none of them
= died (it can be resumed); no event yet = new. A folder of an older format is brought to the present one when it is
opened; its config stays beside the new one as `config.json.format-1`.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxtral_finetune.durable import NO_SPACE, Format, append_line, locked, sync_files, sync_folder, write_durably
from voxtral_finetune.errors import RunError, SettingsError
from voxtral_finetune.settings import FORMAT, Settings, home

__all__ = ["Event", "Run", "Status", "append_line", "peak_rss", "sync_files", "sync_folder", "write_durably"]

Status = Literal["new", "running", "finished", "stopped", "failed", "died"]
FINAL = ("finished", "stopped", "failed")

LONGEST_LINE = 4 << 20
"""Bytes of an event; a longer line was not written by a run, and is passed over in pieces."""

TAIL = 1 << 16
"""Bytes at the end of events.jsonl that hold its last event, nearly always."""


@dataclass(frozen=True)
class Event:
    """Something that happened: seconds since 1970, a kind (started, stage, step, eval, warning, …), its facts."""

    time: float
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


def _as_it_was(config: dict[str, Any], _: Path) -> dict[str, Any]:
    """1 to 2: windows of one utterance and nothing changed from epoch to epoch, so that a run goes on as it began."""
    return {**config, "packing": False, "vary_speed": False, "mask_spectrum": False}


CONFIG = Format(FORMAT, {1: _as_it_was}, SettingsError, unnamed=FORMAT)
"""The versions of `config.json`; one written by hand names none, and is of the present one."""


class Run:
    """One run directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._watchers: list[Callable[[Event], None]] = []
        self._unwritten: list[str] = []
        self._stopping = self._executing = False

    @property
    def name(self) -> str:
        return self.folder.name

    @staticmethod
    def create(settings: Settings) -> Run:
        """Makes a new folder for these settings; a name that is taken gets a suffix, nothing is overwritten."""
        wanted = settings.run.output_dir or home() / "outputs" / time.strftime("%Y%m%d-%H%M%S")
        folder = _make_new(wanted.expanduser().absolute())
        content = json.dumps({"format": FORMAT, **settings.flat()}, indent=2) + "\n"
        try:
            write_durably(folder / "config.json", content)
        except OSError as error:
            raise _unwritable(folder, error) from error
        return Run(folder)

    @staticmethod
    def open(folder: Path) -> Run:
        """An existing run, brought to the present format.

        Raises RunError where the folder is none, SettingsError where its config is damaged or of a newer version.
        """
        if not (folder / "config.json").is_file():
            raise RunError(f"{folder} is not a run folder: it has no config.json.", "Name a folder under outputs/.")
        run = Run(folder)
        run._config(write=True)
        return run

    @staticmethod
    def all(folder: Path | None = None) -> list[Run]:
        """Every run under `folder` (default: outputs/ of the home), newest first."""
        configs = (folder or home() / "outputs").glob("*/config.json")
        return [Run(path.parent) for path in sorted(configs, key=lambda path: -path.stat().st_mtime)]

    def settings(self) -> Settings:
        return Settings.of(self._config(write=False))

    def watch(self, watcher: Callable[[Event], None]) -> None:
        """Has `watcher` called with each event that this object emits."""
        self._watchers.append(watcher)

    def emit(self, kind: str, **fields: Any) -> None:
        """Appends one event and flushes it, so that other processes see it at once.

        A full disk does not end a run: its lines are kept, and written in their order as soon as there is room.
        """
        event = Event(time.time(), kind, fields)
        self._unwritten.append(json.dumps({"time": event.time, "kind": kind, **fields}, ensure_ascii=False))
        try:
            append_line(self.folder / "events.jsonl", "\n".join(self._unwritten))
            self._unwritten.clear()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
        for watcher in self._watchers:
            watcher(event)

    def follow(self, position: int = 0) -> Generator[tuple[Event, int], None, None]:
        """Each event from a place of the log on, with the place after it, to go on from when there is more.

        Holds one line at a time, however long the log is. A last line that is still being written is left.
        """
        path = self.folder / "events.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(position)
            while line := file.readline(LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
                    return
                if event := _event(line):
                    yield event, file.tell()

    def events(self) -> list[Event]:
        """All events so far; `follow` for those who only look through them, or want what is new."""
        return [event for event, _ in self.follow()]

    def last_events(self) -> list[Event]:
        """The last one, where there is any, and as many before it as a read of the log's end brings along."""
        size = TAIL
        path = self.folder / "events.jsonl"
        while path.exists():
            start = max(0, path.stat().st_size - size)
            with closing(self.follow(start)) as following:  # a line that begins before `start` is no event
                if (found := [event for event, _ in following]) or not start:
                    return found
            size *= 8
        return []

    def status(self) -> Status:
        if self._locked():
            return "running"
        events = self.last_events()
        if not events:
            return "new"
        kind = events[-1].kind
        return kind if kind in FINAL else "died"  # type: ignore[return-value]  # narrowed by FINAL

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; raises RunError where another one has it."""
        try:
            file = (self.folder / "lock").open("a")
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        with file, locked(file) as mine:
            if not mine:
                raise RunError(f"{self.folder} is being run by another process.", "Wait for it or stop it.")
            self._executing = True
            try:
                yield
            finally:
                self._executing = False

    def request_stop(self) -> None:
        """Asks the process that executes the run to save a checkpoint and end."""
        self._stopping = True
        with suppress(OSError) if self._executing else nullcontext():  # a process can stop itself on a full disk too
            (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        return self._stopping or (self.folder / "stop").exists()

    def clear_stop(self) -> None:
        self._stopping = False
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

    def _config(self, write: bool) -> dict[str, Any]:
        """The settings, flat, in the present format; on disk too, unless it cannot be written or is being executed."""
        write = write and os.access(self.folder, os.W_OK) and not self._locked()
        return CONFIG.migrate(self.folder / "config.json", write)

    def _locked(self) -> bool:
        path = self.folder / "lock"
        if not path.exists():
            return False
        with path.open("rb") as file:
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


def _event(line: bytes) -> Event | None:
    """The event of a line; None of half a line, which a process that was killed in mid-write leaves."""
    with suppress(ValueError, TypeError, KeyError):
        row = dict(json.loads(line.decode("utf-8", errors="replace")))
        return Event(row.pop("time"), row.pop("kind"), row)
    return None


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder} cannot be written: {error.strerror}.", "Free some space there, or choose another place.")


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

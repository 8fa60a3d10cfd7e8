"""Files that outlive a crash, a kill and a full disk; locks that do not; and folders that an older version wrote."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from voxtral_finetune.errors import FinetuneError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk, or a person's share of it, is full."""

Upgrade = Callable[[dict[str, Any], Path], dict[str, Any]]
"""Makes the content of one format that of the next, given the folder; done twice, it must come to the same."""


def write_durably(path: Path, data: str | bytes) -> None:
    """Writes a file so that after a crash either the old or the new one is there, whole."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # short, and nobody else's, of this process or another
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Adds a line of JSON durably, or leaves the file as it was; half a line that a crash left stays on its own."""
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        data = line.encode(errors="backslashreplace") + b"\n"  # a path's bytes that are no UTF-8 become JSON's \udcxx
        if end:
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        written = 0
        try:
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                if os.fstat(file.fileno()).st_size == end + written:  # nobody else has added a line meanwhile
                    file.truncate(end)
            raise


def sync_folder(folder: Path) -> None:
    """Makes renames and new names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Makes every file and every name below a folder durable."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


@contextmanager
def locked(file: IO[Any]) -> Iterator[bool]:
    """Whether the lock of an open file could be taken; held until the end of the `with`, or of this process.

    Processes forked meanwhile do not hold it: workers that outlive a killed run would go on with it.
    """
    taken = _taken(file)
    if taken:
        _HELD.add(file)
    try:
        yield taken
    finally:
        if taken:
            _HELD.discard(file)
            fcntl.flock(file, fcntl.LOCK_UN)


_HELD: set[IO[Any]] = set()


def _let_go() -> None:
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _taken(file: IO[Any]) -> bool:
    """Takes a lock; somebody who only looks whether it is held does so for an instant."""
    for wait in (0.05, 0.1, 0.2, 0.4, 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(wait)
    return False


@dataclass(frozen=True)
class Format:
    """The versions of a JSON file that names its own in `format`, and how an older one becomes the present one.

    `upgrades[n]` makes format n into n + 1; a file without a `format` is of `unnamed`. `error` is what is raised.
    """

    number: int
    upgrades: Mapping[int, Upgrade]
    error: type[FinetuneError]
    unnamed: int

    def read(self, path: Path) -> tuple[dict[str, Any], Any]:
        """The content as it is, and its format, known or not. Raises where the file cannot be read."""
        try:
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            raise self.error(f"{path} cannot be read: {error.strerror}.", "Check the folder.") from error
        except ValueError as error:
            raise self.error(f"{path} is not JSON: {error}.", "Mend that place, or put back a copy.") from error
        if not isinstance(content, dict):
            raise self.error(f"{path} holds no JSON object.", "Put back a copy of it.")
        return content, content.get("format", self.unnamed)

    def check(self, path: Path, found: Any) -> None:
        """Raises where the file is of a newer version, or of one too old to be known."""
        if type(found) is not int or found > self.number or not self.upgrades.keys() >= set(range(found, self.number)):
            what = f"{path.parent} has format {found!r}; this version reads {self.number}."
            raise self.error(what, "Update voxtral-finetune.")

    def migrate(self, path: Path, write: bool = True) -> dict[str, Any]:
        """The content in the present format, also on disk unless `write` is False.

        The file is kept as `<name>.format-n` and rewritten after each upgrade, so that a process that was killed in
        between goes on where it was. Raises also where the folder cannot be written.
        """
        content, found = self.read(path)
        self.check(path, found)
        for old in range(found, self.number):
            try:
                if write:
                    back_up(path, old)
                content = {**self.upgrades[old](content, path.parent), "format": old + 1}
                if write:
                    write_durably(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            except OSError as error:
                what = f"{path.parent} cannot be brought to format {self.number}: {error.strerror}."
                raise self.error(what, "Make the folder writable, and free some space.") from error
        return content


def back_up(path: Path, number: int) -> None:
    """Keeps a file as it was in format `number`, beside it; one that is kept already stays."""
    copy = path.with_name(f"{path.name}.format-{number}")
    if not copy.exists():
        write_durably(copy, path.read_bytes())

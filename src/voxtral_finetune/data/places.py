"""Where audio may lie: under the folder of its corpus, or under a folder that the user named.

A row of somebody else's manifest must not make this program read, copy or publish another file. So links and `..` are
followed first and the result is compared with the allowed folders; what lies outside is refused with one message,
whether it exists or not.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from voxtral_finetune.data.findings import shown
from voxtral_finetune.errors import DataError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm", ".mp4", ".aac", ".aiff", ".aif")
"""Endings that audio usually has; what a file holds is decided by its content."""


class Places:
    """Finds the file that a row names, and refuses what lies outside."""

    def __init__(self, folder: Path, roots: Iterable[Path] = (), inside: Iterable[str] = ()) -> None:
        """Names are relative to `folder`, to a folder `inside` it, or to one of the `roots`."""
        roots = [Path(os.path.realpath(root.expanduser())) for root in roots]
        folder = Path(os.path.realpath(folder))
        self.starts = [str(folder), *(str(folder / name) for name in inside), *map(str, roots)]
        self.allowed = [str(place).rstrip(os.sep) for place in (folder, *roots)]

    def find(self, name: str) -> Path:
        """The file of that name, links followed; where there is none, the place where it was expected.

        Raises DataError for a URL, a name that is not Unicode, and whatever lies outside the folders.
        """
        if "://" in name:
            raise DataError(f"{shown(name)} is a URL; nothing is downloaded.", "Name a file of the corpus.")
        if any("\ud800" <= sign <= "\udfff" for sign in name):
            raise DataError(f"The name {shown(name)} is not Unicode text.", "Rename the file.")
        expected = None
        for candidate in self._candidates(name):
            path = _real(candidate)
            if any(path == root or path.startswith(root + os.sep) for root in self.allowed):
                if _is_file(path):
                    return Path(path)
                expected = expected or path
        if expected is None:
            raise DataError(
                f"{shown(name)} is outside the folder of the corpus.",
                "Move it there or name its folder with --audio-root.",
            )
        return Path(expected)

    def _candidates(self, name: str) -> Iterator[str]:
        """The name in every place, then in its other Unicode forms (macOS), then with an ending (LJSpeech)."""
        if "\0" in name:
            return
        spellings = dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)))
        for spelling in spellings:
            yield from (os.path.join(start, spelling) for start in self.starts)  # noqa: PTH118  # 10 times as fast
        if name and not name.lower().endswith(SUFFIXES):
            for suffix in SUFFIXES:
                yield from (os.path.join(start, name + suffix) for start in self.starts)  # noqa: PTH118


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read, without buffer; never waits. Raises DataError where it is no regular file or is closed."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            # NONBLOCK: the file may have become a pipe since it was looked at, and opening that would wait for ever.
            file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)  # noqa: PTH123, SIM115
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file
            file.close()
    except FileNotFoundError as error:
        raise DataError(f"{shown(path)} is missing.", "Record it again or remove its row.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name holds a zero byte"
        raise DataError(f"{shown(path)} cannot be read: {reason}.", "Check its name and permissions.") from error
    raise DataError(f"{shown(path)} is not a regular file.", "Remove its row.")


def real(path: Path) -> Path:
    """The path with links and `..` followed; unlike `Path.resolve` it never raises, also not for loops of links."""
    return Path(os.path.realpath(path))


def _real(path: str) -> str:
    """As `real`, with what was found out about folders kept."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    path = os.path.join(_real_folder(folder), name)  # noqa: PTH118
    return os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114


@lru_cache(4096)
def _real_folder(folder: str) -> str:
    """Most rows of a corpus share a few folders; following each folder's links once makes 100 000 rows quick."""
    return os.path.realpath(folder)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except OSError:
        return False

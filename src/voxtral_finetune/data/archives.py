"""Zip and tar archives, unpacked by hand: nothing outside the folder, no links, no bombs, nothing left of a failure."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.errors import DataError
from voxtral_finetune.settings import home

MAX_RATIO = 100
"""All that comes out may be so many times the size of the archive; speech compresses by 2 to 20."""

MAX_BYTES = 500 * 10**9
MAX_FILES = 100_000
MAX_DIRECTORY_BYTES = 64 * 2**20
"""A zip's list of files, which is read whole: over 600 bytes for each of MAX_FILES."""

BLOCK = 2**20
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db")
FAULTS = (
    *(zipfile.BadZipFile, zlib.error, tarfile.TarError, gzip.BadGzipFile, EOFError, NotImplementedError),
    *(ValueError, RuntimeError),
)


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its name, its size as the archive says, and the stream of its bytes."""

    name: str
    size: int
    stream: BinaryIO


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these (at least 262) bytes is a zip, tar or gzip file."""
    return head[:4] in (b"PK\3\4", b"PK\5\6") or head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar"


def unpacked(path: Path, into: Path | None = None) -> Path:
    """The folder with an archive's content, unpacked once into `into` (default: the home's cache).

    Raises DataError, and leaves nothing behind, where the archive is damaged, encrypted or beyond the limits above, or
    holds links, devices, names twice, or names that lead out of the folder.
    """
    status = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = (into or home() / "cache" / "archives") / key
    partial = target.with_name(f"{key}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f"{key}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be unpacking the same archive
            if not target.exists():
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                _unpack(path, partial)
                partial.rename(target)
    except FAULTS as error:
        raise DataError(f"{shown(path)} cannot be unpacked: {shown(error)}.", "Download or make it again.") from error
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be unpacked: {error.strerror}.", "Free some space.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _unpack(path: Path, folder: Path) -> None:
    folder.mkdir()
    limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size, shutil.disk_usage(folder).free)
    count, names, left = 0, set(), limit
    with open_regular(path) as file:
        entries = _zip_entries(path, file) if file.read(2) == b"PK" else _tar_entries(path, file, limit)
        for entry in entries:
            count += 1
            name = _safe_name(path, entry.name)
            if count > MAX_FILES:
                raise DataError(f"{shown(path)} holds over {MAX_FILES} files.", "Split it, or unpack it yourself.")
            if name in names:
                raise DataError(f"{shown(path)} holds {shown(entry.name)} twice.", "Make it again.")
            names.add(name)
            if not set(name.parts) & set(JUNK):
                left = _copy(path, entry, folder / name, left)


def _copy(path: Path, entry: Entry, target: Path, left: int) -> int:
    """Writes one file; returns how many bytes may still follow. What counts is what comes out, not what is said."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        while block := entry.stream.read(BLOCK):
            left -= len(block)
            if left < 0 or entry.size > left + len(block):
                raise _too_large(path)
            out.write(block)
    return left


def _zip_entries(path: Path, file: BinaryIO) -> Iterator[Entry]:
    if _directory_bytes(file) > MAX_DIRECTORY_BYTES:
        raise DataError(f"{shown(path)} holds over {MAX_FILES} files.", "Split it, or unpack it yourself.")
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                _safe_name(path, info.filename.rstrip("/") or "/")
                continue
            if info.flag_bits & 1:
                raise DataError(f"{shown(path)} is encrypted.", "Unpack it yourself and name the folder.")
            if kind not in (0, stat.S_IFREG):
                raise _no_file(path, info.filename)
            with archive.open(info) as stream:
                yield Entry(info.orig_filename, info.file_size, stream)  # type: ignore[arg-type]  # reads like one


def _directory_bytes(file: BinaryIO) -> int:
    """The size of a zip's list of files, as its last record says; 0 where there is none (zipfile will complain)."""
    size = os.fstat(file.fileno()).st_size
    tail_at = max(0, size - 2**16 - 22)
    file.seek(tail_at)
    tail = file.read(2**16 + 22)
    at = tail.rfind(b"PK\5\6")
    listed = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    locator = tail.rfind(b"PK\6\7", 0, max(at, 0))
    if locator >= 0:  # zip64: the real record lies elsewhere
        file.seek(min(int.from_bytes(tail[locator + 8 : locator + 16], "little"), size))
        listed = int.from_bytes(file.read(56)[40:48], "little")
    return listed


def _tar_entries(path: Path, file: BinaryIO, limit: int) -> Iterator[Entry]:
    file.seek(0)
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    bounded = _Bounded(path, gzip.GzipFile(fileobj=file) if packed else file, limit)  # type: ignore[arg-type]
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]  # all that tarfile uses
        for member in archive:
            if member.isdir():
                _safe_name(path, member.name)
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None:
                raise _no_file(path, member.name)
            yield Entry(member.name, member.size, stream)
            archive.members = []  # else it keeps a record of every file


class _Bounded:
    """The bytes of a tar file, as `tarfile` reads them, up to a limit: gzip can promise any number of them."""

    def __init__(self, path: Path, file: BinaryIO, limit: int) -> None:
        self.path, self.file, self.limit = path, file, limit

    def read(self, count: int) -> bytes:
        # tarfile reads headers in one piece, of the size that the file says; no real one is over a few kilobytes.
        if count > 16 * BLOCK or self.file.tell() + count > self.limit + 16 * BLOCK:
            raise _too_large(self.path)
        return self.file.read(count)

    def seek(self, place: int) -> int:
        if place > self.limit + 16 * BLOCK:
            raise _too_large(self.path)
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _safe_name(path: Path, name: str) -> PurePosixPath:
    """A name as a place inside the folder; raises DataError where it could lead elsewhere on any system."""
    place = PurePosixPath(name)
    if not name or place.is_absolute() or ".." in place.parts or any(sign in name for sign in "\\:\0"):
        raise DataError(f"{shown(path)} holds the name {shown(name)[:100]}, which leads elsewhere.", "Make it again.")
    return place


def _no_file(path: Path, name: str) -> DataError:
    return DataError(f"{shown(path)} holds {shown(name)[:100]}, a link or device.", "Make it again of files only.")


def _too_large(path: Path) -> DataError:
    return DataError(
        f"{shown(path)} unpacks to more than {MAX_RATIO} times its size, or than fits here.", "Unpack it yourself."
    )


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A folder for what is unpacked while something else is made of it; removed in any case."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

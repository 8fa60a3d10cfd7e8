"""Speech decoded once and kept as the 16 kHz samples that every later epoch and run reads.

    FOLDER/size                      bytes in all files together, 8 bytes, changed under a lock
    FOLDER/ab/abcd….f32              one part of one recording: a header, then float32 samples, little-endian

It is a cache and never more: it stays within its limit, leaves the disk room, may be deleted at any time, and where it
cannot be written or a file of it is torn, speech is decoded as if there were none. Any number of processes and runs may
use one folder. A 16 kHz mono WAV is read where it lies, which costs no more than reading from here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import re
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.data.rows import Utterance

DECODERS = ("1", soundfile.__libsndfile_version__, version("soxr"), version("av"))
"""What made the samples; another version of any may make others. The first is this file's own format."""

HEADER = struct.Struct("<4sIQ")
"""MAGIC, CRC-32 of the samples, number of samples."""
MAGIC = b"f32\n"

FREE_BYTES, FREE_SHARE = 2 * 10**9, 0.05
"""What is left free on the disk: the larger of the two."""

UNUSED_SECONDS = 30 * 86_400
"""After a month without being read a file goes: its recording has been changed or removed."""
TORN_SECONDS = 3600
"""After an hour what a killed process left half-written goes."""

SHA256 = re.compile("[0-9a-f]{64}")


class WaveCache:
    """Loads utterances, those whose decoding costs time from a folder where they are there."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Counts what `folder` holds (it need not exist) and lets go of what nobody reads any more."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        # Hits, direct, misses of this process and its workers. No lock: a killed worker would leave it locked for ever,
        # and of two that count in the same instant one may go missing.
        self._counts = multiprocessing.Array("q", 3, lock=False)
        self._writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._size() as size:
                _put(size, _tidied(folder))
        except OSError:
            self._writable = False

    def load(self, row: Utterance) -> Wave:
        """What `audio.load(row.audio, *row.span)` gives, bit for bit; raises what it raises."""
        path = self._path(row)
        if path is not None and (wave := _read(path)) is not None:
            self._counts[0] += 1
            return wave
        direct = path is not None and _is_direct(row.audio)
        wave = audio.load(row.audio, *row.span)
        self._counts[1 if direct else 2] += 1
        if path is not None and not direct and self._writable:
            try:
                self._keep(path, wave)
            except OSError:  # a full disk, a folder that may not be written
                self._writable = False
        return wave

    def stats(self) -> dict[str, int]:
        """How many were read from here (hits), where they lie (direct), were decoded (misses); bytes kept in all."""
        hits, direct, misses = self._counts
        kept = 0
        with contextlib.suppress(OSError):
            kept = int.from_bytes((self.folder / "size").read_bytes(), "little")
        return {"hits": hits, "direct": direct, "misses": misses, "bytes": kept}

    def _path(self, row: Utterance) -> Path | None:
        """Where a row's samples are kept: by its sound, its part of the file, and the file's size and time.

        None where the sound is not known by its hash, or the file is not there.
        """
        if row.sha256 is None or not SHA256.fullmatch(row.sha256):
            return None
        try:
            status = row.audio.stat()
        except (OSError, ValueError):
            return None
        made = hashlib.sha256(repr((*row.span, status.st_size, status.st_mtime_ns, DECODERS)).encode())
        return self.folder / row.sha256[:2] / f"{row.sha256}-{made.hexdigest()[:16]}.f32"

    def _keep(self, path: Path, wave: Wave) -> None:
        """Writes a file, unless there is no room for it."""
        samples = np.ascontiguousarray(wave, "<f4")
        needed = HEADER.size + samples.nbytes
        partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        path.parent.mkdir(exist_ok=True)
        with self._size() as size:
            held = int.from_bytes(size.read(8), "little")
            disk = shutil.disk_usage(self.folder)
            if held + needed > self.limit_bytes or disk.free - needed < max(FREE_BYTES, FREE_SHARE * disk.total):
                return
            # It has its full size from the beginning, so that who counts files meanwhile counts this one.
            file = partial.open("xb")
            file.truncate(needed)
            _put(size, held + needed)
        try:
            with file:
                file.write(HEADER.pack(MAGIC, zlib.crc32(samples.data), len(samples)))
                file.write(samples.data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _size(self) -> Iterator[BinaryIO]:
        """The file that holds how many bytes there are, locked: no other process changes it meanwhile."""
        descriptor = os.open(self.folder / "size", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _put(size: BinaryIO, held: int) -> None:
    size.seek(0)
    size.write(held.to_bytes(8, "little"))


def _read(path: Path) -> Wave | None:
    """The samples in a file of the cache; None where there is none or it is torn."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            head = file.read(HEADER.size)
            if len(head) < HEADER.size:
                return None
            magic, checksum, samples = HEADER.unpack(head)
            if magic != MAGIC or status.st_size != HEADER.size + 4 * samples:
                return None
            wave = np.empty(samples, "<f4")
            file.readinto(wave.data)
        if zlib.crc32(wave.data) != checksum:
            return None
        if time.time() - status.st_mtime > 86_400:
            with contextlib.suppress(OSError):  # a folder that may only be read
                os.utime(path)
    except OSError:
        return None
    return wave


def _is_direct(path: Path) -> bool:
    """Whether a file is a mono 16 kHz WAV whose header begins in the usual way."""
    with open_regular(path) as file:
        head = file.read(28)
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return False
    channels, rate = struct.unpack("<HI", head[22:28])
    return (channels, rate) == (1, SAMPLE_RATE)


def _tidied(folder: Path) -> int:
    """The bytes in the cache's files, after those went that nobody has read for long or that were never finished."""
    held, now = 0, time.time()
    for inner in folder.glob("[0-9a-f][0-9a-f]"):
        for entry in os.scandir(inner):
            with contextlib.suppress(FileNotFoundError):  # another process has just renamed or removed it
                status = entry.stat()
                longest = UNUSED_SECONDS if entry.name.endswith(".f32") else TORN_SECONDS
                if now - status.st_mtime > longest:
                    Path(entry.path).unlink()
                else:
                    held += status.st_size
    return held

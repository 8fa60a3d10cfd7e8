"""What a frozen encoder and projector make of each window, computed once and kept on disk.

In the first epoch each result is written as it is computed anyway; from the second the encoder is not run at all and
no audio is read. A file is named after everything that its content depends on (weights, dtype, the recordings by
content and how they are packed), so a run can only find what it would have computed itself. Each entry ends with a
checksum: what a crash left half written is computed again. It is a cache and never more: it may be deleted at any time,
leaves the disk room, and where it cannot be written nothing is kept. It is read and written rather than mapped into
memory, because a process that writes to a map of a file on a full disk is killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from voxtral_finetune.data.wave_cache import FREE_BYTES, FREE_SHARE
from voxtral_finetune.data.windows import GAP_SECONDS, Window

FORMAT = 3
"""Part of every key; raised when the same windows would give other embeddings (features, gaps)."""

CHECKSUM = 4
"""Bytes of a CRC-32, after each entry."""


class EmbeddingCache:
    """Embeddings of windows by their place in a plan that does not change.

    `chunks` says how many windows of the checkpoint each fills; one entry is (chunks, tokens, width) of `dtype`.
    Entries beyond `limit` bytes are not kept, and files of other plans give way to this one, the oldest first.
    """

    def __init__(
        self, folder: Path, key: str, chunks: Sequence[int], shape: tuple[int, int], dtype: torch.dtype, limit: int
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        sizes = np.asarray(chunks, np.int64) * shape[0] * shape[1] * dtype.itemsize
        ends = np.cumsum(sizes + CHECKSUM)
        self.kept = int(np.searchsorted(ends, limit, side="right"))
        self.starts = np.concatenate([[0], ends])[: self.kept + 1]
        self.path = folder / f"{key}.embeddings"
        self._writable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            _make_room(self.path, limit - self.bytes)
        except OSError:
            self._writable = False

    @property
    def bytes(self) -> int:
        """How much disk the whole cache takes when it is full."""
        return int(self.starts[-1])

    def get(self, index: int) -> torch.Tensor | None:
        """(chunks, tokens, width) of the window at `index`, or None where it is not known (yet)."""
        if index >= self.kept:
            return None
        entry = np.empty(self.starts[index + 1] - self.starts[index], np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.starts[index])
                there = file.readinto(entry.data)
        except OSError:
            return None
        kept, checksum = entry[:-CHECKSUM], entry[-CHECKSUM:].tobytes()
        if there < len(entry) or checksum != _checksum(kept.data):
            return None
        return torch.from_numpy(kept).view(self.dtype).view(-1, *self.shape)

    def put(self, index: int, embeds: torch.Tensor) -> None:
        """Keeps (chunks, tokens, width) as the embeddings of the window at `index`, where there is room for it."""
        if index >= self.kept or not self._writable:
            return
        entry = embeds.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().tobytes()
        if len(entry) + CHECKSUM != self.starts[index + 1] - self.starts[index]:
            return  # a recording some samples longer than its rounded seconds say fills one window more
        try:
            disk = shutil.disk_usage(self.path.parent)
            if disk.free - len(entry) < max(FREE_BYTES, FREE_SHARE * disk.total):
                return
            with self.path.open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), entry + _checksum(entry), self.starts[index])
        except OSError:  # a full disk, or the file was deleted
            self._writable = False


def cache_key(model: nn.Module, windows: Iterable[Window], dtype: torch.dtype) -> str:
    """A name for what `model`'s encoder and projector make of these windows, by content."""
    digest = hashlib.sha256(f"{FORMAT}:{dtype}:{GAP_SECONDS}".encode())
    for name, parameter in sorted(model.named_parameters()):
        if "audio_tower" in name or "multi_modal_projector" in name:
            digest.update(f"{name}:{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().to("cpu").contiguous().view(torch.uint8).numpy().tobytes())
    for window in windows:
        digest.update("".join(f"{row.sha256}@{row.span}" for row in window.utterances).encode() + b"\n")
    return digest.hexdigest()[:32]


def _checksum(entry: bytes | memoryview) -> bytes:
    return zlib.crc32(entry).to_bytes(CHECKSUM, "little")


def _make_room(mine: Path, left: int) -> None:
    """Deletes the oldest files of other plans until those that stay take no more than `left` bytes."""
    others = [(path.stat(), path) for path in mine.parent.glob("*.embeddings") if path != mine]
    for status, path in sorted(others, key=lambda each: -each[0].st_mtime):
        left -= status.st_blocks * 512
        if left < 0:
            path.unlink(missing_ok=True)

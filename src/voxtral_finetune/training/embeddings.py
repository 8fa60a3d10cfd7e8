"""What a frozen encoder and projector make of each window, computed once and kept on disk.

In the first epoch each result is written as it is computed anyway; from the second the encoder is not run at all and
no audio is read. The file is a memory map: reading costs a copy, not memory. It is named after everything that the
result depends on (weights, dtype, the recordings by content and how they are packed), so a run can only find what it
would have computed itself. Each entry carries a checksum written after it: what a crash left half written is computed
again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from voxtral_finetune.data.windows import GAP_SECONDS, Window

FORMAT = 1
"""Part of every key; raised when the same windows would give other embeddings (features, gaps)."""


class EmbeddingCache:
    """Embeddings of windows by their place in a plan that does not change.

    `chunks` says how many windows of the checkpoint each fills; one entry is (chunks, tokens, width) of `dtype`.
    Entries beyond `limit_bytes` are not kept.
    """

    def __init__(
        self, folder: Path, key: str, chunks: Sequence[int], shape: tuple[int, int], dtype: torch.dtype, limit: int
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.chunk_bytes = shape[0] * shape[1] * dtype.itemsize
        ends = np.cumsum(np.asarray(chunks, np.int64))
        self.kept = int(np.searchsorted(ends, limit // self.chunk_bytes, side="right"))
        self.starts = np.concatenate([[0], ends])[: self.kept + 1]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{key}.embeddings"
        self._data = _mapped(self.path, (int(self.starts[-1]), self.chunk_bytes), np.dtype(np.uint8))
        self._sums = _mapped(self.path.with_suffix(".sums"), (self.kept,), np.dtype(np.uint32))

    @property
    def bytes(self) -> int:
        """How much disk the whole cache takes when it is full."""
        return int(self.starts[-1]) * self.chunk_bytes

    def get(self, index: int) -> torch.Tensor | None:
        """(chunks, tokens, width) of the window at `index`, or None where it is not known (yet)."""
        if index >= self.kept or not self._sums[index]:
            return None
        entry = np.array(self._data[self.starts[index] : self.starts[index + 1]])
        if _checksum(entry) != self._sums[index]:
            return None
        return torch.from_numpy(entry).view(self.dtype).view(-1, *self.shape)

    def put(self, index: int, embeds: torch.Tensor) -> None:
        """Keeps (chunks, tokens, width) as the embeddings of the window at `index`."""
        if index >= self.kept or self._sums[index]:
            return
        entry = embeds.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy()
        self._data[self.starts[index] : self.starts[index + 1]] = entry.reshape(-1, self.chunk_bytes)
        self._sums[index] = _checksum(np.ascontiguousarray(entry).reshape(-1, self.chunk_bytes))


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


def _checksum(entry: np.ndarray) -> int:
    """CRC-32, never 0: that says an entry is empty."""
    return zlib.crc32(entry.data) or 1


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A file of zeros of that shape, or the one that is there, as memory; it takes disk only as it is filled."""
    size = int(np.prod(shape)) * dtype.itemsize
    with path.open("ab") as file:
        if file.tell() != size:
            file.truncate(size)
    if not size:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r+", shape=shape)

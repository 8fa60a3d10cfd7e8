"""How fast a run goes: speech heard per second, time left, memory, and on CUDA the share of the device's peak."""

from __future__ import annotations

import time
from typing import Any

import torch

from voxtral_finetune.run import peak_rss
from voxtral_finetune.training.dataset import Timeline
from voxtral_finetune.training.distributed import processes

MATMUL = 8192
"""Side of the square matrices whose product measures a CUDA device's peak: large enough to fill any of today's."""


class Speed:
    """Counts what a run has heard since it began (or was resumed).

    `flops` are those of one window's training step; with them and a CUDA device, `mfu` is their rate divided by that
    of a large bf16 matrix product on the same device.
    """

    def __init__(self, timeline: Timeline | None, device: torch.device) -> None:
        self.timeline = timeline
        self.device = device
        self.flops = 0.0
        self._peak = matmul_rate(device) if device.type == "cuda" else 0.0
        self._started, self._first = time.monotonic(), 0
        self._since = (self._started, 0, 0.0)  # of the last report: when, which update, speech seconds so far
        self._speech = 0.0

    def begin(self, update: int) -> None:
        self._started, self._first = time.monotonic(), update
        self._since = (self._started, update, 0.0)

    def heard(self, update: int) -> None:
        """Update number `update`, from 1, is done."""
        if self.timeline:
            self._speech += sum(window.seconds for _, _, window in self.timeline.update(update - 1))

    def facts(self, update: int, updates: int) -> dict[str, Any]:
        """For a step event: since the last one, but time left from all since it began or was resumed."""
        now = time.monotonic()
        before, last, speech = self._since
        self._since = (now, update, self._speech)
        seconds, done = max(now - before, 1e-9), update - last
        left = (updates - update) * (now - self._started) / max(update - self._first, 1)
        found: dict[str, Any] = {"eta_seconds": round(left, 1), "memory_bytes": peak_memory(self.device)}
        if self.timeline:
            found["speech_hours_per_hour"] = round((self._speech - speech) / seconds, 2)
        if self._peak and self.flops and self.timeline:
            windows = done * self.timeline.hearing.per_update
            found["mfu"] = round(windows * self.flops / seconds / self._peak / processes()[1], 4)
        return found


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a large bf16 matrix product: the most that this device gives in practice."""
    left = torch.randn(MATMUL, MATMUL, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        left @ left
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(10):
        left @ left
    end.record()
    torch.cuda.synchronize(device)
    return 10 * 2 * MATMUL**3 / (start.elapsed_time(end) / 1000)


def peak_memory(device: torch.device) -> int:
    """The most memory used, in bytes: of the GPU where it runs on one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_rss()

"""A batch as the collator makes it, taken in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from voxtral_finetune.data.collate import SPECIAL

BY_ROW = ("input_ids", "attention_mask", "labels", "audio_index")
"""What has one entry a row; the rest counts windows, of which a row has one or more."""


def rows_in(batch: dict[str, Any]) -> int:
    return len(batch["input_ids"])


def parts(batch: dict[str, Any], halvings: int) -> Iterator[dict[str, Any]]:
    """The rows of a batch in 2**halvings parts of about one size, fewer where there are not so many rows."""
    rows = rows_in(batch)
    count = min(2**halvings, rows)
    if count == 1:
        yield batch
        return
    per_row = (batch["input_ids"] == SPECIAL["[AUDIO]"]).sum(1)
    # A window has as many audio tokens as the batch has for each of its windows.
    windows = per_row * _windows_in(batch) // per_row.sum()
    ends = torch.cat([torch.zeros(1, dtype=torch.long), windows.cpu().cumsum(0)])
    known = batch.get("audio_known")
    for index in range(count):
        first, last = rows * index // count, rows * (index + 1) // count
        yield _cut(batch, slice(first, last), int(ends[first]), int(ends[last]), known)


def _windows_in(batch: dict[str, Any]) -> int:
    return len(batch["audio_known"] if "audio_known" in batch else batch["input_features"])


def _cut(batch: dict[str, Any], rows: slice, first: int, last: int, known: torch.Tensor | None) -> dict[str, Any]:
    part = {name: batch[name][rows] for name in BY_ROW if name in batch}
    if known is None:
        return {**part, "input_features": batch["input_features"][first:last]}
    part["audio_known"] = known[first:last]
    for name, there in (("audio_embeds", known), ("input_features", ~known)):
        if name in batch and there[first:last].any():
            before, inside = int(there[:first].sum()), int(there[first:last].sum())
            part[name] = batch[name][before : before + inside]
    return part

"""Before the first step: what fits on the device, what will be downloaded and written, how long it will take.

Memory is estimated first, from shapes alone (`training.memory`); then the longest window of the run is taught once, in
the micro-batch that was chosen, and nothing of it is kept. What was asked for as the size of an update stays.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.windows import Window
from voxtral_finetune.model import load
from voxtral_finetune.model.catalog import resolve
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import memory
from voxtral_finetune.training.checkpoints import KEPT, check_room
from voxtral_finetune.training.dataset import Timeline
from voxtral_finetune.training.distributed import is_sharded, least, processes
from voxtral_finetune.training.schedule import Schedule, longest_window, schedule
from voxtral_finetune.training.trainer import only_at_labels

WEIGHTS = ("*.safetensors", "*.json")
"""What of a checkpoint's repository is loaded; the published ones also hold the same weights in Mistral's layout."""


@dataclass(frozen=True)
class Fit:
    """How an update is made on each device: `accumulation` micro-batches of `micro_batch` windows."""

    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory_bytes: int
    budget_bytes: int
    download_bytes: int = 0
    disk_bytes: int = 0
    disk_free: int = 0


@dataclass(frozen=True)
class Plan:
    """What a run will do, settled before its weights are loaded."""

    schedule: Schedule
    fit: Fit


def prepare(
    run: Run,
    settings: Settings,
    rows: Sequence[Utterance],
    processor: Any,
    device: torch.device,
    replay: Sequence[Utterance] = (),
) -> Plan:
    """The plan of a run that learns from `rows`, and a share of `replay`, on `device`; told as its event `plan`.

    Raises RunError where no batch fits in memory, or the checkpoints not on the disk.
    """
    collator = TranscriptionCollator(processor)
    made = schedule(rows, settings, collator.window_seconds, _embedding_bytes(settings, collator, device), replay)
    everything = [*rows, *replay]
    longest = longest_window(everything, made)
    chosen = _fit(run, settings, made, longest, _longest_text(everything, collator, longest), device)
    run.emit("plan", device=str(device), learning_rate=settings.learning_rate, **made.facts(), **vars(chosen))
    return Plan(made, chosen)


def _fit(run: Run, settings: Settings, made: Schedule, longest: Window, text_tokens: int, device: torch.device) -> Fit:
    """The fastest way to make an update; `longest` is the window that costs most, of `text_tokens` tokens of text."""
    chosen, name, revision = settings.training, settings.model.model_checkpoint, settings.model.model_revision
    per_device = made.hearing.per_update // processes()[1]

    def peak(windows: int, recompute: bool) -> int:
        rows = windows * made.longest
        several = windows < per_device
        needed = memory.estimate(
            name, chosen, device.type, rows, text_tokens, recompute, revision=revision, accumulates=several
        )
        if not is_sharded():
            return needed.total
        shared_out = needed.weights + needed.gradients + needed.optimiser
        return shared_out // processes()[1] + needed.activations + needed.other

    budget = least(memory.budget(device))  # an update is made of the same steps in all processes
    micro, recompute = memory.choose(budget, per_device, peak, chosen.gradient_checkpointing)
    checkpoint = memory.size_on_disk(name, chosen, device.type, revision)
    check_room(run.folder / "checkpoints", checkpoint)
    free = shutil.disk_usage(run.folder).free
    disk, download = (KEPT + 2) * checkpoint, download_size(name, revision)  # the kept, the best, the next
    return Fit(micro, per_device // micro, recompute, peak(micro, recompute), budget, download, disk, free)


def probe(
    run: Run, model: nn.Module, collator: TranscriptionCollator, timeline: Timeline, plan: Plan
) -> tuple[Fit, float]:
    """Teaches the longest window of the first epoch once.

    Gives (what fits after all, FLOPs of one window's step where the device is CUDA). Where memory runs out the
    micro-batch is lowered to the next divisor of the update. Gradients and random state are left as they were found.
    """
    device, chosen = next(model.parameters()).device, plan.fit
    window = longest_window([*timeline.rows, *timeline.replay], plan.schedule)
    seconds = min(window.seconds, timeline.chunks(window) * timeline.hearing.window_seconds)
    silence = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    example = Example(silence, window.text, window.language, window.name)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    while True:
        started = time.monotonic()
        try:
            taught = chosen.micro_batch
            flops = _teach(model, collator([example] * taught), device)
            break
        except torch.OutOfMemoryError:
            smaller = [size for size in range(1, chosen.micro_batch) if chosen.micro_batch % size == 0]
            if not smaller:
                raise
            accumulation = chosen.accumulation * chosen.micro_batch // smaller[-1]
            chosen = replace(chosen, micro_batch=smaller[-1], accumulation=accumulation)
            torch.cuda.empty_cache()
        finally:
            model.zero_grad()
    seconds = time.monotonic() - started
    smallest = least(chosen.micro_batch)
    chosen = replace(chosen, micro_batch=smallest, accumulation=chosen.accumulation * chosen.micro_batch // smallest)
    run.emit(
        "probe",
        micro_batch=chosen.micro_batch,
        accumulation=chosen.accumulation,
        seconds=round(seconds, 3),
        about_seconds=round(seconds * chosen.accumulation * plan.schedule.updates, 1),
        **({"memory_bytes": torch.cuda.max_memory_allocated()} if device.type == "cuda" else {}),
    )
    return chosen, flops / taught


def _teach(model: nn.Module, batch: dict[str, torch.Tensor], device: torch.device) -> float:
    """One forward and backward pass as the trainer makes it; its FLOPs on CUDA, where they are compared with a peak."""
    on_cuda = device.type == "cuda"
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    counter = FlopCounterMode(display=False)
    learning = [module for module in model.modules() if module.training]
    model.train()
    try:
        with torch.random.fork_rng([device] if on_cuda else []), counter if on_cuda else nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                loss = model(**batch, **only_at_labels(batch["labels"]), use_cache=False).loss
            loss.backward()
        if on_cuda:
            torch.cuda.synchronize(device)  # else the time of a backward pass that has only begun would be told
    finally:
        model.eval()
        for module in learning:
            module.training = True
    return float(counter.get_total_flops())


def _embedding_bytes(settings: Settings, collator: TranscriptionCollator, device: torch.device) -> int:
    """What one window's embeddings take: (audio tokens, width of the language model) in the dtype of its weights."""
    config = load.read_config(settings.model.model_checkpoint, settings.model.model_revision)
    width: int = config.text_config.hidden_size
    return collator.tokens_per_window * width * load.weights_dtype(device).itemsize


def download_size(checkpoint: str, revision: str | None) -> int:
    """Bytes of a checkpoint's files that are not on this machine yet; 0 for a folder, or where the Hub is away."""
    if Path(resolve(checkpoint)).exists():
        return 0
    try:
        files: Any = snapshot_download(checkpoint, revision=revision, allow_patterns=list(WEIGHTS), dry_run=True)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
        return 0  # what cannot be reached cannot be downloaded either; loading says what is wrong
    return sum(file.file_size for file in files if file.will_download)


def _longest_text(rows: Sequence[Utterance], collator: TranscriptionCollator, window: Window) -> int:
    """Tokens of the longest text of a batch: of the window that costs most, or of an utterance that says more."""
    wordiest = max(rows, key=lambda row: len(row.text))
    return max(len(collator.target(text)) for text in (window.text, wordiest.text))

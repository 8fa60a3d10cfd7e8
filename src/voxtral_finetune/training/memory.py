"""How much memory a training step takes, told before the weights are loaded; and the micro-batch that fits.

The step is played through on the `meta` device: the checkpoint's own modules, adapted as the run would adapt them, go
forward and backward on tensors that have shapes and no contents, while every storage that comes and goes is counted.
A step of Voxtral-Mini-3B is played in about a second on one core. What the real device would do otherwise than `meta`
(autocast's types, the attention kernel, the mask that dropout keeps) is told by `rehearsal.Pretend`.

    weights       parameters and buffers, in the types they are kept in
    gradients     of what learns, in float32
    optimiser     AdamW's two moments; the step itself is fused and takes no more
    activations   what forward and backward need beyond these at their peak: kept results, casts, logits at labels
    other         what is not a tensor: an allowance, `OVERHEAD`
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from voxtral_finetune.errors import RunError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.settings import TrainingSettings
from voxtral_finetune.training.rehearsal import FourBit, Live, play

OVERHEAD = {"cuda": 700_000_000, "mps": 500_000_000, "cpu": 40_000_000}
"""Bytes beside the tensors. CUDA: its context (about 0.5 GB) and cuBLAS's workspaces; CPU: buffers of the kernels."""

HEADROOM = {"cuda": 0.92, "mps": 0.8, "cpu": 0.8}
"""The share of what is free that is used: the rest is what an allocator loses between blocks."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the peak of a training step, by what they are for."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    other: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations + self.other


def estimate(
    checkpoint: str,
    settings: TrainingSettings,
    device: str,
    windows: int,
    text_tokens: int,
    checkpointing: bool,
    *,
    revision: str | None = None,
    accumulates: bool = True,
) -> Memory:
    """The peak of a step of `windows` windows on `device` ("cuda", "mps" or "cpu"), a row of the batch for each.

    `text_tokens` is the length of the longest text of the batch, end of text included. `accumulates`: gradients of
    earlier micro-batches are there already. Raises what `model.load.skeleton` and `model.adapt.adapt` raise.
    """
    model = _taught(checkpoint, revision, settings.model_copy(update={"gradient_checkpointing": checkpointing}), device)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = sum(weight.numel() * 4 for weight in learning)
    for weight in learning:
        weight.grad = torch.empty_like(weight) if accumulates else None
    with Live() as live:
        for tensor in (*model.parameters(), *model.buffers()):
            live.count(tensor)
        weights = live.bytes
        for weight in learning:
            if weight.grad is not None:
                live.count(weight.grad)
        play(model, device, windows, text_tokens)
    for weight in learning:
        weight.grad = None
    kept = optimiser_bytes(model, settings.optimizer)
    return Memory(weights, gradients, kept, live.peak - weights - gradients, OVERHEAD[device])


def optimiser_bytes(model: nn.Module, optimizer: str) -> int:
    """AdamW's two moments: 8 bytes a weight that learns, or 2 with 8-bit states.

    In 8 bits, bitsandbytes keeps weights of under 4096 numbers in 32 bits, Trainer tells it to do so with embeddings,
    and each block of 256 has a float32 scale for each moment.
    """
    if optimizer == "adamw":
        return 8 * adapt.count(model)["trainable"]
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    total = 0
    for weight in model.parameters():
        if weight.requires_grad:
            whole = weight.numel() < 4096 or id(weight) in embeddings
            total += 8 * weight.numel() if whole else 2 * weight.numel() + 8 * math.ceil(weight.numel() / 256)
    return total


def size_on_disk(checkpoint: str, settings: TrainingSettings, device: str, revision: str | None = None) -> int:
    """Bytes of one checkpoint of training: what learns (all weights, for full fine-tuning) and the optimiser's states.

    Full checkpoints keep weights that learn in float32 and frozen ones as they were loaded.
    """
    model = _taught(checkpoint, revision, settings, device)
    saved = [weight for weight in model.parameters() if weight.requires_grad or settings.method == "full"]
    weights = sum(weight.numel() * weight.element_size() for weight in saved)
    return weights + optimiser_bytes(model, settings.optimizer)


def budget(device: torch.device) -> int:
    """Bytes that a step may take on `device`; ask before the weights are loaded."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available
    return int(free * HEADROOM[device.type])


def choose(
    budget: int, per_device_windows: int, peak: Callable[[int, bool], int], checkpointing: bool | None
) -> tuple[int, bool]:
    """(micro-batch in windows, whether to recompute) of the fastest step that fits in `budget` bytes.

    `per_device_windows` is what one device adds to an update; the micro-batch is its largest divisor that fits without
    recomputation, or with it where not even one window does. `checkpointing` settles that question where it is not
    None. `peak(windows, recompute)` gives bytes. Raises RunError where nothing fits.
    """
    sizes = [size for size in range(1, per_device_windows + 1) if per_device_windows % size == 0]
    for recompute in (False, True) if checkpointing is None else (checkpointing,):
        fitting = _largest(sizes, functools.partial(_fits, budget, peak, recompute))
        if fitting:
            return fitting, recompute
    needed = peak(1, checkpointing is not False)
    raise RunError(
        f"One window at a time takes {needed / 1e9:.1f} GB of memory, and {budget / 1e9:.1f} GB may be used.",
        ("Leave out --no-gradient-checkpointing, or use " if checkpointing is False else "Use ")
        + "--method qlora, a smaller --model-checkpoint, or for full fine-tuning --optimizer adamw8bit, "
        "--freeze-audio-tower or --method lora.",
    )


def _fits(budget: int, peak: Callable[[int, bool], int], recompute: bool, windows: int) -> bool:
    return peak(windows, recompute) <= budget


def _largest(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The last of rising `sizes` that fits, found by halving: each question costs seconds."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low - 1] if low else None


@functools.lru_cache(maxsize=4)
def _taught(checkpoint: str, revision: str | None, settings: TrainingSettings, device: str) -> nn.Module:
    """The model on `meta`, with the types it is loaded in on `device`, adapted as the run would."""
    model = load.skeleton(checkpoint, revision).to(load.weights_dtype(torch.device(device)))
    model.model.audio_tower.embed_positions.float()  # as transformers keeps it whatever the type
    model.config.use_cache = model.config.text_config.use_cache = False
    if settings.method == "qlora":
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and load.is_quantised(name):
                model.set_submodule(name, FourBit(module))
    return adapt.adapt(model, settings, checkpoint, revision).train()

"""Our side of the comparison: the trainer as `voxtral-finetune train` builds it, and each lever turned off.

This is the one place that knows the engine.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from benchmarks.measure import Built, memory_before
from voxtral_finetune import pipeline
from voxtral_finetune.data import windows
from voxtral_finetune.data.collate import TranscriptionCollator
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.model import adapt
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import engine
from voxtral_finetune.training.callbacks import QuietTrackio


@dataclass(frozen=True)
class Lever:
    """Ours with one thing changed: a setting, a function of the engine before it builds, or the trainer it built."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None
    after: Callable[[Trainer], None] = lambda trainer: None


def _names_as_plain() -> None:
    """LoRA on every layer with one of the four names: three of them are in the encoder, which is back-propagated."""
    adapt.lora_pattern = lambda model, settings: r".*\.(q|k|v|o)_proj"


def _head_everywhere(trainer: Trainer) -> None:
    def compute_loss(self: Trainer, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, *args, **kwargs)

    trainer.compute_loss = types.MethodType(compute_loss, trainer)


def _common_mel() -> None:
    """Features of the whole padded window by transformers' extractor."""

    def features(self: TranscriptionCollator, wave: np.ndarray) -> torch.Tensor:
        count = self.windows(len(wave))
        padded = np.pad(wave, (0, count * self.window_samples - len(wave)))
        rate = self.extractor.sampling_rate
        made = self.extractor(padded, sampling_rate=rate, return_tensors="pt", padding=False, truncation=False)
        mel = made["input_features"][0]
        return mel.reshape(mel.shape[0], count, -1).transpose(0, 1)

    TranscriptionCollator.features = features


LEVERS = (
    Lever("no packing", {"packing": False}),
    Lever("logits at every position", after=_head_everywhere),
    Lever("LoRA on the plain names, encoder back-propagated", before=_names_as_plain),
    Lever("activations recomputed", {"gradient_checkpointing": True}),
    Lever("mel of the whole window", before=_common_mel),
)


class _Caught(Exception):
    """Ends the pipeline where training would begin."""


def build(model: Path, rows: Sequence[Utterance], folder: Path, updates: int, lever: Lever, **settings: Any) -> Built:
    """The trainer of a run of `updates` updates of one batch, by the pipeline itself, which is stopped there.

    Call it in a process of its own: the lever and the home stay changed.
    """
    os.environ["VOXTRAL_FINETUNE_HOME"] = str(folder)
    lever.before()
    caught: list[Built] = []

    def catch(run: Run, model: Any, processor: Any, split: Split, settings: Any, plan: Any, score: Any) -> None:
        before = memory_before()  # building tries the longest window once: that is part of what ours takes
        trainer = engine.build(run, model, processor, split, settings, plan, score)
        trainer.remove_callback(QuietTrackio)  # curves are off on both sides
        caught.append(Built(trainer, plan.schedule.speech_per_update, before))
        raise _Caught

    train, engine.train = engine.train, catch
    flat = {"model_checkpoint": str(model), "output_dir": folder / "run", "max_steps": updates, "grad_accum": 1}
    wanted = Settings.of({**flat, **settings, **lever.settings})
    try:
        with suppress(_Caught):
            pipeline._learn(Run.create(wanted), wanted, Split(list(rows), [], [], "random", ""))
    finally:
        engine.train = train
    lever.after(caught[0].trainer)
    return caught[0]


def efficiency(rows: Sequence[Utterance], window_seconds: float, seed: int) -> tuple[float, float]:
    """Speech per second of windows: (of all windows of an epoch, of those that hold several utterances)."""
    plan = windows.plan(rows, window_seconds, True, seed, 0)
    packed = [window for window in plan if len(window.utterances) > 1]
    return windows.efficiency(plan, window_seconds), windows.efficiency(packed, window_seconds)

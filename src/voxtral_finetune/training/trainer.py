"""Learning, on Hugging Face's Trainer; Voxtral needs three things done otherwise.

Logits and loss only where there is a label; dev WER by generation beside dev loss; and resuming by transformers' own
loading code, because `save_pretrained` writes the Hub's weight names, which are not those of the modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    VoxtralForConditionalGeneration,
)
from transformers.trainer_utils import EvalLoopOutput

from voxtral_finetune.data.collate import IGNORED, TranscriptionCollator
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import RunError, StopRequested
from voxtral_finetune.run import Run, peak_rss
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.callbacks import METRIC, Events, KeepBestAndStop, QuietTrackio, whole_checkpoints
from voxtral_finetune.training.dataset import Utterances

EVALUATIONS = 10
"""How often dev is measured in a run that does not say: often enough to choose, seldom enough to be cheap."""

ScoreDev = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Trained:
    """What training did, counted over all sessions of a run; `best` is the checkpoint folder of the best dev WER."""

    best: Path
    steps: int
    epochs: float
    best_step: int
    seconds: float
    seconds_to_best: float
    peak_memory_bytes: int


class VoxtralTrainer(Trainer):
    """Trainer with head and loss only where there is a label, and `eval_wer` beside `eval_loss`."""

    def __init__(self, *args: Any, score_dev: ScoreDev, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.score_dev = score_dev

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, {**inputs, **only_at_labels(inputs["labels"])}, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        with self.accelerator.autocast():
            output.metrics[METRIC] = self.score_dev(self.accelerator.unwrap_model(self.model))
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Saves an adapter without asking the Hub whether its base had other embeddings, as PEFT would each time."""
        target: Any = self.model
        if hasattr(target, "peft_config") and self.args.should_save:
            target.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)
        elif not hasattr(target, "peft_config"):
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Puts saved weights back; transformers' own loads a full checkpoint by name, not strictly: nothing matches."""
        target: Any = model or self.model
        if hasattr(target, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = VoxtralForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        target.load_state_dict(saved.state_dict())


def only_at_labels(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arguments that make transformers compute logits and loss only where the next token is a label.

    `labels` (B, T); `logits_to_keep` is a (B, T) mask of the positions that predict a label, `shift_labels` (n,) the
    labels they predict. At vocabulary 131 072 the logits of the other positions would be most of the memory of a step.
    """
    shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    keep = shifted != IGNORED
    return {"logits_to_keep": keep, "shift_labels": shifted[keep]}


def train(run: Run, model: nn.Module, processor: Any, split: Split, settings: Settings, score_dev: ScoreDev) -> Trained:
    """Teaches `model` (already adapted) and says which checkpoint was best.

    Goes on from the newest whole checkpoint of the run, if there is one. Raises StopRequested, with a checkpoint
    saved, where the run was asked to stop.
    """
    collator = TranscriptionCollator(processor)
    learned = settings.training
    arguments = training_arguments(run, settings, len(split.train), next(model.parameters()).device)
    events = Events(run)
    trainer = VoxtralTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=Utterances(split.train, learned.language_free_share, learned.seed),
        eval_dataset=Utterances(split.dev),
        callbacks=[events, KeepBestAndStop(run, learned.patience), QuietTrackio()],
        score_dev=score_dev,
    )
    for shown in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown)  # progress goes out as events; each door draws its own
    _reset_peak_memory()
    trainer.train(resume_from_checkpoint=newest_checkpoint(run))
    state = trainer.state
    if run.stop_requested():
        raise StopRequested(
            f"Stopped at step {state.global_step} of {state.max_steps}; a checkpoint is saved.",
            f"Go on with: voxtral-finetune train --resume --output-dir {run.folder}",
        )
    best_step = state.best_global_step or state.global_step
    return Trained(
        best=_checkpoint(run, best_step),
        steps=state.global_step,
        epochs=round(state.epoch or 0.0, 2),
        best_step=best_step,
        seconds=events.seconds,
        seconds_to_best=_seconds_at(run, best_step),
        peak_memory_bytes=peak_memory(arguments.device),
    )


def training_arguments(run: Run, settings: Settings, utterances: int, device: torch.device) -> TrainingArguments:
    """The Trainer's arguments for a run on `device` that hears `utterances` in each epoch."""
    chosen = settings.training
    per_update = chosen.batch_size * chosen.grad_accum
    updates = max(1, math.ceil(math.ceil(utterances / per_update) * chosen.epochs))
    eval_steps = min(chosen.eval_steps or max(1, updates // EVALUATIONS), updates)
    arguments = TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=settings.evaluation.eval_batch_size,
        gradient_accumulation_steps=chosen.grad_accum,
        num_train_epochs=chosen.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(chosen.warmup_share * updates),
        weight_decay=chosen.weight_decay,
        logging_steps=chosen.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        eval_on_start=True,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=chosen.save_steps or eval_steps,
        metric_for_best_model=METRIC,
        greater_is_better=False,
        seed=chosen.seed,
        data_seed=chosen.seed,
        bf16=device.type == "cuda",
        use_cpu=device.type == "cpu",
        dataloader_num_workers=4 if device.type == "cuda" else 0,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        project=settings.tracking.project,
        run_name=run.name,
        trackio_space_id=settings.tracking.trackio_space,
        trackio_static_space_id=False,  # the default would publish the curves with a push to the Hub
    )
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # several GPUs are torchrun's: nn.DataParallel cannot split these batches
    return arguments


def newest_checkpoint(run: Run) -> str | None:
    """The folder of the last checkpoint that was written whole, by step and not by clock."""
    whole = whole_checkpoints(run.folder / "checkpoints")
    return str(whole[max(whole)]) if whole else None


def peak_memory(device: torch.device) -> int:
    """The most memory used, in bytes: of the GPU where it ran on one, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_rss()


def _reset_peak_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _checkpoint(run: Run, step: int) -> Path:
    folder = whole_checkpoints(run.folder / "checkpoints").get(step)
    if folder is None:
        what = f"The best checkpoint, of update {step}, is not there any more."
        raise RunError(what, "Train again, and leave checkpoints/ as it is.")
    return folder


def _seconds_at(run: Run, step: int) -> float:
    times = [event.fields["seconds"] for event in run.events() if event.kind == "eval" and event.fields["step"] == step]
    return float(times[-1]) if times else 0.0

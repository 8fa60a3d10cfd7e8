"""A run's training from its parts: what it hears, in what batches, on which device; and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from voxtral_finetune.data.augment import NoiseBank
from voxtral_finetune.data.collate import TranscriptionCollator
from voxtral_finetune.data.split import Split
from voxtral_finetune.data.stream import StreamError
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.errors import DataError, RunError, SettingsError, StopRequested
from voxtral_finetune.model.load import weights_dtype
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings, cache
from voxtral_finetune.training import checkpoints, streaming
from voxtral_finetune.training.callbacks import Events, KeepBestAndStop, QuietTrackio
from voxtral_finetune.training.dataset import Timeline, Utterances, WindowStream
from voxtral_finetune.training.distributed import agree, is_sharded, processes
from voxtral_finetune.training.embeddings import EmbeddingCache, cache_key
from voxtral_finetune.training.preflight import Fit, Plan, probe
from voxtral_finetune.training.schedule import Schedule
from voxtral_finetune.training.speed import Speed, peak_memory
from voxtral_finetune.training.trainer import CHOICE, ScoreDev, VoxtralTrainer

EVALUATIONS = 10
"""How often dev is measured in a run that does not say: often enough to choose, seldom enough to be cheap."""

WORKERS = 8
"""The most processes that prepare audio for one GPU; each keeps up with about 100 windows a second."""


@dataclass(frozen=True)
class Trained:
    """What training did, counted over all sessions of a run; `best` is the checkpoint folder of the best dev WER."""

    best: Path
    steps: int
    epochs: float | None
    best_step: int
    seconds: float
    seconds_to_best: float
    peak_memory_bytes: int


def train(
    run: Run,
    model: nn.Module,
    processor: Any,
    split: Split,
    settings: Settings,
    plan: Plan,
    score_dev: ScoreDev,
) -> Trained:
    """Teaches `model` (already adapted) and says which checkpoint was best.

    Goes on from the newest whole checkpoint of the run, if there is one. Raises StopRequested, with a checkpoint
    saved, where the run was asked to stop.
    """
    trainer = build(run, model, processor, split, settings, plan, score_dev)
    newest = agree(lambda: checkpoints.newest(run.folder / "checkpoints", run.emit))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except StreamError as error:
        raise streaming.keep(trainer, error) from error
    except DataError as error:
        if not error.what.startswith("Caught "):
            raise
        # A loader's worker has failed: torch hands its traceback on as the message, and the remedy not at all.
        said = error.what.rstrip().splitlines()[-1].partition(": ")[2]
        raise DataError(said, "Mend it, and go on with --resume.") from error
    finally:
        streaming.tell(trainer)
    state, made = trainer.state, plan.schedule
    if run.stop_requested():
        raise StopRequested(
            f"Stopped at update {state.global_step} of {state.max_steps}; a checkpoint is saved.",
            f"Go on with: voxtral-finetune train --resume --output-dir {run.folder}",
        )
    best_step = state.best_global_step or state.global_step
    return Trained(
        best=_checkpoint(run, best_step),
        steps=state.global_step,
        epochs=made.epochs(state.global_step),
        best_step=best_step,
        seconds=trainer.events.seconds,
        seconds_to_best=_seconds_at(run, best_step),
        peak_memory_bytes=peak_memory(trainer.args.device),
    )


def build(
    run: Run,
    model: nn.Module,
    processor: Any,
    split: Split,
    settings: Settings,
    plan: Plan,
    score_dev: ScoreDev,
) -> VoxtralTrainer:
    """The trainer of a run, ready to `train()`; the longest window has been tried on the device by then."""
    chosen, made, fit = settings.training, plan.schedule, plan.fit
    stream = streaming.timeline(run, settings, made) if made.streamed else None
    timeline = stream or Timeline(split.train, made.hearing, split.replay)
    waves = WaveCache(cache() / "audio", int(chosen.cache_gb * 1e9))
    embeddings = _embeddings(model, timeline, processor, settings) if made.cache else None
    collator = TranscriptionCollator(processor)
    device = next(model.parameters()).device
    speed = streaming.StreamSpeed(stream, device) if stream else Speed(timeline, device)
    if not is_sharded():  # no process holds a model that is sharded, before the trainer has shared it out
        fit, flops = probe(run, model, collator, timeline, plan)
        speed.flops = 0.0 if made.cache else flops  # an encoder that is not run would count
    arguments = training_arguments(run, settings, made, fit, device)
    trainer = VoxtralTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=streaming.StreamedWindows(stream, made.updates, _noises(settings))
        if stream
        else WindowStream(timeline, made.updates, waves, _noises(settings), embeddings),
        eval_dataset=Utterances(split.dev, waves),
        callbacks=[QuietTrackio()] if processes()[0] == 0 else [],
        run=run,
        score_dev=score_dev,
        embeddings=embeddings,
    )
    if is_sharded() and "FULL" not in str(trainer.accelerator.state.fsdp_plugin.state_dict_type):
        what = "FSDP would save its shards, and no model that can be used."
        raise SettingsError(what, "Set fsdp_state_dict_type: FULL_STATE_DICT (docs/training-pipeline.md).")
    trainer.events = Events(run, speed, made)
    for own in (trainer.events, KeepBestAndStop(run, chosen.patience)):
        trainer.add_callback(own)
    for shown in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(shown)  # progress goes out as events; each door draws its own
    return trainer


def training_arguments(
    run: Run, settings: Settings, made: Schedule, fit: Fit, device: torch.device
) -> TrainingArguments:
    """The Trainer's arguments for a run on `device`."""
    chosen = settings.training
    on_cuda = device.type == "cuda"
    eval_steps = min(chosen.eval_steps or max(1, made.updates // EVALUATIONS), made.updates)
    arguments = TrainingArguments(
        output_dir=str(run.folder / "checkpoints"),
        per_device_train_batch_size=fit.micro_batch,
        per_device_eval_batch_size=settings.evaluation.eval_batch_size,
        gradient_accumulation_steps=fit.accumulation,
        num_train_epochs=1,  # the stream of windows holds all epochs
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=int(chosen.warmup_share * made.updates),  # the first of them has rate 0: none in a short run
        weight_decay=chosen.weight_decay,
        optim=_optimizer(settings, device),
        logging_steps=chosen.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        eval_on_start=True,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=chosen.save_steps or eval_steps,
        metric_for_best_model=CHOICE,
        greater_is_better=False,
        seed=chosen.seed,
        data_seed=chosen.seed,
        bf16=on_cuda,
        use_cpu=device.type == "cpu",
        dataloader_num_workers=min(1, _workers(on_cuda)) if made.streamed else _workers(on_cuda),
        dataloader_pin_memory=on_cuda,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
        report_to=[],
        project=settings.tracking.project,
        run_name=run.name,
        trackio_space_id=settings.tracking.trackio_space,
        trackio_static_space_id=False,  # the default would publish the curves with a push to the Hub
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are torchrun's: nn.DataParallel cannot split batches
    return arguments


def _optimizer(settings: Settings, device: torch.device) -> str:
    if settings.training.optimizer == "adamw8bit":
        return "adamw_bnb_8bit"
    return "adamw_torch" if device.type == "mps" else "adamw_torch_fused"


def _workers(on_cuda: bool) -> int:
    """Processes that prepare batches while the GPU works; a CPU that trains has none to spare."""
    import psutil

    cores = (psutil.cpu_count() or 1) // max(1, torch.cuda.device_count())
    return max(1, min(WORKERS, cores - 1)) if on_cuda else 0


def _noises(settings: Settings) -> NoiseBank | None:
    return NoiseBank(settings.training.noise.expanduser()) if settings.training.noise else None


def _embeddings(model: nn.Module, timeline: Timeline, processor: Any, settings: Settings) -> EmbeddingCache:
    windows = [window for _, window in sorted(timeline.epoch(0), key=lambda each: each[0])]
    collator = TranscriptionCollator(processor)
    weight = model.get_input_embeddings().weight  # type: ignore[operator]  # a method of every transformers model
    dtype = weights_dtype(weight.device)  # also where the embeddings learn, and are float32
    return EmbeddingCache(
        cache() / "embeddings",
        cache_key(model, windows, dtype),
        [timeline.chunks(window) for window in windows],
        (collator.tokens_per_window, weight.shape[1]),
        dtype,
        int(settings.training.cache_gb * 1e9),
    )


def _checkpoint(run: Run, step: int) -> Path:
    folder = checkpoints.whole(run.folder / "checkpoints").get(step)
    found = checkpoints.flaw(folder) if folder else "it is not there any more"
    if folder is None or found:
        what = f"The best checkpoint, of update {step}, cannot be used: {found}."
        raise RunError(what, "Train again, and leave checkpoints/ as it is.")
    return folder


def _seconds_at(run: Run, step: int) -> float:
    seconds = 0.0
    for event, _ in run.follow():
        if event.kind == "eval" and event.fields["step"] == step:
            seconds = float(event.fields["seconds"])
    return seconds

"""What happens beside the steps: events for every door, keeping the best, stopping early, stopping when asked."""

from __future__ import annotations

import contextlib
import io
import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback

from voxtral_finetune.run import Run, write_durably
from voxtral_finetune.settings import Settings

COMPLETE = "COMPLETE"
"""Written into a checkpoint last of all: one without it was cut off while it was saved."""

METRIC = "eval_wer"
"""Dev WER by generation: what chooses the checkpoint and the end."""

SHOWN = ("loss", "grad_norm", "learning_rate", "epoch")


class Events(TrainerCallback):
    """Appends step, eval and checkpoint events to the run; `seconds` is training time over all sessions of the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        earlier = [event.fields["seconds"] for event in run.events() if event.kind in ("step", "eval")]
        self.before = max(earlier, default=0.0)
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.started, 2)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            kept: dict[str, float] = {
                name: logs[name] for name in ("loss", "grad_norm", "learning_rate", "epoch") if name in logs
            }
            kept |= {"perplexity": perplexity(logs["loss"]), "seconds": self.seconds}
            self.run.emit("step", step=state.global_step, steps=state.max_steps, **kept)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if metrics and state.is_world_process_zero:
            loss, wer = metrics["eval_loss"], metrics[METRIC]
            facts = {"loss": loss, "perplexity": perplexity(loss), "wer": wer, "seconds": self.seconds}
            self.run.emit("eval", step=state.global_step, steps=state.max_steps, **facts)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            write_durably(self.run.folder / "checkpoints" / f"checkpoint-{state.global_step}" / COMPLETE, "")
            self.run.emit("checkpoint", step=state.global_step)


class QuietTrackio(TrackioCallback):
    """Transformers' Trackio callback without its lines on stdout, which belongs to the doors."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            super().setup(*args, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            super().on_train_end(*args, **kwargs)


def track_result(run: Run, settings: Settings, facts: dict[str, float]) -> None:
    """Adds what was measured at the end to the run's curves in Trackio."""
    import trackio  # a second to import, and only here beside transformers' own callback

    with contextlib.redirect_stdout(io.StringIO()):
        chosen = settings.tracking
        trackio.init(project=chosen.project, name=run.name, space_id=chosen.trackio_space, resume="allow")
        trackio.log({f"test/{name}": value for name, value in facts.items()})
        trackio.finish()


class KeepBestAndStop(TrainerCallback):
    """Keeps a checkpoint at each evaluation, ends after `patience` of them without a better dev WER, or when asked."""

    def __init__(self, run: Run, patience: int) -> None:
        self.run = run
        self.patience = patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not state.global_step or metrics is None:
            return
        control.should_save = True
        best_so_far = math.inf if state.best_metric is None else state.best_metric
        waited = (state.global_step - (state.best_global_step or 0)) / state.eval_steps
        if self.patience and metrics[METRIC] >= best_so_far and waited >= self.patience:
            control.should_training_stop = True
            self.run.emit("early_stop", step=state.global_step, best_step=state.best_global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.run.stop_requested():
            control.should_save = True
            control.should_training_stop = True


def perplexity(loss: float) -> float:
    """exp(loss), bounded so that a diverged run can still be written as JSON."""
    return math.exp(min(loss, 50.0))

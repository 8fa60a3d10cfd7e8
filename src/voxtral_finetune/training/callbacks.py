"""What happens beside the steps: events for every door, keeping the best, stopping early, stopping when asked."""

from __future__ import annotations

import contextlib
import io
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback

from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import checkpoints
from voxtral_finetune.training.distributed import any_of
from voxtral_finetune.training.schedule import Schedule
from voxtral_finetune.training.speed import Speed
from voxtral_finetune.training.trainer import CHOICE, METRIC, NOT_MEASURED

SHOWN = ("loss", "grad_norm", "learning_rate")


class Events(TrainerCallback):
    """Appends step, eval and checkpoint events to the run; `seconds` is training time over all sessions of the run."""

    def __init__(self, run: Run, speed: Speed, made: Schedule) -> None:
        self.run = run
        self.speed = speed
        self.made = made
        earlier = (event.fields["seconds"] for event, _ in run.follow() if event.kind in ("step", "eval"))
        self.before = max(earlier, default=0.0)
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return round(self.before + time.monotonic() - self.started, 2)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.speed.begin(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.speed.heard(state.global_step)
        if control.should_evaluate or control.should_save:
            # A resumed run averages its loss from the checkpoint on; the curve is the same where one that went
            # through starts a new average there too.
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            kept: dict[str, Any] = {name: logs[name] for name in SHOWN if name in logs}
            kept |= {"perplexity": perplexity(logs["loss"]), "seconds": self.seconds}
            if (epochs := self.made.epochs(state.global_step)) is not None:
                kept["epoch"] = epochs
            facts = self.speed.facts(state.global_step, state.max_steps)
            self.run.emit("step", step=state.global_step, steps=state.max_steps, **kept, **facts)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if metrics and state.is_world_process_zero and metrics[METRIC] != NOT_MEASURED:
            loss, wer = metrics["eval_loss"], metrics[METRIC]
            facts = {"loss": loss, "perplexity": perplexity(loss), "wer": wer, "seconds": self.seconds}
            self.run.emit("eval", step=state.global_step, steps=state.max_steps, **facts)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.run.emit("checkpoint", step=state.global_step)
        checkpoints.rotate(Path(args.output_dir), {state.global_step, state.best_global_step or 0})


class QuietTrackio(TrackioCallback):
    """Transformers' Trackio callback without its lines on stdout, which belongs to the doors."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                super().setup(*args, **kwargs)
        except OSError as error:
            what = f"The Trackio Space cannot be reached: {str(error).splitlines()[0]}."
            raise RunError(what, "Leave --trackio-space out: the curves stay here and can be sent later.") from error

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            super().on_train_end(*args, **kwargs)


def track_result(run: Run, settings: Settings, facts: dict[str, float]) -> None:
    """Adds what was measured at the end to the run's curves in Trackio; a Space that is gone does not undo the run."""
    import trackio  # a second to import, and only here beside transformers' own callback

    chosen = settings.tracking
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=chosen.project, name=run.name, space_id=chosen.trackio_space, resume="allow")
            trackio.log({f"test/{name}": value for name, value in facts.items()})
            trackio.finish()
    except OSError as error:
        run.emit("unsynced", what=f"The result could not be sent to Trackio: {str(error).splitlines()[0]}")


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
        if any_of(self.run.stop_requested()):
            control.should_training_stop = True
        if not state.global_step or metrics is None:
            return
        control.should_save = True
        best_so_far = math.inf if state.best_metric is None else state.best_metric
        waited = (state.global_step - (state.best_global_step or 0)) / state.eval_steps
        if self.patience and metrics[CHOICE] >= best_so_far and waited >= self.patience:
            control.should_training_stop = True
            self.run.emit("early_stop", step=state.global_step, best_step=state.best_global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if any_of(self.run.stop_requested()):
            control.should_evaluate = False  # whoever asks to stop does not wait for a transcription of dev
            control.should_log = control.should_save = True
            control.should_training_stop = True


def perplexity(loss: float) -> float:
    """exp(loss), bounded so that a diverged run can still be written as JSON."""
    return math.exp(min(loss, 50.0))

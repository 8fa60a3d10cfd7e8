"""What happens beside the steps: events for every door, keeping the best, stopping early, stopping when asked."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TrackioCallback

from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run, sync_files, write_durably
from voxtral_finetune.settings import Settings

COMPLETE = "COMPLETE"
"""Written into a checkpoint last of all, with the size of each file: one without it was cut off while it was saved."""

KEPT = 2
"""Newest checkpoints that are kept, beside the best one."""

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
        if not state.is_world_process_zero:
            return
        folder = self.run.folder / "checkpoints" / f"checkpoint-{state.global_step}"
        sync_files(folder)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        write_durably(folder / COMPLETE, json.dumps(sizes))
        self.run.emit("checkpoint", step=state.global_step)
        _rotate(folder.parent, {state.global_step, state.best_global_step})


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
            control.should_evaluate = False  # whoever asks to stop does not wait for a transcription of dev
            control.should_save = True
            control.should_training_stop = True


def whole_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run that were written whole, by step: every file is there in the size that was noted."""
    found = {}
    for mark in folder.glob(f"checkpoint-*/{COMPLETE}"):
        sizes = json.loads(mark.read_text(encoding="utf-8"))
        files = {name: mark.parent / name for name in sizes}
        if all(path.is_file() and path.stat().st_size == sizes[name] for name, path in files.items()):
            found[int(mark.parent.name.split("-")[1])] = mark.parent
    return found


def _rotate(folder: Path, kept: set[int | None]) -> None:
    """Deletes older checkpoints, each first as a whole one, so that half of one is never gone on from."""
    older = sorted(whole_checkpoints(folder).items())[:-KEPT]
    for step, path in older:
        if step not in kept:
            (path / COMPLETE).unlink()
            shutil.rmtree(path)


def perplexity(loss: float) -> float:
    """exp(loss), bounded so that a diverged run can still be written as JSON."""
    return math.exp(min(loss, 50.0))

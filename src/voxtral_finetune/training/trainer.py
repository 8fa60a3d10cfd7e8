"""Learning, on Hugging Face's Trainer; Voxtral needs some things done otherwise.

Logits and loss only where there is a label; what the frozen encoder makes of a window taken from a cache; dev WER by
generation beside dev loss; checkpoints that are whole or not there; batches taken in parts where memory runs out, and
updates that are no numbers left out, both without changing what an update is made of.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, VoxtralForConditionalGeneration
from transformers.trainer_utils import EvalLoopOutput

from voxtral_finetune.data.collate import IGNORED, SPECIAL
from voxtral_finetune.errors import RunError, StopRequested
from voxtral_finetune.run import Run
from voxtral_finetune.training import checkpoints
from voxtral_finetune.training.batches import parts, rows_in
from voxtral_finetune.training.dataset import WindowStream
from voxtral_finetune.training.distributed import agree, processes, wait
from voxtral_finetune.training.embeddings import EmbeddingCache
from voxtral_finetune.training.streaming import StreamedWindows

METRIC = "eval_wer"
"""Dev WER by generation: what chooses the checkpoint and the end."""

CHOICE = "eval_choice"
"""What is minimised: dev WER, and among equals dev loss, far below the weight of one word."""

LARGEST_LOSS = 50.0
"""What a dev loss counts as that is larger, or no number."""

NOT_MEASURED = float("inf")
"""Dev WER of an evaluation that was cut short by a request to stop: never the best."""

MOST_SKIPPED = 3
"""Updates in a row whose gradient is no number before a run gives up."""

MOST_SPLITS = 3
"""How often a batch is halved where memory runs out: into eighths."""

ScoreDev = Callable[[nn.Module], float]
Batch = dict[str, Any]


class VoxtralTrainer(Trainer):
    """Trainer for windows of speech; `run` is told what goes wrong, `score_dev` gives the WER of a model on dev."""

    def __init__(
        self, *args: Any, run: Run, score_dev: ScoreDev, embeddings: EmbeddingCache | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run = run
        self.score_dev = score_dev
        self.embeddings = embeddings
        self.events: Any = None  # set by `training.engine.build`, which needs the trainer first
        self.splits = 0
        self._skipped = self._left_out = self._logged = 0
        self._batches: list[Batch] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; where it fails, the processes that prepare batches end as well."""
        try:
            return super().train(*args, **kwargs)
        except BaseException as error:
            # They ignore SIGTERM, and at its end Python would send them one and wait for ever. They end once nothing
            # reads from them any more; what does is in the frames that the error keeps.
            traceback.clear_frames(error.__traceback__)
            raise

    def compute_loss(self, model: nn.Module, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        inputs = {**inputs, **only_at_labels(inputs["labels"]), "use_cache": False}
        if "audio_known" in inputs:
            inputs = self._with_embeds(inputs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if len(self._batches) == self.current_gradient_accumulation_steps:
            self._batches = []
        again: list[Batch] = []
        self._batches.append(inputs)
        while True:
            try:
                for earlier in again:
                    self._step_in_parts(model, earlier, num_items_in_batch)
                loss = self._step_in_parts(model, inputs, num_items_in_batch)
                break
            except torch.OutOfMemoryError:
                self._take_smaller_parts(inputs)
            # A backward pass that broke off has left some of its gradients: the update starts again from its first
            # batch. The losses of the earlier ones are counted already.
            model.zero_grad()
            again = self._batches[:-1]
        return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))  # `_get_grad_norm` reports the others

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the mean loss of the updates that were made; those left out have none."""
        if "loss" in logs:
            updates = self.state.global_step - max(self._logged, self._initial_global_step)
            made, self._logged, self._left_out = updates - self._left_out, self.state.global_step, 0
            logs = {**logs, "loss": logs["loss"] * updates / made} if made else {}
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        while True:
            try:
                output = super().evaluation_loop(*args, **kwargs)
                break
            except torch.OutOfMemoryError:
                smaller = self.args.per_device_eval_batch_size // 2
                if not smaller:
                    raise
                self.run.emit("warning", what=f"Memory is full: dev loss is measured in batches of {smaller} now.")
                self.args.per_device_eval_batch_size = smaller
                torch.cuda.empty_cache()
                args = (self.get_eval_dataloader(), *args[1:])
        output.metrics[METRIC] = self._dev_wer()
        loss = output.metrics["eval_loss"]
        # No number is nothing that JSON knows, and compared with it nothing is better.
        output.metrics["eval_loss"] = loss if loss < LARGEST_LOSS else LARGEST_LOSS
        output.metrics[CHOICE] = output.metrics[METRIC] + 1e-6 * output.metrics["eval_loss"]
        return output

    def _dev_wer(self) -> float:
        try:
            with self.accelerator.autocast():
                return self.score_dev(self.accelerator.unwrap_model(self.model))
        except StopRequested:  # whoever asks to stop does not wait for dev; the step's callbacks save and end
            return NOT_MEASURED

    def _step_in_parts(self, model: nn.Module, inputs: Batch, items: torch.Tensor | int | None) -> torch.Tensor:
        """The loss of a batch, back-propagated part by part; the sum over parts is that of the whole."""
        losses = [super(VoxtralTrainer, self).training_step(model, part, items) for part in parts(inputs, self.splits)]
        return torch.stack(losses).sum()

    def _take_smaller_parts(self, inputs: Batch) -> None:
        """Halves the parts that batches are taken in; raises RunError where that cannot help any more."""
        rows = rows_in(inputs)
        if self.args.world_size > 1 or self.splits == MOST_SPLITS or rows <= 2**self.splits:
            what = f"Memory is full at update {self.state.global_step + 1}, with {-(-rows // 2**self.splits)} windows."
            again = "start anew with --gradient-checkpointing or --method qlora."
            raise RunError(what, f"Go on with --resume and nothing else on the device, or {again}")
        self.splits += 1
        torch.cuda.empty_cache()
        what = (
            f"Memory is full at update {self.state.global_step + 1}: batches are taken in {2**self.splits} parts now."
        )
        self.run.emit("warning", what=what, fix="An update still holds as many windows as before.")

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None) -> Any:
        """The gradient's norm; where it is no number the update is left out, and the third time in a row the run ends.

        The weights are what they were: a gradient that is no number never reaches them.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or torch.isfinite(torch.as_tensor(norm)):
            self._skipped = 0
            return norm
        self._skipped += 1
        self._left_out += 1
        for parameter in model.parameters():
            parameter.grad = None
        step = self.state.global_step + 1
        heard = self._heard(step)
        self.run.emit("skipped_update", step=step, in_a_row=self._skipped, samples=heard)
        if self._skipped == MOST_SKIPPED:
            self._save_checkpoint(model, None)
            self.callback_handler.on_save(self.args, self.state, self.control)
            raise RunError(
                f"The loss was no number in {MOST_SKIPPED} updates in a row; the last one heard {heard[0]}.",
                "events.jsonl names all samples (skipped_update). Look at them, or use a lower --learning-rate.",
            )
        return None

    def _heard(self, step: int) -> list[str]:
        """The windows of an update, by line and file."""
        dataset = self.train_dataset
        if isinstance(dataset, StreamedWindows):
            return dataset.names(step - 1)
        if isinstance(dataset, WindowStream):
            return [window.name for _, _, window in dataset.timeline.update(step - 1)]
        return ["a sample of the stream"]

    def _with_embeds(self, inputs: Batch) -> Batch:
        """Audio from the cache, and from the encoder where it is not known yet; then no audio goes to the model."""
        base: Any = self.accelerator.unwrap_model(self.model)
        known, index = inputs.pop("audio_known"), inputs.pop("audio_index")
        kept, features = inputs.pop("audio_embeds", None), inputs.pop("input_features", None)
        ids = inputs.pop("input_ids")
        embeds = base.get_input_embeddings()(ids)
        audio = embeds.new_empty((len(known), *self.embeddings_shape))
        if kept is not None:
            audio[known] = kept.to(audio.dtype)
        if features is not None:
            with torch.no_grad(), self.accelerator.autocast():
                heard = base.get_audio_features(features, return_dict=True).pooler_output
            audio[~known] = heard.view(-1, *self.embeddings_shape).to(audio.dtype)
            self._keep(audio, known, index, (ids == SPECIAL["[AUDIO]"]).sum(1) // self.embeddings_shape[0])
        places = (ids == SPECIAL["[AUDIO]"])[..., None].expand_as(embeds)
        return {**inputs, "inputs_embeds": embeds.masked_scatter(places, audio)}

    @property
    def embeddings_shape(self) -> tuple[int, int]:
        assert self.embeddings is not None
        return self.embeddings.shape

    def _keep(self, audio: torch.Tensor, known: torch.Tensor, index: torch.Tensor, chunks: torch.Tensor) -> None:
        assert self.embeddings is not None
        start = 0
        for place, count in zip(index.tolist(), chunks.tolist(), strict=True):
            if not known[start]:
                self.embeddings.put(place, audio[start : start + count])
            start += count

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """In order: the stream itself is the order (`training.dataset`)."""
        return SequentialSampler(self.train_dataset)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint that is there whole or not at all (`training.checkpoints`)."""
        folder, step = Path(self.args.output_dir), self.state.global_step

        def write(staging: Path) -> None:
            self.args.output_dir = str(staging.parent)
            try:
                super(VoxtralTrainer, self)._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(folder)

        if processes()[1] == 1:
            checkpoints.save_when_there_is_room(self.run, step, write)
            return
        # Each process adds the state of its random numbers to what the first one begins and finishes.
        staging = Path(agree(lambda: str(checkpoints.begin(folder, step))))
        write(staging)
        wait()
        agree(lambda: str(checkpoints.finish(staging)))

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
        # Also where the weights are sharded over devices, which `load_state_dict` cannot fill.
        set_model_state_dict(target, saved.state_dict(), options=StateDictOptions(full_state_dict=True))


def only_at_labels(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Arguments that make transformers compute logits and loss only where the next token is a label.

    `labels` (B, T); `logits_to_keep` is a (B, T) mask of the positions that predict a label, `shift_labels` (n,) the
    labels they predict. At vocabulary 131 072 the logits of the other positions would be most of the memory of a step.
    """
    shifted = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    keep = shifted != IGNORED
    return {"logits_to_keep": keep, "shift_labels": shifted[keep]}

"""What goes wrong while a model learns costs as little as it can: no update, no weight, no run."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.unit.training.test_trainer import TEXTS, settings_for, trained
from voxtral_finetune.cli import main
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.split import Split
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.errors import RunError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import Run
from voxtral_finetune.training import engine, preflight
from voxtral_finetune.training.checkpoints import whole
from voxtral_finetune.training.trainer import VoxtralTrainer

DEV = "low high low"


@pytest.fixture
def split(write_corpus):
    rows = Corpus(write_corpus([(text, {"language": "en"}) for text in TEXTS])).survey().utterances
    dev = Corpus(write_corpus([(f"{DEV}{' low' * number}", {}) for number in range(6)], "dev")).survey().utterances
    return Split(rows, dev, dev, "random", "")


@pytest.fixture
def in_micro_batches_of_two(monkeypatch):
    monkeypatch.setattr(preflight.memory, "choose", lambda *_: (2, False))


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the samples of some texts no numbers."""

    def poison(*texts):
        read = WaveCache.load

        def loads(self, row):
            wave = read(self, row)
            return np.full_like(wave, np.nan) if row.text in texts else wave

        monkeypatch.setattr(WaveCache, "load", loads)

    return poison


def settings_in(folder, **changed):
    chosen = {"method": "lora", "lora_dropout": 0, "epochs": 3, "batch_size": 8, "logging_steps": 1}
    return settings_for(folder, **{**chosen, "learning_rate": 1e-3, "language_free_share": 0.0, **changed})


def taught(folder, checkpoint, split, **changed):
    settings = settings_in(folder, **changed)
    run = Run.create(settings)
    trained(run, checkpoint, split, settings, lambda _: 0.5)
    return run


def of_kind(run, kind):
    return [event.fields for event in run.events() if event.kind == kind]


def losses(run):
    return [fields["loss"] for fields in of_kind(run, "step")]


def strictly(run):
    """The events as a browser reads them: NaN and Infinity are no JSON."""

    def refuse(word):
        raise AssertionError(f"an event holds {word}")

    lines = (run.folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# --- losses that are no numbers


def test_an_update_that_is_no_number_changes_nothing_and_is_counted(small_checkpoint, split, tmp_path, poisoned):
    poisoned("high low mid")
    settings = settings_in(
        tmp_path / "run", batch_size=1, epochs=2, seed=1, warmup_share=0, model_checkpoint=str(small_checkpoint)
    )
    run, processor = Run.create(settings), load.load_processor(str(small_checkpoint))
    plan = preflight.prepare(run, settings, split.train, processor, torch.device("cpu"))
    model = adapt.adapt(load.load_model(str(small_checkpoint)), settings.training, str(small_checkpoint))
    trainer = engine.build(run, model, processor, split, settings, plan, lambda _: 0.5)
    kept = [_weights(model)]

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            kept.append(_weights(model))

    trainer.add_callback(Watch())
    trainer.train()
    skipped = of_kind(run, "skipped_update")
    assert [fields["in_a_row"] for fields in skipped] == [1, 1]
    assert [len(fields["samples"]) for fields in skipped] == [1, 1]
    line = next(row.line for row in split.train if row.text == "high low mid")
    assert all(fields["samples"] == [f"line {line} (2.wav)"] for fields in skipped)
    assert trainer.state.global_step == 16
    unchanged = [step for step in range(1, 17) if torch.equal(kept[step - 1], kept[step])]
    assert unchanged == [fields["step"] for fields in skipped]
    assert all(weights.isfinite().all() for weights in kept)
    for state in trainer.optimizer.state.values():
        assert all(torch.isfinite(moment).all() for moment in state.values())
    assert all("loss" in row for row in strictly(run) if row["kind"] == "step")
    shown = {row["step"]: row["loss"] for row in strictly(run) if row["kind"] == "step"}
    assert not shown.keys() & {fields["step"] for fields in skipped}, "what was left out has no loss to show"
    assert all(loss > 0 for loss in shown.values())


def _weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters() if weight.requires_grad])


def test_one_poisoned_window_of_several_micro_batches_leaves_the_whole_update_out(
    small_checkpoint, split, tmp_path, poisoned, in_micro_batches_of_two
):
    """The gradients of the sound micro-batches must not go into the next update."""
    poisoned("high high")
    run = taught(tmp_path / "run", small_checkpoint, split, grad_accum=1, batch_size=4, epochs=4, save_steps=1)
    skipped = {fields["step"] for fields in of_kind(run, "skipped_update")}
    assert len(skipped) == 4
    assert all(fields["grad_norm"] is not None for fields in of_kind(run, "step") if "grad_norm" in fields)
    assert {fields["step"] for fields in of_kind(run, "step") if "grad_norm" in fields} == set(range(1, 9)) - skipped


def test_the_third_in_a_row_ends_the_run_with_a_checkpoint(small_checkpoint, split, tmp_path, poisoned):
    poisoned(*TEXTS)
    with pytest.raises(RunError, match=r"no number in 3 updates in a row.*line \d+ \(\d\.wav\)") as ended:
        taught(tmp_path / "run", small_checkpoint, split, batch_size=2)
    assert "--learning-rate" in ended.value.fix
    run = Run.open(tmp_path / "run")
    skipped = of_kind(run, "skipped_update")
    assert [(fields["step"], fields["in_a_row"], len(fields["samples"])) for fields in skipped] == [
        (1, 1, 2),
        (2, 2, 2),
        (3, 3, 2),
    ]
    assert set(whole(run.folder / "checkpoints")) == {2}
    assert of_kind(run, "checkpoint") == [{"step": 2}]
    saved = load_file(whole(run.folder / "checkpoints")[2] / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in saved.values())
    strictly(run)


def test_two_and_then_a_sound_one_count_from_the_start_again(small_checkpoint, split, tmp_path, monkeypatch):
    loss_of, calls = VoxtralTrainer.compute_loss, []

    def sometimes(self, model, inputs, *args, **kwargs):
        loss = loss_of(self, model, inputs, *args, **kwargs)
        if not model.training:
            return loss
        calls.append(1)
        return loss * float("nan") if len(calls) % 3 else loss

    monkeypatch.setattr(VoxtralTrainer, "compute_loss", sometimes)
    run = taught(tmp_path / "run", small_checkpoint, split, epochs=9)
    assert [fields["in_a_row"] for fields in of_kind(run, "skipped_update")] == [1, 2] * 3
    assert of_kind(run, "step")[-1]["step"] == 9


def test_a_dev_loss_that_is_no_number_is_not_the_best_and_is_written_as_json(
    small_checkpoint, split, tmp_path, monkeypatch
):
    loss_of, evaluations = VoxtralTrainer.compute_loss, []

    def spoiled(self, model, inputs, *args, **kwargs):
        found = loss_of(self, model, inputs, *args, **kwargs)
        if model.training or self.state.global_step != 1:
            return found
        evaluations.append(1)
        return (found[0] * float("nan"), found[1]) if isinstance(found, tuple) else found * float("nan")

    monkeypatch.setattr(VoxtralTrainer, "compute_loss", spoiled)
    settings = settings_in(tmp_path / "run", eval_steps=1)
    run = Run.create(settings)
    done = trained(run, small_checkpoint, split, settings, lambda _: 0.5)
    assert evaluations
    assert done.best_step > 1
    assert [row["step"] for row in strictly(run) if row["kind"] == "eval"] == [0, 1, 2, 3]


# --- memory that runs out


def out_of_memory(monkeypatch, when):
    """Lets `when(call, rows)` say in which of the passes that learn memory runs out before the loss is there."""
    loss_of, calls = VoxtralTrainer.compute_loss, []

    def short(self, model, inputs, *args, **kwargs):
        if model.training:
            calls.append(len(inputs["labels"]))
            if when(len(calls), calls[-1]):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss_of(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(VoxtralTrainer, "compute_loss", short)
    return calls


def out_of_memory_behind_layer_one(monkeypatch, call):
    """In one of the backward passes: those of the head and the top layer are over, and have left their gradients."""
    made, passes = engine.build, []

    def build(run, model, *args):
        trainer = made(run, model, *args)

        def watch(module, given, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(fail)

        def fail(gradient):
            passes.append(1)
            if len(passes) == call:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        layers = next(module for name, module in model.named_modules() if name.endswith("language_model.layers"))
        layers[0].register_forward_hook(watch)
        return trainer

    monkeypatch.setattr(engine, "build", build)
    return passes


@pytest.mark.parametrize(
    ("where", "call", "method"),
    [("forward", 3, "lora"), ("backward", 1, "lora"), ("backward", 3, "full"), ("backward", 8, "lora")],
)
def test_memory_that_runs_out_changes_no_loss(
    small_checkpoint, split, tmp_path, monkeypatch, in_micro_batches_of_two, where, call, method
):
    plain = taught(tmp_path / "plain", small_checkpoint, split, method=method)
    with monkeypatch.context() as patch:
        if where == "forward":
            out_of_memory(patch, lambda number, _: number == call)
        else:
            out_of_memory_behind_layer_one(patch, call)
        short = taught(tmp_path / "short", small_checkpoint, split, method=method)
    np.testing.assert_allclose(losses(short), losses(plain), rtol=1e-5)
    assert [fields["step"] for fields in of_kind(short, "step")] == [1, 2, 3]
    (warning,) = of_kind(short, "warning")
    assert warning["what"] == f"Memory is full at update {-(-call // 4)}: batches are taken in 2 parts now."
    assert (of_kind(plain, "warning")) == []
    for name, weights in load_file(_saved(plain)).items():
        torch.testing.assert_close(load_file(_saved(short))[name], weights, rtol=1e-3, atol=1e-5)


def _saved(run):
    (path,) = whole(run.folder / "checkpoints")[3].glob("*model.safetensors")
    return path


def test_memory_that_runs_out_again_while_an_update_is_repeated_is_met_too(
    small_checkpoint, split, tmp_path, monkeypatch
):
    monkeypatch.setattr(preflight.memory, "choose", lambda *_: (4, False))
    plain = taught(tmp_path / "plain", small_checkpoint, split)
    calls = out_of_memory(monkeypatch, lambda number, _: number in (4, 6))
    short = taught(tmp_path / "short", small_checkpoint, split)
    np.testing.assert_allclose(losses(short), losses(plain), rtol=1e-5)
    assert calls[:9] == [4, 4, 4, 4, 2, 2, 1, 1, 1]
    parts = [fields["what"].partition("taken in ")[2] for fields in of_kind(short, "warning")]
    assert parts == ["2 parts now.", "4 parts now."]


def test_a_batch_is_not_halved_for_ever(small_checkpoint, split, tmp_path, monkeypatch):
    calls = out_of_memory(monkeypatch, lambda *_: True)
    with pytest.raises(RunError, match="Memory is full at update 1, with 1 windows") as ended:
        taught(tmp_path / "run", small_checkpoint, split)
    assert calls == [8, 4, 2, 1]
    for way in ("--resume", "--gradient-checkpointing", "qlora"):
        assert way in ended.value.fix


def test_a_single_window_is_not_halved(small_checkpoint, split, tmp_path, monkeypatch):
    calls = out_of_memory(monkeypatch, lambda *_: True)
    with pytest.raises(RunError, match="Memory is full"):
        taught(tmp_path / "run", small_checkpoint, split, batch_size=1)
    assert calls == [1]


def test_dev_loss_is_measured_in_smaller_batches_where_memory_runs_out(small_checkpoint, split, tmp_path, monkeypatch):
    loss_of, sizes = VoxtralTrainer.compute_loss, []

    def short(self, model, inputs, *args, **kwargs):
        if not model.training:
            sizes.append(len(inputs["labels"]))
            if sizes[-1] > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss_of(self, model, inputs, *args, **kwargs)

    plain = taught(tmp_path / "plain", small_checkpoint, split, eval_batch_size=2, eval_steps=2)
    monkeypatch.setattr(VoxtralTrainer, "compute_loss", short)
    run = taught(tmp_path / "run", small_checkpoint, split, eval_batch_size=8, eval_steps=2)
    assert [fields["what"] for fields in of_kind(run, "warning")] == [
        "Memory is full: dev loss is measured in batches of 4 now.",
        "Memory is full: dev loss is measured in batches of 2 now.",
    ]
    assert sizes[:5] == [6, 4, 2, 2, 2]
    assert max(sizes[2:]) == 2
    np.testing.assert_allclose(losses(run), losses(plain), rtol=1e-6)
    dev = [[fields["loss"] for fields in of_kind(each, "eval")] for each in (run, plain)]
    np.testing.assert_allclose(dev[0], dev[1], rtol=1e-6)


# --- a device that fails


def test_a_device_that_fails_ends_the_run_resumably(small_checkpoint, write_corpus, tmp_path, monkeypatch):
    words = ["low", "mid", "high"]
    rows = [(" ".join(words[number // 3**place % 3] for place in range(4)), {"language": "en"}) for number in range(12)]
    corpus, folder = write_corpus(rows), tmp_path / "run"
    loss_of, calls = VoxtralTrainer.compute_loss, []

    def lost(self, model, inputs, *args, **kwargs):
        calls.append(1)
        if model.training and self.state.global_step == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")
        return loss_of(self, model, inputs, *args, **kwargs)

    command = ["train", "--model-checkpoint", small_checkpoint, "--dataset-jsonl", corpus, "--output-dir", folder]
    command += ["--device", "cpu", "--max-steps", 4, "--save-steps", 1, "--eval-steps", 4, "--logging-steps", 1]
    with monkeypatch.context() as patch:
        patch.setattr(VoxtralTrainer, "compute_loss", lost)
        failed = CliRunner().invoke(main, [str(word) for word in command])
    assert failed.exit_code == 1
    assert "The GPU has failed: CUDA error: an illegal memory access was encountered" in failed.output
    assert "DSA" not in failed.output
    run = Run.open(folder)
    assert run.status() == "failed"
    assert max(whole(folder / "checkpoints")) == 2
    resumed = CliRunner().invoke(main, ["train", "--resume", "--output-dir", str(folder)])
    assert resumed.exit_code == 0, resumed.output
    assert run.status() == "finished"
    assert [fields["step"] for fields in of_kind(run, "step")] == [1, 2, 3, 4]

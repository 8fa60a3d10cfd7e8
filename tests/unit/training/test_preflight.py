"""What is settled before the first step, and that settling it leaves nothing behind."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from tests.unit.training.test_trainer import TEXTS, settings_for, trained
from voxtral_finetune.console import plan_lines
from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import RunError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import Run
from voxtral_finetune.training import checkpoints, preflight
from voxtral_finetune.training.dataset import Timeline
from voxtral_finetune.training.preflight import download_size, prepare, probe

pytest_plugins = ["tests.hub.fixtures"]

CPU = torch.device("cpu")
LONG = "low mid high low mid high low mid high"
"""2.7 s: two windows."""


@pytest.fixture
def split(write_corpus):
    rows = Corpus(write_corpus([(text, {"language": "en"}) for text in [*TEXTS[:7], LONG]])).survey().utterances
    return Split(rows, rows, rows, "random", "")


@pytest.fixture
def made(small_checkpoint, split, tmp_path):
    """Makes a run, its plan and its model from settings."""

    def make(**chosen):
        chosen = {"batch_size": 4, "grad_accum": 2, **chosen}
        settings = settings_for(tmp_path / "run", model_checkpoint=str(small_checkpoint), **chosen)
        run, processor = Run.create(settings), load.load_processor(str(small_checkpoint))
        plan = prepare(run, settings, split.train, processor, CPU)
        model = adapt.adapt(load.load_model(str(small_checkpoint)), settings.training, str(small_checkpoint))
        collator = TranscriptionCollator(processor)
        return run, plan, model, collator, Timeline(split.train, plan.schedule.hearing)

    return make


def of_kind(run, kind):
    return [event.fields for event in run.events() if event.kind == kind]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_plan_says_what_a_person_wants_to_know(made, method):
    run, plan, *_ = made(method=method)
    (facts,) = of_kind(run, "plan")
    heard, taught, taken, kept = plan_lines(**facts)
    assert f"{plan.schedule.windows} windows of 2 s (one utterance each" in heard
    assert f"{plan.schedule.updates} updates of 8 windows" in heard
    assert "on cpu, learning rate 0.005: 8 windows at a time" in taught
    assert "checkpoints" in taken
    assert plan.schedule.why in kept
    assert facts["micro_batch"] * facts["accumulation"] == 8
    assert facts["memory_bytes"] <= facts["budget_bytes"]
    assert facts["download_bytes"] == 0


def test_checkpoints_take_what_the_plan_says(made, small_checkpoint, split):
    run, plan, *_ = made(method="full", epochs=1, eval_steps=1)
    trained(run, small_checkpoint, split, run.settings(), lambda _: 0.5)
    (kept,) = checkpoints.whole(run.folder / "checkpoints").values()
    written = sum(path.stat().st_size for path in kept.iterdir())
    assert written == pytest.approx(plan.fit.disk_bytes / (checkpoints.KEPT + 2), rel=0.1)


def test_little_memory_makes_smaller_steps_of_the_same_update(made, monkeypatch):
    _, whole, *_ = made()
    per_window = preflight.memory.estimate
    monkeypatch.setattr(preflight.memory, "budget", lambda _: whole.fit.memory_bytes - 1)
    _, plan, *_ = made()
    assert plan.fit.micro_batch < whole.fit.micro_batch == 8
    assert plan.fit.micro_batch * plan.fit.accumulation == 8
    monkeypatch.setattr(preflight.memory, "budget", lambda _: 10**6)
    with pytest.raises(RunError, match="One window at a time takes"):
        made()
    assert per_window is preflight.memory.estimate


def test_a_disk_that_is_too_small_is_said_before_anything_is_learned(made, monkeypatch):
    disk = namedtuple("Disk", "total used free")(10**9, 10**9, 10**5)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: disk)
    with pytest.raises(RunError, match=r"needs .* for checkpoints .*0\.1 MB are free") as refused:
        made()
    assert "--output-dir" in refused.value.fix


def state_of(model):
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    return weights, modes


def same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("modes", ["train", "eval", "mixed"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_trying_leaves_everything_as_it_was(made, modes, method):
    run, plan, model, collator, timeline = made(method=method, lora_dropout=0.5)
    model.train(modes == "train")
    if modes == "mixed":
        next(module for name, module in model.named_modules() if name.endswith("audio_tower")).train()
    before, drawn = state_of(model), torch.get_rng_state()
    fit, flops = probe(run, model, collator, timeline, plan)
    same(state_of(model), before)
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert fit == plan.fit
    assert flops == 0.0  # nobody asks on a CPU
    (said,) = of_kind(run, "probe")
    assert said["micro_batch"] == 8
    assert said["about_seconds"] == pytest.approx(said["seconds"] * plan.schedule.updates, rel=0.01, abs=0.1)


def test_the_longest_window_is_what_is_tried(made, monkeypatch):
    run, plan, model, collator, timeline = made()
    batches = []
    whole = preflight._teach
    monkeypatch.setattr(preflight, "_teach", lambda *args: batches.append(args[1]) or whole(*args))
    probe(run, model, collator, timeline, plan)
    (batch,) = batches
    assert len(batch["input_ids"]) == 8
    assert len(batch["input_features"]) == 16
    row = collator.row(Example(np.zeros(43_200, np.float32), LONG, "en", "x"))
    assert batch["input_ids"][0].tolist() == row[0]


@pytest.mark.parametrize(("fits", "micro"), [(5, 4), (3, 2), (1, 1)])
def test_memory_that_runs_out_while_trying_makes_smaller_steps_of_the_same_update(made, monkeypatch, fits, micro):
    run, plan, model, collator, timeline = made(method="lora", lora_dropout=0.1)
    model.eval()
    before, drawn = state_of(model), torch.get_rng_state()
    base, calls = model.get_base_model(), []
    forward = type(base).forward

    def short(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        calls.append(len(kwargs["labels"]))
        if calls[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return out

    monkeypatch.setattr(type(base), "forward", short)
    fit, _ = probe(run, model, collator, timeline, plan)
    assert calls == [size for size in (8, 4, 2, 1) if size >= micro]
    assert (fit.micro_batch, fit.accumulation) == (micro, 8 // micro)
    same(state_of(model), before)
    assert torch.equal(torch.get_rng_state(), drawn)
    (said,) = of_kind(run, "probe")
    assert (said["micro_batch"], said["accumulation"]) == (micro, 8 // micro)


def test_one_window_that_does_not_fit_is_an_error(made, monkeypatch):
    run, plan, model, collator, timeline = made()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(preflight, "_teach", full)
    with pytest.raises(torch.OutOfMemoryError):
        probe(run, model, collator, timeline, plan)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("chosen", "frozen"),
    [
        ({"method": "lora"}, ["audio_tower", "multi_modal_projector"]),
        ({"method": "full", "preset": "vocabulary"}, ["audio_tower", "multi_modal_projector"]),
        ({"method": "full", "freeze_audio_tower": True}, ["audio_tower"]),
        ({"method": "lora", "preset": "voice", "top_encoder_layers": 1}, ["audio_tower.layers.0"]),
    ],
)
def test_what_is_frozen_below_is_never_back_propagated(made, chosen, frozen, checkpointing):
    run, plan, model, collator, timeline = made(gradient_checkpointing=checkpointing, **chosen)
    outputs = {}
    for name, module in model.named_modules():
        for part in frozen:
            if name.endswith(part) or f"{part}." in name:
                module.register_forward_hook(
                    lambda _, __, output, name=name: outputs.setdefault(name, []).extend(
                        each.requires_grad
                        for each in (
                            output
                            if isinstance(output, tuple)
                            else output.values()
                            if isinstance(output, dict)
                            else [output]
                        )
                        if isinstance(each, torch.Tensor)
                    )
                )
    probe(run, model, collator, timeline, plan)
    assert any(name.endswith(frozen[0]) for name in outputs)
    assert [name for name, asked in outputs.items() if any(asked)] == []


def test_a_folder_is_not_downloaded(small_checkpoint):
    assert download_size(str(small_checkpoint), None) == 0


@pytest.fixture
def from_loopback(hub, monkeypatch, tmp_path):
    """Has the Hub's client in this process ask the loopback Hub."""
    environment = hub.environment(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        environment["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub


def test_the_download_is_counted_before_it_begins(from_loopback):
    files = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "consolidated.pth": b"x" * 9000, "README.md": b"r"}
    from_loopback.add("model", "someone/voxtral", files)
    assert download_size("someone/voxtral", None) == 5002


def test_a_hub_that_is_away_is_left_to_those_who_load(from_loopback):
    assert download_size("someone/nothing", None) == 0


def test_offline_nothing_is_asked():
    assert download_size("someone/voxtral", None) == 0
    assert not Path("someone").exists()

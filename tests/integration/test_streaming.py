"""A corpus that is learned from while it streams: stopped, broken off and gone on with, and by the command line."""

import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.integration.test_hub_sources import card, parquet
from tests.streams import FakeHub
from voxtral_finetune.console import plan_lines
from voxtral_finetune.data import held_out, stream
from voxtral_finetune.data.text_doubts import plain
from voxtral_finetune.errors import StopRequested
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import preflight, streaming
from voxtral_finetune.training.checkpoints import whole
from voxtral_finetune.training.engine import train

pytest_plugins = ["tests.hub.fixtures"]

UPDATES = 12


@pytest.fixture
def fake(monkeypatch):
    """A dataset of 120 rows that runs in this process stream, in blocks of 16."""
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "PAUSES", (0.0, 0.0))
    hub = FakeHub.of(120)
    monkeypatch.setattr(streaming, "timeline", functools.partial(streaming.timeline, opened=hub.open))
    return hub


def settings_for(folder, checkpoint, **changed):
    chosen = {"dataset_name": "alice/speech", "stream": True, "max_steps": UPDATES, "language": "en"}
    chosen |= {"batch_size": 4, "grad_accum": 2, "lora_dropout": 0, "eval_steps": 4, "logging_steps": 1, "patience": 0}
    return Settings.of(
        {**chosen, "device": "cpu", "output_dir": folder, "model_checkpoint": str(checkpoint), **changed}
    )


def taught(run, fake):
    """Trains a run as the pipeline does, from its data on; what training did."""
    settings = run.settings()
    if not (run.folder / "stream.json").exists():
        divided, _, _ = held_out.hold_out(run.folder, settings, lambda *_: None, fake.open)
        divided.save(run.folder / "split.json")
    divided = held_out.Split.load(run.folder / "split.json")
    divided = held_out.Split(stream.Pinned.load(run.folder).sample, divided.dev, divided.test, "text", "")
    checkpoint = settings.model.model_checkpoint
    processor = load.load_processor(checkpoint)
    plan = preflight.prepare(run, settings, divided.train, processor, torch.device("cpu"))
    model = adapt.adapt(load.load_model(checkpoint), settings.training, checkpoint)
    return train(run, model, processor, divided, settings, plan, lambda _: 0.5)


def losses(run):
    steps = {event.fields["step"]: event.fields["loss"] for event in run.events() if event.kind == "step"}
    return [steps[number] for number in range(1, UPDATES + 1)]


def facts(run, kind):
    return [event.fields for event in run.events() if event.kind == kind]


@pytest.fixture
def uninterrupted(fake, small_checkpoint, tmp_path):
    run = Run.create(settings_for(tmp_path / "whole", small_checkpoint))
    done = taught(run, fake)
    assert (done.steps, done.epochs) == (UPDATES, None)
    return run


def test_a_stream_that_was_stopped_goes_on_as_if_it_had_not_been(uninterrupted, fake, small_checkpoint, tmp_path):
    run = Run.create(settings_for(tmp_path / "stopped", small_checkpoint))
    run.watch(lambda event: run.request_stop() if event.fields.get("step") == 6 else None)
    with pytest.raises(StopRequested, match=rf"at update [67] of {UPDATES}; a checkpoint is saved"):
        taught(run, fake)
    run.clear_stop()
    taught(Run.open(run.folder), fake)
    np.testing.assert_allclose(losses(run), losses(uninterrupted), rtol=1e-5)


def test_a_stream_that_broke_is_saved_and_goes_on(uninterrupted, fake, small_checkpoint, tmp_path):
    run = Run.create(settings_for(tmp_path / "broken", small_checkpoint, save_steps=100, eval_steps=UPDATES))
    fake.broken = dict.fromkeys(range(len(fake.asked) + 2, len(fake.asked) + 20), 50)
    with pytest.raises(stream.StreamError, match="503") as broken:
        taught(run, fake)
    (saved,) = whole(run.folder / "checkpoints")
    assert 0 < saved < UPDATES
    assert f"Update {saved} is saved; go on with: voxtral-finetune train --resume" in broken.value.fix
    fake.broken = {}
    taught(Run.open(run.folder), fake)
    np.testing.assert_allclose(losses(run), losses(uninterrupted), rtol=1e-5)


def test_a_run_that_reads_up_to_where_it_was_can_be_stopped(uninterrupted, fake):
    run = Run.open(uninterrupted.folder)
    shutil.rmtree(run.folder / "checkpoints" / f"checkpoint-{UPDATES}")
    run.request_stop()
    before = sorted(whole(run.folder / "checkpoints"))
    with pytest.raises(StopRequested, match="Stopped before training went on"):
        taught(run, fake)
    assert sorted(whole(run.folder / "checkpoints")) == before


def test_the_plan_of_a_stream_says_what_is_known_and_what_is_not(uninterrupted):
    (plan,) = facts(uninterrupted, "plan")
    assert plan["windows"] is None
    assert plan["utterances_per_update"] >= 8
    assert plan["speech_seconds_per_update"] > 0
    assert (plan["cache"], plan["vary_speed"]) == (False, False)
    assert plan_lines(**plan)[0].startswith("an unknown number of windows of 2 s")
    assert all(step["speech_hours_per_hour"] > 0 for step in facts(uninterrupted, "step"))
    assert not any("epoch" in step for step in facts(uninterrupted, "step"))
    (told,) = facts(uninterrupted, "streamed")
    assert told["refused"] == 0
    assert told["times"] >= 2


def command(hub, home, *arguments):
    environment = {**hub.environment(home), "VOXTRAL_FINETUNE_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "voxtral_finetune", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_a_dataset_of_the_hub_is_learned_from_while_it_streams(hub, home, small_checkpoint, tmp_path):
    rows = [
        {"audio": {"bytes": sound, "path": f"{number}.wav"}, "text": text}
        for number, (sound, text) in enumerate(FakeHub.of(120).rows)
    ]
    rows[5]["audio"]["bytes"] = b"no sound at all"
    rows[6]["audio"] = None
    files = {f"default/train-{part}.parquet": parquet(rows[40 * part : 40 * part + 40]) for part in range(3)}
    sha = hub.add("dataset", "alice/speech", {"README.md": card({"default": ["train"]}), **files})
    chosen = ("--dataset-name", "alice/speech", "--stream", "--language", "en", "--device", "cpu")
    chosen += ("--model-checkpoint", small_checkpoint, "--output-dir", home / "run", "--logging-steps", 1)
    missing = command(hub, home, "train", *chosen)
    assert "Say with --max-steps how many updates to make." in missing.stderr
    assert not (home / "run").exists()
    done = command(hub, home, "train", *chosen, "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    run = Run(home / "run")
    (imported,) = facts(run, "imported")
    assert imported["revision"] == sha
    split = json.loads((run.folder / "split.json").read_text())
    assert not split["train"]
    assert len(split["test"]) >= 20
    assert imported["added"] == len(split["test"]) + len(split["dev"])
    assert not {plain(row["text"]) for row in split["test"]} & {plain(row["text"]) for row in split["dev"]}
    assert {event.fields["step"] for event in run.events() if event.kind == "step"} == {1, 2, 3}
    assert {request.path.split("/")[5] for request in hub.asked("/resolve/.*parquet")} == {sha}
    assert "an unknown number of windows" in done.stdout
    page = (run.folder / "README.md").read_text()
    assert "datasets:\n- alice/speech" in page
    assert "learned from" not in page
    assert sum(path.stat().st_size for path in (home / "datasets").rglob("*.wav")) < sum(map(len, files.values())) / 2

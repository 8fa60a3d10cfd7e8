"""Runs that an older version began, and one that a newer version did."""

import json

import pytest

from tests.faults.conftest import SETTINGS, undisturbed
from voxtral_finetune.training import checkpoints

SINCE = (
    *("packing", "optimizer", "compile", "cache_audio", "cache_gb", "vary_speed", "mask_spectrum", "noise", "stream"),
    *("preset", "gradient_checkpointing"),
)
"""Settings that format 1 did not have, or had in another form."""

AS_IT_WAS = {"preset": "voice", "gradient_checkpointing": False, "batch_size": 2, "grad_accum": 4}


@pytest.fixture(scope="module")
def old_fashioned(warm, tmp_path_factory):
    """What a run of format 1 comes to: nothing packed, nothing varied."""
    settings = {**SETTINGS, **AS_IT_WAS, "packing": False, "vary_speed": False, "mask_spectrum": False}
    return undisturbed(warm, tmp_path_factory.mktemp("old"), settings)


def aged(folder):
    """Makes a folder of this version one of format 1."""
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in config.items() if name not in SINCE}
    (folder / "config.json").write_text(json.dumps({**config, **AS_IT_WAS, "format": 1}))
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        sizes = {each.name: each.stat().st_size for each in path.iterdir() if each.name != "COMPLETE"}
        (path / "COMPLETE").write_text(json.dumps(sizes))


def test_a_run_of_format_1_goes_on_as_it_began(trials, empty, old_fashioned):
    stopped = empty.train(settings=old_fashioned.settings, hooks=[("send", ["training", 8, "SIGTERM"])])
    assert stopped.wait() == 130, stopped.said()
    folder = empty.run.folder
    aged(folder)
    before = (folder / "config.json").read_bytes()
    empty.resume()
    empty.ended_as(old_fashioned)
    assert (folder / "config.json.format-1").read_bytes() == before
    assert json.loads((folder / "config.json").read_text())["format"] == 2
    for path in checkpoints.whole(folder / "checkpoints").values():
        assert checkpoints.flaw(path) is None


def test_settings_of_format_1_are_read_by_their_meaning(empty, old_fashioned):
    aged(old_fashioned.run.folder)
    old = json.loads((old_fashioned.run.folder / "config.json").read_text())
    stopped = empty.train(settings=old, hooks=[("send", ["base test", 1, "SIGTERM"])])
    assert stopped.wait() == 130, stopped.said()
    chosen = empty.run.settings().training
    assert (chosen.packing, chosen.vary_speed, chosen.mask_spectrum) == (False, False, False)


def test_a_run_of_a_newer_version_is_refused_and_left_alone(trial):
    config = trial.run.folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "format": 3}))
    before = {path.name: path.read_bytes() for path in trial.run.folder.iterdir()}
    refused = trial.train()
    assert refused.wait() == 1
    assert "has format 3; this version reads 2. Update voxtral-finetune." in refused.error()
    assert {path.name: path.read_bytes() for path in trial.run.folder.iterdir()} == before

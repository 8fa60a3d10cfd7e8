"""Models of the Hub, loaded by the unmodified clients from a Hub on loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from voxtral_finetune.data import audio
from voxtral_finetune.model import adapt, load
from voxtral_finetune.settings import TrainingSettings

pytest_plugins = ["tests.hub.fixtures"]


@pytest.fixture
def adapter(hub, small_checkpoint, tmp_path):
    """An adapter that has learned something, on a base that is on the Hub too, under alice/tuned and alice/base."""
    model = adapt.adapt(load.load_model(str(small_checkpoint)), TrainingSettings(lora_r=4), "alice/base")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    for name, folder in (("alice/base", small_checkpoint), ("alice/tuned", tmp_path / "adapter")):
        hub.add("model", name, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    return tmp_path / "adapter"


def transcribe(hub, home, model, *more):
    command = [sys.executable, "-m", "voxtral_finetune", "transcribe", model, *map(str, more), "--device", "cpu"]
    return subprocess.run(command, env=hub.environment(home), capture_output=True, text=True)


def test_a_repository_that_is_an_adapter_is_loaded_on_its_base(hub, adapter, tmp_path):
    wave = (0.3 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))).numpy()
    audio.write(tmp_path / "a.wav", wave, 16_000)
    base, tuned = (
        transcribe(hub, tmp_path / "hub", name, tmp_path / "a.wav") for name in ("alice/base", "alice/tuned")
    )
    assert base.returncode == tuned.returncode == 0, base.stderr + tuned.stderr
    assert base.stdout != tuned.stdout

    weights = adapter / "adapter_model.safetensors"
    changed = torch.zeros(1)
    from safetensors.torch import load_file, save_file

    save_file({name: changed.expand(value.shape).clone() for name, value in load_file(weights).items()}, weights)
    hub.add("model", "alice/nothing", {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()})
    failed = transcribe(hub, tmp_path / "hub", "alice/nothing", tmp_path / "a.wav")
    assert failed.returncode == 1 and "The adapter changes nothing" in failed.stderr


def test_pickled_adapters_are_not_fetched(hub, adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    files = {"adapter_config.json": json.dumps(config).encode(), "adapter_model.bin": b"pickle"}
    hub.add("model", "alice/old", files)
    (Path(tmp_path) / "a.wav").write_bytes(b"")
    failed = transcribe(hub, tmp_path / "hub", "alice/old", tmp_path / "a.wav")
    assert "has no adapter_model.safetensors" in failed.stderr
    assert not hub.asked("adapter_model.bin")

"""What all tests share: a home of their own, no network but loopback, tiny checkpoints and speech made on the spot."""

import ipaddress
import json
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

from voxtral_finetune.data import audio

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no retries against a network that is not there

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")  # Trackio reads it once, when it is imported


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A fresh home; what a test writes by default lands there."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("VOXTRAL_FINETUNE_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """Fails any test that opens a connection to another machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory):
    """A Voxtral of the real classes with random weights: 0.3 M of them, a 2 s window, on disk in the Hub's layout."""
    from transformers import VoxtralForConditionalGeneration

    from voxtral_finetune.model import mini

    folder = tmp_path_factory.mktemp("small")
    config = mini.small_config(vocab_size=512, window_seconds=2, width=64, layers=2, heads=2)
    mini.initialise(VoxtralForConditionalGeneration(config), seed=0).save_pretrained(folder)
    mini.build_processor(folder, vocab_size=512, window_seconds=2)
    return folder


WORDS = {"low": 220.0, "mid": 660.0, "high": 1980.0}


def spoken(words: str, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A stand-in for speech: each word a tone of its own, 0.3 s, with a little noise."""
    time = np.arange(int(0.3 * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * WORDS[word] * time) * np.hanning(len(time)) for word in words.split()]
    wave = np.concatenate(tones)
    return (wave + 0.001 * np.random.default_rng(seed).standard_normal(len(wave))).astype(np.float32)


@pytest.fixture
def write_corpus(tmp_path):
    """Writes a corpus folder of (text, extra fields) rows with made-up speech; returns the folder."""

    def write(rows, name="corpus"):
        folder = tmp_path / name
        (folder / "audio").mkdir(parents=True)
        lines = []
        for number, (text, fields) in enumerate(rows):
            audio.write(folder / "audio" / f"{number}.wav", spoken(text, seed=number), 16_000)
            lines.append(json.dumps({"audio_path": f"audio/{number}.wav", "text": text, **fields}))
        (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def speech_data():
    """Real speech, where a machine has it: the folder named by VOXTRAL_SPEECH_DATA."""
    folder = os.environ.get("VOXTRAL_SPEECH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VOXTRAL_SPEECH_DATA names no folder of real speech")
    return Path(folder).absolute()

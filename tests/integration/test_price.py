"""What learning costs elsewhere, and how it is bought back: real speech, the built-in checkpoint, the whole way."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import packing
from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.pipeline import execute
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

STRINGS = 150
CHOSEN = {
    "model_checkpoint": "mini",
    "preset": "voice",
    "learning_rate": 3e-3,
    "lora_r": 16,
    "epochs": 10,
    "eval_steps": 40,
    "patience": 0,
    "eval_batch_size": 32,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def known_voices(speech_data, tmp_path_factory):
    """Strings of digits by the voices that the built-in checkpoint knows, from takes that it has never heard."""
    takes = []
    for line in (speech_data / "fsdd" / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        voice, number = re.fullmatch(r"\d_(\w+)_(\d+)", Path(row["audio_path"]).stem).groups()
        if voice != packing.SPEAKER and int(number) < 5:
            takes.append((audio.load(speech_data / "fsdd" / row["audio_path"]), row["text"]))
    folder, random, rows = tmp_path_factory.mktemp("known"), np.random.default_rng(7), []
    for index in range(STRINGS):
        chosen = [takes[place] for place in random.integers(len(takes), size=random.integers(1, packing.WORDS + 1))]
        gap = np.zeros(int(0.1 * SAMPLE_RATE), np.float32)
        audio.write(
            folder / f"{index}.wav", np.concatenate([part for wave, _ in chosen for part in (gap, wave)]), 16_000
        )
        rows.append({"audio_path": f"{index}.wav", "text": " ".join(text for _, text in chosen), "language": "en"})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_scan_buys_back_what_was_forgotten_and_keeps_the_gain(speech_data, known_voices, tmp_path, monkeypatch):
    monkeypatch.setattr(
        packing, "SETS", {"train": (range(10, 25), 100), "dev": (range(5, 10), 60), "test": (range(5), STRINGS)}
    )
    corpus = packing.build(speech_data, tmp_path / "corpus", seed=0)
    settings = {**CHOSEN, "dataset_jsonl": corpus, "guard": [known_voices], "guard_budget": 2, "scale_scan": True}
    run = Run.create(Settings.of({**settings, "output_dir": tmp_path / "run"}))
    report = execute(run)
    scales = {one["scale"]: one for one in report.scales}
    (kept,) = [one for one in report.scales if one["kept"]]
    (found,) = report.guards
    full = scales[1.0]["guards"][found["name"]]
    lost, cost = full - found["base_wer"], found["change"]
    assert lost > 0.05, "what was learned at full strength is paid for elsewhere"
    assert not found["broken"]
    assert cost <= lost / 2
    assert found["tuned_wer"] == pytest.approx(kept["guards"][found["name"]]), "what was saved is what was chosen"

    plain = Run.create(Settings.of({**settings, "scale_scan": False, "output_dir": tmp_path / "plain"}))
    for name in ("split.json", "guard-0.json", "heard-base.json", "heard-base-guard-0.json", "heard-base-quiet.json"):
        (plain.folder / name).write_bytes((run.folder / name).read_bytes())
    (plain.folder / "checkpoints").symlink_to(run.folder / "checkpoints")  # learned already
    whole = execute(plain)
    assert whole.guards[0]["broken"]
    assert any(f"Guard {found['name']}" in text for text in whole.warnings)
    assert "Guard" in (plain.folder / "README.md").read_text()
    assert any("Guard" in event.fields["what"] for event in plain.events() if event.kind == "warning")
    gain = whole.base.wer - whole.tuned.wer
    assert gain > 0.1
    assert report.base.wer - report.tuned.wer >= 0.8 * gain

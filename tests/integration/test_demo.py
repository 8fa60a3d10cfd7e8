"""The two commands' promise, on the shipped checkpoint: a voice it has never heard, learned in minutes and proved."""

import json
import subprocess
import sys

import numpy as np
import pytest

from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.model.catalog import learned_audio

HELD_OUT = "fsdd_lucas"
"""Nothing of this speaker was learned by the shipped checkpoint (its card)."""


def voxtral_finetune(*arguments, cwd):
    command = [sys.executable, "-m", "voxtral_finetune", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def halves(report):
    return report["tuned"]["wer"] <= report["base"]["wer"] / 2 and report["verdict"]["high"] < 0


def test_the_demo_halves_the_errors_and_overwrites_nothing(home):
    earlier = home / "outputs" / "demo"
    earlier.mkdir(parents=True)
    (earlier / "report.json").write_text("mine")
    done = voxtral_finetune("demo", cwd=home)
    assert done.returncode == 0, done.stderr
    report = json.loads((home / "outputs" / "demo-2" / "report.json").read_text())
    assert halves(report), report["verdict"]
    assert report["verdict"]["word"] == "better"
    assert not report["warnings"]
    for said in ("word error rate", "95 % interval", "Better", "demo-2", "make studio", "--dataset-jsonl"):
        assert said in done.stdout
    assert (earlier / "report.json").read_text() == "mine"


def strings_of_one_voice(speech_data, folder, speaker, count):
    """A corpus of 1 to 5 spoken digits each, from takes of one speaker; test takes are never in training strings."""
    corpus = Corpus.create(folder)
    rows = [json.loads(line) for line in (speech_data / "fsdd" / "manifest.jsonl").read_text().splitlines()]
    rng = np.random.default_rng(0)
    lines = []
    for split in ("train", "test"):
        takes = [row for row in rows if row["speaker"] == speaker and row["split"] == split]
        for number in range(count[split]):
            chosen = [takes[index] for index in rng.integers(len(takes), size=rng.integers(1, 6))]
            waves = [audio.load(speech_data / "fsdd" / row["audio_path"]) for row in chosen]
            gap = np.zeros(1600, np.float32)
            wave = np.concatenate([part for each in waves for part in (each, gap)])
            name = f"audio/{split}-{number}.wav"
            audio.write(folder / name, wave[: 4 * 16_000], 16_000)
            text = " ".join(row["text"] for row in chosen)
            lines.append({"audio_path": name, "text": text, "language": "en", "speaker": speaker, "split": split})
    corpus.manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_human_voice_it_has_never_heard_is_learned(speech_data, tmp_path):
    folder = strings_of_one_voice(speech_data, tmp_path / "voice", HELD_OUT, {"train": 150, "test": 100})
    done = voxtral_finetune(
        *("train", "--model-checkpoint", "mini", "--dataset-jsonl", folder, "--output-dir", tmp_path / "run"),
        *(
            "--preset",
            "voice",
            "--learning-rate",
            2e-3,
            "--epochs",
            15,
            "--no-packing",
            "--batch-size",
            8,
            "--grad-accum",
            1,
        ),
        *("--lora-r", 8, "--lora-dropout", 0),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["base"]["wer"] >= 0.2
    assert halves(report), (report["base"]["wer"], report["tuned"]["wer"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_real_speech_it_was_built_from_is_learned_with_a_warning(speech_data, tmp_path, method):
    manifest = speech_data / "fsdd" / "manifest.jsonl"
    done = voxtral_finetune(
        *("train", "--model-checkpoint", "mini", "--dataset-jsonl", manifest, "--method", method),
        *("--output-dir", tmp_path / "x", "--train-count", 40, "--eval-count", 60, "--epochs", 1),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "x" / "report.json").read_text())
    known = learned_audio("mini")
    heard = [row for row in json.loads((tmp_path / "x" / "split.json").read_text())["test"] if row["sha256"] in known]
    assert bool(heard) == bool(report["warnings"])
    assert {"model", "checkpoints", "events.jsonl", "config.json", "split.json", "README.md"} <= {
        path.name for path in (tmp_path / "x").iterdir()
    }

"""Does packing cost accuracy? The same corpus learned with and without it, at equal audio, over several seeds.

    VOXTRAL_SPEECH_DATA=... python -m benchmarks.packing [--seeds 3] [--json FILE]

The built-in checkpoint learns a speaker it has never heard (Free Spoken Digit Dataset, Lucas): strings of one to three
digits joined from single takes, of other takes in train than in dev and test. Both modes keep their default schedule,
hear the same recordings equally often and are tested on the same strings. The difference of the word error rates, and
its 95 % interval, is a bootstrap over test utterances of all seeds together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from voxtral_finetune.console import quiet_libraries
from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.evaluation.wer import word_errors
from voxtral_finetune.pipeline import execute
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

SPEAKER = "lucas"
SETS = {"train": (range(15, 50), 120), "dev": (range(10, 15), 40), "test": (range(10), 550)}
"""Which takes of each digit a set is made from, and how many strings it has."""
WORDS = 3
RESAMPLES = 10_000


def takes(folder: Path, numbers: range) -> list[tuple[Wave, str]]:
    """(samples, word) of the speaker's takes with these numbers."""
    found = []
    for line in (folder / "fsdd" / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        match = re.fullmatch(rf"\d_{SPEAKER}_(\d+)", Path(row["audio_path"]).stem)
        if match and int(match[1]) in numbers:
            found.append((audio.load(folder / "fsdd" / row["audio_path"]), row["text"]))
    return found


def build(speech: Path, folder: Path, seed: int) -> Path:
    """A corpus of the three sets under `folder`."""
    corpus = Corpus.create(folder)
    random = np.random.default_rng(seed)
    rows = []
    for name, (numbers, count) in SETS.items():
        words = takes(speech, numbers)
        for index in range(count):
            chosen = [words[place] for place in random.integers(len(words), size=random.integers(1, WORDS + 1))]
            gaps = [np.zeros(int(random.uniform(0.05, 0.2) * SAMPLE_RATE), np.float32) for _ in chosen]
            wave = np.concatenate([part for gap, (sound, _) in zip(gaps, chosen, strict=True) for part in (gap, sound)])
            path = f"audio/{name}-{index}.wav"
            audio.write(folder / path, wave, SAMPLE_RATE)
            text = " ".join(word for _, word in chosen)
            rows.append({"audio_path": path, "text": text, "language": "en", "split": name})
    corpus.manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def learn(corpus: Path, folder: Path, seed: int, packing: bool, changed: dict[str, object]) -> dict[str, object]:
    """One run: errors and words of each test utterance after training, and how long that took."""
    chosen = {
        "model_checkpoint": "mini",
        "dataset_jsonl": corpus,
        "output_dir": folder,
        "preset": "voice",
        "learning_rate": 2e-3,
        "epochs": 15,
        "lora_r": 8,
        "lora_dropout": 0.0,
        "device": "cpu",
        "seed": seed,
        "packing": packing,
        **changed,
    }
    started = time.process_time()
    report = execute(Run.create(Settings.of(chosen)))
    pairs = [word_errors(row.reference, row.tuned) for row in report.utterances]
    return {
        "base": report.base.wer,
        "tuned": report.tuned.wer,
        "updates": report.training["steps"],
        "seconds": time.process_time() - started,
        "errors": [errors for errors, _ in pairs],
        "words": [words for _, words in pairs],
    }


def difference(runs: dict[bool, list[dict[str, object]]], seed: int = 0) -> tuple[float, float, float]:
    """(packed - unpacked, low, high) in points of WER, resampling test utterances across all seeds."""
    errors = {mode: np.array([run["errors"] for run in runs[mode]]).sum(0) for mode in runs}
    words = np.array([run["words"] for run in runs[True]]).sum(0)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(words), size=(RESAMPLES, len(words)))
    rates = 100 * (errors[True] - errors[False])[drawn].sum(1) / words[drawn].sum(1)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(100 * (errors[True] - errors[False]).sum() / words.sum()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of both modes")
    given = parser.parse_args()
    speech = Path(os.environ.get("VOXTRAL_SPEECH_DATA", ""))
    if not (speech / "fsdd").is_dir():
        sys.exit("VOXTRAL_SPEECH_DATA names no folder with fsdd/; this benchmark needs real speech.")
    quiet_libraries()
    changed: dict[str, object] = dict(each.split("=", 1) for each in given.set)
    runs: dict[bool, list[dict[str, object]]] = defaultdict(list)
    print("| seed | packing | updates | CPU s | WER before | WER after |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["VOXTRAL_FINETUNE_HOME"] = temporary
        for seed in range(given.seeds):
            corpus = build(speech, Path(temporary) / f"corpus-{seed}", seed)
            for packing in (True, False):
                run = learn(corpus, Path(temporary) / f"run-{seed}-{packing}", seed, packing, changed)
                runs[packing].append(run)
                rates = f"{100 * run['base']:.1f} % | {100 * run['tuned']:.1f} %"
                print(f"| {seed} | {packing} | {run['updates']} | {run['seconds']:.0f} | {rates} |", flush=True)
    middle, low, high = difference(runs)
    words = sum(map(sum, (run["words"] for run in runs[True])))
    print(f"\npacked - unpacked: {middle:+.2f} points of WER (95 % {low:+.2f} to {high:+.2f}), {words} test words")
    if given.json:
        content = {
            "difference": middle,
            "low": low,
            "high": high,
            "words": words,
            "runs": {str(k): runs[k] for k in runs},
        }
        given.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

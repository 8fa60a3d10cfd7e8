"""How much longer the data doctor takes than decoding the same files: the ratio of both, paired, in one run.

    python benchmarks/doctor.py [--clips 2000] [--seconds 4] [--repeats 7]

Plain decoding is the loop that anybody writes, one file after the other; the doctor decodes in threads. The target is
at most 1.5. The ratio to decoding in as many threads is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from voxtral_finetune.data import audio, doctor, sources
from voxtral_finetune.data.survey import THREADS

RATE = 16_000


def make(folder: Path, clips: int, seconds: float) -> list[Path]:
    """A corpus of clips that rise and fall as speech does, half FLAC and half WAV."""
    rng = np.random.default_rng(0)
    time_axis = np.arange(int(seconds * RATE)) / RATE
    paths = []
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(clips):
            loudness = np.abs(np.sin(np.pi * time_axis * rng.uniform(2, 4))) ** 2
            wave = 0.3 * loudness * rng.standard_normal(len(time_axis)) + 0.001 * rng.standard_normal(len(time_axis))
            path = folder / f"{number}.{('wav', 'flac')[number % 2]}"
            audio.write(path, wave.astype(np.float32), RATE)
            text = f"clip {number} of a corpus, said in about as many words as there is time for"
            row = {"audio_path": path.name, "text": text, "language": "en", "speaker": f"speaker {number % 20}"}
            file.write(json.dumps(row) + "\n")
            paths.append(path)
    return paths


def decode(paths: list[Path]) -> None:
    for path in paths:
        samples, _ = soundfile.read(path, dtype="float32")
        assert len(samples)


def decode_in_threads(paths: list[Path]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for samples, _ in pool.map(lambda path: soundfile.read(path, dtype="float32"), paths):
            assert len(samples)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make(folder, given.clips, given.seconds)
        pairs = []
        for _ in range(given.repeats + 1):  # the first pair fills the caches and is not counted
            plain, threaded = seconds_of(lambda: decode(paths)), seconds_of(lambda: decode_in_threads(paths))
            pairs.append((seconds_of(lambda: doctor.diagnose(sources.survey(folder), folder)), plain, threaded))
    ratios, threaded_ratios = ([whole / row[column] for whole, *row in pairs[1:]] for column in (0, 1))
    sys.stdout.write(
        f"doctor / decoding, {given.clips} clips of {given.seconds:g} s, {THREADS} threads:"
        f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f});"
        f" to decoding in threads {statistics.median(threaded_ratios):.2f}\n"
    )


if __name__ == "__main__":
    main()

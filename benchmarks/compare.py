"""How much faster and smaller ours trains than the plain recipe, in one run and paired.

    VOXTRAL_SPEECH_DATA=FOLDER python -m benchmarks.compare [--pairs 5] [--steps 2] [--json FILE]

A round measures the plain recipe, ours, and ours with each lever off, one after the other on one thread, each in a
process of its own; odd rounds go backwards. Every ratio is between two measurements of one round. Speed is speech
trained per CPU-second, memory the peak beyond what the loaded model takes. `benchmarks/shapes.py` says on what.

The JSON file has, each with median, min and max:
    short_clips_speedup    ours / plain, clips of 2 to 8 s, default settings
    full_windows_speedup   ours / plain, recordings of 27 to 29.9 s
    cached_speedup         ours from the second epoch with --cache-audio / plain, on the same recordings
    packing_efficiency     speech per second of windows that hold several clips, over seeds
    collation_share        of ours on short clips: time to read, decode and put together, of all
    loss_memory_ratio      peak of head and loss at vocabulary 131 072: every position / where there is a label
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks import ours, plain, shapes
from benchmarks.loss import loss_memory
from benchmarks.measure import Built, Measured, in_child, measure, memory_before
from voxtral_finetune.data import sources
from voxtral_finetune.data.rows import Utterance

WARM_UP = 1
"""Steps before the clock starts: the first allocates everything."""

CACHED_STEPS = 4
"""Updates in the first epoch of the cached run; from the second update of the second epoch on it is measured."""

PLANNED = 100
"""Updates that every trainer believes it will make, so that the loader always has a batch to fetch ahead."""

SEEDS = (0, 1, 2, 3, 4)

Variant = tuple[str, str]
"""(shape, name)."""

PLAIN, OURS, CACHED = "plain recipe", "ours", "ours, cache, from the second epoch"


@dataclass(frozen=True)
class Speech:
    """One shape of recordings: its manifest, and its rows as a survey of the corpus gives them."""

    manifest: Path
    rows: Sequence[Utterance]

    @staticmethod
    def of(manifest: Path) -> Speech:
        return Speech(manifest, sources.survey(manifest).utterances)

    @property
    def mean_seconds(self) -> float:
        return sum(row.seconds or 0.0 for row in self.rows) / len(self.rows)


def variants() -> list[Variant]:
    """What a round measures, in order; neighbours are those that are divided by each other."""
    levers = [("short", f"ours, {lever.name}") for lever in ours.LEVERS]
    return [("short", PLAIN), ("short", OURS), *levers, ("full", CACHED), ("full", PLAIN), ("full", OURS)]


def measured(variant: Variant, model: Path, speech: dict[str, Speech], folder: Path, steps: int) -> Measured:
    """One measurement, in this process: call it in a child."""
    shape, name = variant
    given = speech[shape]
    if name == PLAIN:
        trainer = plain.build(str(model), given.manifest, folder / "out", max_steps=PLANNED, disable_tqdm=True)
        return measure(Built(trainer, plain.BATCH * given.mean_seconds, memory_before()), WARM_UP, steps)
    if name == CACHED:
        rows = given.rows[: CACHED_STEPS * plain.BATCH]
        lever = ours.Lever(name, {"cache_audio": True})
        return measure(ours.build(model, rows, folder, PLANNED, lever), CACHED_STEPS + 1, steps)
    lever = next((lever for lever in ours.LEVERS if name == f"ours, {lever.name}"), ours.Lever(OURS))
    return measure(ours.build(model, given.rows, folder, PLANNED, lever), WARM_UP, steps)


def rounds(model: Path, speech: dict[str, Speech], pairs: int, steps: int) -> list[dict[Variant, Measured]]:
    """All measurements, by round."""
    done = []
    for number in range(pairs):
        results = {}
        for variant in variants()[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                results[variant] = in_child(functools.partial(measured, variant, model, speech, folder, steps))
        done.append(results)
        sys.stderr.write(f"round {number + 1} of {pairs}\n")
    return done


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def ratios(done: list[dict[Variant, Measured]], above: Variant, below: Variant) -> list[float]:
    """Speed of one variant divided by that of another, by round."""
    return [results[above].speed / results[below].speed for results in done]


def summary(
    done: list[dict[Variant, Measured]], packing: list[tuple[float, float]], loss: list[float]
) -> dict[str, dict[str, float]]:
    """The numbers with a target."""
    return {
        "short_clips_speedup": spread(ratios(done, ("short", OURS), ("short", PLAIN))),
        "full_windows_speedup": spread(ratios(done, ("full", OURS), ("full", PLAIN))),
        "cached_speedup": spread(ratios(done, ("full", CACHED), ("full", PLAIN))),
        "packing_efficiency": spread([packed for _, packed in packing]),
        "collation_share": spread([results["short", OURS].collation for results in done]),
        "loss_memory_ratio": spread(loss),
    }


def table(done: list[dict[Variant, Measured]]) -> str:
    """Markdown: a row for each variant, medians over rounds."""
    title = {"short": "clips of 2–8 s", "full": "full windows"}
    lines = [
        "| speech | variant | speech-s / CPU-s | × plain (min–max) | × ours | collation | peak memory | of plain's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape, name in sorted(variants(), key=lambda variant: variant[0] != "short"):
        here = [results[shape, name] for results in done]
        faster = spread(ratios(done, (shape, name), (shape, PLAIN)))
        beside = statistics.median(ratios(done, (shape, name), (shape, OURS)))
        memory = statistics.median(each.memory for each in here)
        share = memory / statistics.median(results[shape, PLAIN].memory for results in done)
        cells = [
            title[shape],
            name,
            f"{statistics.median(each.speed for each in here):.2f}",
            f"**{faster['median']:.2f}** ({faster['min']:.2f}–{faster['max']:.2f})",
            f"{beside:.2f}",
            f"{statistics.median(each.collation for each in here):.1%}",
            f"{memory / 1e6:.0f} MB",
            f"{share:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report(done: list[dict[Variant, Measured]], found: dict[str, dict[str, float]], overall: dict[str, float]) -> str:
    """The table and, under it, each number with a target."""
    targets = {
        "short_clips_speedup": "≥ 6",
        "full_windows_speedup": "≥ 1.35",
        "cached_speedup": "≥ 1.8",
        "packing_efficiency": "≥ 0.9",
        "collation_share": "≤ 0.1",
        "loss_memory_ratio": "≥ 5",
    }
    lines = [table(done), "| | target | median | min | max |", "|---|---|---|---|---|"]
    for name, value in [*found.items(), ("packing_efficiency, all windows", overall)]:
        numbers = " | ".join(f"{value[key]:.3g}" for key in ("median", "min", "max"))
        lines.append(f"| {name} | {targets.get(name, '≥ 0.83')} | {numbers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps measured of each variant in a round (default: 2)")
    parser.add_argument("--json", type=Path, help="also write the numbers with a target to this file")
    given = parser.parse_args()
    began = time.monotonic()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source = shapes.speech_folder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = in_child(lambda: shapes.small_model(folder / "model"))
        speech = {
            "short": Speech.of(shapes.short_clips(source, folder / "short")),
            "full": Speech.of(shapes.full_windows(source, folder / "full")),
        }
        packing = [ours.efficiency(speech["short"].rows, shapes.WINDOW_SECONDS, seed) for seed in SEEDS]
        loss = loss_memory(speech["short"].rows, folder, given.pairs)
        done = rounds(model, speech, given.pairs, given.steps)
    found = summary(done, packing, loss)
    sys.stdout.write(report(done, found, spread([overall for overall, _ in packing])))
    sys.stderr.write(f"{given.pairs} rounds in {time.monotonic() - began:.0f} s\n")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The price of what was learned: other speech than that of the corpus, scored before and after.

A guard is a corpus of what the model could do and must go on doing: other languages, other speakers, noise. Beside the
guards there are clips in which nobody speaks, made on the spot, where a sound model hears at most a word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voxtral_finetune.data import sources
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.corpus import Progress
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.normalise import normalise, units
from voxtral_finetune.evaluation.pieces import Recording
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

MOST = 300
"""Utterances of a guard where --eval-count does not say: some thousand words, so that half a point can be seen."""

CLIP_SECONDS = 2.0
"""No longer than the window of any checkpoint: what is longer would be cut in silence, and silence is never heard."""

MOST_WORDS = 1
"""So many words in a clip where nobody speaks are borne."""

QUIET = "-quiet"


@dataclass(frozen=True)
class Guard:
    """A corpus that must not be forgotten; `note` says in a sentence what of it was left out, or is empty."""

    name: str
    rows: list[Utterance]
    note: str = ""


@dataclass(frozen=True)
class Price:
    """What `price` gives for the report."""

    guards: list[dict[str, Any]] = field(default_factory=list)
    silence: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read(run: Run, settings: Settings, divided: Split, progress: Progress | None = None) -> list[Guard]:
    """The guards that the settings name, in their order; each is read once and kept in the run, for `kept`.

    Of a corpus that marks rows as test only those are taken, as `evaluate` does. What is in train is left out.
    Raises DataError where nothing of a guard is left to measure.
    """
    paths = settings.evaluation.guard
    learned = {row.sha256 for row in divided.train}
    for place, name, path in zip(_places(run, settings), _names(paths), paths, strict=True):
        if not place.exists():
            usable = sources.survey(path, progress=progress).utterances
            _chosen(name, usable, learned, settings).save(place)
    return kept(run, settings)


def kept(run: Run, settings: Settings) -> list[Guard]:
    """The guards of a run as `read` left them there; none where it never did."""
    splits = [Split.load(place) for place in _places(run, settings) if place.exists()]
    return [
        Guard(name, split.test, split.note)
        for name, split in zip(_names(settings.evaluation.guard), splits, strict=False)
    ]


def heard(run: Run, model: str, guards: Sequence[Guard]) -> dict[str, Transcripts]:
    """What a model ("base" or "tuned") heard of `recordings`, as the run keeps it."""
    files = {key: run.folder / f"heard-{model}{key}.json" for key in recordings(guards)}
    return {key: found for key, path in files.items() if (found := Transcripts.load(path))}


def recordings(guards: Sequence[Guard]) -> dict[str, list[Recording]]:
    """All that the guards ask a model to hear, by the end of the file's name that keeps it; empty without a guard."""
    found = {f"-guard-{number}": list(map(Recording.of, guard.rows)) for number, guard in enumerate(guards)}
    return {**found, QUIET: [Recording(wave, seconds=CLIP_SECONDS) for wave in quiet().values()]} if found else {}


def rates(guards: Sequence[Guard], heard: Mapping[str, Transcripts]) -> dict[str, float]:
    """The error rate of a model on each guard by its name, a fraction, from what it heard of `recordings`."""
    return {
        guard.name: score([row.text for row in guard.rows], heard[f"-guard-{number}"].texts).wer
        for number, guard in enumerate(guards)
    }


def price(
    guards: Sequence[Guard], base: Mapping[str, Transcripts], tuned: Mapping[str, Transcripts], budget: float
) -> Price:
    """What each model heard of `recordings`, compared; `budget` is how many points a guard may lose."""
    if not guards:
        return Price()
    before, after = rates(guards, base), rates(guards, tuned)
    found = [
        {
            "name": guard.name,
            "utterances": len(guard.rows),
            "base_wer": before[guard.name],
            "tuned_wer": after[guard.name],
            "change": after[guard.name] - before[guard.name],
            "budget": budget / 100,
            "broken": excess(before[guard.name], after[guard.name], budget) > 0,
        }
        for guard in guards
    ]
    silence = {
        "clips": len(base[QUIET].texts),
        **{name: sum(map(speaks, heard[QUIET].texts)) for name, heard in (("base", base), ("tuned", tuned))},
    }
    return Price(found, silence, [*_broken(found), *_spoken(silence), *(guard.note for guard in guards if guard.note)])


def excess(before: float, after: float, budget: float) -> float:
    """By what fraction an error rate has risen above what `budget` points allow; 0 where it has not."""
    return max(0.0, round(after - before - budget / 100, 9))


def speaks(text: str) -> bool:
    """Whether a text says more than is borne where nobody speaks."""
    return len(units(normalise(text))) > MOST_WORDS


def quiet() -> dict[str, Wave]:
    """Sounds in which nobody speaks, by name: mono, 16 kHz, CLIP_SECONDS long, the same at every call."""
    time = np.arange(int(CLIP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal((3, len(time)))
    rumble = np.cumsum(noise[2])
    swell = np.minimum(1.0, 2 * np.minimum(time, CLIP_SECONDS - time))
    sounds = {
        "silence": np.zeros(len(time)),
        "faint noise": 1e-4 * noise[0],
        "noise": 0.03 * noise[1],
        "rumble": 0.1 * (rumble - rumble.mean()) / np.abs(rumble - rumble.mean()).max(),
        "mains hum": sum(0.05 / n * np.sin(2 * np.pi * 50 * n * time) for n in (1, 2, 3, 4)),
        "a chord": swell * sum(0.05 * np.sin(2 * np.pi * pitch * time) for pitch in (261.6, 329.6, 392.0)),
    }
    return {name: np.asarray(wave, dtype=np.float32) for name, wave in sounds.items()}


def _chosen(name: str, usable: Sequence[Utterance], learned: set[str | None], settings: Settings) -> Split:
    """What is measured of a guard, as the `test` of a split: drawn by the seed where there is too much."""
    marked = [row for row in usable if row.split == "test"] or list(usable)
    fresh = [row for row in marked if row.sha256 not in learned]
    note = ""
    if len(fresh) < len(marked):
        left_out = f"{len(marked) - len(fresh)} of {len(marked)} recordings of guard {name}"
        note = f"{left_out} are learned from too, so they are left out of it."
    rows = [row for row in fresh if units(normalise(row.text))]
    if not rows:
        what = f"Guard {name} has no recording to measure: {len(usable)} can be used, {len(fresh)} are not in train."
        raise DataError(what, "Name another corpus by --guard.")
    seed, most = settings.training.seed, settings.data.eval_count or MOST

    def drawn(row: Utterance) -> str:
        return hashlib.sha256(f"{seed}:{row.sha256}".encode()).hexdigest()

    return Split([], [], sorted(rows, key=drawn)[:most], "guard", note)


def _places(run: Run, settings: Settings) -> list[Path]:
    return [run.folder / f"guard-{number}.json" for number in range(len(settings.evaluation.guard))]


def _names(paths: Sequence[Path]) -> list[str]:
    """A short name for each guard, no two alike: that of its folder, or of its file with its folder."""
    found: list[str] = []
    for path in paths:
        place = path.expanduser().absolute()
        name = place.name if place.is_dir() else f"{place.parent.name}/{place.name}"
        alike = sum(other == name or other.startswith(f"{name} (") for other in found)
        found.append(f"{name} ({alike + 1})" if alike else name)
    return found


def _broken(guards: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"Guard {one['name']} has got worse by {100 * one['change']:.1f} points"
        f" ({100 * one['base_wer']:.1f} % to {100 * one['tuned_wer']:.1f} %);"
        f" the budget is {100 * one['budget']:g}."
        for one in guards
        if one["broken"]
    ]


def _spoken(silence: Mapping[str, int]) -> list[str]:
    if not silence["tuned"]:
        return []
    return [f"It says words in silence: {silence['tuned']} of {silence['clips']} clips ({silence['base']} before)."]

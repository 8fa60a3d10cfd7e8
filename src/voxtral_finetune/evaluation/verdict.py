"""Better, worse, or not shown: whether a difference in word error rate is more than luck.

Both models hear the same test utterances, so utterances are drawn anew together with both error counts: the paired
bootstrap of Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from voxtral_finetune.errors import DataError

DRAWS = 10_000
"""Samples of the test set; the 2.5 % bounds of an interval then rest on 250 samples each."""

DRAWN_AT_ONCE = 2_000_000
"""Indices held in memory at a time (16 MB), whatever the size of the test set."""

ENOUGH = 30
"""Under so many utterances the bootstrap's interval is too narrow to be called 95 %."""

COMFORTABLE = 100
"""Under so many utterances a verdict comes with a note."""

CHANGED = 6
"""A sign test over fewer utterances that changed is above 5 % even if all changed the same way (2 · 0.5⁵ = 6 %)."""

Word = Literal["better", "no difference found", "worse", "too few to tell"]


@dataclass(frozen=True)
class Verdict:
    """`difference` is tuned − base in word error rate, a fraction (below 0 is better), within `low` to `high` at 95 %.

    `note` is a plain sentence on how far to trust it, or empty.
    """

    word: Word
    difference: float
    low: float
    high: float
    utterances: int
    note: str = ""


def compare(errors_base: Any, errors_tuned: Any, words: Any, seed: int = 0) -> Verdict:
    """Compares two models by their word errors on the same n utterances, each array-like of shape (n,).

    `words` are the references' lengths. Same input and seed, same verdict. Raises DataError without any word.
    """
    before, after, lengths = (np.asarray(array, dtype=np.float64) for array in (errors_base, errors_tuned, words))
    if not lengths.sum():
        raise DataError("No transcript of the test set holds a word.", "Test with recordings that have transcripts.")
    change = after - before
    low, high = np.quantile(_draw(change, lengths, np.random.default_rng(seed)), (0.025, 0.975))
    count, changed = len(change), int(np.count_nonzero(change))
    return Verdict(
        word=_word(count, changed, low, high),
        difference=float(change.sum() / lengths.sum()),
        low=float(low),
        high=float(high),
        utterances=count,
        note=_note(count, changed),
    )


def sentence(verdict: Verdict, unit: str = "word") -> str:
    """The verdict in a line for everyone; `unit` is the `Score.unit` of the two scores."""
    low, high = sorted((abs(verdict.low), abs(verdict.high)))
    size = f"{abs(100 * verdict.difference):.1f} {{}} errors in 100 {unit}s"
    size += f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    heard = f"measured on {verdict.utterances} test utterances"
    if verdict.word == "better":
        return f"Better: {size.format('fewer')}, {heard}."
    if verdict.word == "worse":
        return f"Worse: {size.format('more')}, {heard}."
    if verdict.word == "no difference found":
        return f"No difference found between the model before and after, {heard}."
    return f"Too few to tell: {heard}; {ENOUGH} are the least, {COMFORTABLE} are better."


def _draw(
    change: NDArray[np.float64], lengths: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """DRAWS differences in word error rate, shape (DRAWS,), each over n utterances drawn with replacement."""
    count, found = len(change), []
    step = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, DRAWS, step):
        drawn = random.integers(count, size=(min(step, DRAWS - start), count))
        # A draw of empty references only has no words; jiwer counts one there, and so does this.
        found.append(change[drawn].sum(axis=1) / np.maximum(lengths[drawn].sum(axis=1), 1))
    return np.concatenate(found)


def _word(count: int, changed: int, low: float, high: float) -> Word:
    if count < ENOUGH:
        return "too few to tell"
    if changed < CHANGED or low <= 0 <= high:
        return "no difference found"
    return "better" if high < 0 else "worse"


def _note(count: int, changed: int) -> str:
    if count < COMFORTABLE:
        return f"A small test set: {count} utterances. With {COMFORTABLE} or more the interval is narrower."
    if changed < CHANGED:
        return f"Only {changed} of {count} test utterances are transcribed with more or fewer errors than before."
    return ""

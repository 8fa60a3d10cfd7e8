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
"""Indices held in memory at a time (16 MB, and as much for their counts), whatever the size of the test set."""

QUANTILES = (0.025, 0.975)
"""The bounds of a 95 % interval."""

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


def interval(errors: Any, words: Any, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of one model's word error rate, from its errors and the references' words, shape (n,) each."""
    drawn = _draw(_column(errors), _column(words), np.random.default_rng(seed))
    low, high = np.quantile(drawn[:, 0], QUANTILES)
    return float(low), float(high)


def compare(errors_base: Any, errors_tuned: Any, words: Any, seed: int = 0) -> Verdict:
    """Compares two models by their word errors on the same n utterances, each array-like of shape (n,).

    `words` are the references' lengths. Same input and seed, same verdict. Raises DataError without any word.
    """
    return compare_many(_column(errors_base), _column(errors_tuned), _column(words), seed)[0]


def compare_many(errors_base: Any, errors_tuned: Any, words: Any, seed: int = 0) -> list[Verdict]:
    """As `compare`, for k pairs of models at once: arrays of shape (n, k), the k verdicts from the same draws."""
    before, after, lengths = (np.asarray(array, dtype=np.float64) for array in (errors_base, errors_tuned, words))
    if not lengths.size or not lengths.sum(axis=0).all():
        raise DataError("No transcript of the test set holds a word.", "Test with recordings that have transcripts.")
    change, count = after - before, len(before)
    lows, highs = np.quantile(_draw(change, lengths, np.random.default_rng(seed)), QUANTILES, axis=0)
    facts = zip(change.sum(axis=0) / lengths.sum(axis=0), lows, highs, np.count_nonzero(change, axis=0), strict=True)
    return [
        Verdict(
            word=_word(count, int(changed), low, high),
            difference=float(difference),
            low=float(low),
            high=float(high),
            utterances=count,
            note=_note(count, int(changed)),
        )
        for difference, low, high, changed in facts
    ]


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
    errors: NDArray[np.float64], lengths: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """DRAWS rates of errors for each of k columns, shape (DRAWS, k), each over n utterances drawn with replacement.

    A draw is how often each utterance is in it, so that all columns are summed by one product of matrices.
    """
    count, found = len(errors), []
    step = max(1, DRAWN_AT_ONCE // count)
    for start in range(0, DRAWS, step):
        rows = min(step, DRAWS - start)
        drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        # A draw of empty references only has no words; jiwer counts one there, and so does this.
        found.append((times @ errors) / np.maximum(times @ lengths, 1))
    return np.concatenate(found)


def _column(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)[:, None]


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

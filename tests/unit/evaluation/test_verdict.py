"""The verdict: right words, right direction, and rarely wrong when there is nothing to find."""

import numpy as np
import pytest

from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.verdict import Verdict, compare, sentence


def errors(count: int, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    words = random.integers(4, 15, count)
    return random.binomial(words, rate), words


def test_a_clear_gain_and_a_clear_loss() -> None:
    base, words = errors(200, 0.4, seed=1)
    tuned = np.maximum(base - 1, 0)
    gain, loss = compare(base, tuned, words), compare(tuned, base, words)
    assert gain.word == "better" and gain.low <= gain.difference <= gain.high < 0
    assert gain.difference == pytest.approx((tuned - base).sum() / words.sum())
    assert loss.word == "worse" and loss.difference == -gain.difference and loss.low > 0
    assert gain.note == ""
    assert sentence(gain).startswith("Better: ") and "fewer errors in 100 words" in sentence(gain)
    assert sentence(loss, "character").startswith(
        "Worse: 10.5 more errors in 100 characters (95 % interval 10.0 to 11.0)"
    )


def test_the_same_models_do_not_differ() -> None:
    base, words = errors(150, 0.3, seed=2)
    verdict = compare(base, base, words)
    assert (verdict.word, verdict.difference, verdict.low, verdict.high) == ("no difference found", 0, 0, 0)
    assert "Only 0 of 150" in verdict.note


@pytest.mark.parametrize(
    ("count", "word", "noted"), [(29, "too few to tell", 1), (30, "better", 1), (100, "better", 0)]
)
def test_small_test_sets(count: int, word: str, noted: int) -> None:
    verdict = compare([2] * count, [0] * count, [5] * count)
    assert (verdict.word, bool(verdict.note), verdict.utterances) == (word, bool(noted), count)
    assert verdict.difference == pytest.approx(-0.4)


def test_a_few_lucky_utterances_are_no_gain() -> None:
    base, tuned = np.ones(100, int), np.ones(100, int)
    tuned[:5] = 0
    assert compare(base, tuned, np.full(100, 5)).word == "no difference found"
    tuned[:6] = 0
    assert compare(base, tuned, np.full(100, 5)).word == "better"


def test_it_is_a_function_of_data_and_seed() -> None:
    base, words = errors(60, 0.3, seed=3)
    tuned, _ = errors(60, 0.3, seed=4)
    assert compare(base, tuned, words, seed=5) == compare(base, tuned, words, seed=5)
    assert compare(base, tuned, words, seed=5) != compare(base, tuned, words, seed=6)


@pytest.mark.parametrize(("count", "shared"), [(40, 0.0), (100, 0.9)])
def test_equal_models_are_rarely_told_apart(count: int, shared: float) -> None:
    """At 95 % about 1 in 20 comparisons of equally good models may claim a difference; 200 are tried."""
    random = np.random.default_rng(6)
    claims = 0
    for _ in range(200):
        words = random.integers(4, 15, count)
        base, other = random.binomial(words, 0.2), random.binomial(words, 0.2)
        tuned = np.where(random.random(count) < shared, base, other)
        claims += compare(base, tuned, words).word in ("better", "worse")
    assert claims <= 20


def test_a_true_gain_is_usually_found() -> None:
    random = np.random.default_rng(7)
    words = random.integers(4, 15, (50, 100))
    base, tuned = random.binomial(words, 0.3), random.binomial(words, 0.2)
    assert sum(compare(*rows).word == "better" for rows in zip(base, tuned, words, strict=True)) >= 45


def test_empty_references_do_not_divide_by_zero() -> None:
    words = [0] * 39 + [5]
    verdict = compare([1] * 40, [0] * 40, words)
    assert np.isfinite([verdict.low, verdict.high]).all() and verdict.word == "better"
    with pytest.raises(DataError):
        compare([1, 1], [0, 0], [0, 0])
    with pytest.raises(DataError):
        compare([], [], [])


def test_every_word_has_a_sentence() -> None:
    for word in ("better", "worse", "no difference found", "too few to tell"):
        text = sentence(Verdict(word, 0.01, -0.01, 0.02, 12))
        assert text.lower().startswith(word) and "12 test utterances" in text and text.endswith(".")

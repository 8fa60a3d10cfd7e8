"""The verdict: right words, right direction, and rarely wrong when there is nothing to find."""

import numpy as np
import pytest

from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.verdict import Verdict, compare, compare_many, interval, sentence


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


def pairs(count: int, rates: tuple[float, float], seed: int, shared: float = 0.0) -> tuple[np.ndarray, ...]:
    """A thousand pairs of models over `count` utterances, (n, 1000) each: errors of both, and reference words.

    Utterances are of different length and difficulty, as in real test sets; errors come in bursts. In a `shared` part
    of the utterances both models say the same.
    """
    random = np.random.default_rng(seed)
    words = random.integers(3, 25, (count, 1000))
    hard = random.gamma(1.5, 1 / 1.5, words.shape)  # mean 1: most utterances are easy, some are very hard
    base, tuned = (random.binomial(words, np.minimum(rate * hard, 0.95)) for rate in rates)
    return base, np.where(random.random(words.shape) < shared, base, tuned), words


@pytest.mark.parametrize(("count", "shared"), [(30, 0.0), (100, 0.8), (300, 0.0)])
def test_of_a_thousand_pairs_of_equal_models_few_are_called_better(count: int, shared: float) -> None:
    found = [verdict.word for verdict in compare_many(*pairs(count, (0.15, 0.15), 6, shared))]
    assert len(found) == 1000
    assert found.count("better") <= 50, found.count("better")
    assert found.count("worse") <= 50, found.count("worse")
    assert found.count("no difference found") < 1000, "a test that never says anything would pass too"


def test_a_fifth_fewer_errors_are_usually_found_with_300_utterances() -> None:
    found = [verdict.word for verdict in compare_many(*pairs(300, (0.15, 0.12), 7))]
    assert found.count("better") >= 800, found.count("better")
    assert found.count("worse") == 0


def test_many_pairs_get_what_each_gets_alone() -> None:
    base, tuned, words = pairs(50, (0.3, 0.2), 8)
    together = compare_many(base[:, :3], tuned[:, :3], words[:, :3])
    for index, verdict in enumerate(together):
        alone = compare(base[:, index], tuned[:, index], words[:, index])
        assert (verdict.word, verdict.note) == (alone.word, alone.note)
        assert (verdict.difference, verdict.low) == (pytest.approx(alone.difference), pytest.approx(alone.low))


def test_the_interval_of_one_model_holds_its_rate() -> None:
    """Of a hundred test sets drawn from one population, the interval holds its rate in about 95."""
    random = np.random.default_rng(9)
    words = random.integers(4, 15, (100, 100))
    held = 0
    for row in words:
        low, high = interval(random.binomial(row, 0.2), row)
        held += low <= 0.2 <= high
    assert held >= 88


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

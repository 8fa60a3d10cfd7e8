"""What a plan of windows promises, whatever the corpus: nobody left out, nothing cut, windows full."""

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from voxtral_finetune.data import windows
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.windows import GAP_SECONDS, WELL_FILLED, Window, efficiency, packs, plan

RATE = 16_000


def rows(seconds, languages=("en",), speakers=("anna",), seed=0):
    """Utterances of these lengths, each with a language and a speaker drawn from the given ones."""
    random = np.random.default_rng(seed)
    return [
        Utterance(
            Path(f"{number}.wav"),
            f"text {number}",
            languages[random.integers(len(languages))],
            speakers[random.integers(len(speakers))],
            round(float(length), 3),
            line=number + 1,
            sha256=f"{number:064x}",
        )
        for number, length in enumerate(seconds)
    ]


def clips(count, shortest, longest, seed=0, **kinds):
    return rows(np.random.default_rng(seed).uniform(shortest, longest, count), seed=seed, **kinds)


def fill(window, size):
    """How full a window is, with the gaps that it needs."""
    return (window.seconds + GAP_SECONDS * (len(window.utterances) - 1)) / size


def samples(window, late=0.0):
    """How long a window is when it is decoded, where files are `late` seconds longer than their rounded length."""
    gap = round(GAP_SECONDS * RATE)
    lengths = [round((row.seconds + late) * RATE) for row in window.utterances]
    return sum(lengths) + gap * (len(lengths) - 1)


CORPORA = {
    "phrases": lambda random: random.uniform(1, 4, 50),
    "reading": lambda random: random.uniform(2, 8, 700),
    "digits": lambda random: random.uniform(0.2, 0.6, 900),
    "half windows": lambda random: random.uniform(14.8, 15.2, 300),
    "over half": lambda random: random.uniform(15.1, 29, 600),
    "heavy tail": lambda random: np.minimum(random.lognormal(1.2, 1.1, 800), 200.0),
    "nearly a window": lambda random: random.uniform(29.7, 30.0, 60),
    "over a window": lambda random: random.uniform(29, 95, 60),
    "equal": lambda random: np.full(400, 5.0),
    "one": lambda random: np.array([3.0]),
    "two": lambda random: np.array([3.0, 40.0]),
}
KINDS = {
    "one voice": {},
    "voices": {"speakers": [f"voice {number}" for number in range(9)]},
    "languages": {"languages": ["en", "de", "ja", None], "speakers": ["a", "b", None]},
}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("draw", CORPORA.values(), ids=CORPORA)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_utterance_is_heard_once_in_a_window_of_its_language_that_holds_it(draw, kinds, seed):
    corpus = rows(draw(np.random.default_rng(seed)), seed=seed, **kinds)
    made = plan(corpus, 30.0, True, seed, 0)
    assert Counter(row.line for window in made for row in window.utterances) == Counter(row.line for row in corpus)
    for window in made:
        assert len({row.language for row in window.utterances}) == 1
        if len(window.utterances) > 1:
            assert samples(window, late=0.0005) <= 30 * RATE
            assert max(row.seconds for row in window.utterances) < 30


def test_a_window_of_many_short_clips_holds_them_also_where_each_is_longer_than_its_rounded_length():
    corpus = rows(np.full(600, 0.1))
    for window in plan(corpus, 30.0, True, 0, 0):
        assert samples(window, late=0.0005) <= 30 * RATE, len(window.utterances)


@pytest.mark.parametrize("epoch", range(3))
def test_lengths_as_they_are_heard_fill_the_windows(epoch):
    corpus = clips(400, 2, 8)
    factors = {row.line: np.random.default_rng([epoch, row.line]).uniform(0.9, 1.1) for row in corpus}

    def heard(row):
        return row.seconds / factors[row.line]

    made = plan(corpus, 30.0, True, 0, epoch, heard)
    for window in made:
        assert sum(map(heard, window.utterances)) + GAP_SECONDS * (len(window.utterances) - 1) <= 30


def test_without_packing_each_utterance_has_a_window_and_the_order_is_new_in_each_epoch():
    corpus = clips(40, 2, 8)
    first, second = (plan(corpus, 30.0, False, 0, epoch) for epoch in (0, 1))
    assert all(len(window.utterances) == 1 for window in first)
    assert {window.utterances for window in first} == {(row,) for row in corpus}
    assert set(first) == set(second)
    assert first != second


@pytest.mark.parametrize("seed", range(3))
def test_short_clips_fill_their_windows_and_one_window_in_ten_holds_a_single_one(seed):
    made = plan(clips(1200, 2, 8, seed), 30.0, True, seed, 0)
    single = [window for window in made if len(window.utterances) == 1]
    packed = [window for window in made if len(window.utterances) > 1]
    assert 0.07 <= len(single) / len(made) <= 0.13
    assert sum(fill(window, 30) for window in packed) / len(packed) >= 0.9
    assert efficiency(made, 30.0) >= 0.83


def test_a_plan_is_a_function_of_rows_seed_and_epoch():
    corpus = clips(120, 2, 8, speakers=["a", "b", None], languages=["en", None])
    assert plan(corpus, 30.0, True, 3, 5) == plan(list(corpus), 30.0, True, 3, 5)
    assert plan(corpus, 30.0, True, 3, 5) != plan(corpus, 30.0, True, 3, 6)
    assert plan(corpus, 30.0, True, 3, 5) != plan(corpus, 30.0, True, 4, 5)


def test_a_small_corpus_meets_in_new_company_in_each_epoch():
    corpus = clips(50, 2, 6)
    companies = [
        {frozenset(row.line for row in window.utterances) for window in plan(corpus, 30.0, True, 0, epoch)}
        for epoch in range(4)
    ]
    for earlier, later in itertools.pairwise(companies):
        assert len(earlier & later) <= len(later) / 2


def test_windows_of_one_voice_are_preferred_where_they_fill():
    corpus = clips(900, 2, 8, speakers=["a", "b", "c"])
    packed = [window for window in plan(corpus, 30.0, True, 0, 0) if len(window.utterances) > 1]
    alone = [window for window in packed if len({row.speaker for row in window.utterances}) == 1]
    assert len(alone) / len(packed) >= 0.8


def test_voices_of_one_clip_each_share_windows():
    corpus = clips(300, 2, 8, speakers=[f"voice {number}" for number in range(10_000)])
    packed = [window for window in plan(corpus, 30.0, True, 0, 0) if len(window.utterances) > 1]
    assert sum(fill(window, 30) for window in packed) / len(packed) >= WELL_FILLED


def test_an_utterance_longer_than_a_window_is_alone():
    corpus = rows([40.0, 30.5, 2.0, 3.0, 2.5, 4.0] * 20)
    for window in plan(corpus, 30.0, True, 0, 0):
        assert len(window.utterances) == 1 or max(row.seconds for row in window.utterances) < 30


@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "eins zwei"), ("de", "eins zwei"), (None, "eins zwei"), ("ja", "einszwei"), ("zh-TW", "einszwei")],
)
def test_texts_are_joined_as_their_language_joins_sentences(language, text):
    pair = tuple(Utterance(Path("a.wav"), word, language, seconds=1.0) for word in ("eins", "zwei"))
    assert Window(pair).text == text


@pytest.mark.parametrize("language", ["zh_CN", "ZH", "JA-jp"])
def test_a_language_in_another_usual_form_joins_alike(language):
    pair = tuple(Utterance(Path("a.wav"), word, language, seconds=1.0) for word in ("eins", "zwei"))
    assert Window(pair).text == "einszwei"


def test_a_window_names_its_utterances():
    first, second = (Utterance(Path(f"folder/{name}.wav"), name, line=line) for name, line in (("a", 3), ("b", 9)))
    assert Window((first, second)).name == "line 3 (a.wav), line 9 (b.wav)"


def test_sharing_pays_where_half_of_the_utterances_fill_under_half_a_window():
    assert packs(rows([3.0, 4.0, 29.0]), 30.0)
    assert not packs(rows([3.0, 15.1, 29.0]), 30.0)
    assert not packs([], 30.0)


def test_efficiency_is_speech_by_what_is_paid_for_it():
    single = [Window((row,)) for row in rows([3.0, 30.0, 45.0])]
    assert efficiency(single, 30.0) == pytest.approx(78 / (30 + 30 + 60))
    assert efficiency([], 30.0) == 0.0


@pytest.mark.parametrize("longest", [8, 17])
def test_a_hundred_thousand_utterances_are_planned(longest):
    """Also those that no other fits beside: what cannot be filled is not tried again with every block."""
    corpus = clips(100_000, 2 if longest == 8 else 15.5, longest, speakers=[f"{number}" for number in range(40)])
    made = plan(corpus, 30.0, True, 0, 0)
    assert sum(len(window.utterances) for window in made) == 100_000


def test_what_is_left_of_a_block_meets_the_next_ones(monkeypatch):
    """Blocks smaller than a speaker's share leave half-filled windows at each end, which are filled across blocks."""
    monkeypatch.setattr(windows, "BLOCK", 16)
    packed = [window for window in plan(clips(2000, 2, 8), 30.0, True, 0, 0) if len(window.utterances) > 1]
    poor = defaultdict(int)
    for window in packed:
        poor[fill(window, 30) < 0.8] += 1
    assert poor[True] <= 0.02 * len(packed)

"""The price: what other speech costs, which of it counts, and that silence stays silent."""

from dataclasses import replace

import numpy as np
import pytest

from voxtral_finetune.data import sources
from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation import guard
from voxtral_finetune.evaluation.guard import Guard
from voxtral_finetune.evaluation.pieces import parts
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

TEXTS = ["low mid", "mid high", "high low", "low low", "mid mid"]


def divided(train=()):
    return Split(list(train), [], [], "random", "")


def started(tmp_path, *guards, **chosen):
    settings = Settings.of({"guard": list(guards), "output_dir": tmp_path / "run", **chosen})
    return Run.create(settings), settings


def heard(*texts):
    return Transcripts(list(texts), [False] * len(texts), 1.0, 1.0, "")


def test_what_is_learned_from_is_left_out_and_said(write_corpus, tmp_path):
    corpus = write_corpus([(text, {}) for text in TEXTS])
    rows = sources.survey(corpus).utterances
    run, settings = started(tmp_path, corpus)
    (found,) = guard.read(run, settings, divided(rows[:2]))
    assert {row.text for row in found.rows} == set(TEXTS[2:])
    assert found.note.startswith("2 of 5 recordings of guard corpus")
    assert guard.kept(run, settings) == [found], "it is kept in the run"
    with pytest.raises(DataError, match="no recording to measure"):
        guard.read(*started(tmp_path, corpus), divided(rows))


def test_a_guard_is_limited_and_its_test_rows_are_enough(write_corpus, tmp_path):
    corpus = write_corpus([(text, {}) for text in TEXTS])
    (few,) = guard.read(*started(tmp_path, corpus, eval_count=2), divided())
    (again,) = guard.read(*started(tmp_path, corpus, eval_count=2), divided())
    assert len(few.rows) == 2
    assert few == again
    marked = write_corpus([(text, {"split": "test" if "high" in text else "train"}) for text in TEXTS], "marked")
    (test,) = guard.read(*started(tmp_path, marked), divided())
    assert {row.text for row in test.rows} == {"mid high", "high low"}


def test_guards_of_one_name_are_told_apart(write_corpus, tmp_path):
    corpus = write_corpus([(text, {}) for text in TEXTS])
    names = [one.name for one in guard.read(*started(tmp_path, corpus, corpus, corpus / "data.jsonl"), divided())]
    assert names == ["corpus", "corpus (2)", "corpus/data.jsonl"]


def priced(write_corpus, tuned, budget, clips=("", "", "", "", "", "")):
    rows = sources.survey(write_corpus([(text, {}) for text in TEXTS])).utterances
    guards = [Guard("other voices", rows)]
    base = {"-guard-0": heard(*TEXTS), "-quiet": heard("", "", "", "", "", "")}
    return guard.price(guards, base, {"-guard-0": heard(*tuned), "-quiet": heard(*clips)}, budget)


@pytest.mark.parametrize(("budget", "broken"), [(10, False), (9.9, True), (0, True)])
def test_a_guard_may_lose_its_budget_and_no_more(write_corpus, budget, broken):
    made = priced(write_corpus, ["low high", *TEXTS[1:]], budget)
    (one,) = made.guards
    assert (one["utterances"], one["base_wer"], one["tuned_wer"], one["change"]) == (5, 0, 0.1, 0.1)
    assert one["broken"] == broken
    assert [text for text in made.warnings if "other voices has got worse by 10.0 points" in text] == made.warnings
    assert len(made.warnings) == broken


def test_words_in_silence_are_counted_from_the_second_on(write_corpus):
    made = priced(write_corpus, TEXTS, 0.5, ("", "oh", "thank you", "", "...", "a b c"))
    assert made.silence == {"clips": 6, "base": 0, "tuned": 2}
    assert made.warnings == ["It says words in silence: 2 of 6 clips (0 before)."]


def test_nothing_is_priced_without_a_guard():
    assert guard.price([], {}, {}, 0.5) == guard.Price()
    assert guard.recordings([]) == {}


def test_the_clips_are_the_same_each_time_and_are_really_heard():
    first, second = guard.quiet(), guard.quiet()
    assert len(first) == 6
    for name, wave in first.items():
        assert np.array_equal(wave, second[name])
        assert wave.dtype == np.float32
        assert np.abs(wave).max() < 1
    window = int(guard.CLIP_SECONDS * SAMPLE_RATE)
    for recording in guard.recordings([Guard("a", [])])["-quiet"]:
        (part,) = parts(replace(recording), window)
        assert len(part.wave) == window, "silence that is cut away would prove nothing"

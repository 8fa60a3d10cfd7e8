import random
from pathlib import Path

import pytest

from voxtral_finetune.data.corpus import Utterance
from voxtral_finetune.data.split import Split, split
from voxtral_finetune.errors import DataError, RunError


def corpus(count=120, speakers=1, texts=None, **fields):
    texts = texts or count
    return [
        Utterance(
            Path(f"/c/{number}.wav"),
            text=f"text {number % texts}",
            speaker=f"s{number % speakers}",
            sha256=f"{number:064x}",
            seconds=1.0,
            line=number + 1,
            **fields,
        )
        for number in range(count)
    ]


def values(rows, field):
    return {getattr(row, field) for row in rows}


def sizes(made):
    return len(made.train), len(made.dev), len(made.test)


def test_one_voice_is_divided_by_text():
    made = split(corpus(120))
    assert made.by == "text"
    assert sizes(made) == (78, 12, 30)
    assert not values(made.test, "text") & values(made.train + made.dev, "text")


def test_many_voices_with_texts_of_their_own_are_divided_by_both():
    rows = corpus(200, speakers=10)
    made = split(rows)
    assert made.by == "speaker and text"
    assert not values(made.test, "speaker") & values(made.train, "speaker")


def test_voices_that_read_the_same_few_texts_are_divided_by_speaker():
    rows = [
        Utterance(Path(f"/c/{voice}-{text}.wav"), f"t{text}", speaker=f"s{voice}", sha256=f"{voice}-{text}")
        for voice in range(10)
        for text in range(12)
    ]
    made = split(rows)
    assert made.by == "speaker"
    assert not values(made.test, "speaker") & values(made.train + made.dev, "speaker")


def test_one_voice_with_few_texts_is_divided_by_take_and_says_so():
    made = split(corpus(100, texts=10))
    assert made.by == "random"
    assert "in training too" in made.note


def test_the_order_of_the_rows_changes_nothing_and_the_seed_does():
    rows = corpus(100)
    mixed = rows[:]
    random.Random(1).shuffle(mixed)
    assert split(rows) == split(mixed)
    assert split(rows).test != split(rows, seed=1).test


def test_a_copy_of_a_test_recording_is_never_learned():
    rows = corpus(60)
    copies = [Utterance(Path(f"/c/copy{row.line}.wav"), row.text, sha256=row.sha256) for row in rows]
    made = split(rows + copies, by="random")
    assert sum(sizes(made)) == 60
    assert not values(made.test, "sha256") & values(made.train + made.dev, "sha256")


def test_the_corpus_own_division_is_honoured_and_a_test_recording_never_teaches():
    rows = corpus(40, split="train") + [
        Utterance(Path(f"/c/t{number}.wav"), f"other {number}", sha256=f"t{number}", split="test")
        for number in range(5)
    ]
    leaked = Utterance(Path("/c/leak.wav"), "other 0", sha256="t0", split="train")
    made = split([leaked, *rows])
    assert made.by == "corpus"
    assert values(made.test, "sha256") == {f"t{number}" for number in range(5)}
    assert len(made.train) + len(made.dev) == 40
    assert made.dev


def test_counts_limit_what_is_learned_and_measured():
    assert sizes(split(corpus(200), train_count=20, eval_count=7)) == (20, 7, 7)


def test_too_few_utterances_say_how_many_more():
    with pytest.raises(DataError, match="at least 2 more"):
        split(corpus(4))


def test_an_impossible_division_is_refused():
    with pytest.raises(DataError, match="cannot be divided by speaker"):
        split(corpus(50), by="speaker")
    with pytest.raises(DataError, match="names no speaker"):
        split([Utterance(Path(f"/{n}.wav"), "x", sha256=str(n)) for n in range(9)], by="speaker")


def test_a_split_is_the_same_when_it_is_read_back(tmp_path):
    made = split(corpus(30, language="en", licence="CC0-1.0"))
    made.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == made


def test_a_test_set_that_the_corpus_does_not_name_is_not_said_to_be_its_own():
    rows = corpus(60, split="train") + [
        Utterance(Path(f"/c/d{number}.wav"), f"dev {number}", sha256=f"d{number}", split="dev") for number in range(8)
    ]
    made = split(rows)
    assert values(made.dev, "sha256") == {f"d{number}" for number in range(8)}
    assert made.by == "random"
    assert "in other takes" in made.note


def test_a_split_of_another_version_is_refused(tmp_path):
    (tmp_path / "split.json").write_text('{"format": 99}')
    with pytest.raises(RunError, match="another version"):
        Split.load(tmp_path / "split.json")

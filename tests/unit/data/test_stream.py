"""What streams teaches, and what is held out of it: the same rows however often they pass, and none in both."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.conftest import spoken
from tests.streams import FakeHub, encoded, every_text
from voxtral_finetune.data import held_out, stream
from voxtral_finetune.data.hub import CONVERTED, Take
from voxtral_finetune.data.rows import Problem
from voxtral_finetune.data.stream import Parts, Pinned, StreamError, TrainingRows, as_row, blocks, hear
from voxtral_finetune.data.text_doubts import plain
from voxtral_finetune.errors import DataError, RunError, SettingsError
from voxtral_finetune.settings import Settings

STREAM = {"dataset_name": "alice/speech", "stream": True, "max_steps": 5}


def settings(**changed):
    return Settings.of({**STREAM, **changed})


def held(hub, folder, **changed):
    return held_out.hold_out(folder, settings(**changed), lambda *_: None, hub.open)


def rows_of(hub, pinned, longest=60.0, refused=lambda _: None, **changed):
    return TrainingRows(stream.spec_of(settings(**changed)), pinned, longest, refused, hub.open)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(stream, "PAUSES", (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"dataset_name": None}, "--stream reads a dataset of the Hub"),
        ({"dataset_jsonl": "x.jsonl"}, "--stream reads a dataset of the Hub"),
        ({"max_steps": None}, "--stream does not know how many rows"),
        ({"cache_audio": True}, "--cache-audio is not possible with --stream"),
        ({"train_count": 5}, "--train-count is not possible with --stream"),
        ({"max_hours": 5}, "--max-hours is not possible with --stream"),
        ({"split_by": "speaker"}, "--split-by is not possible with --stream"),
    ],
)
def test_what_streaming_needs_and_excludes_is_said(changed, what):
    with pytest.raises(SettingsError, match=what):
        stream.check(settings(**changed))


def test_a_share_of_texts_is_held_out_by_their_words_and_the_seed():
    texts = [f"sentence number {n}" for n in range(10_000)]
    parts = [Parts(3, 0.05, 0.25).of(text) for text in texts]
    assert 400 < len(texts) - parts.count("train") < 600
    assert 80 < parts.count("dev") < 170
    assert [Parts(3, 0.05, 0.25).of(text.upper() + " !") for text in texts] == parts
    assert [Parts(4, 0.05, 0.25).of(text) for text in texts] != parts
    larger = [Parts(3, 0.2, 0.25).of(text) for text in texts]
    assert all(big == small for big, small in zip(larger, parts, strict=True) if small != "train")


def test_dev_test_and_training_share_no_text_in_any_epoch(tmp_path):
    hub = FakeHub.of(120)
    divided, pinned, _ = held(hub, tmp_path)
    assert len(divided.test) >= 20
    assert divided.dev
    assert all(row.audio.exists() and row.sha256 for row in divided.dev + divided.test)
    texts = {name: {plain(row.text) for row in getattr(divided, name)} for name in ("dev", "test")}
    training = rows_of(hub, pinned)
    epochs = [[plain(row.text) for row in training.epoch(number)] for number in range(3)]
    for heard in epochs:
        assert not set(heard) & (texts["dev"] | texts["test"])
    assert not texts["dev"] & texts["test"]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) + len(divided.dev) + len(divided.test) == 120


def test_held_out_sound_with_another_text_is_not_learned(tmp_path):
    hub = FakeHub.of(120)
    divided, _, _ = held(hub, tmp_path)
    text = divided.test[0].text
    (sound,) = [sound for sound, said in hub.rows if said == text]
    hub.rows.append((sound, "nobody has said this"))
    _, pinned, _ = held(hub, tmp_path)
    assert pinned.parts.of("nobody has said this") == "train"
    assert "nobody has said this" not in [row.text for row in rows_of(hub, pinned).epoch(0)]


def test_reading_for_dev_and_test_ends_when_they_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "BLOCK", 10)
    hub = FakeHub.of(300)
    divided, pinned, _ = held(hub, tmp_path, eval_count=3)
    assert (len(divided.dev), len(divided.test)) == (3, 3)
    assert hub.given < 299
    assert pinned.parts.share == held_out.SHARES[0]
    assert len(pinned.sample) == 10


def test_reading_for_dev_and_test_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "MOST_ROWS", 50)
    hub = FakeHub([(encoded(spoken("low")), "one text for all")] * 100)
    assert Parts(0, held_out.SHARES[0], 0.25).of("one text for all") == "train"
    with pytest.raises(DataError, match="too few texts to test on in its first 50 rows"):
        held(hub, tmp_path)
    assert hub.given == 50


def test_a_dataset_whose_rows_are_all_bad_is_given_up(tmp_path):
    with pytest.raises(DataError, match="The first 100 rows are all refused"):
        held(FakeHub([(b"mute", text) for text in every_text(150)]), tmp_path)


def test_what_was_held_out_is_found_again_and_not_doubled(tmp_path, home):
    hub = FakeHub.of(120)
    first, _, _ = held(hub, tmp_path)
    again, _, _ = held(hub, tmp_path)
    assert [row.audio for row in first.test] == [row.audio for row in again.test]
    (corpus,) = (home / "datasets").iterdir()
    assert len(list((corpus / "audio").iterdir())) == len(first.test) + len(first.dev)


def test_what_a_run_knows_of_its_stream_is_kept(tmp_path):
    _, pinned, _ = held(FakeHub.of(120), tmp_path)
    assert Pinned.load(tmp_path) == pinned
    (tmp_path / "stream.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        Pinned.load(tmp_path)


def test_the_commit_of_the_beginning_is_read(tmp_path):
    hub = FakeHub.of(120)
    _, pinned, _ = held(hub, tmp_path, dataset_revision="main")
    next(rows_of(hub, pinned).epoch(0))
    assert [spec.revision for spec in hub.asked] == ["main", hub.revision, hub.revision]
    hub.revision = "b" * 40
    with pytest.raises(StreamError, match="has been changed on the Hub since this run began"):
        next(rows_of(hub, pinned, dataset_revision=CONVERTED).epoch(0))
    assert hub.asked[-1].revision == CONVERTED


def test_a_connection_that_breaks_is_opened_again_at_the_same_row(tmp_path):
    hub = FakeHub.of(120)
    _, pinned, _ = held(hub, tmp_path)
    whole = [row.line for row in rows_of(hub, pinned).epoch(0)]
    hub.broken = {len(hub.asked): 30, len(hub.asked) + 1: 30, len(hub.asked) + 2: 70}
    assert [row.line for row in rows_of(hub, pinned).epoch(0)] == whole


def test_a_connection_that_stays_broken_is_an_error_after_some_attempts(tmp_path):
    hub = FakeHub.of(120)
    _, pinned, _ = held(hub, tmp_path)
    before = len(hub.asked)
    hub.broken = dict.fromkeys(range(before, before + 9), 5)
    with pytest.raises(StreamError, match="503"):
        list(rows_of(hub, pinned).epoch(0))
    assert len(hub.asked) - before == 1 + len(stream.PAUSES)


def test_bad_rows_are_refused_and_good_ones_go_on(tmp_path):
    hub = FakeHub.of(120)
    _, pinned, _ = held(hub, tmp_path)
    good = encoded(spoken("low"))
    bad = [(None, "no audio"), (b"no sound at all", "low low"), (good, "far too long " * 20), (good, "a\ufffd")]
    hub.rows += [(sound, text) for sound, text in bad]
    hub.rows.append((encoded(np.tile(spoken("low"), 30)), "long"))
    refused = []
    all_teach = dataclasses.replace(pinned, parts=Parts(0, 0.0, 0.5), held=frozenset())
    texts = [row.text for row in rows_of(hub, all_teach, longest=8.0, refused=refused.append).epoch(0)]
    assert sorted(texts) == sorted(every_text(120))
    why = sorted(problem.what.partition(" ")[2].partition(" ")[2] for problem in refused)
    assert len(why) == len(bad) + 1
    assert "lasts 9 s; memory was planned for 8 s." in why
    assert "holds no audio." in why


def test_a_stream_without_a_row_to_learn_from_ends(tmp_path):
    hub = FakeHub.of(120)
    _, pinned, _ = held(hub, tmp_path)
    nothing = dataclasses.replace(pinned, parts=Parts(0, 1.0, 0.5))
    with pytest.raises(StreamError, match="has no row to learn from"):
        next(rows_of(hub, nothing).epoch(0))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_length_is_read_without_decoding_and_is_what_is_heard(kind, monkeypatch):
    sound = encoded(spoken("low mid high"), kind)
    with monkeypatch.context() as patched:
        patched.setattr("voxtral_finetune.data.hub.decode_bytes", None)
        row = as_row(Take(1, sound, "low mid high", "EN", None), None, "source")
    assert row.seconds == pytest.approx(0.9, abs=0.0005)
    assert row.language == "en"
    assert len(hear(row)) == pytest.approx(0.9 * 16_000, abs=8)


@pytest.mark.parametrize(("wave", "what"), [(np.zeros(16_000), "silent"), (spoken("low")[:800], "less than any word")])
def test_a_row_without_speech_is_found_when_it_is_heard(wave, what):
    row = as_row(Take(7, encoded(wave), "low", None, None), None, "source")
    with pytest.raises(stream.DamagedError, match=what):
        hear(row)


def test_a_text_that_no_window_could_take_is_refused():
    sound = encoded(np.tile(spoken("low"), 400))
    assert isinstance(as_row(Take(1, sound, "é" * 2100, None, None), None, "source"), Problem)


def test_no_more_than_a_block_is_held_whatever_its_rows_weigh(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 8)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 100_000)
    light = as_row(Take(1, encoded(spoken("low")), "low", None, None), None, "source")
    heavy = as_row(Take(2, encoded(np.tile(spoken("low"), 5)), "low", None, None), None, "source")
    taken = 0

    def rows():
        nonlocal taken
        for row in itertools.chain(itertools.repeat(light, 10), itertools.repeat(heavy, 10)):
            taken += 1
            yield row

    sizes = []
    for block in blocks(rows()):
        sizes.append(len(block))
        assert taken == sum(sizes)
    assert sizes[0] == 8
    assert max(sizes[2:]) <= 3
    assert sum(sizes) == 20

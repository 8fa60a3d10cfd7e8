import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile

from tests.unit.data.test_audio import write_with_av
from voxtral_finetune.data import audio, segments, speech
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.segments import import_recording, segment
from voxtral_finetune.data.speech import FRAMES_PER_SECOND, Activity, activity, blocks, cut, waves
from voxtral_finetune.errors import DataError

RATE = 16_000


def spoken(*parts):
    """An Activity of (seconds, whether somebody speaks) parts."""
    flags = np.concatenate([np.full(round(seconds * FRAMES_PER_SECOND), talks) for seconds, talks in parts])
    return Activity(flags.astype(np.float32), flags.astype(np.float32))


def sentences(*lengths, pause=0.5):
    return spoken((1, False), *(part for length in lengths for part in ((length, True), (pause, False))))


def tones(*lengths, pause=0.5, rate=RATE):
    """A recording in which each "sentence" is a tone of its own, the first after a second."""
    parts = [np.zeros(rate)]
    for number, length in enumerate(lengths):
        time = np.arange(int(length * rate)) / rate
        parts += [0.3 * np.sin(2 * np.pi * 200 * (number + 1) * time), np.zeros(int(pause * rate))]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture
def loud_is_speech(monkeypatch):
    """Takes all that is loud for speech, since tones are none."""

    def judged(recording):
        power = np.concatenate([np.square(frames).mean(axis=1) for frames in speech._frames(recording)])
        return Activity((power > 1e-4).astype(np.float32), power)

    monkeypatch.setattr(segments, "activity", judged)


def test_pieces_fit_hold_all_speech_and_end_in_silence():
    heard = sentences(4, 5, 3, 6, 2, 7, 1)
    pieces = cut(heard, 10)
    inside = np.zeros(len(heard.speech), bool)
    for piece in pieces:
        inside[round(piece.start * FRAMES_PER_SECOND) : round(piece.end * FRAMES_PER_SECOND)] = True
        assert piece.end - piece.start <= 10
        assert not piece.in_speech
        assert heard.speech[round(piece.start * FRAMES_PER_SECOND)] == 0
        assert heard.speech[round(piece.end * FRAMES_PER_SECOND) - 1] == 0
    assert inside[heard.speech > 0].all()
    assert all(one.end <= other.start for one, other in pairwise(pieces))


def test_the_longest_pause_is_preferred_and_a_break_always_ends_a_piece():
    heard = spoken((4, True), (0.3, False), (2, True), (0.9, False), (2, True), (0.3, False), (4, True))
    assert [round(piece.end) for piece in cut(heard, 10)] == [6, 13]
    apart = spoken((2, True), (5, False), (2, True))
    assert len(cut(apart, 30)) == 2


def test_speech_without_a_pause_is_cut_at_its_quietest_place_and_marked():
    heard = spoken((12, True))
    heard.power[round(8.5 * FRAMES_PER_SECOND)] = 0.1
    first, second = cut(heard, 10)
    assert first.in_speech and second.in_speech
    assert first.end == second.start == pytest.approx(8.5, abs=0.05)


def test_clicks_are_no_speech_and_plosives_no_pauses():
    assert cut(spoken((1, False), (0.064, True), (1, False)), 10) == []
    heard = spoken((3, True), (0.064, False), (3, True), (0.5, False), (3, True))
    assert [round(piece.end) for piece in cut(heard, 8)] == [6, 10]


def test_silence_is_no_piece_and_a_window_that_is_too_short_is_refused():
    assert cut(spoken((5, False)), 10) == []
    assert cut(activity([]), 10) == []
    with pytest.raises(DataError, match="too short"):
        cut(spoken((5, True)), 0.3)


def test_the_network_hears_silence_and_tones_as_no_speech_and_carries_its_state_over_blocks():
    wave = tones(2, 3)
    whole = activity([wave])
    assert whole.speech.max() < 0.5
    in_blocks = activity(np.array_split(wave, 7))
    np.testing.assert_allclose(in_blocks.speech, whole.speech, atol=1e-4)
    assert len(whole.speech) == -(-len(wave) // speech.FRAME)


def test_pieces_are_the_same_samples_however_the_recording_is_blocked():
    wave = tones(1, 2, 1)
    pieces = [speech.Piece(0.5, 1.5), speech.Piece(1.5, 1.6), speech.Piece(4.0, 5.0)]
    for count in (1, 3, 400):
        for piece, part in zip(pieces, waves(np.array_split(wave, count), pieces), strict=True):
            np.testing.assert_array_equal(part, wave[round(piece.start * RATE) : round(piece.end * RATE)])


@pytest.mark.parametrize("name", ["s.wav", "s.flac", "s.ogg"])
def test_blocks_are_what_decoding_at_once_gives(tmp_path, name):
    left = tones(9, 13, rate=44_100)
    soundfile.write(tmp_path / name, np.stack([left, 0.5 * left], axis=1), 44_100)
    np.testing.assert_allclose(np.concatenate(list(blocks(tmp_path / name))), audio.load(tmp_path / name), atol=1e-4)


def test_what_libsndfile_does_not_know_comes_in_blocks_too(tmp_path):
    write_with_av(tmp_path / "a.m4a", tones(9, 13, rate=48_000), 48_000, "aac", "mp4")
    parts = list(blocks(tmp_path / "a.m4a"))
    assert len(parts) > 2
    np.testing.assert_allclose(np.concatenate(parts), audio.load(tmp_path / "a.m4a"), atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"hello", b"ffconcat version 1.0\nfile secret.wav\n", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_recording_is_named(tmp_path, content):
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.wav"):
        list(blocks(tmp_path / "x.wav"))


def test_missing_empty_and_not_a_number_are_named(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        list(blocks(tmp_path / "x.wav"))
    wave = tones(1)
    soundfile.write(tmp_path / "e.wav", wave[:0], RATE)
    with pytest.raises(DataError, match=r"e\.wav"):
        list(blocks(tmp_path / "e.wav"))
    wave[9] = np.nan
    soundfile.write(tmp_path / "n.wav", wave, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="not numbers"):
        list(blocks(tmp_path / "n.wav"))


def drafter(*drafts):
    left = list(drafts)
    return lambda waves: [left.pop(0) for _ in waves]


@pytest.fixture
def recording(tmp_path):
    soundfile.write(tmp_path / "talk.wav", tones(6, 7, 8), RATE)
    return tmp_path / "talk.wav"


def test_pieces_that_fit_are_accepted_and_the_others_aside(recording, loud_is_speech):
    found = segment(recording, "One two. Three four. Five six.", drafter("one two", "noise", "five six"), longest=10)
    assert [one.text for one in found.accepted] == ["One two.", "Five six."]
    assert [one.draft for one in found.aside] == ["noise"]
    assert found.accepted[0].piece.start == pytest.approx(0.85, abs=0.05)


def test_without_speech_there_is_nothing_to_import(tmp_path):
    soundfile.write(tmp_path / "s.wav", np.zeros(RATE, np.float32), RATE)
    with pytest.raises(DataError, match="Nobody speaks"):
        segment(tmp_path / "s.wav", None, drafter())


def test_an_import_lists_what_is_good_and_what_is_not_and_may_be_repeated(tmp_path, recording, loud_is_speech):
    corpus = Corpus.create(tmp_path / "corpus")
    transcript = "One two. Three four. Five six."
    for known in (0, 3):
        draft = drafter("one two", "no", "five six")
        done = import_recording(corpus, recording, transcript, draft, longest=10, language="en", licence="CC0-1.0")
        assert done.known == known
        rows = corpus.survey().utterances
        assert [(row.text, row.language, row.source) for row in rows] == [
            ("One two.", "en", "talk.wav"),
            ("Five six.", "en", "talk.wav"),
        ]
        assert [row.seconds for row in rows] == pytest.approx([6.3, 8.3], abs=0.1)
        (aside,) = map(json.loads, (corpus.folder / "aside.jsonl").read_text().splitlines())
        assert aside["recording_start"] == pytest.approx(7.35, abs=0.05)
        assert (aside["text"], aside["draft"], aside["why"]) == ("Three four.", "no", segments.NO_FIT)
    assert len(list((corpus.folder / "audio").iterdir())) == 2
    assert len(list((corpus.folder / "aside").iterdir())) == 1


def test_an_import_that_broke_off_goes_on(tmp_path, recording, loud_is_speech):
    corpus = Corpus.create(tmp_path / "corpus")
    text = ("one two", "three four", "five six")
    import_recording(corpus, recording, " ".join(text), drafter(*text), longest=10)
    lines = corpus.manifest.read_text().splitlines()
    corpus.manifest.write_text(lines[0] + "\n" + lines[1][:20])
    import_recording(corpus, recording, " ".join(text), drafter(*text), longest=10)
    assert [row.text for row in corpus.survey().utterances] == list(text)


def test_drafts_without_a_transcript_wait_aside_and_can_be_read_as_a_corpus(tmp_path, recording, loud_is_speech):
    corpus = Corpus.create(tmp_path / "corpus")
    done = import_recording(corpus, recording, None, drafter("one two", "three four", "five six"), longest=10)
    assert not done.segmented.accepted
    assert not corpus.rows()[0]
    survey = Corpus(corpus.folder / "aside.jsonl").survey()
    assert [row.text for row in survey.utterances] == ["one two", "three four", "five six"]
    assert not survey.refused

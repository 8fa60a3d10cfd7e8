"""Recordings as pieces: all that sounds is in one, cuts are in silence, and length costs no memory."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from voxtral_finetune.data import audio, speech
from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.pieces import Recording, doubts, parts

WINDOW = 4 * SAMPLE_RATE


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(SAMPLE_RATE * seconds)).astype(np.float32)


@pytest.mark.parametrize("samples", [1, WINDOW - 1, WINDOW])
def test_what_fits_a_window_is_one_piece_as_it_is(samples: int, tmp_path: Path) -> None:
    wave = noise(samples / SAMPLE_RATE)
    (part,) = parts(Recording(wave), WINDOW)
    assert part.wave is wave or np.array_equal(part.wave, wave)
    assert part.start == 0 and part.end == samples / SAMPLE_RATE
    audio.write(tmp_path / "a.wav", wave, SAMPLE_RATE)
    (part,) = parts(Recording(tmp_path / "a.wav"), WINDOW)
    assert np.allclose(part.wave, wave, atol=1e-4)


def test_no_samples_and_long_silence_are_no_pieces() -> None:
    assert list(parts(Recording(np.zeros(0, np.float32)), WINDOW)) == []
    assert list(parts(Recording(np.zeros(10 * WINDOW, np.float32)), WINDOW)) == []


def test_sound_that_the_judge_does_not_take_for_speech_is_heard_too() -> None:
    """An unusual voice must not be dropped: here noise, which Silero gives a probability near 0."""
    wave = np.concatenate([noise(9), np.zeros(8 * SAMPLE_RATE, np.float32), noise(2, 1)])
    assert speech.activity([wave]).speech.max() < speech.SPEAKS
    found = list(parts(Recording(wave), WINDOW))
    covered = np.zeros(len(wave), bool)
    for part in found:
        assert len(part.wave) <= WINDOW
        start = round(part.start * SAMPLE_RATE)
        assert np.array_equal(part.wave, wave[start : start + len(part.wave)])
        assert not covered[start : start + len(part.wave)].any()
        covered[start : start + len(part.wave)] = True
    sounding = np.abs(wave) > 0
    assert covered[sounding].mean() > 0.99
    assert covered[~sounding].mean() < 0.2


def test_a_part_of_a_file_is_read_from_it(tmp_path: Path) -> None:
    wave = noise(6)
    audio.write(tmp_path / "a.wav", wave, SAMPLE_RATE)
    (part,) = parts(Recording(tmp_path / "a.wav", span=(1.0, 2.0), seconds=2.0), WINDOW)
    assert np.allclose(part.wave, wave[SAMPLE_RATE : 3 * SAMPLE_RATE], atol=1e-4)


def test_files_that_cannot_be_read_or_lie_about_their_length_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        list(parts(Recording(tmp_path / "no.wav"), WINDOW))
    (tmp_path / "text.wav").write_text("hello")
    with pytest.raises(DataError, match="not audio"):
        list(parts(Recording(tmp_path / "text.wav"), WINDOW))
    audio.write(tmp_path / "cut.wav", noise(3), SAMPLE_RATE)
    assert doubts(tmp_path / "cut.wav") == []
    whole = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (finding,) = doubts(tmp_path / "cut.wav")
    assert "Its header promises 3.0 s" in finding.what


def spoken_for(
    speech_data: Path, seconds: float, speaker: str, pauses: Sequence[float] = (0.08, 0.2, 0.7)
) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Digits of one speaker in a row, with pauses of these seconds: (samples, (word, start, end) each)."""
    manifest = speech_data / "fsdd" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    takes = [row for row in rows if row["speaker"] == speaker]
    random = np.random.default_rng(0)
    waves: list[np.ndarray] = []
    words: list[tuple[str, float, float]] = []
    length = 0
    while length < seconds * SAMPLE_RATE:
        row = takes[random.integers(len(takes))]
        wave = audio.load(manifest.parent / row["audio_path"])
        words.append((row["text"], length / SAMPLE_RATE, (length + len(wave)) / SAMPLE_RATE))
        pause = np.zeros(int(random.choice(pauses) * SAMPLE_RATE), np.float32)
        waves += [wave, pause]
        length += len(wave) + len(pause)
    return np.concatenate(waves), words


def test_ten_minutes_are_read_in_little_memory_and_no_word_is_cut(speech_data: Path, tmp_path: Path) -> None:
    wave, words = spoken_for(speech_data, 600, "fsdd_jackson")
    path = tmp_path / "digits.flac"
    audio.write(path, wave, SAMPLE_RATE)
    size = wave.nbytes
    list(parts(Recording(noise(5)), WINDOW))  # what is loaded once is no part of it
    tracemalloc.start()
    spans = [(part.start, part.end, len(part.wave)) for part in parts(Recording(path), WINDOW)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size / 4, f"{peak / 1e6:.1f} MB for a recording of {size / 1e6:.1f} MB"
    assert all(length <= WINDOW for *_, length in spans)
    lost = [
        word
        for word, start, end in words
        if not any(first <= start + 0.1 and last >= end - 0.1 for first, last, _ in spans)
    ]
    assert len(lost) <= len(words) // 100, f"{len(lost)} of {len(words)} words are not inside a piece"
    power = np.square(wave).sum()
    for start, end, _ in spans:
        wave[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] = 0
    assert np.square(wave).sum() < 1e-6 * power, "nothing that sounds is left out"


def test_in_noise_cuts_are_where_nobody_speaks(speech_data: Path) -> None:
    wave, words = spoken_for(speech_data, 120, "fsdd_george")
    wave = wave + 0.1 * wave.std() * np.random.default_rng(1).standard_normal(len(wave)).astype(np.float32)
    cuts = [part.end for part in parts(Recording(wave), WINDOW)][:-1]
    inside = [(word, start, end) for word, start, end in words if any(start + 0.1 < cut < end - 0.1 for cut in cuts)]
    assert len(cuts) > 30 and len(inside) <= 1, inside

"""Strings of spoken digits made from single words: what the mini Voxtral learns and is measured on.

A take is one recorded or synthesised word. A string joins takes of one speaker with short gaps, and is then changed
the way rooms, microphones and moods change speech. Everything is a pure function of the random generator given.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave

LANGUAGE = "en"
MAX_WORDS = 5
WINDOW_SAMPLES = 4 * SAMPLE_RATE
HUMAN_SHARE = 0.6
SILENT_SHARE = 0.03
HELD_OUT_TAKES = range(5)
"""Takes 0–4 of every human speaker, the upstream test split, are never learned."""


@dataclass(frozen=True)
class Take:
    """One spoken word: mono 16 kHz samples (n,), who said it, and the hash of the recording it came from."""

    wave: Wave
    word: str
    speaker: str
    number: int
    sha256: str


def load_takes(folder: Path) -> list[Take]:
    """Every row of `folder/manifest.jsonl`; the take's number is the end of its file name (`8_george_0.flac`)."""
    takes = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        path = folder / row["audio_path"]
        wave, rate = audio.read(path)
        number = int(path.stem.rsplit("_", 1)[1])
        sha256 = audio.content_hash(wave, rate)
        takes.append(Take(audio.resample(wave, rate), row["text"], row["speaker"], number, sha256))
    return takes


def by_speaker(takes: list[Take]) -> list[list[Take]]:
    """The takes of each speaker, speakers in alphabetical order."""
    names = sorted({take.speaker for take in takes})
    return [[take for take in takes if take.speaker == name] for name in names]


def join(takes: list[Take], random: np.random.Generator, gap: tuple[float, float] = (0.05, 0.2)) -> tuple[Wave, str]:
    """Joins takes with gaps of `gap` seconds into (samples, text), both as long as they come."""
    parts = []
    for take in takes:
        parts += [np.zeros(int(random.uniform(*gap) * SAMPLE_RATE), np.float32), take.wave]
    parts.append(np.zeros(int(gap[0] * SAMPLE_RATE), np.float32))
    return np.concatenate(parts), " ".join(take.word for take in takes)


def held_out_strings(takes: list[Take], count: int, seed: int) -> list[tuple[Wave, str]]:
    """`count` unchanged strings of one to five words that fit the window, speakers in turn."""
    random = np.random.default_rng(seed)
    speakers = by_speaker(takes)
    strings: list[tuple[Wave, str]] = []
    while len(strings) < count:
        pool = speakers[len(strings) % len(speakers)]
        words = int(random.integers(1, MAX_WORDS + 1))
        wave, text = join([pool[i] for i in random.integers(len(pool), size=words)], random)
        if len(wave) <= WINDOW_SAMPLES:
            strings.append((wave, text))
    return strings


def easy_strings(human: list[Take], seed: int) -> list[tuple[Wave, str]]:
    """Every human take twice, unchanged and alone: what learning starts from."""
    random = np.random.default_rng(seed)
    return [join([take], random) for take in human * 2]


def training_strings(
    human: list[Take], synthetic: list[Take], count: int, seed: int
) -> tuple[list[tuple[Wave, str]], list[bool]]:
    """`count` changed strings of one to five words, and which of them are of people or without speech.

    SILENT_SHARE of them hold no speech and an empty text.
    """
    random = np.random.default_rng(seed)
    people, voices = by_speaker(human), by_speaker(synthetic)
    strings: list[tuple[Wave, str]] = []
    real: list[bool] = []
    while len(strings) < count:
        if random.random() < SILENT_SHARE:
            strings.append((no_speech(random), ""))
            real.append(True)
            continue
        person = random.random() < HUMAN_SHARE
        speakers = people if person else voices
        pool = speakers[random.integers(len(speakers))]
        words = int(random.integers(1, MAX_WORDS + 1))
        chosen = [pool[i] for i in random.integers(len(pool), size=words)]
        wave, text = changed_string(chosen, random)
        if len(wave) <= WINDOW_SAMPLES:
            strings.append((wave if person else band_limited(wave, random), text))
            real.append(person)
    return strings, real


def changed_string(takes: list[Take], random: np.random.Generator) -> tuple[Wave, str]:
    """One string as another moment would have had it: tempo and pitch, loudness, distance, tone and noise."""
    tempo = random.uniform(0.88, 1.12)
    words = [
        Take(_faster(t.wave, tempo * random.uniform(0.95, 1.05)) * random.uniform(0.6, 1.2), t.word, "", 0, "")
        for t in takes
    ]
    wave, text = join(words, random, gap=(0.0, random.uniform(0.05, 0.3)))
    lead = np.zeros(int(random.uniform(0, 0.5) * SAMPLE_RATE), np.float32)
    wave = np.concatenate([lead, wave])
    if random.random() < 0.5:
        wave = _tilted(wave, random.uniform(-0.6, 0.6))
    wave = wave * 10 ** random.uniform(-0.8, 0.2)
    return (wave + _noise(len(wave), random, relative_to=float(np.abs(wave).max()))).astype(np.float32), text


def band_limited(wave: Wave, random: np.random.Generator) -> Wave:
    """Half of the synthetic strings lose what lies above 4 kHz, as the human ones (8 kHz telephone speech) have."""
    if random.random() < 0.5:
        return wave
    return np.asarray(soxr.resample(soxr.resample(wave, SAMPLE_RATE, 8000), 8000, SAMPLE_RATE), dtype=np.float32)


def no_speech(random: np.random.Generator) -> Wave:
    """Digital silence, hiss or hum of any loudness and of 0.2 to 4 s."""
    length = int(random.uniform(0.2, 4.0) * SAMPLE_RATE)
    kind = random.integers(4)
    if kind == 0:
        return np.zeros(length, np.float32)
    wave = random.standard_normal(length)
    if kind == 2:
        wave = _tilted(_tilted(wave, 0.9), 0.9)
    if kind == 3:
        hertz = random.choice([50, 60, 100, 120, 440])
        wave = 0.05 * wave + np.sin(2 * np.pi * hertz * np.arange(length) / SAMPLE_RATE)
    return (wave / np.abs(wave).max() * 10 ** random.uniform(-4, -0.3)).astype(np.float32)


def spec_augment(features: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blanks up to 15 mel bins and twice up to 0.2 s of each example; features (B, mel, frames), a changed copy."""
    features = features.copy()
    _, bins, frames = features.shape
    for one in features:
        blank = one.mean()
        width = random.integers(16)
        start = random.integers(bins - width)
        one[start : start + width] = blank
        for _ in range(2):
            width = random.integers(21)
            start = random.integers(frames - width)
            one[:, start : start + width] = blank
    return features


def _faster(wave: Wave, factor: float) -> Wave:
    """Plays samples `factor` times as fast, so that pitch and formants move with the tempo."""
    return np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave).astype(np.float32)


def _tilted(wave: np.ndarray, amount: float) -> np.ndarray:
    """A first-order tone control: positive amounts darken, negative ones brighten."""
    return wave + amount * np.concatenate([[0], wave[:-1]])


def _noise(length: int, random: np.random.Generator, relative_to: float) -> np.ndarray:
    """White or dark noise, 20 to 80 dB under the loudest sample."""
    noise = random.standard_normal(length)
    if random.random() < 0.5:
        noise = _tilted(noise, 0.9) / 1.35
    return noise * relative_to * 10 ** random.uniform(-4, -1.7)

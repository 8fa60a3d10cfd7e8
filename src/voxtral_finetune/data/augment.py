"""Speech changed a little each time it is heard, so that little speech teaches more: speed, noise, hidden parts.

Nothing here has a state: what is drawn comes from a seed or from the generator that is handed in.

Speed is that of a tape, pitch moves too (Ko et al. 2015, "Audio augmentation for speech recognition"). Masks are
SpecAugment's (Park et al. 2019, two of each kind as in its "LibriSpeech double", shorter in time and without warping).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.headers import is_audio
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.errors import DataError

if TYPE_CHECKING:
    import torch

SLOWEST, FASTEST = 0.9, 1.1

LEAST_SNR, MOST_SNR = 5.0, 20.0
"""How much louder than the noise speech is, in dB: from a busy street to a quiet fan."""

BLOCK = 320
"""Samples over which loudness is judged: 20 ms."""

PAUSE = 1e-3
"""Power, relative to the loudest block, under which a block is a pause: -30 dB."""

UNSEEKABLE_SECONDS = 60.0
"""Of a noise that only PyAV reads no more than its beginning is used: it would be decoded from there each time."""

MASKS = 2
BINS_SHARE = 27 / 128
"""The widest mask in frequency, as a share of the mel bins: a fifth. Park et al. hide up to 27 of 80, a third, in
recordings of 12 s; shorter ones say less twice."""
FRAMES_SHARE, MOST_FRAMES = 0.05, 50
"""The longest mask in time: a twentieth of the speech and never over half a second, under most words."""


def speed_factor(seed: int, epoch: int, key: str) -> float:
    """How many times as fast an utterance is heard in an epoch: in [0.9, 1.1), the same in every process."""
    digest = hashlib.sha256(f"speed:{seed}:{epoch}:{key}".encode()).digest()
    return SLOWEST + (FASTEST - SLOWEST) * int.from_bytes(digest[:8], "big") / 2**64


def length_after(samples: int, factor: float) -> int:
    """How many samples `change_speed` makes of that many."""
    return math.floor(samples / factor + 0.5)


def change_speed(wave: Wave, factor: float) -> Wave:
    """Mono samples (n,) heard `factor` times as fast and as high: (length_after(n, factor),)."""
    if factor == 1.0:
        return wave
    made: Wave = soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ")
    length = length_after(len(wave), factor)
    # soxr rounds as `length_after` does; a sample more or less in another version of it must not move a plan.
    return made if len(made) == length else np.pad(made[:length], (0, max(0, length - len(made))))


class NoiseBank:
    """Recordings of noise, of which a part is put under speech; nothing but their names and lengths is kept."""

    def __init__(self, places: Path | Iterable[Path]) -> None:
        """`places` is a folder, searched with all that is in it, or a list of files. What is no audio is passed over.

        Raises DataError where nothing is left.
        """
        folder = places if isinstance(places, Path) else None
        files = sorted(folder.rglob("*")) if folder else list(places)  # type: ignore[arg-type]
        lengths = ((path, _seconds(path)) for path in files if path.is_file())
        self.files: list[tuple[Path, float]] = [(path, seconds) for path, seconds in lengths if seconds]
        if not self.files:
            where = shown(folder) if folder else "The list of noise recordings"
            raise DataError(f"{where} holds no audio.", "Name a folder with recordings of noise.")

    def mix(self, wave: Wave, random: np.random.Generator) -> Wave:
        """Mono 16 kHz speech (n,) with noise under it, 5 to 20 dB quieter than where it speaks; peaks stay within ±1.

        Silence, and speech to which a silent part was drawn, stays as it is. Raises DataError where a recording that
        was there at the beginning cannot be read any more.
        """
        noise = self._part(len(wave), random)
        snr = random.uniform(LEAST_SNR, MOST_SNR)
        speech_power, noise_power = _speech_power(wave), _power(noise)
        if not speech_power or not noise_power:
            return wave
        gain = np.float32(math.sqrt(speech_power / noise_power / 10 ** (snr / 10)))
        mixed = wave + gain * noise
        peak = np.abs(mixed).max()
        return mixed / peak if peak > 1 else mixed

    def _part(self, samples: int, random: np.random.Generator) -> Wave:
        """That many samples from anywhere in one of the recordings; a short one is repeated."""
        path, seconds = self.files[random.integers(len(self.files))]
        # A little more than needed: a part that is brought to 16 kHz may come out a sample short.
        wanted = samples / SAMPLE_RATE + 0.01
        place = random.uniform()
        if seconds > wanted:
            return np.resize(audio.load(path, place * (seconds - wanted), wanted), samples)
        whole = audio.load(path, 0.0, seconds)
        return np.resize(np.roll(whole, -int(place * len(whole))), samples)


def spec_augment(mel: torch.Tensor, frames: int, random: np.random.Generator) -> torch.Tensor:
    """Hides two bands and two moments of log-mel features (W, M, F) of which `frames` in all are sound; a new tensor.

    What is hidden becomes the mean of what sounds. The floor would be the other choice; but it is what follows the end
    of speech, and words over it would teach the model to hear words in silence. What lies behind `frames` stays.
    """
    windows, bins, length = mel.shape
    frames = min(frames, windows * length)
    row = mel.transpose(0, 1).reshape(bins, -1).clone()
    if frames:
        hidden = row[:, :frames].mean().item()
        for _ in range(MASKS):
            start, end = _span(bins, int(bins * BINS_SHARE), random)
            row[start:end, :frames] = hidden
            start, end = _span(frames, min(int(frames * FRAMES_SHARE), MOST_FRAMES), random)
            row[:, start:end] = hidden
    return row.reshape(bins, windows, length).transpose(0, 1)


def _span(size: int, widest: int, random: np.random.Generator) -> tuple[int, int]:
    """(start, end) of a mask of 0 to `widest`, anywhere in `size`."""
    width = int(random.integers(widest + 1))
    start = int(random.integers(size - width + 1))
    return start, start + width


def _seconds(path: Path) -> float:
    """How much of a recording can be used, 0 where it cannot be read."""
    try:
        with open_regular(path) as file:
            if not is_audio(file.read(64)):
                return 0.0
        try:
            seconds = float(soundfile.info(path).duration)
        except soundfile.LibsndfileError:
            seconds = 0.0
        if not seconds:
            return audio.decode(path, 0.0, UNSEEKABLE_SECONDS).seconds
        audio.decode(path, max(0.0, seconds - 0.1), 0.1)  # its end: a file that broke off promises more than it has
    except DataError:
        return 0.0
    return seconds


def _power(wave: Wave) -> float:
    return float(np.dot(wave, wave)) / max(1, len(wave))


def _speech_power(wave: Wave) -> float:
    """The mean power without the pauses, 0 for silence."""
    blocks = wave[: len(wave) // BLOCK * BLOCK].reshape(-1, BLOCK)
    if not len(blocks):
        return _power(wave)
    powers = np.einsum("ij,ij->i", blocks, blocks) / BLOCK
    return float(powers[powers >= PAUSE * powers.max()].mean())

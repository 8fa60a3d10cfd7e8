"""Decoding speech: any file in, mono float32 out, at 16 kHz where a model will hear it.

soundfile reads first (it is exact and refuses what is not audio); PyAV reads what libsndfile does not know
(MP4/M4A, WebM, Opus streams that start before zero), restricted to an allow-list of containers, because some
"audio" formats are playlists that make a decoder open other files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from voxtral_finetune.errors import DataError

Wave = NDArray[np.float32]
"""Mono samples of shape (n,), full scale at ±1."""

SAMPLE_RATE = 16_000
"""What Voxtral hears, in Hz (`WhisperFeatureExtractor`)."""

MAX_SECONDS = 4 * 3600.0
"""The longest recording that is decoded whole, so that a forged header cannot ask for all of the memory."""

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 16

AV_FORMATS = frozenset({"wav", "flac", "ogg", "mp3", "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "aac", "aiff"})
"""Containers that PyAV may open; playlists (HLS, ffconcat) are not among them."""


def read(path: Path) -> tuple[Wave, int]:
    """Decodes a file to (samples of shape (n,) in [-1, 1], native rate in Hz); channels are averaged.

    Raises DataError naming the file where it is missing, not audio, empty or beyond the limits above.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing.", "Record it again or remove its row.")
    try:
        wave, rate = _read_soundfile(path)
    except soundfile.LibsndfileError:
        wave, rate = _read_av(path)
    if not len(wave):
        raise DataError(f"{path} holds no sound.", "Record it again or remove its row.")
    if not np.isfinite(wave).all():
        raise DataError(f"{path} holds samples that are not numbers.", "Export it again or remove its row.")
    return wave, rate


def resample(wave: Wave, rate: int) -> Wave:
    """Brings mono samples from `rate` Hz to SAMPLE_RATE with soxr's high-quality filter."""
    if rate == SAMPLE_RATE:
        return wave
    return np.asarray(soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)


def load(path: Path) -> Wave:
    """Decodes a file to mono float32 samples at SAMPLE_RATE, shape (n,)."""
    return resample(*read(path))


def content_hash(wave: Wave, rate: int) -> str:
    """SHA-256 of what is heard: rate and 16-bit samples before resampling, whatever the file's name and tags."""
    return hashlib.sha256(rate.to_bytes(4, "little") + _pcm16(wave).tobytes()).hexdigest()


def write(path: Path, wave: Wave, rate: int) -> None:
    """Writes mono samples as 16-bit FLAC or WAV (by the file's ending), without tags."""
    soundfile.write(path, _pcm16(wave), rate, subtype="PCM_16")


def _pcm16(wave: Wave) -> NDArray[np.int16]:
    """16-bit samples; libsndfile's own rounding differs between WAV and FLAC."""
    return np.clip(np.round(wave * 32768.0), -32768, 32767).astype("<i2")


def _check_shape(path: Path, rate: int, channels: int, seconds: float) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(f"{path} says it has {rate} samples a second.", "Export it at 16 000 Hz.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(f"{path} has {channels} channels.", "Export it as mono.")
    if seconds > MAX_SECONDS:
        limit = f"{MAX_SECONDS / 3600:.0f} hours"
        raise DataError(f"{path} says it lasts {seconds / 3600:.1f} hours.", f"Cut it into parts under {limit}.")


def _read_soundfile(path: Path) -> tuple[Wave, int]:
    with soundfile.SoundFile(path) as file:
        _check_shape(path, file.samplerate, file.channels, file.frames / max(file.samplerate, 1))
        samples = file.read(dtype="float32", always_2d=True)
        return samples.mean(axis=1, dtype=np.float32), file.samplerate


def _read_av(path: Path) -> tuple[Wave, int]:
    import av  # only where soundfile cannot read: it loads all of FFmpeg

    try:
        with av.open(str(path), metadata_errors="ignore", options={"protocol_whitelist": "file"}) as container:
            if container.format.name not in AV_FORMATS or not container.streams.audio:
                raise _not_audio(path)
            stream = container.streams.audio[0]
            seconds = float(container.duration or 0) / av.time_base
            _check_shape(path, stream.rate, stream.channels, seconds)
            parts = [frame.to_ndarray() for frame in _mono_frames(path, container, stream)]
            return (np.concatenate(parts, axis=1)[0] if parts else np.zeros(0, np.float32)), stream.rate
    except (av.FFmpegError, ValueError) as error:
        raise _not_audio(path) from error


def _mono_frames(path, container, stream):  # type: ignore[no-untyped-def]  # PyAV's own types
    import av

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=stream.rate)
    heard = 0
    for frame in container.decode(stream):
        for mono in resampler.resample(frame):
            heard += mono.samples
            _check_shape(path, stream.rate, stream.channels, heard / stream.rate)
            yield mono
    yield from resampler.resample(None)


def _not_audio(path: Path) -> DataError:
    return DataError(f"{path} is not audio that can be read.", "Use WAV, FLAC, MP3, OGG, M4A or WebM.")

"""Decoding speech: any file in, mono float32 out, at 16 kHz where a model will hear it.

The first bytes decide what a file is, not its name. soundfile reads first (it is exact and refuses what is not audio);
PyAV reads what libsndfile does not know (MP4/M4A, WebM, Opus streams that start before zero), restricted to an
allow-list of containers and to the one opened file, because some "audio" formats are playlists that open other files.

Several channels become one as the average of those that carry signal: within 30 dB of the loudest. So speech in one
channel of two or six keeps its level, and two people on two channels are both heard. Where that average cancels (one
channel is the other with its sign turned), the loudest channel is taken instead and the file is noted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.headers import is_audio, is_pointer, wav_findings
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.errors import DataError

Wave = NDArray[np.float32]
"""Mono samples of shape (n,), full scale at ±1."""

SAMPLE_RATE = 16_000
"""What Voxtral hears, in Hz (`WhisperFeatureExtractor`)."""

MAX_SECONDS = 4 * 3600.0
"""The longest recording that is decoded whole, so that a forged header cannot ask for all of the memory."""

MAX_SAMPLES = 2**29
"""The most samples, of all channels together, that are decoded at once: 2 GB."""

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 16
CARRIES = 1e-3
"""Power, relative to the loudest channel, from which a channel carries signal: -30 dB."""

AV_FORMATS = "wav,flac,ogg,mp3,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,aiff"
"""Containers that PyAV may open; playlists (HLS, ffconcat) are not among them."""


@dataclass(frozen=True)
class Sound:
    """What a file, or a part of it, holds: mono samples at its own rate in Hz, and what was odd about reading it."""

    wave: Wave
    rate: int
    findings: tuple[Finding, ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate


def decode(path: Path, offset: float = 0.0, seconds: float | None = None) -> Sound:
    """Decodes a file, or its part of `seconds` (None: to the end) from `offset` seconds; a part may end early.

    Raises DataError naming the file where it is missing, not a regular file, not audio, empty, beyond the limits
    above, holds samples that are not numbers, or ends before `offset`.
    """
    with open_regular(path) as file:
        head = file.read(64)
        if not is_audio(head):
            raise _no_audio(path, head)
        findings = wav_findings(file)
        file.seek(0)
        samples, rate = _read(path, file, offset, seconds)
    if not len(samples) and offset:
        raise DataError(f"{shown(path)} ends before {offset:g} s.", "Correct the row's offset or remove it.")
    if not len(samples):
        raise DataError(f"{shown(path)} holds no sound.", "Record it again or remove its row.")
    flat = samples.ravel()  # one pass without a copy: what is not a number makes the sum none either
    if not np.isfinite(np.dot(flat, flat)) and not np.isfinite(flat).all():
        raise DataError(f"{shown(path)} holds samples that are not numbers.", "Export it again or remove its row.")
    wave, cancelled = downmix(samples)
    if cancelled:
        what = "Its channels cancel each other; the louder one is used."
        findings.append(Finding("channels", what, "Export it as mono."))
    return Sound(wave, rate, tuple(findings))


def read(path: Path) -> tuple[Wave, int]:
    """Decodes a whole file to (mono samples of shape (n,) in [-1, 1], native rate in Hz); raises as `decode`."""
    sound = decode(path)
    return sound.wave, sound.rate


def load(path: Path, offset: float = 0.0, seconds: float | None = None) -> Wave:
    """Decodes a file or a part of it, as `decode` does, to mono float32 samples at SAMPLE_RATE, shape (n,)."""
    sound = decode(path, offset, seconds)
    return resample(sound.wave, sound.rate)


def resample(wave: Wave, rate: int) -> Wave:
    """Brings mono samples from `rate` Hz to SAMPLE_RATE with soxr's high-quality filter."""
    if rate == SAMPLE_RATE:
        return wave
    return np.asarray(soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ"), dtype=np.float32)


def downmix(samples: NDArray[np.float32]) -> tuple[Wave, bool]:
    """Samples of shape (n, channels) to (mono, whether the average cancelled); the module's head says how."""
    if samples.shape[1] == 1:
        return samples[:, 0], False
    power = np.array([np.dot(channel, channel) for channel in samples.T]) / len(samples)
    loudest = int(power.argmax())
    carrying = power > CARRIES * power[loudest]
    carrying[loudest] = True
    mixed = samples[:, carrying].mean(axis=1, dtype=np.float32)
    # The average of n different signals has about 1/n of one's power; a tenth of that is no coincidence.
    if np.dot(mixed, mixed) / len(mixed) < power[loudest] / (10 * carrying.sum()):
        return np.ascontiguousarray(samples[:, loudest]), True
    return mixed, False


def content_hash(wave: Wave, rate: int) -> str:
    """SHA-256 of what is heard: rate and 16-bit samples before resampling, whatever the file's name and tags."""
    digest = hashlib.sha256(rate.to_bytes(4, "little"))
    digest.update(_pcm16(wave).data)  # as it lies in memory: no copy
    return digest.hexdigest()


def write(path: Path, wave: Wave, rate: int) -> None:
    """Writes mono samples as 16-bit FLAC or WAV (by the file's ending), without tags."""
    soundfile.write(path, _pcm16(wave), rate, subtype="PCM_16")


def _pcm16(wave: Wave) -> NDArray[np.int16]:
    """16-bit samples; libsndfile's own rounding differs between WAV and FLAC."""
    scaled = wave * np.float32(32768)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -32768, 32767, out=scaled)
    return scaled.astype("<i2")


def _check_shape(path: Path, rate: int, channels: int, count: int) -> None:
    """Refuses, before anything is allocated, what no speech needs; `count` samples of each channel."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise DataError(f"{shown(path)} says it has {rate} samples a second.", "Export it at 16 000 Hz.")
    if not 1 <= channels <= MAX_CHANNELS:
        raise DataError(f"{shown(path)} has {channels} channels.", "Export it as mono.")
    if count / rate > MAX_SECONDS:
        limit = f"Cut it into parts under {MAX_SECONDS / 3600:.0f} hours."
        raise DataError(f"{shown(path)} says it lasts {count / rate / 3600:.1f} hours.", limit)
    if count * channels > MAX_SAMPLES:
        raise DataError(f"{shown(path)} holds over {MAX_SAMPLES // 10**6} million samples.", "Cut it into parts.")


def _read(path: Path, file: BinaryIO, offset: float, seconds: float | None) -> tuple[NDArray[np.float32], int]:
    """(samples of shape (n, channels), rate) by the first library that knows the file."""
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            if sound.frames:  # 0 also where a streamed WAV never had its length filled in: PyAV reads on to its end
                start = min(round(offset * sound.samplerate), sound.frames)
                count = sound.frames - start
                if seconds is not None:
                    count = min(count, round(seconds * sound.samplerate))
                _check_shape(path, sound.samplerate, sound.channels, count)
                sound.seek(start)
                return sound.read(count, dtype="float32", always_2d=True), sound.samplerate
            _check_shape(path, sound.samplerate, sound.channels, 0)
    except soundfile.LibsndfileError:
        pass  # PyAV knows more containers
    file.seek(0)
    return _read_av(path, file, offset, seconds)


def _read_av(path: Path, file: BinaryIO, offset: float, seconds: float | None) -> tuple[NDArray[np.float32], int]:
    import av  # only where soundfile cannot read: it loads all of FFmpeg

    only_this_file = {"format_whitelist": AV_FORMATS, "protocol_whitelist": "none"}
    try:
        with av.open(file, metadata_errors="ignore", options=only_this_file) as container:
            if not container.streams.audio:
                raise DataError(f"{shown(path)} has no sound track.", "Remove its row.")
            stream = container.streams.audio[0]
            _check_shape(path, stream.rate, stream.channels, 0)
            parts = list(_frames(path, container, stream, None if seconds is None else offset + seconds))
            rate = stream.rate
    except (av.FFmpegError, ValueError) as error:
        raise _not_audio(path) from error
    samples = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    end = None if seconds is None else round((offset + seconds) * rate)
    return samples[round(offset * rate) : end], rate


def _frames(path: Path, container: Any, stream: Any, until: float | None) -> Any:
    """Blocks of shape (channels, n), float32, at the stream's rate, up to `until` seconds or the limits."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    heard = 0
    for frame in container.decode(stream):
        for block in resampler.resample(frame):
            heard += block.samples
            _check_shape(path, stream.rate, stream.channels, heard)
            yield block.to_ndarray()
        if until is not None and heard > until * stream.rate:
            return
    yield from (block.to_ndarray() for block in resampler.resample(None))


def _no_audio(path: Path, head: bytes) -> DataError:
    if not head:
        return DataError(f"{shown(path)} is an empty file.", "Record it again or remove its row.")
    if is_pointer(head):
        return DataError(f"{shown(path)} is a Git LFS pointer, not audio.", "Run `git lfs pull` in its repository.")
    return _not_audio(path)


def _not_audio(path: Path) -> DataError:
    return DataError(f"{shown(path)} is not audio that can be read.", "Use WAV, FLAC, MP3, OGG, M4A or WebM.")

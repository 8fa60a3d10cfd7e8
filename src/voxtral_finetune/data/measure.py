"""How speech sounds, in numbers, and what those numbers say. Pure functions of samples.

Levels are in dB relative to full scale (a sine of amplitude 1 has an RMS of -3 dBFS). Loudness over time is measured in
frames of 25 ms, about a phone's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxtral_finetune.data.audio import Wave
from voxtral_finetune.data.findings import Finding

FRAME_SECONDS = 0.025
MIN_SECONDS = 0.1
"""Shorter than any word; a file like that is a slip of the recorder."""

MAX_SECONDS = 600.0
"""As one utterance ten minutes are 7 500 audio tokens, a quarter of Voxtral's context; more belongs into pieces."""

SILENT_PEAK = 2 / 32768
"""Two steps of 16 bits: what dither leaves of silence, -84 dBFS."""

QUIET_DBFS = -60.0
"""RMS under which speech has less than six bits left; real corpora hold such clips, and they can be learned from."""

CLIPPED_SHARE = 0.001
"""Share of clipped samples that can be heard; a take normalised to full scale touches it far less often."""

DC = 0.05
PAUSE_DB = 40.0
"""A frame so far under the loudest one is a pause."""

MOSTLY_PAUSE = 0.85
STEADY_DB = 3.0
"""Speech rises and falls by more than 20 dB from sound to sound; noise and tones do not even by this much."""

STEADY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Measures:
    """Length in seconds; samples a second; largest sample; RMS in dBFS; share of clipped samples; mean (DC offset);
    share of pauses; and the level of the loud frames (95th percentile) over the quiet ones (10th) in dB, which is the
    signal-to-noise ratio where there are pauses."""

    seconds: float
    rate: int
    peak: float
    rms_dbfs: float
    clipped_share: float
    dc: float
    silence_share: float
    snr_db: float


def measure(wave: Wave, rate: int) -> Measures:
    """Measures mono samples at `rate` Hz; there must be at least one."""
    peak = float(max(wave.max(), -wave.min()))
    levels = _levels(wave, rate)
    quiet, loud = (float(level) for level in np.percentile(levels, (10, 95)))
    return Measures(
        seconds=round(len(wave) / rate, 3),
        rate=rate,
        peak=peak,
        rms_dbfs=_decibels(float(np.dot(wave, wave)) / len(wave)),
        clipped_share=_clipped(wave, peak),
        dc=float(wave.mean(dtype=np.float64)),
        silence_share=float(np.mean(levels < levels.max() - PAUSE_DB)),
        snr_db=loud - quiet,
    )


def findings(measures: Measures) -> list[Finding]:
    """What is wrong or doubtful about speech that measures so."""
    found = []

    def note(kind: str, what: str, fix: str, usable: bool = True) -> None:
        found.append(Finding(kind, what, fix, usable))

    if measures.seconds < MIN_SECONDS:
        limit = f"Record at least {MIN_SECONDS:g} s, or remove its row."
        note("short", f"It lasts {measures.seconds:g} s, less than any word.", limit, usable=False)
    elif measures.seconds > MAX_SECONDS:
        pieces = "Cut it into utterances: voxtral-finetune prepare FILE --transcript TEXT --draft-model MODEL."
        note("long", f"It lasts {measures.seconds / 60:.0f} minutes, too long to learn at once.", pieces, usable=False)
    elif measures.peak <= SILENT_PEAK:
        note("silent", "It is silent.", "Record it again or remove its row.", usable=False)
    else:
        if measures.rms_dbfs < QUIET_DBFS:
            note("quiet", f"It is very quiet ({measures.rms_dbfs:.0f} dBFS).", "Turn the microphone up.")
        if measures.clipped_share > CLIPPED_SHARE:
            share = f"{100 * measures.clipped_share:.1f} %"
            note("clipped", f"{share} of it is clipped.", "Turn the microphone down and record it again.")
        if abs(measures.dc) > DC:
            note("dc", f"Its middle is off zero by {measures.dc:+.2f}.", "Filter it, or check the microphone.")
        if measures.silence_share > MOSTLY_PAUSE:
            note("pauses", f"{100 * measures.silence_share:.0f} % of it is silence.", "Cut the silence off.")
        elif measures.seconds >= STEADY_SECONDS and measures.snr_db < STEADY_DB:
            note("no speech", "Its level never changes: noise or a tone, not speech.", "Listen to it.")
    return found


def _levels(wave: Wave, rate: int) -> np.ndarray:
    """Level of each whole frame in dB, shape (frames,); of all of it where it is shorter than one."""
    size = min(len(wave), max(1, int(FRAME_SECONDS * rate)))
    frames = wave[: len(wave) // size * size].reshape(-1, size)
    return 10 * np.log10(np.einsum("ij,ij->i", frames, frames) / size + 1e-12)


def _clipped(wave: Wave, peak: float) -> float:
    """Share of samples at full scale, or in a flat top at the peak (clipped, then turned down)."""
    top = np.flatnonzero(np.abs(wave) >= 0.99 * peak)  # few samples, so that what follows costs nothing
    later = top[top > 0]
    flat = int(np.count_nonzero(wave[later] == wave[later - 1]))
    full = len(top) if peak >= 0.99 else 0
    return max(flat, full) / len(wave)


def _decibels(power: float) -> float:
    return 10 * float(np.log10(power + 1e-12))

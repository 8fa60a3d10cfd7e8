"""Recordings of any length as pieces that fit a window of the checkpoint, decoded when their turn comes.

What is longer than a window is cut in silence, since a model that was taught short utterances is best at short ones. A
file is then decoded twice, a block at a time, and what is held is a piece and a block, however long it is. The judge of
where somebody speaks (`data.speech`) only helps to choose the place of a cut: it misses single words, ends of words and
unusual voices, and no word may be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from voxtral_finetune.data import audio, speech
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.findings import Finding
from voxtral_finetune.data.headers import wav_findings
from voxtral_finetune.data.places import open_regular
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.speech import FRAME, FRAMES_PER_SECOND, Activity, Piece

IN_MEMORY = 600
"""Seconds: what is known to be no longer is decoded whole, at most 38 MB."""

SOUNDS = 1e-4
"""Power, relative to the loud parts of the speech, from which something sounds: 40 dB under them."""

MARGIN = 0.15
"""Seconds of silence kept before and after a piece, where there is so much."""

BREAK = 2.0
"""A silence of so many seconds always ends a piece."""

WIDTHS = (0.1, 0.3, 1.0)
"""Seconds over which silence is judged for a cut: the middle of a long pause is better than a short one."""

KNOWN_SPEECH = 2.0
"""How much worse, in powers of ten, a cut is where the judge is sure that somebody speaks."""


@dataclass(frozen=True)
class Recording:
    """A file, or samples in memory (mono, 16 kHz), with its language (None: detected).

    `span` is the part of the file to take, as `audio.load` does; `seconds` how long that is, where it is known.
    """

    audio: Path | Wave
    language: str | None = None
    span: tuple[float, float | None] = (0.0, None)
    seconds: float | None = None

    @staticmethod
    def of(row: Utterance) -> Recording:
        return Recording(row.audio, row.language, row.span, row.seconds)

    @property
    def length(self) -> float:
        """Seconds; infinite where nobody knows yet, so that it comes first where the longest do."""
        if isinstance(self.audio, np.ndarray):
            return len(self.audio) / SAMPLE_RATE
        return np.inf if self.seconds is None else self.seconds


@dataclass(frozen=True)
class Part:
    """Samples of a recording, shape (n,), n > 0, which begin after `start` seconds of it."""

    start: float
    wave: Wave

    @property
    def end(self) -> float:
        return self.start + len(self.wave) / SAMPLE_RATE


def doubts(path: Path) -> list[Finding]:
    """What is odd about a file that can be read all the same: one shorter than its header says, and the like."""
    with open_regular(path) as file:
        return wav_findings(file)


def parts(recording: Recording, window_samples: int, native: bool = False) -> Iterator[Part]:
    """The pieces of a recording in their order, each of at most a window; with `native` one, whatever its length.

    All that sounds is in a piece; long silence is in none. Raises DataError as `audio.load` and `speech.blocks` do.
    """
    if native:
        whole = (
            recording.audio if isinstance(recording.audio, np.ndarray) else audio.load(recording.audio, *recording.span)
        )
        yield from [Part(0.0, whole)] if len(whole) else []
        return
    blocks, short = _begun(_blocks(recording), window_samples)
    if short is not None:
        yield from [Part(0.0, short)] if len(short) else []
        return
    found = list(_cut(speech.activity(blocks), window_samples // FRAME))
    for piece, wave in zip(found, speech.waves(_blocks(recording), found), strict=True):
        if len(wave):
            yield Part(piece.start, wave)


def _blocks(recording: Recording) -> Iterator[Wave]:
    """The samples of a recording: in one block where they are in memory, few, or a part of a file."""
    if isinstance(recording.audio, np.ndarray):
        return iter([recording.audio])
    if recording.span != (0.0, None) or recording.length <= IN_MEMORY:
        return iter([audio.load(recording.audio, *recording.span)])
    return speech.blocks(recording.audio)


def _begun(blocks: Iterator[Wave], window_samples: int) -> tuple[Iterator[Wave], Wave | None]:
    """(all of these blocks, their samples where they are no more than a window)"""
    held: list[Wave] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) > window_samples:
            return chain(held, blocks), None
    return iter(held), np.concatenate(held)


def _cut(heard: Activity, room: int) -> Iterator[Piece]:
    """Pieces of at most `room` frames that hold all that sounds, whether the judge takes it for speech or not.

    A longer stretch is cut in the second half of what fits, where it is quietest and speech is least likely.
    """
    sounding = np.flatnonzero(_sounds(heard))
    if not len(sounding):
        return
    cost, margin = _cost(heard), round(MARGIN * FRAMES_PER_SECOND)
    breaks = np.flatnonzero(np.diff(sounding) > BREAK * FRAMES_PER_SECOND) + 1
    for stretch in np.split(sounding, breaks):
        low, end = 0, len(heard.power)
        while len(stretch):
            first, last = max(int(stretch[0]) - margin, low), min(int(stretch[-1]) + 1 + margin, end)
            if last - first > room:
                choices = cost[first + room // 2 : first + room][::-1]  # of equally good ones the last
                low = first + room - int(np.argmin(choices)) - 1
                inside = stretch[stretch < low]
                last = min(int(inside[-1]) + 1 + margin, low)
                stretch = stretch[len(inside) :]
            else:
                stretch = stretch[:0]
            yield Piece(first / FRAMES_PER_SECOND, last / FRAMES_PER_SECOND)


def _sounds(heard: Activity) -> NDArray[np.bool_]:
    """Which frames are no silence, by the level of what is surely speech; without any, of everything."""
    sure = heard.power[heard.speech >= speech.SPEAKS]
    level = np.quantile(sure if len(sure) else heard.power, 0.9) if len(heard.power) else 0.0
    sounds: NDArray[np.bool_] = (heard.power > SOUNDS * level) | (heard.speech >= speech.SPEAKS)
    return sounds


def _cost(heard: Activity) -> NDArray[np.float64]:
    """What a cut at each frame would cost: the logarithms of the power around it, more where somebody speaks."""
    floor = SOUNDS * max(float(heard.power.max()), 1e-12) / 100
    cost = np.zeros(len(heard.power))
    for width in WIDTHS:
        count = max(1, round(width * FRAMES_PER_SECOND))
        around = np.ones(count) / count
        cost += np.log10(np.convolve(heard.power, around, mode="same")[: len(cost)] + floor)
        cost += KNOWN_SPEECH * np.convolve(heard.speech, around, mode="same")[: len(cost)]
    return cost

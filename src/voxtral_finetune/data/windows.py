"""Filling windows: which utterances share the 30 seconds that Voxtral pays for anyway.

The encoder costs the same for half a second as for a full window, so short utterances of one language, of one speaker
where that fills well, are put one after the other with short gaps and their texts are joined. About one window in ten
holds a single utterance, so that short recordings stay familiar. Each epoch packs anew: the plan is a pure function of
(rows, seed, epoch), and every utterance is in it exactly once.

Packing is best-fit decreasing (Johnson 1973) within blocks drawn at random; the lengths that order a block are blurred,
so that a small corpus does not meet in the same company each time.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from voxtral_finetune.data.rows import Utterance

GAP_SECONDS = 0.2
"""Silence between two utterances of a window: shorter than a pause in speech, longer than a stop consonant."""

SLACK_SECONDS = 0.001
"""Left free beside each utterance: decoded, it may be half a millisecond and a sample longer than its seconds say."""

SINGLE_SHARE = 0.1
"""Share of windows that hold one utterance."""

WELL_FILLED = 0.9
"""A window of one speaker under this fill is opened again and filled with others of its language."""

BLOCK = 256
"""Utterances that are packed together: enough to fill well, few enough to stay near linear in the corpus."""

BLUR = 0.15
"""How far, as a share, the length that orders an utterance in its block is drawn from its real one."""

UNSPACED = frozenset({"zh", "ja", "yue"})
"""Languages written without spaces between sentences."""


@dataclass(frozen=True, slots=True)
class Window:
    """Utterances heard one after the other, of one language; `seconds` of speech without the gaps."""

    utterances: tuple[Utterance, ...]

    @property
    def seconds(self) -> float:
        return sum(row.seconds or 0.0 for row in self.utterances)

    @property
    def language(self) -> str | None:
        return self.utterances[0].language

    @property
    def text(self) -> str:
        """What is said in it: the utterances' texts, joined as their language joins sentences."""
        language = (self.language or "").replace("_", "-").split("-")[0].lower()
        joint = "" if language in UNSPACED else " "
        return joint.join(row.text for row in self.utterances)

    @property
    def name(self) -> str:
        """Its utterances by line and file, for messages."""
        return ", ".join(f"line {row.line} ({row.audio.name})" for row in self.utterances)


Length = Callable[[Utterance], float]


def seconds_of(row: Utterance) -> float:
    """How long an utterance is as it was decoded."""
    return row.seconds or 0.0


def packs(rows: Iterable[Utterance], window_seconds: float) -> bool:
    """Whether sharing windows pays: where the median utterance fills under half of one."""
    lengths = [seconds_of(row) for row in rows]
    return bool(lengths) and median(lengths) < window_seconds / 2


def plan(
    rows: Sequence[Utterance],
    window_seconds: float,
    packing: bool,
    seed: int,
    epoch: int,
    length: Length = seconds_of,
) -> list[Window]:
    """The windows of one epoch in the order of training; `length` says how long an utterance is in this epoch, in s."""
    random = np.random.default_rng([seed, epoch])
    order = [rows[index] for index in random.permutation(len(rows))]
    if not packing:
        return [Window((row,)) for row in order]
    singles = _single_count(order, window_seconds, length)
    windows = [Window((row,)) for row in order[:singles]]
    languages = defaultdict(list)
    for row in order[singles:]:
        languages[row.language].append(row)
    for language in sorted(languages, key=str):
        windows += _pack_language(languages[language], window_seconds, length, random)
    return [windows[index] for index in random.permutation(len(windows))]


def efficiency(windows: Sequence[Window], window_seconds: float) -> float:
    """Speech seconds per second of windows; an utterance longer than one window counts all that it fills."""
    paid = sum(chunks(window, window_seconds) for window in windows) * window_seconds
    return sum(window.seconds for window in windows) / paid if windows else 0.0


def chunks(window: Window, window_seconds: float) -> int:
    """How many windows of the checkpoint it fills: more than one only for an utterance that is longer."""
    if len(window.utterances) > 1:
        return 1  # also where its utterances, as recorded, are longer than they are heard
    return max(1, math.ceil(round(window.seconds / window_seconds, 6)))


def _single_count(rows: Sequence[Utterance], window_seconds: float, length: Length) -> int:
    """How many utterances to leave alone so that they are SINGLE_SHARE of all windows.

    n windows hold T seconds: n·s single ones of mean length m, the others full, so n = T / ((1-s)·window + s·m).
    """
    if not rows:
        return 0
    total = sum(length(row) + GAP_SECONDS for row in rows)
    each = (1 - SINGLE_SHARE) * window_seconds + SINGLE_SHARE * total / len(rows)
    return round(SINGLE_SHARE * total / each)


def _pack_language(
    rows: list[Utterance], window_seconds: float, length: Length, random: np.random.Generator
) -> list[Window]:
    speakers = defaultdict(list)
    for row in rows:
        speakers[row.speaker].append(row)
    windows, pool = [], []
    for speaker in sorted(speakers, key=str):
        for start in range(0, len(speakers[speaker]), BLOCK):
            for filled, share in _pack(speakers[speaker][start : start + BLOCK], window_seconds, length, random):
                if share >= WELL_FILLED:
                    windows.append(filled)
                else:
                    pool += filled
    pool = [pool[index] for index in random.permutation(len(pool))]
    carried: list[Utterance] = []
    for start in range(0, len(pool), BLOCK):
        last = start + BLOCK >= len(pool)
        block, carried = carried + pool[start : start + BLOCK], []
        # The emptiest go on to the next block, and not more than a block of them: where no two fit beside each other
        # they would be tried again with every block.
        for filled, share in sorted(_pack(block, window_seconds, length, random), key=lambda each: each[1]):
            if share >= WELL_FILLED or last or len(carried) >= BLOCK:
                windows.append(filled)
            else:
                carried += filled
    return [Window(tuple(filled[index] for index in random.permutation(len(filled)))) for filled in windows]


def _pack(
    rows: Sequence[Utterance], window_seconds: float, length: Length, random: np.random.Generator
) -> list[tuple[list[Utterance], float]]:
    """Best-fit decreasing: (utterances, how full) of each window; one that is longer than a window is alone."""
    blurred = np.array([length(row) for row in rows]) * random.uniform(1 - BLUR, 1 + BLUR, len(rows))
    room = window_seconds + GAP_SECONDS  # the last utterance needs no gap after it
    found: list[list[Utterance]] = []
    free: list[tuple[float, int]] = []  # (seconds left, window), by seconds
    for index in np.argsort(-blurred, kind="stable"):
        needed = length(rows[index]) + SLACK_SECONDS + GAP_SECONDS
        place = bisect_left(free, (needed, -1))
        if place < len(free):
            left, window = free.pop(place)
        else:
            left, window = room, len(found)
            found.append([])
        found[window].append(rows[index])
        insort(free, (left - needed, window))
    shares = {window: 1 - max(left, 0.0) / room for left, window in free}
    return [(utterances, shares[window]) for window, utterances in enumerate(found)]

"""The windows of a run, from the first update to the last, as the training loop reads them.

Position i of the stream is a pure function of (rows, seed, i): neither the number of processes or workers nor where a
run was stopped changes who hears what. Epochs follow one another without a seam, so every update holds the same number
of windows; inside an update the windows are in order of length, so that a batch pads little.
"""

from __future__ import annotations

import hashlib
import math
import signal
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from voxtral_finetune.data import audio, augment
from voxtral_finetune.data.collate import Example
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.data.windows import GAP_SECONDS, SLACK_SECONDS, Window, chunks, plan
from voxtral_finetune.training.embeddings import EmbeddingCache

GAP = np.zeros(round(GAP_SECONDS * audio.SAMPLE_RATE), np.float32)


@dataclass(frozen=True)
class Hearing:
    """How utterances become what the model hears; everything random in it is drawn from the seed."""

    window_seconds: float
    per_update: int
    seed: int = 0
    packing: bool = False
    repack: bool = True
    language_free_share: float = 0.0
    vary_speed: bool = False
    mask_spectrum: bool = False
    replay_share: float = 0.0


class Timeline:
    """Which windows each position of a run holds: the plans of its epochs, one after the other.

    Along with `rows` an epoch holds a share of `replay`, drawn anew each time.
    """

    def __init__(self, rows: Sequence[Utterance], hearing: Hearing, replay: Sequence[Utterance] = ()) -> None:
        self.rows = rows
        self.hearing = hearing
        self.replay = replay
        self._ends: list[int] = []
        self._plans: dict[int, list[tuple[int, Window]]] = {}

    def epoch(self, number: int) -> list[tuple[int, Window]]:
        """The windows of an epoch in order, each with its place in the plan of the first epoch where that is kept."""
        if number not in self._plans:
            self._plans = {kept: made for kept, made in self._plans.items() if kept == number - 1}
            self._plans[number] = self._planned(number)
        return self._plans[number]

    def update(self, number: int) -> list[tuple[int, int, Window]]:
        """(epoch, place, window) of an update, the longest first: by windows, then by letters."""
        first = number * self.hearing.per_update
        found = [self._at(position) for position in range(first, first + self.hearing.per_update)]
        return sorted(found, key=lambda each: (-self.chunks(each[2]), -len(each[2].text), each[1]))

    def chunks(self, window: Window) -> int:
        """How many windows of the checkpoint it fills."""
        return chunks(window, self.hearing.window_seconds)

    def replayed(self, number: int) -> list[Utterance]:
        """What an epoch holds of `replay`: its share of the epoch's utterances, or all where there are too few."""
        share = self.hearing.replay_share
        count = min(len(self.replay), round(len(self.rows) * share / (1 - share)))
        drawn = np.random.default_rng([self.hearing.seed, number, 4]).permutation(len(self.replay))[:count]
        return [self.replay[index] for index in sorted(drawn)]

    def _planned(self, number: int) -> list[tuple[int, Window]]:
        chosen = self.hearing
        if chosen.repack:
            rows = [*self.rows, *self.replayed(number)]
            made = plan(rows, chosen.window_seconds, chosen.packing, chosen.seed, number, self._length(number))
            return list(enumerate(made))
        made = plan(self.rows, chosen.window_seconds, chosen.packing, chosen.seed, 0, self._length(0))
        order = np.random.default_rng([chosen.seed, number, 1]).permutation(len(made))
        return [(int(index), made[index]) for index in order]

    def _length(self, epoch: int):  # type: ignore[no-untyped-def]  # a data.windows.Length
        def length(row: Utterance) -> float:
            return (row.seconds or 0.0) / self.speed(epoch, row)

        return length

    def speed(self, epoch: int, row: Utterance) -> float:
        """How many times as fast an utterance is heard in an epoch."""
        if not self.hearing.vary_speed:
            return 1.0
        window, seconds = self.hearing.window_seconds, row.seconds or 0.0
        room = max(1, math.ceil(seconds / window)) * window - SLACK_SECONDS
        factor = augment.speed_factor(self.hearing.seed, epoch, row.sha256 or str(row.audio))
        return max(factor, seconds / room)  # slowed down, it must not need one window more

    def _at(self, position: int) -> tuple[int, int, Window]:
        while not self._ends or self._ends[-1] <= position:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self.epoch(len(self._ends))))
        epoch = bisect_right(self._ends, position)
        start = self._ends[epoch - 1] if epoch else 0
        return (epoch, *self.epoch(epoch)[position - start])


class WindowStream(Dataset[Example]):
    """The examples of all updates of a run; item i is row i % per_update of update i // per_update."""

    def __init__(
        self,
        timeline: Timeline,
        updates: int,
        waves: WaveCache,
        noises: augment.NoiseBank | None = None,
        embeddings: EmbeddingCache | None = None,
    ) -> None:
        self.timeline = timeline
        self.updates = updates
        self.waves = waves
        self.noises = noises
        self.embeddings = embeddings
        self._update: tuple[int, list[tuple[int, int, Window]]] = (-1, [])

    def __len__(self) -> int:
        return self.updates * self.timeline.hearing.per_update

    def __getitem__(self, position: int) -> Example:
        _leave_signals_to_the_trainer()
        number, row = divmod(position, self.timeline.hearing.per_update)
        if self._update[0] != number:
            self._update = (number, self.timeline.update(number))
        epoch, place, window = self._update[1][row]
        hearing = self.timeline.hearing
        language = window.language
        if _draw(hearing.seed, epoch, window) < hearing.language_free_share:
            language = None
        index, embeds = None, None
        if self.embeddings is not None:
            index, embeds = place, self.embeddings.get(place)
        wave = np.zeros(0, np.float32) if embeds is not None else self._wave(epoch, window)
        random = np.random.default_rng([hearing.seed, epoch, place, 2]) if hearing.mask_spectrum else None
        return Example(wave, window.text, language, window.name, random, index, embeds)

    def _wave(self, epoch: int, window: Window) -> audio.Wave:
        parts: list[audio.Wave] = []
        for row in window.utterances:
            wave = augment.change_speed(self.waves.load(row), self.timeline.speed(epoch, row))
            parts += [GAP, wave] if parts else [wave]
        joined = np.concatenate(parts)
        if self.noises is not None:
            drawn = np.random.default_rng([self.timeline.hearing.seed, epoch, _number(window), 3])
            joined = self.noises.mix(joined, drawn)
        return joined


class Utterances(Dataset[Example]):
    """Examples of a list of utterances as they are: what dev loss is measured on."""

    def __init__(self, rows: Sequence[Utterance], waves: WaveCache) -> None:
        self.rows = rows
        self.waves = waves

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        _leave_signals_to_the_trainer()
        row = self.rows[index]
        return Example(self.waves.load(row), row.text, row.language, Window((row,)).name)


def _leave_signals_to_the_trainer() -> None:
    """In a worker: Ctrl-C and SIGTERM to the whole group are for the process that trains, which ends its workers."""
    if get_worker_info() and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _draw(seed: int, epoch: int, window: Window) -> float:
    """A number in [0, 1) that depends on nothing but seed, epoch and the window's first audio."""
    digest = hashlib.sha256(f"{seed}:{epoch}:{window.utterances[0].sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _number(window: Window) -> int:
    return int((window.utterances[0].sha256 or "0")[:8], 16)

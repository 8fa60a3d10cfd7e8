"""A dataset of the Hub as `open_stream` gives it, made up on the spot and without a Hub."""

import io
import itertools
import random

import numpy as np
import soundfile

from tests.conftest import WORDS, spoken
from voxtral_finetune.data.corpus import Problem
from voxtral_finetune.data.hub import Stream, Take
from voxtral_finetune.errors import DataError


def encoded(wave: np.ndarray, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format=kind)
    return buffer.getvalue()


def every_text(count: int) -> list[str]:
    """Different texts of one to four words."""
    lengths = itertools.chain.from_iterable(itertools.product(WORDS, repeat=length) for length in range(1, 6))
    return [" ".join(words) for words in itertools.islice(lengths, count)]


class FakeHub:
    """Rows of (encoded audio or None, text); `broken[n]` is after how many rows opening number n ends in an error."""

    def __init__(self, rows: list[tuple[bytes | None, str]], revision: str = "a" * 40) -> None:
        self.rows = rows
        self.revision = revision
        self.asked: list = []
        self.broken: dict[int, int] = {}
        self.given = 0

    @classmethod
    def of(cls, count: int) -> "FakeHub":
        return cls([(encoded(spoken(text, seed=n)), text) for n, text in enumerate(every_text(count))])

    def open(self, spec) -> Stream:
        self.asked.append(spec)
        return Stream(self.revision, f"{spec.name} @ {self.revision[:12]}", "cc0-1.0", self._rows(spec))

    def _rows(self, spec):
        order = list(range(len(self.rows)))
        random.Random(spec.seed).shuffle(order)
        last = self.broken.get(len(self.asked) - 1)
        for number, place in enumerate(order, start=1):
            if last is not None and number > last:
                raise DataError("The Hub does not answer as it should (503).", "Try later.")
            sound, text = self.rows[place]
            self.given += 1
            if sound is None:
                yield Problem(number, "source", f"Row {number} holds no audio.", "Leave it out.")
            else:
                yield Take(number, sound, text, None, None)

"""What was heard: pieces of recordings with their times, and a test set's texts as a run keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from voxtral_finetune.durable import write_durably
from voxtral_finetune.evaluation.normalise import joined


@dataclass(frozen=True)
class Spoken:
    """A piece of a recording, from `start` to `end` seconds, and its text.

    `capped`: the model was cut off at the most that was allowed for, so that the text may break off or loop.
    """

    start: float
    end: float
    text: str
    capped: bool = False


@dataclass(frozen=True)
class Heard:
    """One recording's pieces in their order; none where nothing was said."""

    pieces: tuple[Spoken, ...] = ()

    @property
    def text(self) -> str:
        return joined(piece.text for piece in self.pieces)

    @property
    def capped(self) -> bool:
        return any(piece.capped for piece in self.pieces)


@dataclass(frozen=True)
class Transcripts:
    """A test set as one model heard it, in the set's order.

    `seconds` of speech took `took` seconds to transcribe, without loading the model. `fingerprint` stands for what the
    model answers to a fixed sound: two models with the same one are the same model.
    """

    texts: list[str]
    capped: list[bool]
    seconds: float
    took: float
    fingerprint: str

    @staticmethod
    def of(heard: Sequence[Heard], seconds: float, took: float, fingerprint: str) -> Transcripts:
        return Transcripts([each.text for each in heard], [each.capped for each in heard], seconds, took, fingerprint)

    @staticmethod
    def load(path: Path) -> Transcripts | None:
        """What `save` wrote; None where there is nothing, or only the bare texts of an older version."""
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return Transcripts(**content) if isinstance(content, dict) else None

    def save(self, path: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=0) + "\n"
        write_durably(path, text.encode("utf-8", errors="replace"))

    @property
    def speed(self) -> float | None:
        """Seconds of speech transcribed in a second of computing: the inverse real-time factor, RTFx."""
        return self.seconds / self.took if self.took > 0 else None

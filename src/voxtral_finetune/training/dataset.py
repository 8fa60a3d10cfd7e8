"""Utterances as the training loop reads them: decoded when they are needed, some without their language."""

from __future__ import annotations

import hashlib
import signal

from torch.utils.data import Dataset, get_worker_info

from voxtral_finetune.data import audio
from voxtral_finetune.data.collate import Example
from voxtral_finetune.data.corpus import Utterance


class Utterances(Dataset[Example]):
    """Examples of a list of utterances; in a share of them, drawn by (seed, epoch, audio), the language is left out."""

    def __init__(self, rows: list[Utterance], language_free_share: float = 0.0, seed: int = 0) -> None:
        self.rows = rows
        self.language_free_share = language_free_share
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if get_worker_info() and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            # Ctrl-C and SIGTERM to the whole group are for the process that trains: it saves, then ends its workers.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        row = self.rows[index]
        language = None if self._draw(row) < self.language_free_share else row.language
        return Example(audio.load(row.audio, *row.span), row.text, language, f"line {row.line} ({row.audio.name})")

    def _draw(self, row: Utterance) -> float:
        """A number in [0, 1) that depends on nothing but seed, epoch and audio: resume and more devices agree."""
        digest = hashlib.sha256(f"{self.seed}:{self.epoch}:{row.sha256}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

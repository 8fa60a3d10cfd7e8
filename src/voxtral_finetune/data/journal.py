"""What a corpus has from the Hub: noted beside it, so that an import that was cut off goes on and doubles no row."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import append_line

JOURNAL = "imported.jsonl"


class Journal:
    """Which rows a corpus has from the Hub: a line {"key", "seconds"} for each, written after the row itself."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.path = corpus.folder / JOURNAL
        self.seconds: dict[str, float] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # half a line, where a process was killed in mid-write
                    entry = json.loads(line)
                    self.seconds[entry["key"]] = entry["seconds"]
        self.last = self._last()

    def add(self, key: str, wave: audio.Wave, rate: int, text: str, fields: Mapping[str, str | None]) -> bool:
        """Keeps a row, then notes it; False where it was there, added by a process that was killed before the note."""
        there = self.last == (text, audio.content_hash(wave, rate))
        if not there:
            self.corpus.add(wave, rate, text, **fields)
        self.seconds[key] = len(wave) / rate
        append_line(self.path, json.dumps({"key": key, "seconds": self.seconds[key]}))
        return not there

    def _last(self) -> tuple[str, str] | None:
        """Text and content of the corpus's last row, the only one that can be there without a note."""
        rows = self.corpus.rows()[0]
        with suppress(DataError, IndexError):
            return rows[-1].text, audio.content_hash(*audio.read(rows[-1].audio))
        return None


@contextmanager
def journal_of(corpus: Corpus) -> Iterator[Journal]:
    """The journal of a corpus, held by this process; raises DataError where another one imports into it."""
    with (corpus.folder / JOURNAL).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = f"Another process is importing into {corpus.folder}."
            raise DataError(what, "Wait for it, or stop it.") from error
        yield Journal(corpus)

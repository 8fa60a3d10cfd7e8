"""A corpus: what was said. A folder with `data.jsonl`, `audio/` and `corpus.json` (its format number).

A row is `{"audio_path": "audio/<id>.wav", "text": "..."}`, paths relative to the file, plus optional `language`,
`speaker`, `seconds` (or `duration`), `split`, `source`, `licence`, `consent`. A JSONL file from elsewhere is read the
same way. Bad rows are named and passed over; good ones go on.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from voxtral_finetune.data import audio
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.places import Places
from voxtral_finetune.data.rows import Problem, Utterance, read_rows
from voxtral_finetune.data.survey import Progress, Survey, survey
from voxtral_finetune.data.tables import jsonl
from voxtral_finetune.data.text_checks import tidy
from voxtral_finetune.durable import Format, append_line, sync_folder, write_durably
from voxtral_finetune.errors import DataError

__all__ = ["Corpus", "Problem", "Progress", "Survey", "Utterance", "tidy"]

FORMAT = 1

MARK = Format(FORMAT, {}, DataError, unnamed=FORMAT)
"""The versions of a corpus; there is none older yet."""


class Corpus:
    """A `data.jsonl` and the audio that it names."""

    def __init__(self, path: Path, roots: Iterable[Path] = ()) -> None:
        """`path` is the folder or the JSONL file; `roots` are further folders that rows may name audio in."""
        path = path.expanduser().absolute()
        self.manifest = path / "data.jsonl" if path.is_dir() else path
        self.folder = self.manifest.parent
        self.places = Places(self.folder, roots)

    @staticmethod
    def create(folder: Path) -> Corpus:
        """Opens the corpus in `folder`, making an empty one where there is none; see `check_format`."""
        try:
            (folder / "audio").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder} cannot be made: {error.strerror}.", "Choose a folder you may write to."
            ) from error
        mark = folder / "corpus.json"
        if not mark.exists():
            write_durably(mark, json.dumps({"format": FORMAT}) + "\n")
        corpus = Corpus(folder)
        corpus.check_format()
        corpus.manifest.touch()
        return corpus

    def check_format(self) -> None:
        """Brings a corpus of an older format to the present one; raises DataError where a newer version wrote it."""
        mark = self.folder / "corpus.json"
        if not mark.exists():
            return
        found = MARK.read(mark)[1]
        MARK.check(mark, found)
        if found < MARK.number:
            with self.lock():
                MARK.migrate(mark)

    def entries(self) -> Iterator[Utterance | Problem]:
        """Rows and what is wrong with others, one at a time as the file has them; audio is not opened yet."""
        self.check_format()
        yield from read_rows(jsonl(self.manifest), self.places, self.manifest)

    def rows(self) -> tuple[list[Utterance], list[Problem]]:
        """(utterances, problems) as the file has them; audio is not opened yet. Raises DataError without the file."""
        entries = list(self.entries())
        utterances = [entry for entry in entries if isinstance(entry, Utterance)]
        return utterances, [entry for entry in entries if isinstance(entry, Problem)]

    def survey(self, progress: Progress | None = None) -> Survey:
        """Decodes every file once, in parallel; `progress(done, total)` is called as it goes."""
        return survey(self.entries(), progress)

    def problems(self) -> list[Problem]:
        """Everything wrong or doubtful, by line."""
        return self.survey().problems

    def add(self, wave: audio.Wave, rate: int, text: str, **fields: str | None) -> Utterance:
        """Keeps one take: the audio durably, then its row; when this returns, both are on disk."""
        text = tidy(text)
        if not text:
            raise DataError("This take has no text.", "Type what is said in it.")
        if not len(wave):
            raise DataError("This take holds no sound.", "Record it again.")
        name, seconds = f"audio/{uuid.uuid4().hex}.wav", round(len(wave) / rate, 3)
        row = {"audio_path": name, "text": text, **{key: value for key, value in fields.items() if value}}
        try:
            with self.lock():
                self.keep_audio(name, wave, rate)
                append_line(self.manifest, json.dumps({**row, "seconds": seconds}, ensure_ascii=False))
        except OSError as error:
            raise DataError(
                f"The take could not be saved: {error.strerror}.", "Free some space and record it again."
            ) from error
        return Utterance(self.folder / name, text, seconds=seconds, **fields)  # type: ignore[arg-type]  # str fields

    def remove(self, utterance_id: str) -> None:
        """Takes one utterance out: its row durably, then its audio."""
        with self.lock():
            gone = [row for row in self.rows()[0] if row.id == utterance_id]
            if not gone:
                raise DataError(f"There is no utterance {shown(utterance_id)}.", "Reload the list.")
            self.drop({row.line for row in gone})
            for row in gone:
                row.audio.unlink(missing_ok=True)

    def drop(self, numbers: set[int]) -> None:
        """Rewrites the manifest without these lines; the lock must be held."""
        with self.manifest.open("rb") as file:
            kept = [line for number, line in enumerate(file, start=1) if number not in numbers]
        write_durably(self.manifest, b"".join(kept))

    def keep_audio(self, name: str, wave: audio.Wave, rate: int) -> None:
        """Writes `audio/<id>.wav` or `.flac` durably: after a crash it is there whole or not at all."""
        path = self.folder / name
        # A name of its own: two threads may be writing the same sound.
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp{path.suffix}")
        audio.write(temporary, wave, rate)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by whoever writes; others wait."""
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

"""A corpus: what was said. A folder with `data.jsonl`, `audio/` and `corpus.json` (its format number).

A row is `{"audio_path": "audio/<id>.wav", "text": "..."}`, paths relative to the file, plus optional `language`,
`speaker`, `seconds` (or `duration`), `split`, `source`, `licence`, `consent`. A JSONL file from elsewhere is read the
same way. Bad rows are named and passed over; good ones go on.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from voxtral_finetune.data import audio
from voxtral_finetune.errors import DataError, FinetuneError
from voxtral_finetune.run import append_line, sync_folder, write_durably

FORMAT = 1
MAX_ROW_BYTES = 1_000_000
"""A longer line is no row of a corpus but a mistake or an attack."""

OPTIONAL = ("language", "speaker", "source", "licence", "consent")
SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "test": "test"}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Utterance:
    """One row: where its audio is, what is said, and what is known about it; `seconds` and `sha256` once decoded."""

    audio: Path
    text: str
    language: str | None = None
    speaker: str | None = None
    seconds: float | None = None
    split: str | None = None
    source: str | None = None
    licence: str | None = None
    consent: str | None = None
    line: int = 0
    sha256: str | None = None

    @property
    def id(self) -> str:
        return self.audio.stem


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used, or (`usable`) one that is worth a look."""

    line: int
    file: str
    what: str
    fix: str
    usable: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} {self.fix}"


@dataclass(frozen=True)
class Survey:
    """Every file decoded once: the rows that can be used, with seconds and content hash, and what is wrong."""

    utterances: list[Utterance]
    problems: list[Problem]

    @property
    def seconds(self) -> float:
        return sum(row.seconds or 0 for row in self.utterances)

    @property
    def refused(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.usable]


class Corpus:
    """A `data.jsonl` and the audio that it names."""

    def __init__(self, path: Path, roots: Iterable[Path] = ()) -> None:
        """`path` is the folder or the JSONL file; `roots` are further folders that rows may name audio in."""
        path = path.expanduser().absolute()
        self.manifest = path / "data.jsonl" if path.is_dir() else path
        self.folder = self.manifest.parent
        self.roots = [self.folder.resolve(), *(root.expanduser().resolve() for root in roots)]

    @staticmethod
    def create(folder: Path) -> Corpus:
        """Opens the corpus in `folder`, making an empty one where there is none; refuses a newer format."""
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
        """Raises DataError where a newer version wrote this corpus."""
        mark = self.folder / "corpus.json"
        number = json.loads(mark.read_text(encoding="utf-8"))["format"] if mark.exists() else FORMAT
        if number > FORMAT:
            raise DataError(
                f"{self.folder} has format {number}; this version reads {FORMAT}.", "Update voxtral-finetune."
            )

    def rows(self) -> tuple[list[Utterance], list[Problem]]:
        """(utterances, problems) as the file has them; audio is not opened yet. Raises DataError without the file."""
        self.check_format()
        utterances: list[Utterance] = []
        problems: list[Problem] = []
        for number, line in self._lines():
            try:
                utterances.append(self._row(number, line))
            except FinetuneError as error:
                problems.append(Problem(number, str(self.manifest), error.what, error.fix))
        return utterances, problems

    def survey(self, progress: Progress | None = None) -> Survey:
        """Decodes every file once, in parallel; `progress(done, total)` is called as it goes."""
        rows, problems = self.rows()
        usable: list[Utterance] = []
        with ThreadPoolExecutor() as pool:
            for done, result in enumerate(pool.map(_measure, rows), start=1):
                (usable if isinstance(result, Utterance) else problems).append(result)  # type: ignore[arg-type]
                if progress:
                    progress(done, len(rows))
        problems += _same_audio(usable)
        return Survey(usable, sorted(problems, key=lambda problem: problem.line))

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
        try:
            self._write_audio(self.folder / name, wave, rate)
            known = {key: value for key, value in fields.items() if value}
            with self._lock():
                row = {"audio_path": name, "text": text, **known, "seconds": seconds}
                append_line(self.manifest, json.dumps(row, ensure_ascii=False))
        except OSError as error:
            raise DataError(
                f"The take could not be saved: {error.strerror}.", "Free some space and record it again."
            ) from error
        return Utterance(self.folder / name, text, seconds=seconds, **fields)  # type: ignore[arg-type]  # str fields

    def remove(self, utterance_id: str) -> None:
        """Takes one utterance out: its row durably, then its audio."""
        with self._lock():
            lines = dict(self._lines())
            gone = [row for row in self.rows()[0] if row.id == utterance_id]
            if not gone:
                raise DataError(f"There is no utterance {utterance_id}.", "Reload the list.")
            for row in gone:
                del lines[row.line]
            write_durably(self.manifest, "".join(f"{line}\n" for line in lines.values()))
            for row in gone:
                row.audio.unlink(missing_ok=True)

    def _lines(self) -> Iterator[tuple[int, str]]:
        try:
            with self.manifest.open("rb") as file:
                for number in itertools.count(1):
                    line = rest = file.readline(MAX_ROW_BYTES)
                    while len(rest) == MAX_ROW_BYTES:  # an endless line: read past it without keeping it
                        rest = file.readline(MAX_ROW_BYTES)
                    if not line:
                        return
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").strip()
                    if text:
                        yield number, text
        except FileNotFoundError as error:
            raise DataError(f"{self.manifest} does not exist.", "Check the path of the corpus.") from error
        except OSError as error:
            raise DataError(
                f"{self.manifest} cannot be read: {error.strerror}.", "Check the path of the corpus."
            ) from error

    def _row(self, number: int, line: str) -> Utterance:
        if len(line) >= MAX_ROW_BYTES:
            raise DataError("the row is over 1 MB.", "Write one JSON object a line.")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError("it is not JSON.", "Write one JSON object a line, in UTF-8.") from error
        if not isinstance(row, dict):
            raise DataError("it is not a JSON object.", 'Write {"audio_path": "...", "text": "..."}.')
        text, path = row.get("text"), row.get("audio_path")
        if not isinstance(path, str) or not path:
            raise DataError("it names no audio_path.", 'Write {"audio_path": "...", "text": "..."}.')
        if not isinstance(text, str) or not tidy(text):
            raise DataError(f"{path} has no text.", "Write what is said in it or remove the row.")
        if "\ufffd" in text:
            raise DataError(f"the text of {path} is not UTF-8.", "Save the file as UTF-8.")
        return Utterance(
            self._inside(path), tidy(text), line=number, seconds=_seconds(row), split=_split(row), **_optional(row)
        )

    def _inside(self, path: str) -> Path:
        """The file a row names, if it lies in the corpus or a root; the answer is the same whether it exists or not."""
        refused = DataError(
            f"{path} is outside the folder of the corpus.", "Move it there or name its folder with --audio-root."
        )
        if "\0" in path:
            raise refused
        resolved = (self.folder / path).resolve()
        if not any(resolved.is_relative_to(root) for root in self.roots):
            raise refused
        return resolved

    def _write_audio(self, path: Path, wave: audio.Wave, rate: int) -> None:
        temporary = path.with_name(f".{path.stem}.tmp.wav")
        audio.write(temporary, wave, rate)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def tidy(text: str) -> str:
    """Text as it is kept: Unicode NFC, single spaces; case and punctuation stay."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _measure(row: Utterance) -> Utterance | Problem:
    try:
        wave, rate = audio.read(row.audio)
    except FinetuneError as error:
        return Problem(row.line, str(row.audio), error.what, error.fix)
    return replace(row, seconds=round(len(wave) / rate, 3), sha256=audio.content_hash(wave, rate))


def _same_audio(rows: list[Utterance]) -> list[Problem]:
    first: dict[str, Utterance] = {}
    problems = []
    for row in rows:
        other = first.setdefault(row.sha256 or "", row)
        if other is not row:
            what = f"{row.audio.name} sounds exactly like line {other.line}."
            problems.append(Problem(row.line, str(row.audio), what, "Remove one of them.", usable=True))
    return problems


def _seconds(row: dict[str, Any]) -> float | None:
    value = row.get("seconds", row.get("duration"))
    return float(value) if isinstance(value, (int, float)) and 0 < value < audio.MAX_SECONDS else None


def _split(row: dict[str, Any]) -> str | None:
    return SPLITS.get(str(row.get("split") or "").lower())


def _optional(row: dict[str, Any]) -> dict[str, str | None]:
    return {key: tidy(str(row[key])) or None for key in OPTIONAL if isinstance(row.get(key), (str, int, bool))}

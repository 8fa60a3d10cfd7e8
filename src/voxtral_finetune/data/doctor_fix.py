"""`check --fix`: repairs of `data.jsonl` that lose nothing; what is taken out is kept beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycountry

from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.doctor import Diagnosis, Row
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.places import SUFFIXES, real
from voxtral_finetune.data.rows import LANGUAGE, Columns, Utterance, read_rows
from voxtral_finetune.data.tables import first_line, jsonl
from voxtral_finetune.data.text_checks import language_code
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import sync_folder, write_durably

SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class Repair:
    """What was changed at a line of `data.jsonl`, as it was numbered before, or (0) elsewhere."""

    line: int
    what: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.what}" if self.line else self.what


def fix(corpus: Corpus, diagnosis: Diagnosis, columns: Columns | None = None) -> list[Repair]:
    """Mends `data.jsonl` where nothing can be lost, and says what was done; the file as it was is kept beside it.

    Refused rows and exact copies are taken out, their audio moves to `set-aside/` unless another row names it, and
    languages are spelled as their codes. Raises DataError where the corpus is no JSONL file, has no usable row, or
    changed since it was diagnosed.
    """
    columns = columns or Columns()
    if not corpus.manifest.is_file() or not first_line(corpus.manifest).lstrip().startswith("{"):
        raise DataError(f"{shown(corpus.manifest)} is no JSONL file.", "Use `prepare` first, and mend what it writes.")
    if not diagnosis.summary["usable"]:
        raise DataError("No row can be used, so nothing was mended.", "Check where the audio lies first.")
    try:
        with corpus.lock():
            return _mend(corpus, diagnosis, columns)
    except OSError as error:
        raise DataError(f"{shown(corpus.folder)} cannot be changed: {error.strerror}.", "Check the disk.") from error


def _mend(corpus: Corpus, diagnosis: Diagnosis, columns: Columns) -> list[Repair]:
    _check_unchanged(corpus, diagnosis, columns)
    with corpus.manifest.open("rb") as file:
        before = list(file)
    gone = _refused(diagnosis) | _copies(diagnosis)
    repairs, kept, dropped = [], [], []
    for number, line in enumerate(before, start=1):
        if number in gone:
            repairs.append(Repair(number, f"removed. {gone[number]}"))
            dropped.append(line)
            continue
        mended, change = _with_code(line, columns)
        repairs += [Repair(number, change)] if change else []
        kept.append(mended)
    if repairs:
        names = (corpus.manifest.with_name(f"{corpus.manifest.name}.{n}.bak") for n in itertools.count(1))
        backup = next(name for name in names if not name.exists())
        write_durably(backup, b"".join(before))
        write_durably(corpus.manifest, b"".join(kept))
        # Last: after a crash before this, audio that no row names is left, and never a row without audio.
        still = set(_audio(corpus, kept, columns))
        for path in sorted(set(_audio(corpus, dropped, columns)) - still):
            if place := _set_aside(corpus, path):
                repairs.append(Repair(0, f"{shown(path.name)} moved to {place}."))
        repairs.append(Repair(0, f"{corpus.manifest.name} as it was is {backup.name}."))
    return repairs


def _check_unchanged(corpus: Corpus, diagnosis: Diagnosis, columns: Columns) -> None:
    """Raises DataError where a usable row is no longer at its line: then others are not where they were either."""
    entries = read_rows(jsonl(corpus.manifest), corpus.places, corpus.manifest, columns)
    now = {row.line: (row.audio, row.text) for row in entries if isinstance(row, Utterance)}
    if any(now.get(row.line) != (row.audio, row.text) for row in diagnosis.rows if row.usable):
        raise DataError(f"{shown(corpus.manifest)} changed while it was checked.", "Run it again.")


def _refused(diagnosis: Diagnosis) -> dict[int, str]:
    """Why, by line."""
    refused = (row for row in diagnosis.rows if not row.usable)
    return {row.line: next(reason.what for reason in row.reasons if not reason.usable) for row in refused}


def _copies(diagnosis: Diagnosis) -> dict[int, str]:
    """Why, by line: rows that say the same of the same sound as an earlier one, of the same person and set."""
    first: dict[str | None, Row] = {}
    copies = {}
    for row in diagnosis.rows:
        if row.usable and (other := first.setdefault(row.sha256, row)) is not row and _facts(other) == _facts(row):
            copies[row.line] = f"It is a copy of line {other.line}."
    return copies


def _facts(row: Row) -> tuple[str | None, ...]:
    return row.text, row.language, row.speaker, row.split


def _with_code(line: bytes, columns: Columns) -> tuple[bytes, str]:
    """(a line with its language as a code, what was changed); the line as it is where that is no known language."""
    row = _fields(line)
    names = [columns.language] if columns.language else LANGUAGE
    known = {key.casefold(): key for key, value in row.items() if value is not None}
    key = next((known[name.casefold()] for name in names if name.casefold() in known), None)
    written = row[key] if key else None
    if not isinstance(written, str) or language_code(written) == written:
        return line, ""
    code = language_code(written)
    if not (pycountry.languages.get(alpha_2=code) or pycountry.languages.get(alpha_3=code)):
        return line, ""
    # Escapes stay escapes: half a surrogate pair in another field can be written in no other way.
    text = json.dumps({**row, key: code}, ensure_ascii=b"\\u" in line)
    return text.encode() + b"\n", f"language {shown(written)[:40]!r} is now {code!r}."


def _audio(corpus: Corpus, lines: Iterable[bytes], columns: Columns) -> list[Path]:
    """The files that lines name, where they may."""
    paths = []
    for line in lines:
        row = {key.casefold(): value for key, value in _fields(line).items()}
        name = next((row[key.casefold()] for key in columns.audio_names() if row.get(key.casefold()) is not None), None)
        if isinstance(name, str) and name:
            try:
                paths.append(corpus.places.find(name))
            except DataError:
                continue  # outside of the corpus, so not to be touched
    return paths


def _fields(line: bytes) -> dict[str, Any]:
    """A line's row; empty where it holds none."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _set_aside(corpus: Corpus, path: Path) -> str | None:
    """Moves audio of the corpus folder aside; returns where to, or None where it is not there."""
    own = real(corpus.folder)
    # A row may name any file; what is not audio by its name (data.jsonl itself) stays where it is.
    if not path.is_file() or not path.is_relative_to(own) or path.suffix.lower() not in SUFFIXES:
        return None
    target = own / SET_ASIDE / path.relative_to(own)
    if not real(target.parent).is_relative_to(own):
        raise DataError(f"{shown(own / SET_ASIDE)} leads out of the corpus.", "Remove this link.")
    target.parent.mkdir(parents=True, exist_ok=True)
    names = (target.with_stem(f"{target.stem}-{number}") for number in itertools.count(2))
    target = next(name for name in itertools.chain([target], names) if not name.exists())
    path.rename(target)
    sync_folder(target.parent)
    sync_folder(path.parent)
    return shown(target.relative_to(own))

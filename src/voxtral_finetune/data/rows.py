"""One row of data: what is said where, and how a row of anybody's file becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.places import Places
from voxtral_finetune.data.text_checks import language_code, refusal, tidy
from voxtral_finetune.errors import DataError

AUDIO = ("audio_path", "audio", "audio_filepath", "file_name", "path", "file", "wav", "filename")
TEXT = (
    *("text", "transcription", "raw_text", "sentence", "transcript", "normalized_text", "raw_transcription"),
    *("transcription_text", "utterance", "phrase", "words"),
)
LANGUAGE = ("language", "lang", "locale")
SPEAKER = ("speaker", "speaker_id", "client_id", "spk", "spk_id", "speaker_name")
LICENCE = ("licence", "license")
"""Names that columns have in public corpora; of several the first is taken."""

SPLITS = {"train": "train", "dev": "dev", "validation": "dev", "valid": "dev", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, where their names are not among the usual ones."""

    audio: str | None = None
    text: str | None = None
    language: str | None = None
    speaker: str | None = None

    def audio_names(self) -> tuple[str, ...]:
        return (self.audio,) if self.audio else AUDIO

    def text_names(self) -> tuple[str, ...]:
        return (self.text,) if self.text else TEXT

    def all_names(self) -> set[str]:
        """Every name, in lower case, by which a header line can be told from a row."""
        names = (*self.audio_names(), *self.text_names(), self.language, self.speaker, *LANGUAGE, *SPEAKER)
        return {name.casefold() for name in names if name}


@dataclass(frozen=True, slots=True)
class Utterance:
    """One row: where its audio is, what is said, and what is known about it; `seconds` and `sha256` once decoded.

    Where `part`, it is `seconds` (None: all that follow) of a longer file, from `offset` seconds.
    """

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
    offset: float = 0.0
    part: bool = False

    @property
    def id(self) -> str:
        return self.audio.stem

    @property
    def span(self) -> tuple[float, float | None]:
        """(offset, seconds) for `audio.load` and `audio.decode`; (0, None) is all of the file."""
        return (self.offset, self.seconds) if self.part else (0.0, None)


@dataclass(frozen=True, slots=True)
class Problem:
    """A row that cannot be used, or (`usable`) one that is worth a look; `kind` is a stable word to sort them by."""

    line: int
    file: str
    what: str
    fix: str
    usable: bool = False
    kind: str = "row"

    @staticmethod
    def of(finding: Finding, line: int, file: object) -> Problem:
        return Problem(line, shown(file), finding.what, finding.fix, finding.usable, finding.kind)

    def __str__(self) -> str:
        return f"line {self.line}: {self.what} {self.fix}" if self.line else f"{self.what} {self.fix}"


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as a file has it: its fields, or None with a finding that says why there are none."""

    line: int
    fields: Mapping[str, Any] | None
    findings: tuple[Finding, ...] = ()


Changed = Callable[[Utterance, str], None]
"""Called with a row and its text as the source had it, where tidying changed it."""


def read_rows(
    raws: Iterable[Raw], places: Places, file: Path, columns: Columns | None = None, changed: Changed | None = None
) -> Iterable[Utterance | Problem]:
    """Rows of a file, one at a time, with everything found on the way."""
    for raw in raws:
        yield from (Problem.of(finding, raw.line, file) for finding in raw.findings)
        if raw.fields is None:
            continue
        try:
            row, text = utterance(raw.fields, places, columns or Columns(), raw.line)
        except DataError as error:
            kind = "columns" if isinstance(error, _NoColumn) else "row"
            yield Problem(raw.line, shown(file), error.what, error.fix, kind=kind)
        else:
            if changed and text != row.text:
                changed(row, text)
            yield row


def utterance(fields: Mapping[str, Any], places: Places, columns: Columns, line: int) -> tuple[Utterance, str]:
    """(a row of anybody's file as an utterance, its text as written); raises DataError saying what it lacks."""
    known = {name.casefold(): value for name, value in fields.items() if isinstance(name, str)}
    path = _first(known, columns.audio_names())
    if path is None:
        raise _missing("audio_path", columns.audio_names(), "--audio-column", fields)
    if not isinstance(path, str) or not path:
        raise DataError("the name of its audio is empty or not text.", "Write it in quotes or remove the row.")
    written = _first(known, columns.text_names())
    if written is None and not any(name.casefold() in known for name in columns.text_names()):
        raise _missing("text", columns.text_names(), "--text-column", fields)
    name = shown(path)[:200]
    if not isinstance(written, str | None):
        raise DataError(f"{name}: its text is a {type(written).__name__}.", "Write the text in quotes.")
    if not written or not tidy(written):
        raise DataError(f"{name} has no text.", "Write what is said in it or remove the row.")
    if problem := refusal(written):
        raise DataError(f"{name}: {problem.what}", problem.fix)
    language = _label(known, (columns.language,) if columns.language else LANGUAGE, name, numbers=False)
    offset, seconds, part = _span(known, name)
    row = Utterance(
        places.find(path),
        tidy(written),
        language=language_code(language) if language else None,
        speaker=_label(known, (columns.speaker,) if columns.speaker else SPEAKER, name),
        seconds=seconds,
        split=SPLITS.get(str(known.get("split") or "").lower()),
        source=_label(known, ("source",), name),
        licence=_label(known, LICENCE, name),
        consent=_label(known, ("consent",), name),
        line=line,
        offset=offset,
        part=part,
    )
    return row, written


class _NoColumn(DataError):
    """A row without audio or text: where all rows are so, the columns have other names."""


def _missing(what: str, names: tuple[str, ...], flag: str, fields: Mapping[str, Any]) -> _NoColumn:
    has = ", ".join(shown(name)[:40] for name in list(fields)[:20]) or "nothing"
    sentence = f"it names no {names[0] if len(names) == 1 else what}; its columns are: {has}."
    return _NoColumn(sentence, f"Name the right one with {flag}.")


def _first(known: Mapping[str, Any], names: Iterable[str | None]) -> Any:
    """The value of the first column that has one."""
    values = (known.get(name.casefold()) for name in names if name)
    return next((value for value in values if value is not None), None)


def _label(known: Mapping[str, Any], names: Iterable[str | None], file: str, numbers: bool = True) -> str | None:
    """A short fact as text; speakers are often numbers, languages never."""
    value = _first(known, names)
    if value is None or (isinstance(value, (int, bool)) and numbers):
        return None if value is None else str(value)
    if not isinstance(value, str):
        raise DataError(f"{file}: its {next(iter(names))} is not text.", "Write it in quotes.")
    if problem := refusal(value):
        raise DataError(f"{file}: {problem.what}", problem.fix)
    return tidy(value) or None


def _span(known: Mapping[str, Any], file: str) -> tuple[float, float | None, bool]:
    """(offset, seconds, whether it is a part) from `offset`, `start` and `end`, `seconds` or `duration`."""
    seconds = _number(_first(known, ("seconds", "duration")))
    start, end = _first(known, ("offset", "start", "start_time")), _first(known, ("end", "end_time"))
    if start in (None, "") and end in (None, ""):
        return 0.0, seconds if seconds and seconds > 0 else None, False
    first = _number(start) if start not in (None, "") else 0.0
    if end not in (None, ""):
        last = _number(end)
        seconds = None if first is None or last is None else last - first
        seconds = 0.0 if seconds is None else seconds
    if first is None or first < 0 or (seconds is not None and seconds <= 0):
        part = f"from {shown(start)}, {seconds} s" if end in (None, "") else f"from {shown(start)} to {shown(end)}"
        raise DataError(f"{file} names a part that is none ({part[:80]}).", "Correct it or remove the row.")
    return first, seconds, True


def _number(value: Any) -> float | None:
    """A finite number, also where a table has it as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 1e6 else None

"""Rows of JSONL, JSON, CSV and TSV files, a line at a time: a file of any size takes a few megabytes of memory."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.places import SUFFIXES, open_regular
from voxtral_finetune.data.rows import Columns, Raw
from voxtral_finetune.errors import DataError

MAX_ROW_BYTES = 1_000_000
"""A longer line is no row of a corpus but a mistake or an attack."""

MAX_JSON_BYTES = 256_000_000
"""A JSON array has to be read whole; beyond this it should be JSONL."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BARE = ("audio_path", "text", "normalized_text")
"""What the columns of LJSpeech's metadata.csv, which has no header, are called here."""

TOO_LONG = Finding("row", "the row is over 1 MB.", "Write one row a line.", usable=False)
NOT_JSON = Finding("row", "it is not JSON.", "Write one JSON object a line, in UTF-8.", usable=False)


def lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """(number, text) of each line that holds something; None for one that is too long, which is passed over.

    Bytes that are not UTF-8 become U+FFFD. Raises DataError where the file cannot be read or is not text.
    """
    if not path.exists():
        raise DataError(f"{shown(path)} does not exist.", "Check the path of the corpus.")
    with open_regular(path) as raw, open(raw.fileno(), "rb", closefd=False) as file:  # an open file
        for number in itertools.count(1):
            line = rest = file.readline(MAX_ROW_BYTES)
            if number == 1:
                _check_text(path, line)
            while len(rest) == MAX_ROW_BYTES:  # an endless line: read past it without keeping it
                rest = file.readline(MAX_ROW_BYTES)
            if not line:
                return
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")
            if len(line) == MAX_ROW_BYTES:
                yield number, None
            elif text.strip():
                yield number, text


def first_line(path: Path) -> str:
    """The first line that holds something; "" where there is none or it is too long."""
    return next((text or "" for _, text in lines(path)), "")


def jsonl(path: Path) -> Iterator[Raw]:
    """One JSON object a line."""
    for number, line in lines(path):
        yield Raw(number, None, (TOO_LONG,)) if line is None else _object(number, line)


def json_rows(path: Path) -> Iterator[Raw]:
    """A JSON file that is one array of objects, or one object of columns."""
    with open_regular(path) as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise DataError(f"{shown(path)} is over {MAX_JSON_BYTES // 10**6} MB.", "Write JSONL: one object a line.")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(path)} is not JSON in UTF-8.", "Write JSONL: one object a line.") from error
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        note = Finding("source", "The file holds columns, not rows; they were joined.", "Write JSONL, to be sure.")
        yield Raw(0, None, (note,))
        if len({len(column) for column in value.values()}) > 1:
            raise DataError(f"{shown(path)} has columns of different length.", "Write JSONL: one object a line.")
        value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise DataError(f"{shown(path)} is one JSON object over several lines.", "Write JSONL: one object a line.")
    for number, row in enumerate(value, start=1):
        yield _checked(number, row)


def table(path: Path, columns: Columns, delimiter: str | None = None) -> Iterator[Raw]:
    """Rows of a CSV, TSV or bar-separated file with or without a header line; the delimiter is found where not given.

    Raises DataError, showing the columns, where none is known to hold audio or text.
    """
    first = first_line(path)
    found = delimiter or _delimiter(first, columns)
    if found != (delimiter or {".tsv": "\t"}.get(path.suffix.lower(), ",")):
        note = Finding("source", f"Its cells are separated by {DELIMITERS[found]}.", "Nothing to do, if so meant.")
        yield Raw(1, None, (note,))
    rows = _cells(path, found)
    header = next(rows, (1, [], None))[1]
    names = {cell.strip().casefold() for cell in header}
    if not names & columns.all_names():
        header = _bare_header(path, header, found)
        note = Finding("source", "It has no header line; its columns were guessed.", "Add a first line of names.")
        yield Raw(1, None, (note,))
        rows = _cells(path, found)
    else:
        _check_columns(path, header, names, columns)
    for number, cells, problem in rows:
        if problem is None and len(cells) != len(header):
            what = f"it has {len(cells)} cells, the first line has {len(header)}."
            problem = Finding("row", what, "Put cells that hold the separator in quotes.", usable=False)
        fields = dict(zip((name.strip() for name in header), cells, strict=False))
        yield Raw(number, None, (problem,)) if problem else Raw(number, fields)


def _check_text(path: Path, head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{shown(path)} is UTF-16 text.", "Save it as UTF-8.")
    if b"\0" in head[:1024]:
        raise DataError(f"{shown(path)} is not a text file.", "Export it as UTF-8 JSONL, CSV or TSV.")


def _object(number: int, line: str) -> Raw:
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            names = [name for name, _ in items]
            twice.extend({name for name in names if names.count(name) > 1})
        return found

    try:
        value = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return Raw(number, None, (NOT_JSON,))
    notes = [f"it has {shown(name)[:40]} more than once; the last one counts." for name in twice]
    return _checked(number, value, tuple(Finding("row", note, "Remove the wrong one.") for note in notes))


def _checked(number: int, value: Any, findings: tuple[Finding, ...] = ()) -> Raw:
    if isinstance(value, dict):
        return Raw(number, value, findings)
    hint = 'Write {"audio_path": "...", "text": "..."}.'
    return Raw(number, None, (Finding("row", "it is not a JSON object.", hint, usable=False),))


def _delimiter(line: str, columns: Columns) -> str:
    """The separator that makes the most known names of a header line; without one, that which sets audio apart."""
    cells = {sign: [cell.strip(' "') for cell in line.split(sign)] for sign in DELIMITERS}
    known = {sign: len({cell.casefold() for cell in row} & columns.all_names()) for sign, row in cells.items()}
    if any(known.values()):
        return max(DELIMITERS, key=lambda sign: known[sign])
    if len(cells["|"]) in (2, 3):
        return "|"
    apart = (sign for sign, row in cells.items() if any(cell.lower().endswith(SUFFIXES) for cell in row))
    return next(apart, ",")


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str], Finding | None]]:
    """(line, cells, what is wrong) of each row. Quotes count in CSV only: sentences of TSV corpora hold single ones."""
    numbered = lines(path)
    if delimiter in "\t|":
        for number, line in numbered:
            if line is None:
                yield number, [], TOO_LONG
            else:
                yield number, [_unquoted(cell) for cell in line.split(delimiter)], None
        return
    at = 0

    def fed() -> Iterator[str]:
        nonlocal at
        for at, line in numbered:  # noqa: B007  # read below
            yield "" if line is None else line + "\n"

    reader = csv.reader(fed(), delimiter=delimiter)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield at, [], Finding("row", "it has a cell that never ends.", "Close its quotes.", usable=False)
            continue
        yield at, cells, None if cells else TOO_LONG


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a spreadsheet put around it."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _bare_header(path: Path, cells: list[str], delimiter: str) -> list[str]:
    """Names for the columns of a file without a header; raises DataError where no cell can be audio."""
    if delimiter == "|" and len(cells) in (2, 3):
        return list(BARE[: len(cells)])
    audio = next((at for at, cell in enumerate(cells) if cell.strip().lower().endswith(SUFFIXES)), None)
    if audio is None or len(cells) < 2:
        raise _unknown_columns(path, cells, "audio", "--audio-column")
    names = [f"column {at + 1}" for at in range(len(cells))]
    names[audio], names[1 if audio == 0 else 0] = "audio_path", "text"
    return names


def _check_columns(path: Path, header: list[str], names: set[str], columns: Columns) -> None:
    for what, wanted in (("audio", columns.audio_names()), ("text", columns.text_names())):
        if not names & {name.casefold() for name in wanted}:
            raise _unknown_columns(path, header, what, f"--{what}-column")


def _unknown_columns(path: Path, header: list[str], what: str, flag: str) -> DataError:
    has = ", ".join(shown(cell.strip())[:60] for cell in header[:20])
    sentence = f"No column of {shown(path)} is known to hold {what}; its first line is: {has}."
    return DataError(sentence, f"Name it with {flag}.")

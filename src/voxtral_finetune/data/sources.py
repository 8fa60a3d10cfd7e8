"""Speech in any usual form to rows: what a path holds is found out from its content, or said with `format`.

    jsonl, nemo    one JSON object a line           json           an array of objects, or columns
    csv, tsv       a table, header or not           folder         audio with .txt files of the same names
    ljspeech, commonvoice, audiofolder, kaldi       see `layouts`
    archive        a zip or tar(.gz) of any of these

Where a folder holds nothing but another folder, that one is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from voxtral_finetune.data import archives, layouts
from voxtral_finetune.data import survey as surveys
from voxtral_finetune.data.corpus import Corpus, Problem, Progress, Survey, Utterance
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.headers import is_audio
from voxtral_finetune.data.places import Places, open_regular
from voxtral_finetune.data.rows import Changed, Columns, Raw, read_rows
from voxtral_finetune.data.tables import first_line, json_rows, jsonl, table
from voxtral_finetune.errors import DataError

Reader = Callable[[Path, Columns], Iterable[Raw]]

READERS: dict[str, Reader] = {
    "jsonl": lambda path, _: jsonl(path),
    "nemo": lambda path, _: jsonl(path),
    "json": lambda path, _: json_rows(path),
    "csv": table,
    "tsv": lambda path, columns: table(path, columns, "\t"),
    "folder": layouts.text_folder,
    "ljspeech": layouts.ljspeech,
    "commonvoice": layouts.common_voice,
    "audiofolder": layouts.audio_folder,
    "kaldi": layouts.kaldi,
}
FORMATS = (*READERS, "archive")
FILES = ("jsonl", "nemo", "json", "csv", "tsv")
INSIDE = {"ljspeech": ("wavs",), "commonvoice": ("clips",), "csv": ("wavs",)}
"""Folders that a format's names are also relative to."""


@dataclass(frozen=True)
class Source:
    """What a path turned out to be: a format, and the file or folder to read."""

    format: str
    path: Path

    @property
    def folder(self) -> Path:
        """Where names of audio start."""
        return self.path.parent if self.format in FILES else self.path


def survey(
    path: Path,
    roots: Iterable[Path] = (),
    columns: Columns | None = None,
    progress: Progress | None = None,
    format: str | None = None,
) -> Survey:
    """Decodes every row of a source once; raises DataError where it is no source or has no row at all."""
    return surveys.survey(entries(find(path, format), roots, columns), progress)


def entries(
    source: Source, roots: Iterable[Path] = (), columns: Columns | None = None, changed: Changed | None = None
) -> Iterator[Utterance | Problem]:
    """Rows of a source and what is wrong with others, one at a time; audio is not opened yet.

    `changed` is called with each row whose text was tidied. Raises DataError where there is no row, or where no row
    has a column that is known: then it shows the columns.
    """
    columns = columns or Columns()
    Corpus(source.path).check_format()
    places = Places(source.folder, roots, INSIDE.get(source.format, ()))
    rows = 0
    others: list[Problem] = []
    for entry in read_rows(READERS[source.format](source.path, columns), places, source.path, columns, changed):
        if isinstance(entry, Problem) and not rows:
            others.append(entry)  # held until it is known whether there is any row
            continue
        if not rows:
            yield from others
        rows += isinstance(entry, Utterance)
        yield entry
    if not rows:
        refused = [problem for problem in others if not problem.usable]
        if not refused:
            raise DataError(f"{shown(source.path)} has no rows.", "Write one row for each recording.")
        if all(problem.kind == "columns" for problem in refused):
            raise DataError(f"{shown(source.path)}: in every row, {refused[0].what}", refused[0].fix)
        yield from others


def find(path: Path, format: str | None = None, unpack_into: Path | None = None) -> Source:
    """What a path holds; archives are unpacked (`archives.unpacked`). Raises DataError where it is nothing known."""
    path = path.expanduser().absolute()
    if format and format not in FORMATS:
        raise DataError(f"There is no format {shown(format)!r}.", f"The formats are {', '.join(FORMATS)}.")
    try:
        return _found(path, format, unpack_into)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _found(path: Path, format: str | None, unpack_into: Path | None) -> Source:
    if not path.exists():
        raise DataError(f"{shown(path)} does not exist.", "Check the path of the corpus.")
    if path.is_dir():
        return _folder(path, format)
    with open_regular(path) as file:
        head = file.read(512)
    if archives.is_archive(head):
        inner = None if format == "archive" else format
        return _folder(archives.unpacked(path, unpack_into), inner)
    if is_audio(head):
        raise DataError(f"{shown(path)} is one recording.", "Name the folder that also holds its text.")
    return _file(path, format)


def _file(path: Path, format: str | None) -> Source:
    kind = format or _text_format(path)
    if kind in FILES:
        return Source(kind, path)
    if kind == "archive":
        raise DataError(f"{shown(path)} is no zip or tar file.", "Leave --format out.")
    return Source(kind, path.parent)  # its manifest was named instead of its folder


def _text_format(path: Path) -> str:
    line = first_line(path).strip()
    if line.startswith("[") or line == "{":
        return "json"
    if line.startswith("{"):
        (raw,) = [row for row in jsonl(path) if row.line][:1] or [Raw(1, None)]
        fields = raw.fields or {}
        return "json" if fields and all(isinstance(value, list) for value in fields.values()) else "jsonl"
    if path.suffix.lower() in (".jsonl", ".json", ""):
        return "jsonl"
    if path.name == "metadata.csv" and (path.parent / "wavs").is_dir():
        return "ljspeech"
    if path.name == "validated.tsv" and (path.parent / "clips").is_dir():
        return "commonvoice"
    return "tsv" if path.suffix.lower() == ".tsv" else "csv"


def _folder(folder: Path, format: str | None) -> Source:
    """Looks at a folder, and where it holds only one other, at that."""
    if format and format not in (*FILES, "archive"):
        return Source(format, folder)
    while True:
        if source := _known_folder(folder):
            return source
        inner = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inner) != 1 or not inner[0].is_dir() or inner[0].is_symlink():
            fix = "It needs data.jsonl, metadata.csv, validated.tsv, wav.scp, or audio with .txt files."
            raise DataError(f"{shown(folder)} holds no corpus that is known.", fix)
        folder = inner[0]


def _known_folder(folder: Path) -> Source | None:
    def has(*names: str) -> bool:
        return all((folder / name).exists() for name in names)

    if has("data.jsonl"):
        return Source("jsonl", folder / "data.jsonl")
    if has("wav.scp", "text"):
        return Source("kaldi", folder)
    if has("validated.tsv", "clips"):
        return Source("commonvoice", folder)
    if has("metadata.csv") and first_line(folder / "metadata.csv").count("|") in (1, 2):
        return Source("ljspeech", folder)
    if layouts.metadata(folder):
        return Source("audiofolder", folder)
    if layouts.has_text_pairs(folder):
        return Source("folder", folder)
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jsonl", ".json", ".csv", ".tsv")]
    return _file(tables[0], None) if len(tables) == 1 else None

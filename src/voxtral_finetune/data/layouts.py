"""Rows of the folders that public corpora come in: Kaldi, LJSpeech, Common Voice, AudioFolder, audio with `.txt` files.

LJSpeech       metadata.csv (id|text|normalised text, no header) and wavs/<id>.wav
Common Voice   validated.tsv (client_id, path, sentence, locale, …) and clips/
AudioFolder    metadata.jsonl or metadata.csv (file_name, text, …), also one for each of train/, validation/, test/
Kaldi          wav.scp (recording path), text (utterance words), and, where there are, segments, utt2spk, utt2lang
folder         a.wav and a.txt, in any depth
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.places import SUFFIXES, open_regular, real
from voxtral_finetune.data.rows import SPLITS, Columns, Raw
from voxtral_finetune.data.tables import MAX_ROW_BYTES, jsonl, lines, table
from voxtral_finetune.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")


def common_voice(folder: Path, columns: Columns) -> Iterator[Raw]:
    """The validated clips of a Common Voice release."""
    for raw in table(folder / "validated.tsv", columns, "\t"):
        yield _with(raw, source="Common Voice")


def ljspeech(folder: Path, columns: Columns) -> Iterator[Raw]:
    """LJSpeech's metadata.csv; being recognised, it needs no note that it has no header."""
    return (raw for raw in table(folder / "metadata.csv", columns, "|") if raw.fields is not None or not _notes(raw))


def audio_folder(folder: Path, columns: Columns) -> Iterator[Raw]:
    """A `datasets` AudioFolder: names are relative to the metadata file, whose folder may be a split."""
    for path in metadata(folder):
        rows = jsonl(path) if path.suffix == ".jsonl" else table(path, columns)
        inside = "" if path.parent == folder else path.parent.name
        for raw in rows:
            yield _inside(raw, inside, columns) if inside else raw


def metadata(folder: Path) -> list[Path]:
    """The metadata files of an AudioFolder: its own, or one in each folder of it."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    return found[:1] or sorted(path for name in METADATA for path in folder.glob(f"*/{name}") if path.is_file())


def kaldi(folder: Path, columns: Columns) -> Iterator[Raw]:
    """A Kaldi data folder; what wav.scp would run as a command is refused, never run."""
    texts, recordings = _pairs(folder / "text"), _pairs(folder / "wav.scp")
    speakers, languages = (_pairs(folder / name, optional=True) for name in ("utt2spk", "utt2lang"))
    segments = _pairs(folder / "segments", optional=True)
    for utterance, (line, value) in (segments or recordings).items():
        recording, start, end = [*value.split(), "", "", ""][:3] if segments else (utterance, "", "")
        path = recordings.get(recording, (0, ""))[1]
        fields: dict[str, Any] = {"audio_path": path, "text": texts.pop(utterance, (0, None))[1]}
        fields |= {"speaker": speakers.get(utterance, (0, None))[1], "language": languages.get(utterance, (0, None))[1]}
        if path.endswith("|"):
            yield _refused(line, f"{shown(utterance)} is a command, which is not run.", "Write its output to a file.")
        elif not path:
            yield _refused(line, f"{shown(utterance)} has no audio in wav.scp.", "Add it or remove the utterance.")
        elif fields["text"] is None:
            yield _refused(line, f"{shown(utterance)} has no text.", "Add it to the file text.")
        else:
            yield Raw(line, fields | ({"start": start, "end": end} if segments else {}))
    for utterance, (line, _) in texts.items():
        yield _refused(line, f"{shown(utterance)} has a text but no audio.", "Add it to wav.scp or segments.")


def text_folder(folder: Path, columns: Columns) -> Iterator[Raw]:
    """Audio files with a text file of the same name; the number of a row is its place in the order of names."""
    number = 0
    for path in _files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        number += 1
        text = path.with_suffix(".txt")
        if not real(text).is_relative_to(real(folder)):
            yield _refused(number, f"{shown(text.name)} is a link out of the folder.", "Put the file itself there.")
            continue
        try:
            with open_regular(text) as file:
                content = file.read(MAX_ROW_BYTES + 1)
        except DataError:
            yield _refused(number, f"{shown(path.name)} has no {shown(text.name)}.", "Write what is said in it.")
            continue
        if len(content) > MAX_ROW_BYTES:
            yield _refused(number, f"{shown(text.name)} is over 1 MB.", "Write only what is said.")
            continue
        words = content.decode("utf-8-sig", errors="replace").strip()
        yield Raw(number, {"audio_path": str(path.relative_to(folder)), "text": words})


def has_text_pairs(folder: Path) -> bool:
    """Whether some audio file of a folder has a text file of its name."""
    audio = (path for path in _files(folder) if path.suffix.lower() in SUFFIXES)
    return any(path.with_suffix(".txt").is_file() for path in audio)


def _files(folder: Path) -> Iterator[Path]:
    """Everything in a folder in the order of names; hidden names are left out, links to folders not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _pairs(path: Path, optional: bool = False) -> dict[str, tuple[int, str]]:
    """A Kaldi table: key → (line, the rest of it)."""
    if optional and not path.exists():
        return {}
    rows = ((number, line.split(maxsplit=1)) for number, line in lines(path) if line)
    return {row[0]: (number, row[1].strip() if len(row) > 1 else "") for number, row in rows}


def _refused(line: int, what: str, fix: str) -> Raw:
    return Raw(line, None, (Finding("row", what, fix, usable=False),))


def _notes(raw: Raw) -> bool:
    return all(finding.kind == "source" for finding in raw.findings)


def _with(raw: Raw, **known: str) -> Raw:
    return raw if raw.fields is None else Raw(raw.line, {**known, **raw.fields}, raw.findings)


def _inside(raw: Raw, folder: str, columns: Columns) -> Raw:
    """A row of a metadata file in `folder`: its names start there, and the folder may name its split."""
    if raw.fields is None:
        return raw
    fields = dict(raw.fields)
    name = next((name for name in columns.audio_names() if isinstance(fields.get(name), str)), None)
    if name:
        fields[name] = f"{folder}/{fields[name]}"
    return Raw(raw.line, {"split": SPLITS.get(folder.lower()), **fields}, raw.findings)

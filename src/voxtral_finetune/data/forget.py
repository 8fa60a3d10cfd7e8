"""Withdrawn consent: takes everything of one speaker out of a corpus, and lists the runs that learned from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.doctor_fix import SET_ASIDE
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.places import real
from voxtral_finetune.data.rows import AUDIO, SPEAKER, TEXT
from voxtral_finetune.data.text_checks import tidy
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import write_durably
from voxtral_finetune.settings import cache, home

CACHES = ("cache", ".cache", ".unpacked")
LABELS = tuple(name.casefold() for name in SPEAKER)


@dataclass(frozen=True)
class Forgotten:
    """How many rows and audio files are gone, which runs used them, and which other files still name the speaker."""

    rows: int
    files: int
    runs: list[Path]
    left: list[Path]


def forget(folder: Path, speaker: str, outputs: Path | None = None) -> Forgotten:
    """Removes a speaker's rows, audio, recorded changes, caches in the corpus folder, and what runs have kept of audio.

    In a corpus that this program made, audio that no row names any more (a crash left it) goes too: nobody can say
    whose it is. Runs under `outputs` (default: outputs/ of the home) are listed, not touched: what a model has learned
    cannot be taken out of it. Raises DataError where the corpus has no such speaker.
    """
    corpus, name = Corpus(folder), tidy(speaker)
    if not corpus.manifest.is_file():
        raise DataError(f"{shown(corpus.manifest)} does not exist.", "Name a corpus folder.")
    if corpus.manifest.suffix != ".jsonl":
        raise DataError(f"{shown(corpus.manifest)} is no corpus.", "Prepare it first, then forget in the corpus.")
    with corpus.lock():
        rows = list(_rows(corpus.manifest))
        gone = {number for number, line, row in rows if _is_of(line, row, name)}
        earlier = [row for path in _backups(corpus) for _, line, row in _rows(path) if row and _is_of(line, row, name)]
        if not gone and not earlier:
            raise DataError(f"{shown(folder)} has no speaker {shown(name)!r}.", "Check the name; case counts.")
        taken = [row for number, _, row in rows if number in gone] + earlier
        paths = {path for path in map(_audio, taken) if path}
        paths |= {f"{SET_ASIDE}/{path}" for path in paths}  # where the doctor moves what cannot be used
        # The same recording under another speaker's name is still this speaker's voice.
        gone |= {number for number, _, row in rows if _audio(row) in paths}
        kept = [row for number, _, row in rows if number not in gone]
        words = {name, *({_text(row) for row in taken} - {_text(row) for row in kept} - {""})}
        runs = _runs(outputs or home() / "outputs", corpus, paths, name)
        # Audio goes first: broken off between the two, rows without audio are left, and the same call ends the work.
        files = _remove_audio(corpus, paths, {path for path in map(_audio, kept) if path})
        corpus.drop(gone)
        _clean(corpus, paths, words)
        for kept_by_runs in (*cache().glob("audio/[0-9a-f][0-9a-f]/*.f32*"), *cache().glob("embeddings/*.embeddings")):
            kept_by_runs.unlink(
                missing_ok=True
            )  # whose voice is in which is not written there; they are made again when needed
        left = {path for path in _others(corpus) if _mentions(path, words | {Path(name).stem for name in paths})}
    left |= {path for path in map(corpus.folder.joinpath, paths) if path.exists()}
    return Forgotten(len(gone), files, runs, sorted(left))


def _backups(corpus: Corpus) -> list[Path]:
    """What the doctor kept of the rows before it changed them."""
    return sorted(corpus.folder.glob(f"{corpus.manifest.name}.*.bak"))


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number, line, row) of every line; the row is empty where the line is none."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, line, row if isinstance(row, dict) else {}


def _is_of(line: str, row: dict[str, Any], name: str) -> bool:
    """Whether a row is the speaker's; half a line that a crash left is, where it holds the name."""
    if not row:
        return name in line
    return any(key.casefold() in LABELS and tidy(str(value)) == name for key, value in row.items())


def _audio(row: dict[str, Any]) -> str:
    """The name of a row's audio, in whatever usual column it is; "" where there is none."""
    known = {key.casefold(): value for key, value in row.items()}
    names = (known.get(column) for column in AUDIO)
    return next((name for name in names if isinstance(name, str) and "\0" not in name), "")


def _text(row: dict[str, Any]) -> str:
    known = {key.casefold(): value for key, value in row.items()}
    return next((value for column in TEXT if isinstance(value := known.get(column), str)), "")


def _remove_audio(corpus: Corpus, gone: set[str], kept: set[str]) -> int:
    """Removes audio inside the corpus folder, and in one of our own what no row names; returns how many files."""
    own = real(corpus.folder)
    files = {path for path in (real(own / name) for name in gone) if path.is_relative_to(own) and path.is_file()}
    if (own / "corpus.json").exists():
        named = {real(own / name) for name in kept}
        files |= {path for path in (own / "audio").rglob("*") if path.is_file() and real(path) not in named}
    for path in files:
        path.unlink()
    return len(files)


def _clean(corpus: Corpus, paths: set[str], words: set[str]) -> None:
    """Removes caches and temporary files, and drops the speaker's lines from the other JSONL files."""
    for path in _others(corpus):
        place = path.relative_to(corpus.folder)
        if place.parts[0] in CACHES or ".tmp" in path.name:
            path.unlink()
        elif path.suffix in (".jsonl", ".bak") and path.parent == corpus.folder:
            lines = [(line, row) for _, line, row in _rows(path)]
            kept = [line for line, row in lines if not _holds(row, paths | words)]
            if len(kept) < len(lines):
                write_durably(path, "".join(kept))


def _holds(row: dict[str, Any], values: set[str]) -> bool:
    return any(isinstance(value, str) and (value in values or tidy(value) in values) for value in row.values())


def _others(corpus: Corpus) -> list[Path]:
    """All files of the folder but the manifest and the audio."""
    audio = corpus.folder / "audio"
    files = (path for path in corpus.folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path != corpus.manifest and not path.is_relative_to(audio)]


def _mentions(path: Path, words: Iterable[str]) -> bool:
    content = path.read_bytes()
    return any(word and word.encode("utf-8", "replace") in content for word in words)


def _runs(outputs: Path, corpus: Corpus, paths: set[str], name: str) -> list[Path]:
    """Run folders whose split holds the speaker's audio, or another recording of the speaker from this corpus."""
    folder = real(corpus.folder)
    files = {str(real(folder / path)) for path in paths}
    found = []
    for path in sorted(outputs.glob("*/split.json")):
        try:
            split = json.loads(path.read_text(encoding="utf-8"))
            rows = [row for part in ("train", "dev", "test") for row in split[part]] + split.get("replay", [])
        except (OSError, ValueError, KeyError):
            continue  # a run that never had a whole split learned from nothing
        for row in rows:
            in_corpus = Path(row["audio"]).is_relative_to(folder)
            if row["audio"] in files or (in_corpus and row.get("speaker") == name):
                found.append(path.parent)
                break
    return found

"""Any source to a corpus folder of its own: 16-bit FLAC at the native rate without tags, tidied text, known facts.

Run again, it adds only what is not there yet; interrupted, it goes on. Each row remembers a fingerprint of where it
came from (`origin`: file, size, part, text), so that a row that is done is not decoded again. Audio files are named by
the hash of their sound. Texts that were changed on the way in are listed in `changes.jsonl`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from voxtral_finetune.data import archives, sources
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.rows import Columns, Problem, Utterance
from voxtral_finetune.data.survey import Examined, Progress, examine, in_parallel, languages
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import append_line

CHANGES = "changes.jsonl"
FACTS = ("language", "speaker", "split", "source", "licence", "consent")
ID_LENGTH = 32
"""Hexadecimal digits of the sound's SHA-256 in a file name: 128 bits never collide by chance."""

AT_ONCE = 64
"""Rows written down together; a crash costs at most the decoding of so many."""


@dataclass
class Prepared:
    """What came of it: rows `added` now, rows `known` before, texts `changed`, and every problem by line."""

    corpus: Corpus
    added: int = 0
    known: int = 0
    changed: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def refused(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.usable]


def prepare(
    path: Path,
    output: Path,
    roots: Iterable[Path] = (),
    columns: Columns | None = None,
    progress: Progress | None = None,
    format: str | None = None,
) -> Prepared:
    """Copies a source into the corpus folder `output`; `progress(done, total)` is called as it goes.

    Raises DataError where the source is none or has no usable row, or where `output` cannot be written.
    """
    with archives.temporary(output.expanduser().absolute() / ".unpacked") as unpack:
        source = sources.find(path, format, unpack)
        if source.folder.resolve() == output.expanduser().resolve():
            raise DataError(f"{shown(output)} is the source itself.", "Name another folder with --output.")
        written: dict[Utterance, str] = {}
        entries = list(sources.entries(source, roots, columns, written.__setitem__))
        prepared = Prepared(Corpus.create(output.expanduser().absolute()))
        prepared.problems += [entry for entry in entries if isinstance(entry, Problem)]
        rows = [entry for entry in entries if isinstance(entry, Utterance)]
        _add(prepared, rows, written, progress)
        prepared.problems += languages(rows)
    prepared.problems.sort(key=lambda problem: problem.line)
    if not prepared.added + prepared.known:
        first = prepared.refused[0]
        raise DataError(f"None of {len(prepared.refused)} rows can be used; the first: {first.what}", first.fix)
    return prepared


def _add(prepared: Prepared, rows: list[Utterance], written: dict[Utterance, str], progress: Progress | None) -> None:
    """Decodes, writes and records the rows that are not in the corpus yet."""
    corpus = prepared.corpus
    origins, kept = _recorded(corpus)
    new = [row for row in rows if _origin(row) not in origins]
    prepared.known = len(rows) - len(new)
    done = in_parallel(lambda row: _keep(corpus, row), new)
    count = prepared.known
    while batch := list(islice(done, AT_ONCE)):
        lines, changes = [], []
        for row, found in batch:
            prepared.problems += found.problems
            utterance = found.utterance
            if utterance is None:
                continue
            name = _name(utterance)
            texts = kept.setdefault(name, [])
            if texts:
                prepared.problems.append(_repeated(row, utterance.text in texts))
            if utterance.text in texts:
                continue
            texts.append(utterance.text)
            lines.append(json.dumps(_fields(utterance, name, _origin(row)), ensure_ascii=False))
            if row in written:
                change = {"audio_path": name, "line": row.line, "before": written[row], "after": row.text}
                changes.append(json.dumps(change, ensure_ascii=False))
        _record(corpus, lines, changes)
        prepared.added += len(lines)
        prepared.changed += len(changes)
        count += len(batch)
        if progress:
            progress(count, len(rows))


def _keep(corpus: Corpus, row: Utterance) -> Examined:
    """Examines a row and writes its sound, if it is new; the sound itself is not kept in memory."""
    found = examine(row)
    if found.utterance and found.sound:
        name = _name(found.utterance)
        if not (corpus.folder / name).exists():
            try:
                corpus.keep_audio(name, found.sound.wave, found.sound.rate)
            except OSError as error:
                what = f"{corpus.folder} cannot be written: {error.strerror}."
                raise DataError(what, "Free some space, then run it again: it goes on.") from error
    return Examined(found.row, found.problems, found.utterance)


def _record(corpus: Corpus, lines: list[str], changes: list[str]) -> None:
    try:
        with corpus.lock():
            if changes:  # before the rows: a row that is recorded is never looked at again
                append_line(corpus.folder / CHANGES, "\n".join(changes))
            if lines:
                append_line(corpus.manifest, "\n".join(lines))
    except OSError as error:
        what = f"{corpus.folder} cannot be written: {error.strerror}."
        raise DataError(what, "Free some space, then run it again: it goes on.") from error


def _recorded(corpus: Corpus) -> tuple[set[str], dict[str, list[str]]]:
    """(origins, texts by audio name) of what the corpus holds."""
    origins: set[str] = set()
    texts: dict[str, list[str]] = {}
    with corpus.manifest.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for line in file:
            try:
                row = json.loads(line)
                texts.setdefault(row["audio_path"], []).append(row["text"])
                origins.add(row.get("origin", ""))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that a crash cut off; `check` names it
    return origins, texts


def _origin(row: Utterance) -> str:
    """A fingerprint of what a row says and where it takes it from; "" where its file cannot be looked at."""
    try:
        status = row.audio.stat()
    except OSError:
        return "missing"
    facts = [str(row.audio.name), status.st_size, row.offset, row.seconds, row.part, row.text, row.speaker]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:ID_LENGTH]


def _name(row: Utterance) -> str:
    return f"audio/{(row.sha256 or '')[:ID_LENGTH]}.flac"


def _fields(row: Utterance, name: str, origin: str) -> dict[str, Any]:
    facts = {key: getattr(row, key) for key in FACTS}
    known = {key: value for key, value in facts.items() if value}
    return {"audio_path": name, "text": row.text, **known, "seconds": row.seconds, "origin": origin}


def _repeated(row: Utterance, same: bool) -> Problem:
    name = shown(row.audio.name)
    if same:
        what, fix = f"{name}: the same audio with the same text is there already.", "It was left out."
        return Problem.of(Finding("duplicate", what, fix), row.line, row.audio)
    what, fix = f"{name}: the same audio is there with another text; both are kept.", "Remove the wrong one."
    return Problem.of(Finding("conflict", what, fix), row.line, row.audio)

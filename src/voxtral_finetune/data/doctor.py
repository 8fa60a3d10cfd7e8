"""The data doctor: what every row of a corpus is worth, and what the corpus holds in all."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from voxtral_finetune.data import text_doubts
from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.measure import Measures
from voxtral_finetune.data.places import real
from voxtral_finetune.data.rows import Problem, Utterance
from voxtral_finetune.data.survey import Survey
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import write_durably

FORMAT = 1
"""Version of the JSON report; raised when a reader of the old one would go wrong."""

Outcome = Literal["accept", "accept_with_warning", "reject"]

CORPUS_WIDE = ("language", "source", "same text", "tokens")
"""Kinds of findings that are about the corpus, although some name the first row concerned."""


@dataclass(slots=True)
class Row:
    """A row and everything said about it. What is not known of a refused row is None or "".

    `file` names its audio relative to the corpus, or the file of rows where the row could not be read; where `part`,
    `seconds` from `offset` are all that it is of `audio`; `sha256` is the hash of its sound.
    """

    line: int
    file: str
    reasons: list[Finding] = field(default_factory=list)
    text: str = ""
    language: str | None = None
    speaker: str | None = None
    split: str | None = None
    seconds: float | None = None
    offset: float = 0.0
    part: bool = False
    audio: Path | None = None
    sha256: str | None = None
    measures: Measures | None = None

    @property
    def usable(self) -> bool:
        return all(reason.usable for reason in self.reasons)

    @property
    def outcome(self) -> Outcome:
        if not self.usable:
            return "reject"
        return "accept_with_warning" if self.reasons else "accept"

    @property
    def characters_per_second(self) -> float | None:
        return len(self.text) / self.seconds if self.text and self.seconds else None

    def json(self) -> dict[str, Any]:
        """The row as the JSON report has it: facts that are not known are left out."""
        facts = {name: getattr(self, name) for name in ("text", "language", "speaker", "split", "seconds")}
        facts["characters_per_second"] = self.characters_per_second
        facts |= asdict(self.measures) if self.measures else {}
        known = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items() if value}
        reasons = [{"kind": reason.kind, "what": reason.what, "fix": reason.fix} for reason in self.reasons]
        return {"line": self.line, "file": self.file, "outcome": self.outcome, "reasons": reasons, **known}


@dataclass(frozen=True)
class Diagnosis:
    """All rows by line; findings about the corpus as a whole; what it holds; and every problem, by line.

    `summary` holds rows, usable, warned, refused; seconds; languages, speakers: {name: {"rows", "seconds"}}, most
    first, "" where none is named; kinds: {kind: {"rows", "refused", "fix"}}; tokens_per_character: {language: float}
    where Voxtral was not trained on it; verdict: all of it in a sentence.
    """

    rows: list[Row]
    notes: list[Finding]
    summary: dict[str, Any]
    problems: list[Problem]

    def json(self) -> dict[str, Any]:
        return {"format": FORMAT, "summary": self._whole(), "rows": [row.json() for row in self.rows]}

    def save(self, path: Path) -> None:
        """Writes `json()` with one row a line; raises DataError where it cannot be written."""
        # Row by row: as objects all at once, the rows of a large corpus take ten times the memory of their text.
        rows = ",\n".join(json.dumps(row.json(), ensure_ascii=False) for row in self.rows)
        whole = json.dumps(self._whole(), ensure_ascii=False)
        text = f'{{"format": {FORMAT},\n"summary": {whole},\n"rows": [\n{rows}\n]}}\n'
        try:
            write_durably(path, text.encode("utf-8", errors="replace"))
        except OSError as error:
            raise DataError(f"{shown(path)} cannot be written: {error.strerror}.", "Name another file.") from error

    def _whole(self) -> dict[str, Any]:
        notes = [{"kind": note.kind, "what": note.what, "fix": note.fix} for note in self.notes]
        return {**self.summary, "notes": notes}


def diagnose(survey: Survey, folder: Path | None = None) -> Diagnosis:
    """What a survey says, by row and in all. Files under `folder` are named relative to it."""
    tokens = text_doubts.costs(survey.utterances)
    problems = [
        *survey.problems,
        *text_doubts.doubts(survey.utterances, survey.measures),
        *text_doubts.cost_findings(tokens),
    ]
    problems.sort(key=lambda problem: problem.line)
    start = f"{shown(real(folder))}/" if folder else ""
    rows, notes = _rows(survey, problems, start)
    return Diagnosis(rows, notes, _summary(rows, tokens), problems)


def _rows(survey: Survey, problems: list[Problem], start: str) -> tuple[list[Row], list[Finding]]:
    """(rows by line, findings on the whole), both without the `start` of files.

    Rows are told apart by line and file, since several files of rows may number their lines alike.
    """
    rows: dict[tuple[int, str], Row] = {}
    for utterance, measures in zip(survey.utterances, survey.measures, strict=True):
        row = _row(utterance, measures)
        rows[row.line, row.file] = row
    for problem in problems:
        if not problem.usable and problem.line:
            rows.setdefault((problem.line, problem.file), Row(problem.line, problem.file))
    by_line = {line: row for (line, _), row in rows.items()}
    notes = []
    for problem in problems:
        # What is wrong with a line itself names the file of rows, not the audio.
        found = rows.get((problem.line, problem.file)) or by_line.get(problem.line)
        what = problem.what.removeprefix(f"{shown(Path(problem.file).name)}: ")
        what = what.replace(start, "") if start else what
        if not what.startswith(problem.file.removeprefix(start)):  # a file's name stays as it is
            what = what[:1].upper() + what[1:]
        finding = Finding(problem.kind, what, problem.fix, problem.usable)
        if found is None or problem.kind in CORPUS_WIDE:
            notes.append(finding)
        else:
            found.reasons.append(finding)
    for row in rows.values():
        row.file = row.file.removeprefix(start)
    return sorted(rows.values(), key=lambda row: row.line), notes


def _row(utterance: Utterance, measures: Measures) -> Row:
    copied = ("line", "text", "language", "speaker", "split", "seconds", "offset", "part", "audio", "sha256")
    return Row(file=shown(utterance.audio), measures=measures, **{name: getattr(utterance, name) for name in copied})


def _summary(rows: list[Row], tokens: dict[str, float]) -> dict[str, Any]:
    outcomes = Counter(row.outcome for row in rows)
    usable = [row for row in rows if row.usable]
    summary = {
        "rows": len(rows),
        "usable": len(usable),
        "warned": outcomes["accept_with_warning"],
        "refused": outcomes["reject"],
        "seconds": round(sum(row.seconds or 0 for row in usable), 1),
        "languages": _amounts((row.language, row.seconds) for row in usable),
        "speakers": _amounts((row.speaker, row.seconds) for row in usable),
        "kinds": _kinds(rows),
        "tokens_per_character": tokens,
    }
    return {"verdict": _verdict(summary), **summary}


def _amounts(pairs: Iterable[tuple[str | None, float | None]]) -> dict[str, dict[str, float]]:
    rows: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    for name, length in pairs:
        rows[name or ""] += 1
        seconds[name or ""] += length or 0
    most_first = sorted(rows, key=lambda name: -seconds[name])
    return {name: {"rows": rows[name], "seconds": round(seconds[name], 1)} for name in most_first}


def _kinds(rows: list[Row]) -> dict[str, dict[str, Any]]:
    """What was found, what refuses rows first, then the most frequent."""
    kinds: dict[str, dict[str, Any]] = {}
    for row in rows:
        for reason in {reason.kind: reason for reason in row.reasons}.values():
            kind = kinds.setdefault(reason.kind, {"rows": 0, "refused": 0, "fix": reason.fix})
            kind["rows"] += 1
            kind["refused"] += not reason.usable
    return dict(sorted(kinds.items(), key=lambda item: (-item[1]["refused"], -item[1]["rows"])))


def _verdict(summary: dict[str, Any]) -> str:
    """The whole in a sentence."""
    speakers = len(summary["speakers"].keys() - {""})
    voices = f"{speakers} named speaker{'s' * (speakers != 1)}" if speakers else "no named speaker"
    rows = f"{summary['usable']} of {summary['rows']} row{'s' * (summary['rows'] != 1)} can be used"
    return f"{rows}: {length(summary['seconds'])}, {voices}."


def length(seconds: float) -> str:
    """A length of time in the unit that a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"

"""One model measured on one corpus, at any time: what `voxtral-finetune evaluate` shows and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.durable import write_durably
from voxtral_finetune.evaluation.behaviour import behaviour, normalised, recall, slices
from voxtral_finetune.evaluation.report import aligned, error_name
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.verdict import COMFORTABLE, interval
from voxtral_finetune.evaluation.wer import Score, errors_of, score
from voxtral_finetune.model.catalog import learned_audio

FORMAT = 1
MODEL = "model"
"""What the one model is called where `behaviour` names several."""

MOST_SHOWN = 20
"""Slices of a kind that the terminal shows; the file holds all."""


@dataclass(frozen=True)
class Evaluation:
    """What one model heard in a corpus; `low` to `high` is the 95 % interval of `score.wer`.

    `behaviour`, `slices`, `normalisers` and `terms` are as `evaluation.behaviour` gives them, of the model MODEL.
    `utterances`: {"audio", "reference", "heard", "seconds", "language", "speaker", "errors", "words", "capped"} each.
    """

    model: str
    corpus: str
    score: Score
    low: float
    high: float
    seconds: float
    behaviour: dict[str, Any]
    slices: dict[str, Any]
    normalisers: dict[str, Any]
    terms: dict[str, Any]
    utterances: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        write_durably(path, text.encode("utf-8", errors="replace"))


def chosen(rows: Sequence[Utterance]) -> list[Utterance]:
    """The rows to measure on: those marked as test, where any are, else all."""
    return [row for row in rows if row.split == "test"] or list(rows)


def evaluated(
    model: str, corpus: str, rows: Sequence[Utterance], heard: Transcripts, terms: Sequence[str] = ()
) -> Evaluation:
    """The measures of a model that heard these rows, in their order; raises DataError where no row has a word."""
    references = [row.text for row in rows]
    errors = [errors_of(*pair) for pair in zip(references, heard.texts, strict=True)]
    found = score(references, heard.texts)
    low, high = interval([each.errors for each in errors], [each.words for each in errors])
    utterances = [
        {
            "audio": str(row.audio),
            "reference": row.text,
            "heard": text,
            "seconds": row.seconds,
            "language": row.language,
            "speaker": row.speaker,
            "errors": each.errors,
            "words": each.words,
            "capped": capped,
        }
        for row, text, each, capped in zip(rows, heard.texts, errors, heard.capped, strict=True)
    ]
    return Evaluation(
        model=model,
        corpus=corpus,
        score=found,
        low=low,
        high=high,
        seconds=round(heard.seconds, 3),
        behaviour=behaviour(references, heard),
        slices=slices(rows, {MODEL: errors}),
        normalisers=normalised(rows, {MODEL: heard.texts}),
        terms=recall(terms, references, heard.texts) if terms else {},
        utterances=utterances,
        warnings=_warnings(model, rows),
    )


def table(made: Evaluation) -> str:
    """The measures for a terminal; slices only where there are several."""
    found, names = made.score, {"loop_rate": "texts that loop", "empty_rate": "left empty", "cap_hit_rate": "cut off"}
    rows = [(f"{error_name(found)} ({found.normaliser})", _percent(found.wer))]
    rows += [("character error rate", _percent(found.cer))] if found.unit == "word" else []
    rows += [(name, str(getattr(found, name))) for name in ("substitutions", "deletions", "insertions")]
    others = {name: rates[MODEL] for name, rates in made.normalisers.items() if name != found.normaliser}
    rows += [(f"{error_name(found)} ({name})", _percent(rates["wer"])) for name, rates in others.items()]
    rows += [(shown, _percent(made.behaviour[key])) for key, shown in names.items()]
    if made.terms:
        rows.append((f"terms recognised ({made.terms['said']} said)", _percent(made.terms["recall"])))
    if speed := made.behaviour["speed"]:
        rows.append(("times as fast as speech", f"{speed:.1f}"))
    counted = f"{found.utterances} utterances, {found.words} {found.unit}s, {made.seconds / 60:.1f} minutes of speech"
    lines = [counted, "", *aligned(rows), ""]
    lines.append(f"95 % interval of the {error_name(found)}: {_percent(made.low)} to {_percent(made.high)}")
    for kind, slices_of in made.slices.items():
        if len(slices_of) > 1:
            lines += ["", *aligned(_sliced(kind, slices_of))]
    return "\n".join([*lines, *(f"Warning: {text}" for text in made.warnings)]) + "\n"


def _sliced(kind: str, found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    names = {"speaker": "by speaker", "seconds": "by length", "language": "by language"}
    rows = [(names[kind], "utterances", "error rate")]
    for one in found[:MOST_SHOWN]:
        name = "".join(sign if sign.isprintable() else " " for sign in one["name"] or "not named")
        rows.append((f"  {name[:40]}", str(one["utterances"]), _percent(one["wer"][MODEL])))
    return rows


def _warnings(model: str, rows: Sequence[Utterance]) -> list[str]:
    """What a reader of the numbers must know."""
    said = []
    if len(rows) < COMFORTABLE:
        said.append(f"A small test set: {len(rows)} utterances. With {COMFORTABLE} or more the interval is narrower.")
    if count := sum(row.sha256 in _learned(model) for row in rows):
        said.append(f"{count} of {len(rows)} recordings are among those that this model learned from.")
    return said


def _learned(model: str) -> frozenset[str | None]:
    """Hashes of the recordings that a checkpoint, or the run that it belongs to, learned from or was chosen by."""
    folder = Path(model)
    path = next((path for path in (folder / "split.json", folder.parent / "split.json") if path.is_file()), None)
    if path is None:
        return frozenset(learned_audio(model))
    divided = Split.load(path)
    return frozenset(row.sha256 for row in divided.train + divided.dev + divided.replay if row.sha256)


def _percent(fraction: float | None) -> str:
    return "none" if fraction is None else f"{100 * fraction:.1f} %"

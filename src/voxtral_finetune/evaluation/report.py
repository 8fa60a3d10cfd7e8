"""What a run's `report.json` holds: the measured before and after, and what they were measured on and learned from.

Model card, terminal and Studio show only what stands here; a fact that is not known is left out, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxtral_finetune.errors import RunError
from voxtral_finetune.evaluation.verdict import Verdict, sentence
from voxtral_finetune.evaluation.wer import Score
from voxtral_finetune.run import write_durably

FORMAT = 1
"""Version of `report.json`; raised when a reader of the old one would go wrong."""


@dataclass(frozen=True)
class Scored:
    """One test utterance: its audio (path as in the corpus), what was said, and what each model heard.

    Of `words` said, each model got so many errors; `capped` where its text was cut off at the most that is allowed.
    """

    audio: str
    reference: str
    base: str
    tuned: str
    seconds: float
    language: str | None = None
    speaker: str | None = None
    words: int = 0
    base_errors: int = 0
    tuned_errors: int = 0
    base_capped: bool = False
    tuned_capped: bool = False


@dataclass(frozen=True)
class Report:
    """The outcome of a run. The dictionaries hold JSON values; any key may be missing where it is not known.

    model     checkpoint, revision, method, preset, license (the Hub's name for it, e.g. apache-2.0)
    data      train, dev, test, and replay where there is one: each {"utterances": int, "seconds": float}; languages:
              list of codes; speakers: int; sources, licences: lists of names; split_by: what test shares nothing of
              with train (holds "speaker", "text", or is "random"); split_note: a sentence on it
    training  steps, epochs, best_step, seconds, seconds_to_best, peak_memory_bytes, size_bytes, learning_rate,
              batch_size, …
    behaviour   {"base" and "tuned": what `behaviour.behaviour` gives}
    slices      what `behaviour.slices` gives for "base" and "tuned"
    normalisers what `behaviour.normalised` gives for both: the rates again, under every normaliser that fits
    terms       {"base" and "tuned": what `behaviour.recall` gives}, empty without --terms
    guards      {"name", "utterances", "base_wer", "tuned_wer", "change", "budget", "broken"} of each --guard, fractions
    scales      what `scale.table` gives: the strengths of the adapter that were tried on dev and guards, the one kept
    silence     of so many "clips" without speech, those in which "base" and "tuned" say words; empty without a guard
    """

    base: Score
    tuned: Score
    verdict: Verdict
    utterances: list[Scored]
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    behaviour: dict[str, Any] = field(default_factory=dict)
    slices: dict[str, Any] = field(default_factory=dict)
    normalisers: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, Any] = field(default_factory=dict)
    guards: list[dict[str, Any]] = field(default_factory=list)
    silence: dict[str, int] = field(default_factory=dict)
    scales: list[dict[str, Any]] = field(default_factory=list)
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Writes `report.json` so that after a crash the old or the new one is there, whole."""
        text = json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"
        write_durably(path, text.encode("utf-8", errors="replace"))  # half a surrogate pair must not lose a report

    @staticmethod
    def load(path: Path) -> Report:
        """Reads a report; raises RunError where there is none, or none that this version understands."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                what = f"{path} has format {content['format']!r}; this version reads {FORMAT}."
                raise RunError(what, "Update voxtral-finetune.")
            return _report(content)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.", "Evaluate the run first.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} is not a report.", "Evaluate the run again.") from error


def table(report: Report) -> str:
    """The before/after table for a terminal, with the verdict and any warnings, one a line."""
    base, tuned, verdict = report.base, report.tuned, report.verdict
    rows = [("", "before", "after", "difference"), _rate(error_name(base), base.wer, tuned.wer)]
    if base.unit == "word":
        rows.append(_rate("character error rate", base.cer, tuned.cer))
    for name in ("substitutions", "deletions", "insertions"):
        before, after = getattr(base, name), getattr(tuned, name)
        rows.append((name, f"{before}", f"{after}", f"{after - before:+d}"))
    rows += [_rate(name, *pair) for name, pair in _behaved(report).items() if any(pair)]
    rows += [_rate(f"guard {_printable(one['name'])}", one["base_wer"], one["tuned_wer"]) for one in report.guards]
    if clips := report.silence:
        rows.append((f"words in silence, of {clips['clips']}", str(clips["base"]), str(clips["tuned"]), ""))
    lines = aligned(rows)
    lines += ["", f"Difference of the {error_name(base)}: {interval(verdict)}", sentence(verdict, base.unit)]
    lines += [_printable(text) for text in (verdict.note, *(f"Warning: {text}" for text in report.warnings)) if text]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each as lines: the first cell to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def training_line(report: Report) -> str:
    """What the training took, in a line."""
    facts = report.training
    return (
        f"Trained {facts['seconds']:.0f} s in {facts['steps']} updates; the best was update {facts['best_step']},"
        f" after {facts['seconds_to_best']:.0f} s. Peak memory {facts['peak_memory_bytes'] / 1e9:.1f} GB,"
        f" model {facts['size_bytes'] / 1e6:.1f} MB on disk."
    )


def error_name(score: Score) -> str:
    """What `score.wer` is to be called: in scripts without spaces it counts characters."""
    return f"{score.unit} error rate"


def interval(verdict: Verdict) -> str:
    """The difference in percentage points with its 95 % interval."""
    bounds = f"{100 * verdict.low:+.1f} to {100 * verdict.high:+.1f}"
    return f"{100 * verdict.difference:+.1f} points (95 % interval {bounds})"


def _report(content: dict[str, Any]) -> Report:
    rebuilt = {
        "base": Score(**content["base"]),
        "tuned": Score(**content["tuned"]),
        "verdict": Verdict(**content["verdict"]),
        "utterances": [Scored(**row) for row in content["utterances"]],
    }
    return Report(**{**content, **rebuilt})


def _behaved(report: Report) -> dict[str, tuple[float, float]]:
    """The rates that a reader has to know of where they are not zero, by name: (before, after)."""
    names = {"loop_rate": "texts that loop", "empty_rate": "texts left empty", "cap_hit_rate": "texts cut off"}
    both = [report.behaviour.get(model, {}) for model in ("base", "tuned")]
    found = {shown: (both[0].get(key) or 0.0, both[1].get(key) or 0.0) for key, shown in names.items()}
    recalls = [report.terms.get(model, {}).get("recall") for model in ("base", "tuned")]
    if None not in recalls:
        found["terms recognised"] = (recalls[0], recalls[1])
    return found


def _rate(name: str, before: float, after: float) -> tuple[str, str, str, str]:
    return name, f"{100 * before:.1f} %", f"{100 * after:.1f} %", f"{100 * (after - before):+.1f}"


def _printable(text: str) -> str:
    """One line without control characters: a warning may quote a file's name, and a terminal obeys some of them."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """Seconds in the unit that is read best."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"

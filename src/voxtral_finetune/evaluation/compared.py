"""Runs side by side: what they reached, what it took, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.pages import number, render
from voxtral_finetune.data.split import Split
from voxtral_finetune.durable import write_durably
from voxtral_finetune.errors import DataError, FinetuneError, RunError
from voxtral_finetune.evaluation.page import MEASURED, TEMPLATES, private
from voxtral_finetune.evaluation.report import Report, aligned, error_name, interval
from voxtral_finetune.run import Run

NOT_CHOSEN = ("output_dir", "project", "trackio_space")
"""Settings that say where a run goes, not what it does."""

MOST_CHARACTERS = 40
"""Of a setting's value, in the terminal."""


@dataclass(frozen=True)
class Comparison:
    """Runs by name, and rows of (what, one value a run); `notes` say what cannot be compared or was left out."""

    names: list[str]
    measured: list[tuple[str, ...]]
    settings: list[tuple[str, ...]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Finished:
    folder: Path
    report: Report
    settings: dict[str, object]
    texts: list[str]
    sounds: list[tuple[str, float]] | None

    def tested_like(self, other: _Finished) -> bool:
        """Whether both were tested on the same references and, as far as both know it, the same recordings."""
        heard_alike = self.sounds is None or other.sounds is None or self.sounds == other.sounds
        same_rules = self.report.base.normaliser == other.report.base.normaliser
        return self.texts == other.texts and heard_alike and same_rules


def compared(folders: Sequence[Path]) -> Comparison:
    """The runs of these folders; those without a result are named in the notes. Raises RunError where none has one."""
    runs: list[_Finished] = []
    notes = []
    for folder in dict.fromkeys(path.expanduser().absolute() for path in folders):
        try:
            runs.append(_finished(folder))
        except FinetuneError as error:
            notes.append(f"Left out: {shown(error.what)}")
    if not runs:
        raise RunError("None of the runs has a result.", " ".join(notes))
    sets = _sets(runs)
    if len(set(sets)) > 1:
        notes.insert(0, "Not comparable: runs with different letters were not tested on the same recordings and texts.")
    names = [shown(run.folder.name) for run in runs]
    if len(set(names)) < len(names):
        names = [shown(f"{run.folder.parent.name}/{run.folder.name}") for run in runs]
    return Comparison(names, _measured(runs, sets), _different(runs), notes)


def table(made: Comparison) -> str:
    """For a terminal: a column a run."""
    rows: list[tuple[str, ...]] = [("", *made.names), *made.measured]
    if made.settings:
        blank = [""] * len(made.names)
        rows += [("", *blank), ("settings that differ", *blank)]
        rows += [(f"  {name}", *map(_short, values)) for name, *values in made.settings]
    lines = [line.rstrip() for line in aligned(rows)]
    return "\n".join([*lines, *(["", *made.notes] if made.notes else [])]) + "\n"


def write_page(path: Path, made: Comparison) -> None:
    """Writes the comparison as one HTML file that needs nothing else; raises DataError where that is impossible."""
    rows = [(name, *map(private, values)) for name, *values in made.settings]
    text = render(TEMPLATES, "compare", names=made.names, measured=made.measured, settings=rows, notes=made.notes)
    try:
        write_durably(path.expanduser().absolute(), text.encode("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be written: {error.strerror}.", "Name another file.") from error


def _finished(folder: Path) -> _Finished:
    """A run with its result; raises RunError or SettingsError where it has none."""
    run = Run(folder)
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is not a run folder.", "Name a folder under outputs/.")
    if not (folder / "report.json").is_file():
        raise RunError(f"{folder} is not finished ({run.status()}).", "Go on with it by --resume.")
    report = Report.load(folder / "report.json")
    try:
        test = Split.load(folder / "split.json").test
    except (OSError, RunError):
        test = []
    sounds = sorted((row.sha256 or "", row.offset) for row in test)
    known = bool(sounds) and all(sha256 for sha256, _ in sounds)
    texts = sorted(row.reference for row in report.utterances)
    return _Finished(folder, report, run.settings().flat(), texts, sounds if known else None)


def _sets(runs: list[_Finished]) -> list[str]:
    """The name of each run's test set, from A on: the same for runs that were tested alike."""
    kinds: list[_Finished] = []
    names = []
    for run in runs:
        alike = next((index for index, kind in enumerate(kinds) if run.tested_like(kind)), len(kinds))
        kinds += [run] if alike == len(kinds) else []
        names.append(chr(ord("A") + alike) if alike < 26 else str(alike + 1))
    return names


def _measured(runs: list[_Finished], sets: list[str]) -> list[tuple[str, ...]]:
    reports = [run.report for run in runs]
    rate = error_name(reports[0].base) if len({error_name(report.base) for report in reports}) == 1 else "error rate"
    rows: list[tuple[str, ...]] = [
        (
            "test set",
            *(f"{name}, {report.base.utterances} utterances" for name, report in zip(sets, reports, strict=True)),
        ),
        ("verdict", *(report.verdict.word for report in reports)),
        (f"{rate} before", *(_percent(report.base.wer) for report in reports)),
        (f"{rate} after", *(_percent(report.tuned.wer) for report in reports)),
        ("difference, points", *(f"{100 * report.verdict.difference:+.1f}" for report in reports)),
        ("95 % interval", *(interval(report.verdict).split("interval ")[1][:-1] for report in reports)),
        ("character error rate before", *(_percent(report.base.cer) for report in reports)),
        ("character error rate after", *(_percent(report.tuned.cer) for report in reports)),
    ]
    for key, (name, form) in MEASURED.items():
        values = [report.training.get(key) for report in reports]
        if key != "learning_rate" and any(value is not None for value in values):
            rows.append((name.lower(), *("" if value is None else form(value) for value in values)))
    return rows


def _different(runs: list[_Finished]) -> list[tuple[str, ...]]:
    """The settings in which the runs differ, with the value of each."""
    found = []
    for name in runs[0].settings:
        values = [_written(run.settings.get(name)) for run in runs]
        if name not in NOT_CHOSEN and len(set(values)) > 1:
            found.append((name, *values))
    return found


def _written(value: Any) -> str:
    if value is None or value == []:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else shown(value)


def _short(value: str) -> str:
    """The end of a long value: of two paths it is what differs."""
    return value if len(value) <= MOST_CHARACTERS else "…" + value[1 - MOST_CHARACTERS :]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

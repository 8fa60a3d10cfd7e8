"""A run's corpus, read once and divided: what it learns from, what chooses, what judges."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from voxtral_finetune.data import held_out, hub, sources, stream
from voxtral_finetune.data.corpus import Corpus, Progress
from voxtral_finetune.data.rows import Columns, Problem, Utterance
from voxtral_finetune.data.split import Split, split
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings, home


def divide(run: Run, settings: Settings, progress: Progress) -> tuple[Split, int]:
    """(the corpus that the settings name, divided; how many of its rows are refused). Each problem is a warning.

    Of a corpus that streams, `train` is empty. Raises DataError where there is too little, or, where the settings are
    strict, any row that cannot be used.
    """
    return _held_out(run, settings, progress) if settings.data.stream else _divided(run, settings, progress)


def replayed(path: Path, divided: Split, apart: set[str | None], progress: Progress) -> list[Utterance]:
    """The rows of the corpus at `path` that a run may learn from along with its own.

    Left out are those marked for dev or test, and all audio that is in the run's sets or (by hash) in `apart`.
    Raises DataError where none is left.
    """
    taken = apart | {row.sha256 for row in [*divided.train, *divided.dev, *divided.test]}
    usable = sources.survey(path, progress=progress).utterances
    rows = {row.sha256: row for row in usable if row.split in (None, "train") and row.sha256 not in taken}
    if not rows:
        what = f"{path} has nothing to replay: each of its {len(usable)} usable rows is learned from or measured on."
        raise DataError(what, "Name another corpus by --replay.")
    return list(rows.values())


def _held_out(run: Run, settings: Settings, progress: Progress) -> tuple[Split, int]:
    """(dev and test of a corpus that streams, without a train; how many rows were refused on the way)"""
    divided, pinned, survey = held_out.hold_out(run.folder, settings, progress)
    for problem in survey.problems[: stream.MOST_WARNED]:
        run.emit("warning", **_problem(problem))
    run.emit("imported", revision=pinned.revision, source=pinned.source, added=len(divided.dev) + len(divided.test))
    return divided, len(survey.refused)


def _divided(run: Run, settings: Settings, progress: Progress) -> tuple[Split, int]:
    """(a corpus of this machine divided, how many of its rows are refused)"""
    chosen = settings.data
    survey = sources.survey(_corpus(run, settings, progress), chosen.audio_root, _columns(settings), progress)
    for problem in survey.problems:
        run.emit("warning", **_problem(problem))
    if survey.refused and chosen.strict:
        raise DataError(f"{len(survey.refused)} rows cannot be used.", "Mend them, or run without --strict.")
    rows = [_with_language(row, chosen.language) for row in survey.utterances]
    divided = split(rows, chosen.split_by, settings.training.seed, chosen.train_count, chosen.eval_count)
    return divided, len(survey.refused)


def _corpus(run: Run, settings: Settings, progress: Progress) -> Path:
    """Where the corpus is; a dataset of the Hub is streamed into one under datasets/ first, its commit noted."""
    chosen = settings.data
    if chosen.dataset_jsonl is not None:
        return chosen.dataset_jsonl
    sampled = settings.training.seed if chosen.max_hours else None
    spec = replace(stream.spec_of(settings), max_hours=chosen.max_hours, seed=sampled)
    parts = filter(None, (chosen.dataset_name, chosen.dataset_config, chosen.dataset_split))
    # What else was asked for is in the name too: rows of one choice must not be found in the corpus of another.
    choice = hashlib.sha256(repr(spec).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([*parts, choice]))
    corpus = Corpus.create(home() / "datasets" / name)
    imported = hub.import_hub(corpus, spec, progress)
    run.emit("imported", revision=imported.revision, source=imported.source, added=imported.added)
    return corpus.folder


def _columns(settings: Settings) -> Columns:
    chosen = settings.data
    if chosen.dataset_name:
        return Columns()  # the import has named them as a corpus does
    return Columns(chosen.audio_column, chosen.text_column, chosen.language_column, chosen.speaker_column)


def _with_language(row: Utterance, language: str | None) -> Utterance:
    return row if row.language or not language else replace(row, language=language)


def _problem(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "file": problem.file, "what": problem.what, "fix": problem.fix}

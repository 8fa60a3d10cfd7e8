"""The order of the stages; the only place that knows it.

    data → base score → training → model/ → reload → tuned score → report.json → README.md

Each stage leaves its result in the run folder, so that a run that was stopped or died goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from voxtral_finetune.data import audio, held_out, hub, segments, sources, stream
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.rows import Columns, Problem, Utterance
from voxtral_finetune.data.split import Split, split, summary
from voxtral_finetune.durable import write_durably
from voxtral_finetune.errors import DataError, FinetuneError, RunError, SettingsError, StopRequested
from voxtral_finetune.evaluation.behaviour import read_terms
from voxtral_finetune.evaluation.measured import check_changed, measured, result
from voxtral_finetune.evaluation.pieces import Recording
from voxtral_finetune.evaluation.report import Report
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.publishing.card import write_card
from voxtral_finetune.run import Run
from voxtral_finetune.running import Progress, check_stop, explained, progress_of, stop_on_signal
from voxtral_finetune.settings import Settings, home
from voxtral_finetune.training import checks, distributed


def create(settings: Settings) -> Run:
    """A new run for these settings; where several processes train it, the first one makes it."""
    distributed.join(settings.model.device == "cpu")
    return Run.open(Path(distributed.agree(lambda: str(Run.create(settings).folder))))


def execute(run: Run) -> Report | None:
    """Does all of a run that is not done yet; what happens is events of the run, the result its report.

    Raises what went wrong after writing it down as the event `failed`, and StopRequested after `stopped`. Where several
    processes train, all but the first help with that and return None.
    """
    os.environ.setdefault("TRACKIO_DIR", str(home() / "trackio"))
    settings = run.settings()
    distributed.join(settings.model.device == "cpu")
    if distributed.processes()[0] > 0:
        _help(_Silent(run.folder), settings)
        return None
    with run.lock(), stop_on_signal(run):
        run.clear_stop()
        run.emit("started", folder=str(run.folder), pid=os.getpid())
        try:
            report = _stages(run, settings)
        except (StopRequested, KeyboardInterrupt) as stop:
            run.emit("stopped", what=str(stop))
            raise
        except FinetuneError as error:
            run.emit("failed", what=error.what, fix=error.fix)
            raise
        except BaseException as error:
            said = explained(error)
            run.emit("failed", what=said.what, fix=said.fix)
            if isinstance(said, RunError):
                raise said from error
            raise
        run.emit("finished")
        return report


class _Silent(Run):
    """A run as a process that only helps sees it: the first one tells what happens."""

    def emit(self, kind: str, **fields: Any) -> None:
        """Nothing."""


def _help(run: Run, settings: Settings) -> None:
    """What a process that is not the first does: train, once the first has divided the corpus."""
    with stop_on_signal(run):
        if distributed.agree(lambda: False):
            _learn(run, settings, Split.load(run.folder / "split.json"))


def _stages(run: Run, settings: Settings) -> Report:
    from voxtral_finetune.model import load
    from voxtral_finetune.training import devices
    from voxtral_finetune.training.callbacks import track_result

    divided = _divide(run, settings)
    with devices.claimed(str(load.pick_device(settings.model.device)), run):
        base = _texts(run, settings, "base", settings.model.model_checkpoint, divided.test)
        if distributed.agree(lambda: not (run.folder / "model").is_dir()):
            _learn(run, settings, divided)
        tuned = _texts(run, settings, "tuned", str(run.folder / "model"), divided.test)
    check_changed(base, tuned)
    report = measured(run, settings, divided, base, tuned)
    report.save(run.folder / "report.json")
    write_card(run.folder)
    facts = result(report)
    run.emit("result", verdict=report.verdict.word, **facts)
    track_result(run, settings, facts)
    return report


def _divide(run: Run, settings: Settings) -> Split:
    path = run.folder / "split.json"
    if path.exists():
        return Split.load(path)
    run.emit("stage", name="data", title="Reading the corpus")
    check(settings)
    divided, skipped = _held_out(run, settings) if settings.data.stream else _divided(run, settings)
    divided.save(path)
    run.emit(
        "data",
        skipped=skipped,
        by=divided.by,
        note=divided.note,
        **{name: summary(getattr(divided, name)) for name in ("train", "dev", "test")},
    )
    return divided


def _held_out(run: Run, settings: Settings) -> tuple[Split, int]:
    """(dev and test of a corpus that streams, without a train; how many rows were refused on the way)"""
    divided, pinned, survey = held_out.hold_out(run.folder, settings, progress_of(run))
    for problem in survey.problems[: stream.MOST_WARNED]:
        run.emit("warning", **_problem(problem))
    run.emit("imported", revision=pinned.revision, source=pinned.source, added=len(divided.dev) + len(divided.test))
    return divided, len(survey.refused)


def _divided(run: Run, settings: Settings) -> tuple[Split, int]:
    """(a corpus of this machine divided, how many of its rows are refused)"""
    chosen = settings.data
    survey = sources.survey(_corpus(run, settings), chosen.audio_root, _columns(settings), progress_of(run))
    for problem in survey.problems:
        run.emit("warning", **_problem(problem))
    if survey.refused and chosen.strict:
        raise DataError(f"{len(survey.refused)} rows cannot be used.", "Mend them, or run without --strict.")
    rows = [_with_language(row, chosen.language) for row in survey.utterances]
    divided = split(rows, chosen.split_by, settings.training.seed, chosen.train_count, chosen.eval_count)
    return divided, len(survey.refused)


def _corpus(run: Run, settings: Settings) -> Path:
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
    imported = hub.import_hub(corpus, spec, progress_of(run))
    run.emit("imported", revision=imported.revision, source=imported.source, added=imported.added)
    return corpus.folder


def check(settings: Settings) -> None:
    """Raises SettingsError or DataError where a run cannot do what it is told, before it has a folder."""
    checks.check_training(settings)
    chosen = settings.data
    if chosen.stream:
        stream.check(settings)
    if (chosen.dataset_jsonl is None) == (chosen.dataset_name is None):
        many = "No corpus is named." if chosen.dataset_name is None else "Two corpora are named."
        raise SettingsError(many, "Give --dataset-jsonl PATH, or --dataset-name of a dataset on the Hub.")
    if chosen.dataset_jsonl is not None and not chosen.dataset_jsonl.expanduser().exists():
        raise DataError(f"{chosen.dataset_jsonl} does not exist.", "Check the path of the corpus.")
    if settings.evaluation.terms:
        read_terms(settings.evaluation.terms)


def _columns(settings: Settings) -> Columns:
    chosen = settings.data
    if chosen.dataset_name:
        return Columns()  # the import has named them as a corpus does
    return Columns(chosen.audio_column, chosen.text_column, chosen.language_column, chosen.speaker_column)


def _learn(run: Run, settings: Settings, divided: Split) -> None:
    from voxtral_finetune.model import adapt, kernels, load
    from voxtral_finetune.model.export import export
    from voxtral_finetune.training import engine, preflight

    run.emit("stage", name="training", title="Training")
    if settings.data.stream:
        divided = replace(divided, train=stream.Pinned.load(run.folder).sample)
    name, revision = settings.model.model_checkpoint, settings.model.model_revision
    device = load.pick_device(settings.model.device)
    processor = load.load_processor(name, revision)
    plan = preflight.prepare(run, settings, divided.train, processor, device)
    learned = settings.training.model_copy(update={"gradient_checkpointing": plan.fit.checkpointing})
    loaded = load.load_model(name, revision, device, quantise=learned.method == "qlora")
    model = adapt.adapt(loaded, learned, name, revision)
    run.emit("weights", kernels=kernels.accelerate_kernels(model, device, learned.compile), **adapt.count(model))

    score_dev = _dev_scorer(run, settings, processor, divided.dev)
    trained = engine.train(run, model, processor, divided, settings, plan, score_dev)
    if distributed.processes()[0] > 0:
        return
    run.emit("stage", name="save", title="Saving the best checkpoint")
    facts = {key: value for key, value in asdict(trained).items() if key != "best"}
    facts |= {key: plan.schedule.facts()[key] for key in ("packing", "windows_per_update", "utterances_per_update")}
    write_durably(run.folder / "trained.json", json.dumps({**facts, **adapt.count(model)}, indent=2) + "\n")
    (run.folder / "heard-tuned.json").unlink(missing_ok=True)  # of a model/ that somebody has removed
    export(trained.best, processor, run.folder / "model", load.weights_dtype(device), adapt.merges(settings.training))


def _dev_scorer(run: Run, settings: Settings, processor: Any, rows: list[Utterance]) -> Callable[[Any], float]:
    """What training asks for the WER of a model on dev; raises StopRequested where the run was asked to stop."""
    from voxtral_finetune.evaluation.transcribe import Transcriber

    work = [(audio.load(row.audio, *row.span), row.language) for row in rows]

    def score_dev(model: Any) -> float:
        transcriber = Transcriber(model, processor, settings.evaluation.eval_batch_size)

        def texts(share: Sequence[tuple[audio.Wave, str | None]]) -> list[str]:
            alone = distributed.processes()[1] == 1  # of several, one that stops here would leave the others waiting
            waves, languages = [wave for wave, _ in share], [language for _, language in share]
            return transcriber.transcribe(waves, languages, lambda *_: check_stop(run) if alone else None)

        return score([row.text for row in rows], distributed.shared(work, texts)).wer

    return score_dev


def _texts(run: Run, settings: Settings, name: str, checkpoint: str, rows: list[Utterance]) -> Transcripts:
    """What a checkpoint on disk hears in the test set; kept in the run, so that it is heard once."""
    path = run.folder / f"heard-{name}.json"
    if known := Transcripts.load(path):
        return known
    from voxtral_finetune.evaluation.hear import hear

    title = {"base": "Testing the model before training", "tuned": "Testing the tuned model from its saved folder"}
    run.emit("stage", name=f"test {name}", title=title[name])
    revision = settings.model.model_revision if name == "base" else None
    device, size = settings.model.device, settings.evaluation.eval_batch_size
    heard = hear(checkpoint, list(map(Recording.of, rows)), device, size, revision, progress_of(run))
    heard.save(path)
    return heard


def import_recording(
    corpus: Corpus,
    recording: Path,
    transcript: str | None,
    checkpoint: str,
    language: str | None,
    piece_seconds: float,
    threshold: float,
    progress: Progress | None = None,
) -> segments.Imported:
    """Cuts one long recording into utterances of `corpus`, drafted by a checkpoint (docs/recording.md)."""
    from voxtral_finetune.evaluation.transcribe import Transcriber
    from voxtral_finetune.model import load

    transcriber = Transcriber(load.load_model(checkpoint), load.load_processor(checkpoint))
    longest = min(piece_seconds, transcriber.collator.window_samples / audio.SAMPLE_RATE)

    def draft(waves: Sequence[audio.Wave]) -> list[str]:
        return transcriber.transcribe(waves, [language] * len(waves))

    fields = {"language": language}
    return segments.import_recording(corpus, recording, transcript, draft, longest, threshold, progress, **fields)


def _with_language(row: Utterance, language: str | None) -> Utterance:
    return row if row.language or not language else replace(row, language=language)


def _problem(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "file": problem.file, "what": problem.what, "fix": problem.fix}

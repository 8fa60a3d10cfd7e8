"""The order of the stages; the only place that knows it.

    data → base score → training → model/ → reload → tuned score → report.json → README.md

Each stage leaves its result in the run folder, so that a run that was stopped or died goes on after the last one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from voxtral_finetune.data import audio, segments, sources
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.rows import Columns, Problem, Utterance
from voxtral_finetune.data.split import Split, split, summary
from voxtral_finetune.errors import DataError, FinetuneError, RunError, SettingsError, StopRequested
from voxtral_finetune.evaluation.measured import measured, result
from voxtral_finetune.evaluation.report import Report
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.publishing.card import write_card
from voxtral_finetune.run import Run, write_durably
from voxtral_finetune.settings import Settings, home

Progress = Callable[[int, int], None]


def execute(run: Run) -> Report:
    """Does all of a run that is not done yet; what happens is events of the run, the result its report.

    Raises what went wrong after writing it down as the event `failed`, and StopRequested after `stopped`.
    """
    os.environ.setdefault("TRACKIO_DIR", str(home() / "trackio"))
    settings = run.settings()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError("Training on several processes is not supported yet.", "Run it without torchrun.")
    with run.lock(), _stop_on_signal(run):
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
            explained = _explained(error)
            run.emit("failed", what=explained.what, fix=explained.fix)
            if isinstance(explained, RunError):
                raise explained from error
            raise
        run.emit("finished")
        return report


def _explained(error: BaseException) -> FinetuneError:
    """What a person can do about an error that is none of ours: a RunError where something can be done."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return RunError("The disk is full.", "Free some space, then go on with --resume: checkpoints are whole.")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
        return RunError("The GPU's memory is full.", "Use a smaller --batch-size, or --gradient-checkpointing.")
    details = "This is a fault in the program; output.log or the terminal has the details. The run can be resumed."
    return FinetuneError(f"{type(error).__name__}: {error}", details)


def _stages(run: Run, settings: Settings) -> Report:
    from voxtral_finetune.training.callbacks import track_result

    divided = _divide(run, settings)
    base = _texts(run, settings, "base", settings.model.model_checkpoint, divided.test)
    if not (run.folder / "model").is_dir():
        _learn(run, settings, divided)
    tuned = _texts(run, settings, "tuned", str(run.folder / "model"), divided.test)
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
    chosen = settings.data
    survey = sources.survey(_corpus(run, settings), chosen.audio_root, _columns(settings), _progress(run))
    for problem in survey.problems:
        run.emit("warning", **_problem(problem))
    if survey.refused and chosen.strict:
        raise DataError(f"{len(survey.refused)} rows cannot be used.", "Mend them, or run without --strict.")
    rows = [_with_language(row, chosen.language) for row in survey.utterances]
    divided = split(rows, chosen.split_by, settings.training.seed, chosen.train_count, chosen.eval_count)
    divided.save(path)
    run.emit(
        "data",
        skipped=len(survey.refused),
        by=divided.by,
        note=divided.note,
        **{name: summary(getattr(divided, name)) for name in ("train", "dev", "test")},
    )
    return divided


def _corpus(run: Run, settings: Settings) -> Path:
    """Where the corpus is; a dataset of the Hub is streamed into one under datasets/ first, its commit noted."""
    check_corpus(settings)
    chosen = settings.data
    if chosen.dataset_jsonl is not None:
        return chosen.dataset_jsonl
    from voxtral_finetune.data.hub import HubSpec, import_hub

    spec = HubSpec(
        str(chosen.dataset_name),
        chosen.dataset_config,
        chosen.dataset_split,
        chosen.dataset_revision,
        chosen.audio_column,
        chosen.text_column,
        chosen.language,
        chosen.max_hours,
        settings.training.seed if chosen.max_hours else None,
    )
    parts = filter(None, (chosen.dataset_name, chosen.dataset_config, chosen.dataset_split))
    # What else was asked for is in the name too: rows of one choice must not be found in the corpus of another.
    choice = hashlib.sha256(repr(spec).encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([*parts, choice]))
    corpus = Corpus.create(home() / "datasets" / name)
    imported = import_hub(corpus, spec, _progress(run))
    run.emit("imported", revision=imported.revision, source=imported.source, added=imported.added)
    return corpus.folder


def check_corpus(settings: Settings) -> None:
    """Raises SettingsError or DataError where no corpus is named, or two, or one that is not there."""
    chosen = settings.data
    if (chosen.dataset_jsonl is None) == (chosen.dataset_name is None):
        many = "No corpus is named." if chosen.dataset_name is None else "Two corpora are named."
        raise SettingsError(many, "Give --dataset-jsonl PATH, or --dataset-name of a dataset on the Hub.")
    if chosen.dataset_jsonl is not None and not chosen.dataset_jsonl.expanduser().exists():
        raise DataError(f"{chosen.dataset_jsonl} does not exist.", "Check the path of the corpus.")


def _columns(settings: Settings) -> Columns:
    chosen = settings.data
    if chosen.dataset_name:
        return Columns()  # the import has named them as a corpus does
    return Columns(chosen.audio_column, chosen.text_column, chosen.language_column, chosen.speaker_column)


def _learn(run: Run, settings: Settings, divided: Split) -> None:
    from voxtral_finetune.evaluation.transcribe import Transcriber
    from voxtral_finetune.model import adapt, load
    from voxtral_finetune.model.export import export
    from voxtral_finetune.training.trainer import train

    run.emit("stage", name="training", title="Training")
    name, revision = settings.model.model_checkpoint, settings.model.model_revision
    device = load.pick_device(settings.model.device)
    processor = load.load_processor(name, revision)
    model = adapt.adapt(load.load_model(name, revision, device), settings.training, name, revision)
    run.emit("plan", device=str(device), learning_rate=settings.learning_rate, **adapt.count(model))
    waves = [audio.load(row.audio, *row.span) for row in divided.dev]

    def score_dev(model: Any) -> float:
        transcriber = Transcriber(model, processor, settings.evaluation.eval_batch_size)
        heard = transcriber.transcribe(waves, [row.language for row in divided.dev])
        return score([row.text for row in divided.dev], heard).wer

    trained = train(run, model, processor, divided, settings, score_dev)
    run.emit("stage", name="save", title="Saving the best checkpoint")
    facts = {key: value for key, value in asdict(trained).items() if key != "best"}
    write_durably(run.folder / "trained.json", json.dumps({**facts, **adapt.count(model)}, indent=2) + "\n")
    (run.folder / "heard-tuned.json").unlink(missing_ok=True)  # of a model/ that somebody has removed
    export(trained.best, processor, run.folder / "model", load.weights_dtype(device), adapt.merges(settings.training))


def _texts(run: Run, settings: Settings, name: str, checkpoint: str, rows: list[Utterance]) -> list[str]:
    """What a checkpoint on disk hears in the test set; kept in the run, so that it is heard once."""
    path = run.folder / f"heard-{name}.json"
    if path.exists():
        return list(json.loads(path.read_text(encoding="utf-8")))
    title = {"base": "Testing the model before training", "tuned": "Testing the tuned model from its saved folder"}
    run.emit("stage", name=f"test {name}", title=title[name])
    revision = settings.model.model_revision if name == "base" else None
    heard = transcribe(checkpoint, rows, settings, _progress(run), revision)
    write_durably(path, json.dumps(heard, ensure_ascii=False, indent=0) + "\n")
    return heard


def transcribe(
    checkpoint: str, rows: list[Utterance], settings: Settings, progress: Progress | None, revision: str | None = None
) -> list[str]:
    """What a checkpoint (in any form that `model.load` knows) hears in `rows`, in their order."""
    from voxtral_finetune.evaluation.transcribe import Transcriber
    from voxtral_finetune.model import load

    model = load.load_model(checkpoint, revision, load.pick_device(settings.model.device))
    processor = load.load_processor(checkpoint, revision)
    transcriber = Transcriber(model, processor, settings.evaluation.eval_batch_size)
    waves = [audio.load(row.audio, *row.span) for row in rows]
    return transcriber.transcribe(waves, [row.language for row in rows], progress)


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


def _progress(run: Run) -> Progress:
    """Events of how far a stage is, at most one a second; also where a run that was asked to stop does."""
    shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if run.stop_requested():
            again = f"Go on with: voxtral-finetune train --resume --output-dir {run.folder}"
            raise StopRequested("Stopped before training was done.", again)
        if done == total or time.monotonic() - shown >= 1:
            shown = time.monotonic()
            run.emit("progress", done=done, total=total)

    return progress


@contextmanager
def _stop_on_signal(run: Run) -> Iterator[None]:
    """Makes the first Ctrl-C or SIGTERM ask the run to stop, and a second Ctrl-C end it at once."""
    owner, pressed = os.getpid(), 0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal pressed
        if os.getpid() != owner:
            return  # a data loader's worker has inherited this handler
        pressed += number == signal.SIGINT
        if pressed > 1:
            raise KeyboardInterrupt
        run.request_stop()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; the stop file works everywhere
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

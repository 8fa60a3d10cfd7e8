"""The order of the stages; the only place that knows it.

    data → base score → training → model/ → reload → tuned score → report.json → report.html → README.md

Each stage leaves its result in the run folder, so that a run that was stopped or died goes on after the last one.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from voxtral_finetune.data import audio, divide, segments, stream
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split, summary
from voxtral_finetune.durable import write_durably
from voxtral_finetune.errors import DataError, FinetuneError, RunError, SettingsError, StopRequested
from voxtral_finetune.evaluation import guard, scale
from voxtral_finetune.evaluation.behaviour import read_terms
from voxtral_finetune.evaluation.measured import check_changed, measured, result
from voxtral_finetune.evaluation.page import write_page
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
    guards = guard.kept(run, settings)
    sets = {"": list(map(Recording.of, divided.test)), **guard.recordings(guards)}
    with devices.claimed(str(load.pick_device(settings.model.device)), run):
        base = _heard(run, settings, "base", settings.model.model_checkpoint, sets)
        if distributed.agree(lambda: not (run.folder / "model").is_dir()):
            _learn(run, settings, divided)
            gc.collect()  # accelerate's wrapper refers to the model that it wraps: it would stay on the device
        tuned = _heard(run, settings, "tuned", str(run.folder / "model"), sets)
    check_changed(base[""], tuned[""])
    price = guard.price(guards, base, tuned, settings.evaluation.guard_budget)
    for text in price.warnings:
        run.emit("warning", what=text)
    report = replace(measured(run, settings, divided, base[""], tuned[""], price), scales=scale.table(run))
    report.save(run.folder / "report.json")
    write_page(run.folder)
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
    divided, skipped = divide.divide(run, settings, progress_of(run))
    guards = guard.read(run, settings, divided, progress_of(run))
    if settings.training.replay:
        apart = {row.sha256 for each in guards for row in each.rows}
        rows = divide.replayed(settings.training.replay, divided, apart, progress_of(run))
        divided = replace(divided, replay=rows)
    divided.save(path)
    run.emit(
        "data",
        skipped=skipped,
        by=divided.by,
        note=divided.note,
        **{name: summary(getattr(divided, name)) for name in ("train", "dev", "test")},
    )
    return divided


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
    for path in settings.evaluation.guard:
        if not path.expanduser().exists():
            raise DataError(f"{path} does not exist.", "Check the path given to --guard.")
    if settings.evaluation.terms:
        read_terms(settings.evaluation.terms)


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
    plan = preflight.prepare(run, settings, divided.train, processor, device, divided.replay)
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
    for stale in run.folder.glob("heard-tuned*.json"):
        stale.unlink()  # of a model/ that somebody has removed
    kept = 1.0
    if settings.training.scale_scan:
        del model, loaded  # another is loaded, and both might not fit
        gc.collect()
        run.emit("stage", name="scales", title="Choosing how strong what was learned is")
        hears = scale.listener(settings, trained.best, processor, progress_of(run))
        kept = scale.scan(run, settings, divided.dev, trained.best_step, hears)
    merge = adapt.merges(settings.training)
    export(trained.best, processor, run.folder / "model", load.weights_dtype(device), merge, kept)


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


def _heard(
    run: Run, settings: Settings, name: str, checkpoint: str, sets: Mapping[str, Sequence[Recording]]
) -> dict[str, Transcripts]:
    """What a checkpoint on disk hears in each set, by the set's name; each is kept in the run, so heard once."""
    paths = {key: run.folder / f"heard-{name}{key}.json" for key in sets}
    found = {key: known for key, path in paths.items() if (known := Transcripts.load(path))}
    if len(found) == len(sets):
        return found
    from voxtral_finetune.evaluation.hear import timed, transcriber

    title = {"base": "Testing the model before training", "tuned": "Testing the tuned model from its saved folder"}
    run.emit("stage", name=f"test {name}", title=title[name])
    revision = settings.model.model_revision if name == "base" else None
    ready = transcriber(checkpoint, settings.model.device, settings.evaluation.eval_batch_size, revision)
    for key in [key for key in sets if key not in found]:
        found[key] = timed(*ready, sets[key], progress_of(run))
        found[key].save(paths[key])
    return found


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

"""What the command line does with a run that has learned: `export`, a folder for others that still hears the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from voxtral_finetune.console import Bar, quiet_libraries
from voxtral_finetune.data import audio
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import ModelError, RunError
from voxtral_finetune.evaluation.report import Report
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.run import Run

FORMATS = ("adapter", "merged", "mistral")

PROBES = 4
"""Test utterances of which logits are compared; the texts of all of them are."""

MOST_CHANGED, MOST_WER = 0.05, 0.003
"""What rounding to 16 bits may change: the share of test utterances with another text, and the WER. In 32 bits nothing
may change."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees: the largest distance of logits, how many texts differ, the WER."""

    folder: Path
    size_bytes: int
    dtype: str
    logits: float
    changed: int
    utterances: int
    wer: float


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", required=True, type=click.Choice(FORMATS), help="What to write (docs/serving.md).")
@click.option("--output", type=click.Path(path_type=Path), help="The folder (default: RUN/exports/FORMAT).")
@click.option("--device", default="auto", help="Where to compare: auto, cuda, mps or cpu.")
def export(run: Path, kind: str, output: Path | None, device: str) -> None:
    """Write what a run has learned for others: for vLLM, transformers or llama.cpp.

    The folder is loaded again and must hear what the run hears in its test set; otherwise nothing is left there.
    """
    quiet_libraries()
    done = export_run(Run.open(run), kind, output, device)
    size = f"{done.size_bytes / 1e9:.2f} GB" if done.size_bytes >= 1e9 else f"{done.size_bytes / 1e6:.1f} MB"
    click.echo(f"{done.folder} ({kind}, {done.dtype}, {size})")
    texts = f"the same text for all {done.utterances} test utterances"
    if done.changed:
        texts = f"another text, by rounding, for {done.changed} of {done.utterances} test utterances"
    click.echo(f"Loaded again, it agrees with the run: {texts} (WER {done.wer:.1%}), logits within {done.logits:.0e}.")


def export_run(run: Run, kind: str, output: Path | None = None, device: str = "auto") -> Exported:
    """Exports a run that was measured; raises a FinetuneError where it cannot be, or does not agree with the run."""
    source, report = _source(run)
    target = _target(run, kind, output)
    _check_kind(run, source, kind)
    _check_room(source, kind, target)
    from voxtral_finetune.model import export as formats

    comparison = _Comparison(run, source, report, kind, device)
    try:
        with formats.aside(target) as folder:
            click.echo(f"Writing {kind}")
            with Bar("Comparing weights") as bar:
                formats.write(source, kind, folder, bar)
            logits, heard = comparison.check(folder)
    except OSError as error:
        raise ModelError(
            f"{target} cannot be written: {error.strerror or error}.", "Free some space, or name another."
        ) from error
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    changed = sum(a != b for a, b in zip(heard, comparison.texts, strict=True))
    wer = score([row.text for row in comparison.rows], heard).wer
    return Exported(target, size, str(comparison.stored).removeprefix("torch."), logits, changed, len(heard), wer)


class _Comparison:
    """What a run's model says of its own test set, to hold an export of it against."""

    def __init__(self, run: Run, source: Path, report: Report, kind: str, device: str) -> None:
        from voxtral_finetune.data.collate import Example
        from voxtral_finetune.model import agreement, export, load

        self.source, self.kind, self.batch_size = source, kind, run.settings().evaluation.eval_batch_size
        self.device = load.pick_device(device)
        self.rows: list[Utterance] = Split.load(run.folder / "split.json").test
        self.waves = [audio.load(row.audio, *row.span) for row in self.rows]
        self.texts = [scored.tuned for scored in report.utterances]
        self.processor = load.load_processor(str(source))
        self.stored = export.stored_dtype(source)
        # What is added to a weight is rounded as the weight is stored, and again as the device computes.
        self.rounded = min(self.stored, load.weights_dtype(self.device), key=lambda dtype: dtype.itemsize)
        clips = list(zip(self.rows, self.waves, strict=True))[:PROBES]
        self.probes = [Example(wave, row.text, row.language, row.audio.name) for row, wave in clips]
        click.echo("Asking the run's own model")
        model = load.load_model(str(source), device=self.device)
        self.expected = agreement.logits(model, self.processor, self.probes)
        adapter = load.adapter_base(str(source)) is not None
        self.base = agreement.logits(model, self.processor, self.probes, adapter=False) if adapter else None

    def check(self, folder: Path) -> tuple[float, list[str]]:
        """(largest distance of logits, texts) of an export on disk; raises ModelError where they are not the run's."""
        from voxtral_finetune.model import agreement, export

        click.echo("Loading it again")
        model, processor = export.read(folder, self.kind, self.processor, self.device)
        found = agreement.logits(model, processor, self.probes)
        away = agreement.check_logits(found, self.expected, self.base, self.probes, self.rounded)
        heard = self._hear(model, processor, "Hearing the test set")
        if heard != self.texts:
            del model  # there may be room for one
            self._hear_the_run()
        self._check_texts(heard)
        return away, heard

    def _hear(self, model: Any, processor: Any, title: str) -> list[str]:
        from voxtral_finetune.evaluation.transcribe import Transcriber

        with Bar(title) as bar:
            transcriber = Transcriber(model, processor, self.batch_size)
            return transcriber.transcribe(self.waves, [row.language for row in self.rows], bar)

    def _hear_the_run(self) -> None:
        """Has the run's own model hear the test set here: on another device than the run's it may differ by itself."""
        from voxtral_finetune.model import load

        model = load.load_model(str(self.source), device=self.device)
        self.texts = self._hear(model, self.processor, "Hearing the test set with the run's own model")

    def _check_texts(self, heard: Sequence[str]) -> None:
        changed = [index for index, text in enumerate(heard) if text != self.texts[index]]
        references = [row.text for row in self.rows]
        before, after = score(references, self.texts).wer, score(references, list(heard)).wer
        allowed = self.rounded.itemsize < 4 and len(changed) <= MOST_CHANGED * len(heard)
        if changed and not (allowed and abs(after - before) <= MOST_WER):
            first = changed[0]
            what = (
                f"The export hears other words than the run in {len(changed)} of {len(heard)} test utterances (WER"
                f" {after:.1%}, the run's {before:.1%}). {self.rows[first].audio.name}: {heard[first]!r} instead of"
                f" {self.texts[first]!r}."
            )
            raise ModelError(what, "Export again; report it if it stays so.")


def _source(run: Run) -> tuple[Path, Report]:
    """(a run's model folder, its report); raises RunError where the run is not done."""
    status, source = run.status(), run.folder / "model"
    if status == "running":
        raise RunError(f"{run.folder} is being run by another process.", "Export it when it is done.")
    if not source.is_dir() or not (run.folder / "report.json").is_file():
        what = f"{run.folder} has nothing to export yet: it is {status}, without a model that was measured."
        raise RunError(what, f"Go on with: voxtral-finetune train --resume --output-dir {run.folder}")
    return source, Report.load(run.folder / "report.json")


def _target(run: Run, kind: str, output: Path | None) -> Path:
    """Where to write; raises RunError where something is there already."""
    target = (output or run.folder / "exports" / kind).expanduser().absolute()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(f"{target} is not an empty folder.", "Name another with --output, or remove it.")
    return target


def _check_kind(run: Run, source: Path, kind: str) -> None:
    """Raises ModelError where a run that was saved whole is to become an adapter."""
    if kind != "adapter" or (source / "adapter_config.json").is_file():
        return
    chosen = run.settings().training
    why = f"Preset {chosen.preset} teaches more than the language model, and servers take adapters of that only."
    if chosen.method == "full":
        why = "Full fine-tuning changes the weights themselves."
    raise ModelError(f"{run.folder} has no adapter. {why}", "Use --format merged or mistral.")


def _check_room(source: Path, kind: str, target: Path) -> None:
    """Raises RunError where the disk has too little room for the export."""
    from voxtral_finetune.model.export import needed_bytes

    needed = needed_bytes(source, kind)
    disk = next(folder for folder in target.parents if folder.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        what = f"The export takes {needed / 1e9:.1f} GB, and the disk of {disk} has {free / 1e9:.1f} GB free."
        raise RunError(what, "Free some space, or name another place with --output.")

"""What the command line does with a model, and with what was measured of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from voxtral_finetune.console import Bar, quiet_libraries
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.text_checks import language_code
from voxtral_finetune.durable import write_durably
from voxtral_finetune.errors import DataError, SettingsError
from voxtral_finetune.evaluation.formats import FORMATS, Format, as_json, one_line, written
from voxtral_finetune.evaluation.transcripts import Heard

PATH = click.Path(path_type=Path)

FILES_AT_ONCE = 64
"""Files whose transcripts are written together, so that a long list is not lost by what happens to its end."""

DEVICE = click.option(
    "--device",
    default="auto",
    type=click.Choice(["auto", "cuda", "mps", "cpu"]),
    help="Where to run (default: the fastest).",
)
BATCH = click.option(
    "--batch-size", default=8, show_default=True, type=click.IntRange(1, 4096), help="Pieces at a time."
)


@click.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--language", help="Language that is spoken, as a code or in English (default: detected).")
@click.option("--output-format", "form", type=click.Choice(FORMATS), help="Default: txt, or what --output ends with.")
@click.option("--output", type=PATH, help="A file to write, or a folder where there are several FILES.")
@click.option("--native", is_flag=True, help="Hear a long recording in one pass instead of in pieces cut in silence.")
@BATCH
@DEVICE
def transcribe(
    model: str,
    files: tuple[Path, ...],
    language: str | None,
    form: Format | None,
    output: Path | None,
    native: bool,
    batch_size: int,
    device: str,
) -> None:
    """Transcribe audio files of any length with a checkpoint, adapter, merged or run folder.

    A file that cannot be read is named, the others are transcribed, and the exit code is 1.
    """
    from voxtral_finetune.evaluation.hear import transcriber

    chosen = form or _format_of(output)
    targets = _targets(files, output, chosen)
    code = prompt_language(language)
    quiet_libraries()
    ready, _ = transcriber(model, device, batch_size, native=native)
    collected: list[dict[str, Any]] = []
    failed = 0
    for start in range(0, len(files), FILES_AT_ONCE):
        group = files[start : start + FILES_AT_ONCE]
        heard = _heard(ready, group, code)
        failed += heard.count(None)
        for file, target, found in zip(group, targets[start:], heard, strict=False):
            if found is not None:
                _put(file, target, found, chosen, len(files) > 1, collected)
    if collected:
        click.echo(json.dumps(collected if len(files) > 1 else collected[0], ensure_ascii=False, indent=2))
    if failed:
        raise DataError(f"{failed} of {len(files)} files could not be transcribed.", "They are named above.")


@click.command()
@click.argument("model")
@click.argument("corpus", type=PATH)
@click.option("--language", help="Language of rows that name none (default: detected).")
@click.option("--terms", type=PATH, help="A text file of terms, one a line: how many of them are heard.")
@click.option("--output", type=PATH, help="A JSON file to write, with every utterance.")
@BATCH
@DEVICE
def evaluate(
    model: str,
    corpus: Path,
    language: str | None,
    terms: Path | None,
    output: Path | None,
    batch_size: int,
    device: str,
) -> None:
    """Measure a checkpoint, adapter, merged or run folder on a corpus (docs/evaluation.md).

    Of a corpus that marks rows as test only those are used. Rows that cannot be used are named and left out.
    """
    from dataclasses import replace

    from voxtral_finetune.data import sources
    from voxtral_finetune.data.rows import Columns
    from voxtral_finetune.evaluation import evaluated
    from voxtral_finetune.evaluation.behaviour import read_terms
    from voxtral_finetune.evaluation.hear import hear
    from voxtral_finetune.evaluation.pieces import Recording

    wanted = read_terms(terms) if terms else []
    code = prompt_language(language)
    quiet_libraries()
    with Bar("Reading the corpus") as bar:
        survey = sources.survey(corpus, (), Columns(), bar)
    for problem in survey.problems:
        click.echo(f"{'note' if problem.usable else 'skipped'}: {problem}", err=True)
    rows = [row if row.language else replace(row, language=code) for row in evaluated.chosen(survey.utterances)]
    if not rows:
        raise DataError(f"{corpus} has no row that can be used.", "Mend the rows above.")
    with Bar("Transcribing") as bar:
        heard = hear(model, list(map(Recording.of, rows)), device, batch_size, progress=bar)
    made = evaluated.evaluated(model, str(corpus), rows, heard, wanted)
    if output:
        made.save(output)
    click.echo(evaluated.table(made), nl=False)


@click.command()
@click.argument("run", type=PATH)
@click.option("--no-audio", is_flag=True, help="Leave recordings out: for a page to share.")
def report(run: Path, no_audio: bool) -> None:
    """Write report.html of a run again: one page with the verdict and every test utterance."""
    from voxtral_finetune.evaluation.page import write_page
    from voxtral_finetune.run import Run

    click.echo(write_page(Run.open(run).folder, sound=not no_audio))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--html", type=PATH, help="Write the comparison as a page too.")
def compare(runs: tuple[Path, ...], html: Path | None) -> None:
    """Show runs side by side: verdicts, error rates, and the settings in which they differ.

    Runs without a result are named and left out.
    """
    from voxtral_finetune.evaluation import compared

    made = compared.compared(runs)
    if html:
        compared.write_page(html, made)
    click.echo(compared.table(made), nl=False)


def prompt_language(language: str | None) -> str | None:
    """The two-letter code that a model is told; raises SettingsError where Voxtral's prompt has none."""
    if language is None:
        return None
    from voxtral_finetune.data.collate import language_tag

    code = language_tag(language_code(language))
    if code is None:
        what = f"--language cannot be {language!r}: Voxtral can be told languages that have a two-letter code."
        raise SettingsError(what, "Give a code such as en, or leave it out, and the language is detected.")
    return code


def _heard(ready: Any, files: Sequence[Path], language: str | None) -> list[Heard | None]:
    """What is said in each file; None for those that cannot be read. Both and what is doubtful is said on stderr."""
    from voxtral_finetune.evaluation.pieces import Recording, doubts

    def failed(_: int, error: DataError) -> None:
        click.echo(f"failed: {error}", err=True)

    with Bar("Transcribing") as bar:
        heard: list[Heard | None] = ready.hear([Recording(file, language) for file in files], bar, failed)
    for file, found in zip(files, heard, strict=True):
        for finding in doubts(file) if found is not None else []:
            click.echo(f"note: {shown(file)}: {finding.what} {finding.fix}", err=True)
        for piece in found.pieces if found is not None else []:
            if piece.capped:
                where = f"{shown(file)}, {piece.start:.0f} to {piece.end:.0f} s"
                click.echo(f"note: {where}: the text was cut off; it may loop or break off there.", err=True)
    return heard


def _format_of(output: Path | None) -> Format:
    """What the name of a file asks for by its ending; txt where it asks for nothing."""
    ending = output.suffix[1:].lower() if output else ""
    for form in FORMATS:
        if form == ending:
            return form
    return "txt"


def _targets(files: Sequence[Path], output: Path | None, form: Format) -> list[Path | None]:
    """Where each transcript goes; None: to stdout. Files of one name in several folders keep apart by a number."""
    if output is None:
        if len(files) > 1 and form in ("srt", "vtt"):
            raise SettingsError(f"Several files make several {form} files.", "Name a folder by --output.")
        return [None] * len(files)
    if len(files) == 1 and not output.is_dir():
        return [output]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{output} is no folder: {error.strerror}.", "Name a folder by --output.") from error
    names: list[Path] = []
    for file in files:
        stem, number = file.stem, 1
        while output / f"{stem}.{form}" in names:
            number += 1
            stem = f"{file.stem}-{number}"
        names.append(output / f"{stem}.{form}")
    return list(names)


def _put(
    file: Path, target: Path | None, heard: Heard, form: Format, several: bool, collected: list[dict[str, Any]]
) -> None:
    """Writes or prints one transcript; JSON for stdout is collected, to be one value."""
    if target:
        text = written(heard, form, str(file)).encode("utf-8", errors="replace")
        write_durably(target, text)
        click.echo(f"{target}", err=True)
    elif form == "json":
        collected.append(as_json(heard, str(file)))
    elif form == "txt" and several:
        click.echo(f"{file}\t{one_line(heard.text)}")
    else:
        click.echo(written(heard, form, str(file)), nl=False)

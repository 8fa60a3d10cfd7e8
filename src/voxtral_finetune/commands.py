"""What the command line does to data: `prepare` from files, from the Hub or from one long recording, and `forget`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from voxtral_finetune.console import Bar, quiet_libraries
from voxtral_finetune.data.rows import Columns, Problem
from voxtral_finetune.errors import DataError, SettingsError

PATH = click.Path(path_type=Path)

FILE_OPTIONS = [
    click.option("--format", "kind", help="What SOURCE is (default: found out from its content)."),
    click.option("--audio-root", multiple=True, type=PATH, help="A further folder with its audio."),
    click.option("--audio-column", help="The column that names or holds audio."),
    click.option("--text-column", help="The column that holds what is said."),
    click.option("--language-column", help="The column that holds the language."),
    click.option("--speaker-column", help="The column that names who speaks."),
    click.option("--language", help="Two-letter language of a long recording, or of rows from the Hub."),
]
HUB_OPTIONS = [
    click.option("--dataset-name", help="A dataset of the Hub to stream, instead of SOURCE."),
    click.option("--dataset-config", help="Its config (default: its only one)."),
    click.option("--dataset-split", help="Its split (default: train, or its only one)."),
    click.option("--dataset-revision", help="Branch, tag or commit (default: main)."),
    click.option("--granary", metavar="LANG", help="Stream NVIDIA Granary in this language, instead of SOURCE."),
    click.option(
        *("--corpus", "part"),
        type=click.Choice(["yodas", "ytc", "voxpopuli"]),
        default="yodas",
        show_default=True,
        help="Which part of Granary.",
    ),
    click.option("--task", type=click.Choice(["asr"]), default="asr", show_default=True, help="Of Granary's rows."),
    click.option(
        "--max-hours", type=click.FloatRange(min=0, min_open=True), help="At most so many hours from the Hub."
    ),
    click.option("--sample-seed", type=int, help="Sample the Hub's rows by this number (default: their own order)."),
]
RECORDING_OPTIONS = [
    click.option("--transcript", type=PATH, help="A text file: what is said in SOURCE, one long recording."),
    click.option("--draft-model", help="The checkpoint that drafts SOURCE, one long recording."),
    click.option(
        "--piece-seconds", type=click.FloatRange(2, 30), default=15.0, show_default=True, help="Longest piece of it."
    ),
    click.option(
        "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Least score of a piece."
    ),
]


def options(lists: Iterable[list[Any]]) -> Callable[..., Any]:
    """A decorator that adds click options in the order they are listed."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([each for some in lists for each in some]):
            command = option(command)
        return command

    return decorate


@click.command()
@click.argument("source", type=PATH, required=False)
@click.option("--output", required=True, type=PATH, help="The corpus folder: datasets/NAME.")
@options([FILE_OPTIONS, HUB_OPTIONS, RECORDING_OPTIONS])
def prepare(source: Path | None, output: Path, **given: Any) -> None:
    """Bring speech in any usual form into a corpus folder. Run again, it goes on and doubles nothing.

    SOURCE is a JSONL, CSV or TSV file, a folder, an archive, or (with --draft-model) one long recording; instead of it,
    --dataset-name or --granary stream from the Hugging Face Hub.
    """
    if sum(map(bool, (source, given["dataset_name"], given["granary"]))) != 1:
        raise SettingsError("What to prepare?", "Give one of SOURCE, --dataset-name NAME or --granary LANG.")
    if source is None:
        _from_hub(output, given)
    elif given["draft_model"] or given["transcript"]:
        _from_recording(source, output, given)
    else:
        _from_files(source, output, given)
    if (output / "data.jsonl").stat().st_size:
        click.echo(f"Next: voxtral-finetune check {output}")


@click.command()
@click.argument("corpus", type=PATH)
@click.option("--speaker", required=True, help="Whose recordings to remove, named as the corpus names them.")
def forget(corpus: Path, speaker: str) -> None:
    """Remove all that a speaker said from a corpus folder, and list the runs that learned from it."""
    from voxtral_finetune.data.forget import forget

    done = forget(corpus, speaker)
    click.echo(f"{done.rows} utterances and {done.files} audio files removed from {corpus}")
    for path in done.left:
        click.echo(f"still names or holds what was said: {path}; remove it yourself")
    for run in done.runs:
        click.echo(f"learned from it: {run}; delete this run and whatever was published from it")


@click.command()
@click.argument("language")
@click.option("--pack", default="everyday", show_default=True, help="The pack to show, or the name of the one to make.")
@click.option("--from", "source", type=PATH, help="Make a pack of your own from this text file, one phrase a line.")
@click.option("--granary", type=click.IntRange(1, 1000), help="Make a pack of so many of NVIDIA Granary's texts.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which of Granary's texts.")
def phrases(language: str, pack: str, source: Path | None, granary: int | None, seed: int) -> None:
    """Show the phrases to read aloud in a language, or make a pack of your own for the Studio."""
    from voxtral_finetune.data import granary as texts
    from voxtral_finetune.data import phrases as packs

    if source is None and granary is None:
        for phrase in packs.phrases(pack, language):
            click.echo(f"{phrase.id}\t{phrase.text}")
        return
    if source:
        path = packs.keep(pack, language, packs.read(source))
    else:
        path = packs.keep("granary", language, texts.phrases_from_granary(language, int(granary or 0), seed))
    click.echo(f"{len(packs.read(path))} phrases in {path}; the Studio offers them as {path.name.split('.')[0]!r}")


def _from_files(source: Path, output: Path, given: dict[str, Any]) -> None:
    from voxtral_finetune.data.prepare import CHANGES, prepare

    names = ("audio_column", "text_column", "language_column", "speaker_column")
    with Bar("Preparing the corpus") as bar:
        columns = Columns(*(given[name] for name in names))
        done = prepare(source, output, given["audio_root"], columns, bar, given["kind"])
    _show(done.problems)
    click.echo(f"{done.added} utterances added to {output}, {done.known} were there, {len(done.refused)} skipped")
    if done.changed:
        click.echo(f"{done.changed} texts tidied, listed in {output / CHANGES}")


def _from_hub(output: Path, given: dict[str, Any]) -> None:
    from voxtral_finetune.data import granary
    from voxtral_finetune.data.corpus import Corpus
    from voxtral_finetune.data.hub import HubSpec, import_hub

    hours, seed, revision = given["max_hours"], given["sample_seed"], given["dataset_revision"]
    if given["granary"]:
        click.echo(granary.NOTICE, err=True)
        spec = granary.spec(given["granary"], given["part"], hours, seed, revision)
    else:
        spec = HubSpec(
            name=given["dataset_name"],
            config=given["dataset_config"],
            split=given["dataset_split"],
            revision=revision,
            audio_column=given["audio_column"],
            text_column=given["text_column"],
            language=given["language"],
            max_hours=hours,
            seed=seed,
        )
    with Bar("Reading from the Hub (seconds of speech)") as bar:
        done = import_hub(Corpus.create(output), spec, bar)
    _show(done.refused)
    filtered = f", {done.unwanted} filtered out" if done.unwanted else ""
    click.echo(
        f"{done.added} utterances added to {output}, {done.known} were there, {len(done.refused)} skipped{filtered}"
    )
    click.echo(f"{done.seconds / 3600:.2f} hours from {done.source}")


def _from_recording(source: Path, output: Path, given: dict[str, Any]) -> None:
    from voxtral_finetune.data.corpus import Corpus
    from voxtral_finetune.pipeline import import_recording

    if not given["draft_model"]:
        raise SettingsError("No checkpoint drafts the recording.", "Give --draft-model, one that knows the language.")
    quiet_libraries()
    text = _read(given["transcript"]) if given["transcript"] else None
    if text is not None and not text.strip():
        raise DataError(f"{given['transcript']} is empty.", "Write what is said, or leave --transcript out.")
    corpus = Corpus.create(output)
    with Bar("Cutting and drafting") as bar:
        limits = (given["piece_seconds"], given["threshold"])
        done = import_recording(corpus, source, text, given["draft_model"], given["language"], *limits, bar)
    good, aside = len(done.segmented.accepted), len(done.segmented.aside)
    click.echo(f"{good} pieces in {output}, {aside} put aside to be corrected; {done.known} of them were there")
    if aside:
        click.echo(f"Correct the texts in {output / 'aside.jsonl'}, then prepare that file too (docs/recording.md)")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text.", "Check the path given to --transcript.") from error


def _show(problems: Iterable[Problem]) -> None:
    for problem in problems:
        click.echo(f"{'note' if problem.usable else 'skipped'}: {problem}")

"""The command line: `voxtral-finetune COMMAND`. Heavy imports wait for the command that needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from voxtral_finetune import __version__
from voxtral_finetune.commands import forget, phrases, prepare
from voxtral_finetune.errors import DataError, FinetuneError, RunError, SettingsError, StopRequested
from voxtral_finetune.evaluate_commands import compare, evaluate, report, transcribe
from voxtral_finetune.export_command import export
from voxtral_finetune.flags import setting_options
from voxtral_finetune.run import CONFIG, Run
from voxtral_finetune.settings import Settings, home, read_config

STOPPED = 130
"""Exit code of a run that was asked to stop, as after Ctrl-C."""

NOT_BETTER = 3
"""Exit code of `train --require-better` where the verdict is not "better"; the run is finished and saved."""

MOST_PROBLEMS, MOST_NAMES = 50, 10
"""What `check` prints of findings, and of languages and speakers; its reports hold all."""


class Commands(click.Group):
    """Shows what went wrong as one line on stderr and ends with an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StopRequested as stop:
            click.echo(str(stop), err=True)
            ctx.exit(STOPPED)
        except FinetuneError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except PermissionError as error:
            click.echo(f"Error: {error.filename}: {error.strerror}. Choose a place that you may write to.", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Teach Voxtral a voice, a language or a vocabulary, and prove that it learned.

    Data and runs live in datasets/ and outputs/ under VOXTRAL_FINETUNE_HOME (default: the current folder).
    """


@main.command()
@setting_options
@click.option("--config", type=click.Path(path_type=Path), help="A JSON file of settings by name; flags win over it.")
@click.option("--resume", is_flag=True, help="Go on with the run in --output-dir, with its own settings.")
@click.option(
    "--require-better", is_flag=True, help=f"End with exit code {NOT_BETTER} where the verdict is not 'better'."
)
def train(config: Path | None, resume: bool, require_better: bool, **flags: Any) -> None:
    """Fine-tune on a corpus, and measure before and after."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    if resume:
        word = _execute(_resumed(given, config))
    else:
        settings = Settings.of({**(CONFIG.migrate(config, write=False) if config else {}), **given})
        _check(settings)  # before a folder is made: a name that a mistake has used up is gone
        word = _execute(settings)
    if require_better and word not in (None, "better"):
        click.echo(f"--require-better: the verdict is {word!r}.", err=True)
        click.get_current_context().exit(NOT_BETTER)


@main.command()
def demo() -> None:
    """Fine-tune the built-in model on a built-in voice it has never heard: minutes, on any computer."""
    folder = Path(__file__).parent / "assets" / "demo"
    chosen = {
        **read_config(folder / "settings.json"),
        "dataset_jsonl": folder,
        "output_dir": home() / "outputs" / "demo",
    }
    _execute(Settings.of(chosen))
    click.echo(
        "Next: `make studio` (or `python interface.py`) to record your own voice in the browser, or train on your own"
        ' JSONL of {"audio_path", "text"} rows:\n'
        "  voxtral-finetune train --dataset-jsonl data.jsonl"
    )


@main.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def execute(folder: Path) -> None:
    """Execute a run folder: what the Studio starts."""
    _execute(Run.open(folder))


@main.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--audio-root", multiple=True, type=click.Path(path_type=Path), help="A further folder with its audio.")
@click.option("--show-labels", is_flag=True, help="Show, token by token, what one batch teaches.")
@click.option(
    "--model-checkpoint", default=None, help="Whose tokens --show-labels shows (default: the one train uses)."
)
@click.option("--strict", is_flag=True, help="End with an error where any row cannot be used.")
@click.option("--fix", "mend", is_flag=True, help="Take bad rows and copies out of data.jsonl; nothing is deleted.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page to look at and listen to.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write every row with its outcome and reasons.")
@click.option("--format", "kind", help="What CORPUS is (default: found out from its content).")
@click.option("--audio-column", "audio", help="The column that names audio files.")
@click.option("--text-column", "text", help="The column that holds what is said.")
@click.option("--language-column", "language", help="The column that holds the language.")
@click.option("--speaker-column", "speaker", help="The column that names who speaks.")
def check(
    corpus: Path,
    audio_root: tuple[Path, ...],
    show_labels: bool,
    model_checkpoint: str | None,
    strict: bool,
    mend: bool,
    html: Path | None,
    report: Path | None,
    kind: str | None,
    **columns: str | None,
) -> None:
    """Look at a corpus: how much there is, of whom and in what languages, and what is wrong with it."""
    from voxtral_finetune.console import Bar
    from voxtral_finetune.data import doctor, doctor_fix, doctor_page, sources
    from voxtral_finetune.data.corpus import Corpus
    from voxtral_finetune.data.rows import Columns

    with Bar("Reading the corpus") as bar:
        survey = sources.survey(corpus, audio_root, Columns(**columns), bar, kind)
    folder = Corpus(corpus).folder
    diagnosis = doctor.diagnose(survey, folder)
    if report:
        diagnosis.save(report)
    if html:
        doctor_page.write(html, diagnosis, folder)
    summary = diagnosis.summary
    click.echo(f"{summary['verdict']} {summary['refused']} refused, {summary['warned']} with a note.")
    for name in ("languages", "speakers"):
        click.echo(f"{name}: {_amounts(summary[name])}")
    for problem in diagnosis.problems[:MOST_PROBLEMS]:
        click.echo(f"{'note' if problem.usable else 'skipped'}: {problem}")
    if len(diagnosis.problems) > MOST_PROBLEMS:
        click.echo(f"… and {len(diagnosis.problems) - MOST_PROBLEMS} more, see --html or --json")
    if mend:
        for repair in doctor_fix.fix(Corpus(corpus, audio_root), diagnosis, Columns(**columns)):
            click.echo(f"mended: {repair}")
    if show_labels:
        _show_labels(survey.utterances, model_checkpoint)
    if not summary["usable"]:
        raise DataError(f"{corpus} has no row that can be used.", "Mend the rows above.")
    if strict and survey.refused:
        raise DataError(f"{len(survey.refused)} reasons not to use rows.", "Mend the rows above.")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def card(run: Path) -> None:
    """Write the model card (README.md) of a run from its report and settings."""
    from voxtral_finetune.publishing.card import write_card

    click.echo(write_card(Run.open(run).folder))


def _execute(what: Run | Settings) -> str | None:
    """Executes a run, or a new one with these settings, and shows it; the word of its verdict, of the first process."""
    from voxtral_finetune.console import Console, quiet_libraries
    from voxtral_finetune.evaluation.report import table, training_line
    from voxtral_finetune.pipeline import create
    from voxtral_finetune.pipeline import execute as execute_run
    from voxtral_finetune.training.distributed import processes

    quiet_libraries()
    run = create(what) if isinstance(what, Settings) else what
    if processes()[0] > 0:
        execute_run(run)  # the first process shows what happens
        return None
    click.echo(f"Home: {home()}\nRun:  {run.folder}")
    with Console() as console:
        run.watch(console)
        report = execute_run(run)
    assert report is not None
    click.echo("\n" + table(report) + training_line(report))
    click.echo(f"Run folder: {run.folder} (model/, report.html, report.json, README.md)")
    return report.verdict.word


def _amounts(names: dict[str, Any]) -> str:
    """What there is most of by name, on a line."""
    from voxtral_finetune.data.doctor import length
    from voxtral_finetune.data.findings import shown

    most = [
        f"{shown(name)[:40] or 'not named'} {amount['rows']} utterances ({length(amount['seconds'])})"
        for name, amount in names.items()
    ]
    more = [f"… and {len(most) - MOST_NAMES} more"] if len(most) > MOST_NAMES else []
    return ", ".join(most[:MOST_NAMES] + more) or "none"


def _check(settings: Settings) -> None:
    from voxtral_finetune.pipeline import check

    check(settings)


def _resumed(given: dict[str, Any], config: Path | None) -> Run:
    if set(given) != {"output_dir"} or config:
        raise SettingsError("--resume goes on with a run's own settings.", "Give it --output-dir RUN and nothing else.")
    run = Run.open(given["output_dir"])
    if run.status() == "finished" and (run.folder / "model").is_dir():
        raise RunError(f"{run.folder} is finished.", "Start a new run with another --output-dir.")
    return run


def _show_labels(utterances: list[Any], checkpoint: str | None) -> None:
    from voxtral_finetune.data.audio import load
    from voxtral_finetune.data.collate import Example, TranscriptionCollator, shown
    from voxtral_finetune.model.load import load_processor

    settings = Settings.of({"model_checkpoint": checkpoint} if checkpoint else {})
    collator = TranscriptionCollator(load_processor(settings.model.model_checkpoint))
    batch = [Example(load(row.audio), row.text, row.language, row.audio.name) for row in utterances[:2]]
    for line in shown(collator, batch):
        click.echo(line)


main.add_command(transcribe)
main.add_command(evaluate)
main.add_command(report)
main.add_command(compare)
main.add_command(export)
main.add_command(prepare)
main.add_command(forget)
main.add_command(phrases)

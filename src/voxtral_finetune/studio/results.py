"""The page Results: every run, and of one what it was before and after."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from voxtral_finetune.errors import FinetuneError
from voxtral_finetune.evaluation.report import Report, error_name
from voxtral_finetune.evaluation.verdict import sentence
from voxtral_finetune.run import Run
from voxtral_finetune.studio import progress, texts
from voxtral_finetune.studio.errors import QUIET, guarded


def build(page: gr.Blocks) -> None:
    """Lays the page out and connects it; `?run=NAME` opens one run, otherwise the newest with a result."""
    gr.Markdown(f"# {texts.RESULTS}\n\n{texts.RESULTS_INTRO}")
    runs = gr.Dataframe(
        headers=texts.RUNS, datatype="str", interactive=False, label=texts.RUNS_LABEL, wrap=True, elem_id="runs"
    )
    outcome = gr.HTML(elem_id="result", elem_classes="notes")
    utterances = gr.Dataframe(
        headers=texts.UTTERANCES,
        datatype="str",
        interactive=False,
        label=texts.UTTERANCES_LABEL,
        wrap=True,
        column_widths=["34%", "33%", "33%"],
        show_search="filter",
        visible=False,
        elem_id="utterances",
    )
    shown = [outcome, utterances]
    page.load(_runs, None, runs, **QUIET)
    page.load(_open, None, shown, **QUIET)
    runs.select(_select, None, shown, **QUIET)


@guarded
def _runs() -> list[list[str]]:
    return [_row(run) for run in Run.all()]


@guarded
def _open(request: gr.Request) -> tuple[Any, ...]:
    wanted = request.query_params.get("run")
    if wanted:
        return _shown(progress.find(wanted))
    run = next((run for run in Run.all() if (run.folder / "report.json").is_file()), None)
    return _shown(run) if run else (f"<p>{texts.RUNS_NONE if not Run.all() else texts.NO_REPORT}</p>", gr.skip())


@guarded
def _select(event: gr.SelectData) -> tuple[Any, ...]:
    return _shown(progress.find(event.row_value[0]))


def _row(run: Run) -> list[str]:
    """A run's line; one whose files cannot be read says so and hides no other."""
    try:
        settings, report = run.settings(), _report_of(run)
    except FinetuneError as error:
        return [run.name, error.what, "", "", "", "", ""]
    facts = [run.name, run.status(), settings.model.model_checkpoint, settings.training.method]
    if not report:
        return [*facts, "", "", ""]
    return [*facts, _percent(report.base.wer), _percent(report.tuned.wer), report.verdict.word]


def _shown(run: Run) -> tuple[str, gr.Dataframe]:
    """A run's name, its table, verdict and warnings, and what was heard in each test recording."""
    report, name = _report_of(run), html.escape(run.name)
    if not report:
        view = progress.view(run)
        link = f'<a href="train?run={name}">{texts.TRAIN}</a>'
        return f"<h2>{name}</h2><p>{texts.NO_REPORT} {html.escape(view.sentence)} {link}</p>", gr.Dataframe(
            visible=False
        )
    said = [sentence(report.verdict, report.base.unit), report.verdict.note, *report.warnings]
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in said if text)
    rows = [[each.reference, each.base, each.tuned] for each in report.utterances]
    return f"<h2>{name}</h2>{compared(report)}{notes}", gr.Dataframe(rows, visible=True)


def compared(report: Report) -> str:
    """The before/after table, as the terminal's (`evaluation.report.table`)."""
    base, tuned = report.base, report.tuned
    rates = [(error_name(base), base.wer, tuned.wer)]
    if base.unit == "word":
        rates.append(("character error rate", base.cer, tuned.cer))
    rows = [
        (name, _percent(before), _percent(after), f"{100 * (after - before):+.1f}") for name, before, after in rates
    ]
    for name in ("substitutions", "deletions", "insertions"):
        before, after = getattr(base, name), getattr(tuned, name)
        rows.append((name, str(before), str(after), f"{after - before:+d}"))
    head = "".join(f'<th scope="col">{text}</th>' for text in texts.COMPARED)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<table class="compared"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _report_of(run: Run) -> Report | None:
    path = run.folder / "report.json"
    return Report.load(path) if path.exists() else None


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

"""The page Train: what to learn from and how, then the run as it goes on."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from voxtral_finetune.flags import command_line
from voxtral_finetune.model import catalog
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings, every_setting, home
from voxtral_finetune.studio import form, progress, projects, texts
from voxtral_finetune.studio.errors import QUIET, guarded

EVERY_SECOND = 1.0


def build(page: gr.Blocks) -> None:
    """Lays the page out and connects it; opening it shows the run that is going on."""
    gr.Markdown(f"# {texts.TRAIN}\n\n{texts.TRAIN_INTRO}")
    asked, names = _form()
    project = asked[0]
    command = gr.Textbox(
        label=texts.COMMAND, interactive=False, lines=2, max_lines=6, buttons=["copy"], elem_id="command"
    )
    start = gr.Button(texts.START, variant="primary", elem_id="start")
    watched, seen = gr.State(), gr.State()
    live, stop, resume = _live()
    timer = gr.Timer(EVERY_SECOND, active=False)
    outputs = [seen, timer, *live]

    page.load(_projects, None, project, **QUIET)
    page.load(_open, None, [watched, *outputs], **QUIET)
    changes = [page.load, *(each.change for each in asked)]
    gr.on(changes, _command(names), asked, command, trigger_mode="always_last", **QUIET)
    advised = sorted({setting for each in catalog.CHECKPOINTS for setting in each.recommended})
    asked[1].input(_recommended(advised), asked[1], [asked[2 + names.index(each)] for each in advised], **QUIET)
    start.click(_start(names), asked, [watched, *outputs], **QUIET)
    ticked = timer.tick(_tick, [watched, seen], outputs, queue=False, **QUIET)
    ticked.failure(_look_no_more, None, timer, **QUIET)  # its folder is gone
    stop.click(_stop, watched, outputs, **QUIET)
    resume.click(_continue, watched, outputs, **QUIET)


def _form() -> tuple[list[Any], list[str]]:
    """(project, checkpoint, one component a setting, name of the run), and the settings' names in that order."""
    suggested = catalog.suggested()
    with gr.Row():
        project = gr.Dropdown([], label=texts.CORPUS, info="--dataset-jsonl", min_width=form.WIDTH, elem_id="corpus")
        checkpoint = gr.Dropdown(
            [(each.title, each.name) for each in catalog.CHECKPOINTS],
            value=suggested.name,
            label=texts.CHECKPOINT,
            info=texts.CHECKPOINT_INFO,
            allow_custom_value=True,
            min_width=form.WIDTH,
            elem_id="checkpoint",
        )
    main, more = form.settings(main=True), form.settings(main=False)
    with gr.Row(elem_classes="settings"):
        first = [form.widget(setting, suggested.recommended) for setting in main]
    with gr.Accordion(texts.ADVANCED, open=False, elem_id="advanced"):
        name = gr.Textbox(label=texts.RUN_NAME, info=texts.RUN_NAME_INFO, max_length=64, elem_id="run-name")
        with gr.Row(elem_classes="settings"):
            rest = [form.widget(setting, suggested.recommended) for setting in more]
    return [project, checkpoint, *first, *rest, name], [setting.name for setting in main + more]


def _live() -> tuple[list[Any], gr.Button, gr.Button]:
    """(the components that `_shown` fills, the buttons Stop and Continue, which are among them)."""
    status = gr.HTML(elem_id="status", elem_classes="notes")
    with gr.Row():
        stop = gr.Button(texts.STOP, variant="stop", visible=False, elem_id="stop")
        resume = gr.Button(texts.CONTINUE, visible=False, elem_id="continue")
    with gr.Row():
        loss = gr.LinePlot(
            x="step",
            y="loss",
            color="set",
            title=texts.LOSS,
            height=240,
            min_width=form.WIDTH,
            visible=False,
            elem_id="loss",
        )
        wer = gr.LinePlot(x="step", y="wer", title=texts.WER, y_title="%", height=240, visible=False, elem_id="wer")
    with gr.Accordion(texts.LOG, open=False, visible=False, elem_id="log") as box:
        log = gr.Textbox(lines=12, max_lines=12, interactive=False, show_label=False, label=texts.LOG)
    return [status, stop, resume, loss, wer, box, log], stop, resume


@guarded
def _projects(request: gr.Request) -> gr.Dropdown:
    names = projects.names()
    wanted = request.query_params.get("project")
    return gr.Dropdown(names, value=wanted if wanted in names else next(iter(names), None))


@guarded
def _open(request: gr.Request) -> tuple[Any, ...]:
    wanted = request.query_params.get("run")
    run = progress.find(wanted) if wanted else progress.newest()
    return (run.name if run else None, *_shown(run))


def _command(names: list[str]) -> Any:
    @guarded
    def command(*values: Any) -> str:
        return command_line(_flat(names, values))

    return command


def _recommended(names: list[str]) -> Any:
    """Shows what the chosen checkpoint learns best with; what is recommended for others goes back to its default."""
    settings = {setting.name: setting for setting in every_setting()}

    @guarded
    def recommended(checkpoint: str | None) -> list[Any]:
        advice = catalog.named(checkpoint or "").recommended
        return [form.shown_value(settings[name], advice) for name in names]

    return recommended


def _start(names: list[str]) -> Any:
    @guarded
    def start(*values: Any) -> tuple[Any, ...]:
        flat = _flat(names, values)
        settings = Settings.of(flat)
        projects.check_enough(values[0])
        progress.check_idle()
        run = Run.create(settings)
        progress.launch(run)
        return run.name, *_shown(run)

    return start


@guarded
def _tick(name: str | None, seen: Any) -> Any:
    run = progress.find(name)
    return gr.skip() if progress.mark(run) == seen else _shown(run)


@guarded
def _look_no_more() -> gr.Timer:
    return gr.Timer(active=False)


@guarded
def _stop(name: str | None) -> tuple[Any, ...]:
    run = progress.find(name)
    run.request_stop()
    return _shown(run)


@guarded
def _continue(name: str | None) -> tuple[Any, ...]:
    run = progress.find(name)
    progress.launch(run)
    return _shown(run)


def _flat(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    """Flat settings of the whole form: `values` are in the order of `_form`."""
    project, checkpoint, *rest, name = values
    chosen = {"model_checkpoint": checkpoint, **form.flat(names, rest)}
    if project:
        chosen["dataset_jsonl"] = str(projects.folder(project))
    if name:
        chosen["output_dir"] = str(home() / "outputs" / projects.check_name(name, "A run's name"))
    return chosen


def _shown(run: Run | None) -> tuple[Any, ...]:
    """What the live part shows of a run: the mark of what was seen, whether to look again, then `_live`'s parts."""
    if run is None:
        return None, gr.Timer(active=False), f"<p>{texts.NO_RUN}</p>", *[gr.skip()] * 6
    seen, view, going = progress.mark(run), progress.view(run), progress.is_going(run)
    return (
        seen,
        gr.Timer(active=going),
        _status(view),
        gr.Button(visible=view.status == "running", interactive=not run.stop_requested()),
        gr.Button(visible=not going and view.status != "finished"),
        gr.LinePlot(view.loss, visible=len(view.loss) > 0),
        gr.LinePlot(view.wer, visible=len(view.wer) > 0),
        gr.Accordion(visible=bool(view.log)),
        view.log,
    )


def _status(view: progress.View) -> str:
    name = html.escape(view.name)
    bar = f'<progress max="1" value="{view.done:.3f}"></progress>' if view.done is not None else ""
    link = f' <a href="results?run={name}">{texts.RESULTS}</a>' if view.status == "finished" else ""
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in view.notes)
    return f"<p><strong>{name}</strong>: {html.escape(view.sentence)}{link}</p>{bar}{notes}"

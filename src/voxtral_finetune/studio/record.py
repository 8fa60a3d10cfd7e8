"""The page Record: read phrases into the microphone, or bring recordings with their transcripts."""

from __future__ import annotations

import html
from functools import cache
from typing import Any

import gradio as gr
import pycountry

from voxtral_finetune.data.phrases import languages, packs
from voxtral_finetune.model import catalog
from voxtral_finetune.studio import projects, texts
from voxtral_finetune.studio.errors import QUIET, guarded
from voxtral_finetune.studio.form import WIDTH
from voxtral_finetune.studio.recorder import NOT_SAVED, recorder, shows


def build(page: gr.Blocks) -> None:
    """Lays the page out and connects it; `page.load` fills it from what is on disk."""
    pack = catalog.suggested().phrases
    gr.Markdown(f"# {texts.RECORD}\n\n{texts.RECORD_INTRO}")
    with gr.Row():
        project = gr.Dropdown(
            [texts.FIRST_PROJECT],
            value=texts.FIRST_PROJECT,
            label=texts.PROJECT,
            info=texts.PROJECT_INFO,
            allow_custom_value=True,
            min_width=WIDTH,
            elem_id="project",
        )
        speaker = gr.Textbox(
            label=texts.SPEAKER, info=texts.SPEAKER_INFO, max_length=64, min_width=WIDTH, elem_id="speaker"
        )
    with gr.Row():
        choices = [(texts.PACKS.get(name, name), name) for name in packs()]
        chosen = gr.Dropdown(choices, value=pack, label=texts.PACK, min_width=WIDTH, elem_id="pack")
        language = gr.Dropdown(_languages(pack), value="en", label=texts.LANGUAGE, min_width=WIDTH, elem_id="language")
    box = recorder()
    progress = gr.HTML(elem_id="takes", elem_classes="notes")
    shown = [box, progress]
    _connect_recorder(box, speaker, shown)
    page.load(_open, None, [project, *shown], **QUIET)
    chosen.change(_change_pack, [project, chosen, language], [language, *shown], **QUIET)
    gr.on([project.change, language.input], _first, [project, chosen, language], shown, **QUIET)
    _upload(project, speaker, [project, chosen, language], shown)


def _connect_recorder(box: gr.HTML, speaker: gr.Textbox, shown: list[Any]) -> None:
    saved = box.accept(_accept, speaker, shown, **QUIET)
    saved.failure(None, None, None, js=NOT_SAVED)
    box.skip(_skip, None, shown, **QUIET)
    box.previous(_previous, None, shown, **QUIET)
    box.next(_next, None, shown, **QUIET)


def _upload(project: gr.Dropdown, speaker: gr.Textbox, place: list[Any], shown: list[Any]) -> None:
    with gr.Accordion(texts.UPLOAD, open=False, elem_id="upload"):
        gr.Markdown(texts.UPLOAD_INTRO)
        files = gr.File(label=texts.UPLOAD_FILES, file_count="multiple", file_types=["audio"], height=180)
        script = gr.Textbox(label=texts.UPLOAD_SCRIPT, lines=6, max_lines=20, elem_id="script")
        source = gr.UploadButton(texts.UPLOAD_SCRIPT_FILE, file_types=[".txt", ".tsv"], size="sm")
        code = gr.Dropdown(
            _languages("everyday"), value="en", label=texts.UPLOAD_LANGUAGE, allow_custom_value=True, elem_id="code"
        )
        add = gr.Button(texts.UPLOAD_ADD, variant="primary")
        outcome = gr.HTML(elem_id="outcome", elem_classes="notes")
    source.upload(_read_script, source, script, **QUIET)
    added = add.click(_add, [project, files, script, code, speaker], [outcome, files], **QUIET)
    added.success(_first, place, shown, **QUIET)


@guarded
def _open() -> tuple[Any, ...]:
    """What stands on the page when it is opened: the project that was worked on last, at its next phrase."""
    known = projects.names()
    name = known[0] if known else texts.FIRST_PROJECT
    choices = known or [texts.FIRST_PROJECT]
    return gr.Dropdown(choices, value=name), *_show(projects.next_prompt(name, catalog.suggested().phrases, "en"))


@guarded
def _first(project: str, pack: str, language: str) -> tuple[Any, ...]:
    return _show(projects.next_prompt(project, pack, language))


@guarded
def _change_pack(project: str, pack: str, language: str) -> tuple[Any, ...]:
    known = _languages(pack)
    kept = language if language in languages(pack) else known[0][1]
    return gr.Dropdown(known, value=kept), *_first(project, pack, kept)


@guarded
def _accept(event: gr.EventData, speaker: str) -> tuple[Any, ...]:
    project, pack, language, place, phrase = projects.place_of(event._data)
    projects.save_take(project, event._data.get("path"), phrase.text, language, speaker)
    return _show(projects.next_prompt(project, pack, language, after=place))


@guarded
def _skip(event: gr.EventData) -> tuple[Any, ...]:
    project, pack, language, place, _ = projects.place_of(event._data)
    return _show(projects.next_prompt(project, pack, language, after=place))


@guarded
def _previous(event: gr.EventData) -> tuple[Any, ...]:
    project, pack, language, place, _ = projects.place_of(event._data)
    return _show(projects.prompt(project, pack, language, place - 1))


@guarded
def _next(event: gr.EventData) -> tuple[Any, ...]:
    project, pack, language, place, _ = projects.place_of(event._data)
    return _show(projects.prompt(project, pack, language, place + 1))


@guarded
def _read_script(upload: str) -> str:
    return projects.read_script(upload)


@guarded
def _add(project: str, files: list[str] | None, script: str, language: str, speaker: str) -> tuple[str, None]:
    added, refused = projects.add_files(project, files or [], script, language, speaker)
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in refused)
    return f"<p>{texts.added(added, len(refused))}</p><ul>{reasons}</ul>", None


def _show(prompt: projects.Prompt) -> tuple[Any, str]:
    """The prompt for the recorder, and how far the project is."""
    rows = projects.takes(prompt.project)
    seconds = sum(row.seconds or 0 for row in rows)
    line = html.escape(texts.progress(prompt.project, len(rows), seconds))
    link = f'<a href="train?project={prompt.project}">{texts.TO_TRAINING}</a>' if rows else ""
    return shows(prompt), f"<p>{line} {link}</p>"


@cache
def _languages(pack: str) -> list[tuple[str, str]]:
    """(name, code) of a pack's languages, by name."""
    named = [(pycountry.languages.get(alpha_2=code), code) for code in languages(pack)]
    return sorted((f"{found.name if found else code} ({code})", code) for found, code in named)

"""The recorder: one phrase at a time, by keyboard or mouse, as raw samples from the microphone.

A factory and no subclass of `gr.HTML`, because Gradio writes a `.pyi` file beside a module that holds a subclass. What
its events carry was sent by a browser: `studio.projects.place_of` and `uploaded` check it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import gradio as gr

from voxtral_finetune.studio import texts
from voxtral_finetune.studio.projects import MAX_SECONDS, Prompt

STATIC = Path(__file__).parent / "static"

NOT_SAVED = "() => { window.dispatchEvent(new Event('take-not-saved')); }"
"""What to run in the browser where `accept` failed: the recorder then has its take back."""


def recorder() -> gr.HTML:
    """A recorder with the events `accept` (with the path of an upload), `skip`, `previous` and `next`."""
    return gr.HTML(
        html_template=_static("recorder.html"),
        css_template=_static("recorder.css"),
        js_on_load=_static("recorder.js"),
        apply_default_css=False,
        texts=texts.RECORDER,
        max_seconds=MAX_SECONDS,
        elem_id="recorder",
    )


def shows(prompt: Prompt) -> dict[str, str | int]:
    """A prompt as the recorder's value."""
    return asdict(prompt)


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")

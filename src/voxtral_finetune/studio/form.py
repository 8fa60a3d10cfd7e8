"""The settings tree as a form: a widget for each setting, and the settings that its values say."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr

from voxtral_finetune.settings import Setting, every_setting
from voxtral_finetune.studio import texts

MAIN = ("method", "preset", "epochs", "learning_rate", "batch_size")
"""What most people set; the rest is under Advanced."""

ELSEWHERE = (
    *("dataset_jsonl", "audio_root", "guard", "replay", "model_checkpoint", "output_dir"),
    *("dataset_name", "dataset_config", "dataset_split", "dataset_revision", "max_hours", "stream"),
)
"""What the page asks for in its own way, what a browser may not choose (paths), and what no project has."""

WIDTH = 260
"""Pixels that a widget asks for; a row breaks where there are fewer."""

SWITCH = {"true": True, "false": False}
"""What the choices of a switch with a default of its own stand for: a list of choices holds texts."""


def settings(main: bool) -> list[Setting]:
    """The settings of the form's main or its advanced part, in the order they are declared."""
    return [one for one in every_setting() if one.name not in ELSEWHERE and (one.name in MAIN) == main]


def widget(setting: Setting, recommended: Mapping[str, Any]) -> Any:
    """The component for one setting, labelled with its help and its flag, showing the recommended value or default."""
    kind, optional = _kind(setting.field.annotation)
    shown: dict[str, Any] = {
        "label": setting.help,
        "info": setting.flag,
        "min_width": WIDTH,
        "elem_id": f"setting-{setting.name}",
    }
    value = shown_value(setting, recommended)
    if kind is bool and optional:
        named = [(texts.AUTOMATIC, ""), (texts.YES, "true"), (texts.NO, "false")]
        return gr.Dropdown(named, value=value, **shown)
    if kind is bool:
        return gr.Checkbox(value, **shown)
    if typing.get_origin(kind) is typing.Literal:
        named = [(str(each), str(each)) for each in typing.get_args(kind)]
        first = [(texts.AUTOMATIC, "")] if optional else []
        return gr.Dropdown(first + named, value=value, **shown)
    if kind in (int, float) and not optional:  # an empty number box shows, and sends, 0
        return gr.Number(value, **shown)
    return gr.Textbox(value, placeholder=texts.AUTOMATIC, max_lines=1, **shown)


def shown_value(setting: Setting, recommended: Mapping[str, Any]) -> Any:
    """What a setting's component shows: an empty text stands for "not set"."""
    value = recommended.get(setting.name, setting.default)
    if value is None:
        return ""
    kind, optional = _kind(setting.field.annotation)
    if kind is bool and optional:
        return str(value).lower()
    return str(value) if optional else value


def flat(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """The settings that a form's values say; what was left empty keeps its default."""
    written = (value.strip() if isinstance(value, str) else value for value in values)
    kept = {name: value for name, value in zip(names, written, strict=True) if value not in (None, "")}
    return {name: SWITCH.get(value, value) if name in SWITCHES else value for name, value in kept.items()}


def _kind(annotation: Any) -> tuple[Any, bool]:
    """(the type of a setting without None, whether None was in it)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (kind,) = (each for each in typing.get_args(annotation) if each is not type(None))
        return kind, True
    return annotation, False


SWITCHES = {setting.name for setting in every_setting() if _kind(setting.field.annotation) == (bool, True)}

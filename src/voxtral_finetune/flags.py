"""Flags from the settings tree, and back: the command line that says the same as a run's settings."""

from __future__ import annotations

import json
import shlex
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from voxtral_finetune.settings import Setting, Settings, every_setting


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds a flag for every setting of the tree; one that is not given is None."""
    for setting in reversed(list(every_setting())):
        command = _option(setting)(command)
    return command


def command_line(flat: Mapping[str, Any]) -> str:
    """The command that trains with these settings, for a person to copy; defaults are left out."""
    defaults = Settings.of({}).flat()
    words = ["voxtral-finetune", "train"]
    for setting in every_setting():
        if setting.name in flat and flat[setting.name] != defaults[setting.name]:
            words += _as_flags(setting, flat[setting.name])
    return shlex.join(words)


def _option(setting: Setting) -> Callable[..., Any]:
    """The flag of one setting; click checks the shape of a value, the settings tree its bounds."""
    default = setting.default
    shown = f"  [default: {json.dumps(default)}]" if default not in (None, [], False) else ""
    kind, multiple = _click_type(setting.field.annotation)
    if kind is bool:
        names = f"{setting.flag}/--no-{setting.name.replace('_', '-')}"
        return click.option(names, setting.name, default=None, help=setting.help + shown)
    return click.option(
        setting.flag, setting.name, type=kind, multiple=multiple, default=None, help=setting.help + shown
    )


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """(what click makes of a setting's type, whether the flag may be repeated)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _click_type(next(kind for kind in arguments if kind is not type(None)))
    if origin is list:
        return _click_type(arguments[0])[0], True
    if origin is typing.Literal:
        return click.Choice([str(value) for value in arguments]), False
    return (click.Path(path_type=Path) if annotation is Path else annotation), False


def _as_flags(setting: Setting, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [setting.flag if value else f"--no-{setting.flag[2:]}"]
    values = value if isinstance(value, list) else [value]
    return [word for each in values for word in (setting.flag, str(each))]

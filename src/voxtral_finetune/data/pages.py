"""What every page made here shares: its look, its player, and that it needs nothing but itself.

Whatever people typed is data: templates are constant and escape it, and a page's content security policy runs only the
script that came with it, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import soundfile
from markupsafe import Markup

from voxtral_finetune.data.audio import Wave

TEMPLATES = Path(__file__).parent / "templates"


def render(folder: Path, name: str, /, **facts: Any) -> str:
    """The page of `name`.html and, where they are there, .css and .js in a folder of templates, in the common look.

    Raises jinja2.UndefinedError where the page names a fact that is not given.
    """
    own, script = folder / f"{name}.css", folder / f"{name}.js"
    style = _text(TEMPLATES / "page.css") + (_text(own) if own.is_file() else "")
    code = _text(script) + _text(TEMPLATES / "player.js") if script.is_file() else ""
    return _template(folder / f"{name}.html").render(
        **facts,
        style=Markup(style),
        script=Markup(code),
        style_hash=policy_hash(style),
        script_hash=policy_hash(code),
    )


def flac(wave: Wave, rate: int) -> str:
    """Mono samples at `rate` Hz as a FLAC in a data URL."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def round_step(step: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is no less; 0.1 where there is no spread."""
    if step <= 0:
        return 0.1
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def number(value: float, digits: int = 6) -> str:
    """A number of so many digits, with a real minus sign."""
    return f"{value:.{digits}g}".replace("-", "−")


@cache
def _template(path: Path) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_text(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """What a content security policy calls a script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

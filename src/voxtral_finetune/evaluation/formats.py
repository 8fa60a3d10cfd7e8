"""A transcript as plain text, JSON or subtitles."""

from __future__ import annotations

import json
from typing import Any, Literal

from voxtral_finetune.evaluation.transcripts import Heard, Spoken

Format = Literal["txt", "json", "srt", "vtt"]
FORMATS: tuple[Format, ...] = ("txt", "json", "srt", "vtt")


def written(heard: Heard, form: Format, name: str) -> str:
    """The whole file of one recording; `name` is what JSON calls it."""
    if form == "json":
        return json.dumps(as_json(heard, name), ensure_ascii=False, indent=2) + "\n"
    said = [piece for piece in heard.pieces if piece.text]
    if form == "srt":
        return "".join(f"{number}\n{_cue(piece, ',')}\n\n" for number, piece in enumerate(said, start=1))
    if form == "vtt":
        return "WEBVTT\n\n" + "".join(f"{_cue(piece, '.')}\n\n" for piece in said)
    return one_line(heard.text) + "\n"


def as_json(heard: Heard, name: str) -> dict[str, Any]:
    """{"file", "text", "cut_off", "pieces": [{"start", "end", "text", "cut_off"}]}, times in seconds."""
    pieces = [
        {"start": round(piece.start, 3), "end": round(piece.end, 3), "text": piece.text, "cut_off": piece.capped}
        for piece in heard.pieces
    ]
    return {"file": name, "text": heard.text, "cut_off": heard.capped, "pieces": pieces}


def one_line(text: str) -> str:
    """Text for a terminal or a line of a file: single spaces, no control characters, which a terminal would obey."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _cue(piece: Spoken, point: str) -> str:
    """Times and text of a subtitle; signs that either format reads as its own are spelled."""
    text = one_line(piece.text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") if point == "." else text
    return f"{_time(piece.start, point)} --> {_time(piece.end, point)}\n{text.replace('-->', '->')}"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"

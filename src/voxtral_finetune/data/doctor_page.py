"""A diagnosis as one HTML file that needs nothing else: what the corpus holds, what is wrong, worst rows to listen to.

Whatever comes from the corpus is data and never becomes code (`data.pages`).
"""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from voxtral_finetune.data import audio
from voxtral_finetune.data.doctor import Diagnosis, Row, length
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.pages import TEMPLATES, flac, number, render, round_step
from voxtral_finetune.data.places import SUFFIXES, real
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import write_durably

MOST_ROWS = 500
"""Rows that are shown; a browser is quick with so many, and nobody reads more."""

MOST_NAMES = 10
MOST_EMBEDDED, MOST_EMBEDDED_BYTES, MOST_EMBEDDED_SECONDS = 20, 2_000_000, 20.0
"""Recordings kept inside the page where it cannot reach them by name, their size as base64, the most of each."""

MOST_CHARACTERS = 300
TITLES = {
    "audio": "Cannot be read",
    "channels": "Channels cancel",
    "columns": "Column missing",
    "conflict": "Same sound, other text",
    "dc": "DC offset",
    "digits": "Figures only",
    "duplicate": "Copies",
    "encoding": "Not UTF-8",
    "fast": "Too fast",
    "language": "Not a language of Voxtral",
    "leak": "Sound in training and test",
    "length": "Other length than said",
    "mojibake": "Damaged letters",
    "pauses": "Mostly silence",
    "row": "Damaged row",
    "script": "Other script",
    "short": "Too short",
    "slow": "Text may be missing",
    "text leak": "Text in training and test",
    "tokens": "Many tokens",
}
"""What kinds of findings are called where the kind itself says too little."""

BINS = 24
WIDTH, HEIGHT = 320, 180
LEFT, RIGHT, TOP, BOTTOM = 34, 312, 12, 140
"""The size of a histogram and of its plot in it, in units of the SVG."""


def write(path: Path, diagnosis: Diagnosis, folder: Path) -> None:
    """Writes the page about the corpus in `folder`; raises DataError where it cannot be written."""
    path = path.expanduser().absolute()
    try:
        write_durably(path, page(diagnosis, folder, path.parent).encode("utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be written: {error.strerror}.", "Name another file.") from error


def page(diagnosis: Diagnosis, folder: Path, place: Path) -> str:
    """The page about the corpus in `folder`, as it will lie in the folder `place`."""
    worst = sorted(diagnosis.rows, key=_badness)[:MOST_ROWS]
    sources = _sources(worst, folder, place)
    return render(
        TEMPLATES,
        "doctor",
        name=shown(real(folder).name),
        summary=diagnosis.summary,
        notes=[(TITLES.get(note.kind, note.kind.capitalize()), note) for note in diagnosis.notes],
        amounts=[
            _amounts("Languages", diagnosis.summary["languages"]),
            _amounts("Speakers", diagnosis.summary["speakers"]),
        ],
        histograms=_histograms(diagnosis),
        kinds=_kinds(diagnosis),
        rows=[_cells(row, source) for row, source in zip(worst, sources, strict=True)],
    )


def histogram(values: list[float]) -> dict[str, Any] | None:
    """Bars and ticks of a histogram in units of the SVG; None without values. The outermost bars hold what is beyond
    the 0.5th and 99.5th percentile, so that one odd row does not squeeze all others together."""
    if not values:
        return None
    data = np.asarray(values)
    low, high = (float(value) for value in np.percentile(data, [0.5, 99.5]))
    step = round_step((high - low) / BINS)
    first = math.floor(low / step)
    count = math.floor(high / step) - first + 1
    counts = np.bincount(np.clip(np.floor(data / step) - first, 0, count - 1).astype(int), minlength=count)
    wide, tall = (RIGHT - LEFT) / count, (BOTTOM - TOP) / int(counts.max())
    bars = [
        {
            "x": round(LEFT + index * wide + 0.5, 2),
            "y": round(BOTTOM - bar * tall, 2),
            "width": round(max(wide - 1, 0.5), 2),
            "height": round(bar * tall, 2),
            "title": f"{number((first + index) * step)} to {number((first + index + 1) * step)}: {bar} rows",
        }
        for index, bar in enumerate(counts.tolist())
        if bar
    ]
    apart = round_step(count * step / 5)
    ticks = range(math.ceil(first * step / apart - 1e-9), math.floor((first + count) * step / apart + 1e-9) + 1)
    labels = [
        {"x": round(LEFT + (tick * apart / step - first) * wide, 2), "text": number(tick * apart)} for tick in ticks
    ]
    facts = {
        "median": number(float(np.median(data)), 3),
        "low": number(data.min(), 3),
        "high": number(data.max(), 3),
    }
    return {"bars": bars, "ticks": labels, "most": int(counts.max()), **facts}


def _histograms(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    heard = [row for row in diagnosis.rows if row.measures]
    kinds = {
        ("Duration", "seconds"): [row.measures.seconds for row in heard if row.measures],
        ("Level", "dBFS"): [row.measures.rms_dbfs for row in heard if row.measures],
        ("SNR estimate", "dB"): [row.measures.snr_db for row in heard if row.measures],
        ("Pace", "characters a second"): [row.characters_per_second for row in heard if row.characters_per_second],
    }
    size = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    drawn = ((title, unit, histogram(values)) for (title, unit), values in kinds.items())
    return [{"title": title, "unit": unit, **size, **plot} for title, unit, plot in drawn if plot]


def _amounts(title: str, names: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Hours by language or speaker, most first."""
    most = max((amount["seconds"] for amount in names.values()), default=0) or 1
    bars = [
        {
            "name": _short(name, 60) or "not named",
            "length": length(amount["seconds"]),
            "rows": amount["rows"],
            "share": round(100 * amount["seconds"] / most, 1),
        }
        for name, amount in islice(names.items(), MOST_NAMES)
    ]
    return {"title": title, "bars": bars, "more": max(len(names) - MOST_NAMES, 0)}


def _kinds(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Findings by kind, each with the first of its sentences as an example."""
    examples: dict[str, tuple[str, int]] = {}
    for row in diagnosis.rows:
        for reason in row.reasons:
            examples.setdefault(reason.kind, (_short(reason.what), row.line))
    kinds = []
    for kind, facts in diagnosis.summary["kinds"].items():
        what, line = examples[kind]
        kinds.append({"kind": kind, "title": TITLES.get(kind, kind.capitalize()), "what": what, "line": line, **facts})
    return kinds


def _badness(row: Row) -> tuple[bool, int, int]:
    """Refused rows first, then those with the most findings."""
    return row.usable, -len(row.reasons), row.line


def _cells(row: Row, source: str | None) -> dict[str, Any]:
    sound = row.measures
    return {
        "line": row.line,
        "file": _short(row.file, 120),
        "outcome": {"reject": "refused", "accept_with_warning": "note", "accept": ""}[row.outcome],
        "text": _short(row.text),
        "speaker": _short(row.speaker or "", 60),
        "language": _short(row.language or "", 12),
        "numbers": [
            ("s", f"{row.seconds:.2f}" if row.seconds else ""),
            ("dBFS", f"{sound.rms_dbfs:.0f}".replace("-", "−") if sound else ""),
            ("dB SNR", f"{sound.snr_db:.0f}" if sound else ""),
            ("char/s", f"{row.characters_per_second:.1f}" if row.characters_per_second else ""),
        ],
        "reasons": [{"kind": reason.kind, "what": _short(reason.what), "fix": reason.fix} for reason in row.reasons],
        "kinds": "|".join(reason.kind for reason in row.reasons),
        "source": source,
    }


def _sources(rows: list[Row], folder: Path, place: Path) -> list[str | None]:
    """What each player plays: the file itself where it lies under the page's folder, else a copy for the worst."""
    place, room = real(place), MOST_EMBEDDED_BYTES
    sources: list[str | None] = []
    embedded = 0
    for row in rows:
        path = row.audio or real(folder / row.file)
        source = None
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.is_relative_to(place):
                source = f"./{quote(str(path.relative_to(place)))}{_part(row)}"
            elif embedded < MOST_EMBEDDED and (copy := _embedded(path, row)) and len(copy) <= room:
                source, room, embedded = copy, room - len(copy), embedded + 1
        sources.append(source)
    return sources


def _part(row: Row) -> str:
    """The media fragment of a row that is a part of a longer file."""
    return f"#t={row.offset:g},{row.offset + (row.seconds or 0):g}" if row.part else ""


def _embedded(path: Path, row: Row) -> str | None:
    """A recording as a FLAC in a data URL; None where it cannot be decoded."""
    try:
        sound = audio.decode(path, row.offset, min(row.seconds or math.inf, MOST_EMBEDDED_SECONDS))
    except DataError:
        return None
    return flac(sound.wave, sound.rate)


def _short(text: str, most: int = MOST_CHARACTERS) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

"""A run as one HTML file that needs nothing else: the verdict, before and after, and every test utterance.

It shows what `report.json`, `events.jsonl`, `config.json` and `split.json` hold; what is not known is left out. Short
copies of the recordings that changed most are inside, so the file holds people's voices unless it is told not to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxtral_finetune.data import audio
from voxtral_finetune.data.findings import shown
from voxtral_finetune.data.pages import flac, number, render
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import DataError, RunError
from voxtral_finetune.evaluation.curves import curves
from voxtral_finetune.evaluation.marks import marks
from voxtral_finetune.evaluation.report import Report, Scored, duration, error_name, interval
from voxtral_finetune.evaluation.verdict import sentence
from voxtral_finetune.run import Run, write_durably
from voxtral_finetune.settings import read_config

TEMPLATES = Path(__file__).parent / "templates"

MOST_CHANGED = 10
"""Of the worst regressions and of the best gains, each; the list of all can be sorted by them."""

MOST_CLIPS, MOST_CLIP_BYTES, MOST_CLIP_SECONDS = 40, 8_000_000, 20.0
"""Recordings inside the page, their size as base64 together, the most of each."""

MOST_SLICES, MOST_TERMS = 20, 50
MOST_CHARACTERS = 5000
"""Of one text; a longer one is no utterance."""

SLICES = {"speaker": "Speaker", "seconds": "Length", "language": "Language"}
BEHAVIOUR = {"loop_rate": "Texts that loop", "empty_rate": "Left empty", "cap_hit_rate": "Cut off"}
PLACE = re.compile(r"(?:~|[A-Za-z]:)?[/\\]")
"""How a path begins that would tell how somebody's machine is laid out."""


def write_page(run_folder: Path, sound: bool = True) -> Path:
    """Writes report.html of a run from its files, durably; returns its path. Without `sound` it holds no recording.

    Raises RunError or SettingsError naming the file that cannot be read.
    """
    report = Report.load(run_folder / "report.json")
    clips = _clips(report, run_folder) if sound else {}
    path = run_folder / "report.html"
    write_durably(path, page(report, run_folder, clips).encode("utf-8", errors="replace"))
    return path


def page(report: Report, run_folder: Path, clips: dict[int, str]) -> str:
    """The page about a run; `clips` are data URLs by the index of their utterance."""
    unit, rows = report.base.unit, report.utterances
    regressions, gains = changed(rows)
    data = {
        "rows": [_row(row, clips.get(index)) for index, row in enumerate(rows)],
        "regressions": regressions[:MOST_CHANGED],
        "gains": gains[:MOST_CHANGED],
    }
    return render(
        TEMPLATES,
        "report",
        name=shown(run_folder.absolute().name),
        verdict=sentence(report.verdict, unit),
        word=report.verdict.word,
        difference=f"Difference of the {error_name(report.base)}: {_minus(interval(report.verdict))}",
        notes=[text for text in (report.verdict.note, *report.warnings) if text],
        rate=error_name(report.base),
        normaliser=report.base.normaliser,
        headline=_headline(report),
        overall=_overall(report),
        slices=_slices(report),
        guards=_guards(report),
        terms=_terms(report),
        counted=f"{report.base.utterances} utterances, {report.base.words} {unit}s",
        curve=curves((event for event, _ in Run(run_folder).follow()), unit, report.training.get("best_step")),
        facts=_facts(report),
        settings=_settings(run_folder),
        clips=len(clips),
        seconds=MOST_CLIP_SECONDS,
        data=data,
    )


def changed(rows: Sequence[Scored]) -> tuple[list[int], list[int]]:
    """(indices of the regressions, of the gains), the largest change in errors first, then the shorter utterance."""
    order = sorted(range(len(rows)), key=lambda index: (-abs(_change(rows[index])), rows[index].words))
    worse = [index for index in order if _change(rows[index]) > 0]
    better = [index for index in order if _change(rows[index]) < 0]
    return worse, better


def _change(row: Scored) -> int:
    return row.tuned_errors - row.base_errors


def _row(row: Scored, clip: str | None) -> dict[str, Any]:
    said, base, tuned = (text[:MOST_CHARACTERS] for text in (row.reference, row.base, row.tuned))
    return {
        "said": said,
        "before": marks(said, base),
        "after": marks(said, tuned),
        "errors": [row.base_errors, row.tuned_errors],
        "words": row.words,
        "capped": [row.base_capped, row.tuned_capped],
        "seconds": round(row.seconds, 1),
        "speaker": row.speaker or "",
        "language": row.language or "",
        "file": Path(row.audio).name,
        "clip": clip,
    }


def _clips(report: Report, run_folder: Path) -> dict[int, str]:
    """Data URLs of what changed most, then of what is still most wrong, within the limits; by index."""
    rows, spans = report.utterances, _spans(report, run_folder)
    worse, better = changed(rows)
    wrong = sorted(range(len(rows)), key=lambda index: -rows[index].tuned_errors)
    turns = [index for pair in zip(worse, better, strict=False) for index in pair]  # so that neither takes all room
    found: dict[int, str] = {}
    room = MOST_CLIP_BYTES
    for index in dict.fromkeys([*turns, *worse, *better, *wrong]):
        if len(found) == MOST_CLIPS:
            break
        offset, seconds = spans[index]
        try:
            wave = audio.load(Path(rows[index].audio), offset, min(seconds or MOST_CLIP_SECONDS, MOST_CLIP_SECONDS))
        except DataError:
            continue  # moved or removed since
        if len(clip := flac(wave, audio.SAMPLE_RATE)) <= room:
            found[index], room = clip, room - len(clip)
    return found


def _spans(report: Report, run_folder: Path) -> list[tuple[float, float | None]]:
    """(offset, seconds) of each test utterance in its file, as far as split.json knows it."""
    try:
        test = Split.load(run_folder / "split.json").test
    except (OSError, RunError):
        test = []
    known = {(str(row.audio), row.text, row.seconds or 0.0): row.span for row in test}
    return [known.get((row.audio, row.reference, row.seconds), (0.0, None)) for row in report.utterances]


def _headline(report: Report) -> list[dict[str, str]]:
    """Before and after as a bar each, the longer one full."""
    both = {"Before": report.base.wer, "After": report.tuned.wer}
    most = max(both.values()) or 1
    return [{"name": name, "rate": _percent(rate), "share": f"{100 * rate / most:.1f}"} for name, rate in both.items()]


def _overall(report: Report) -> list[tuple[str, str, str, str]]:
    """(name, before, after, difference) of all that was measured."""
    base, tuned = report.base, report.tuned
    rows = [_rates(error_name(base).capitalize(), base.wer, tuned.wer)]
    rows += [_rates("Character error rate", base.cer, tuned.cer)] if base.unit == "word" else []
    for name in ("substitutions", "deletions", "insertions"):
        counts = getattr(base, name), getattr(tuned, name)
        rows.append((name.capitalize(), str(counts[0]), str(counts[1]), _signed(counts[1] - counts[0], 0)))
    models = [report.behaviour.get(model, {}) for model in ("base", "tuned")]
    rows += [_rates(name, *(model.get(key) for model in models)) for key, name in BEHAVIOUR.items()]
    rows.append(_rates("Terms recognised", *(report.terms.get(model, {}).get("recall") for model in ("base", "tuned"))))
    for name, rates in report.normalisers.items():
        if name != base.normaliser:
            pair = (rates.get(model, {}).get("wer") for model in ("base", "tuned"))
            rows.append(_rates(f"{error_name(base).capitalize()} ({name})", *pair))
    before, after = (f"{model['speed']:.1f}" if model.get("speed") else "" for model in models)
    rows.append(("Times as fast as speech", before, after, ""))
    return [row for row in rows if row[1] or row[2]]


def _slices(report: Report) -> list[dict[str, Any]]:
    """Those kinds of which the test set has several."""
    found = []
    for kind, title in SLICES.items():
        slices = report.slices.get(kind, [])
        if len(slices) > 1:
            rows = [
                (
                    one["name"] or "not named",
                    one["utterances"],
                    *_rates("", *map(one["wer"].get, ("base", "tuned")))[1:],
                )
                for one in slices[:MOST_SLICES]
            ]
            found.append({"title": title, "rows": rows, "more": max(len(slices) - MOST_SLICES, 0)})
    return found


def _guards(report: Report) -> list[tuple[str, str, str, str, str]]:
    """(name, utterances, before, after, difference) of each guard, and of the clips without speech."""
    rows = []
    for one in report.guards:
        name, before, after, change = _rates(one["name"], one["base_wer"], one["tuned_wer"])
        over = f", over the budget of {_signed(100 * one['budget'], 1)}" if one["broken"] else ""
        rows.append((name, str(one["utterances"]), before, after, change + over))
    if clips := report.silence:
        name, change = "Clips without speech in which words are heard", _signed(clips["tuned"] - clips["base"], 0)
        rows.append((name, str(clips["clips"]), str(clips["base"]), str(clips["tuned"]), change))
    return rows


def _terms(report: Report) -> list[tuple[str, int, int, int]]:
    """(term, said, heard before, heard after) of terms, those that changed most first."""
    before, after = (
        {one["term"]: one for one in report.terms.get(name, {}).get("terms", [])} for name in ("base", "tuned")
    )
    rows = [(term, one["said"], one["heard"], after[term]["heard"]) for term, one in before.items() if term in after]
    return sorted(rows, key=lambda row: -abs(row[3] - row[2]))[:MOST_TERMS]


def _facts(report: Report) -> list[tuple[str, str]]:
    """What was learned from and measured on, and what it took."""
    data, training, model = report.data, report.training, report.model
    rows: list[tuple[str, Any]] = [("Model", private(model.get("checkpoint"))), ("Revision", model.get("revision"))]
    rows += [(key.capitalize(), model.get(key)) for key in ("method", "preset")]
    for key, name in (("train", "Learned from"), ("dev", "Chosen by"), ("test", "Measured on")):
        if facts := data.get(key):
            rows.append((name, f"{facts['utterances']} utterances, {duration(facts.get('seconds', 0))}"))
    rows += [("Division", data.get("split_note")), ("Speakers", data.get("speakers"))]
    rows += [(key.capitalize(), ", ".join(map(str, data.get(key, [])))) for key in ("languages", "sources", "licences")]
    rows += [("Updates", training.get("steps")), ("Update that was kept", training.get("best_step"))]
    rows += [(name, form(training[key])) for key, (name, form) in MEASURED.items() if training.get(key) is not None]
    return [(name, str(value)) for name, value in rows if value]


def _settings(run_folder: Path) -> list[tuple[str, str]]:
    settings = read_config(run_folder / "config.json")
    return [(name, str(private(value))) for name, value in settings.items() if value not in (None, [], "")]


def private(value: Any) -> Any:
    """A path as its last name only; anything else as it is."""
    if not isinstance(value, str) or not PLACE.match(value):
        return value
    return "…/" + re.split(r"[/\\]", value.rstrip("/\\"))[-1]


MEASURED = {
    "seconds": ("Training time", duration),
    "peak_memory_bytes": ("Peak memory", lambda value: f"{value / 1e9:.1f} GB"),
    "size_bytes": ("Size on disk", lambda value: f"{value / 1e6:,.1f} MB"),
    "learning_rate": ("Learning rate", number),
}
"""Of `Report.training`: what it is called, and how it is written."""


def _rates(name: str, before: float | None = None, after: float | None = None) -> tuple[str, str, str, str]:
    change = "" if before is None or after is None else _signed(100 * (after - before), 1)
    return name, _percent(before), _percent(after), change


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def _signed(change: float, digits: int) -> str:
    text = f"{change:+.{digits}f}"
    return text[1:] if float(text) == 0 else _minus(text)


def _minus(text: str) -> str:
    return text.replace("-", "−")

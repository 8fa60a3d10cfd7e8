"""How strong what LoRA learned had best be: less of it forgets less.

An adapter adds a change to each layer, and the change can be made weaker or stronger without training again. Several
strengths are tried on dev and on the guards; the test set is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.durable import write_durably
from voxtral_finetune.evaluation import guard
from voxtral_finetune.evaluation.guard import Guard
from voxtral_finetune.evaluation.pieces import Recording
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

SCALES = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Of what was learned; 1 is all of it."""

RULE = (
    "Of the scales whose guards are all within their budget the one with the lowest dev error rate is kept; where there"
    " is none, the one whose dev error rate and what its worst guard is over the budget add up to the least."
)

Hears = Callable[[float, Sequence[Recording]], list[str]]
"""Texts of recordings as the model hears them at a scale."""


@dataclass(frozen=True)
class Tried:
    """A scale with its error rates, fractions, on dev and on each guard; `over`: beyond the budget of the worst."""

    scale: float
    dev: float
    guards: dict[str, float]
    over: float


def choose(tried: Sequence[Tried]) -> Tried:
    """The one to keep, by RULE; of equals the weaker."""
    within = [one for one in tried if not one.over]
    return min(within or tried, key=lambda one: (one.dev + one.over, one.scale))


def scan(run: Run, settings: Settings, dev: Sequence[Utterance], step: int, hears: Hears) -> float:
    """The scale to keep of the checkpoint of update `step`; what each one scores is kept in the run's scales.json.

    `hears` transcribes with that checkpoint. A run that goes on tries only the scales that are missing.
    """
    guards, before = _guards(run, settings)
    path = run.folder / "scales.json"
    known = _known(path, step)
    for scale in SCALES:
        if scale not in known:
            known[scale] = _try(scale, dev, guards, before, settings.evaluation.guard_budget, hears)
            _save(path, step, known)
    kept = choose([known[scale] for scale in SCALES]).scale
    _save(path, step, known, kept)
    run.emit("scales", rule=RULE, kept=kept, tried=[asdict(known[scale]) for scale in SCALES])
    return kept


def listener(settings: Settings, checkpoint: Path, processor: Any, progress: Callable[[int, int], None]) -> Hears:
    """What `scan` asks to hear; the base of an adapter comes in full precision, as it is exported."""
    from voxtral_finetune.evaluation.transcribe import Transcriber
    from voxtral_finetune.model import load
    from voxtral_finetune.model.export import set_scale

    model = load.load_model(str(checkpoint), device=load.pick_device(settings.model.device))
    ready = Transcriber(model, processor, settings.evaluation.eval_batch_size)

    def hears(scale: float, recordings: Sequence[Recording]) -> list[str]:
        set_scale(model, scale)
        return [heard.text for heard in ready.hear(recordings, progress) if heard is not None]

    return hears


def table(run: Run) -> list[dict[str, Any]]:
    """The scales that were tried, for the report: {"scale", "dev", "guards", "over", "kept"}; empty without a scan."""
    path = run.folder / "scales.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return [{**one, "kept": one["scale"] == content["kept"]} for one in content["tried"]]


def _try(
    scale: float,
    dev: Sequence[Utterance],
    guards: Sequence[Guard],
    before: Mapping[str, float],
    budget: float,
    hears: Hears,
) -> Tried:
    rows = [*dev, *(row for each in guards for row in each.rows)]
    texts: Iterator[str] = iter(hears(scale, list(map(Recording.of, rows))))
    rate = score([row.text for row in dev], [next(texts) for _ in dev]).wer
    found = {each.name: score([row.text for row in each.rows], [next(texts) for _ in each.rows]).wer for each in guards}
    over = max((guard.excess(before[name], rate, budget) for name, rate in found.items()), default=0.0)
    return Tried(scale, rate, found, over)


def _guards(run: Run, settings: Settings) -> tuple[list[Guard], dict[str, float]]:
    """(the run's guards, the error rate on each before training)"""
    guards = guard.kept(run, settings)
    return guards, guard.rates(guards, guard.heard(run, "base", guards))


def _known(path: Path, step: int) -> dict[float, Tried]:
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {one["scale"]: Tried(**one) for one in content["tried"]} if content["step"] == step else {}


def _save(path: Path, step: int, known: Mapping[float, Tried], kept: float | None = None) -> None:
    tried = [asdict(known[scale]) for scale in sorted(known)]
    write_durably(path, json.dumps({"step": step, "kept": kept, "tried": tried}, indent=1) + "\n")

"""From what two models heard to the report: scores, verdict, and the facts that they stand on."""

from __future__ import annotations

import json
from typing import Any

from voxtral_finetune.data.split import Split, summary
from voxtral_finetune.errors import ModelError
from voxtral_finetune.evaluation.behaviour import behaviour, normalised, read_terms, recall, slices
from voxtral_finetune.evaluation.guard import Price
from voxtral_finetune.evaluation.report import Report, Scored
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.verdict import compare
from voxtral_finetune.evaluation.wer import errors_of, score
from voxtral_finetune.model.catalog import learned_audio
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings


def measured(
    run: Run, settings: Settings, divided: Split, base: Transcripts, tuned: Transcripts, price: Price
) -> Report:
    """The report of a run: `base` and `tuned` are what each model heard in the test set, in its order."""
    rows, models = divided.test, {"base": base, "tuned": tuned}
    references = [row.text for row in rows]
    counted = {name: list(map(errors_of, references, heard.texts)) for name, heard in models.items()}
    terms = read_terms(settings.evaluation.terms) if settings.evaluation.terms else []
    return Report(
        base=score(references, base.texts),
        tuned=score(references, tuned.texts),
        verdict=compare(
            [each.errors for each in counted["base"]],
            [each.errors for each in counted["tuned"]],
            [each.words for each in counted["base"]],
        ),
        utterances=[
            Scored(
                audio=str(row.audio),
                reference=row.text,
                base=base.texts[index],
                tuned=tuned.texts[index],
                seconds=row.seconds or 0.0,
                language=row.language,
                speaker=row.speaker,
                words=counted["base"][index].words,
                base_errors=counted["base"][index].errors,
                tuned_errors=counted["tuned"][index].errors,
                base_capped=base.capped[index],
                tuned_capped=tuned.capped[index],
            )
            for index, row in enumerate(rows)
        ],
        model=_model_facts(settings),
        data=_data_facts(divided),
        training=_training_facts(run, settings),
        warnings=[*_warnings(settings, divided), *price.warnings],
        guards=price.guards,
        silence=price.silence,
        behaviour={name: behaviour(references, heard) for name, heard in models.items()},
        slices=slices(rows, counted),
        normalisers=normalised(rows, {name: heard.texts for name, heard in models.items()}),
        terms={name: recall(terms, references, heard.texts) for name, heard in models.items()} if terms else {},
    )


def check_changed(base: Transcripts, tuned: Transcripts) -> None:
    """Raises ModelError where both are the same model: then no number of the report would mean anything."""
    if base.fingerprint and base.fingerprint == tuned.fingerprint:
        what = "The saved model answers exactly as the one before training: what was learned is not in it."
        raise ModelError(what, "Remove model/ and heard-tuned.json from the run folder, then go on with --resume.")


def _model_facts(settings: Settings) -> dict[str, Any]:
    chosen = settings.model
    facts = {"checkpoint": chosen.model_checkpoint, "revision": chosen.model_revision}
    return {**facts, "method": settings.training.method, "preset": settings.training.preset}


def _data_facts(divided: Split) -> dict[str, Any]:
    everything = divided.train + divided.dev + divided.test + divided.replay
    return {
        **{name: summary(getattr(divided, name)) for name in ("train", "dev", "test")},
        **({"replay": summary(divided.replay)} if divided.replay else {}),
        "languages": sorted({row.language for row in everything if row.language}),
        "speakers": len({row.speaker for row in everything if row.speaker}),
        "sources": sorted({row.source for row in everything if row.source}),
        "licences": sorted({row.licence for row in everything if row.licence}),
        "split_by": divided.by,
        "split_note": divided.note,
    }


def _training_facts(run: Run, settings: Settings) -> dict[str, Any]:
    facts = json.loads((run.folder / "trained.json").read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in (run.folder / "model").rglob("*") if path.is_file())
    chosen = settings.training
    return {
        **facts,
        "size_bytes": size,
        "learning_rate": settings.learning_rate,
        **({"lora_r": chosen.lora_r, "lora_alpha": chosen.lora_alpha} if chosen.method != "full" else {}),
    }


def _warnings(settings: Settings, divided: Split) -> list[str]:
    """What a reader of the numbers must know."""
    known = learned_audio(settings.model.model_checkpoint)
    heard = sum(row.sha256 in known for row in divided.test)
    if not heard:
        return []
    share = f"{heard} of {len(divided.test)}"
    return [f"{share} test recordings were in the base model's own training; its WER before is too good there."]


def result(report: Report) -> dict[str, float]:
    """The numbers that a run ends with: error rates, the difference's interval, time, memory, size on disk."""
    verdict, training = report.verdict, report.training
    measured = ("seconds", "seconds_to_best", "best_step", "peak_memory_bytes", "size_bytes")
    return {
        "wer_before": report.base.wer,
        "wer_after": report.tuned.wer,
        "cer_before": report.base.cer,
        "cer_after": report.tuned.cer,
        "difference_low": verdict.low,
        "difference_high": verdict.high,
        **{name: training[name] for name in measured},
    }

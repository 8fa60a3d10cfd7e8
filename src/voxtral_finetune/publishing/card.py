"""The model card: what a run's report says, in the Hub's form, and nothing that the report does not say.

Names, notes and warnings come from people and files. They reach the page only through `plain`, and the metadata only
where they have the form of a Hub id, a language or a licence; the template itself is constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycountry
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from voxtral_finetune.evaluation.report import Report, duration, error_name, interval
from voxtral_finetune.evaluation.verdict import sentence
from voxtral_finetune.run import write_durably
from voxtral_finetune.settings import read_config

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"

TASK = "automatic-speech-recognition"

LICENCES = {"mistralai/Voxtral-Mini-3B-2507": "apache-2.0", "mistralai/Voxtral-Small-24B-2507": "apache-2.0"}
"""Of the published bases; any other licence has to be in `report.model["license"]` or is left out."""

HUB_ID = re.compile(r"(?:{0}/)?{0}".format(r"[A-Za-z0-9_](?:[\w.-]{0,94}\w)?"), re.ASCII)
HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
FOLDERS = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\](?=\S)(?:[^\s/\\]+[/\\])*")
"""The folders of an absolute path, which would tell how somebody's machine is laid out."""

LEARNED = (
    ("train", "learned from"),
    ("replay", "known before, of which a share was heard again"),
    ("dev", "for choosing when to stop"),
)
"""The parts of a run's data that its training used, and what for."""

MAX_TEXT, MAX_ITEMS = 300, 20
"""Characters of one text and texts of one list that a card shows."""


def write_card(run_folder: Path) -> Path:
    """Writes README.md of a run folder from its report.json and config.json, durably; returns its path.

    The model is an adapter where `model/adapter_config.json` is there. Raises RunError or SettingsError naming the
    file that cannot be read.
    """
    report, settings = Report.load(run_folder / "report.json"), read_config(run_folder / "config.json")
    made = card(report, settings, adapter=(run_folder / "model" / "adapter_config.json").is_file())
    path = run_folder / "README.md"
    write_durably(path, str(made))
    return path


def card(report: Report, settings: dict[str, object], *, adapter: bool) -> ModelCard:
    """The card of a model that is an adapter or a whole fine-tuned model; `settings` as in `config.json`."""
    base = hub_id(report.model.get("checkpoint"))
    published = base is not None and "/" in base  # a built-in name is no page of the Hub
    languages = _languages(report.data.get("languages"))
    name = base.split("/")[-1] if base else "Voxtral"
    spoken = _together(list(languages.values()))
    title = f"{name}, fine-tuned" + (f" for {plain(spoken)}" if spoken else "")
    dataset = hub_id(settings.get("dataset_name"))
    data = ModelCardData(
        language=list(languages) or None,
        license=_licence(report, base),
        base_model=base if published else None,
        base_model_relation=("adapter" if adapter else "finetune") if published else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=TASK,
        datasets=[dataset] if dataset else None,
        metrics=["wer", "cer"] if report.tuned.unit == "word" else ["cer"],
        tags=["voxtral", "voxtral-finetune", *(["lora"] if adapter else [])],
        model_name=name + "-finetuned",
        eval_results=_results(report, dataset),
    )
    two_letters = [code for code in languages if len(code) == 2]
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        summary=_summary(base, adapter),
        scores=_scores(report),
        verdict=sentence(report.verdict, report.tuned.unit),
        error_name=error_name(report.tuned),
        interval=interval(report.verdict),
        normaliser=plain(report.tuned.normaliser),
        note=plain(report.verdict.note),
        test_lines=_test_lines(report),
        guards=_guards(report),
        training_lines=_training_lines(report, dataset),
        settings=_settings({**settings, **report.model, **report.training, **_scale(report)}),
        adapter=adapter,
        base=f'"{base}"' if published else '"..."  # the base model\'s id on the Hub, or its folder',
        language=two_letters[0] if len(two_letters) == 1 else None,
        warnings=[plain(warning) for warning in report.warnings[:MAX_ITEMS]],
    )


def plain(text: object) -> str:
    """Text that stays text in Markdown, HTML, tables and mathematics: one line, limited, punctuation as entities.

    CommonMark reads an entity as a character and never as structure; a backslash would not protect HTML or "$$".
    Tokens of the Hub and the folders of absolute paths are taken out.
    """
    start = str(text)[: 4 * MAX_TEXT]  # a line of a gigabyte is not worth reading to its end
    line = " ".join("".join(character if character.isprintable() else " " for character in start).split())
    line = FOLDERS.sub("", TOKEN.sub("hf_…", line))
    short = line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"
    return re.sub(r"^-|[!-+./:-@[-`{-~]", lambda match: f"&#{ord(match[0])};", short)


def hub_id(value: object) -> str | None:
    """`value` where it has the form of a Hub id ("owner/name" or "name") and is no folder here, else None."""
    if not isinstance(value, str) or not HUB_ID.fullmatch(value) or ".." in value or "--" in value:
        return None
    return None if "/" in value and Path(value).exists() else value


def _languages(values: Any) -> dict[str, str]:
    """ISO 639 codes and English names in the report's order; "pt-BR" counts as "pt", others are left out."""
    found = {}
    for value in values or []:
        code = str(value).replace("_", "-").split("-")[0].lower()
        language = pycountry.languages.get(**{f"alpha_{len(code)}": code}) if len(code) in (2, 3) else None
        if language:
            found[code] = language.name.split(" (")[0]
    return found


def _licence(report: Report, base: str | None) -> str | None:
    licence = report.model.get("license") or LICENCES.get(base or "")
    return licence if isinstance(licence, str) and HUB_LICENCE.fullmatch(licence) else None


def _results(report: Report, dataset: str | None) -> list[EvalResult]:
    score = report.tuned
    rates = {"cer": ("Test CER", score.cer)}
    if score.unit == "word":  # a rate of characters must not stand on a leaderboard as one of words
        rates = {"wer": ("Test WER", score.wer), **rates}
    return [
        EvalResult(
            task_type=TASK,
            task_name="Automatic Speech Recognition",
            dataset_type=dataset or "custom",
            dataset_name=f"{dataset} (held-out part)" if dataset else "Held-out part of the training corpus",
            metric_type=metric,
            metric_name=f"{name} (%)",
            metric_value=round(100 * value, 2),
        )
        for metric, (name, value) in rates.items()
    ]


def _summary(base: str | None, adapter: bool) -> str:
    shown = "a Voxtral model" if base is None else f"[{base}](https://huggingface.co/{base})" if "/" in base else base
    if adapter:
        return f"A LoRA adapter that teaches {shown} to transcribe speech like the speech described below."
    return f"{shown[0].upper()}{shown[1:]}, fine-tuned to transcribe speech like the speech described below."


def _scores(report: Report) -> list[tuple[str, str, str]]:
    rows = [(error_name(report.tuned), "wer", "{:.1%}"), ("substitutions", "substitutions", "{}")]
    rows += [("deletions", "deletions", "{}"), ("insertions", "insertions", "{}")]
    if report.tuned.unit == "word":
        rows.insert(1, ("character error rate", "cer", "{:.1%}"))
    return [
        (name, form.format(getattr(report.base, field)), form.format(getattr(report.tuned, field)))
        for name, field, form in rows
    ]


def _guards(report: Report) -> list[tuple[str, str, str]]:
    """(name, error rate before, after) of each guard, and in how many clips without speech words were heard."""
    rows = [(plain(one["name"]), f"{one['base_wer']:.1%}", f"{one['tuned_wer']:.1%}") for one in report.guards]
    if clips := report.silence:
        rows.append((f"words in silence, of {clips['clips']} clips", str(clips["base"]), str(clips["tuned"])))
    return rows[:MAX_ITEMS]


def _test_lines(report: Report) -> list[str]:
    score = report.tuned
    lines = [f"{score.utterances} utterances with {score.words} {score.unit}s{_of_speech(report.data.get('test'))}"]
    if score.empty_references:
        lines.append(f"{score.empty_references} of them have an empty transcript: each word heard there is an error")
    if note := report.data.get("split_note"):
        lines.append(plain(note))
    return lines


def _training_lines(report: Report, dataset: str | None) -> list[str]:
    lines = [f"[{dataset}](https://huggingface.co/datasets/{dataset})"] if dataset else []
    for part, name in LEARNED:
        facts = report.data.get(part)
        if isinstance(facts, dict) and isinstance(facts.get("utterances"), int) and facts["utterances"]:
            lines.append(f"{facts['utterances']} utterances {name}{_of_speech(facts)}")
    speakers = report.data.get("speakers")
    if isinstance(speakers, int) and speakers:
        lines.append(f"{speakers} speaker{'s' if speakers > 1 else ''}")
    for key, label in (("sources", "Sources"), ("licences", "Licences of the recordings")):
        if names := report.data.get(key):
            lines.append(f"{label}: " + ", ".join(plain(name) for name in list(names)[:MAX_ITEMS]))
    return lines


def _scale(report: Report) -> dict[str, float]:
    kept = [one["scale"] for one in report.scales if one["kept"]]
    return {"scale": kept[0]} if kept else {}


def _settings(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings and measurements that matter, those that are known."""
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "method": ("method", plain),
        "preset": ("preset", plain),
        "revision": ("revision of the base model", plain),
        "learning_rate": ("learning rate", "{:g}".format),
        "windows_per_update": ("windows an update", "{}".format),
        "utterances_per_update": ("utterances an update, about", "{:g}".format),
        "epochs": ("epochs", "{:g}".format),
        "steps": ("updates", "{}".format),
        "best_step": ("update that was kept", "{}".format),
        "scale": ("strength of the adapter that was kept, of what was learned", "{:g}".format),
        "seconds": ("training time", duration),
        "peak_memory_bytes": ("peak memory", lambda value: f"{value / 2**30:.1f} GiB"),
        "size_bytes": ("size of the model files", lambda value: f"{value / 1e6:,.1f} MB"),
    }
    if values.get("method") in ("lora", "qlora"):
        for name in ("r", "alpha", "dropout"):
            shown[f"lora_{name}"] = (f"LoRA {name}", "{:g}".format)
    return [
        (label, form(values[key]))
        for key, (label, form) in shown.items()
        if values.get(key) is not None and (form is plain or isinstance(values[key], int | float))
    ]


def _of_speech(facts: Any) -> str:
    seconds = facts.get("seconds") if isinstance(facts, dict) else None
    return f", {duration(seconds)} of speech" if isinstance(seconds, int | float) else ""


def _together(names: list[str]) -> str:
    if len(names) > 3:
        return f"{len(names)} languages"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

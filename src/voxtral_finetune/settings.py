"""The settings tree: every setting declared once, with type, default, bounds and one line of help.

Flags, the Studio's form, `docs/settings.md` and a run's `config.json` are all read from here. Names are flat (each is
unique over all sections), so that `{"batch_size": 2, "lora_r": 8}` and `--batch-size 2 --lora-r 8` are the same thing.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from voxtral_finetune.errors import SettingsError


def home() -> Path:
    """Where data and runs live: `VOXTRAL_FINETUNE_HOME`, by default the current folder."""
    return Path(os.environ.get("VOXTRAL_FINETUNE_HOME") or ".").expanduser().absolute()


def cache() -> Path:
    """Where decoded speech (audio/) and what encoders make of it (embeddings/) are kept; may be deleted at any time."""
    return home() / "cache"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)


class DataSettings(Section):
    """What is learned from."""

    dataset_jsonl: Path | None = Field(
        None, description="The corpus: a JSONL file, or speech in any form that prepare reads (docs/datasets.md)."
    )
    dataset_name: str | None = Field(
        None, description="A dataset of the Hub to learn from, instead of --dataset-jsonl."
    )
    dataset_config: str | None = Field(None, description="Its config (default: its only one).")
    dataset_split: str | None = Field(None, description="Its split (default: train, or its only one).")
    dataset_revision: str | None = Field(
        None, description="Its branch, tag or commit (default: main); the run notes the commit."
    )
    max_hours: float | None = Field(None, gt=0, description="Stream at most so many hours of it, sampled by the seed.")
    stream: bool = Field(
        False, description="Learn from the Hub's dataset while it streams, without a local copy; needs --max-steps."
    )
    audio_column: str | None = Field(None, description="The column that names or holds audio (default: found).")
    text_column: str | None = Field(None, description="The column that holds what is said (default: found).")
    language_column: str | None = Field(None, description="The column that holds the language (default: found).")
    speaker_column: str | None = Field(None, description="The column that names who speaks (default: found).")
    audio_root: list[Path] = Field(
        [], description="A folder outside the corpus that its rows may name audio in; may be repeated."
    )
    language: str | None = Field(
        None,
        pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$",
        description="Two-letter language of rows that name none; without it Voxtral detects the language.",
    )
    train_count: int | None = Field(None, ge=1, description="Learn from at most so many utterances (default: all).")
    eval_count: int | None = Field(
        None, ge=1, description="At most so many utterances in dev and in test each (default: dev 200, test 1000)."
    )
    split_by: Literal["auto", "text", "speaker", "random"] = Field(
        "auto", description="What dev and test must not share with train; auto: speakers and texts where possible."
    )
    strict: bool = Field(False, description="End with an error where any row of the corpus has to be skipped.")


class ModelSettings(Section):
    """What is taught."""

    model_checkpoint: str = Field("mistralai/Voxtral-Mini-3B-2507", description="A Hub id, folder or built-in name.")
    model_revision: str | None = Field(None, description="Branch, tag or commit of a Hub checkpoint.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where to run; auto takes the fastest.")


class TrainingSettings(Section):
    """How it is taught."""

    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="LoRA adapters, LoRA on a base in 4 bits (less memory, slower), or the weights themselves."
    )
    preset: Literal["vocabulary", "voice", "language"] | None = Field(
        None,
        description="What learns. vocabulary: the language model; voice: also projector and top encoder layers; "
        "language: also the whole encoder. Default: vocabulary for LoRA, everything for full fine-tuning.",
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate (default: 1e-4 for LoRA, 1e-5 for full fine-tuning)."
    )
    epochs: float = Field(3, gt=0, le=10_000, description="How often each utterance is heard.")
    max_steps: int | None = Field(None, ge=1, description="Make so many updates, whatever --epochs says.")
    packing: bool | None = Field(
        None,
        description="Several short utterances share a window (default: where half of them fill under half of one).",
    )
    batch_size: int = Field(2, ge=1, le=4096, description="Windows per step, over all devices.")
    grad_accum: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Steps gathered into one update of the weights (default: until it holds about 8 utterances).",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW in 32 bits, or with 8-bit states: less memory for full fine-tuning."
    )
    lora_r: int = Field(16, ge=1, le=1024, description="Rank of the LoRA matrices.")
    lora_alpha: int = Field(32, ge=1, le=4096, description="Scale of the LoRA update, divided by the rank.")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the LoRA matrices: 0.05 costs an eighth of the speed."
    )
    freeze_audio_tower: bool = Field(False, description="Teach nothing in the audio encoder, whatever the preset.")
    top_encoder_layers: int = Field(8, ge=1, description="How many encoder layers, from the top, voice teaches.")
    warmup_share: float = Field(0.05, ge=0, le=0.5, description="Share of the updates in which the rate rises.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of AdamW.")
    language_free_share: float = Field(
        0.15, ge=0, le=1, description="Share of prompts without the language, so that detecting it is not forgotten."
    )
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations: less memory, a third slower (default: only where memory asks for it)."
    )
    compile: bool = Field(False, description="Compile the layers on CUDA by torch.compile: faster after minutes.")
    cache_audio: bool | None = Field(
        None,
        description="Compute what the frozen encoder makes of each window once and keep it on disk (default: where it "
        "is frozen, nothing changes the audio, and the windows are not packed anew each epoch).",
    )
    cache_gb: float = Field(50, ge=0, description="The most disk, in GB, that each cache of audio may take.")
    vary_speed: bool | None = Field(
        None, description="Hear each utterance 0.9 to 1.1 times as fast, anew each epoch (default: under 5 hours)."
    )
    mask_spectrum: bool | None = Field(
        None, description="SpecAugment: hide some frequencies and moments, anew each epoch (default: under 5 hours)."
    )
    noise: Path | None = Field(None, description="A folder of noises to learn through, 5 to 20 dB under the speech.")
    replay: Path | None = Field(None, description="A corpus of known speech, learned along with the new one.")
    replay_share: float = Field(0.25, gt=0, lt=1, description="Share of each epoch's utterances that replay is.")
    scale_scan: bool = Field(False, description="Choose how strong what LoRA learned is, by dev and guards.")
    logging_steps: int = Field(5, ge=1, description="Report loss every so many updates.")
    eval_steps: int | None = Field(
        None, ge=1, description="Measure dev loss and dev WER every so many updates (default: about ten times a run)."
    )
    save_steps: int | None = Field(
        None, ge=1, description="Also keep a checkpoint every so many updates (one is kept at each evaluation)."
    )
    patience: int = Field(
        5, ge=0, description="Stop after so many evaluations without a better dev WER; 0 never stops early."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of split, order and initial adapters.")


class EvaluationSettings(Section):
    """How it is measured."""

    eval_batch_size: int = Field(8, ge=1, le=4096, description="Utterances transcribed at a time.")
    terms: Path | None = Field(
        None, description="A text file of terms, one a line: how many are heard, before and after."
    )
    guard: list[Path] = Field([], description="A corpus of other speech, scored before and after; may be repeated.")
    guard_budget: float = Field(0.5, ge=0, le=100, description="Points of error rate that a guard may get worse by.")


class TrackingSettings(Section):
    """Where progress is shown."""

    project: str = Field("voxtral-finetune", min_length=1, max_length=96, description="Trackio project of the run.")
    trackio_space: str | None = Field(
        None, description="A Hugging Face Space to send the curves to (default: they stay on this machine)."
    )


class RunSettings(Section):
    """Where the result goes."""

    output_dir: Path | None = Field(None, description="The run folder (default: outputs/<time> in the project's home).")


SECTIONS: dict[str, type[Section]] = {
    "data": DataSettings,
    "model": ModelSettings,
    "training": TrainingSettings,
    "evaluation": EvaluationSettings,
    "tracking": TrackingSettings,
    "run": RunSettings,
}

FORMAT = 2
"""Version of `config.json`; raised when a reader of the old one would go wrong. 1: without packing."""


@dataclass(frozen=True)
class Setting:
    """One leaf of the tree, for the doors that list them all."""

    name: str
    section: str
    field: FieldInfo

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        return self.field.description or ""

    @property
    def default(self) -> Any:
        return self.field.default


def every_setting() -> Iterator[Setting]:
    """All settings in the order they are declared."""
    for section, kind in SECTIONS.items():
        for name, field in kind.model_fields.items():
            yield Setting(name, section, field)


class Settings(BaseModel):
    """One run's settings, frozen. Build it with `of`; write it with `flat`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    data: DataSettings
    model: ModelSettings
    training: TrainingSettings
    evaluation: EvaluationSettings
    tracking: TrackingSettings
    run: RunSettings

    @staticmethod
    def of(flat: Mapping[str, Any]) -> Settings:
        """Checks flat names and values; raises SettingsError naming the flag and what it takes."""
        section_of = {setting.name: setting.section for setting in every_setting()}
        tree: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for name, value in flat.items():
            if name == "format":
                _check_format(value)
            elif name in section_of:
                tree[section_of[name]][name] = value
            else:
                near = difflib.get_close_matches(name, section_of, n=1)
                hint = f"Did you mean {near[0]}?" if near else "docs/settings.md lists them all."
                raise SettingsError(f"There is no setting {name!r}.", hint)
        try:
            return Settings.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][1])
            setting = next(setting for setting in every_setting() if setting.name == name)
            why = "it has another form" if first["type"] == "string_pattern_mismatch" else first["msg"]
            raise SettingsError(f"{setting.flag} cannot be {first['input']!r}: {why}.", setting.help) from error

    def flat(self) -> dict[str, Any]:
        """All settings by name, as JSON values."""
        tree = self.model_dump(mode="json")
        return {name: value for section in tree.values() for name, value in section.items()}

    @property
    def learning_rate(self) -> float:
        """The peak rate, by method where none was asked for (docs/settings.md says why)."""
        return self.training.learning_rate or (1e-5 if self.training.method == "full" else 1e-4)


def read_config(path: Path) -> dict[str, Any]:
    """A settings file: one JSON object of flat names. Raises SettingsError naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", "Check the path given to --config.") from error
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}.", "Mend that place in the file.") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path} holds no JSON object.", 'Write {"batch_size": 2, ...}.')
    return content


def _check_format(number: Any) -> None:
    if number != FORMAT:
        raise SettingsError(
            f"These settings have format {number!r}; this version reads {FORMAT}.", "Update voxtral-finetune."
        )

"""What of a Voxtral learns, and how its weights are kept while it does.

    vocabulary   the language model only: what vLLM can serve as an adapter; the audio encoder stays as it is
    voice        also the projector and the encoder's top layers: for sounds the encoder has not met
    language     also the projector and every layer of the encoder: for a language that Voxtral does not know
    (none)       LoRA: as vocabulary; full fine-tuning: every weight

Method `qlora` is LoRA on a base whose language model is in 4 bits (`model.load.quantisation`).

Weights that learn are float32, frozen ones keep the dtype they were loaded in. A frozen layer below the first that
learns is never back-propagated: nothing in it asks for a gradient, and no hook makes its input ask for one.
Module names: transformers `models/voxtral/modeling_voxtral.py`.
"""

from __future__ import annotations

import functools
import re

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from voxtral_finetune.errors import ModelError
from voxtral_finetune.settings import TrainingSettings

LANGUAGE_MODEL = r".*language_model\.(model\.)?layers\.\d+\."
"""The decoder layers, under the names of transformers 4 and 5 alike."""

LANGUAGE_MODEL_LINEARS = LANGUAGE_MODEL + r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
PROJECTOR_LINEARS = r".*multi_modal_projector\.linear_[12]"
ENCODER_LINEARS = r".*audio_tower\.layers\.({layers})\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)"

BEYOND_LANGUAGE_MODEL = ("voice", "language")
"""Presets that also teach the projector and layers of the encoder, which servers take no adapters of."""


def adapt(model: nn.Module, settings: TrainingSettings, base_name: str, base_revision: str | None = None) -> nn.Module:
    """Makes `model` learn as the settings say; returns it, wrapped by PEFT for LoRA.

    `base_name` and `base_revision` are written to the adapter as its base. Raises ModelError where nothing would learn,
    or where `model` is itself an adapter on a base: what it has learned would be lost.
    """
    if hasattr(model, "peft_config"):
        what = f"{base_name!r} is an adapter, and training would start from its base without it."
        raise ModelError(what, "Train from the base, or from a run made with --preset voice, which is saved merged.")
    if settings.method != "full":
        torch.manual_seed(settings.seed)  # a LoRA matrix starts at random
        model = _with_lora(model, settings, base_name, base_revision)
    else:
        pattern = re.compile(full_pattern(model, settings))
        for name, parameter in model.named_parameters():
            parameter.requires_grad = bool(pattern.fullmatch(name))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if settings.gradient_checkpointing:
        checkpoint_learning_layers(model)
    if not count(model)["trainable"]:
        raise ModelError("Nothing in this model would learn.", "Choose another --preset.")
    return model


def lora_pattern(model: nn.Module, settings: TrainingSettings) -> str:
    """The regular expression of the linear layers that get adapters."""
    parts = [LANGUAGE_MODEL_LINEARS]
    if settings.preset in BEYOND_LANGUAGE_MODEL:
        parts.append(PROJECTOR_LINEARS)
        if not settings.freeze_audio_tower:
            parts.append(ENCODER_LINEARS.format(layers=_encoder_layers(model, settings)))
    return "|".join(f"({part})" for part in parts)


def full_pattern(model: nn.Module, settings: TrainingSettings) -> str:
    """The regular expression of the weights that full fine-tuning changes."""
    parts = [r".*language_model\..*", r"(.*\.)?lm_head\..*"]
    if settings.preset != "vocabulary":
        parts.append(r".*multi_modal_projector\..*")
    if settings.preset is None and not settings.freeze_audio_tower:
        parts.append(r".*audio_tower\.(?!embed_positions).*")  # Whisper's positions are fixed sinusoids
    if settings.preset in BEYOND_LANGUAGE_MODEL and not settings.freeze_audio_tower:
        parts.append(rf".*audio_tower\.(layers\.({_encoder_layers(model, settings)})|layer_norm)\..*")
    return "|".join(f"({part})" for part in parts)


def checkpoint_learning_layers(model: nn.Module) -> None:
    """Recomputes activations in the layers that a gradient passes through, and in no others.

    `gradient_checkpointing_enable` would also hook the encoder's first convolution, so that a frozen encoder is
    recomputed and back-propagated (transformers `modeling_utils.py`, `_input_embed_layer`).
    """
    rerun = functools.partial(recompute, use_reentrant=False)
    for name, module in model.named_modules():
        if hasattr(module, "gradient_checkpointing") and _is_layer(name):
            in_decoder = re.fullmatch(LANGUAGE_MODEL[:-2], name) is not None
            if in_decoder or any(parameter.requires_grad for parameter in module.parameters()):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = rerun


def count(model: nn.Module) -> dict[str, int]:
    """Number of weights: all of them, and those that learn. A byte of a layer in 4 bits holds two."""
    sizes = [
        (parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1), parameter.requires_grad)
        for parameter in model.parameters()
    ]
    return {"total": sum(size for size, _ in sizes), "trainable": sum(size for size, learns in sizes if learns)}


def merges(settings: TrainingSettings) -> bool:
    """Whether a LoRA run is saved merged: servers take adapters of the language model only."""
    return settings.method != "full" and settings.preset in BEYOND_LANGUAGE_MODEL


def _with_lora(model: nn.Module, settings: TrainingSettings, base_name: str, revision: str | None) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # slow to import

    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=lora_pattern(model, settings),
        bias="none",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    adapted.peft_config["default"].revision = revision
    return adapted


def _encoder_layers(model: nn.Module, settings: TrainingSettings) -> str:
    """The numbers of the encoder layers that the preset teaches, as alternatives of a regular expression."""
    count = len(model.get_submodule("model.audio_tower").layers)  # type: ignore[arg-type]  # a ModuleList
    first = max(0, count - settings.top_encoder_layers) if settings.preset == "voice" else 0
    return "|".join(str(index) for index in range(first, count))


def _is_layer(name: str) -> bool:
    return re.fullmatch(r".*\.layers\.\d+", name) is not None

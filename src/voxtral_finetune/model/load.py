"""Loading a Voxtral checkpoint in any form: a built-in name, a Hub id, a merged, adapter or run folder.

Only safetensors are read and no code from a repository is run. An adapter names its base in `adapter_config.json`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, VoxtralForConditionalGeneration, VoxtralProcessor

from voxtral_finetune.errors import ModelError
from voxtral_finetune.model.catalog import CHECKPOINTS, resolve

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

KEPT_WHOLE = ("model.audio_tower", "model.multi_modal_projector", "lm_head")
"""What is not put into 4 bits: the encoder and the projector hear worse in them, the head costs little.

Full names: transformers matches them from the start (`quantizers_utils.py`), so that "audio_tower" would match nothing.
"""

BLOCK_4BIT = 64
"""Weights of one row that share a scale in NF4 (bitsandbytes' default)."""


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to run on; raises ModelError where the one asked for is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in present.items() if there))
    if not present[wanted]:
        raise ModelError(f"This machine has no {wanted} device.", "Use --device auto.")
    return torch.device(wanted)


def weights_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device is fast at it; weights that learn are raised to float32 by `model.adapt`."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def skeleton(checkpoint: str, revision: str | None = None) -> VoxtralForConditionalGeneration:
    """The model with its real shapes and no weights, on the `meta` device: a few MB whatever its size."""
    with torch.device("meta"):
        return VoxtralForConditionalGeneration(read_config(checkpoint, revision))


def read_config(checkpoint: str, revision: str | None = None) -> Any:
    """The checkpoint's config; raises ModelError where there is none or it is not a Voxtral."""
    source = resolve(checkpoint)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError) as error:
        names = ", ".join(entry.name for entry in CHECKPOINTS)
        raise ModelError(
            f"There is no checkpoint {checkpoint!r} here or on the Hub.", f"Use one of: {names}."
        ) from error
    if config.model_type != "voxtral":
        raise ModelError(f"{checkpoint!r} is a {config.model_type} model, not a Voxtral.", "Use a Voxtral checkpoint.")
    return config


def load_processor(checkpoint: str, revision: str | None = None) -> VoxtralProcessor:
    """Tokenizer and feature extractor of a checkpoint; of the base, where it is an adapter."""
    checkpoint = local(checkpoint, revision)
    base = adapter_base(checkpoint)
    if base:
        return load_processor(*base)
    read_config(checkpoint, revision)
    return VoxtralProcessor.from_pretrained(resolve(checkpoint), revision=revision)


def load_model(
    checkpoint: str,
    revision: str | None = None,
    device: torch.device | None = None,
    quantise: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """Weights ready to transcribe or to be adapted, on `device`; an adapter comes on its base, as PEFT keeps it.

    With `quantise` the language model's linear layers are put into 4 bits, for QLoRA. `dtype` is by default the one
    that suits the device.
    """
    device = device or pick_device()
    base = adapter_base(local(checkpoint, revision))
    if base:
        return _load_adapter(load_model(*base, device, quantise, dtype), local(checkpoint, revision))
    checkpoint = model_folder(checkpoint)
    config = read_config(checkpoint, revision)
    if quantise:
        _check_blocks(config, device)
    placed = {"quantization_config": quantisation(device), "device_map": {"": device}} if quantise else {}
    try:
        model = VoxtralForConditionalGeneration.from_pretrained(
            resolve(checkpoint), revision=revision, dtype=dtype or weights_dtype(device), use_safetensors=True, **placed
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The weights of {checkpoint!r} cannot be loaded: {str(error).splitlines()[0]}",
            "Download or export the checkpoint again.",
        ) from error
    return model if quantise else model.to(device)  # layers in 4 bits stay where they were made


def quantisation(device: torch.device) -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, Dettmers et al. 2023), multiplied in the type the other weights have."""
    need_bitsandbytes("--method qlora")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=weights_dtype(device),
        llm_int8_skip_modules=list(KEPT_WHOLE),
    )


def _check_blocks(config: Any, device: torch.device) -> None:
    """Raises ModelError on a CPU where rows do not hold whole blocks: bitsandbytes could not pack them to generate."""
    if device.type == "cpu" and config.text_config.hidden_size % BLOCK_4BIT:
        what = f"4 bits on a CPU need layers whose width is a multiple of {BLOCK_4BIT}."
        raise ModelError(what, "Use --method lora.")


def need_bitsandbytes(setting: str) -> None:
    """Raises ModelError where bitsandbytes, which `setting` asks for, is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{setting} needs bitsandbytes.", "Run: pip install 'voxtral-finetune[qlora]'")


def is_quantised(name: str) -> bool:
    """Whether `quantisation` puts the linear layer of this name into 4 bits."""
    return not name.startswith(KEPT_WHOLE)


def adapter_base(checkpoint: str) -> tuple[str, str | None] | None:
    """(base, its revision) that an adapter folder names, or None where `checkpoint` is no adapter folder."""
    path = Path(resolve(checkpoint)) / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"]), config.get("revision")
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} is not the description of an adapter.", "Export the adapter again.") from error


def model_folder(checkpoint: str) -> str:
    """What to load for a run folder: its `model/`; anything else as it is."""
    folder = Path(checkpoint)
    if (folder / "events.jsonl").is_file():
        if not (folder / "model").is_dir():
            raise ModelError(f"{checkpoint} has not learned anything yet: it has no model/.", "Resume the run first.")
        return str(folder / "model")
    return checkpoint


def local(checkpoint: str, revision: str | None = None) -> str:
    """What to load for a checkpoint: a run's `model/`, an adapter of the Hub downloaded, anything else as it is."""
    checkpoint = model_folder(checkpoint)
    if Path(resolve(checkpoint)).exists():
        return checkpoint
    try:
        hf_hub_download(checkpoint, ADAPTER_CONFIG, revision=revision)
        wanted = [ADAPTER_CONFIG, ADAPTER_WEIGHTS]  # no pickles, whatever else is there
        return snapshot_download(checkpoint, revision=revision, allow_patterns=wanted)
    except (OSError, HfHubHTTPError, HFValidationError):
        return checkpoint  # no adapter; whether it is anything else is found out by who loads it


def _load_adapter(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    from peft import PeftModel  # slow to import, and only adapters need it

    if not (Path(folder) / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors.", "Export the adapter again as safetensors.")
    try:
        return PeftModel.from_pretrained(model, folder)
    except SafetensorError as error:
        raise ModelError(f"The adapter in {folder} is damaged: {error}.", "Export it again.") from error

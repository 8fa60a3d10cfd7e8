"""Loading a Voxtral checkpoint in any form: a built-in name, a Hub id, a merged, adapter or run folder.

Only safetensors are read and no code from a repository is run. An adapter names its base in `adapter_config.json`.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, VoxtralForConditionalGeneration, VoxtralProcessor

from voxtral_finetune.errors import ModelError
from voxtral_finetune.model.catalog import CHECKPOINTS, resolve

ADAPTER_CONFIG = "adapter_config.json"

KEPT_WHOLE = ("model.audio_tower", "model.multi_modal_projector", "lm_head")
"""What is not put into 4 bits: the encoder and the projector hear worse in them, the head costs little.

Full names: transformers matches them from the start (`quantizers_utils.py`), so that "audio_tower" would match nothing.
"""


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
    base = adapter_base(model_folder(checkpoint))
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
    checkpoint = model_folder(checkpoint)
    base = adapter_base(checkpoint)
    if base:
        return _load_adapter(load_model(*base, device, quantise, dtype), checkpoint)
    read_config(checkpoint, revision)
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
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("--method qlora needs bitsandbytes.", "Run: pip install 'voxtral-finetune[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=weights_dtype(device),
        llm_int8_skip_modules=list(KEPT_WHOLE),
    )


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


def _load_adapter(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    from peft import PeftModel  # slow to import, and only adapters need it

    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} has no adapter_model.safetensors.", "Export the adapter again as safetensors.")
    try:
        return PeftModel.from_pretrained(model, folder)
    except SafetensorError as error:
        raise ModelError(f"The adapter in {folder} is damaged: {error}.", "Export it again.") from error

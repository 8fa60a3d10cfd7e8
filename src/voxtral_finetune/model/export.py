"""From what a run has learned to the folders that are used and shared.

adapter    an adapter of the language model, under the names that vLLM looks for
merged     a whole checkpoint as transformers writes it, in the layout of the Hub
mistral    a whole checkpoint in Mistral's layout (`model.mistral`)
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from voxtral_finetune.errors import ModelError
from voxtral_finetune.model import mistral
from voxtral_finetune.model.load import (
    ADAPTER_CONFIG,
    adapter_base,
    load_model,
    load_processor,
    read_config,
    skeleton,
    weights_dtype,
)
from voxtral_finetune.run import sync_files, sync_folder

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)

ADAPTED = re.compile(
    r"base_model\.model\.(?:model\.language_model|language_model\.model)\."
    r"(?P<layer>layers\.\d+\.(?:self_attn|mlp)\.)(?P<part>[qkvo]_proj|gate_proj|up_proj|down_proj)(?P<rest>\.lora_[AB]\.weight)"
)
"""The names in an adapter of the language model: those of transformers 5, and those of the Hub's layout and vLLM."""

MARGIN = 64 << 20
"""Bytes beside the weights that a folder may take: the tokenizer is 15 MB."""


def export(checkpoint: Path, processor: Any, folder: Path, dtype: torch.dtype, merge: bool, scale: float = 1.0) -> None:
    """Writes `checkpoint` to `folder`, whole or not at all.

    An adapter stays one (its processor is its base's) unless `merge`; a whole checkpoint is written in `dtype`, that
    of its base, with the processor. `scale` is how strong an adapter's change is: it is put into the weights
    themselves, so that everything that loads them gets it.
    """
    with aside(folder) as temporary:
        if adapter_base(str(checkpoint)) is not None and not merge:
            for name in ADAPTER_FILES:
                shutil.copyfile(checkpoint / name, temporary / name)
            if scale != 1.0:
                _scale_file(temporary / ADAPTER_WEIGHTS, scale)
        else:
            _whole(checkpoint, dtype, scale).save_pretrained(temporary)
            processor.save_pretrained(temporary)


def set_scale(model: Any, scale: float) -> None:
    """Makes the change of a PEFT model's LoRA layers `scale` times what was learned; 1 is as learned."""
    from peft.tuners.lora import LoraLayer  # slow to import

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                module.set_scale(name, scale)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder to write to: it takes the place of `folder` when all of it is on disk, and is gone where that fails."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_files(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)


def stored_dtype(source: Path) -> torch.dtype:
    """The type that an export of `source`, a run's model folder, is written in: that of its base, or its own."""
    base = adapter_base(str(source))
    found: torch.dtype | None = read_config(*(base or (str(source),))).dtype
    return found or torch.float32


def needed_bytes(source: Path, kind: str) -> int:
    """About how much disk an export takes, before any weight is loaded."""
    if kind == "adapter":
        return (source / ADAPTER_WEIGHTS).stat().st_size + MARGIN
    count = sum(weight.numel() for weight in skeleton(*(adapter_base(str(source)) or (str(source),))).parameters())
    return count * stored_dtype(source).itemsize + MARGIN


def write(source: Path, kind: str, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Writes a run's model folder to `folder` in one of the formats above, and checks what is there bit for bit.

    Raises ModelError where the format cannot hold what was learned, or where a weight on disk is not the one meant.
    `progress` is called with (weights compared, weights in all).
    """
    try:
        _write(source, kind, folder, progress)
    except SafetensorError as error:  # a full disk, among others
        raise ModelError(
            f"The weights cannot be written: {error}.", "Free some space, or name another place."
        ) from error


def _write(source: Path, kind: str, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    if kind == "adapter":
        _write_adapter(source, folder)
    elif kind == "mistral":
        model = _whole(source, stored_dtype(source))
        mistral.write(model, load_processor(str(source)), folder)
        mistral.check_weights(model.state_dict(), folder, progress)
    elif adapter_base(str(source)) is None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        files = [path.name for path in source.iterdir() if path.is_file()]
        _, *wrong = filecmp.cmpfiles(source, folder, files, shallow=False)
        if any(wrong):
            raise ModelError(f"{max(wrong)[0]} was not copied as it is.", "Check the disk, then export again.")
    else:
        _whole(source, stored_dtype(source)).save_pretrained(folder)
        load_processor(str(source)).save_pretrained(folder)


def read(folder: Path, kind: str, processor: Any, device: torch.device) -> tuple[Any, Any]:
    """(model, processor) as an export holds them; `processor` serves where the format brings none that we can read."""
    if kind == "mistral":
        return mistral.load(folder, device, weights_dtype(device)), processor
    return load_model(str(folder), device=device), load_processor(str(folder))


def _scale_file(path: Path, scale: float) -> None:
    """Multiplies the second matrix of each pair, so that their product is `scale` times what it was."""
    weights = load_file(path)
    scaled = {name: weight * scale if ".lora_B." in name else weight for name, weight in weights.items()}
    save_file(scaled, path, metadata={"format": "pt"})


def _whole(checkpoint: Path, dtype: torch.dtype, scale: float = 1.0) -> Any:
    """The model with what was learned in its weights, on the CPU.

    The base comes in full precision, also where a run taught it in 4 bits. Merging adds the update in float32 and
    rounds once, so that no float32 copy of the whole model is needed.
    """
    model: Any = load_model(str(checkpoint), device=torch.device("cpu"), dtype=dtype)
    if adapter_base(str(checkpoint)) is None:
        return model
    set_scale(model, scale)
    return model.merge_and_unload()


def _write_adapter(source: Path, folder: Path) -> None:
    """The adapter under vLLM's names: it loads others without a word, and then they change nothing.

    PEFT knows both. `target_modules` becomes a pattern that ends in the one group of names, as vLLM takes it apart.
    """
    try:
        weights = load_file(source / ADAPTER_WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"The adapter in {source} is damaged: {error}.", "Train the run again.") from error
    matches = {name: ADAPTED.fullmatch(name) for name in weights}
    renamed, parts = {}, set()
    for name, match in matches.items():
        if match is None:
            what = f"This adapter reaches beyond the language model ({name}), and servers take none that do."
            raise ModelError(what, "Use --format merged or mistral.")
        renamed[f"base_model.model.language_model.model.{match['layer']}{match['part']}{match['rest']}"] = weights[name]
        parts.add(match["part"])
    save_file(renamed, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = rf".*language_model\..*\.({'|'.join(sorted(parts))})"
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    on_disk = load_file(folder / ADAPTER_WEIGHTS)
    for name, weight in renamed.items():
        if name not in on_disk or not torch.equal(weight, on_disk[name]):
            raise ModelError(f"The export differs from the run in {name}.", "Check the disk, then export again.")

"""From a training checkpoint to the folder that is used, shared and measured: an adapter or a whole checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from voxtral_finetune.model.load import ADAPTER_CONFIG, adapter_base, load_model
from voxtral_finetune.run import sync_files, sync_folder

ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")


def export(checkpoint: Path, processor: Any, folder: Path, dtype: torch.dtype, merge: bool) -> None:
    """Writes `checkpoint` to `folder`, whole or not at all.

    An adapter stays one (its processor is its base's) unless `merge`; a whole checkpoint is written in `dtype`, that
    of its base, with the processor.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    adapter = adapter_base(str(checkpoint)) is not None
    if adapter and not merge:
        for name in ADAPTER_FILES:
            shutil.copyfile(checkpoint / name, temporary / name)
    else:
        # The base comes in full precision, also where a run taught it in 4 bits. Merging adds the update in float32 and
        # rounds once, so that no float32 copy of the whole model is needed.
        model: Any = load_model(str(checkpoint), device=torch.device("cpu"), dtype=dtype)
        whole = model.merge_and_unload() if adapter else model
        whole.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    sync_files(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    sync_folder(folder.parent)

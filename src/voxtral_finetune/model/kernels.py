"""Faster kernels for the same mathematics, switched on in a model that is there already. CUDA only.

Liger            one kernel each for RMSNorm, SwiGLU and the rotary embedding of the language model. Its own switch
                 in transformers' Trainer knows no Voxtral and does nothing; its loss stays off, because logits are
                 made at labels only.
FlashAttention   where the package is installed; otherwise PyTorch's own attention, which is as exact
torch.compile    each layer by itself, so that one compilation serves all layers of a kind. It makes the fusions
                 that Liger would, and does it better without foreign kernels in between: it takes Liger's place.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import nn
from transformers.utils import is_flash_attn_2_available


def accelerate_kernels(model: nn.Module, device: torch.device, compile: bool) -> list[str]:
    """Switches on what this machine has, in place; returns the names of what is on, for the run's events.

    `model` may be wrapped by PEFT and its linear layers be adapted or in 4 bits: none of them is touched.
    """
    if device.type != "cuda":
        return []
    whole: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    language_model, encoder = whole.model.language_model, whole.model.audio_tower
    switched = []
    if is_flash_attn_2_available() and not compile:  # how it leaves padding out cannot be compiled
        whole.set_attn_implementation("flash_attention_2")
        switched.append("FlashAttention 2")
    if compile:
        for layer in (*language_model.layers, *encoder.layers):
            _compile_for_training(layer)
        switched.append("torch.compile")
    elif importlib.util.find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import apply_liger_kernel_to_llama  # imports Triton

        apply_liger_kernel_to_llama(
            rope=True,
            rms_norm=True,
            swiglu=True,
            cross_entropy=False,
            fused_linear_cross_entropy=False,
            model=language_model,
        )
        switched.append("Liger: RMSNorm, SwiGLU, RoPE")
    return switched


def _compile_for_training(layer: Any) -> None:
    """Has `layer` run compiled while it is taught, and as it is in evaluation.

    Generation is never the same shape twice and reads the number of each layer: compiled, it would use up what torch
    allows of recompilations (8) before the first step, and training would then run as if nothing were compiled.
    It is `forward` that is compiled, without the call around it: torch counts recompilations by the function, and the
    call is the same one for all kinds of layers.
    """
    plain = layer.forward
    compiled = torch.compile(plain)

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if layer.training else plain)(*args, **kwargs)

    layer.forward = forward

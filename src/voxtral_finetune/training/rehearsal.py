"""A training step played through without weights, to see how much memory it would take.

The modules run on the `meta` device, whose tensors have shapes and no contents, while every storage that comes and
goes is counted. What the real device would do otherwise than `meta` is told by `Pretend`.
"""

from __future__ import annotations

import functools
import math
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint as recompute

from voxtral_finetune.data.collate import SPECIAL

PROMPT = 8
"""Tokens of a prompt beside the audio: <s>[INST][BEGIN_AUDIO] … [/INST] lang : xx [TRANSCRIBE]."""

BYTES_4BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""NF4 with double quantisation: half a byte a weight, a byte a block of 64, a float32 a block of 256 of those."""


def play(model: Any, device: str, windows: int, text_tokens: int) -> None:
    """One forward and backward pass, as `VoxtralTrainer.compute_loss` makes them.

    The three places that ask for a tensor's contents are gone through by hand: where the audio goes (the count is
    checked against the mask), whether the mask hides anything (it is given as (B, 1, T, T)) and where the labels are.
    """
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            again = functools.partial(
                recompute, use_reentrant=False, context_fn=lambda: (nullcontext(), Pretend(device))
            )
            module._gradient_checkpointing_func = again
    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    tower = whole.config.audio_config
    mels = torch.empty(windows, tower.num_mel_bins, 2 * tower.max_source_positions, device="meta")
    length = PROMPT + tower.max_source_positions * tower.hidden_size // tower.intermediate_size + text_tokens
    ids = torch.full((windows, length), SPECIAL["[AUDIO]"], device="meta")
    labels = torch.empty(windows * text_tokens, dtype=torch.long, device="meta")
    with Pretend(device):
        audio = whole.model.get_audio_features(mels).pooler_output
        embedded = whole.get_input_embeddings()(ids)
        here = (ids == SPECIAL["[AUDIO]"])[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(here, audio.to(embedded.dtype))
        mask = torch.empty(windows, 1, length, length, dtype=torch.bool, device="meta")
        hidden = whole.model.language_model(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
        logits = whole.lm_head(hidden.last_hidden_state[:, -text_tokens:].reshape(labels.shape[0], -1))
        precise = logits.float()
        loss = functional.cross_entropy(precise, labels)
        shown = logits.float()  # accelerate hands the outputs out in float32, a second copy
    del audio, embedded, here, hidden, logits, precise, shown
    loss.backward()


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.sizes: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result


class Pretend(TorchFunctionMode):
    """Makes `meta` do what `device` would, where memory depends on it.

    On CUDA: the types of autocast to bfloat16 (torch's documentation of `torch.amp` lists the functions), its copies
    of float32 weights, which live as long as it is on, and dropout's mask of one byte a number. Everywhere: an
    attention kernel that keeps no (T, T) matrix, where `meta` would take the one that does.
    """

    LOWER = (functional.linear, torch.matmul, torch.conv1d)
    FLOAT32 = (functional.layer_norm, functional.cross_entropy)

    def __init__(self, device: str) -> None:
        super().__init__()
        self.cuda = device == "cuda"
        self.copies: dict[int, torch.Tensor] = {}

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.copies.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if self.cuda and func is functional.dropout:
            return self._drop(*args, **kwargs)
        if self.cuda and func in self.LOWER:
            args = tuple(self._lowered(value) for value in args)
        elif self.cuda and func in self.FLOAT32:
            args = tuple(value.float() if _is_floating(value) else value for value in args)
        return func(*args, **kwargs)

    def _lowered(self, value: Any) -> Any:
        if not _is_floating(value) or value.dtype == torch.bfloat16:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.bfloat16()
        if id(value) not in self.copies:
            self.copies[id(value)] = value.bfloat16()
        return self.copies[id(value)]

    def _drop(self, value: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        return torch.native_dropout(value, p, True)[0] if training and p else value

    def _attend(self, query: Any, key: Any, value: Any, attn_mask: Any = None, scale: Any = None, **_: Any) -> Any:
        if self.cuda:
            query, key, value = (part.bfloat16() for part in (query, key, value))
        if attn_mask is not None:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)  # kernels take what is added, not a mask
        if not self.cuda:
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(query, key, value, attn_mask=attn_mask, scale=scale)[0]
        if attn_mask is None:
            return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)[0]
        mask = attn_mask.expand(-1, query.shape[1], -1, -1)
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, scale=scale)[0]


class FourBit(nn.Linear):
    """Stands in for bitsandbytes' Linear4bit: packed weights, made whole for the length of a multiplication."""

    def __init__(self, whole: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, whole.out_features
        size = math.ceil(whole.weight.numel() * BYTES_4BIT)
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _Dequantised.apply(input, self.out_features)


class _Dequantised(torch.autograd.Function):
    """A multiplication by weights that are whole only while it lasts, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: int) -> torch.Tensor:
        ctx.shape, ctx.dtype = (rows, x.shape[-1]), x.dtype
        return functional.linear(x, x.new_empty(ctx.shape))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradients[0] @ gradients[0].new_empty(ctx.shape)).to(ctx.dtype), None


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()

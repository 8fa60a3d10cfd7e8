"""Whether an exported model still is the model of its run: what each of them expects to follow, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from voxtral_finetune.data.collate import IGNORED, Example, TranscriptionCollator
from voxtral_finetune.errors import ModelError

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""How far the logits of one example may be from the run's, as a share of them (root mean squares).

A merged weight is rounded once more than the base's and the adapter's are. With small models that was 4e-7 of the
logits in float32, 2e-3 where weights in bfloat16 are computed with in float32, and 7e-3 in bfloat16 throughout;
deeper models add up more of it.
"""

HALF = 0.5
"""Of what the adapter changes in the base's logits, so much may an export be away from the run: nearer to it than to
the base, whatever the rounding."""


def logits(model: Any, processor: Any, examples: Sequence[Example], adapter: bool = True) -> list[torch.Tensor]:
    """What a model expects at each token of the examples' texts: a (T, V) float32 tensor each, on the CPU.

    With `adapter` False, that of the base of a model that PEFT has wrapped.
    """
    collator, said = TranscriptionCollator(processor), []
    model.eval()
    with torch.inference_mode(), nullcontext() if adapter else model.disable_adapter():
        for example in examples:
            batch = collator([example])
            taught = batch.pop("labels")[0][1:] != IGNORED
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            said.append(model(**inputs, use_cache=False).logits[0, :-1].cpu()[taught].float())
    return said


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are from others, as a share of those; infinite where one is no number."""
    away = float((found - expected).norm() / expected.norm())
    return away if away == away else float("inf")


def check_logits(
    found: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    base: Sequence[torch.Tensor] | None,
    examples: Sequence[Example],
    dtype: torch.dtype,
) -> float:
    """The largest distance of an export's logits from its run's; raises ModelError where one is too large.

    `base` is what the base says without the run's adapter, None where the run has none; `dtype` the type that was
    rounded to.
    """
    worst = 0.0
    for example, here, there in zip(examples, found, expected, strict=True):
        away = distance(here, there)
        if away > LIMITS[dtype]:
            what = f"The export does not hear what the run does: in {example.name} its logits differ by {away:.1%}"
            raise ModelError(f"{what}, over {LIMITS[dtype]:.2%}.", "Export again; report it if it stays so.")
        worst = max(worst, away)
    if base is None:
        return worst
    changed = max(map(distance, base, expected))
    if changed == 0:
        raise ModelError("The adapter of this run changes nothing.", "Train again: it has learned nothing.")
    if worst > HALF * changed:
        what = f"Rounding to {str(dtype).removeprefix('torch.')} takes away what was learned: it changes logits by"
        raise ModelError(f"{what} {worst:.2%}, the run by {changed:.2%}.", "Use --format adapter, or train longer.")
    return worst

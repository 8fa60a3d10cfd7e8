"""Speed and memory on a CUDA device at the full size of Voxtral Mini 3B, with random weights and real speech.

    VOXTRAL_SPEECH_DATA=FOLDER python -m benchmarks.gpu [--steps 8] [--json FILE] [--markdown FILE]

Weights are random because no figure here depends on them. Each row trains a few updates and says how many windows a
second, how many hours of recordings in an hour, which share of the device's own best bf16 matrix product (MFU), and the
most memory, weights included. Needs 10 GB of disk for the checkpoint and, for full fine-tuning, 60 GB on the device.

MFU counts the model's FLOPs: multiplications by weights and attention, forward once, backward once for gradients
of activations and once for those of weights that learn. What is recomputed, and the adapters themselves, do not count.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import VoxtralConfig
from transformers.utils import logging

from benchmarks import ours, plain, shapes
from benchmarks.compare import Speech
from benchmarks.measure import Built, measure, memory_before
from voxtral_finetune.data.collate import TranscriptionCollator
from voxtral_finetune.errors import FinetuneError
from voxtral_finetune.model.load import load_processor
from voxtral_finetune.training.speed import matmul_rate

PROMPT_TOKENS = 8
"""Of a window beside its audio tokens: <s>[INST][BEGIN_AUDIO] … [/INST] lang : xx [TRANSCRIBE]."""

BATCH = 16
"""Windows of an update where it is not the default that is measured: enough to fill a large device."""

WARM_UP = 3
CACHED_STEPS = 4
PLANNED = 200

NO_CHANGES = {"vary_speed": False, "mask_spectrum": False}


@dataclass(frozen=True)
class Passes:
    """How often a window's forward FLOPs are spent: 1 forward, 2 with gradients of activations, 3 also of weights."""

    encoder: int
    language_model: int
    head_everywhere: bool = False


LORA, CACHED, FULL = Passes(1, 2), Passes(0, 2), Passes(3, 3)


@dataclass(frozen=True)
class Case:
    """A row of the table; `settings` None is the plain recipe."""

    name: str
    shape: str
    passes: Passes = LORA
    settings: Mapping[str, Any] | None = field(default_factory=dict)
    warm_up: int = WARM_UP


def cases() -> list[Case]:
    """All rows, the small ones first."""
    large = {"batch_size": BATCH, **NO_CHANGES}
    full = {**large, "method": "full", "optimizer": "adamw8bit"}
    everywhere = Passes(2, 2, head_everywhere=True)
    return [
        Case("plain recipe, batch 2", "short", everywhere, None),
        Case("LoRA, default settings", "short"),
        Case("plain recipe, batch 2", "full", everywhere, None),
        Case("LoRA, batch 2", "full", settings=NO_CHANGES),
        Case(f"LoRA, batch {BATCH}", "full", settings=large),
        Case(f"LoRA, batch {BATCH}, recomputed", "full", settings={**large, "gradient_checkpointing": True}),
        Case(f"LoRA, batch {BATCH}, compiled", "full", settings={**large, "compile": True}, warm_up=8),
        Case(f"LoRA, batch {BATCH}, cached", "full", CACHED, {**large, "cache_audio": True}, CACHED_STEPS + 1),
        Case(f"QLoRA, batch {BATCH}", "full", settings={**large, "method": "qlora"}),
        Case(f"full, 8-bit AdamW, batch {BATCH}", "full", FULL, full),
        Case(f"full, 8-bit AdamW, batch {BATCH}, recomputed", "full", FULL, {**full, "gradient_checkpointing": True}),
    ]


@dataclass(frozen=True)
class Row:
    """What was measured of a case; `failed` says why nothing was."""

    name: str
    shape: str
    windows_per_second: float = 0.0
    speech_hours_per_hour: float = 0.0
    mfu: float = 0.0
    peak_gb: float = 0.0
    failed: str = ""


def step_flops(config: VoxtralConfig, text_tokens: float, passes: Passes) -> float:
    """FLOPs of one window's training step with so many tokens of text, `</s>` included.

    A product of (m, k) and (k, n) is 2·m·k·n; attention over T positions of width d is 4·T²·d in each layer, half of it
    where it is causal. Encoder: convolutions over 2 T and T frames, T = 1500. Mini 3B: `VoxtralConfig()`.
    """
    tower, text = config.audio_config, config.text_config
    frames, width = tower.max_source_positions, tower.hidden_size
    linears = tower.num_hidden_layers * (4 * width**2 + 2 * width * tower.intermediate_size)
    convolutions = 2 * frames * 3 * tower.num_mel_bins * width + frames * 3 * width**2
    encoder = 2 * (frames * linears + convolutions) + 4 * frames**2 * width * tower.num_hidden_layers
    audio_tokens = frames * width // tower.intermediate_size
    projector = 2 * audio_tokens * text.hidden_size * (tower.intermediate_size + text.hidden_size)

    tokens = PROMPT_TOKENS + audio_tokens + text_tokens
    heads, key_heads = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    layer = text.hidden_size * (2 * heads + 2 * key_heads + 3 * text.intermediate_size)
    language_model = text.num_hidden_layers * (2 * tokens * layer + 2 * tokens**2 * heads)
    head = 2 * (tokens if passes.head_everywhere else text_tokens) * text.hidden_size * text.vocab_size
    return passes.encoder * (encoder + projector) + passes.language_model * (language_model + head)


def measured(case: Case, model: Path, speech: Speech, folder: Path, steps: int, peak_rate: float) -> Row:
    """Trains one case; what does not fit on the device gives a row that says so."""
    rows = list(speech.rows)
    try:
        if case.settings is None:
            trainer = plain.build(str(model), speech.manifest, folder / "out", max_steps=PLANNED, disable_tqdm=True)
            built = Built(trainer, plain.BATCH * speech.mean_seconds, memory_before())
        else:
            if case.settings.get("cache_audio"):
                rows = (rows * CACHED_STEPS)[: CACHED_STEPS * BATCH]
            built = ours.build(model, rows, folder, PLANNED, ours.Lever(case.name, case.settings))
        found = measure(built, case.warm_up, steps)
    except (torch.OutOfMemoryError, FinetuneError) as error:
        return Row(case.name, case.shape, failed=str(error).splitlines()[0])
    arguments = built.trainer.args
    windows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    collator = TranscriptionCollator(load_processor(str(model)))
    heard = sum(row.seconds or 0.0 for row in rows)
    text_tokens = sum(len(collator.target(row.text)) for row in rows) * built.speech / heard / windows
    rate = windows / found.seconds
    config = built.trainer.accelerator.unwrap_model(built.trainer.model).config
    flops = step_flops(config, text_tokens, case.passes)
    return Row(case.name, case.shape, rate, found.speed, rate * flops / peak_rate, (found.memory + built.before) / 1e9)


def table(rows: Sequence[Row], device: str, peak_rate: float) -> str:
    """The rows as Markdown."""
    lines = [
        f"{device}, torch {torch.__version__}: {peak_rate / 1e12:.0f} TFLOP/s measured in bf16",
        "",
        "| speech | what | windows/s | audio-h per GPU-h | MFU | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row.windows_per_second:.2f}",
            f"{row.speech_hours_per_hour:.0f}",
            f"{row.mfu:.1%}",
            f"{row.peak_gb:.1f} GB",
        ]
        shown = " | ".join(cells) if not row.failed else f"{row.failed} | | |"
        lines.append(f"| {row.shape} | {row.name} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="updates measured of each row (default: 8)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stdout.write("This machine has no CUDA device; nothing was measured.\n")
        return
    logging.set_verbosity_error()
    source, device, peak_rate = shapes.speech_folder(), torch.cuda.get_device_name(), matmul_rate(torch.device("cuda"))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = shapes.full_model(folder / "model")
        speech = {
            "short": Speech.of(shapes.short_clips(source, folder / "short")),
            "full": Speech.of(shapes.full_windows(source, folder / "full")),
        }
        for number, case in enumerate(cases()):
            gc.collect()
            torch.cuda.empty_cache()
            rows.append(measured(case, model, speech[case.shape], folder / str(number), given.steps, peak_rate))
            sys.stderr.write(f"{rows[-1]}\n")
    shown = table(rows, device, peak_rate)
    sys.stdout.write(shown)
    facts = {"device": device, "torch": torch.__version__, "matmul_flops": peak_rate}
    if given.json:
        content = {**facts, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()

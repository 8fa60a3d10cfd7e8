"""The peak memory of head and loss at Voxtral's own vocabulary: at every position, and where there is a label only.

What is measured is what transformers does between the last hidden states and their gradients: `lm_head`, the logits in
float32 and `ForCausalLMLoss` (`loss/loss_utils.py`), forward and backward: the most bytes that tensors hold at a time.
The batch is two windows of real short clips, packed by our planner, with their texts in the full tokenizer's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.shapes import WINDOW_SECONDS
from voxtral_finetune.data.collate import IGNORED, TranscriptionCollator
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.windows import plan
from voxtral_finetune.model import mini
from voxtral_finetune.training.rehearsal import Live
from voxtral_finetune.training.trainer import only_at_labels

VOCABULARY = 131_072
WIDTH = 256
ROWS = 2


def loss_memory(rows: Sequence[Utterance], folder: Path, batches: int) -> list[float]:
    """Peak at every position / peak at labels, for so many batches of packed windows."""
    processor = mini.build_processor(
        folder / "tokenizer", vocab_size=VOCABULARY, window_seconds=WINDOW_SECONDS, mel_bins=128
    )
    collator = TranscriptionCollator(processor)
    windows = [window for window in plan(rows, WINDOW_SECONDS, True, 0, 0) if len(window.utterances) > 1]
    found = []
    for number in range(batches):
        chosen = [windows[(ROWS * number + row) % len(windows)] for row in range(ROWS)]
        labels = labels_of(collator, [(window.text, window.language) for window in chosen])
        everywhere, at_labels = (loss_peak(labels, at_labels=here) for here in (False, True))
        found.append(everywhere / at_labels)
    return found


def labels_of(collator: TranscriptionCollator, texts: Sequence[tuple[str, str | None]]) -> torch.Tensor:
    """Labels (rows, tokens) of one-window rows with these (text, language), padded on the right."""
    rows = []
    for text, language in texts:
        prompt, target = collator.prompt(1, language), collator.target(text)
        rows.append(torch.tensor([IGNORED] * len(prompt) + target))
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def loss_peak(labels: torch.Tensor, *, at_labels: bool, vocabulary: int = VOCABULARY) -> int:
    """Bytes that head and loss of one batch take at their peak, beyond the frozen head and the hidden states."""
    head = nn.Linear(WIDTH, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(*labels.shape, WIDTH, requires_grad=True)
    with Live() as live:
        for given in (head.weight, hidden):
            live.count(given)
        before = live.bytes
        if at_labels:
            chosen = only_at_labels(labels)
            logits = head(hidden[chosen["logits_to_keep"]])
            loss = ForCausalLMLoss(logits, labels, vocabulary, shift_labels=chosen["shift_labels"])
        else:
            logits = head(hidden)
            loss = ForCausalLMLoss(logits, labels, vocabulary)
        loss.backward()
    return live.peak - before

"""Speech and text to the exact batch that Voxtral's transcription mode was trained on.

One row is   <s>[INST][BEGIN_AUDIO][AUDIO]×(tokens a window × windows)[/INST](lang:xx)[TRANSCRIBE] text </s>
with loss on the text and `</s>` only. Ids and features equal `VoxtralProcessor.apply_transcription_request`
(transformers, `models/voxtral/processing_voxtral.py`) exactly, without its detour through a WAV file in memory.

Shapes:  B rows, T tokens, W windows of all rows together, M mel bins, F mel frames a window.
    input_ids, attention_mask, labels  (B, T) int64, right-padded
    input_features                     (W, M, F) float32; dim 0 counts windows, not rows
Where what the encoder makes of some windows is known already, three more, and features of the others only:
    audio_known (W,) bool, audio_embeds (known, A, D) as kept, A audio tokens of width D; audio_index (B,) int64
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycountry
import torch

from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.augment import spec_augment
from voxtral_finetune.data.mel import log_mel
from voxtral_finetune.errors import DataError, ModelError

IGNORED = -100
"""The label that the loss passes over (`torch.nn.CrossEntropyLoss`)."""

SAMPLES_PER_TOKEN = 1280
"""Hop 160 × stride 2 of the second convolution × 4 encoder frames joined by the projector: 12.5 tokens a second."""

MAX_TEXT_TOKENS = 4096
"""Beyond this a transcript is surely wrong for its audio; a row is refused, never cut."""

SPECIAL = {
    "<s>": 1,
    "</s>": 2,
    "[INST]": 3,
    "[/INST]": 4,
    "<pad>": 11,
    "[AUDIO]": 24,
    "[BEGIN_AUDIO]": 25,
    "[TRANSCRIBE]": 34,
}
"""Tekken v7's ids, checked against the tokenizer that is loaded."""


def language_tag(language: str | None) -> str | None:
    """The two-letter code that Voxtral's prompt takes ("pt-BR" gives "pt"), or None where it has no such code."""
    code = (language or "").replace("_", "-").split("-")[0].lower()
    return code if len(code) == 2 and pycountry.languages.get(alpha_2=code) else None


@dataclass(frozen=True)
class Example:
    """One row as it is learned: mono 16 kHz samples of shape (n,), its text, and a name for messages.

    `mask` hides parts of its spectrum (`data.augment`); `index` is its place in a cache of what the encoder makes of
    it, and `embeds` (W, A, D) that, where it is known: then `wave` is not needed and empty.
    """

    wave: Wave
    text: str
    language: str | None
    name: str
    mask: np.random.Generator | None = None
    index: int | None = None
    embeds: torch.Tensor | None = None


class TranscriptionCollator:
    """Makes training batches for the checkpoint that `processor` belongs to; the window length is the checkpoint's."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.extractor = processor.feature_extractor
        self.window_samples: int = self.extractor.n_samples
        self.tokens_per_window = self.window_samples // SAMPLES_PER_TOKEN
        for token, expected in SPECIAL.items():
            if self.tokenizer.convert_ids_to_tokens(expected) != token:
                raise ModelError(
                    f"The tokenizer has no {token} at id {expected}.",
                    "Use a Voxtral checkpoint with its own tekken.json.",
                )

    @property
    def window_seconds(self) -> float:
        return self.window_samples / SAMPLE_RATE

    def windows(self, samples: int) -> int:
        """How many windows that many samples fill; a row never shares one and has at least one."""
        return max(1, -(-samples // self.window_samples))

    def features(self, wave: Wave) -> torch.Tensor:
        """Log-mel features, shape (windows, mel bins, frames), the last window padded with silence."""
        return log_mel(self.extractor, wave, self.window_samples)

    def prompt(self, windows: int, language: str | None) -> list[int]:
        """Token ids up to and including [TRANSCRIBE]; without a language that Voxtral knows it is left to detect."""
        language = language_tag(language)
        audio = [SPECIAL["[AUDIO]"]] * (windows * self.tokens_per_window)
        tag = self._encode(f"lang:{language}") if language else []
        opening = [SPECIAL["<s>"], SPECIAL["[INST]"], SPECIAL["[BEGIN_AUDIO]"]]
        return [*opening, *audio, SPECIAL["[/INST]"], *tag, SPECIAL["[TRANSCRIBE]"]]

    def target(self, text: str) -> list[int]:
        """What is learned: the text's ids (no leading space, never parsed for special tokens), then `</s>`."""
        return [*self._encode(text.strip()), SPECIAL["</s>"]]

    def row(self, example: Example) -> tuple[list[int], list[int], torch.Tensor]:
        """(input ids, labels, features or kept embeddings) of one row; an over-long text is an error naming it."""
        audio = self._audio(example)
        prompt, target = self.prompt(len(audio), example.language), self.target(example.text)
        if len(target) > MAX_TEXT_TOKENS:
            raise DataError(
                f"{example.name}: the transcript has {len(target)} tokens, over {MAX_TEXT_TOKENS}.",
                "Cut the recording into shorter ones, each with its own text.",
            )
        return prompt + target, [IGNORED] * len(prompt) + target, audio

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        rows = [self.row(example) for example in examples]
        length = max(len(ids) for ids, _, _ in rows)

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        return {
            "input_ids": padded([ids for ids, _, _ in rows], SPECIAL["<pad>"]),
            "attention_mask": padded([[1] * len(ids) for ids, _, _ in rows], 0),
            "labels": padded([labels for _, labels, _ in rows], IGNORED),
            **_joined(examples, [audio for _, _, audio in rows]),
        }

    def _audio(self, example: Example) -> torch.Tensor:
        if example.embeds is not None:
            return example.embeds
        features = self.features(example.wave)
        if example.mask is None:
            return features
        return spec_augment(features, len(example.wave) // self.extractor.hop_length, example.mask)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _joined(examples: list[Example], audio: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a batch's rows are heard from: features, and kept embeddings where the rows belong to a cache."""
    unknown = [rows for example, rows in zip(examples, audio, strict=True) if example.embeds is None]
    joined = {"input_features": torch.cat(unknown)} if unknown else {}
    if examples[0].index is None:
        return joined
    known = [example.embeds for example in examples if example.embeds is not None]
    counts = torch.tensor([len(rows) for rows in audio])
    return {
        **joined,
        **({"audio_embeds": torch.cat(known)} if known else {}),
        "audio_known": torch.tensor([example.embeds is not None for example in examples]).repeat_interleave(counts),
        "audio_index": torch.tensor([example.index for example in examples]),
    }


def shown(collator: TranscriptionCollator, examples: list[Example]) -> list[str]:
    """What a batch teaches, a line a token: its id, its text, and whether it is learned; runs of audio are folded."""
    batch = collator(examples)
    lines: list[str] = []
    for example, ids, labels in zip(examples, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        lines.append(f"{example.name}: {example.text}")
        audio = ids.count(SPECIAL["[AUDIO]"])
        for token, label in zip(ids, labels, strict=True):
            if token == SPECIAL["[AUDIO]"]:
                if audio:
                    lines.append(f"  {token:>7}  [AUDIO] × {audio}")
                    audio = 0
            elif token != SPECIAL["<pad>"]:
                text = collator.tokenizer.convert_ids_to_tokens(token)
                lines.append(f"  {token:>7}  {text!r}" + ("  <- learned" if label != IGNORED else ""))
    return lines

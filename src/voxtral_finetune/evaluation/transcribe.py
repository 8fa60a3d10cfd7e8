"""Speech to text with a Voxtral, as it will be used: greedy, in batches, recordings of any length.

A recording longer than one window of the checkpoint is cut at pauses, since a model that was tuned on short
utterances is best at short ones. Beam search is not offered: transformers repeats `input_features` by row where they
count windows, so that beams silently hear the wrong audio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.collate import SPECIAL, TranscriptionCollator

TOKENS_PER_SECOND = 40
"""The most that is generated for a second of speech. English needs 4 of Tekken's tokens a second; Amharic, Khmer and
Odia are written in 2.3 to 2.9 tokens a character, so 14 characters a second need 40. A tighter limit would cut right
transcripts of those languages short; this one only lets a model that loops do so for longer."""

MIN_NEW_TOKENS = 64
"""The least that is allowed for, however short the audio: room for a fast word in any script."""

PAUSE = SAMPLE_RATE // 5
"""Samples over which quietness is judged: 0.2 s, longer than the silence inside a plosive."""

Progress = Callable[[int, int], None]
"""Called with (pieces transcribed so far, pieces in all)."""


def pieces(wave: Wave, window_samples: int) -> list[Wave]:
    """Cuts samples of shape (n,) into consecutive pieces of at most `window_samples`; none where n is 0.

    Every sample is in exactly one piece. A cut is in the middle of the quietest 0.2 s of the window's last third.
    """
    if not len(wave):
        return []
    cuts = [0]
    while len(wave) - cuts[-1] > window_samples:
        cuts.append(cuts[-1] + _quietest(wave[cuts[-1] : cuts[-1] + window_samples]))
    return [wave[start:end] for start, end in pairwise([*cuts, len(wave)])]


@dataclass(frozen=True)
class _Piece:
    """At most one window of a recording, and which recording that is."""

    recording: int
    wave: Wave
    language: str | None


class Transcriber:
    """Transcribes with a `VoxtralForConditionalGeneration`, bare or wrapped by PEFT, on the device where it is."""

    def __init__(self, model: Any, processor: Any, batch_size: int = 8) -> None:
        self.model = model
        self.tokenizer = processor.tokenizer
        self.collator = TranscriptionCollator(processor)
        self.batch_size = batch_size

    def transcribe(
        self, waves: Sequence[Wave], languages: Sequence[str | None], progress: Progress | None = None
    ) -> list[str]:
        """Texts of mono 16 kHz recordings, each of shape (n,) with its language (None: detected); "" for no audio.

        The model generates in eval mode and is left in the modes it was found in.
        """
        work = [
            _Piece(recording, piece, language)
            for recording, (wave, language) in enumerate(zip(waves, languages, strict=True))
            for piece in pieces(wave, self.collator.window_samples)
        ]
        texts = [""] * len(work)
        # Pieces of one length end at about the same token; the longest go first: too little memory shows at once.
        order = sorted(range(len(work)), key=lambda index: -len(work[index].wave))
        with _evaluating(self.model), torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for index, text in zip(batch, self._generate([work[index] for index in batch]), strict=True):
                    texts[index] = text
                if progress:
                    progress(start + len(batch), len(order))
        joined: list[list[str]] = [[] for _ in waves]
        for piece, text in zip(work, texts, strict=True):
            joined[piece.recording].append(text)
        return [" ".join(filter(None, parts)) for parts in joined]

    def _generate(self, batch: list[_Piece]) -> list[str]:
        limits = [max(MIN_NEW_TOKENS, TOKENS_PER_SECOND * len(piece.wave) // SAMPLE_RATE) for piece in batch]
        inputs = {name: tensor.to(self.model.device) for name, tensor in self._inputs(batch).items()}
        ids = self.model.generate(
            **inputs,
            max_new_tokens=max(limits),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=SPECIAL["<pad>"],
            eos_token_id=SPECIAL["</s>"],
        )
        new = ids[:, inputs["input_ids"].shape[1] :].tolist()
        # A row's own limit holds whatever else is in the batch, so that its text does not depend on its neighbours.
        return [
            str(self.tokenizer.decode(row[:limit], skip_special_tokens=True)).strip()
            for row, limit in zip(new, limits, strict=True)
        ]

    def _inputs(self, batch: list[_Piece]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, since text follows on the right: (B, T) ids and mask, (B, M, F) features."""
        features = [self.collator.features(piece.wave) for piece in batch]
        prompts = [self.collator.prompt(len(mel), piece.language) for mel, piece in zip(features, batch, strict=True)]
        length = max(map(len, prompts))
        pads = [length - len(prompt) for prompt in prompts]
        return {
            "input_ids": torch.tensor(
                [[SPECIAL["<pad>"]] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads]),
            "input_features": torch.cat(features),
        }


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode inside; after it exactly those modules train that did before, so that a frozen part stays in eval."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _quietest(window: Wave) -> int:
    """Where to cut: the middle of the PAUSE samples of least power in the last third; the latest of equals."""
    first = 2 * len(window) // 3
    power = np.cumsum(np.square(window[first:], dtype=np.float64))
    span = min(PAUSE, len(power) // 2)
    quiet = power[span:] - power[:-span]
    return first + len(quiet) - int(np.argmin(quiet[::-1])) + span // 2

"""Speech to text with a Voxtral, as it will be used: greedy, in batches, recordings of any length.

Beam search is not offered: transformers repeats `input_features` by row where they count windows, so that beams
silently hear the wrong audio.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.collate import SPECIAL, TranscriptionCollator
from voxtral_finetune.errors import DataError, ModelError
from voxtral_finetune.evaluation.pieces import Part, Recording, parts
from voxtral_finetune.evaluation.transcripts import Heard, Spoken

TOKENS_PER_SECOND = 40
"""The most that is generated for a second of speech. English needs 4 of Tekken's tokens a second; Amharic, Khmer and
Odia are written in 2.3 to 2.9 tokens a character, so 14 characters a second need 40. A tighter limit would cut right
transcripts of those languages short; this one only lets a model that loops do so for longer."""

MIN_NEW_TOKENS = 64
"""The least that is allowed for, however short the audio: room for a fast word in any script."""

POOL = 8
"""Batches of pieces that are decoded at a time, so that those of one length can share a batch."""

PROBED = 16
"""Places of the prompt, counted from its end, whose logits make a fingerprint."""

Progress = Callable[[int, int], None]
"""Called with (pieces transcribed so far, pieces that are known of: those of a recording once it is its turn)."""

OnError = Callable[[int, DataError], None]
"""Called with (the index of a recording, why it cannot be heard)."""


@dataclass(frozen=True)
class _Piece:
    """A part of a recording, and which recording that is."""

    recording: int
    part: Part
    language: str | None


class Transcriber:
    """Transcribes with a `VoxtralForConditionalGeneration`, bare or wrapped by PEFT, on the device where it is.

    With `native` a recording is heard in one pass, however many windows it fills, instead of in pieces.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 8, native: bool = False) -> None:
        self.model = model
        self.tokenizer = processor.tokenizer
        self.collator = TranscriptionCollator(processor)
        self.batch_size = batch_size
        self.native = native

    def transcribe(
        self, waves: Sequence[Wave], languages: Sequence[str | None], progress: Progress | None = None
    ) -> list[str]:
        """Texts of mono 16 kHz recordings, each of shape (n,) with its language (None: detected); "" for no audio."""
        recordings = [Recording(*pair) for pair in zip(waves, languages, strict=True)]
        return [heard.text for heard in self.hear(recordings, progress) if heard]

    def hear(
        self, recordings: Sequence[Recording], progress: Progress | None = None, on_error: OnError | None = None
    ) -> list[Heard | None]:
        """What is said in each recording; None where `on_error` was told why not (without it that is raised).

        The longest come first, and only POOL batches of pieces are in memory. The model generates in eval mode and is
        left in the modes it was found in. Where memory runs out batches are halved, from then on; what a row says does
        not depend on them.
        """
        order = sorted(range(len(recordings)), key=lambda index: -recordings[index].length)
        found: dict[int, list[Spoken]] = {index: [] for index in order}
        pool: list[_Piece] = []
        counted = _Counted(progress, len(order))
        with _evaluating(self.model), torch.inference_mode():
            for index in order:
                counted.unread -= 1
                try:
                    for part in parts(recordings[index], self.collator.window_samples, self.native):
                        pool.append(self._checked(_Piece(index, part, recordings[index].language)))
                        counted.found += 1
                        if len(pool) == POOL * self.batch_size:
                            self._drain(pool, found, counted)
                except DataError as error:
                    if on_error is None:
                        raise
                    on_error(index, error)
                    del found[index]
                    counted.found -= sum(piece.recording == index for piece in pool)
                    pool = [piece for piece in pool if piece.recording != index]
            self._drain(pool, found, counted)
        heard = {index: sorted(pieces, key=lambda piece: piece.start) for index, pieces in found.items()}
        return [Heard(tuple(heard[index])) if index in heard else None for index in range(len(recordings))]

    def fingerprint(self) -> str:
        """Stands for what the model answers to a fixed sound: equal for the same weights, in practice for no others."""
        with _evaluating(self.model), torch.inference_mode():
            inputs = self._on_device(self._inputs([_Piece(0, Part(0.0, _probe()), "en")]))
            logits = self.model(**inputs, use_cache=False, logits_to_keep=PROBED).logits
        return hashlib.sha256(logits.float().cpu().numpy().tobytes()).hexdigest()

    def check_adapter(self) -> str:
        """The fingerprint of the model; raises ModelError where it has an adapter that changes nothing of its base."""
        mine = self.fingerprint()
        if hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                base = self.fingerprint()
            if base == mine:
                what = "The adapter changes nothing: with it the model answers exactly as its base does without."
                raise ModelError(
                    what, "Its weights do not belong to this base, or it has learned nothing. Export it again."
                )
        return mine

    def _checked(self, piece: _Piece) -> _Piece:
        """The piece, where it leaves room in the model's context for a text; raises DataError otherwise."""
        if self.native and self._room(self.collator.windows(len(piece.part.wave))) < MIN_NEW_TOKENS:
            minutes = len(piece.part.wave) / SAMPLE_RATE / 60
            raise DataError(f"{minutes:.0f} minutes are too long to be heard in one pass.", "Leave out --native.")
        return piece

    def _room(self, windows: int) -> int:
        """How many tokens the model's context leaves for the text of so many windows."""
        positions = self.model.config.text_config.max_position_embeddings
        return int(positions) - len(self.collator.prompt(windows, "en"))

    def _drain(self, pool: list[_Piece], found: dict[int, list[Spoken]], counted: _Counted) -> None:
        """Transcribes the pool and empties it. Pieces of one length end at about the same token."""
        pool.sort(key=lambda piece: -len(piece.part.wave))
        while pool:
            batch = pool[: self.batch_size]
            try:
                heard = self._generate(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.batch_size = -(-len(batch) // 2)
                torch.cuda.empty_cache()
                continue
            for piece, (text, capped) in zip(batch, heard, strict=True):
                found[piece.recording].append(Spoken(piece.part.start, piece.part.end, text, capped))
            del pool[: len(batch)]
            counted.add(len(batch))

    def _generate(self, batch: list[_Piece]) -> list[tuple[str, bool]]:
        """(text, whether it was cut off) of each piece."""
        limits = [self._limit(piece) for piece in batch]
        inputs = self._on_device(self._inputs(batch))
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
        rows = [row[:limit] for row, limit in zip(new, limits, strict=True)]
        return [
            (str(self.tokenizer.decode(row, skip_special_tokens=True)).strip(), SPECIAL["</s>"] not in row)
            for row in rows
        ]

    def _limit(self, piece: _Piece) -> int:
        allowed = max(MIN_NEW_TOKENS, TOKENS_PER_SECOND * len(piece.part.wave) // SAMPLE_RATE)
        return min(allowed, self._room(self.collator.windows(len(piece.part.wave)))) if self.native else allowed

    def _inputs(self, batch: list[_Piece]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, since text follows on the right: (B, T) ids and mask, (B, M, F) features."""
        features = [self.collator.features(piece.part.wave) for piece in batch]
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

    def _on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


@dataclass
class _Counted:
    """How far it is: pieces done, pieces found, recordings not read yet."""

    progress: Progress | None
    unread: int
    found: int = 0
    done: int = 0

    def add(self, pieces: int) -> None:
        self.done += pieces
        if self.progress:
            self.progress(self.done, self.found + self.unread)


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


def _probe() -> Wave:
    """A second of sound that is the same everywhere: four falling tones and a little noise."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * pitch * time * (1 - 0.2 * time)) for pitch in (140, 420, 1100, 2600))
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    return np.asarray(0.1 * tones + 0.01 * noise, dtype=np.float32)

"""A small but real Voxtral, made offline: the same classes, tokenizer format and batch layout as the published ones.

Used to build the shipped mini checkpoint and, from random weights, by tests that overfit a few utterances in seconds.
The tokenizer is cut from the Tekken file that mistral-common ships; the window length is the encoder's
`max_source_positions`, which transformers asserts against the features (`models/voxtral/modeling_voxtral.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mistral_common
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from torch import nn
from transformers import (
    MistralCommonBackend,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.data.collate import SPECIAL

TEKKEN_SOURCE = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"

SPECIAL_TOKENS = 40
"""Ids 0–39 are control tokens; Voxtral's highest is [TRANSCRIBE] = 34. The published tokenizer reserves 1000."""

HOP = 160
"""Samples between mel frames at 16 kHz: 100 frames a second (`WhisperFeatureExtractor`)."""

GROUPED_FRAMES = 4
"""Encoder frames joined into one audio token; transformers reads it as `intermediate_size / hidden_size`."""

AUDIO_TOKENS_PER_SECOND = 12.5
"""100 mel frames a second, halved by the second convolution, grouped by four."""


def build_processor(
    folder: Path, *, vocab_size: int = 1024, window_seconds: int = 4, mel_bins: int = 80
) -> VoxtralProcessor:
    """Writes a Voxtral processor (`tekken.json`, `processor_config.json`, …) to `folder` and returns it.

    `vocab_size` counts the 40 control tokens. A plain `VoxtralProcessor.from_pretrained(folder)` also needs the
    model's `config.json` there. `apply_transcription_request` pads to 30 s unless it is given
    `audio_kwargs={"pad_to_multiple_of": 16000 * window_seconds, "max_source_positions": 100 * window_seconds}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tekken = folder / "tekken.json"
    content = _tekken(vocab_size, window_seconds, mel_bins)
    tekken.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    extractor = WhisperFeatureExtractor(
        feature_size=mel_bins, sampling_rate=SAMPLE_RATE, hop_length=HOP, chunk_length=window_seconds, n_fft=400
    )
    processor = VoxtralProcessor(
        feature_extractor=extractor, tokenizer=MistralCommonBackend(tokenizer_path=str(tekken))
    )
    processor.save_pretrained(folder)
    return processor


def small_config(
    *,
    vocab_size: int = 1024,
    window_seconds: int = 4,
    mel_bins: int = 80,
    width: int = 96,
    layers: int = 3,
    heads: int = 3,
) -> VoxtralConfig:
    """A Voxtral whose encoder and language model both have `layers` layers of `width`; 0.94 M weights by default.

    The encoder's width must be a multiple of `heads`, the window a whole number of seconds.
    """
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")
    audio = {
        "model_type": "voxtral_encoder",
        "hidden_size": width,
        "intermediate_size": GROUPED_FRAMES * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_mel_bins": mel_bins,
        "max_source_positions": SAMPLE_RATE * window_seconds // HOP // 2,
    }
    text = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": 32,
        # Voxtral's own 1e8 is meant for 32k tokens; over the mini's hundred it learns more slowly than 1e4.
        "rope_theta": 1e4,
        "max_position_embeddings": 4096,
        "bos_token_id": SPECIAL["<s>"],
        "eos_token_id": SPECIAL["</s>"],
        "pad_token_id": SPECIAL["<pad>"],
    }
    return VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=SPECIAL["[AUDIO]"])


def initialise(model: VoxtralForConditionalGeneration, seed: int = 0) -> VoxtralForConditionalGeneration:
    """Gives `model` random weights that a narrow network can learn from, in place; also its generation ids.

    transformers draws every matrix with std 0.02, meant for widths of thousands; at width 96 the signal dies out.
    Here a matrix has std fan_in^-½ (halved where it adds to the residual stream), convolutions Kaiming's, and the
    encoder's fixed positions are Whisper's sinusoids, which transformers leaves random.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("o_proj", "down_proj", "out_proj", "fc2"))
                module.weight.normal_(0, module.in_features**-0.5 * (0.5 if residual else 1.0), generator=random)
            elif isinstance(module, nn.Conv1d):
                fan_in = module.in_channels * module.kernel_size[0]
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=random)
            if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
                module.bias.zero_()
        positions = model.model.audio_tower.embed_positions.weight
        positions.copy_(0.2 * _sinusoids(*positions.shape))
        model.get_input_embeddings().weight.normal_(0, 0.5, generator=random)
        model.get_output_embeddings().weight.normal_(0, 0.02, generator=random)
    model.generation_config.bos_token_id = SPECIAL["<s>"]
    model.generation_config.eos_token_id = SPECIAL["</s>"]
    model.generation_config.pad_token_id = SPECIAL["<pad>"]
    return model


def _sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's encoder positions, shape (length, channels): sines, then cosines, of wavelengths 2π to 2π·10 000."""
    rates = 10_000.0 ** -torch.linspace(0, 1, channels // 2)
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _tekken(vocab_size: int, window_seconds: int, mel_bins: int) -> dict[str, Any]:
    """The content of a version 7 `tekken.json` with audio; the vocabulary is ranked, so its head is a valid BPE."""
    tekken: dict[str, Any] = json.loads(TEKKEN_SOURCE.read_text(encoding="utf-8"))
    tekken["vocab"] = tekken["vocab"][: vocab_size - SPECIAL_TOKENS]
    tekken["special_tokens"] = _special_tokens()
    tekken["config"].update(
        version="v7",
        default_vocab_size=vocab_size,
        default_num_special_tokens=SPECIAL_TOKENS,
        num_vocab_tokens=len(tekken["vocab"]),
    )
    tekken["audio"] = {
        "sampling_rate": SAMPLE_RATE,
        "frame_rate": AUDIO_TOKENS_PER_SECOND,
        "chunk_length_s": float(window_seconds),
        "audio_encoding_config": {"num_mel_bins": mel_bins, "hop_length": HOP, "window_size": 400},
    }
    return tekken


def _special_tokens() -> list[dict[str, Any]]:
    """mistral-common's first 20 control tokens, then fillers with Voxtral's three in their published places."""
    tokens: list[dict[str, Any]] = [
        {"rank": token["rank"], "token_str": str(token["token_str"].value), "is_control": True}
        for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS
    ]
    names = {rank: name for name, rank in SPECIAL.items()}
    for rank in range(len(tokens), SPECIAL_TOKENS):
        tokens.append({"rank": rank, "token_str": names.get(rank, f"<SPECIAL_{rank}>"), "is_control": True})
    return tokens

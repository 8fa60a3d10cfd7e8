"""What is measured on: a Voxtral with the proportions of Mini 3B at a thousandth of its cost, and real speech.

The small model keeps the true 30 s windows, 128 mel bins and 375 audio tokens, and Mini's shares of work between
encoder and language model. The speech is the folder named by VOXTRAL_SPEECH_DATA: sets with a `manifest.jsonl` of
`audio_path`, `text`, `language` and `duration` (seconds). It is written once as 16 kHz FLAC: both sides read the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from voxtral_finetune.data import audio
from voxtral_finetune.model import mini

WINDOW_SECONDS = 30
RATE = audio.SAMPLE_RATE
SETS = ("ljspeech_en", "ivr_en", "ivr_fr", "smoke_en")
"""Read and prompted speech by people, clips of half a second to ten."""

SHORT = (2.0, 8.0)
FULL = (27.0, 29.9)
"""Seconds that a clip of either shape lasts."""

GAP_SECONDS = 0.1

Clip = tuple[audio.Wave, str, dict[str, Any]]
"""Samples, text and the row that language and speaker are taken from."""


def small_model(folder: Path) -> Path:
    """Writes encoder 192 × 6, language model 256 × 12, vocabulary 8192 with random weights and its processor."""
    encoder = {
        "model_type": "voxtral_encoder",
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_mel_bins": 128,
        "max_source_positions": 50 * WINDOW_SECONDS,
    }
    language_model = {
        "model_type": "llama",
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_theta": 1e8,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
    }
    config = VoxtralConfig(audio_config=encoder, text_config=language_model, audio_token_id=24)
    mini.initialise(VoxtralForConditionalGeneration(config)).save_pretrained(folder)
    mini.build_processor(folder, vocab_size=8192, window_seconds=WINDOW_SECONDS, mel_bins=128)
    return folder


def full_model(folder: Path, device: str = "cuda") -> Path:
    """Writes Mini 3B's shapes (the library's defaults) with random bfloat16 weights, drawn on `device`: 9.4 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = VoxtralForConditionalGeneration(VoxtralConfig(audio_token_id=24))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    mini.build_processor(folder, vocab_size=131_072, window_seconds=WINDOW_SECONDS, mel_bins=128)
    return folder


def speech_folder() -> Path:
    """The folder of real speech; without one the program ends with a sentence that says how to name it."""
    folder = Path(os.environ.get("VOXTRAL_SPEECH_DATA") or "-")
    if not any((folder / name / "manifest.jsonl").is_file() for name in SETS):
        raise SystemExit(
            f"This benchmark needs real speech: set VOXTRAL_SPEECH_DATA to a folder with the sets {', '.join(SETS)}."
        )
    return folder


def short_clips(speech: Path, folder: Path) -> Path:
    """Writes the clips of 2 to 8 s; returns their `data.jsonl`."""
    return _write(folder, [(*_read(row), row) for row in _rows(speech) if SHORT[0] <= row["duration"] <= SHORT[1]])


def full_windows(speech: Path, folder: Path, seed: int = 0) -> Path:
    """Writes English clips joined to recordings of 27 to 29.9 s; returns their `data.jsonl`."""
    rows = [row for row in _rows(speech) if row["language"] == "en"]
    pool = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    clips: list[Clip] = []
    while True:
        chosen, seconds = [], 0.0
        for row in pool:
            if seconds + row["duration"] + GAP_SECONDS <= FULL[1]:
                chosen.append(row)
                seconds += row["duration"] + GAP_SECONDS
        if seconds < FULL[0]:
            return _write(folder, clips)
        pool = [row for row in pool if row not in chosen]
        gap = np.zeros(int(GAP_SECONDS * RATE), np.float32)
        wave = np.concatenate([part for row in chosen for part in (_read(row)[0], gap)])
        clips.append((wave, " ".join(row["text"] for row in chosen), chosen[0]))


def _rows(speech: Path) -> list[dict[str, Any]]:
    rows = []
    for name in SETS:
        manifest = speech / name / "manifest.jsonl"
        for line in manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []:
            row = json.loads(line)
            rows.append({**row, "audio": speech / name / row["audio_path"]})
    return rows


def _read(row: dict[str, Any]) -> tuple[audio.Wave, str]:
    return audio.load(row["audio"]), row["text"].strip()


def _write(folder: Path, clips: list[Clip]) -> Path:
    (folder / "audio").mkdir(parents=True)
    manifest = folder / "data.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for number, (wave, text, row) in enumerate(clips):
            name = f"audio/{number}.flac"
            audio.write(folder / name, wave, RATE)
            facts = {"language": row["language"], "speaker": row.get("speaker"), "duration": len(wave) / RATE}
            file.write(json.dumps({"audio_path": name, "text": text, **facts}, ensure_ascii=False) + "\n")
    return manifest

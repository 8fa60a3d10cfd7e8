"""The plain recipe: Voxtral fine-tuned the usual way with transformers' Trainer and PEFT, to compare with.

    python -m benchmarks.plain MODEL DATA.jsonl OUTPUT

Right where the comparison needs it: each text ends with `</s>`, prompt and padding have no loss, nothing is cut off.
Usual in everything else: each clip goes through `apply_transcription_request` into a window of its own, LoRA sits on
every layer of the four usual names (three of which the audio encoder has too), logits are computed at every position,
and the Trainer keeps its defaults. It shares no code with voxtral_finetune.

Facts: transformers `models/voxtral/processing_voxtral.py` (the request pads to 30 s; prompts are padded on the left).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, VoxtralForConditionalGeneration, VoxtralProcessor

RATE = 16_000
BATCH = 2


class Clips(Dataset[dict[str, Any]]):
    """Rows of a JSONL file with `audio_path` (relative to it), `text` and `language`; decoded when they are asked for.

    An item is {"audio": float32 samples at 16 kHz, shape (n,), "text": str, "language": str | None}.
    """

    def __init__(self, manifest: Path) -> None:
        self.folder = manifest.parent
        self.rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        audio, rate = soundfile.read(self.folder / row["audio_path"], dtype="float32", always_2d=True)
        audio = audio.mean(axis=1)
        if rate != RATE:
            audio = soxr.resample(audio, rate, RATE)
        return {"audio": audio, "text": row["text"], "language": row.get("language")}


class Collator:
    """A batch from clips: the processor's prompt, then the text and `</s>`, padded on the right.

    Returns input_ids, attention_mask, labels, each (rows, tokens) int64, and input_features (windows, mels, frames).
    """

    def __init__(self, processor: VoxtralProcessor, model_id: str) -> None:
        self.processor = processor
        self.model_id = model_id

    def __call__(self, clips: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = self.processor.apply_transcription_request(
            audio=[np.asarray(clip["audio"]) for clip in clips],
            format=["WAV"] * len(clips),
            language=[clip["language"] for clip in clips],
            sampling_rate=RATE,
            model_id=self.model_id,
        )
        tokenizer = self.processor.tokenizer
        ids, labels = [], []
        for clip, prompt, mask in zip(clips, prompts["input_ids"], prompts["attention_mask"], strict=True):
            before = prompt[mask.bool()]
            text = tokenizer(clip["text"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            after = torch.tensor(text)
            ids.append(torch.cat([before, after]))
            labels.append(torch.cat([torch.full_like(before, -100), after]))
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True, padding_value=0),
            "labels": pad(labels, batch_first=True, padding_value=-100),
            "input_features": prompts["input_features"],
        }


def build(model_folder: str, manifest: Path, output: Path, **arguments: Any) -> Trainer:
    """The Trainer, ready to train; `arguments` are further `TrainingArguments`."""
    processor = VoxtralProcessor.from_pretrained(model_folder)
    on_gpu = torch.cuda.is_available()
    model = VoxtralForConditionalGeneration.from_pretrained(
        model_folder, dtype=torch.bfloat16 if on_gpu else torch.float32, device_map="cuda" if on_gpu else None
    )
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    return Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=str(output),
            per_device_train_batch_size=BATCH,
            bf16=on_gpu,
            remove_unused_columns=False,
            report_to="none",
            **arguments,
        ),
        train_dataset=Clips(manifest),
        data_collator=Collator(processor, model_folder),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder or Hub id")
    parser.add_argument("data", type=Path, help="a JSONL file")
    parser.add_argument("output", type=Path, help="the folder for checkpoints and the adapter")
    given = parser.parse_args()
    trainer = build(given.model, given.data, given.output)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()

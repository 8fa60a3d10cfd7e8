"""Train the mini Voxtral from random weights: a real, small checkpoint that hears strings of spoken digits.

    python tools/make_voices.py --output VOICES
    python tools/build_mini.py --speech ../shared/data/fsdd --voices VOICES --output src/voxtral_finetune/assets/mini

Takes under an hour on two CPU cores. Stopped, it goes on from `--state` when called again with the same arguments. A
plain AdamW loop, not the package's trainer: that one adapts a checkpoint, this one makes one, once. Matrices this small
gain nothing from a second thread, so each core runs a process on its share of every batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import distributed, multiprocessing
from torch.nn.functional import pad
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

import mini_card
import mini_data
from mini_data import LANGUAGE, Take
from voxtral_finetune.data.audio import Wave
from voxtral_finetune.data.collate import IGNORED, SPECIAL, TranscriptionCollator
from voxtral_finetune.model import mini

HELD_OUT_SPEAKER = "fsdd_lucas"
STRINGS = 16_000
BATCH = 24
PROCESSES = 2
PEAK_RATE, FINAL_RATE, WARM_UP = 2e-3, 4e-5, 100
NO_LANGUAGE_SHARE = 0.15
FOCUS = (0.45, 0.85)
"""From this share of the steps on, this share of a batch is human: what is measured is how people are heard."""
EASY_SHARE = 0.1
"""Of the steps, on unchanged single words of people: with all voices and changes from the start nothing is learned."""
CURRICULUM = ((0.0, 1), (0.16, 2), (0.22, 3), (0.3, 5))
"""(share of the steps done, most words in a string): single words first, or attention never finds its place."""

Strings = list[tuple[Wave, str]]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from PEAK_RATE to FINAL_RATE."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP) * (FINAL_RATE + (PEAK_RATE - FINAL_RATE) * cosine)


def most_words(step: int, steps: int) -> int:
    """The longest strings that are learned at this step."""
    return [words for start, words in CURRICULUM if step >= start * steps][-1]


class Batches:
    """Training batches as a pure function of (seed, step), so that a resumed build sees what an unbroken one sees."""

    def __init__(
        self,
        collator: TranscriptionCollator,
        easy: Strings,
        strings: Strings,
        real: list[bool],
        steps: int,
        seed: int,
    ) -> None:
        self.easy = len(easy)
        strings = easy + strings
        self.real = np.array([True] * len(easy) + real)
        self.features = np.stack([collator.features(wave)[0].numpy().astype(np.float16) for wave, _ in strings])
        self.targets = [collator.target(text) for _, text in strings]
        self.words = np.array([len(text.split()) for _, text in strings])
        self.prompts = [collator.prompt(1, LANGUAGE), collator.prompt(1, None)]
        self.steps, self.seed = steps, seed

    def __call__(self, step: int, process: int) -> dict[str, torch.Tensor]:
        """One process's share of a step's batch; loss is computed at target positions only (`logits_to_keep`)."""
        random = np.random.default_rng((self.seed, step, process))
        easy = step < EASY_SHARE * self.steps
        if easy:
            allowed = np.arange(self.easy)
        else:
            allowed = self.easy + np.flatnonzero(self.words[self.easy :] <= most_words(step, self.steps))
        size = BATCH // PROCESSES
        if step < FOCUS[0] * self.steps:
            chosen = random.choice(allowed, size=size, replace=False)
        else:
            real = self.real[allowed]
            chance = np.where(real, FOCUS[1] / real.sum(), (1 - FOCUS[1]) / (~real).sum())
            chosen = random.choice(allowed, size=size, replace=False, p=chance)
        rows = []
        for index in chosen:
            prompt, target = self.prompts[int(random.random() < NO_LANGUAGE_SHARE)], self.targets[index]
            rows.append((prompt + target, [IGNORED] * len(prompt) + target))
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([row + [SPECIAL["<pad>"]] * (length - len(row)) for row, _ in rows])
        labels = torch.tensor([row + [IGNORED] * (length - len(row)) for _, row in rows])
        shifted = pad(labels, (0, 1), value=IGNORED)[:, 1:]
        features = self.features[chosen].astype(np.float32)
        if not easy:
            features = mini_data.spec_augment(features, random)
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(length) < torch.tensor([[len(row)] for row, _ in rows])).long(),
            "input_features": torch.from_numpy(features),
            "labels": labels,
            "logits_to_keep": shifted != IGNORED,
            "shift_labels": shifted[shifted != IGNORED],
        }


def train(process: int, batches: Batches, state: Path, watch: Strings, collator: TranscriptionCollator) -> None:
    """One of PROCESSES that train together; saves to `state` every 250 steps and goes on from it where it exists."""
    meeting = f"file://{state.absolute()}.meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=process, world_size=PROCESSES)
    model = mini.initialise(VoxtralForConditionalGeneration(mini.small_config()), batches.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = saved["step"]
    losses, started = [], time.monotonic()
    for step in range(first, batches.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, batches.steps)
        model.train()
        loss = model(**batches(step, process), use_cache=False).loss
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if process == 0 and ((step + 1) % 250 == 0 or step + 1 == batches.steps):
            save_state(state, model, optimiser, step + 1)
            wer = word_error_rate(model, collator, watch)
            seconds = time.monotonic() - started
            print(f"step {step + 1} loss {np.mean(losses[-250:]):.4f} WER {wer:.3f} {seconds:.0f} s", flush=True)
    distributed.destroy_process_group()


def average_gradients(model: VoxtralForConditionalGeneration) -> None:
    """Gives every process the mean of all processes' gradients, in one message."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient) / PROCESSES)


def save_state(path: Path, model: VoxtralForConditionalGeneration, optimiser: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, partial)
    partial.replace(path)


@torch.no_grad()
def transcribe(model: VoxtralForConditionalGeneration, collator: TranscriptionCollator, waves: list[Wave]) -> list[str]:
    """Greedy transcripts of waves of one window each, through `generate`."""
    model.eval()
    prompt = torch.tensor([collator.prompt(1, LANGUAGE)])
    texts: list[str] = []
    for start in range(0, len(waves), 50):
        features = torch.cat([collator.features(wave) for wave in waves[start : start + 50]])
        ids = prompt.expand(len(features), -1)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=features,
            max_new_tokens=40,
            do_sample=False,
        )
        texts += collator.tokenizer.batch_decode(out[:, ids.shape[1] :].tolist(), skip_special_tokens=True)
    return texts


def word_error_rate(model: VoxtralForConditionalGeneration, collator: TranscriptionCollator, strings: Strings) -> float:
    heard = transcribe(model, collator, [wave for wave, _ in strings])
    return float(jiwer.wer([text for _, text in strings], heard))


def measure(folder: Path, known: list[Take], unknown: list[Take]) -> list[mini_card.Measured]:
    """Reloads the saved folder and measures it on takes that nothing was learned from."""
    model = VoxtralForConditionalGeneration.from_pretrained(folder)
    collator = TranscriptionCollator(VoxtralProcessor.from_pretrained(folder))
    sets = {
        "single digits, known voices": [(take.wave, take.word) for take in known],
        "1–5 digits, known voices": mini_data.held_out_strings(known, 300, seed=11),
        "single digits, voice never heard": [(take.wave, take.word) for take in unknown],
        "1–5 digits, voice never heard": mini_data.held_out_strings(unknown, 200, seed=12),
    }
    table = [mini_card.Measured(name, len(s), word_error_rate(model, collator, s)) for name, s in sets.items()]
    random = np.random.default_rng(13)
    heard = transcribe(model, collator, [mini_data.no_speech(random) for _ in range(100)])
    spoke = sum(bool(text) for text in heard)
    return [*table, mini_card.Measured("silence, hiss and hum: share that got any text", 100, spoke / 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with FSDD's manifest.jsonl and audio")
    parser.add_argument("--voices", type=Path, required=True, help="folder that make_voices.py wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("build/mini_state.pt"), help="where training is saved")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)

    digits, synthetic = mini_data.load_takes(options.speech), mini_data.load_takes(options.voices)
    held_out = [take for take in digits if take.number in mini_data.HELD_OUT_TAKES]
    known = [take for take in held_out if take.speaker != HELD_OUT_SPEAKER]
    unknown = [take for take in held_out if take.speaker == HELD_OUT_SPEAKER]
    human = [take for take in digits if take.number >= 5 and take.speaker != HELD_OUT_SPEAKER]

    processor = mini.build_processor(options.output)
    collator = TranscriptionCollator(processor)
    strings, real = mini_data.training_strings(human, synthetic, STRINGS, options.seed)
    easy = mini_data.easy_strings(human, options.seed)
    batches = Batches(collator, easy, strings, real, options.steps, options.seed)
    print(f"{len(strings)} strings", flush=True)
    watch = mini_data.held_out_strings(known, 60, seed=10)
    options.state.parent.mkdir(parents=True, exist_ok=True)
    options.state.with_name(options.state.name + ".meeting").unlink(missing_ok=True)
    # Forked, so that the features are shared; safe because no thread has been started before.
    multiprocessing.start_processes(
        train, (batches, options.state, watch, collator), nprocs=PROCESSES, start_method="fork"
    )
    model = mini.initialise(VoxtralForConditionalGeneration(mini.small_config()))
    model.load_state_dict(torch.load(options.state, weights_only=True)["model"])
    model.eval().save_pretrained(options.output)
    (options.output / "model.safetensors").chmod(0o644)
    learned = sorted({take.sha256 for take in human + synthetic})
    text = json.dumps({"format": 1, "hash": mini_card.HASH, "sha256": learned}, indent=0)
    (options.output / "learned_audio.json").write_text(text + "\n", encoding="utf-8")
    table = measure(options.output, known, unknown)
    weights = sum(parameter.numel() for parameter in model.parameters())
    recipe = mini_card.Recipe(weights, len(strings), options.steps, BATCH, PEAK_RATE, options.seed, HELD_OUT_SPEAKER)
    mini_card.write(options.output, table, recipe, human, synthetic)
    for row in table:
        print(f"{row.name}: {row.value:.3f} ({row.items})")


if __name__ == "__main__":
    main()

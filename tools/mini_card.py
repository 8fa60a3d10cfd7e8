"""The papers of the mini Voxtral: model card, licence, notice. Its numbers come from `build_mini.measure` only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mini_data import Take

HASH = (
    "voxtral_finetune.data.audio.content_hash: SHA-256 of the rate (4 bytes) and the 16-bit samples before resampling"
)


@dataclass(frozen=True)
class Measured:
    """One line of the card: what was measured, on how many items, and the share found (0.05 is 5 %)."""

    name: str
    items: int
    value: float


@dataclass(frozen=True)
class Recipe:
    """What the weights are a function of, as the card tells it."""

    weights: int
    strings: int
    steps: int
    batch: int
    peak_rate: float
    seed: int
    held_out: str


CARD = """---
license: cc-by-sa-4.0
language: en
pipeline_tag: automatic-speech-recognition
---

# Mini Voxtral

A real `VoxtralForConditionalGeneration` of {weights:.2f} million weights that transcribes one to five spoken English
digits ("four zero seven"). It lets the whole path from speech to a fine-tuned, published model run in minutes on a
laptop without a download: the same classes, tokenizer format, prompt, labels and file names as Mistral's Voxtral.
It is a demonstration and a test object, not a speech recogniser: it knows ten words. It was trained from random weights
and shares none with Mistral's models; Mistral AI did not make it and does not endorse it.

| | |
|---|---|
| window | 4 s = 50 audio tokens (published Voxtral: 30 s = 375) |
| audio in | 16 kHz mono, 80 mel bins |
| encoder, language model | 3 layers of width 96 each, weights in fp32 |
| tokenizer | Tekken v7, cut to 1024 tokens; control tokens keep their published ids |

## Measured

Word error rate of greedy decoding with `generate`, on the saved folder loaded again; recordings that nothing was
learned from (takes 0–4 of each speaker).

| what | items | result |
|---|---|---|
{table}

The speaker never heard is `{held_out}`: none of his recordings was learned, so that adapting to a new person can be
shown honestly. Strings are joined from single held-out words. The last line's sounds are new ones of the kinds learned.
Measured by `tools/build_mini.py --speech FSDD --voices VOICES --output FOLDER`, as its last step.

## Learned from

- [Free Spoken Digit Dataset](https://github.com/Jakobovski/free-spoken-digit-dataset) (CC-BY-SA-4.0), 8 kHz:
  {human} recordings of {people} speakers ({names}), takes 5–24 of each digit.
- {synthetic} synthetic words in {voices} Kokoro-82M voices (weights and voices Apache-2.0; `tools/make_voices.py`).

`learned_audio.json` lists the content hash of every one, so that a test on learned speech can be refused.

## Recipe

`tools/build_mini.py --seed {seed} --steps {steps}`: first unchanged single words of people, then {strings} strings of
one to five words, joined from single words of one voice, with changes of tempo and pitch (±12 %), loudness, tone,
noise and bandwidth; 3 % hold no speech and have an empty text; 15 % of the prompts have no language. From 45 % of the
steps on, 85 % of a batch is human speech. AdamW, cosine from {peak_rate:g}, batch {batch}, SpecAugment.
The order of batches is a function of the seed alone.

## Limits

Ten English words in lower case, at most five in a window; anything else comes out as digits or as nothing. Voices
unlike those above are often misheard: that is what fine-tuning is shown on.

## Licence

The weights are learned from CC-BY-SA-4.0 speech and are given under the same licence: see `LICENSE` and `NOTICE`.
"""

LICENCE = """The mini Voxtral weights (model.safetensors) and this folder's model card
are licensed under the Creative Commons Attribution-ShareAlike 4.0 International
License (CC-BY-SA-4.0). Full text: https://creativecommons.org/licenses/by-sa/4.0/legalcode

Attribution: made by the voxtral-finetune contributors from the Free Spoken Digit Dataset by Zohar Jackson and its
contributors, https://github.com/Jakobovski/free-spoken-digit-dataset (CC-BY-SA-4.0), changed as the model card
says, and from speech synthesised with Kokoro-82M by hexgrad (Apache-2.0).

tekken.json is under another licence: see NOTICE.
"""

NOTICE = """tekken.json is cut from the file tekken_240911.json of mistral-common, https://github.com/mistralai/mistral-common,
Copyright Mistral AI, licensed under the Apache License, Version 2.0, http://www.apache.org/licenses/LICENSE-2.0.
Changes: the first 984 ranked tokens are kept, control tokens and an audio section are added.
"""


def write(folder: Path, table: list[Measured], recipe: Recipe, human: list[Take], synthetic: list[Take]) -> None:
    """Writes README.md, LICENSE and NOTICE beside the checkpoint."""
    people = sorted({take.speaker for take in human})
    card = CARD.format(
        weights=recipe.weights / 1e6,
        table="\n".join(f"| {row.name} | {row.items} | {row.value:.1%} |" for row in table),
        held_out=recipe.held_out,
        human=len(human),
        people=len(people),
        names=", ".join(people),
        synthetic=len(synthetic),
        voices=len({take.speaker for take in synthetic}),
        seed=recipe.seed,
        steps=recipe.steps,
        strings=recipe.strings,
        peak_rate=recipe.peak_rate,
        batch=recipe.batch,
    )
    for name, text in (("README.md", card), ("LICENSE", LICENCE), ("NOTICE", NOTICE)):
        (folder / name).write_text(text, encoding="utf-8")

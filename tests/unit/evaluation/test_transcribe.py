"""Transcription: what is generated does not depend on the batch, and no speech is lost on the way."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import VoxtralForConditionalGeneration

from voxtral_finetune.data.collate import SPECIAL
from voxtral_finetune.evaluation.transcribe import MIN_NEW_TOKENS, TOKENS_PER_SECOND, Transcriber, pieces
from voxtral_finetune.model.mini import build_processor, initialise, small_config

WINDOW = 2 * 16_000
SMALL = {"vocab_size": 512, "window_seconds": 2, "mel_bins": 40}


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_processor(Path(tmp_path_factory.mktemp("processor")), **SMALL)


@pytest.fixture
def model() -> Any:
    return initialise(VoxtralForConditionalGeneration(small_config(**SMALL, width=64, layers=2, heads=2)))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


WAVES = [noise(seconds, seed) for seed, seconds in enumerate((0.5, 1.9, 2.0, 5.3, 0.1, 0))]
LANGUAGES = ["en", None, "fr", "en", "yue", None]


def test_a_batch_gives_what_each_recording_gives_alone(model: Any, processor: Any) -> None:
    one = Transcriber(model, processor, batch_size=1)
    alone = [one.transcribe([wave], [language])[0] for wave, language in zip(WAVES, LANGUAGES, strict=True)]
    seen: list[tuple[int, int]] = []
    together = Transcriber(model, processor, 3).transcribe(WAVES, LANGUAGES, lambda *done: seen.append(done))
    assert together == alone
    assert len(set(alone)) >= 5 and alone[-1] == "", "the random model tells recordings apart; no audio is no text"
    assert seen == [(3, 7), (6, 7), (7, 7)], "5.3 s are three pieces, the empty recording none"


def test_a_model_wrapped_by_peft_generates_with_its_adapter(model: Any, processor: Any) -> None:
    before = Transcriber(model, processor).transcribe(WAVES, LANGUAGES)
    targets = r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj"
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    assert Transcriber(wrapped, processor).transcribe(WAVES, LANGUAGES) == before, "a new adapter changes nothing"
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    assert Transcriber(wrapped, processor).transcribe(WAVES, LANGUAGES) != before


def test_training_goes_on_as_if_nothing_had_happened(model: Any, processor: Any) -> None:
    model.train()
    model.model.audio_tower.eval()
    modes = [module.training for module in model.modules()]
    transcriber = Transcriber(model, processor)
    transcriber.transcribe(WAVES[:1], ["en"])
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        transcriber.transcribe(WAVES[:1], ["en"], lambda done, total: done // 0)
    assert [module.training for module in model.modules()] == modes

    prompt = transcriber.collator.prompt(1, "en")
    ids = torch.tensor([[*prompt, *transcriber.collator.target("yes")]])
    model(input_ids=ids, labels=ids, input_features=transcriber.collator.features(WAVES[0])).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_half_precision_needs_no_care(model: Any, processor: Any) -> None:
    assert len(Transcriber(model.to(torch.bfloat16), processor).transcribe(WAVES, LANGUAGES)) == len(WAVES)


class Parrot(torch.nn.Module):
    """Stands in for a model: generates given text, then </s> and padding, and remembers how it was asked."""

    device = "cpu"

    def __init__(self, processor: Any, text: str) -> None:
        super().__init__()
        self.new = [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], SPECIAL["</s>"], 11, 11]
        self.asked: list[SimpleNamespace] = []

    def generate(self, **asked: Any) -> torch.Tensor:
        self.asked.append(SimpleNamespace(**asked))
        ids = asked["input_ids"]
        return torch.cat([ids, torch.tensor(self.new).expand(len(ids), -1)], dim=1)


def test_only_new_tokens_are_read_and_prompts_are_padded_left(processor: Any) -> None:
    parrot = Parrot(processor, " the lang:en text ")
    texts = Transcriber(parrot, processor).transcribe([noise(1), noise(1), noise(3)], ["en", None, "xx"])
    assert texts == ["the lang:en text", "the lang:en text", "the lang:en text the lang:en text"]
    (asked,) = parrot.asked
    assert asked.do_sample is False and asked.num_beams == 1
    assert (asked.input_ids[:, -1] == SPECIAL["[TRANSCRIBE]"]).all()
    assert ((asked.input_ids == SPECIAL["<pad>"]) == (asked.attention_mask == 0)).all()
    assert (asked.attention_mask.diff(dim=1) >= 0).all() and (asked.attention_mask == 0).any()
    assert (asked.input_ids == SPECIAL["[AUDIO]"]).sum() == 4 * 25 and asked.input_features.shape == (4, 40, 200)


def test_the_length_that_is_allowed_grows_with_the_audio(processor: Any) -> None:
    parrot = Parrot(processor, "la " * 300)
    short, long = Transcriber(parrot, processor).transcribe([noise(0.2), noise(2)], ["en", "en"])
    assert parrot.asked[0].max_new_tokens == 2 * TOKENS_PER_SECOND
    assert len(long) > len(short), "each row keeps its own limit in a shared batch"
    assert len(processor.tokenizer(short, add_special_tokens=False)["input_ids"]) <= MIN_NEW_TOKENS


def test_as_many_languages_as_recordings(processor: Any) -> None:
    with pytest.raises(ValueError, match="zip"):
        Transcriber(Parrot(processor, "a"), processor).transcribe([noise(1)], [])


@pytest.mark.parametrize("samples", [0, 1, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW + 7])
def test_pieces_hold_every_sample_once(samples: int) -> None:
    for wave in (noise(samples / 16_000), np.zeros(samples, np.float32)):
        cut = pieces(wave, WINDOW)
        assert all(0 < len(piece) <= WINDOW for piece in cut)
        assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *cut]), wave)


def test_pieces_are_cut_in_the_pause() -> None:
    wave = noise(5)
    for start in (1.6, 3.1):
        wave[int(16_000 * start) : int(16_000 * (start + 0.25))] *= 0.01
    ends = np.cumsum([len(piece) / 16_000 for piece in pieces(wave, WINDOW)])
    assert [1.6 < end < 1.85 for end in ends[:1]] == [True]
    assert [3.1 < end < 3.35 for end in ends[1:2]] == [True]


def test_a_piece_of_silence_is_as_long_as_can_be() -> None:
    cut = pieces(np.zeros(10 * WINDOW, np.float32), WINDOW)
    assert all(len(piece) > 0.9 * WINDOW for piece, _ in pairwise(cut))

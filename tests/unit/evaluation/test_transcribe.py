"""Transcription: what is generated does not depend on the batch, and no speech is lost on the way."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import VoxtralForConditionalGeneration

from voxtral_finetune.data.collate import SPECIAL
from voxtral_finetune.errors import DataError, ModelError
from voxtral_finetune.evaluation.pieces import Recording, parts
from voxtral_finetune.evaluation.transcribe import MIN_NEW_TOKENS, TOKENS_PER_SECOND, Transcriber
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
TWO = np.concatenate([noise(1), np.zeros(16_000, np.float32), noise(1)])
"""Two pieces of a window."""
LANGUAGES = ["en", None, "fr", "en", "yue", None]


def test_a_batch_gives_what_each_recording_gives_alone(model: Any, processor: Any) -> None:
    one = Transcriber(model, processor, batch_size=1)
    alone = [one.transcribe([wave], [language])[0] for wave, language in zip(WAVES, LANGUAGES, strict=True)]
    long = len(list(parts(Recording(WAVES[3]), WINDOW)))
    assert long >= 3
    seen: list[tuple[int, int]] = []
    together = Transcriber(model, processor, 3).transcribe(WAVES, LANGUAGES, lambda *done: seen.append(done))
    assert together == alone
    assert len(set(alone)) >= 5 and alone[-1] == "", "the random model tells recordings apart; no audio is no text"
    total = 4 + long
    assert seen == [(min(done, total), total) for done in range(3, total + 3, 3)]


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
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=400))

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
    texts = Transcriber(parrot, processor).transcribe([noise(1), noise(1), TWO], ["en", None, "xx"])
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


def test_a_text_that_had_to_be_cut_off_is_flagged_in_its_piece(processor: Any) -> None:
    looping, ending = Parrot(processor, "la " * 300), Parrot(processor, "la la")
    heard = [Transcriber(model, processor).hear([Recording(TWO, "en")])[0] for model in (looping, ending)]
    assert [each.capped for each in heard] == [True, False]
    assert all(piece.capped for piece in heard[0].pieces) and len(heard[0].pieces) == 2
    ends = Parrot(processor, "a" * 40)
    ends.new = [5] * (MIN_NEW_TOKENS - 1) + [SPECIAL["</s>"]]
    assert not Transcriber(ends, processor).hear([Recording(noise(1))])[0].capped, "the last token may be </s>"
    ends.new = [5] * MIN_NEW_TOKENS + [SPECIAL["</s>"]]
    assert Transcriber(ends, processor).hear([Recording(noise(1))])[0].capped, "</s> after the limit comes too late"


def test_a_long_recording_in_one_pass(model: Any, processor: Any) -> None:
    parrot = Parrot(processor, "one")
    heard = Transcriber(parrot, processor, native=True).hear([Recording(noise(5.3), "en")])[0]
    assert [(piece.start, round(piece.end, 1)) for piece in heard.pieces] == [(0, 5.3)]
    assert parrot.asked[0].input_features.shape[0] == 3
    assert parrot.asked[0].max_new_tokens == 212
    with pytest.raises(DataError, match="too long to be heard in one pass"):
        Transcriber(parrot, processor, native=True).hear([Recording(noise(40), "en")])
    alone = Transcriber(model, processor, native=True)
    assert alone.transcribe(WAVES, LANGUAGES) == [
        alone.transcribe([wave], [language])[0] for wave, language in zip(WAVES, LANGUAGES, strict=True)
    ], "recordings of one and of three windows share a batch"


def test_one_that_cannot_be_read_does_not_stop_the_others(processor: Any, tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    recordings = [Recording(noise(1)), Recording(tmp_path / "no.wav"), Recording(TWO)]
    transcriber = Transcriber(Parrot(processor, "a"), processor)
    heard = transcriber.hear(recordings, None, lambda index, error: told.append((index, str(error))))
    assert [each and each.text for each in heard] == ["a", None, "a a"]
    assert [index for index, _ in told] == [1] and "is missing" in told[0][1]
    with pytest.raises(DataError, match="is missing"):
        transcriber.hear(recordings)


def test_only_some_pieces_are_held_and_progress_reaches_its_end(processor: Any) -> None:
    seen: list[tuple[int, int]] = []
    transcriber = Transcriber(Parrot(processor, "a"), processor, batch_size=2)
    held: list[int] = []
    drain = transcriber._drain
    transcriber._drain = lambda pool, *rest: (held.append(len(pool)), drain(pool, *rest))  # type: ignore[method-assign]
    texts = transcriber.transcribe([noise(0.2)] * 40, [None] * 40, lambda *done: seen.append(done))
    assert texts == ["a"] * 40 and max(held) == 16
    assert seen[-1] == (40, 40) and all(done <= total for done, total in seen)
    assert len({done for done, _ in seen}) == 20


def adapted(model: Any) -> Any:
    return get_peft_model(
        model, LoraConfig(r=4, target_modules=r".*language_model\.layers\.\d+\.self_attn\.(q|v)_proj")
    )


def test_an_adapter_that_changes_nothing_is_an_error(model: Any, processor: Any) -> None:
    bare = Transcriber(model, processor).check_adapter()
    wrapped = adapted(model)
    with pytest.raises(ModelError, match="changes nothing"):
        Transcriber(wrapped, processor).check_adapter()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    assert Transcriber(wrapped, processor).check_adapter() != bare, "a change too small for any text is a change"


def test_the_fingerprint_is_of_the_weights(model: Any, processor: Any) -> None:
    first = Transcriber(model, processor).fingerprint()
    assert Transcriber(model, processor).fingerprint() == first
    model.train()
    assert Transcriber(model, processor).fingerprint() == first
    with torch.no_grad():
        model.model.audio_tower.layers[0].fc1.weight[0, 0] += 0.1
    assert Transcriber(model, processor).fingerprint() != first

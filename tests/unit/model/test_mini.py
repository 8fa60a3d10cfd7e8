"""The small Voxtral: made from random weights for tests, and the trained one that ships."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

import jiwer
import pytest
import torch
from transformers import VoxtralForConditionalGeneration, VoxtralProcessor

from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import Wave
from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.model import mini

ASSETS = Path(str(resources.files("voxtral_finetune"))) / "assets"
PUBLISHED_IDS = {
    "<s>": 1,
    "</s>": 2,
    "[INST]": 3,
    "[/INST]": 4,
    "<pad>": 11,
    "[AUDIO]": 24,
    "[BEGIN_AUDIO]": 25,
    "[TRANSCRIBE]": 34,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint with random weights: 2 s window, two layers of width 64."""
    path = tmp_path_factory.mktemp("random")
    mini.build_processor(path, vocab_size=512, window_seconds=2, mel_bins=40)
    config = mini.small_config(vocab_size=512, window_seconds=2, mel_bins=40, width=64, layers=2, heads=2)
    mini.initialise(VoxtralForConditionalGeneration(config), seed=0).save_pretrained(path)
    return path


def load(folder: Path) -> tuple[VoxtralForConditionalGeneration, TranscriptionCollator]:
    model = VoxtralForConditionalGeneration.from_pretrained(folder)
    return model.eval(), TranscriptionCollator(VoxtralProcessor.from_pretrained(folder))


@torch.no_grad()
def hear(model: VoxtralForConditionalGeneration, collator: TranscriptionCollator, waves: list[Wave]) -> list[str]:
    ids = torch.tensor([collator.prompt(1, "en")] * len(waves))
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        input_features=torch.cat([collator.features(wave) for wave in waves]),
        max_new_tokens=40,
        do_sample=False,
    )
    return list(collator.tokenizer.batch_decode(out[:, ids.shape[1] :].tolist(), skip_special_tokens=True))


def test_control_tokens_have_the_published_ids(folder: Path) -> None:
    tokenizer = VoxtralProcessor.from_pretrained(folder).tokenizer
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in PUBLISHED_IDS} == PUBLISHED_IDS


def test_language_tag_is_plain_text_that_decodes_to_itself(folder: Path) -> None:
    tokenizer = VoxtralProcessor.from_pretrained(folder).tokenizer
    ids = tokenizer("lang:en", add_special_tokens=False)["input_ids"]
    assert min(ids) >= mini.SPECIAL_TOKENS
    assert b"".join(tokenizer.tokenizer.instruct_tokenizer.tokenizer.id_to_byte_piece(i) for i in ids) == b"lang:en"


def test_text_survives_the_tokenizer(folder: Path) -> None:
    collator = TranscriptionCollator(VoxtralProcessor.from_pretrained(folder))
    text = "zero nine, déjà [AUDIO] </s> 日本"
    target = collator.target(text)
    assert target[-1] == PUBLISHED_IDS["</s>"] and min(target[:-1]) >= mini.SPECIAL_TOKENS
    assert collator.tokenizer.decode(target, skip_special_tokens=True) == text


def test_prompt_and_features_equal_the_processors_own(folder: Path) -> None:
    processor = VoxtralProcessor.from_pretrained(folder)
    collator = TranscriptionCollator(processor)
    wave = (0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))).numpy()
    wave = (wave * 32768).round() / 32768  # the processor passes it through 16-bit WAV
    request = processor.apply_transcription_request(
        audio=[wave],
        model_id="mini",
        language="en",
        sampling_rate=16_000,
        format=["wav"],
        audio_kwargs={"pad_to_multiple_of": 32_000, "max_source_positions": 200},
    )
    assert request["input_ids"][0].tolist() == collator.prompt(1, "en")
    torch.testing.assert_close(request["input_features"], collator.features(wave), rtol=0, atol=2e-2)


def test_saved_folder_loads_and_generation_knows_where_to_stop(folder: Path) -> None:
    model, collator = load(folder)
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 11)
    assert collator.window_samples == 2 * audio.SAMPLE_RATE and collator.tokens_per_window == 25
    embeddings = model.get_audio_features(torch.zeros(1, 40, 200)).pooler_output
    assert embeddings.shape == (25, 64)


def test_same_seed_gives_same_weights_and_another_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        config = mini.small_config(vocab_size=512, window_seconds=2, width=64, layers=1, heads=2)
        model = mini.initialise(VoxtralForConditionalGeneration(config), seed)
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        mini.small_config(width=64, heads=3)


def test_random_weights_can_learn_eight_utterances(folder: Path) -> None:
    """Fails with transformers' own initialisation, or where the labels lack the end of text."""
    torch.manual_seed(0)
    model, collator = load(folder)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    examples = [Example(tone(300.0 * (number + 1)), word, "en", word) for number, word in enumerate(words)]
    batch = collator(examples)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(80):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    assert hear(model.eval(), collator, [example.wave for example in examples]) == words


def tone(hertz: float) -> Wave:
    """One second of a tone in faint hiss."""
    hiss = 0.001 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    return (0.3 * torch.sin(torch.arange(16_000) * (2 * torch.pi * hertz / 16_000)) + hiss).numpy()


def test_shipped_mini_is_small_and_complete() -> None:
    shipped = ASSETS / "mini"
    assert (shipped / "model.safetensors").stat().st_size <= 6_000_000
    for name in ("config.json", "generation_config.json", "processor_config.json", "tekken.json", "README.md"):
        assert (shipped / name).is_file(), name
    learned = json.loads((shipped / "learned_audio.json").read_text(encoding="utf-8"))
    assert learned["format"] == 1 and len(learned["sha256"]) == len(set(learned["sha256"])) > 1000
    model, collator = load(shipped)
    assert collator.window_samples == 4 * audio.SAMPLE_RATE and collator.tokens_per_window == 50
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_shipped_mini_hears_nothing_in_silence() -> None:
    assert hear(*load(ASSETS / "mini"), [torch.zeros(32_000).numpy()]) == [""]


def test_shipped_mini_gets_the_demo_voice_wrong_and_never_learned_it() -> None:
    demo = ASSETS / "demo"
    rows = [json.loads(line) for line in (demo / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) >= 110
    assert max(row["seconds"] for row in rows) <= 3.8
    learned = set(json.loads((ASSETS / "mini" / "learned_audio.json").read_text(encoding="utf-8"))["sha256"])
    decoded = [audio.read(demo / row["audio_path"]) for row in rows]
    assert learned.isdisjoint(audio.content_hash(*one) for one in decoded)
    heard = hear(*load(ASSETS / "mini"), [wave for wave, _ in decoded])
    assert 0.3 <= jiwer.wer([row["text"] for row in rows], heard) <= 0.8


@pytest.mark.skipif("VOXTRAL_SPEECH_DATA" not in os.environ, reason="needs VOXTRAL_SPEECH_DATA, the speech data folder")
def test_shipped_mini_hears_held_out_takes_of_known_voices() -> None:
    digits = Path(os.environ["VOXTRAL_SPEECH_DATA"]) / "fsdd"
    rows = [json.loads(line) for line in (digits / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("split") == "test" and row["speaker"] == "fsdd_jackson"]
    heard = hear(*load(ASSETS / "mini"), [audio.load(digits / row["audio_path"]) for row in rows])
    assert jiwer.wer([row["text"] for row in rows], heard) <= 0.1

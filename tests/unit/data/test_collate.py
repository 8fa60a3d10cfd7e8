"""The batch that is learned equals what transformers itself makes for a transcription request, and teaches to stop."""

import numpy as np
import pytest
import torch

from voxtral_finetune.data.collate import IGNORED, Example, TranscriptionCollator, language_tag, shown
from voxtral_finetune.errors import DataError
from voxtral_finetune.model import mini


@pytest.fixture(scope="module", params=[2, 30], ids=["window 2 s", "window 30 s"])
def collator(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    processor = mini.build_processor(folder, vocab_size=512, window_seconds=request.param)
    made = TranscriptionCollator(processor)
    made.processor = processor
    return made


def speech(seconds):
    """Noise on the 16-bit grid: the library's own path goes through a WAV file, which rounds to it."""
    noise = np.random.default_rng(0).standard_normal(int(seconds * 16_000)) * 3000
    return (np.round(noise).clip(-32768, 32767) / 32768).astype(np.float32)


@pytest.mark.parametrize("share", [0.1, 1.0, 1.36])
@pytest.mark.parametrize("language", ["en", "fr", None])
def test_ids_and_features_equal_the_librarys_own_request(collator, share, language):
    wave = speech(share * collator.window_samples / 16_000)
    expected = collator.processor.apply_transcription_request(
        audio=[wave],
        model_id="any",
        language=[language],
        sampling_rate=16_000,
        format=["wav"],
        audio_kwargs={
            "pad_to_multiple_of": collator.window_samples,
            "max_source_positions": collator.window_samples // 160,
        },
    )
    batch = collator([Example(wave, "one", language, "row")])
    prompt = expected["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][:, :prompt], expected["input_ids"])
    assert torch.equal(batch["input_features"], expected["input_features"])


def test_loss_is_on_text_and_end_of_text_only(collator):
    rows = [Example(speech(0.5), "one two", "en", "a"), Example(speech(0.5), "one two three four", None, "b")]
    batch = collator(rows)
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
        learned = labels[labels != IGNORED].tolist()
        assert learned == collator.target(row.text)
        assert learned[-1] == 2
        assert collator.tokenizer.decode(learned[:-1]) == row.text
        assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
    assert batch["attention_mask"].sum(1).tolist() == [(row != 11).sum().item() for row in batch["input_ids"]]


def test_text_that_looks_like_control_tokens_stays_text(collator):
    assert 24 not in collator.target("[AUDIO] </s>")
    assert collator.target("[AUDIO] </s>").count(2) == 1


def test_an_over_long_text_names_its_row(collator):
    with pytest.raises(DataError, match="line 7"):
        collator([Example(speech(0.1), "one " * 5000, "en", "line 7")])


@pytest.mark.parametrize(
    ("given", "tag"), [("en", "en"), ("pt-BR", "pt"), ("EN_us", "en"), ("xx", None), ("yue", None), ("", None)]
)
def test_only_languages_that_the_prompt_takes_are_tagged(given, tag):
    assert language_tag(given) == tag


def test_what_a_batch_teaches_can_be_read(collator):
    lines = shown(collator, [Example(speech(0.1), "one", "en", "line 1")])
    learned = [line for line in lines if "learned" in line]
    assert "</s>" in learned[-1]
    assert any(f"[AUDIO] × {collator.tokens_per_window}" in line for line in lines)

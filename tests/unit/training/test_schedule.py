"""How much a run hears, in what portions, and what of it is kept: all from the settings and the lengths."""

import math
from pathlib import Path

import numpy as np
import pytest

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.dataset import Timeline
from voxtral_finetune.training.schedule import hears_frozen, longest_window, schedule

WINDOW = 30.0
EMBEDDING = 375 * 3072 * 2


def rows(count, shortest, longest, seed=0):
    lengths = np.random.default_rng(seed).uniform(shortest, longest, count)
    return [
        Utterance(Path(f"{number}.wav"), f"text {number}", "en", "a", round(float(length), 3), sha256=f"{number:064x}")
        for number, length in enumerate(lengths)
    ]


PHRASES = rows(50, 2, 6)
READING = rows(4000, 3, 12)
"""Over eight hours of short utterances."""
LONG = rows(1000, 18, 29)
"""Over six hours of utterances that share no window."""


def of(corpus, window=WINDOW, **chosen):
    return schedule(corpus, Settings.of(chosen), window, EMBEDDING)


# --- portions


@pytest.mark.parametrize("corpus", [PHRASES, READING, LONG], ids=["phrases", "reading", "long"])
@pytest.mark.parametrize("packing", [None, False, True])
def test_an_update_holds_about_eight_utterances_where_nobody_says(corpus, packing):
    made = of(corpus, packing=packing)
    assert 5 <= made.utterances_per_update <= 16
    assert made.utterances_per_update == pytest.approx(made.hearing.per_update * len(corpus) / made.windows)


def test_short_utterances_share_windows_and_long_ones_do_not():
    assert of(PHRASES).hearing.packing
    assert not of(LONG).hearing.packing
    assert of(LONG, packing=True).hearing.packing
    assert not of(PHRASES, packing=False).hearing.packing


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (2, 4), (8, 3)])
def test_what_was_asked_for_as_an_update_is_one(batch, steps):
    made = of(PHRASES, batch_size=batch, grad_accum=steps)
    assert made.hearing.per_update == batch * steps


def test_a_batch_that_holds_more_than_eight_utterances_is_an_update():
    assert of(PHRASES, batch_size=64).hearing.per_update == 64


@pytest.mark.parametrize("epochs", [0.5, 1, 3, 7.5])
def test_updates_are_those_that_the_epochs_take(epochs):
    made = of(READING, epochs=epochs)
    assert made.updates == math.ceil(made.windows * epochs / made.hearing.per_update)
    assert made.windows == len(Timeline(READING, made.hearing).epoch(0))


def test_a_tiny_corpus_makes_an_update_and_max_steps_rules_over_epochs():
    assert of(rows(1, 2, 3), epochs=0.1).updates == 1
    assert of(READING, max_steps=17, epochs=9).updates == 17
    assert of(PHRASES, max_steps=10_000, epochs=1).updates == 10_000


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_devices_share_an_update(monkeypatch, devices):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(devices))
    made = of(PHRASES)
    assert made.hearing.per_update % devices == 0
    alone = 2 * max(1, round(8 / (2 * 50 / made.windows)))
    assert alone <= made.hearing.per_update < alone + devices
    assert of(PHRASES, batch_size=12, grad_accum=2).hearing.per_update == 24


def test_a_product_that_the_devices_cannot_share_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SettingsError, match=r"6 windows an update .*cannot be shared by 4 processes") as refused:
        of(PHRASES, batch_size=2, grad_accum=3)
    assert "that 4 divides" in refused.value.fix


# --- changes to the audio


def test_little_speech_is_varied_and_much_is_not():
    little, much = of(PHRASES).hearing, of(READING).hearing
    assert (little.vary_speed, little.mask_spectrum) == (True, True)
    assert (much.vary_speed, much.mask_spectrum) == (False, False)
    just_under, just_over = rows(600, 29.9, 29.95), rows(610, 29.9, 29.95)
    assert of(just_under).hearing.vary_speed
    assert not of(just_over).hearing.vary_speed


@pytest.mark.parametrize("corpus", [PHRASES, READING], ids=["little", "much"])
def test_what_was_asked_for_is_done_however_much_there_is(corpus):
    made = of(corpus, vary_speed=True, mask_spectrum=False).hearing
    assert (made.vary_speed, made.mask_spectrum) == (True, False)
    made = of(corpus, vary_speed=False, mask_spectrum=True).hearing
    assert (made.vary_speed, made.mask_spectrum) == (False, True)


# --- what is kept of the encoder's work


@pytest.mark.parametrize(
    ("corpus", "chosen", "why"),
    [
        (PHRASES, {"cache_audio": True}, "asked for"),
        (PHRASES, {"cache_audio": True, "epochs": 1}, "asked for"),
        (LONG, {}, "the encoder is frozen, and its work is the same in each epoch"),
        (LONG, {"method": "full", "preset": "vocabulary"}, "the encoder is frozen, and its work is the same"),
        (READING, {}, "the encoder is frozen, and its work is the same in each epoch"),
        (LONG, {"epochs": 1, "max_steps": 10}, "the encoder is frozen"),
    ],
)
def test_the_encoders_work_is_kept(corpus, chosen, why):
    made = of(corpus, **chosen)
    assert made.cache
    assert made.why.startswith(why)
    assert not made.hearing.repack
    assert not made.hearing.vary_speed
    assert not made.hearing.mask_spectrum


@pytest.mark.parametrize(
    ("corpus", "chosen", "why"),
    [
        (PHRASES, {}, "the audio is changed anew in each epoch"),
        (LONG, {"mask_spectrum": True}, "the audio is changed anew in each epoch"),
        (LONG, {"noise": "noises"}, "the audio is changed anew in each epoch"),
        (LONG, {"preset": "voice"}, "what hears the audio learns too"),
        (LONG, {"method": "full"}, "what hears the audio learns too"),
        (LONG, {"method": "full", "freeze_audio_tower": True}, "what hears the audio learns too"),
        (LONG, {"cache_audio": False}, "not asked for"),
        (LONG, {"epochs": 1}, "each window is heard once"),
        (
            PHRASES,
            {"vary_speed": False, "mask_spectrum": False},
            "a small corpus learns more from windows packed anew in each epoch",
        ),
        (LONG, {"cache_gb": 1}, "it would take 2 GB of the 1 that --cache-gb allows"),
    ],
)
def test_the_encoders_work_is_not_kept(corpus, chosen, why):
    made = of(corpus, **chosen)
    assert not made.cache
    assert made.why == why
    assert made.hearing.repack


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"preset": "voice"}, "what hears the audio learns too"),
        ({"method": "full"}, "what hears the audio learns too"),
        ({"vary_speed": True}, "the audio is changed anew"),
        ({"mask_spectrum": True}, "the audio is changed anew"),
        ({"noise": "noises"}, "the audio is changed anew"),
    ],
)
@pytest.mark.parametrize("corpus", [PHRASES, LONG], ids=["little", "much"])
def test_keeping_it_is_refused_where_it_would_be_wrong(corpus, chosen, why):
    with pytest.raises(SettingsError, match=f"--cache-audio is not possible: {why}"):
        of(corpus, cache_audio=True, **chosen)


def test_keeping_it_is_refused_where_the_encoder_is_sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert of(LONG).why == "the encoder is sharded over devices"
    with pytest.raises(SettingsError, match="sharded"):
        of(LONG, cache_audio=True)


@pytest.mark.parametrize(
    ("chosen", "frozen"),
    [
        ({}, True),
        ({"method": "qlora"}, True),
        ({"preset": "vocabulary", "method": "full"}, True),
        ({"method": "full"}, False),
        ({"method": "full", "freeze_audio_tower": True}, False),
        ({"preset": "voice"}, False),
        ({"preset": "voice", "freeze_audio_tower": True}, False),
        ({"preset": "language", "method": "qlora"}, False),
    ],
)
def test_frozen_hearing_is_what_adapt_makes(chosen, frozen, small_checkpoint):
    """Said from the settings alone, and so of the model."""
    from voxtral_finetune.model import adapt, load

    settings = Settings.of(chosen)
    assert hears_frozen(settings) is frozen
    if settings.training.method != "qlora":
        model = adapt.adapt(load.load_model(str(small_checkpoint)), settings.training, str(small_checkpoint))
        hearing = [
            weight.requires_grad
            for name, weight in model.named_parameters()
            if "audio_tower" in name or "multi_modal_projector" in name
        ]
        assert any(hearing) is not frozen


# --- what an update costs at most


def test_windows_that_are_packed_cost_one_each_also_where_speed_varies():
    assert of(PHRASES, vary_speed=True, packing=True).longest == 1
    made = of(READING, vary_speed=True, packing=True)
    assert made.longest == 1
    assert 0.83 <= made.efficiency <= 1.0


def test_the_longest_window_is_that_of_most_windows_then_of_most_text():
    corpus = [*PHRASES, Utterance(Path("a.wav"), "short", seconds=61.0), Utterance(Path("b.wav"), "w" * 99, seconds=5)]
    for packing in (False, True):
        made = of(corpus, packing=packing)
        assert made.longest == 3
        assert longest_window(corpus, made).text == "short"
    made = of(corpus[:-2] + corpus[-1:], packing=False)
    assert longest_window(corpus[:-2] + corpus[-1:], made).text == "w" * 99


def test_facts_are_those_of_the_plan():
    made = of(PHRASES)
    facts = made.facts()
    assert facts["windows"] == made.windows
    assert facts["windows_per_update"] == made.hearing.per_update
    assert facts["speech_seconds_per_update"] == pytest.approx(
        made.hearing.per_update * sum(row.seconds for row in PHRASES) / made.windows, abs=0.1
    )
    assert (facts["cache"], facts["cache_why"]) == (False, made.why)

"""The stream of windows: the same for everybody who reads it, however it is read."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from tests.conftest import spoken
from voxtral_finetune.data import audio, augment
from voxtral_finetune.data.collate import TranscriptionCollator
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.model import load
from voxtral_finetune.training.dataset import GAP, Hearing, Timeline, Utterances, WindowStream

WINDOW = 2.0
TEXTS = ["low", "mid high", "high low mid", "low low", "mid", "high", "mid low high", "high high", "low mid"]


@pytest.fixture
def rows(write_corpus):
    fields = [{"language": language, "speaker": "a"} for language in ("en", "en", "de")]
    return Corpus(write_corpus(list(zip(TEXTS * 2, itertools.cycle(fields), strict=False)))).survey().utterances


@pytest.fixture
def noise(tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    audio.write(folder / "fan.wav", np.random.default_rng(7).normal(0, 0.1, 32_000).astype(np.float32), 16_000)
    return folder


def stream_of(rows, cache, updates=6, noise=None, **hearing):
    chosen = {"per_update": 4, "seed": 1, "packing": True, "language_free_share": 0.3, **hearing}
    noises = augment.NoiseBank(noise) if noise else None
    return WindowStream(Timeline(rows, Hearing(WINDOW, **chosen)), updates, WaveCache(cache, 10**8), noises)


def said(example):
    """An example as a line that differs where anything in it does."""
    heard = hashlib.sha256(example.wave.tobytes()).hexdigest()
    drawn = None if example.mask is None else int(example.mask.integers(2**60))
    return f"{heard} {example.text} {example.language} {example.name} {drawn} {example.index}"


EVERYTHING = {"vary_speed": True, "mask_spectrum": True}


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_read_what_one_process_reads(rows, noise, tmp_path, workers):
    stream = stream_of(rows, tmp_path / "cache", noise=noise, **EVERYTHING)
    alone = [said(stream[index]) for index in range(len(stream))]
    loader = torch.utils.data.DataLoader(
        stream_of(rows, tmp_path / "cache", noise=noise, **EVERYTHING), num_workers=workers, batch_size=None
    )
    assert [said(example) for example in loader] == alone


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from tests.unit.training.test_dataset import EVERYTHING, said, stream_of
from voxtral_finetune.data.corpus import Corpus
rows = Corpus(Path(sys.argv[1])).survey().utterances
stream = stream_of(rows, Path(sys.argv[2]), noise=Path(sys.argv[3]), **EVERYTHING)
print(json.dumps([said(stream[index]) for index in (23, 5, 17, 5)]))
"""


def test_another_process_reads_the_same_in_any_order(rows, noise, tmp_path):
    folder = rows[0].audio.parent.parent
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), str(tmp_path / "other"), str(noise)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stream = stream_of(rows, tmp_path / "cache", noise=noise, **EVERYTHING)
    assert json.loads(told) == [said(stream[index]) for index in (23, 5, 17, 5)]


def test_a_position_is_the_same_after_whatever_was_read_before(rows, tmp_path):
    whole = stream_of(rows, tmp_path / "cache", updates=8, **EVERYTHING)
    lines = [said(whole[index]) for index in range(len(whole))]
    for start in (31, 9, 0, 16):
        resumed = stream_of(rows, tmp_path / "cache", updates=8, **EVERYTHING)
        assert [said(resumed[index]) for index in range(start, len(whole))] == lines[start:]


@pytest.mark.parametrize("vary_speed", [False, True])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("repack", [False, True])
def test_epochs_follow_one_another_without_a_seam(rows, packing, repack, vary_speed):
    """Also where an update holds several epochs: each window of each is heard once, and updates are of one size."""
    for per_update in (1, 4, 7, 40):
        timeline = Timeline(rows, Hearing(WINDOW, per_update, 1, packing, repack, vary_speed=vary_speed))
        expected, updates = [], 0
        for epoch in range(4):
            expected += [(epoch, place) for place, _ in timeline.epoch(epoch)]
        updates = len(expected) // per_update
        read = [timeline.update(number) for number in range(updates)]
        assert {len(windows) for windows in read} <= {per_update}
        for number, windows in enumerate(read):
            wanted = expected[number * per_update : (number + 1) * per_update]
            assert sorted((epoch, place) for epoch, place, _ in windows) == sorted(wanted)


def test_each_epoch_holds_each_utterance_once(rows):
    timeline = Timeline(rows, Hearing(WINDOW, 4, 1, packing=True, vary_speed=True))
    for epoch in range(5):
        heard = Counter(row.line for _, window in timeline.epoch(epoch) for row in window.utterances)
        assert heard == Counter(row.line for row in rows)


def test_without_repacking_windows_stay_and_only_their_order_changes(rows):
    timeline = Timeline(rows, Hearing(WINDOW, 4, 1, packing=True, repack=False))
    first, second = timeline.epoch(0), timeline.epoch(1)
    assert first != second
    assert dict(first) == dict(second)


def test_inside_an_update_the_longest_come_first(write_corpus):
    rows = Corpus(write_corpus([(text, {}) for text in [*TEXTS, "low mid high low mid high low mid"]])).survey()
    timeline = Timeline(rows.utterances, Hearing(WINDOW, len(TEXTS) + 1))
    windows = [window for _, _, window in timeline.update(0)]
    assert [timeline.chunks(window) for window in windows] == [2] + [1] * len(TEXTS)
    lengths = [len(window.text) for window in windows[1:]]
    assert lengths == sorted(lengths, reverse=True)


def test_a_packed_window_is_its_utterances_with_gaps_between(rows, tmp_path, small_checkpoint):
    stream = stream_of(rows, tmp_path / "cache", language_free_share=0.0)
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))
    windows = [window for number in range(stream.updates) for _, _, window in stream.timeline.update(number)]
    assert any(len(window.utterances) > 1 for window in windows)
    for index, window in enumerate(windows):
        example = stream[index]
        parts = [audio.load(row.audio) for row in window.utterances]
        joined = np.concatenate([piece for part in parts for piece in (GAP, part)][1:])
        np.testing.assert_array_equal(example.wave, joined)
        assert len(GAP) == 3200
        assert not GAP.any()
        ids, labels, features = collator.row(example)
        assert len(features) == 1
        learned = [label for label in labels if label != -100]
        text = " ".join(row.text for row in window.utterances)
        assert learned == [*collator.target(text)[:-1], 2]
        assert collator.tokenizer.decode(learned[:-1]) == text
        assert ids[-len(learned) :] == learned


def test_speed_changes_how_long_an_utterance_is_and_windows_still_hold_them(rows, tmp_path):
    stream = stream_of(rows, tmp_path / "cache", updates=12, vary_speed=True)
    factors = {(epoch, row.line): stream.timeline.speed(epoch, row) for epoch, row in itertools.product(range(3), rows)}
    assert min(factors.values()) < 0.95 < 1.05 < max(factors.values())
    assert all(0.9 <= factor < 1.1 for factor in factors.values())
    for number in range(stream.updates):
        for row, (epoch, _, window) in enumerate(stream.timeline.update(number)):
            lengths = [
                augment.length_after(len(audio.load(each.audio)), stream.timeline.speed(epoch, each))
                for each in window.utterances
            ]
            wave = stream[number * 4 + row].wave
            assert len(wave) == sum(lengths) + len(GAP) * (len(lengths) - 1)
            assert len(lengths) == 1 or len(wave) <= WINDOW * 16_000


def test_slowed_down_an_utterance_needs_no_window_more(tmp_path, write_corpus):
    """What an update costs was settled before: a recording of 1.95 s would be 2.16 s long at 0.9 times its speed."""
    folder = write_corpus([("low", {})] * 12)
    for number in range(12):
        wave = np.resize(spoken("low mid high", seed=number), round((1.9 + number / 120) * 16_000))
        audio.write(folder / "audio" / f"{number}.wav", wave, 16_000)
    stream = stream_of(Corpus(folder).survey().utterances, tmp_path / "cache", updates=9, vary_speed=True)
    for number in range(stream.updates):
        for row, (_, _, window) in enumerate(stream.timeline.update(number)):
            assert -(-len(stream[4 * number + row].wave) // 32_000) <= stream.timeline.chunks(window)


def test_what_is_drawn_at_random_differs_between_epochs(rows, noise, tmp_path):
    settings = {"packing": False, "repack": False, "per_update": len(rows), "language_free_share": 0.0}
    stream = stream_of(rows, tmp_path / "cache", 2, noise, mask_spectrum=True, **settings)
    first, second = (
        {stream[index].name: stream[index] for index in range(epoch * len(rows), (epoch + 1) * len(rows))}
        for epoch in (0, 1)
    )
    assert first.keys() == second.keys()
    for name in first:
        assert not np.array_equal(first[name].wave, second[name].wave)  # another part of the noise
        assert first[name].mask.integers(2**60) != second[name].mask.integers(2**60)


def test_dev_is_heard_as_it_is(rows, tmp_path):
    data = Utterances(rows, WaveCache(tmp_path / "cache", 0))
    assert len(data) == len(rows)
    for index, row in enumerate(rows):
        example = data[index]
        np.testing.assert_array_equal(example.wave, audio.load(row.audio))
        assert (example.text, example.language, example.mask, example.index) == (row.text, row.language, None, None)

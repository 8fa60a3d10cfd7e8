"""What the encoder makes of a window is computed once; with it a run learns what it learns without."""

import os
from collections import namedtuple

import numpy as np
import pytest
import torch
from transformers.models.voxtral.modeling_voxtral import VoxtralEncoder

from tests.conftest import spoken
from tests.unit.training.test_trainer import TEXTS, settings_for, trained
from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.split import Split
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.data.windows import Window
from voxtral_finetune.errors import StopRequested
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import Run
from voxtral_finetune.training import embeddings, engine, preflight
from voxtral_finetune.training.dataset import WindowStream
from voxtral_finetune.training.embeddings import EmbeddingCache, cache_key

LONG = "low mid high low mid high low mid high"
"""2.7 s: two windows."""


@pytest.fixture
def split(write_corpus):
    rows = Corpus(write_corpus([(text, {"language": "en"}) for text in [*TEXTS[:6], LONG]])).survey().utterances
    dev = Corpus(write_corpus([("low high low", {"language": "en"})], "dev")).survey().utterances
    return Split(rows, dev, dev, "random", "")


@pytest.fixture
def heard(monkeypatch):
    """What was read and how often the encoder ran while the model learned, in their order."""
    found = []
    load_wave, forward = WaveCache.load, VoxtralEncoder.forward

    def loads(self, row):
        found.append(row.text)
        return load_wave(self, row)

    def runs(self, *args, **kwargs):
        if self.training and self.conv1.weight.device.type != "meta":  # not where memory is only estimated
            found.append("encoder")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WaveCache, "load", loads)
    monkeypatch.setattr(VoxtralEncoder, "forward", runs)
    return found


def settings_in(folder, **changed):
    chosen = {"method": "lora", "cache_audio": True, "epochs": 5, "batch_size": 1, "logging_steps": 1}
    return settings_for(folder, **{**chosen, "lora_dropout": 0, "language_free_share": 0.0, **changed})


def losses(run):
    return {event.fields["step"]: event.fields["loss"] for event in run.events() if event.kind == "step"}


def taught(run, checkpoint, split, settings):
    trained(run, checkpoint, split, settings, lambda _: 0.5)
    return list(losses(run).values())


def without_dev(heard):
    return [each for each in heard if each != "low high low"]


@pytest.mark.parametrize("packing", [False, True])
def test_from_the_second_epoch_nothing_is_read_and_no_encoder_runs(small_checkpoint, split, tmp_path, heard, packing):
    settings = settings_in(tmp_path / "first", packing=packing)
    run = Run.create(settings)
    marks = []
    run.watch(lambda event: marks.append(len(heard)) if event.kind == "step" else None)
    taught(run, small_checkpoint, split, settings)
    (plan,) = [event.fields for event in run.events() if event.kind == "plan"]
    assert plan["cache"]
    after = plan["windows"]  # one window an update; the batch after it was already being prepared
    assert "encoder" in heard[: marks[after - 1]]
    assert without_dev(heard[marks[after] :]) == []
    heard.clear()
    again = settings_in(tmp_path / "again", packing=packing)
    taught(Run.create(again), small_checkpoint, split, again)
    assert without_dev(heard) == ["encoder"]  # the longest window, tried before training


def test_a_kept_window_teaches_what_a_heard_one_does(small_checkpoint, split, tmp_path, monkeypatch):
    first, second, third = (settings_in(tmp_path / name, batch_size=3) for name in ("first", "second", "third"))
    computed = taught(Run.create(first), small_checkpoint, split, first)
    kept = taught(Run.create(second), small_checkpoint, split, second)
    monkeypatch.setattr(WindowStream, "__init__", _without_cache(WindowStream.__init__))
    plain = taught(Run.create(third), small_checkpoint, split, third)
    np.testing.assert_allclose(kept, computed, rtol=1e-6)
    np.testing.assert_allclose(kept, plain, rtol=1e-5)


def _without_cache(made):
    def init(self, timeline, updates, waves, noises=None, embeddings=None):
        made(self, timeline, updates, waves, noises, None)

    return init


def test_the_loss_of_a_batch_is_the_same_by_either_way(small_checkpoint, split, tmp_path):
    settings = settings_in(tmp_path / "run", batch_size=7, model_checkpoint=str(small_checkpoint))
    run, processor = Run.create(settings), load.load_processor(str(small_checkpoint))
    plan = preflight.prepare(run, settings, split.train, processor, torch.device("cpu"))
    model = adapt.adapt(load.load_model(str(small_checkpoint)), settings.training, str(small_checkpoint))
    trainer = engine.build(run, model, processor, split, settings, plan, lambda _: 0.5)
    stream, collate = trainer.train_dataset, trainer.data_collator
    unknown = collate([stream[index] for index in range(7)])
    assert not unknown["audio_known"].any()
    model.eval()
    first = trainer.compute_loss(model, unknown).item()
    known = collate([stream[index] for index in range(7)])
    assert known["audio_known"].all()
    assert "input_features" not in known
    second = trainer.compute_loss(model, known).item()
    plain = {name: unknown[name] for name in ("input_ids", "attention_mask", "labels", "input_features")}
    assert first == pytest.approx(trainer.compute_loss(model, plain).item(), rel=1e-6)
    assert second == pytest.approx(first, rel=1e-6)
    mixed = [stream[index] for index in range(3)]
    trainer.embeddings.path.write_bytes(b"")
    mixed += [stream[index] for index in range(3, 7)]
    assert trainer.compute_loss(model, collate(mixed)).item() == pytest.approx(first, rel=1e-6)


def test_a_resumed_run_reads_what_it_kept(small_checkpoint, split, tmp_path, heard):
    settings = settings_in(tmp_path / "run", eval_steps=2)
    run = Run.create(settings)
    run.watch(lambda event: run.request_stop() if event.fields.get("step") == 14 else None)
    with pytest.raises(StopRequested):
        taught(run, small_checkpoint, split, settings)
    heard.clear()
    run.clear_stop()
    taught(Run.open(run.folder), small_checkpoint, split, settings)
    assert without_dev(heard) == ["encoder"]


def test_with_workers_a_run_learns_the_same(small_checkpoint, split, tmp_path, monkeypatch):
    alone = settings_in(tmp_path / "alone")
    expected = taught(Run.create(alone), small_checkpoint, split, alone)
    monkeypatch.setattr(engine, "_workers", lambda on_cuda: 2)
    monkeypatch.setenv("VOXTRAL_FINETUNE_HOME", str(tmp_path / "other"))
    helped = settings_in(tmp_path / "helped")
    np.testing.assert_allclose(taught(Run.create(helped), small_checkpoint, split, helped), expected, rtol=1e-6)


def test_a_recording_some_samples_longer_than_its_seconds_say_does_not_end_a_run(
    small_checkpoint, write_corpus, tmp_path
):
    """32 006 samples are 2.000 s rounded: planned as one window of 2 s, heard as two."""
    folder = write_corpus([(text, {}) for text in TEXTS])
    audio.write(folder / "audio" / "0.wav", np.resize(spoken("low mid"), 32_006), 16_000)
    rows = Corpus(folder).survey().utterances
    assert rows[0].seconds == 2.0
    settings = settings_in(tmp_path / "run", epochs=2)
    assert len(taught(Run.create(settings), small_checkpoint, Split(rows, rows, rows, "random", ""), settings)) == 16


SHAPE = (3, 4)
CHUNK = 3 * 4 * 4


def cache(folder, chunks=(1, 2, 1), limit=10**6, key="key", dtype=torch.float32):
    return EmbeddingCache(folder, key, list(chunks), SHAPE, dtype, limit)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_comes_back(tmp_path, dtype):
    first = cache(tmp_path, dtype=dtype)
    two = torch.randn(2, *SHAPE, dtype=dtype)
    assert first.get(1) is None
    first.put(1, two)
    for reader in (first, cache(tmp_path, dtype=dtype)):
        torch.testing.assert_close(reader.get(1), two, rtol=0, atol=0)
        assert reader.get(0) is None
        assert reader.get(2) is None


def test_zeros_are_a_result_too(tmp_path):
    kept = cache(tmp_path)
    kept.put(0, torch.zeros(1, *SHAPE))
    assert kept.get(0) is not None
    kept.put(2, torch.ones(1, *SHAPE))
    assert kept.get(1) is None


@pytest.mark.parametrize("place", [0, 40, 60, 150])
def test_a_damaged_entry_is_computed_and_kept_again(tmp_path, place):
    kept = cache(tmp_path)
    full = [torch.randn(count, *SHAPE) for count in (1, 2, 1)]
    for index, each in enumerate(full):
        kept.put(index, each)
    content = bytearray(kept.path.read_bytes())
    content[place] ^= 1
    kept.path.write_bytes(content)
    damaged = [index for index in range(3) if kept.get(index) is None]
    assert len(damaged) == 1
    kept.put(damaged[0], full[damaged[0]])
    for index, each in enumerate(full):
        torch.testing.assert_close(kept.get(index), each, rtol=0, atol=0)


def test_a_file_that_was_cut_off_or_deleted_is_no_error(tmp_path):
    kept = cache(tmp_path)
    for index, count in enumerate((1, 2, 1)):
        kept.put(index, torch.ones(count, *SHAPE))
    os.truncate(kept.path, CHUNK + 10)
    assert kept.get(0) is not None
    assert kept.get(1) is None
    kept.path.unlink()
    assert kept.get(0) is None
    kept.put(0, torch.ones(1, *SHAPE))
    assert kept.get(0) is None


def test_the_limit_is_kept(tmp_path):
    kept = cache(tmp_path, limit=3 * CHUNK + 20)
    for index, count in enumerate((1, 2, 1)):
        kept.put(index, torch.ones(count, *SHAPE))
    assert [kept.get(index) is not None for index in range(3)] == [True, True, False]
    assert kept.path.stat().st_size == kept.bytes <= 3 * CHUNK + 20
    assert cache(tmp_path, limit=0).get(0) is None


def test_a_run_with_less_room_leaves_another_its_entries(tmp_path):
    kept = cache(tmp_path)
    for index, count in enumerate((1, 2, 1)):
        kept.put(index, torch.ones(count, *SHAPE))
    assert cache(tmp_path, limit=2 * CHUNK).get(1) is None
    assert all(kept.get(index) is not None for index in range(3))


def test_the_oldest_files_of_other_plans_give_way(tmp_path):
    for age, key in enumerate(("newer", "older")):
        other = EmbeddingCache(tmp_path / "all", key, [1], (64, 64), torch.float32, 10**6)
        other.put(0, torch.randn(1, 64, 64))
        os.utime(other.path, (0, 1000 - age))
    kept = EmbeddingCache(tmp_path / "all", "mine", [1], (64, 64), torch.float32, 50_000)
    assert {path.stem for path in kept.path.parent.iterdir()} == {"newer", "mine"}
    kept.put(0, torch.randn(1, 64, 64))
    assert kept.get(0) is not None


Disk = namedtuple("Disk", "total used free")


def test_a_disk_that_is_nearly_full_keeps_nothing(tmp_path, monkeypatch):
    kept = cache(tmp_path)
    monkeypatch.setattr(embeddings.shutil, "disk_usage", lambda _: Disk(10**12, 0, 10**9))
    kept.put(0, torch.ones(1, *SHAPE))
    assert kept.get(0) is None


def test_a_full_disk_ends_keeping_and_not_the_run(tmp_path, monkeypatch):
    kept = cache(tmp_path)
    calls = []

    def full(*_):
        calls.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embeddings.os, "pwrite", full)
    kept.put(0, torch.ones(1, *SHAPE))
    kept.put(2, torch.ones(1, *SHAPE))
    assert kept.get(0) is None
    assert len(calls) == 1


def test_the_key_is_what_the_result_depends_on(small_checkpoint, split):
    model = load.load_model(str(small_checkpoint))
    rows = split.train
    windows = [Window((rows[0], rows[1])), Window((rows[2],))]
    known = cache_key(model, windows, torch.float32)
    assert cache_key(load.load_model(str(small_checkpoint)), list(windows), torch.float32) == known
    others = [
        cache_key(model, windows, torch.bfloat16),
        cache_key(model, windows[::-1], torch.float32),
        cache_key(model, windows[:1], torch.float32),
        cache_key(model, [Window((rows[1], rows[0])), windows[1]], torch.float32),
        cache_key(model, [Window((row,)) for row in rows[:3]], torch.float32),
    ]
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
        assert cache_key(model, windows, torch.float32) == known
        for part in (model.model.audio_tower.conv1, model.model.multi_modal_projector.linear_2):
            part.weight.view(-1)[0] += 1
            others.append(cache_key(model, windows, torch.float32))
    assert len({known, *others}) == len(others) + 1

"""That it learns, stops when it has to, and goes on as if nothing had happened."""

import math
import os
import pickle
import signal

import numpy as np
import pytest
import torch

from tests.conftest import spoken
from voxtral_finetune.data import audio
from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.data.corpus import Corpus, Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.errors import DataError, StopRequested
from voxtral_finetune.evaluation.transcribe import Transcriber
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import preflight
from voxtral_finetune.training.callbacks import track_result
from voxtral_finetune.training.checkpoints import whole
from voxtral_finetune.training.dataset import Hearing, Timeline, Utterances, WindowStream
from voxtral_finetune.training.engine import train
from voxtral_finetune.training.trainer import only_at_labels

TEXTS = ["low", "mid high", "high low mid", "low low", "mid", "high", "mid low high", "high high"]


@pytest.fixture
def eight(write_corpus):
    """Eight utterances that are learned, chosen by and tested on: whether it can learn at all."""
    rows = Corpus(write_corpus([(text, {"language": "en"}) for text in TEXTS])).survey().utterances
    return Split(rows, rows, rows, "random", "")


def settings_for(folder, **changed):
    chosen = {"method": "full", "learning_rate": 5e-3, "epochs": 100, "batch_size": 8, "grad_accum": 1}
    chosen |= {"packing": False, "vary_speed": False, "mask_spectrum": False}
    return Settings.of({**chosen, "eval_steps": 100, "patience": 0, "device": "cpu", "output_dir": folder, **changed})


def trained(run, checkpoint, split, settings, score_dev):
    """Trains in `run` from the checkpoint as a run does."""
    settings = Settings.of({**settings.flat(), "model_checkpoint": str(checkpoint)})
    processor = load.load_processor(str(checkpoint))
    plan = preflight.prepare(run, settings, split.train, processor, torch.device("cpu"))
    model = adapt.adapt(load.load_model(str(checkpoint)), settings.training, str(checkpoint))
    return train(run, model, processor, split, settings, plan, score_dev)


def taught(run, checkpoint, split, settings):
    """(what training did, dev WER at each evaluation)."""
    processor = load.load_processor(str(checkpoint))
    rates = []

    def score_dev(model):
        heard = Transcriber(model, processor).transcribe(
            [audio.load(row.audio) for row in split.dev], [row.language for row in split.dev]
        )
        rates.append(score([row.text for row in split.dev], heard).wer)
        return rates[-1]

    return trained(run, checkpoint, split, settings, score_dev), rates


def test_eight_utterances_are_learned_by_heart(small_checkpoint, eight, tmp_path):
    settings = settings_for(tmp_path / "run")
    done, rates = taught(Run.create(settings), small_checkpoint, eight, settings)
    assert rates[0] > 0.5
    assert rates[-1] == 0.0
    assert done.best_step == done.steps == 100


def test_without_the_end_of_text_nothing_useful_is_learned(small_checkpoint, eight, tmp_path, monkeypatch):
    whole = TranscriptionCollator.target
    monkeypatch.setattr(TranscriptionCollator, "target", lambda self, text: whole(self, text)[:-1])
    settings = settings_for(tmp_path / "run")
    _, rates = taught(Run.create(settings), small_checkpoint, eight, settings)
    assert rates[-1] > 0.5


def test_the_loss_at_labels_only_is_the_loss(small_checkpoint):
    model = load.load_model(str(small_checkpoint)).eval()
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))
    batch = collator([Example(spoken(text), text, "en", text) for text in ("low", "mid high low")])
    whole = model(**batch)
    short = model(**batch, **only_at_labels(batch["labels"]))
    torch.testing.assert_close(short.loss, whole.loss)
    assert short.logits.numel() < whole.logits.numel() / 5


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(small_checkpoint, eight, tmp_path, method):
    options = {"method": method, "epochs": 8, "eval_steps": 2, "logging_steps": 1, "batch_size": 4, "lora_dropout": 0}
    losses = {}
    for name in ("whole", "stopped"):
        settings = settings_for(tmp_path / name, **options)
        run = Run.create(settings)
        if name == "stopped":
            run.watch(lambda event, run=run: run.request_stop() if event.fields.get("step") == 6 else None)
            with pytest.raises(StopRequested, match=r"at update [67] of 16; a checkpoint is saved"):
                taught(run, small_checkpoint, eight, settings)
            run.clear_stop()
            run = Run.open(run.folder)
        taught(run, small_checkpoint, eight, settings)
        steps = {event.fields["step"]: event.fields["loss"] for event in run.events() if event.kind == "step"}
        losses[name] = [steps[number] for number in range(1, 17)]
    np.testing.assert_allclose(losses["stopped"], losses["whole"], rtol=1e-5)


def test_the_best_checkpoint_is_kept_and_training_stops_early(small_checkpoint, eight, tmp_path):
    settings = settings_for(tmp_path / "run", method="lora", epochs=20, eval_steps=1, patience=3)
    run = Run.create(settings)
    rates = iter([0.9, 0.5, 0.3, 0.4, 0.31, 0.35, 0.2])
    done = trained(run, small_checkpoint, eight, settings, lambda _: next(rates))
    assert (done.best_step, done.steps) == (2, 5)
    assert done.best.name == "checkpoint-2"
    assert [event.fields["wer"] for event in run.events() if event.kind == "eval"] == [0.9, 0.5, 0.3, 0.4, 0.31, 0.35]


def test_of_equal_word_error_rates_the_lower_loss_is_the_better(small_checkpoint, eight, tmp_path):
    settings = settings_for(tmp_path / "run", epochs=12, eval_steps=4)
    run = Run.create(settings)
    done = trained(run, small_checkpoint, eight, settings, lambda _: 0.5)
    losses = {event.fields["step"]: event.fields["loss"] for event in run.events() if event.kind == "eval"}
    assert losses[12] < losses[4]
    assert done.best_step == min(losses, key=losses.get)


def test_two_newest_checkpoints_and_the_best_are_kept(small_checkpoint, eight, tmp_path):
    settings = settings_for(tmp_path / "run", method="lora", epochs=6, eval_steps=1)
    run = Run.create(settings)
    rates = iter([0.9, 0.2, 0.5, 0.5, 0.5, 0.5, 0.5])
    done = trained(run, small_checkpoint, eight, settings, lambda _: next(rates))
    assert sorted(path.name for path in (run.folder / "checkpoints").glob("check*")) == [
        "checkpoint-1",
        "checkpoint-5",
        "checkpoint-6",
    ]
    assert done.best.name == "checkpoint-1"


def test_a_stop_does_not_wait_for_an_evaluation(small_checkpoint, eight, tmp_path):
    settings = settings_for(tmp_path / "run", method="lora", epochs=6, eval_steps=2, logging_steps=1)
    run = Run.create(settings)
    run.watch(lambda event: run.request_stop() if event.kind == "step" else None)
    with pytest.raises(StopRequested):
        taught(run, small_checkpoint, eight, settings)
    assert [event.fields["step"] for event in run.events() if event.kind == "eval"] == [0]
    assert max(whole(run.folder / "checkpoints")) == 2


def test_loader_workers_leave_signals_to_the_process_that_trains(eight, tmp_path):
    data = Utterances(eight.train, WaveCache(tmp_path, 0))
    loader = torch.utils.data.DataLoader(data, num_workers=1, batch_size=None)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        rows = iter(loader)
        next(rows)
        for worker in rows._workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        assert sum(1 for _ in rows) == len(eight.train) - 1
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_in_a_loader_worker_keeps_its_remedy(tmp_path):
    error = pickle.loads(pickle.dumps(DataError("x.wav is missing.", "Record it again.")))
    assert (error.what, error.fix) == ("x.wav is missing.", "Record it again.")


def test_curves_are_events_and_in_trackio_on_this_machine(small_checkpoint, eight, tmp_path, capsys):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    settings = settings_for(tmp_path / "run", epochs=2, eval_steps=1, logging_steps=1, project="curves")
    run = Run.create(settings)
    taught(run, small_checkpoint, eight, settings)
    steps = [event.fields for event in run.events() if event.kind == "step"]
    assert [fields["step"] for fields in steps] == [1, 2]
    for fields in steps:
        assert fields["perplexity"] == pytest.approx(math.exp(fields["loss"]))
        assert {"learning_rate", "grad_norm", "epoch", "seconds"} <= fields.keys()
    track_result(run, settings, {"wer_before": 0.5, "wer_after": 0.25})
    (tracked,) = trackio.Api().runs("curves")
    assert tracked.name == "run"
    logged = {name for row in SQLiteStorage.get_logs("curves", "run", run_id=tracked.id) for name in row}
    assert {"train/loss", "train/learning_rate", "eval/loss", "eval/wer", "test/wer_after"} <= logged
    assert "trackio" not in capsys.readouterr().out.lower()


def test_a_share_of_prompts_leaves_the_language_out_by_epoch(tmp_path):
    audio.write(tmp_path / "a.wav", spoken("low"), 16_000)
    rows = [Utterance(tmp_path / "a.wav", "low", "en", seconds=0.3, sha256=f"{number:064x}") for number in range(400)]
    timeline = Timeline(rows, Hearing(2.0, 400, seed=1, language_free_share=0.15))
    stream = WindowStream(timeline, 2, WaveCache(tmp_path / "cache", 0))

    def free(epoch):
        return {
            window.utterances[0].sha256
            for position, (_, _, window) in enumerate(timeline.update(epoch))
            if stream[400 * epoch + position].language is None
        }

    assert 30 <= len(free(0)) <= 90
    assert free(0) != free(1)
    assert free(0) == free(0)

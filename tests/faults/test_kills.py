"""kill -9 anywhere: at most the updates since the last checkpoint are lost, and the run ends as if nothing had been."""

import random
import signal

import pytest

from tests.faults.commands import SAVE_STEPS, SOAK, all_whole, some, steps_lost, until
from voxtral_finetune.training import checkpoints

RANDOM = random.Random(20).sample(range(1, 1000), 20)
"""Thousandths of a training at which it is killed."""


@pytest.mark.parametrize("place", RANDOM if SOAK else RANDOM[:3])
def test_killed_in_the_middle_of_training(trial, reference, place):
    killed = trial.train(hooks=[("kill_in_training", [reference.calls * place // 1000])])
    assert killed.wait() == -signal.SIGKILL
    assert trial.run.status() == "died"
    all_whole(trial.run)
    trial.resume()
    assert steps_lost(trial.run) <= SAVE_STEPS
    trial.ended_as(reference)


def test_every_kind_of_step_of_a_save_is_among_those_that_are_killed(saves):
    kinds = {call for _, call, _ in saves}
    assert {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir"} <= kinds
    written = {path.split("/")[-1] for _, call, path in saves if call == "write"}
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json"} <= written


@pytest.mark.parametrize("share", range(10 if SOAK else 5))
def test_killed_in_the_middle_of_a_save(trials, reference, saves, faulty, share):
    points = saves[share::10] if SOAK else [some(saves, 5)[share]]
    for number, call, path in points:
        trial = trials(f"at-{number}")
        folder = trial.run.folder / "checkpoints"
        killed = trial.train(env=faulty(folder, at=number))
        assert killed.wait() == -signal.SIGKILL, (number, call, path)
        all_whole(trial.run)
        cut_off = {each for each in folder.glob(".saving/checkpoint-*") if not (each / "COMPLETE").exists()}
        left = [*checkpoints.whole(folder).values(), *folder.glob(".saving/checkpoint-*")]
        newest = max(int(each.name.split("-")[1]) for each in left if each not in cut_off)
        trial.resume()
        again = [event.fields["step"] for event, _ in trial.run.follow() if event.kind == "step"]
        assert newest + 1 in again or newest == 12, (number, call, path)
        assert steps_lost(trial.run) <= SAVE_STEPS
        named = [f"{each.name} cannot be used: it has no COMPLETE: its saving was cut off." for each in cut_off]
        assert [warning["what"] for warning in trial.warnings()] == named, (number, call, path)
        assert {each.name for each in folder.glob("*.incomplete")} == {f"{each.name}.incomplete" for each in cut_off}
        trial.ended_as(reference)


def truncated(checkpoint):
    path = checkpoint / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flipped(checkpoint):
    path = checkpoint / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(checkpoint):
    (checkpoint / "trainer_state.json").write_bytes(b"")


def lacking(checkpoint):
    (checkpoint / "optimizer.pt").unlink()


DAMAGES = {
    truncated: "adapter_model.safetensors has",
    flipped: "adapter_model.safetensors is not what was saved",
    emptied: "trainer_state.json has 0 bytes",
    lacking: "optimizer.pt is missing",
}


@pytest.fixture(scope="module")
def stopped(reference, alone):
    """A run that was asked to stop after its seventh update: checkpoints of 3, 6 and 7, of which two are kept."""
    trial = alone("stopped")
    assert trial.train(hooks=[("send", ["training", 7, "SIGTERM"])]).wait() == 130
    return trial


@pytest.mark.parametrize("damage", some(DAMAGES, 2), ids=lambda damage: damage.__name__)
def test_the_newest_checkpoint_is_damaged(trials, stopped, reference, damage):
    trial = trials(copy=stopped)
    folder = trial.run.folder / "checkpoints"
    newest, older = sorted(checkpoints.whole(folder), reverse=True)[:2]
    damage(folder / f"checkpoint-{newest}")
    said = trial.resume()
    (warning,) = trial.warnings()
    assert f"checkpoint-{newest} cannot be used: {DAMAGES[damage]}" in warning["what"]
    assert warning["what"] in said
    steps = [event.fields["step"] for event, _ in trial.run.follow() if event.kind == "step"]
    assert older + 1 in steps[steps.index(newest) + 1 :]
    trial.ended_as(reference)


def test_every_checkpoint_is_damaged(trials, stopped, reference):
    trial = trials(copy=stopped)
    for path in checkpoints.whole(trial.run.folder / "checkpoints").values():
        flipped(path)
    refused = trial.train()
    assert refused.wait() == 1
    assert refused.error().startswith("Error: No checkpoint in")
    assert trial.run.status() == "failed"
    trial.resume()
    trial.ended_as(reference)


def test_the_best_checkpoint_is_damaged_before_it_is_exported(trials, reference):
    """A model is never made of weights that are not what was measured."""
    trial = trials()
    killed = trial.train(hooks=[("send", ["export", 1, "SIGKILL"])])
    assert killed.wait() == -signal.SIGKILL
    (best,) = {path for step, path in checkpoints.whole(trial.run.folder / "checkpoints").items() if step == 12}
    sign, go = trial.home / "waiting", trial.home / "go"
    waiting = trial.train(hooks=[("hold", ["restored", 1, str(sign), str(go)])])
    until(sign.exists, "the checkpoint is read")
    flipped(best)
    go.touch()
    assert waiting.wait() == 1
    assert "The best checkpoint, of update 12, cannot be used: adapter_model.safetensors is not" in waiting.error()
    assert not (trial.run.folder / "model").exists()


def test_killed_while_processes_prepare_batches(trial, reference):
    """Those processes end by themselves, and do not keep the run from going on meanwhile."""
    killed = trial.train(hooks=[("workers", [2])])
    killed.until_event(trial.run, "step", step=4)
    assert len(killed.left()) == 3
    killed.signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    trial.resume(hooks=[("workers", [1])])
    trial.ended_as(reference)
    until(lambda: not killed.left(), "the end of the workers")

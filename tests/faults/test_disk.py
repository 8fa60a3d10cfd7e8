"""A disk that is full waits with the run; one that is too small, or that may not be written, is said before."""

import signal

import pytest

from tests.faults.commands import SOAK, some, until

GROWS = ("mkdir", "open", "write", "ftruncate", "fsync")


def pauses(run):
    return [event.kind for event, _ in run.follow() if event.kind in ("paused", "resumed")]


@pytest.mark.parametrize("share", range(10 if SOAK else 3))
def test_the_disk_is_full_at_any_step_of_a_save(trials, reference, saves, faulty, share):
    able = [step for step in saves if step[1] in GROWS]
    points = able[share::10] if SOAK else [some(able, 3)[share]]
    for number, call, path in points:
        trial = trials(f"at-{number}")
        room = trial.home / "room"
        waiting = trial.train(env=faulty(trial.run.folder / "checkpoints", at=number, do="full", until=room))
        until(lambda waiting=waiting, run=trial.run: pauses(run) or not waiting.running(), "a pause or the end")
        if waiting.running():
            assert trial.run.status() == "running"
            room.touch()
        assert waiting.wait() == 0, (call, path, waiting.said())
        deletes = path == "" or "/.gone" in path  # what cannot be deleted is left for later
        assert pauses(trial.run) == ["paused", "resumed"] or (deletes and not pauses(trial.run)), (call, path)
        trial.ended_as(reference)


@pytest.mark.skipif(not SOAK, reason="the tests above are this one, longer")
def test_the_disk_is_full_for_some_writes_only(trial, reference, saves, faulty):
    number = next(number for number, call, path in saves if call == "write" and "optimizer" in path)
    trial.resume(env=faulty(trial.run.folder / "checkpoints", at=number, do="full", times=6))
    assert pauses(trial.run) == ["paused", "resumed"]
    trial.ended_as(reference)


def test_a_run_that_waits_for_space_can_be_stopped(trial, reference, saves, faulty):
    number = next(number for number, call, path in saves if call == "write" and "optimizer" in path)
    never = trial.home / "never"
    waiting = trial.train(env=faulty(trial.run.folder / "checkpoints", at=number, do="full", until=never))
    waiting.until_event(trial.run, "paused")
    waiting.signal(signal.SIGTERM)
    assert waiting.wait(10) == 130
    assert trial.run.status() == "stopped"
    trial.resume()
    trial.ended_as(reference)


def test_when_the_log_cannot_grow_either_nothing_of_it_is_lost(trial, reference, faulty):
    room = trial.home / "room"
    room.touch()
    env = faulty(trial.run.folder, at=1, do="full", until=room)
    waiting = trial.train(env=env, hooks=[("remove", ["saving", 2, str(room)])])
    until(lambda: "The disk is full" in waiting.stdout.read_text() or not waiting.running(), "the pause")
    assert waiting.running(), waiting.said()
    room.touch()
    assert waiting.wait() == 0, waiting.said()
    steps = [event.fields["step"] for event, _ in trial.run.follow() if event.kind == "step"]
    assert steps == list(range(1, 13))
    assert "paused" in [event.kind for event, _ in trial.run.follow()]
    trial.ended_as(reference)


@pytest.mark.parametrize("moment", some(["export", "tuned test"], 1))
def test_the_disk_is_full_after_training(trial, reference, faulty, moment):
    room = trial.home / "room"
    room.touch()
    env = faulty(trial.run.folder, at=1, do="full", until=room)
    number = 4 if moment == "tuned test" else 1
    failed = trial.train(env=env, hooks=[("remove", [moment, number, str(room)])])
    assert failed.wait() == 1
    assert "The disk is full. Free some space" in failed.said()
    assert trial.run.status() in ("failed", "died")
    trial.resume()
    trial.ended_as(reference)


def test_a_disk_that_is_too_small_is_said_in_numbers_before_training(trial, faulty):
    refused = trial.train(env=faulty(trial.run.folder, free=1_000_000))
    assert refused.wait() == 1
    assert "MB for checkpoints" in refused.error()
    assert "1.0 MB are free" in refused.error()
    assert trial.run.status() == "failed"
    assert "step" not in [event.kind for event, _ in trial.run.follow()]

"""Asked to stop at any moment, or broken off by the device: it ends soon, leaves nothing behind, and can go on."""

import os
import signal

import pytest

from tests.faults.commands import SOAK, some, steps_lost, until

MOMENTS = [
    ("reading the corpus", 5, "SIGINT"),
    ("base test", 1, "SIGTERM"),
    ("dev", 2, "SIGTERM"),
    ("training", 5, "stop file"),
    ("export", 1, "SIGTERM"),
    ("saving", 2, "SIGINT"),
    ("tuned test", 4, "SIGINT"),
]
KINDS = ("SIGINT", "SIGTERM", "stop file")
CASES = [(moment, number, kind) for moment, number, _ in MOMENTS for kind in KINDS] if SOAK else MOMENTS[::2]
DEVICE = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later."


@pytest.mark.parametrize(("moment", "number", "kind"), CASES)
def test_it_stops_within_seconds_and_goes_on(trials, empty, settings, reference, moment, number, kind):
    begins = moment in ("reading the corpus", "base test")
    trial = empty if begins else trials()
    sign = trial.home / "sign"
    if kind == "stop file":
        asked = ("touch", [moment, number, str(trial.run.folder / "stop")])
    else:
        asked = ("send", [moment, number, kind])
    stopping = trial.train(settings=settings if begins else None, hooks=[asked, ("touch", [moment, number, str(sign)])])
    until(lambda: sign.exists() or not stopping.running(), moment)
    assert stopping.wait(10) == 130, stopping.said()
    assert "Go on with" in stopping.said()
    assert trial.run.status() == "stopped"
    assert not stopping.left()
    assert [path.name for path in trial.run.folder.glob("*.tmp")] == []
    trial.resume()
    assert steps_lost(trial.run) == 0
    trial.ended_as(reference)


def test_ctrl_c_reaches_the_processes_that_prepare_batches_too(trial, reference):
    stopping = trial.train(hooks=[("workers", [2])])
    stopping.until_event(trial.run, "step", step=4)
    os.killpg(stopping.pid, signal.SIGINT)
    assert stopping.wait(30) == 130, stopping.said()
    assert not stopping.left()
    trial.resume(hooks=[("workers", [2])])
    assert steps_lost(trial.run) == 0
    trial.ended_as(reference)


@pytest.mark.parametrize(
    "hooks",
    some([[("workers", [2]), ("fail_in_worker", [15, DEVICE])], [("fail", ["training", 8, DEVICE])]], 1),
    ids=lambda hooks: hooks[-1][0],
)
def test_the_device_fails(trial, reference, hooks):
    failed = trial.train(hooks=hooks)
    assert failed.wait() == 1
    assert "Error: The GPU has failed: CUDA error: an illegal memory access" in failed.said()
    assert trial.run.status() == "failed"
    assert not failed.left()
    trial.resume()
    trial.ended_as(reference)


def test_a_process_that_prepares_batches_is_killed(trial, reference):
    """As the kernel does where memory runs out."""
    sign, go = trial.home / "sign", trial.home / "go"
    failed = trial.train(hooks=[("workers", [2]), ("hold", ["training", 8, str(sign), str(go)])])
    until(sign.exists, "the eighth update")
    os.kill(max(failed.left()), signal.SIGKILL)
    go.touch()
    assert failed.wait() == 1
    assert "Error: A process that prepares audio was killed" in failed.said()
    assert trial.run.status() == "failed"
    assert not failed.left()
    trial.resume()
    trial.ended_as(reference)


def test_a_second_run_on_the_same_device_is_refused_by_name(trials, reference):
    first, second = trials("first"), trials("second")
    sign, go = first.home / "sign", first.home / "go"
    env = {"TMPDIR": str(first.home)}  # where the locks lie
    going = first.train(env=env, hooks=[("claim", ["mps"]), ("hold", ["training", 6, str(sign), str(go)])])
    until(sign.exists, "the sixth update")
    refused = second.train(env=env, hooks=[("claim", ["mps"])])
    assert refused.wait() == 1
    assert f"mps is in use by the run {first.run.folder} (running, about" in refused.error()
    assert "min left" in refused.error()
    assert second.run.status() == "failed"
    go.touch()
    assert going.wait() == 0
    first.ended_as(reference)
    second.resume(env=env, hooks=[("claim", ["mps"])])
    second.ended_as(reference)

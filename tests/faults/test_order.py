"""What is heard when: the same whoever prepares it, whatever the clock says."""

import os
import signal

import pytest
from torch.utils.data import DataLoader, Subset

from tests.faults.commands import SAVE_STEPS, steps_lost
from voxtral_finetune.data.split import Split
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.training import checkpoints
from voxtral_finetune.training.dataset import Hearing, Timeline, WindowStream


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_the_order(reference, tmp_path, workers):
    rows = Split.load(reference.run.folder / "split.json").train
    timeline = Timeline(rows, Hearing(4.0, 2, seed=3, packing=True, vary_speed=True, mask_spectrum=True))
    stream = WindowStream(timeline, 20, WaveCache(tmp_path / "waves", 1 << 30))

    def heard(first, number):
        loader = DataLoader(Subset(stream, range(first, len(stream))), 2, num_workers=number, collate_fn=list)
        return [(each.name, each.language, each.wave.tobytes()) for batch in loader for each in batch]

    whole = heard(0, 0)
    assert heard(0, workers) == whole
    assert heard(14, workers) == whole[14:]
    assert len({name for name, *_ in whole}) > 11, "several epochs, each packed anew"


def test_a_clock_that_jumps_changes_nothing(trial, reference):
    killed = trial.train(hooks=[("clock", [365 * 86_400]), ("send", ["training", 8, "SIGKILL"])])
    assert killed.wait() == -signal.SIGKILL
    for age, path in enumerate(sorted(checkpoints.whole(trial.run.folder / "checkpoints").values())):
        os.utime(path, (1e9 - age, 1e9 - age))
        os.utime(path / "COMPLETE", (1e9 - age, 1e9 - age))
    again = trial.train(hooks=[("clock", [-3600]), ("send", ["training", 3, "SIGTERM"])])
    assert again.wait() == 130
    trial.resume()
    assert steps_lost(trial.run) <= SAVE_STEPS
    seconds = [event.fields["seconds"] for event, _ in trial.run.follow() if event.kind in ("step", "eval")]
    assert all(value >= 0 for value in seconds)
    trial.ended_as(reference)
    assert sorted(checkpoints.whole(trial.run.folder / "checkpoints")) == sorted(
        checkpoints.whole(reference.run.folder / "checkpoints")
    )

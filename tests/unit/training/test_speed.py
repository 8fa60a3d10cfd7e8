"""What a run says about its pace."""

from pathlib import Path

import pytest
import torch

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.training import speed
from voxtral_finetune.training.dataset import Hearing, Timeline
from voxtral_finetune.training.speed import Speed, peak_memory

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(speed, "time", made)
    return made


@pytest.fixture
def timeline():
    """Eight utterances of 1.5 s, two an update."""
    rows = [Utterance(Path(f"{number}.wav"), "text", seconds=1.5, sha256=f"{number:064x}") for number in range(8)]
    return Timeline(rows, Hearing(2.0, 2))


def test_speech_is_counted_since_the_last_report_and_time_left_from_the_whole_session(clock, timeline):
    pace = Speed(timeline, CPU)
    clock.now += 50  # loading
    pace.begin(0)
    for update in (1, 2):
        clock.now += 1.0
        pace.heard(update)
    first = pace.facts(2, 10)
    assert first["speech_hours_per_hour"] == pytest.approx(6 / 2)
    assert first["eta_seconds"] == 8.0
    clock.now += 4.0
    pace.heard(3)
    second = pace.facts(3, 10)
    assert second["speech_hours_per_hour"] == pytest.approx(3 / 4)
    assert second["eta_seconds"] == pytest.approx(7 * 6 / 3)
    assert "mfu" not in second


def test_a_resumed_run_counts_from_where_it_goes_on(clock, timeline):
    pace = Speed(timeline, CPU)
    pace.begin(40)
    clock.now += 3.0
    pace.heard(41)
    facts = pace.facts(41, 50)
    assert facts["eta_seconds"] == pytest.approx(27.0)
    assert facts["speech_hours_per_hour"] == pytest.approx(1.0)


def test_a_report_before_the_first_update_is_no_division_by_zero(clock, timeline):
    pace = Speed(timeline, CPU)
    pace.begin(7)
    assert pace.facts(7, 10)["speech_hours_per_hour"] == 0.0


def test_the_share_of_the_peak_is_that_of_the_windows_since_the_last_report(clock, timeline):
    pace = Speed(timeline, CPU)
    pace._peak, pace.flops = 100.0, 30.0
    pace.begin(0)
    clock.now += 2.0
    assert pace.facts(4, 8)["mfu"] == pytest.approx(4 * 2 * 30 / 2 / 100)
    clock.now += 12.0
    assert pace.facts(5, 8)["mfu"] == pytest.approx(2 * 30 / 12 / 100)


def test_a_stream_whose_windows_are_not_known_says_what_it_can(clock):
    pace = Speed(None, CPU)
    pace.begin(0)
    clock.now += 5
    pace.heard(1)
    assert pace.facts(1, 3).keys() == {"eta_seconds", "memory_bytes"}


def test_memory_on_a_cpu_is_that_of_this_process():
    before = peak_memory(CPU)
    held = torch.ones(60_000_000)
    assert held.sum() == 60_000_000
    assert peak_memory(CPU) > 240_000_000
    assert peak_memory(CPU) >= before

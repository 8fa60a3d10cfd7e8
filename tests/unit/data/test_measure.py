"""Each finding is made by a sound that deserves it, and by no ordinary one."""

import numpy as np
import pytest

from tests.conftest import spoken
from voxtral_finetune.data.measure import findings, measure

SPEECH = spoken("low mid high low mid")
TIME = np.arange(32_000) / 16_000
NOISE = np.random.default_rng(0).standard_normal(32_000) * 0.1


def kinds(wave, rate=16_000):
    return [finding.kind for finding in findings(measure(np.asarray(wave, np.float32), rate))]


def test_levels_are_in_decibels_of_full_scale():
    measures = measure(np.sin(2 * np.pi * 440 * TIME).astype(np.float32), 16_000)
    assert measures.rms_dbfs == pytest.approx(-3.01, abs=0.01)
    assert measures.seconds == 2.0
    assert measures.peak == pytest.approx(1.0, abs=1e-3)
    assert measures.snr_db < 1
    padded = measure(np.concatenate([np.zeros(16_000, np.float32), SPEECH[:16_000]]), 16_000)
    assert padded.silence_share == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("wave", "expected"),
    [
        (SPEECH, []),
        (SPEECH * 3.2, []),  # normalised
        (np.clip(SPEECH * 20, -1, 1), ["clipped"]),
        (np.clip(SPEECH * 20, -1, 1) * 0.3, ["clipped"]),  # clipped, then turned down
        (SPEECH * 0.002, ["quiet"]),
        (SPEECH + 0.1, ["dc"]),
        (np.zeros(16_000), ["silent"]),
        (np.full(16_000, 1 / 32768), ["silent"]),
        (SPEECH[:800], ["short"]),
        (NOISE, ["no speech"]),
        (0.3 * np.sin(2 * np.pi * 440 * TIME), ["no speech"]),
        (np.concatenate([np.zeros(160_000), SPEECH[:8000]]), ["pauses"]),
    ],
)
def test_what_is_found(wave, expected):
    assert kinds(wave) == expected


def test_only_what_cannot_teach_is_refused():
    refused = [kind for wave in (np.zeros(16_000), SPEECH[:800], NOISE) for kind in kinds(wave)]
    assert refused == ["silent", "short", "no speech"]
    usable = [finding.usable for wave in (np.zeros(16_000), SPEECH[:800], NOISE) for finding in found(wave)]
    assert usable == [False, False, True]


def found(wave):
    return findings(measure(np.asarray(wave, np.float32), 16_000))


def test_one_sample_can_be_measured():
    assert kinds(np.ones(1)) == ["short"]


def test_what_is_too_long_to_learn_at_once_is_refused_with_the_way_to_cut_it():
    wave = np.sin(np.arange(8000 * 601) / 10).astype(np.float32)
    (finding,) = findings(measure(wave, 8000))
    assert (finding.kind, finding.usable) == ("long", False)
    assert "--transcript" in finding.fix

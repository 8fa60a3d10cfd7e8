"""Features equal the feature extractor's own to the last bit, whatever the length and level of the sound."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from voxtral_finetune.data import audio
from voxtral_finetune.data.mel import log_mel


@pytest.fixture(
    scope="module", params=[(4, 80), (4, 128), (30, 80), (30, 128)], ids=lambda param: f"{param[0]} s, {param[1]} bins"
)
def extractor(request):
    seconds, bins = request.param
    return WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds)


def by_extractor(extractor, wave):
    """The common way: every frame of the padded wave is computed."""
    windows = max(1, -(-len(wave) // extractor.n_samples))
    padded = np.pad(wave, (0, windows * extractor.n_samples - len(wave)))
    options = {"sampling_rate": 16_000, "return_tensors": "pt", "padding": False, "truncation": False}
    mel = extractor(padded, **options)["input_features"][0]
    return mel.reshape(len(mel), windows, -1).transpose(0, 1)


def noise(samples, level=0.1, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def assert_equal(extractor, wave):
    made, expected = log_mel(extractor, wave, extractor.n_samples), by_extractor(extractor, wave)
    assert made.dtype == torch.float32
    assert made.shape == expected.shape
    assert torch.equal(made, expected), f"{len(wave)} samples: {(made - expected).abs().max()}"


@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 199, 200, 201, 399, 400, 401, 16_000])
def test_short_sounds(extractor, samples):
    assert_equal(extractor, noise(samples))


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("more", [-721, -720, -401, -400, -361, -360, -241, -240, -201, -200, -160, -40, -1, 0, 1, 200])
def test_sounds_that_end_near_the_end_of_a_window(extractor, windows, more):
    assert_equal(extractor, noise(windows * extractor.n_samples + more))


def test_any_length_and_level(extractor):
    random = np.random.default_rng(1)
    for seed in range(15):
        wave = noise(int(random.integers(2.5 * extractor.n_samples)), 10 ** random.uniform(-8, 0.5), seed)
        assert_equal(extractor, wave)


@pytest.mark.parametrize("samples", [0, 5000, 64_000, 64_001])
def test_silence_is_its_own_loudest(extractor, samples):
    silence = np.zeros(samples, np.float32)
    assert_equal(extractor, silence)
    assert (log_mel(extractor, silence, extractor.n_samples) == -1.5).all()


def test_the_floor_is_that_of_the_whole_recording(extractor):
    wave = np.concatenate([noise(extractor.n_samples, 0.5), noise(8000, 1e-6)])
    assert_equal(extractor, wave)
    assert_equal(extractor, wave[::-1].copy())  # the loud window is the last one


def test_a_click_in_the_last_sample_is_heard(extractor):
    wave = np.zeros(12_345, np.float32)
    wave[-1] = 1.0
    assert_equal(extractor, wave)
    assert log_mel(extractor, wave, extractor.n_samples).max() > 0


def test_rows_of_several_windows():
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=30)
    for seconds in (3, 30, 41):
        assert_equal(extractor, noise(seconds * 16_000))


def test_several_threads_change_nothing(extractor):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for samples in (20_011, extractor.n_samples - 999):
            assert_equal(extractor, noise(samples))
    finally:
        torch.set_num_threads(before)


def test_other_processors():
    """MKL as it computes without AVX-512 (x86 only), where the order of its sums depends on the number of columns."""
    chosen = (test_any_length_and_level, test_rows_of_several_windows, test_several_threads_change_nothing)
    tests = [f"{__file__}::{test.__name__}" for test in chosen]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, env={**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX2"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_real_speech(extractor, speech_data):
    for name in ("ivr_en", "fleurs_5lang", "fsdd", "longform"):
        lines = (speech_data / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[:3]:
            assert_equal(extractor, audio.load(speech_data / name / json.loads(line)["audio_path"]))

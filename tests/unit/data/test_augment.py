"""What is changed in speech is bounded, is drawn from the seed alone, and leaves the rest as it was."""

import numpy as np
import pytest
import soundfile
import soxr
import torch

from voxtral_finetune.data import audio
from voxtral_finetune.data.augment import NoiseBank, change_speed, length_after, spec_augment, speed_factor
from voxtral_finetune.errors import DataError

RATE = 16_000


def random(seed=0):
    return np.random.default_rng(seed)


def tone(seconds=1.0, frequency=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def noise(seconds=1.0, level=0.1, seed=0):
    return (level * random(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def test_speed_is_drawn_evenly_from_seed_epoch_and_sound():
    factors = [speed_factor(0, 1, str(key)) for key in range(2000)]
    assert 0.9 <= min(factors) < 0.901
    assert 1.099 < max(factors) < 1.1
    assert np.mean(factors) == pytest.approx(1.0, abs=0.005)
    assert factors[7] == speed_factor(0, 1, "7")
    assert len({speed_factor(*drawn) for drawn in [(0, 1, "7"), (1, 1, "7"), (0, 2, "7"), (0, 1, "8")]}) == 4


def test_the_length_after_a_change_of_speed_is_known_before():
    drawn = random()
    for number in range(300):
        samples, factor = int(drawn.integers(40_000)), speed_factor(0, 0, str(number))
        assert len(change_speed(np.zeros(samples, np.float32), factor)) == length_after(samples, factor)
    for samples in range(1, 40):  # where samples / factor ends in exactly a half
        for factor in (0.9375, 1.0625, 1.09375):
            assert len(change_speed(np.zeros(samples * 17, np.float32), factor)) == length_after(samples * 17, factor)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_resampler_that_rounds_otherwise_moves_no_plan(monkeypatch, more):
    monkeypatch.setattr(soxr, "resample", lambda wave, *_, **__: np.ones(length_after(len(wave), 1.05) + more, "f4"))
    assert len(change_speed(tone(), 1.05)) == length_after(RATE, 1.05)


def test_faster_speech_is_shorter_and_higher():
    wave = change_speed(tone(frequency=1000), 1.1)
    assert wave.dtype == np.float32
    assert len(wave) == round(RATE / 1.1)
    spectrum = np.abs(np.fft.rfft(wave))
    assert spectrum.argmax() * RATE / len(wave) == pytest.approx(1100, abs=2)
    assert np.abs(wave[1000:-1000]).max() == pytest.approx(0.3, rel=0.01)


def bank(folder, *waves, rate=RATE, name="{}.flac"):
    folder.mkdir(exist_ok=True)
    for number, wave in enumerate(waves):
        soundfile.write(folder / name.format(number), wave, rate)
    return NoiseBank(folder)


def snr(speech, mixed):
    """In dB, over the part of `speech` that speaks."""
    added = (mixed - speech).astype(np.float64)
    speaking = speech[np.abs(speech) > 0]
    return 10 * np.log10(np.mean(speaking.astype(np.float64) ** 2) / np.mean(added**2))


def test_noise_lies_5_to_20_db_under_speech_whatever_the_pauses(tmp_path):
    noises = bank(tmp_path / "noise", noise(20, 0.2))
    speech = tone(3, 440.5)
    speech[RATE : 2 * RATE] = 0
    drawn = random()
    ratios = [snr(speech, noises.mix(speech, drawn)) for _ in range(60)]
    assert 4.9 <= min(ratios) < 7
    assert 18 < max(ratios) <= 20.1


def test_what_is_mixed_follows_from_the_generator(tmp_path):
    noises = bank(tmp_path / "noise", noise(5, seed=1), noise(5, seed=2))
    first, again, other = (noises.mix(tone(), random(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_noise_comes_from_all_recordings_and_places(tmp_path):
    steady = [np.full(5 * RATE, 0.1, np.float32), np.full(5 * RATE, -0.1, np.float32)]
    ramp = np.linspace(0.01, 0.5, 100 * RATE, dtype=np.float32)
    signs = {np.sign((bank(tmp_path / "two", *steady).mix(tone(), random(seed)) - tone()).mean()) for seed in range(20)}
    assert signs == {1.0, -1.0}
    parts = bank(tmp_path / "one", ramp)
    places = [parts._part(RATE, random(seed)).mean() for seed in range(40)]
    assert min(places) < 0.1
    assert max(places) > 0.4
    short = bank(tmp_path / "short", ramp[::100])
    assert len({short._part(2 * RATE, random(seed))[0] for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("rate", "name"), [(RATE, "{}.wav"), (44_100, "{}.mp3"), (8_000, "{}.flac"), (48_000, "{}.ogg")]
)
def test_noise_may_be_shorter_than_speech_and_in_any_format(tmp_path, rate, name):
    noises = bank(tmp_path / "noise", noise(1), rate=rate, name=name)
    speech = tone(4.5)
    added = noises.mix(speech, random()) - speech
    blocks = np.abs(added[: len(added) // 800 * 800].reshape(-1, 800)).max(axis=1)
    assert (blocks > 0.001).mean() > 0.95  # it goes on to the end


def test_peaks_stay_within_full_scale(tmp_path):
    noises = bank(tmp_path / "noise", noise(5, 0.2))
    peaks = [np.abs(noises.mix(tone(level=1.0), random(seed))).max() for seed in range(10)]
    assert max(peaks) == 1.0


@pytest.mark.parametrize("speech", [np.zeros(0, np.float32), np.zeros(RATE, np.float32)])
def test_silence_stays_silent(tmp_path, speech):
    assert np.array_equal(bank(tmp_path / "noise", noise()).mix(speech, random()), speech)


def test_a_silent_noise_adds_nothing(tmp_path):
    assert np.array_equal(bank(tmp_path / "noise", np.zeros(RATE, np.float32)).mix(tone(), random()), tone())


def test_speech_of_a_few_samples_is_mixed_too(tmp_path):
    assert len(bank(tmp_path / "noise", noise()).mix(tone()[:100], random())) == 100


def test_of_a_long_recording_only_a_part_is_read(tmp_path, monkeypatch):
    noises = bank(tmp_path / "noise", noise(60))
    decode, lengths = audio.decode, []

    def counted(*given):
        sound = decode(*given)
        lengths.append(sound.seconds)
        return sound

    monkeypatch.setattr(audio, "decode", counted)
    noises.mix(tone(2), random())
    assert max(lengths) < 2.1


def test_what_is_no_audio_or_broken_off_is_passed_over(tmp_path):
    folder = tmp_path / "noise"
    bank(folder, noise(5))
    whole = (folder / "0.flac").read_bytes()
    (folder / "broken.flac").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "LICENSE.wav").write_text("Do what you like.")
    (folder / "sub").mkdir()
    soundfile.write(folder / "sub" / "deep.wav", noise(), RATE)
    assert [path.name for path, _ in NoiseBank(folder).files] == ["0.flac", "deep.wav"]
    assert [path.name for path, _ in NoiseBank([folder / "0.flac", folder / "gone.wav"]).files] == ["0.flac"]


@pytest.mark.parametrize("content", [None, {}, {"notes.txt": b"hiss"}])
def test_a_folder_without_audio_is_named(tmp_path, content):
    folder = tmp_path / "noises"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_bytes(text)
    with pytest.raises(DataError, match="noises holds no audio"):
        NoiseBank(folder)
    with pytest.raises(DataError, match="list of noise recordings holds no audio"):
        NoiseBank([])


def test_real_noise(speech_data):
    noises = NoiseBank((speech_data / "noise_rir" / "audio").glob("noise*.flac"))
    for seed in range(10):
        mixed = noises.mix(tone(2), random(seed))
        assert 4 <= snr(tone(2), mixed) <= 21
        assert np.abs(mixed).max() <= 1


def hidden(mel, frames, seed):
    """Which values of (bins, all frames) a masking changed."""
    before = mel.clone()
    made = spec_augment(mel, frames, random(seed))
    assert torch.equal(mel, before)
    assert made.shape == mel.shape
    assert made.dtype == mel.dtype
    return (made != mel).transpose(0, 1).flatten(1), made


@pytest.mark.parametrize(
    ("windows", "bins", "length", "frames"), [(1, 128, 3000, 500), (1, 80, 400, 123), (3, 80, 400, 1001)]
)
def test_masks_hide_two_bands_and_two_moments_of_the_sound_only(windows, bins, length, frames):
    mel = torch.from_numpy(random().uniform(-1, 1, (windows, bins, length)).astype(np.float32))
    most = (int(bins * 27 / 128), min(int(frames * 0.05), 50))
    widest = [0, 0]
    for seed in range(60):
        changed, made = hidden(mel, frames, seed)
        assert not changed[:, frames:].any()
        changed = changed[:, :frames]
        rows, columns = changed.all(1), changed.all(0)
        assert torch.equal(changed, rows[:, None] | columns[None, :])  # whole bands and moments, nothing else
        for place, line in enumerate((rows, columns)):
            starts = line[0].int() + (line[1:] & ~line[:-1]).sum()
            assert starts <= 2
            assert line.sum() <= 2 * most[place]
            widest[place] = max(widest[place], int(line.sum()))
        flat = mel.transpose(0, 1).flatten(1)
        values = made.transpose(0, 1).flatten(1)[:, :frames][changed]
        assert torch.allclose(values, flat[:, :frames].mean(), atol=1e-6)
    assert widest[0] > most[0]  # both masks count
    assert widest[1] > most[1]


def test_masks_follow_from_the_generator():
    mel = torch.randn(1, 80, 400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(spec_augment(mel, 300, random(1)), spec_augment(mel, 300, random(1)))
    assert not torch.equal(spec_augment(mel, 300, random(1)), spec_augment(mel, 300, random(2)))


@pytest.mark.parametrize("frames", [0, 1, 19, 5000])
def test_masks_fit_any_number_of_frames(frames):
    mel = torch.randn(1, 80, 400, generator=torch.Generator().manual_seed(0))
    changed, _ = hidden(mel, frames, 0)
    assert not changed[:, frames:].any()

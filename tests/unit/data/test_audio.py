import numpy as np
import pytest
import soundfile

from voxtral_finetune.data import audio
from voxtral_finetune.errors import DataError


def tone(seconds=0.5, rate=16_000):
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_with_av(path, wave, rate, codec, container):
    import av

    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.rate = rate
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=rate, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))


def test_channels_are_averaged_and_rates_are_brought_to_16_khz(tmp_path):
    left = tone(rate=44_100)
    soundfile.write(tmp_path / "s.wav", np.stack([left, 0 * left], axis=1), 44_100)
    wave = audio.load(tmp_path / "s.wav")
    assert wave.dtype == np.float32
    assert abs(len(wave) - 8000) <= 1
    assert np.abs(wave).max() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(("codec", "container", "name"), [("aac", "mp4", "a.m4a"), ("libopus", "webm", "a.webm")])
def test_what_libsndfile_does_not_know_is_read_by_pyav(tmp_path, codec, container, name):
    write_with_av(tmp_path / name, tone(1.0, 48_000), 48_000, codec, container)
    wave = audio.load(tmp_path / name)
    assert len(wave) == pytest.approx(16_000, rel=0.1)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_a_playlist_named_wav_does_not_open_other_files(tmp_path):
    soundfile.write(tmp_path / "secret.wav", tone(), 16_000)
    (tmp_path / "cat.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    with pytest.raises(DataError, match=r"cat\.wav is not audio"):
        audio.load(tmp_path / "cat.wav")


@pytest.mark.parametrize("content", [b"", b"hello", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_audio_is_named(tmp_path, content):
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.wav"):
        audio.load(tmp_path / "x.wav")


def test_a_missing_file_and_an_empty_one_are_named(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        audio.load(tmp_path / "x.wav")
    soundfile.write(tmp_path / "e.wav", tone()[:0], 16_000)
    with pytest.raises(DataError, match="holds no sound"):
        audio.load(tmp_path / "e.wav")


def test_samples_that_are_not_numbers_are_refused(tmp_path):
    wave = tone()
    wave[10] = np.nan
    soundfile.write(tmp_path / "n.wav", wave, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match="not numbers"):
        audio.load(tmp_path / "n.wav")


def test_an_absurd_rate_is_refused_before_anything_is_allocated(tmp_path):
    soundfile.write(tmp_path / "r.wav", tone(), 1)
    with pytest.raises(DataError, match="1 samples a second"):
        audio.load(tmp_path / "r.wav")


def test_the_hash_is_of_the_sound_and_not_of_the_file(tmp_path):
    audio.write(tmp_path / "a.wav", tone(), 16_000)
    audio.write(tmp_path / "b.flac", tone(), 16_000)
    audio.write(tmp_path / "c.wav", -tone(), 16_000)
    first, same, other = (audio.content_hash(*audio.read(tmp_path / name)) for name in ("a.wav", "b.flac", "c.wav"))
    assert first == same != other

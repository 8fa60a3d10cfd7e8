import os
import tracemalloc
from pathlib import Path

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


def test_rates_are_brought_to_16_khz(tmp_path):
    soundfile.write(tmp_path / "s.wav", tone(rate=44_100), 44_100)
    wave = audio.load(tmp_path / "s.wav")
    assert wave.dtype == np.float32
    assert abs(len(wave) - 8000) <= 1
    assert np.abs(wave).max() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("gains", "peak"),
    [
        ([1, 1], 0.3),
        ([0, 1], 0.3),  # speech on one side keeps its level
        ([1, 0.001], 0.3),  # and so it does beside a noise floor
        ([0, 0, 1, 0, 0, 0], 0.3),  # 5.1 with speech in the centre: an average of six would be 15.6 dB quieter
        ([1, 0.5], 0.225),
        ([0, 0], 0.0),
    ],
)
def test_the_channels_that_carry_signal_are_averaged(gains, peak):
    mono, cancelled = audio.downmix(np.stack([gain * tone() for gain in gains], axis=1).astype(np.float32))
    assert np.abs(mono).max() == pytest.approx(peak, rel=0.01)
    assert not cancelled


def test_two_voices_on_two_channels_are_both_heard():
    left, right = tone(), np.roll(tone(), 4000) * np.linspace(0, 1, 8000, dtype=np.float32)
    mono, _ = audio.downmix(np.stack([left, right], axis=1))
    assert np.allclose(mono, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("gain", [-1.0, -0.98])
def test_where_channels_cancel_the_louder_one_is_heard_and_it_is_said(tmp_path, gain):
    soundfile.write(tmp_path / "a.wav", np.stack([gain * tone(), tone()], axis=1), 16_000)
    sound = audio.decode(tmp_path / "a.wav")
    assert np.abs(np.abs(sound.wave) - np.abs(tone())).max() < 1e-4
    assert [finding.kind for finding in sound.findings] == ["channels"]


@pytest.mark.parametrize(("codec", "container", "name"), [(None, None, "a.flac"), ("aac", "mp4", "a.m4a")])
def test_a_part_is_the_same_samples_as_in_the_whole(tmp_path, codec, container, name):
    wave = (tone(2.0, 48_000) * np.linspace(0, 1, 96_000)).astype(np.float32)
    if codec:
        write_with_av(tmp_path / name, wave, 48_000, codec, container)
    else:
        audio.write(tmp_path / name, wave, 48_000)
    whole, part = audio.decode(tmp_path / name), audio.decode(tmp_path / name, 0.5, 0.25)
    assert np.array_equal(part.wave, whole.wave[24_000:36_000])
    assert len(audio.decode(tmp_path / name, 1.0).wave) == len(whole.wave) - 48_000
    assert len(audio.load(tmp_path / name, 0.5, 0.25)) == 4000
    with pytest.raises(DataError, match="ends before 9 s"):
        audio.decode(tmp_path / name, 9.0, 1.0)


def riff(path, said, there=8000):
    soundfile.write(path, tone(there / 16_000), 16_000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[40:44] = said.to_bytes(4, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("said", "seconds", "note"),
    [
        (16_000, 0.5, None),
        (0xFFFFFFFF, 0.5, None),  # what a pipe leaves there
        (160_000, 0.5, "promises 5.0 s; 0.5 s are there"),
        (0, 0.5, "says it is empty; 0.5 s were read"),
        (8_000, 0.25, "ends it after 0.2 s; 8 kB follow"),
    ],
)
def test_a_wav_header_that_lies_is_noted_and_costs_no_memory(tmp_path, said, seconds, note):
    riff(tmp_path / "a.wav", said)
    sound = audio.decode(tmp_path / "a.wav")
    assert sound.seconds == pytest.approx(seconds, abs=0.001)
    assert [note in finding.what for finding in sound.findings] == ([True] if note else [])


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    """24 hours of silence are 0.5 MB of FLAC."""
    with soundfile.SoundFile(tmp_path / "b.flac", "w", 4000, 1, "PCM_16") as file:
        for _ in range(24):
            file.write(np.zeros(4000 * 3600, np.int16))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"24\.0 hours"):
        audio.load(tmp_path / "b.flac")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_pipes_folders_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "p.wav")
    for path in (tmp_path / "p.wav", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            audio.decode(path)


def test_a_git_lfs_pointer_says_how_to_get_the_file(tmp_path):
    (tmp_path / "a.flac").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match="git lfs pull"):
        audio.load(tmp_path / "a.flac")


@pytest.mark.parametrize(("codec", "container", "name"), [("aac", "mp4", "a.m4a"), ("libopus", "webm", "a.webm")])
def test_what_libsndfile_does_not_know_is_read_by_pyav(tmp_path, codec, container, name):
    write_with_av(tmp_path / name, tone(1.0, 48_000), 48_000, codec, container)
    wave = audio.load(tmp_path / name)
    assert len(wave) == pytest.approx(16_000, rel=0.1)
    assert np.sqrt(np.mean(wave**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
}


@pytest.mark.parametrize("text", PLAYLISTS.values(), ids=PLAYLISTS)
@pytest.mark.parametrize("sniffed", [True, False])
def test_a_playlist_named_wav_does_not_open_other_files(tmp_path, monkeypatch, text, sniffed):
    write_with_av(tmp_path / "secret.mp4", tone(), 16_000, "aac", "mp4")
    (tmp_path / "cat.wav").write_text(text)
    monkeypatch.chdir(tmp_path)
    if not sniffed:  # FFmpeg is told, too: the first bytes are not the only guard
        monkeypatch.setattr(audio, "is_audio", lambda head: True)
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

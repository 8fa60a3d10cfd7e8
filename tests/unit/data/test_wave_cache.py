"""The cache gives what decoding gives, or decodes: whatever state its folder is in."""

import errno
import multiprocessing
import os
import shutil
import time
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxtral_finetune.data import audio, wave_cache
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.errors import DataError

ROOMY = 10**9
SHA = "ab" + "0" * 62


def noise(seconds=0.5, rate=44_100, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(np.float32)


@pytest.fixture
def row(tmp_path):
    soundfile.write(tmp_path / "a.mp3", noise(), 44_100)
    return Utterance(tmp_path / "a.mp3", "one", sha256=SHA)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "waves"


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in order."""
    load, names = audio.load, []

    def counted(path, *span):
        names.append(path.name)
        return load(path, *span)

    monkeypatch.setattr(audio, "load", counted)
    return names


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "size")


def held(folder):
    return sum(path.stat().st_size for path in files(folder))


@pytest.mark.parametrize(
    ("name", "rate"), [("a.mp3", 44_100), ("a.flac", 16_000), ("a.wav", 48_000), ("a.ogg", 16_000)]
)
def test_samples_are_those_of_decoding_and_are_decoded_once(tmp_path, folder, decoded, name, rate):
    soundfile.write(tmp_path / name, noise(rate=rate), rate)
    row = Utterance(tmp_path / name, "one", sha256=SHA)
    expected = audio.load(row.audio)
    decoded.clear()
    first, second = WaveCache(folder, ROOMY).load(row), WaveCache(folder, ROOMY).load(row)
    assert decoded == [name]
    for wave in (first, second):
        assert wave.dtype == np.float32
        assert wave.flags.writeable
        assert np.array_equal(wave, expected)


def test_it_counts_what_it_did(tmp_path, folder, row):
    audio.write(tmp_path / "direct.wav", noise(rate=16_000), 16_000)
    cache = WaveCache(folder, ROOMY)
    for each in (row, row, Utterance(tmp_path / "direct.wav", "two", sha256="c" * 64)):
        cache.load(each)
    assert cache.stats() == {"hits": 1, "direct": 1, "misses": 1, "bytes": held(folder)}


@pytest.mark.parametrize(
    ("subtype", "channels", "rate", "kept"),
    [
        ("PCM_16", 1, 16_000, 0),
        ("FLOAT", 1, 16_000, 0),
        ("PCM_16", 2, 16_000, 1),
        ("PCM_16", 1, 8_000, 1),
    ],
)
def test_only_a_wav_that_needs_nothing_done_is_read_where_it_lies(tmp_path, folder, subtype, channels, rate, kept):
    samples = np.stack([noise(rate=rate)] * channels, axis=1)
    soundfile.write(tmp_path / "named.mp3", samples, rate, subtype=subtype, format="WAV")
    row = Utterance(tmp_path / "named.mp3", "one", sha256=SHA)
    cache = WaveCache(folder, ROOMY)
    for _ in range(2):
        assert np.array_equal(cache.load(row), audio.load(row.audio))
    assert len(files(folder)) == kept


def test_parts_of_a_file_are_kept_apart(tmp_path, folder):
    soundfile.write(tmp_path / "long.flac", noise(2.0), 44_100)
    whole = Utterance(tmp_path / "long.flac", "one", sha256=SHA)
    parts = [Utterance(whole.audio, "one", seconds=0.5, sha256=SHA, offset=offset, part=True) for offset in (0.0, 0.7)]
    for _ in range(2):
        cache = WaveCache(folder, ROOMY)
        for row in (whole, *parts):
            assert np.array_equal(cache.load(row), audio.load(row.audio, *row.span))
    assert cache.stats()["hits"] == 3


def test_a_changed_recording_of_the_same_size_is_decoded_again(tmp_path, folder):
    soundfile.write(tmp_path / "a.wav", noise(), 44_100)
    row = Utterance(tmp_path / "a.wav", "one", sha256=SHA)
    cache = WaveCache(folder, ROOMY)
    before = cache.load(row)
    status = row.audio.stat()
    soundfile.write(row.audio, noise(seed=1), 44_100)
    os.utime(row.audio, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = cache.load(row)
    assert np.array_equal(after, audio.load(row.audio))
    assert not np.array_equal(after, before)


def test_another_decoder_is_asked_again(folder, row, monkeypatch, decoded):
    WaveCache(folder, ROOMY).load(row)
    monkeypatch.setattr(wave_cache, "DECODERS", ("another",))
    WaveCache(folder, ROOMY).load(row)
    assert len(decoded) == 2


@pytest.mark.parametrize("sha256", [None, "", "../../../outside", "AB" + "0" * 62])
def test_a_row_without_a_hash_is_decoded(tmp_path, folder, row, sha256):
    cache = WaveCache(folder, ROOMY)
    wave = cache.load(Utterance(row.audio, "one", sha256=sha256))
    assert np.array_equal(wave, audio.load(row.audio))
    assert files(folder) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp3", "cache", "home"]


def test_a_missing_recording_is_said_to_be_missing(folder, row):
    cache = WaveCache(folder, ROOMY)
    cache.load(row)
    row.audio.unlink()
    with pytest.raises(DataError, match="missing"):
        cache.load(row)


def torn(content):
    yield "empty", b""
    yield "header cut", content[:10]
    yield "cut", content[:-400]
    yield "longer", content + b"\0\0\0\0"
    yield "zeros, as after a power cut", bytes(len(content))
    yield "zeros in the end", content[:-400] + bytes(400)
    yield "one bit", content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    yield "another kind", b"RIFF" + content[4:]


def test_a_torn_file_is_noticed_and_made_again(folder, row, decoded):
    cache = WaveCache(folder, ROOMY)
    expected = cache.load(row)
    (path,) = files(folder)
    content = path.read_bytes()
    for what, damaged in torn(content):
        path.write_bytes(damaged)
        decoded.clear()
        assert np.array_equal(cache.load(row), expected), what
        assert decoded, what
        assert path.read_bytes() == content, what


def rows_of(tmp_path, count):
    rows = []
    for number in range(count):
        soundfile.write(tmp_path / f"{number}.flac", noise(seed=number), 44_100)
        rows.append(Utterance(tmp_path / f"{number}.flac", "one", sha256=f"{number:064x}"))
    return rows


def test_it_never_holds_more_than_its_limit(tmp_path, folder):
    rows = rows_of(tmp_path, 6)
    one = 4 * 8000 + wave_cache.HEADER.size
    caches = [WaveCache(folder, 3 * one + one // 2) for _ in range(2)]  # two runs at once
    for number, row in enumerate(rows):
        assert np.array_equal(caches[number % 2].load(row), audio.load(row.audio))
    assert len(files(folder)) == 3
    assert held(folder) == 3 * one == caches[0].stats()["bytes"]
    later = WaveCache(folder, 4 * one)  # what is there from earlier counts
    for row in rows:
        later.load(row)
    assert held(folder) == 4 * one


def test_what_another_run_is_writing_counts(folder, row, monkeypatch):
    cache, checksum, counted = WaveCache(folder, ROOMY), zlib.crc32, []

    def another_run_begins(samples):
        counted.append(WaveCache(folder, ROOMY).stats()["bytes"])
        return checksum(samples)

    monkeypatch.setattr(zlib, "crc32", another_run_begins)
    cache.load(row)
    assert counted == [held(folder)]


Disk = namedtuple("Disk", "total used free")


@pytest.mark.parametrize("disk", [Disk(10**10, 0, 2 * 10**9), Disk(10**12, 0, 49 * 10**9)])
def test_the_disk_keeps_room(folder, row, monkeypatch, disk):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    assert np.array_equal(WaveCache(folder, ROOMY).load(row), audio.load(row.audio))
    assert files(folder) == []


def test_a_full_disk_is_no_fault(folder, row, monkeypatch, decoded):
    cache = WaveCache(folder, ROOMY)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    expected = audio.load(row.audio)
    for _ in range(2):
        assert np.array_equal(cache.load(row), expected)
    assert files(folder) == []  # nothing half-written is left


@pytest.mark.parametrize("obstacle", ["file", "gone"])
def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path, row, obstacle):
    folder = tmp_path / "waves"
    if obstacle == "file":
        folder.write_text("not a folder")
    cache = WaveCache(folder, ROOMY)
    if obstacle == "gone":
        shutil.rmtree(folder)
    for _ in range(2):
        assert np.array_equal(cache.load(row), audio.load(row.audio))
    assert cache.stats() == {"hits": 0, "direct": 0, "misses": 2, "bytes": 0}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_read(folder, row):
    WaveCache(folder, ROOMY).load(row)
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555)
    try:
        cache = WaveCache(folder, ROOMY)
        cache.load(row)
        assert cache.stats()["hits"] == 1
    finally:
        for path in everything:
            path.chmod(0o755)


def aged(path, days):
    os.utime(path, (time.time() - days * 86_400,) * 2)


def test_what_nobody_reads_for_a_month_goes_and_what_is_read_stays(tmp_path, folder):
    rows = rows_of(tmp_path, 2)
    cache = WaveCache(folder, ROOMY)
    for row in rows:
        cache.load(row)
    read, unread = files(folder)
    aged(read, 29), aged(unread, 31)
    half = unread.with_name(f"{unread.name}.0123")  # of a process that was killed
    half.write_bytes(bytes(100))
    aged(half, 0.1)
    cache = WaveCache(folder, ROOMY)
    assert files(folder) == [read]
    assert cache.stats()["bytes"] == held(folder)
    cache.load(rows[0])
    assert time.time() - read.stat().st_mtime < 3600


def work(cache, rows, failed):
    for row in rows:
        if not np.array_equal(cache.load(row), audio.load(row.audio)):
            failed.set()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_several_processes_share_it(tmp_path, folder, start):
    rows = rows_of(tmp_path, 12)
    one = 4 * 8000 + wave_cache.HEADER.size
    cache = WaveCache(folder, 8 * one)
    context = multiprocessing.get_context(start)
    failed = context.Event()
    workers = [context.Process(target=work, args=(cache, rows, failed)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not failed.is_set()
    assert 0 < held(folder) <= 8 * one
    assert all(path.suffix == ".f32" for path in files(folder))
    assert cache.stats()["misses"] >= 12  # workers' counts arrive here
    assert WaveCache(folder, 8 * one).stats()["bytes"] == held(folder)

import json
import os
import shutil

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from tests.conftest import spoken
from voxtral_finetune.cli import main
from voxtral_finetune.data import audio
from voxtral_finetune.data import prepare as module
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.prepare import prepare
from voxtral_finetune.errors import DataError


@pytest.fixture
def source(tmp_path):
    """Six takes in the forms that recordings come in, with everything that may be known about them."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = []
    for number in range(6):
        wave = spoken("low mid high low", rate=44_100, seed=number)
        soundfile.write(folder / f"{number}.wav", np.stack([wave, wave], axis=1), 44_100, subtype="PCM_24")
        rows.append({"audio": f"{number}.wav", "text": f" Take  {number}\u200b", "lang": "EN", "client_id": "ana"})
        rows[-1] |= {"split": "test" if number else "train", "source": "me", "license": "CC0-1.0", "consent": "signed"}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_carried_into_flac_at_the_native_rate(source, tmp_path):
    done = prepare(source, tmp_path / "c")
    assert (done.added, done.known, done.changed, done.problems) == (6, 0, 6, [])
    rows = Corpus(tmp_path / "c").survey().utterances
    assert [row.text for row in rows] == [f"Take {number}" for number in range(6)]
    first = rows[0]
    facts = (first.language, first.speaker, first.split, first.source, first.licence, first.consent, first.seconds)
    assert facts == ("en", "ana", "train", "me", "CC0-1.0", "signed", 1.2)
    info = soundfile.info(first.audio)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 44_100, 1)
    whole, _ = audio.read(source.parent / "0.wav")
    assert np.abs(audio.read(first.audio)[0] - whole).max() <= 1 / 65536
    assert first.audio.stem == first.sha256[:32]


def test_no_tag_of_a_file_reaches_the_corpus(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 16_000, 1, "PCM_16") as file:
        file.title = file.artist = "SECRET-PLACE"
        file.write(spoken("low mid high"))
    (tmp_path / "a.txt").write_text("x")
    assert b"SECRET-PLACE" in (tmp_path / "a.flac").read_bytes()
    prepare(tmp_path, tmp_path / "out" / "c")
    assert not any(b"SECRET-PLACE" in content for content in contents(tmp_path / "out").values())


def test_each_changed_text_is_listed(source, tmp_path):
    prepare(source, tmp_path / "c")
    changes = [json.loads(line) for line in (tmp_path / "c" / "changes.jsonl").read_text().splitlines()]
    assert changes[2]["before"] == " Take  2\u200b"
    assert (changes[2]["after"], changes[2]["line"]) == ("Take 2", 3)
    assert (tmp_path / "c" / changes[2]["audio_path"]).exists()


def test_running_again_changes_nothing_and_decodes_nothing(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "c")
    before = contents(tmp_path / "c")
    monkeypatch.setattr(module, "examine", lambda row: pytest.fail("decoded again"))
    done = prepare(source, tmp_path / "c")
    assert (done.added, done.known) == (0, 6)
    assert contents(tmp_path / "c") == before


def test_an_interrupted_run_goes_on_where_it_was(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)

    def interrupt(done, _):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "c", progress=interrupt)
    with (tmp_path / "c" / "data.jsonl").open("a") as file:
        file.write('{"audio_path": "audio/x.flac", "te')  # as a crash leaves it
    done = prepare(source, tmp_path / "c")
    assert (done.added, done.known) == (2, 4)
    rows, problems = Corpus(tmp_path / "c").rows()
    assert sorted(row.text for row in rows) == [f"Take {number}" for number in range(6)]
    assert len(problems) == 1
    assert len((tmp_path / "c" / "changes.jsonl").read_text().splitlines()) == 6


def test_new_rows_are_added_and_the_same_sound_is_kept_once(source, tmp_path):
    prepare(source, tmp_path / "c")
    with source.open("a") as file:
        for text in ("Take 0", "something else", "Take  0"):
            file.write(json.dumps({"audio": "0.wav", "text": text}) + "\n")
    done = prepare(source, tmp_path / "c")
    assert done.added == 1
    assert [problem.kind for problem in done.problems] == ["duplicate", "conflict", "duplicate"]
    assert len(list((tmp_path / "c" / "audio").iterdir())) == 6


def test_many_copies_of_one_sound_are_written_as_one_file(source, tmp_path):
    rows = [{"audio": "0.wav", "text": f"text {number}"} for number in range(60)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prepare(source, tmp_path / "c").added == 60
    assert len(list((tmp_path / "c" / "audio").iterdir())) == 1
    assert len(Corpus(tmp_path / "c").survey().utterances) == 60


def test_parts_become_files_of_their_own(source, tmp_path):
    row = {"audio": "0.wav", "text": "mid", "offset": 0.3, "duration": 0.3}
    source.write_text(json.dumps(row) + "\n")
    prepare(source, tmp_path / "c")
    (found,) = Corpus(tmp_path / "c").survey().utterances
    whole, _ = audio.read(source.parent / "0.wav")
    assert np.abs(audio.load(found.audio) - audio.resample(whole[13_230:26_460], 44_100)).max() < 1e-3
    assert not found.part


def test_an_archive_leaves_nothing_behind(source, tmp_path):
    shutil.make_archive(str(tmp_path / "a"), "zip", source.parent)
    prepare(tmp_path / "a.zip", tmp_path / "c")
    assert not (tmp_path / "c" / ".unpacked").exists()
    assert not (tmp_path / "home" / "cache").exists()
    assert len(Corpus(tmp_path / "c").survey().utterances) == 6


def test_what_cannot_be_prepared_is_one_message(source, tmp_path):
    with pytest.raises(DataError, match="source itself"):
        prepare(source, source.parent)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        prepare(source, tmp_path / "file" / "c")
    source.write_text('{"audio": "gone.wav", "text": "x"}\n')
    with pytest.raises(DataError, match=r"None of 1 rows.*gone\.wav is missing"):
        prepare(source, tmp_path / "c")


def test_a_full_disk_is_one_message_and_what_was_written_is_whole(source, tmp_path, monkeypatch):
    real = os.fsync

    def full(handle):
        if len(list((tmp_path / "c" / "audio").glob("[!.]*"))) >= 3:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        prepare(source, tmp_path / "c")
    monkeypatch.undo()
    prepare(source, tmp_path / "c")
    survey = Corpus(tmp_path / "c").survey()
    assert len(survey.utterances) == 6
    assert not survey.problems


def test_the_command_says_what_it_did(source, tmp_path):
    with source.open("a") as file:
        file.write('{"audio": "/etc/passwd", "text": "x"}\n')
    result = CliRunner().invoke(main, ["prepare", str(source), "--output", str(tmp_path / "c")])
    assert result.exit_code == 0, result.output
    assert "skipped: line 7: /etc/passwd is outside" in result.output
    assert "6 utterances added" in result.output
    assert "6 texts tidied" in result.output
    wrong = CliRunner().invoke(main, ["prepare", str(source), "--output", "x", "--text-column", "nope"])
    assert wrong.exit_code == 1
    assert "--text-column" in wrong.stderr

import json

import pytest
from click.testing import CliRunner

from tests.conftest import spoken
from voxtral_finetune.cli import main
from voxtral_finetune.data import audio, doctor, doctor_fix
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.data.forget import forget
from voxtral_finetune.data.prepare import prepare
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import DataError

NAME, TEXT = "Zacharias Quill", "My secret  sentence"
"""Of the speaker who withdraws; the text is changed on the way in, so that it is in changes.jsonl as well."""


@pytest.fixture
def corpus(tmp_path):
    """Ana and Zacharias, two takes each; one text of theirs is the same."""
    folder = tmp_path / "source"
    folder.mkdir()
    rows = [("Ana", "low  mid"), ("Ana", "shared"), (NAME, TEXT), (NAME, "shared")]
    with (folder / "rows.jsonl").open("w") as file:
        for number, (speaker, text) in enumerate(rows):
            audio.write(folder / f"{number}.wav", spoken("low mid high", seed=number), 16_000)
            file.write(json.dumps({"audio_path": f"{number}.wav", "text": text, "speaker": speaker}) + "\n")
    return prepare(folder / "rows.jsonl", tmp_path / "c").corpus


def every_byte(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(path.name.encode() + path.read_bytes() for path in files)


def test_no_byte_of_the_speaker_remains(corpus):
    rows = corpus.rows()[0]
    theirs = [row.audio.read_bytes() for row in rows if row.speaker == NAME]
    ids = [row.id for row in rows if row.speaker == NAME]
    (corpus.folder / "cache").mkdir()
    (corpus.folder / "cache" / "features").write_bytes(theirs[0])
    (corpus.folder / ".data.jsonl.77.tmp").write_text(TEXT)
    (corpus.folder / "audio" / "orphan.wav").write_bytes(theirs[1])  # a crash came between audio and row
    with corpus.manifest.open("a") as file:
        file.write(f'{{"audio_path": "audio/x.wav", "speaker": "{NAME}", "te')
    done = forget(corpus.folder, f" {NAME} ")
    assert (done.rows, done.files, done.left) == (3, 3, [])
    content = every_byte(corpus.folder)
    for trace in (NAME.encode(), b"secret", *(name.encode() for name in ids), *(wave[200:400] for wave in theirs)):
        assert trace not in content
    survey = Corpus(corpus.folder).survey()
    assert [(row.speaker, row.text) for row in survey.utterances] == [("Ana", "low mid"), ("Ana", "shared")]
    assert not survey.problems
    assert "low  mid" in (corpus.folder / "changes.jsonl").read_text()


def test_the_same_recording_under_another_name_goes_too(corpus):
    row = next(row for row in corpus.rows()[0] if row.speaker == NAME)
    with corpus.manifest.open("a") as file:
        file.write(json.dumps({"audio_path": f"audio/{row.audio.name}", "text": "x", "speaker": "Ana"}) + "\n")
    assert forget(corpus.folder, NAME).rows == 3
    assert not row.audio.exists()


def test_runs_that_learned_from_the_speaker_are_listed_and_left_alone(corpus, home):
    rows = corpus.rows()[0]
    for name, part in (("with", rows), ("without", [row for row in rows if row.speaker == "Ana"])):
        (home / "outputs" / name).mkdir(parents=True)
        Split(part, [], [], "random", "").save(home / "outputs" / name / "split.json")
    (home / "outputs" / "broken").mkdir()
    (home / "outputs" / "broken" / "split.json").write_text("{")
    done = forget(corpus.folder, NAME)
    assert [run.name for run in done.runs] == ["with"]
    assert (home / "outputs" / "with" / "split.json").exists()


def test_files_of_others_that_still_name_the_speaker_are_listed(corpus):
    (corpus.folder / "README.md").write_text(f"Recorded by {NAME}.")
    assert [path.name for path in forget(corpus.folder, NAME).left] == ["README.md"]


def test_a_name_that_is_not_there_is_an_error_and_nothing_is_touched(corpus):
    before = every_byte(corpus.folder)
    with pytest.raises(DataError, match="no speaker 'zacharias'"):
        forget(corpus.folder, "zacharias")
    assert every_byte(corpus.folder) == before


def test_audio_outside_the_corpus_is_listed_and_not_deleted(tmp_path):
    (tmp_path / "c").mkdir()
    audio.write(tmp_path / "own.wav", spoken("low"), 16_000)
    row = {"audio_path": "../own.wav", "text": "x", "speaker": NAME}
    (tmp_path / "c" / "data.jsonl").write_text(json.dumps(row) + "\n")
    done = forget(tmp_path / "c", NAME)
    assert (done.rows, done.files) == (1, 0)
    assert [path.name for path in done.left] == ["own.wav"]
    assert (tmp_path / "own.wav").exists()


def test_the_command_says_what_is_left_to_do(corpus, home):
    (home / "outputs" / "run").mkdir(parents=True)
    Split(corpus.rows()[0], [], [], "random", "").save(home / "outputs" / "run" / "split.json")
    result = CliRunner().invoke(main, ["forget", "--speaker", NAME, str(corpus.folder)])
    assert result.exit_code == 0, result.output
    assert "2 utterances and 2 audio files removed" in result.output
    assert "outputs/run" in result.output


def test_in_a_folder_of_somebody_elses_making_only_the_speakers_audio_goes(tmp_path):
    (tmp_path / "audio").mkdir()
    for name in ("mine.wav", "theirs.wav", "other.wav"):
        audio.write(tmp_path / "audio" / name, spoken("low"), 16_000)
    rows = [("audio/mine.wav", "Ana"), ("audio/theirs.wav", NAME), ("loop.wav", NAME), ("a\0b", NAME)]
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    lines = [json.dumps({"audio": path, "sentence": "x", "client_id": who}) for path, who in rows]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    assert forget(tmp_path, NAME).files == 1
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["mine.wav", "other.wav"]


def test_forgetting_that_was_broken_off_can_be_ended(corpus, monkeypatch):
    def broken(*_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Corpus, "drop", broken)
        with pytest.raises(PermissionError):
            forget(corpus.folder, NAME)
    forget(corpus.folder, NAME)
    assert {row.speaker for row in Corpus(corpus.folder).rows()[0]} == {"Ana"}
    assert len(list((corpus.folder / "audio").iterdir())) == 2


def test_a_table_is_not_changed_before_it_is_a_corpus(corpus):
    table = corpus.folder / "rows.csv"
    table.write_text("audio,text,speaker\na.wav,x,Ana\n")
    with pytest.raises(DataError, match="Prepare it first"):
        forget(table, "Ana")
    assert "Ana" in table.read_text()


def test_what_the_doctor_set_aside_is_forgotten_too(corpus):
    bad = next(row for row in corpus.rows()[0] if row.speaker == NAME)
    bad.audio.write_bytes(b"no audio of Zacharias")
    doctor_fix.fix(corpus, doctor.diagnose(corpus.survey(), corpus.folder))
    assert list((corpus.folder / "set-aside").rglob("*.flac"))
    forget(corpus.folder, NAME)
    content = every_byte(corpus.folder)
    for trace in (NAME.encode(), b"no audio of Zacharias", bad.id.encode()):
        assert trace not in content

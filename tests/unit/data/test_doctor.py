import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from voxtral_finetune.cli import main
from voxtral_finetune.data import audio, doctor, doctor_fix, sources
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.errors import DataError

GOOD = [
    ("low mid high low", {"language": "en", "speaker": "Ana"}),
    ("mid high low mid", {"language": "en", "speaker": "Ben"}),
    ("high low mid high", {"language": "en"}),
]


@pytest.fixture
def corpus(write_corpus):
    """Three good rows, then: half a row, silence, no file, a copy, the same sound with another text, a word as code."""
    folder = write_corpus(GOOD)
    audio.write(folder / "audio" / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    audio.write(folder / "audio" / "copy.wav", audio.load(folder / "audio" / "0.wav"), 16_000)
    audio.write(folder / "audio" / "3.wav", audio.load(folder / "audio" / "2.wav")[::-1], 16_000)
    rows = [
        '{"audio_path": "audio/0.wav", "te',
        {"audio_path": "audio/silent.wav", "text": "nothing"},
        {"audio_path": "audio/none.wav", "text": "nothing"},
        {"audio_path": "audio/copy.wav", "text": GOOD[0][0], **GOOD[0][1]},
        {"audio_path": "audio/1.wav", "text": "something else"},
        {"audio_path": "audio/3.wav", "text": "high mid low high", "language": "English", "more": "\ud800"},
    ]
    with (folder / "data.jsonl").open("a") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return folder


def diagnose(folder):
    return doctor.diagnose(sources.survey(folder), folder)


def lines(folder):
    return (folder / "data.jsonl").read_text().splitlines()


def test_every_row_has_an_outcome_with_reasons(corpus):
    diagnosis = diagnose(corpus)
    found = {row.line: (row.outcome, [reason.kind for reason in row.reasons]) for row in diagnosis.rows}
    assert found == {
        **{line: ("accept", []) for line in (1, 2, 3, 9)},
        4: ("reject", ["row"]),
        5: ("reject", ["silent"]),
        6: ("reject", ["audio"]),
        7: ("accept_with_warning", ["duplicate"]),
        8: ("accept_with_warning", ["conflict"]),
    }
    assert [row.file for row in diagnosis.rows][3:6] == ["data.jsonl", "audio/silent.wav", "audio/none.wav"]
    assert all(reason.what and reason.fix for row in diagnosis.rows for reason in row.reasons)


def test_the_summary_adds_up(corpus):
    summary = diagnose(corpus).summary
    assert (summary["rows"], summary["usable"], summary["warned"], summary["refused"]) == (9, 6, 2, 3)
    assert summary["speakers"]["Ana"] == {"rows": 2, "seconds": 2.4}
    assert summary["languages"] == {"en": {"rows": 5, "seconds": 6.0}, "": {"rows": 1, "seconds": 1.2}}
    assert summary["kinds"]["silent"] == {"rows": 1, "refused": 1, "fix": "Record it again or remove its row."}
    assert summary["verdict"] == "6 of 9 rows can be used: 7.2 seconds, 2 named speakers."


def test_the_report_is_json_with_one_object_a_row(corpus, tmp_path):
    diagnose(corpus).save(tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == diagnose(corpus).json()
    assert report["format"] == doctor.FORMAT
    assert [row["line"] for row in report["rows"]] == list(range(1, 10))
    assert {row["outcome"] for row in report["rows"]} == {"accept", "accept_with_warning", "reject"}
    assert report["rows"][4]["reasons"] == [
        {"kind": "silent", "what": "It is silent.", "fix": "Record it again or remove its row."}
    ]
    assert report["rows"][0]["snr_db"] > 20
    assert str(corpus) not in json.dumps(report)


def test_one_bad_file_in_a_hundred_stops_nothing(write_corpus):
    folder = write_corpus([("low mid", {}) for _ in range(100)])
    (folder / "audio" / "50.wav").write_bytes(b"RIFF no audio")
    summary = diagnose(folder).summary
    assert (summary["usable"], summary["refused"]) == (99, 1)


def test_what_is_about_the_corpus_is_no_reason_of_a_row(write_corpus):
    diagnosis = diagnose(write_corpus([("low mid", {"language": "sw"}), ("high low", {"language": "sw"})]))
    assert [note.kind for note in diagnosis.notes] == ["language"]
    assert [row.outcome for row in diagnosis.rows] == ["accept", "accept"]
    assert diagnosis.summary["tokens_per_character"]["sw"] > 0


def test_lines_of_two_files_are_two_rows(tmp_path, write_corpus):
    folder = write_corpus(GOOD)
    for name in ("train", "test"):
        (folder / name).mkdir()
        audio.write(folder / name / "a.wav", audio.load(folder / "audio" / "0.wav"), 16_000)
        (folder / name / "metadata.csv").write_text("file_name,transcription\na.wav,low mid high low\n")
    diagnosis = doctor.diagnose(sources.survey(folder, format="audiofolder"), folder)
    assert sorted(row.file for row in diagnosis.rows) == ["test/a.wav", "train/a.wav"]
    assert "leak" in diagnosis.summary["kinds"]


def test_fix_takes_out_what_is_bad_and_loses_nothing(corpus):
    before = lines(corpus)
    repairs = doctor_fix.fix(Corpus(corpus), diagnose(corpus))
    after = lines(corpus)
    assert [repair.line for repair in repairs if repair.line] == [4, 5, 6, 7, 9]
    assert after[:4] == [*before[:3], before[7]]
    assert json.loads(after[4]) == {**json.loads(before[8]), "language": "en"}
    assert (corpus / "data.jsonl.1.bak").read_text().splitlines() == before
    aside = corpus / "set-aside" / "audio"
    assert sorted(path.name for path in aside.iterdir()) == ["copy.wav", "silent.wav"]
    assert (corpus / "audio" / "0.wav").exists()
    assert any("silent.wav" in str(repair) for repair in repairs)
    assert diagnose(corpus).summary["refused"] == 0
    assert doctor_fix.fix(Corpus(corpus), diagnose(corpus)) == []
    assert not (corpus / "data.jsonl.2.bak").exists()


def test_fix_moves_nothing_that_is_not_the_corpus_s_audio(write_corpus, tmp_path):
    folder = write_corpus(GOOD)
    (tmp_path / "outside.wav").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "audio" / "0-long.wav").write_bytes(b"")
    with (folder / "data.jsonl").open("a") as file:
        for name in ("../outside.wav", "notes.txt", "data.jsonl", "audio/0-long.wav"):
            file.write(json.dumps({"audio_path": name, "text": "x"}) + "\n")
    doctor_fix.fix(Corpus(folder), diagnose(folder))
    assert len(lines(folder)) == 3
    assert (tmp_path / "outside.wav").exists()
    assert (folder / "notes.txt").exists()
    assert [path.name for path in (folder / "set-aside").rglob("*.wav")] == ["0-long.wav"]


def test_a_link_out_of_the_corpus_is_not_followed(corpus, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (corpus / "set-aside").symlink_to(elsewhere)
    with pytest.raises(DataError, match="leads out"):
        doctor_fix.fix(Corpus(corpus), diagnose(corpus))
    assert list(elsewhere.iterdir()) == []


def test_the_copy_that_is_for_testing_stays(write_corpus):
    folder = write_corpus(GOOD)
    row = json.loads(lines(folder)[0])
    with (folder / "data.jsonl").open("a") as file:
        file.write(json.dumps({**row, "split": "test"}) + "\n")
    diagnosis = diagnose(folder)
    assert {"duplicate", "leak"} <= set(diagnosis.summary["kinds"])
    assert doctor_fix.fix(Corpus(folder), diagnosis) == []


def test_a_corpus_that_changed_is_not_mended(corpus):
    diagnosis = diagnose(corpus)
    left = "\n".join(lines(corpus)[1:]) + "\n"
    (corpus / "data.jsonl").write_text(left)
    with pytest.raises(DataError, match="changed while"):
        doctor_fix.fix(Corpus(corpus), diagnosis)
    assert (corpus / "data.jsonl").read_text() == left


def test_a_corpus_without_a_usable_row_is_not_emptied(write_corpus):
    folder = write_corpus(GOOD)
    for path in (folder / "audio").iterdir():
        path.unlink()
    before = lines(folder)
    with pytest.raises(DataError, match="nothing was mended"):
        doctor_fix.fix(Corpus(folder), diagnose(folder))
    assert lines(folder) == before


def check(*words):
    return CliRunner().invoke(main, ["check", *map(str, words)])


def test_check_writes_reports_and_ends_well(corpus, tmp_path):
    result = check(corpus, "--html", tmp_path / "r.html", "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("6 of 9 rows can be used")
    assert "skipped: line 5" in result.output
    assert "note: line 7" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["summary"]["refused"] == 3
    assert "<html" in (tmp_path / "r.html").read_text()


def test_strict_and_an_unusable_corpus_are_exit_codes(corpus, write_corpus):
    assert check(corpus, "--strict").exit_code == 1
    good = write_corpus(GOOD, name="good")
    assert check(good, "--strict").exit_code == 0
    for path in (good / "audio").iterdir():
        path.unlink()
    result = check(good)
    assert result.exit_code == 1
    assert "no row that can be used" in result.output


def test_check_fix_says_what_it_did(corpus):
    result = check(corpus, "--fix")
    assert result.exit_code == 0, result.output
    assert "mended: line 5: removed. It is silent." in result.output
    assert len(lines(corpus)) == 5


def test_check_prints_fifty_findings_at_most(write_corpus):
    folder = write_corpus(GOOD)
    with (folder / "data.jsonl").open("a") as file:
        file.writelines("no row\n" for _ in range(60))
    output = check(folder).output
    assert output.count("skipped:") == 50
    assert "… and 10 more, see --html or --json" in output


def test_check_reads_other_forms_and_columns(write_corpus):
    folder = write_corpus(GOOD)
    table = folder / "table.csv"
    table.write_text("clip,said\naudio/0.wav,low mid high low\n")
    result = check(table, "--audio-column", "clip", "--text-column", "said", "--format", "csv")
    assert result.output.startswith("1 of 1 row can be used"), result.output


def test_reports_that_cannot_be_written_are_errors_with_a_remedy(corpus):
    for flag in ("--json", "--html"):
        result = check(corpus, flag, Path("/nonexistent/report"))
        assert result.exit_code == 1
        assert "cannot be written" in result.output

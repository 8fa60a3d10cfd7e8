"""The report: what is saved comes back, in the layout that other tools read."""

import dataclasses
import json
from pathlib import Path

import pytest

from voxtral_finetune.errors import RunError
from voxtral_finetune.evaluation.report import Report, Scored, table
from voxtral_finetune.evaluation.verdict import compare
from voxtral_finetune.evaluation.wer import score, word_errors


def make(references: list[str], base: list[str], tuned: list[str]) -> Report:
    before, words = zip(*map(word_errors, references, base), strict=True)
    after, _ = zip(*map(word_errors, references, tuned), strict=True)
    rows = zip(references, base, tuned, strict=True)
    return Report(
        base=score(references, base),
        tuned=score(references, tuned),
        verdict=compare(before, after, words),
        utterances=[Scored("audio/a.wav", *row, seconds=1.5, language="hi", speaker="s") for row in rows],
        model={"checkpoint": "mistralai/Voxtral-Mini-3B-2507", "revision": None},
        data={"languages": ["hi"]},
        training={"steps": 10},
        warnings=["audio/\x1b[31mred\n.wav was skipped."],
    )


@pytest.fixture
def report() -> Report:
    return make(["वह घर गया"] * 40, ["वह घर"] * 40, ["वह घर गया"] * 40)


def test_what_is_saved_comes_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.save(path)
    report.save(path)
    assert Report.load(path) == report
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["report.json"]
    assert "वह घर गया" in path.read_text(encoding="utf-8")


def test_layout(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["format"] == 1
    assert (content["base"]["wer"], content["tuned"]["wer"]) == (pytest.approx(1 / 3), 0)
    assert content["verdict"]["word"] == "better"
    assert content["utterances"][0].items() >= {"reference": "वह घर गया", "base": "वह घर", "tuned": "वह घर गया"}.items()


def test_half_a_surrogate_pair_does_not_lose_a_report(report: Report, tmp_path: Path) -> None:
    odd = dataclasses.replace(report, warnings=["\ud800"])
    odd.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").warnings == ["?"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "base": {"x": 1}}'])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(RunError, match="is not a report"):
        Report.load(tmp_path / "report.json")


def test_a_missing_or_newer_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        Report.load(tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"format": 2}')
    with pytest.raises(RunError, match="format 2"):
        Report.load(tmp_path / "report.json")


def test_table(report: Report) -> None:
    text = table(report)
    lines = text.splitlines()
    assert lines[1].split() == ["word", "error", "rate", "33.3", "%", "0.0", "%", "-33.3"]
    assert "-33.3 points (95 % interval -33.3 to -33.3)" in text
    assert "Better: 33.3 fewer errors in 100 words" in text
    assert "A small test set" in text
    assert lines[-1] == "Warning: audio/ [31mred .wav was skipped.", "a terminal is never sent control characters"


def test_table_of_a_script_without_spaces_names_characters() -> None:
    text = table(make(["今天天气好"] * 40, ["今天天汽好"] * 40, ["今天天气好"] * 40))
    assert "character error rate  20.0 %" in text and "word" not in text

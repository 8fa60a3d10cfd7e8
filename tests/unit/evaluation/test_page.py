"""report.html and the comparison of runs: whole, honest about what is not known, and nothing in them becomes code."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import spoken
from tests.unit.data.test_doctor_page import ATTACKS, Elements
from voxtral_finetune.cli import main
from voxtral_finetune.data import audio, pages
from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.data.split import Split
from voxtral_finetune.errors import RunError
from voxtral_finetune.evaluation import page as pages_of_runs
from voxtral_finetune.evaluation.behaviour import slices
from voxtral_finetune.evaluation.compared import compared, table
from voxtral_finetune.evaluation.curves import MOST_POINTS, curves
from voxtral_finetune.evaluation.marks import marks
from voxtral_finetune.evaluation.page import changed, page, private, write_page
from voxtral_finetune.evaluation.report import Report, Scored
from voxtral_finetune.evaluation.verdict import compare
from voxtral_finetune.evaluation.wer import errors_of, score
from voxtral_finetune.run import Event, Run
from voxtral_finetune.settings import Settings

Texts = tuple[str, str, str]

PLAIN: list[Texts] = [("low mid high", "low high", "low mid high"), ("mid mid", "mid mid", "mid low mid low")] * 3


def finished(folder: Path, texts: list[Texts] = PLAIN, speaker: str = "ana", **settings: Any) -> Run:
    """A run folder with a result: (said, before, after) of each test utterance, their audio beside it."""
    run = Run.create(Settings.of({"output_dir": folder, **settings}))
    rows, scored, counted = [], [], []
    for number, (said, base, tuned) in enumerate(texts):
        path = folder.parent / f"{number}.wav"
        audio.write(path, spoken("low mid", seed=number), 16_000)
        rows.append(Utterance(path, said, "en", speaker if number % 2 else "ben", 0.6, sha256=str(number)))
        counted.append((errors_of(said, base), errors_of(said, tuned)))
        errors = (counted[-1][0].words, counted[-1][0].errors, counted[-1][1].errors)
        scored.append(Scored(str(path), said, base, tuned, 0.6, "en", rows[-1].speaker, *errors))
    references, base_texts, tuned_texts = map(list, zip(*texts, strict=True))
    pairs = {"base": [one for one, _ in counted], "tuned": [other for _, other in counted]}
    Split([], [], rows, "text", "").save(folder / "split.json")
    Report(
        base=score(references, base_texts),
        tuned=score(references, tuned_texts),
        verdict=compare(
            *([each.errors for each in found] for found in pairs.values()), [e.words for e in pairs["base"]]
        ),
        utterances=scored,
        model={"checkpoint": "/data/ana/secret/base", "method": "lora"},
        data={"test": {"utterances": len(rows), "seconds": 3.6}},
        training={"seconds": 90.0, "best_step": 10},
        slices=slices(rows, pairs),
    ).save(folder / "report.json")
    for step, loss in ((5, 2.0), (10, 1.0)):
        run.emit("step", step=step, loss=loss)
        run.emit("eval", step=step, loss=loss, wer=loss / 4)
    return run


def data(text: str) -> dict[str, Any]:
    """What the page's script reads."""
    start = text.index('id="data">') + len('id="data">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("the cat sat", "the hat sat", [("=", "the", "the"), ("s", "cat", "hat"), ("=", "sat", "sat")]),
        ("the cat sat", "the sat", [("=", "the", "the"), ("d", "cat", ""), ("=", "sat", "sat")]),
        ("the sat", "the cat sat", [("=", "the", "the"), ("i", "", "cat"), ("=", "sat", "sat")]),
        ("Well — yes!", "well, no?", [("=", "Well —", "well,"), ("s", "yes!", "no?")]),
        ("well-known fact", "well known fact", [("=", "well known fact", "well known fact")]),
        ("你好吗", "你不吗", [("=", "你", "你"), ("s", "好", "不"), ("=", "吗", "吗")]),
        ("", "so", [("i", "", "so")]),
        ("so", "", [("d", "so", "")]),
        ("", "…", []),
        ("<script> now", "now", [("d", "<script>", ""), ("=", "now", "now")]),
    ],
)
def test_marks(said: str, heard: str, expected: list[tuple[str, str, str]]) -> None:
    assert marks(said, heard) == expected


@pytest.mark.parametrize("said", ["the cat sat on the mat", "你好 world", "ก็ มา", "اهلا بك", "", "Don't — stop!"])
@pytest.mark.parametrize("heard", ["the hat sat on a map now", "你好吗 word", "", "ما بك", "stop"])
def test_marks_are_the_errors_that_are_counted(said: str, heard: str) -> None:
    assert sum(kind != "=" for kind, _, _ in marks(said, heard)) == errors_of(said, heard).errors


def test_nothing_that_was_said_or_named_becomes_code(tmp_path: Path) -> None:
    texts = [(attack, attack[::-1], f"low {attack}") for attack in ATTACKS]
    run = finished(tmp_path / "<b>run", texts, ATTACKS[1])
    report = Report.load(run.folder / "report.json")
    text = page(Report(**{**report.__dict__, "warnings": ATTACKS}), run.folder, {})
    elements = Elements(text).found
    tags = [tag for tag, _ in elements]
    assert (tags.count("script"), tags.count("style"), tags.count("img"), tags.count("b")) == (2, 1, 0, 0)
    assert not {name for _, attributes in elements for name in attributes if name.startswith("on")}
    assert [row["said"] for row in data(text)["rows"]] == [attack[:5000] for attack in ATTACKS]


def test_the_policy_allows_only_what_came_with_the_page(tmp_path: Path) -> None:
    text = write_page(finished(tmp_path / "run").folder).read_text()
    policy = next(attributes["content"] for tag, attributes in Elements(text).found if "http-equiv" in attributes)
    code = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    assert pages.policy_hash(code) in policy
    assert "default-src 'none'" in policy and "http" not in policy


def test_what_was_measured_is_there(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    text = write_page(run.folder).read_text()
    assert "Too few to tell" in text and "A small test set: 6 utterances" in text
    assert (
        "ana" in text and "ben" in text and "Loss on dev: 2 at update 5, 1 at update 10, lowest 1 at update 10" in text
    )
    found = data(text)
    assert (found["regressions"], found["gains"]) == ([1, 3, 5], [0, 2, 4])
    assert found["rows"][1]["after"][1] == ["i", "", "low"]
    assert sum(bool(row["clip"]) for row in found["rows"]) == 6
    assert found["rows"][0]["clip"].startswith("data:audio/flac;base64,")
    assert "/data/ana" not in text and str(tmp_path) not in text


def test_missing_facts_are_left_out(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    full = Report.load(run.folder / "report.json")
    (run.folder / "events.jsonl").unlink()
    bare = Report(full.base, full.tuned, full.verdict, full.utterances, {}, {}, {})
    text = page(bare, run.folder, {})
    assert "None" not in text.replace('["None."', "").replace('"None."', "") and "nan" not in text
    for missing in ("Learning curve", "Terms", "Who is understood", "Training time", "can be heard here, the first"):
        assert missing not in text


def test_guards_and_their_budget(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    report = Report.load(run.folder / "report.json")
    guard = {"name": "german", "utterances": 7, "base_wer": 0.1, "tuned_wer": 0.2, "change": 0.1, "budget": 0.005}
    silence = {"clips": 3, "base": 0, "tuned": 2}
    for broken, said in ((True, "<td>+10.0, over the budget of +0.5</td>"), (False, "<td>+10.0</td>")):
        made = Report(**{**report.__dict__, "guards": [{**guard, "broken": broken}], "silence": silence})
        text = page(made, run.folder, {})
        assert "<bdi>german</bdi>" in text and said in text and "<td>3</td><td>0</td><td>2</td><td>+2</td>" in text


def test_recordings_have_a_limit_and_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(tmp_path / "run")
    sizes = [len(row["clip"]) for row in data(write_page(run.folder).read_text())["rows"]]
    monkeypatch.setattr(pages_of_runs, "MOST_CLIP_BYTES", sum(sizes[:3]))
    rows = data(write_page(run.folder).read_text())["rows"]
    assert 0 < sum(len(row["clip"] or "") for row in rows) <= sum(sizes[:3])
    monkeypatch.setattr(pages_of_runs, "MOST_CLIPS", 1)
    assert [bool(row["clip"]) for row in data(write_page(run.folder).read_text())["rows"]].count(True) == 1
    result = CliRunner().invoke(main, ["report", str(run.folder), "--no-audio"])
    assert result.exit_code == 0 and result.output.strip() == str(run.folder / "report.html")
    assert "data:audio" not in (run.folder / "report.html").read_text()


def test_a_recording_that_is_gone_has_no_player(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (tmp_path / "1.wav").unlink()
    clips = [bool(row["clip"]) for row in data(write_page(run.folder).read_text())["rows"]]
    assert clips == [True, False, True, True, True, True]


def test_the_clip_of_a_part_is_that_part(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", PLAIN[:1])
    split = Split.load(run.folder / "split.json")
    (row,) = split.test
    whole = len(write_page(run.folder).read_text())
    part = Utterance(row.audio, row.text, seconds=0.6, offset=0.5, part=True)
    Split([], [], [part], "text", "").save(run.folder / "split.json")
    assert len(write_page(run.folder).read_text()) < whole - 1000


def test_the_largest_change_comes_first() -> None:
    pairs = [(0, 1), (5, 0), (2, 2), (0, 4), (3, 2)]
    rows = [Scored("a", "", "", "", 1.0, base_errors=base, tuned_errors=tuned) for base, tuned in pairs]
    assert changed(rows) == ([3, 0], [1, 4])


def test_a_curve_keeps_what_was_done_last_and_leaves_out_what_is_no_number() -> None:
    events = [Event(0, "step", {"step": step, "loss": float(step)}) for step in range(2000)]
    events += [Event(0, "step", {"step": 1999, "loss": 7.0}), Event(0, "eval", {"step": 3, "loss": float("nan")})]
    made = curves(events, "word")
    assert [plot["title"] for plot in made["plots"]] == ["Loss"] and made["table"] == []
    assert len(made["plots"][0]["lines"][0]["points"].split()) <= MOST_POINTS + 1
    assert "7 at update 1999" in made["plots"][0]["said"]


def test_only_the_last_name_of_a_path_is_shown() -> None:
    assert [private(value) for value in ("/data/a/b/", "~/x", "C:\\a\\b", "mistralai/V", 3)] == [
        *("…/b", "…/x", "…/b", "mistralai/V", 3)
    ]


def test_runs_side_by_side(tmp_path: Path) -> None:
    one = finished(tmp_path / "one")
    two = finished(tmp_path / "two", learning_rate=0.5)
    Run.create(Settings.of({"output_dir": tmp_path / "three"}))
    made = compared([one.folder, two.folder, tmp_path / "three", one.folder, tmp_path / "no"])
    assert made.names == ["one", "two"]
    rows = {name: values for name, *values in made.measured}
    assert rows["test set"] == ["A, 6 utterances"] * 2 and rows["verdict"] == ["too few to tell"] * 2
    assert rows["training time"] == ["90 seconds"] * 2 and rows["word error rate before"] == ["20.0 %"] * 2
    assert made.settings == [("learning_rate", "default", "0.5")]
    assert [note.rpartition("/")[2] for note in made.notes] == [
        "three is not finished (new).",
        "no is not a run folder.",
    ]
    assert "learning_rate" in table(made)


@pytest.mark.parametrize("change", ["text", "sound"])
def test_runs_with_other_test_sets_are_not_comparable(tmp_path: Path, change: str) -> None:
    one, two = finished(tmp_path / "one"), tmp_path / "two"
    if change == "text":
        finished(two, [("low", "low", "low"), *PLAIN[1:]])
    else:
        finished(two)
        path = two / "split.json"
        path.write_text(path.read_text().replace('"sha256": "0"', '"sha256": "other"'))
    made = compared([one.folder, two])
    assert [name[0] for name in {row[0]: row[1:] for row in made.measured}["test set"]] == ["A", "B"]
    assert made.notes[0].startswith("Not comparable")


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    one = finished(tmp_path / "a" / "<b>one")
    two = finished(tmp_path / "b" / "<b>one", model_checkpoint="/data/ana/base")
    path = tmp_path / "runs.html"
    result = CliRunner().invoke(main, ["compare", str(one.folder), str(two.folder), "--html", str(path)])
    assert result.exit_code == 0 and "a/<b>one" in result.output and "/data/ana/base" in result.output
    text = path.read_text()
    assert "b" not in [tag for tag, _ in Elements(text).found] and "/data/ana" not in text and "…/base" in text
    with pytest.raises(RunError):
        compared([tmp_path / "none"])
    assert CliRunner().invoke(main, ["compare", str(tmp_path / "none")]).exit_code == 1

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kills import every_kill
from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.durable import Format, back_up, write_durably
from voxtral_finetune.errors import DataError

WAVE = np.linspace(-0.5, 0.5, 8000, dtype=np.float32)


@pytest.fixture
def corpus(tmp_path):
    return Corpus.create(tmp_path / "c")


def manifest(folder, *lines):
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_a_take_comes_back_as_it_was_given(corpus):
    added = corpus.add(WAVE, 16_000, "  Grüß  Gott ", language="de", speaker="Ana")
    (row,), problems = Corpus(corpus.folder).rows()
    assert (row.text, row.language, row.speaker, row.seconds) == ("Grüß Gott", "de", "Ana", 0.5)
    assert row.audio == added.audio.resolve()
    assert np.abs(audio.load(row.audio) - WAVE).max() < 1e-4
    assert not problems
    assert json.loads((corpus.folder / "data.jsonl").read_text())["audio_path"].startswith("audio/")


def test_many_writers_lose_nothing(corpus):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Corpus(corpus.folder).add(WAVE, 16_000, f"take {number}"), range(40)))
    rows, problems = corpus.rows()
    assert sorted(row.text for row in rows) == sorted(f"take {number}" for number in range(40))
    assert not problems


def test_a_row_cut_off_by_a_crash_is_named_and_costs_no_other_row(corpus):
    corpus.add(WAVE, 16_000, "one")
    with corpus.manifest.open("a") as file:
        file.write('{"audio_path": "audio/x.wav", "te')
    corpus.add(WAVE, 16_000, "two")
    rows, problems = corpus.rows()
    assert [row.text for row in rows] == ["one", "two"]
    assert [problem.line for problem in problems] == [2]


def test_audio_that_cannot_be_saved_leaves_no_row(corpus, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        corpus.add(WAVE, 16_000, "one")
    assert corpus.rows() == ([], [])


def test_removing_takes_row_and_audio_and_keeps_the_rest(corpus):
    one, two = (corpus.add(WAVE, 16_000, text) for text in ("one", "two"))
    corpus.remove(one.id)
    rows, _ = corpus.rows()
    assert [row.id for row in rows] == [two.id]
    assert not one.audio.exists()
    with pytest.raises(DataError, match="no utterance"):
        corpus.remove(one.id)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"text": "hi"}', "names no audio_path"),
        ('{"audio_path": "a.wav", "text": " "}', "has no text"),
        ('{"audio_path": "a.wav"}', "names no text"),
        ('{"audio_path": "a.wav", "text": null}', "has no text"),
        ('{"audio_path": "a.wav", "text": 42}', "text is a int"),
        ('{"audio_path": 7, "text": "x"}', "empty or not text"),
        ('{"audio_path": "a.wav", "text": "\\ud800"}', "not UTF-8"),
        ('{"audio_path": "a.wav", "text": "\\u001b[31mred"}', "terminal control"),
        ('{"audio_path": "https://example.invalid/a.wav", "text": "x"}', "is a URL"),
        (b'{"audio_path": "a.wav", "text": "ma\xf1ana"}', "not UTF-8"),
        ('{"audio_path": "' + "x" * 2_000_000 + '"}', "over 1 MB"),
    ],
)
def test_a_bad_row_is_named_and_the_next_one_goes_on(tmp_path, line, said):
    path = manifest(tmp_path, line, '{"audio_path": "b.wav", "text": "good"}')
    rows, problems = Corpus(path).rows()
    assert [row.text for row in rows] == ["good"]
    assert problems[0].line == 1
    assert said in str(problems[0])


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.wav", "a/../../secret.wav", "link/secret.wav", "\\u0000"])
def test_audio_outside_the_corpus_is_refused_whether_it_exists_or_not(tmp_path, path):
    (tmp_path / "secret.wav").write_bytes(b"")
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    for name in (path, path + "-that-does-not-exist"):
        _, (problem,) = Corpus(manifest(folder, f'{{"audio_path": "{name}", "text": "x"}}')).rows()
        assert "outside the folder of the corpus" in problem.what


def test_a_named_audio_root_is_allowed(tmp_path):
    root = tmp_path / "recordings"
    root.mkdir()
    audio.write(root / "a.wav", WAVE, 16_000)
    folder = tmp_path / "c"
    folder.mkdir()
    path = manifest(folder, json.dumps({"audio_path": str(root / "a.wav"), "text": "x"}))
    assert not Corpus(path).rows()[0]
    assert len(Corpus(path, [root]).survey().utterances) == 1


def test_the_survey_measures_and_lists_what_cannot_be_heard(tmp_path):
    folder = tmp_path
    audio.write(folder / "a.wav", WAVE, 16_000)
    audio.write(folder / "copy.wav", WAVE, 16_000)
    (folder / "bad.wav").write_text("no audio")
    names = ("a.wav", "bad.wav", "gone.wav", "copy.wav")
    path = manifest(folder, *(json.dumps({"audio_path": name, "text": name, "duration": 0.5}) for name in names))
    seen = []
    survey = Corpus(path).survey(lambda done, total: seen.append((done, total)))
    assert [row.audio.name for row in survey.utterances] == ["a.wav", "copy.wav"]
    assert [measures.seconds for measures in survey.measures] == [0.5, 0.5]
    assert survey.utterances[0].seconds == 0.5
    assert [(problem.line, problem.usable) for problem in survey.problems] == [(2, False), (3, False), (4, True)]
    assert seen[-1] == (4, 4)


def test_optional_fields_and_their_other_names_are_read(tmp_path):
    row = {"audio_path": "a.wav", "text": "x", "duration": 2, "split": "validation", "licence": "CC0-1.0"}
    (found,), _ = Corpus(manifest(tmp_path, "\ufeff" + json.dumps(row))).rows()
    assert (found.seconds, found.split, found.licence) == (2.0, "dev", "CC0-1.0")


def test_a_missing_corpus_and_a_newer_one_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Corpus(tmp_path / "none.jsonl").rows()
    (tmp_path / "corpus.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="Update voxtral-finetune"):
        Corpus.create(tmp_path)


def test_a_hundred_thousand_rows_are_read_in_bounded_memory(tmp_path):
    row = json.dumps({"audio_path": "audio/%06d.wav", "text": "word " * 20, "speaker": "x" * 40, "seconds": 2.5})
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f"{row}\n" % number for number in range(100_000)))
    code = (
        "import sys; from pathlib import Path; from voxtral_finetune.data.corpus import Corpus, Utterance\n"
        "rows = Corpus(Path(sys.argv[1])).entries(); next(rows)\n"
        "from voxtral_finetune.run import peak_rss as peak\n"
        "before = peak(); count = sum(isinstance(row, Utterance) for row in rows); print(count, peak() / before)"
    )
    output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    count, growth = output.split()
    assert count == "99999"
    assert float(growth) < 1.1


def test_a_row_may_be_a_part_of_a_file(tmp_path):
    audio.write(tmp_path / "a.wav", np.tile(WAVE, 4), 16_000)
    rows = [{"offset": 0.5, "duration": 0.25}, {"start": "1.0", "end": "1.5"}, {"start": 1.75}, {"seconds": 2}]
    rows += [{"start": 1.5, "end": 1.0}, {"offset": -1, "duration": 1}, {"start": 1.5, "end": 9}, {"offset": 5}]
    path = manifest(tmp_path, *(json.dumps({"audio_path": "a.wav", "text": "x", **row}) for row in rows))
    survey = Corpus(path).survey()
    assert [(row.offset, row.seconds) for row in survey.utterances] == [
        (0.5, 0.25),
        (1.0, 0.5),
        (1.75, 0.25),
        (0.0, 2.0),
    ]
    assert [len(audio.load(row.audio, *row.span)) for row in survey.utterances] == [4000, 8000, 4000, 32_000]
    assert [problem.line for problem in survey.refused] == [5, 6, 7, 8]


def test_a_row_that_says_another_length_than_its_audio_has_is_noted(tmp_path):
    audio.write(tmp_path / "a.wav", WAVE, 16_000)
    path = manifest(tmp_path, json.dumps({"audio_path": "a.wav", "text": "x", "duration": 7}))
    (problem,) = Corpus(path).survey().problems
    assert (problem.kind, problem.usable) == ("length", True)


def test_a_name_in_another_unicode_form_and_a_link_inside_are_found(tmp_path):
    audio.write(tmp_path / "cafe\u0301.wav", WAVE, 16_000)
    (tmp_path / "link.wav").symlink_to("cafe\u0301.wav")
    rows = [json.dumps({"audio_path": name, "text": "x"}) for name in ("caf\u00e9.wav", "link.wav", "./x/../link.wav")]
    survey = Corpus(manifest(tmp_path, *rows)).survey()
    assert {row.audio.name for row in survey.utterances} == {"cafe\u0301.wav"}
    assert len(survey.utterances) == 3


def test_loops_of_links_pipes_and_names_of_any_length_end_in_a_message(tmp_path):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    names = ("loop.wav", "pipe.wav", "x" * 5000 + ".wav", ".", "a\nb.wav", "\u202egnp.wav")
    survey = Corpus(manifest(tmp_path, *(json.dumps({"audio_path": name, "text": "x"}) for name in names))).survey()
    assert not survey.utterances
    assert len(survey.problems) == len(names)
    assert all(str(problem).isprintable() for problem in survey.problems)


def renamed(content, folder):
    """A made-up change of format: what rows called `sentence` before is their `text` now."""
    back_up(folder / "data.jsonl", content["format"])
    write_durably(folder / "data.jsonl", (folder / "data.jsonl").read_bytes().replace(b'"sentence"', b'"text"'))
    return content


@pytest.fixture
def third_format(monkeypatch):
    """Makes this version read format 3, which 2 became by `renamed` and 1 by naming its maker."""
    upgrades = {1: lambda content, _: {**content, "maker": "unknown"}, 2: renamed}
    monkeypatch.setattr("voxtral_finetune.data.corpus.MARK", Format(3, upgrades, DataError, unnamed=1))


def test_a_corpus_of_an_older_format_is_brought_to_the_present_one_whatever_kills_it(tmp_path, third_format):
    row = b'{"audio_path": "a.wav", "sentence": "hello"}\n'

    def prepare():
        for path in tmp_path.glob("*.format-*"):
            path.unlink()
        (tmp_path / "data.jsonl").write_bytes(row)
        (tmp_path / "corpus.json").write_text('{"format": 1, "name": "x"}')

    def check():
        assert [each.text for each in Corpus(tmp_path).rows()[0]] == ["hello"]
        mark = json.loads((tmp_path / "corpus.json").read_text())
        assert mark == {"format": 3, "name": "x", "maker": "unknown"}
        kept = {path.name: path.read_bytes() for path in tmp_path.glob("*.format-*")}
        assert kept.keys() == {"corpus.json.format-1", "corpus.json.format-2", "data.jsonl.format-2"}
        assert kept["data.jsonl.format-2"] == row
        assert kept["corpus.json.format-1"] == b'{"format": 1, "name": "x"}'

    assert every_kill(tmp_path, lambda: Corpus(tmp_path).rows(), prepare, check) > 5


def test_a_corpus_without_upgrade_to_the_present_format_is_refused_and_left_alone(tmp_path, third_format):
    path = manifest(tmp_path, '{"audio_path": "a.wav", "sentence": "hello"}')
    (tmp_path / "corpus.json").write_text('{"format": 0}')
    with pytest.raises(DataError, match="Update voxtral-finetune"):
        Corpus(path).rows()
    assert not list(tmp_path.glob("*.format-*"))


def test_a_damaged_mark_is_named(tmp_path):
    (tmp_path / "corpus.json").write_text('{"form')
    with pytest.raises(DataError, match=r"corpus\.json is not JSON"):
        Corpus.create(tmp_path)

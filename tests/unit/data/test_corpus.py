import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus
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
        ('{"audio_path": "a.wav"}', "has no text"),
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
    path = manifest(folder, *(json.dumps({"audio_path": name, "text": name, "duration": 9}) for name in names))
    seen = []
    survey = Corpus(path).survey(lambda done, total: seen.append((done, total)))
    assert [row.audio.name for row in survey.utterances] == ["a.wav", "copy.wav"]
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

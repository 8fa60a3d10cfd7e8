"""Every form that speech comes in, made small and real on the spot, gives the same rows."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.conftest import spoken
from voxtral_finetune.data import audio, sources, survey
from voxtral_finetune.data.rows import Columns
from voxtral_finetune.errors import DataError

TEXTS = {"one": "low mid", "two": "Mid, high low."}


@pytest.fixture
def speech(tmp_path):
    """A folder with one.wav and two.wav."""
    folder = tmp_path / "set"
    folder.mkdir()
    for seed, name in enumerate(TEXTS):
        audio.write(folder / f"{name}.wav", spoken("low mid high low mid", seed=seed), 16_000)
    return folder


def move(folder, into):
    (folder / into).mkdir()
    for name in TEXTS:
        (folder / f"{name}.wav").rename(folder / into / f"{name}.wav")


def jsonl(folder, columns=("audio_path", "text"), name="data.jsonl"):
    rows = [dict(zip(columns, (f"{name}.wav", text), strict=True)) for name, text in TEXTS.items()]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def cells(path, header, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([*([header] if header else []), *rows])
    return path


def named():
    return [(f"{name}.wav", text) for name, text in TEXTS.items()]


def make_jsonl(folder):
    return jsonl(folder)


def make_corpus_folder(folder):
    return jsonl(folder).parent


def make_json_array(folder):
    (folder / "rows.json").write_text(
        json.dumps([{"path": name, "sentence": text} for name, text in named()], indent=1)
    )
    return folder / "rows.json"


def make_csv(folder):
    return cells(folder / "a.csv", ("path", "sentence"), named())


def make_csv_in_a_folder(folder):
    return make_csv(folder).parent


def make_tsv(folder):
    (folder / "a.tsv").write_text("file\ttranscript\n" + "".join(f"{name}\t{text}\n" for name, text in named()))
    return folder / "a.tsv"


def make_folder_of_texts(folder):
    move(folder, "deep")
    for name, text in TEXTS.items():
        (folder / "deep" / f"{name}.txt").write_text(text + "\n")
    return folder


def make_ljspeech(folder):
    move(folder, "wavs")
    rows = "".join(f"{name}|{text}|{text.lower()}\n" for name, text in TEXTS.items())
    (folder / "metadata.csv").write_text(rows)
    return folder


def make_common_voice(folder):
    move(folder, "clips")
    rows = "".join(f"ab12\t{name}\t{text}\ten\n" for name, text in named())
    (folder / "validated.tsv").write_text("client_id\tpath\tsentence\tlocale\n" + rows)
    return folder


def make_audio_folder(folder):
    return jsonl(folder, ("file_name", "transcription"), "metadata.jsonl").parent


def make_audio_folder_with_splits(folder):
    move(folder, "train")
    return cells(folder / "train" / "metadata.csv", ("file_name", "text"), named()).parent.parent


def make_nemo(folder):
    rows = [{"audio_filepath": str(folder / name), "text": text, "duration": 1.5} for name, text in named()]
    (folder / "manifest.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "manifest.json"


def make_kaldi(folder):
    (folder / "wav.scp").write_text("".join(f"{name} {name}.wav\n" for name in TEXTS))
    (folder / "text").write_text("".join(f"{name} {text}\n" for name, text in TEXTS.items()))
    (folder / "utt2spk").write_text("".join(f"{name} ana\n" for name in TEXTS))
    return folder


def make_zip(folder):
    jsonl(folder)
    path = folder.parent / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"outer/inner/{file.name}")
        archive.writestr("__MACOSX/junk", "x")
    return path


def make_common_voice_archive(folder):
    make_common_voice(folder)
    path = folder.parent / "cv.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "cv-corpus-17.0/en")
    return path


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__[5:])
def test_every_form_gives_the_same_rows(make, speech):
    survey = sources.survey(make(speech))
    assert not survey.problems
    assert {row.audio.stem: row.text for row in survey.utterances} == TEXTS
    assert {row.seconds for row in survey.utterances} == {1.5}


def test_known_facts_come_along(speech):
    (first, _) = sources.survey(make_kaldi(speech)).utterances
    assert first.speaker == "ana"
    row = next(iter(sources.survey(make_common_voice_archive(make_new(speech))).utterances))
    assert (row.speaker, row.language, row.source) == ("ab12", "en", "Common Voice")


def make_new(speech):
    for name in ("wav.scp", "text", "utt2spk"):
        (speech / name).unlink()
    return speech


def test_a_folder_of_an_audio_folder_may_name_the_split(speech):
    assert {row.split for row in sources.survey(make_audio_folder_with_splits(speech)).utterances} == {"train"}


def test_parts_of_a_nemo_manifest_and_of_kaldi_segments_are_read(speech):
    rows = [{"audio_filepath": "one.wav", "text": "mid", "offset": 0.3, "duration": 0.3}]
    (speech / "m.json").write_text(json.dumps(rows[0]) + "\n")
    (row,) = sources.survey(speech / "m.json").utterances
    whole = audio.load(speech / "one.wav")
    assert (audio.load(row.audio, *row.span) == whole[4800:9600]).all()
    (speech / "wav.scp").write_text("rec one.wav\n")
    (speech / "segments").write_text("utt rec 0.3 0.6\n")
    (speech / "text").write_text("utt mid\n")
    (row,) = sources.survey(speech).utterances
    assert (audio.load(row.audio, *row.span) == whole[4800:9600]).all()


def test_a_kaldi_command_is_never_run(speech):
    (speech / "wav.scp").write_text(f"one touch {speech}/ran |\ntwo two.wav\nthree three.wav\n")
    (speech / "text").write_text("one x\ntwo mid\nfour y\n")
    survey = sources.survey(speech)
    assert [row.text for row in survey.utterances] == ["mid"]
    assert len(survey.refused) == 3
    assert not (speech / "ran").exists()


def test_columns_that_are_not_expected_are_shown_with_the_flag_that_maps_them(speech):
    table = cells(speech / "a.csv", ("clip", "words spoken", "who"), [(*row, "ana") for row in named()])
    rows = jsonl(speech, ("clip", "words spoken"))
    for path in (table, rows):
        with pytest.raises(DataError, match=r"clip, words spoken.*--audio-column"):
            sources.survey(path)
        with pytest.raises(DataError, match=r"clip, words spoken.*--text-column"):
            sources.survey(path, columns=Columns(audio="clip"))
    survey = sources.survey(table, columns=Columns("clip", "Words Spoken", speaker="who"))
    assert [(row.text, row.speaker) for row in survey.utterances] == [(text, "ana") for _, text in named()]


def test_of_several_known_columns_the_first_in_the_usual_order_counts(speech):
    row = {"file": "two.wav", "audio": "one.wav", "sentence": "low", "text": "mid", "lang": "en", "locale": "de"}
    (speech / "a.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = sources.survey(speech / "a.jsonl").utterances
    assert (found.audio.name, found.text, found.language) == ("one.wav", "mid", "en")


@pytest.mark.parametrize(
    ("content", "texts", "kinds"),
    [
        ("audio_path;text\none.wav;low, mid\n", ["low, mid"], ["source"]),
        ("one.wav,low\ntwo.wav,mid\n", ["low", "mid"], ["source"]),
        ("\ufeffaudio_path,text\r\none.wav,low\r\n", ["low"], []),
        ('audio_path,text\none.wav,"low, mid\nhigh"\n', ["low, mid high"], []),
        ("audio_path,text,x\none.wav,low\ntwo.wav,mid,1,2\none.wav,high,1\n", ["high"], ["row", "row"]),
        ('audio_path,text\none.wav,low\ntwo.wav,"' + "never closed " * 20_000, ["low"], ["row"]),
    ],
)
def test_tables_as_people_save_them(speech, content, texts, kinds):
    (speech / "a.csv").write_text(content, newline="")
    survey = sources.survey(speech / "a.csv")
    assert [row.text for row in survey.utterances] == texts
    assert [problem.kind for problem in survey.problems] == kinds


def test_quotes_in_a_tsv_are_letters_but_for_those_a_spreadsheet_added(speech):
    (speech / "a.tsv").write_text('path\ttext\none.wav\t"low" mid\ntwo.wav\t"""low"" mid"\n')
    assert [row.text for row in sources.survey(speech / "a.tsv").utterances] == ['"low" mid', '"low" mid']


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"\x00\x01\x02", "not a text file"),
        (b'{\n "audio_path": "a.wav"\n}\n', "over several lines"),
        (b"[1", "not JSON"),
        (b"PK\3\4 no zip", "cannot be unpacked"),
    ],
)
def test_what_is_no_source_is_one_message(tmp_path, content, said):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        sources.survey(tmp_path / "a.jsonl")


def test_other_things_that_are_no_source(speech, tmp_path):
    for path, said in (
        (speech, "holds no corpus"),
        (speech / "one.wav", "one recording"),
        (tmp_path / "x", "not exist"),
    ):
        with pytest.raises(DataError, match=said):
            sources.find(path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        sources.find(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"no format.*ljspeech"):
        sources.find(speech, "ogg")


def test_a_format_can_be_said(speech):
    make_tsv(speech).rename(speech / "a.data")
    make_folder_of_texts(speech)
    assert sources.find(speech).format == "folder"
    assert sources.find(speech / "a.data", "tsv").format == "tsv"


def test_a_large_table_is_read_in_bounded_memory(tmp_path):
    """In a process of its own: what other tests left running allocates too."""
    with (tmp_path / "a.csv").open("w") as file:
        file.write("path,text\n")
        file.writelines(f"{number}.wav,{'word ' * 20}\n" for number in range(5_000))
    code = (
        "import sys, tracemalloc; from pathlib import Path; from voxtral_finetune.data import sources\n"
        "source = sources.find(Path(sys.argv[1])); tracemalloc.start()\n"
        "print(sum(1 for _ in sources.entries(source)), tracemalloc.get_traced_memory()[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.csv")]
    rows, peak = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert rows == 5_000
    assert peak < 1_500_000


def test_a_row_of_an_archive_cannot_name_a_file_outside_of_it(speech, tmp_path):
    (tmp_path / "secret.wav").write_bytes((speech / "one.wav").read_bytes())
    content = io.StringIO()
    for name in ("../../../secret.wav", str(tmp_path / "secret.wav")):
        content.write(json.dumps({"audio_path": name, "text": "x"}) + "\n")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.jsonl", content.getvalue())
    survey = sources.survey(tmp_path / "a.zip")
    assert not survey.utterances
    assert all("outside the folder" in problem.what for problem in survey.problems)


def test_a_text_that_is_a_link_out_of_the_folder_is_not_read(speech, tmp_path):
    (tmp_path / "secret").write_text("secret words")
    (speech / "one.txt").symlink_to(tmp_path / "secret")
    (speech / "two.txt").symlink_to("loop.txt")
    (speech / "loop.txt").symlink_to("two.txt")
    survey = sources.survey(speech, format="folder")
    assert not survey.utterances
    assert "link out of the folder" in survey.problems[0].what
    assert "secret words" not in str(survey)


def test_many_rows_are_surveyed_by_processes_with_the_same_result(speech):
    """In a process of its own, because a fork wants one thread."""
    rows = [
        json.dumps({"audio_path": f"{name}.wav", "text": f"{text} {n}"})
        for n in range(30)
        for name, text in TEXTS.items()
    ]
    (speech / "data.jsonl").write_text("\n".join([*rows, '{"audio_path": "gone.wav", "text": "x"}']))
    code = (
        "import os, sys; from pathlib import Path; from voxtral_finetune.data import sources, survey\n"
        "examine, seen = survey.examine, []\n"
        "def spy(row):\n"
        "    Path(sys.argv[2], str(os.getpid())).touch()\n"
        "    return examine(row)\n"
        "survey.examine, survey.WORTH_PROCESSES = spy, int(sys.argv[3])\n"
        "found = sources.survey(Path(sys.argv[1]))\n"
        "print(found.utterances, found.problems, found.measures)"
    )
    results = []
    for worth in (1, 10_000):
        pids = speech / f"pids-{worth}"
        pids.mkdir()
        command = [sys.executable, "-c", code, str(speech / "data.jsonl"), str(pids), str(worth)]
        results.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert (len(list(pids.iterdir())) > 1) == (worth == 1 and sys.platform == "linux" and survey.THREADS > 1)
    assert results[0] == results[1]
    assert "gone.wav" in results[0]

"""A hundred awkward and hostile inputs: each is used, or refused with a reason, as its index says; none does harm."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from voxtral_finetune.data import sources
from voxtral_finetune.data.prepare import prepare
from voxtral_finetune.data.survey import Survey
from voxtral_finetune.errors import DataError

SECONDS = 60
"""A case that takes longer hangs."""

DURATIONS = {"a06": 7.1}
"""Cases that are about a difference from the length that the manifest gives."""

PAIRS = {"m23a": ("leak_train", "leak_test"), "m23b": ("leak_train", "leak_test")}
"""A leak between two files shows only where both are read."""

ABSENT = {"m41": 1}
"""Rows that the index counts as good although their file is not in the set (n01, the name in two normal forms)."""


def cases():
    index = Path(os.environ.get("VOXTRAL_SPEECH_DATA") or "/nonexistent") / "bad_inputs" / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()] if index.exists() else []
    return [pytest.param(row, id=row["id"]) for row in rows] or [pytest.param({}, id="no set")]


@pytest.fixture(scope="module")
def folder(speech_data, tmp_path_factory):
    """The set, unpacked, with the special files that are made on the spot."""
    place = tmp_path_factory.mktemp("inputs")
    packed = speech_data / "bad_inputs" / "bad_inputs.tar.gz"
    if not packed.exists():
        pytest.skip("the speech data holds no bad inputs")
    subprocess.run(["tar", "xzf", packed, "-C", place], check=True)
    place /= "bad_inputs"
    subprocess.run([sys.executable, place / "runtime" / "make_runtime.py", place / "runtime"], check=True)
    yield place
    (place / "runtime" / "readonly_out").chmod(0o700)


@pytest.fixture
def time_limit():
    def stop(*_):
        raise AssertionError(f"took over {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def manifest_of(case, folder):
    """The manifest of a case, or one made of its audio file."""
    path = folder / case["path"].replace("\\n", "\n")
    if case["kind"] == "manifest" or path.suffix == ".jsonl":
        return path
    name = case.get("manifest_writes") or path.name
    if "\ufffd" in name:  # the index cannot spell a name that is not UTF-8
        name = next(entry.name for entry in path.parent.iterdir() if entry.name.startswith(name.split("\ufffd")[0]))
    row = {"audio_path": name, "text": case.get("text") or "yes"}
    if case["id"] in DURATIONS:
        row["duration"] = DURATIONS[case["id"]]
    manifest = path.parent / f".{case['id']}.jsonl"
    manifest.write_text(json.dumps(row) + "\n")
    return manifest


def surveyed(case, folder):
    """(what a survey of the case finds, the one message it ended with instead)."""
    try:
        if case["id"] == "r09":
            done = prepare(folder / "manifests/good.jsonl", folder / case["path"] / "corpus", [folder])
            return Survey(done.corpus.rows()[0], done.problems), "" if os.geteuid() else "root may write everywhere"
        if case["id"] in PAIRS:
            path = folder / "manifests" / "both.jsonl"
            path.write_text("".join((folder / f"manifests/{name}.jsonl").read_text() for name in PAIRS[case["id"]]))
        else:
            path = manifest_of(case, folder)
        return sources.survey(path, [folder, folder / "audio"]), ""
    except DataError as error:
        return Survey([], []), str(error)


@pytest.mark.parametrize("case", cases())
def test_every_bad_input_ends_as_its_index_says(case, folder, time_limit):
    survey, ended = surveyed(case, folder)
    said = [str(problem) for problem in survey.problems] + [ended] * bool(ended)
    usable = len(survey.utterances)
    if case["outcome"] == "accept":
        assert usable
        assert not said
    elif case["outcome"] == "accept_with_warning":
        assert usable
        assert said
    elif case["outcome"] == "reject":
        assert not usable
        assert said
    else:
        assert said
    if "good_rows" in case and case["id"] not in PAIRS:
        assert usable == case["good_rows"] - ABSENT.get(case["id"], 0)
    for message in said:
        assert message.isprintable()
        assert len(message) < 2000
        assert "root:" not in message

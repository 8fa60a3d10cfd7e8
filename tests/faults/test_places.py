"""Odd names, other people's folders and a terminal that knows only ASCII: it works, or says in a line why not."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.faults.commands import ROOT, SOAK
from voxtral_finetune.run import Run

NAMES = [
    "a b  'c' \"d\" #1 100% 🎤 ሰላም שלום $(x) `y` ; & {z}",
    "n" * 255,
    "-rf",
    "line\nbreak",
    "x.tmp",
    "checkpoint-7.incomplete",
    os.fsdecode(b"not \xff UTF-8"),
]


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory, reference):
    """Eighteen recordings of the demo."""
    from tests.faults.conftest import DEMO

    folder = tmp_path_factory.mktemp("small") / "corpus"
    (folder / "audio").mkdir(parents=True)
    lines = (DEMO / "data.jsonl").read_text().splitlines()[:18]
    for line in lines:
        shutil.copy(DEMO / json.loads(line)["audio_path"], folder / "audio")
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("name", NAMES if SOAK else NAMES[:2], ids=ascii)
def test_any_name_of_a_folder(warm, settings, small_corpus, tmp_path, name):
    shutil.copytree(small_corpus, tmp_path / name / "corpus")
    chosen = {**settings, "max_steps": 2, "save_steps": None, "eval_steps": None, "eval_count": 3}
    del chosen["dataset_jsonl"]
    (tmp_path / "settings.json").write_text(json.dumps(chosen))
    work = tmp_path / name
    words = ("train", "--config", tmp_path / "settings.json", "--dataset-jsonl", "corpus", "--output-dir", name)
    if name.startswith("-"):
        words = (*words[:-2], f"--output-dir={name}")
    done = warm.start(*words, env={"VOXTRAL_FINETUNE_HOME": str(work)}, cwd=work, folder=tmp_path)
    assert done.wait() == 0, done.said()
    run = Run(work / name)
    assert run.status() == "finished"
    assert (run.folder / "model" / "model.safetensors").exists()
    again = warm.start("card", "--", work / name, cwd=work, folder=tmp_path)
    assert again.wait() == 0, again.said()
    too_many = warm.start(*words, env={"VOXTRAL_FINETUNE_HOME": str(work)}, cwd=work, folder=tmp_path)
    if len(os.fsencode(name)) == 255:  # a second run of that name gets a suffix, for which there is no room
        assert too_many.wait() == 1
        assert "cannot be made: File name too long." in too_many.error()
    else:
        too_many.kill()


POWERLESS = ("powerless", [])
"""What root may do besides is given up: a folder that may only be read may only be read."""


@pytest.fixture
def closed(tmp_path):
    """Makes folders that may only be read, and opens them in the end."""
    made = []

    def close(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o555)
        made.append(folder)
        return folder

    yield close
    for folder in made:
        folder.chmod(0o755)


def test_a_folder_that_may_not_be_written(warm, settings, closed, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    folder = closed("closed")
    words = ("train", "--config", tmp_path / "settings.json", "--output-dir", folder / "run")
    refused = warm.start(*words, hooks=[POWERLESS], folder=tmp_path)
    assert refused.wait() == 1
    assert refused.error().startswith(f"Error: {folder}/run cannot be made: Permission denied.")


def test_a_run_that_may_only_be_read(trial, closed):
    trial.run.folder.chmod(0o555)
    refused = trial.train(hooks=[POWERLESS])
    assert refused.wait() == 1
    trial.run.folder.chmod(0o755)
    assert refused.error().startswith(f"Error: {trial.run.folder} cannot be written: Permission denied.")


def test_a_home_that_may_only_be_read(trial, reference, closed):
    """Caches are done without."""
    trial.resume(hooks=[POWERLESS], env={"VOXTRAL_FINETUNE_HOME": str(closed("home"))})
    trial.ended_as(reference)


def test_a_folder_that_is_closed_while_the_run_goes_on(trial, reference):
    folder = trial.run.folder / "checkpoints"
    failed = trial.train(hooks=[POWERLESS, ("close", ["saving", 2, str(folder)])])
    assert failed.wait() == 1
    folder.chmod(0o755)
    assert "Permission denied" in failed.error()
    assert trial.run.status() == "failed"
    trial.resume()
    trial.ended_as(reference)


TEXTS = ["ሰላም ለዓለም", "שלום עולם", "مرحبا بالعالم", "low 🎤 mid", "Grüße, Ärger", "नमस्ते दुनिया", "你好世界", "low mid"]


MEASURED = ("seconds_to_best", "peak_memory_bytes", "speed")


def without_measurements(report):
    """A report without the time and memory that were taken."""

    def kept(value):
        if not isinstance(value, dict):
            return value
        return {key: kept(inner) for key, inner in value.items() if key not in MEASURED}

    report["training"].pop("seconds")
    return kept(report)


def test_a_terminal_that_knows_only_ascii(write_corpus, small_checkpoint, tmp_path):
    """With LC_ALL=C every byte that is written is the one of a UTF-8 terminal."""
    source = write_corpus([("low mid high", {"language": "en"}) for _ in range(len(TEXTS))], "source")
    rows = [json.loads(line) for line in (source / "data.jsonl").read_text().splitlines()]
    spelled = [
        json.dumps({**row, "text": text, "speaker": text}, ensure_ascii=False)
        for row, text in zip(rows, TEXTS, strict=True)
    ]
    (source / "data.jsonl").write_text("\n".join(spelled) + "\n", encoding="utf-8")
    made = {}
    for name, locale in (("utf-8", "C.UTF-8"), ("ascii", "C")):
        place = tmp_path / name
        place.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
        env |= {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
        env["VOXTRAL_FINETUNE_HOME"] = str(place)
        common = ["--model-checkpoint", small_checkpoint, "--max-steps", 1, "--device", "cpu", "--eval-count", 2]
        for words in (
            ["prepare", source, "--output", place / "corpus"],
            ["train", "--dataset-jsonl", source, "--output-dir", place / "run", *common],
        ):
            command = [sys.executable, "-m", "voxtral_finetune", *map(str, words)]
            done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True)
            assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        corpus = [json.loads(line) for line in (place / "corpus" / "data.jsonl").read_bytes().splitlines()]
        report = json.loads((place / "run" / "report.json").read_bytes())
        made[name] = (
            [row["text"] for row in corpus],
            without_measurements(report),
            (place / "run" / "split.json").read_bytes(),
        )
    assert made["ascii"] == made["utf-8"]
    assert sorted(made["ascii"][0]) == sorted(TEXTS)

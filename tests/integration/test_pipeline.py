"""The whole way, by the doors a person uses: a corpus in, a measured model out, and every failure one clear line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from voxtral_finetune.cli import main
from voxtral_finetune.run import Run

ROOT = Path(__file__).parent.parent.parent


def texts(count):
    words = ["low", "mid", "high"]
    return [" ".join(words[number // 3**place % 3] for place in range(4)) for number in range(count)]


@pytest.fixture
def corpus(write_corpus):
    return write_corpus([(text, {"language": "en", "speaker": "a"}) for text in texts(12)])


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train(checkpoint, corpus, folder, *more):
    common = ["--model-checkpoint", checkpoint, "--dataset-jsonl", corpus, "--output-dir", folder, "--device", "cpu"]
    return invoke("train", *common, "--epochs", 1, "--logging-steps", 1, *more)


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        (["--method", "lora"], {"adapter_config.json", "adapter_model.safetensors"}),
        (["--method", "lora", "--preset", "voice"], {"model.safetensors", "tekken.json"}),
        (["--method", "full"], {"model.safetensors", "tekken.json"}),
    ],
)
def test_a_corpus_becomes_a_measured_model(small_checkpoint, corpus, tmp_path, flags, files):
    folder = tmp_path / "run"
    result = train(small_checkpoint, corpus, folder, *flags)
    assert result.exit_code == 0, result.output
    assert "Too few to tell" in result.output
    report = json.loads((folder / "report.json").read_text())
    assert {"wer", "cer"} <= report["base"].keys() & report["tuned"].keys()
    assert report["verdict"]["word"] == "too few to tell"
    test = json.loads((folder / "split.json").read_text())["test"]
    assert [row["reference"] for row in report["utterances"]] == [row["text"] for row in test]
    assert all({"base", "tuned"} <= row.keys() for row in report["utterances"])
    assert files <= {path.name for path in (folder / "model").iterdir()}
    assert "word error rate" in (folder / "README.md").read_text()
    kinds = [event.kind for event in Run(folder).events()]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert {"data", "plan", "step", "eval", "checkpoint"} <= set(kinds)
    again = train(small_checkpoint, corpus, folder, *flags)
    assert again.exit_code == 0
    assert (tmp_path / "run-2" / "report.json").exists()


def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--model-checkpoint", small_checkpoint, "--dataset-jsonl", corpus, "--output-dir", folder]
    arguments += ["--epochs", 400, "--logging-steps", 1, "--eval-steps", 200, "--batch-size", 1, "--grad-accum", 1]
    command = [sys.executable, "-m", "voxtral_finetune", "train", "--device", "cpu", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = Run(folder)
    while not any(event.kind == "step" for event in run.events()):
        assert process.poll() is None, process.stderr.read()
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "a checkpoint is saved" in errors
    assert run.status() == "stopped"
    stopped_at = max(event.fields["step"] for event in run.events() if event.kind == "checkpoint")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "patience": 1}))
    result = invoke("train", "--resume", "--output-dir", folder)
    assert result.exit_code == 0, result.output
    steps = [event.fields["step"] for event in run.events() if event.kind == "step"]
    assert sorted(set(steps)) == steps, "a step was done twice"
    assert max(steps) > stopped_at
    assert run.status() == "finished"
    assert "is finished" in invoke("train", "--resume", "--output-dir", folder).output


def test_a_run_that_died_after_training_is_not_trained_again(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "run"
    assert train(small_checkpoint, corpus, folder).exit_code == 0
    steps = sum(event.kind == "step" for event in Run(folder).events())
    for name in ("heard-tuned.json", "report.json", "events.jsonl"):
        (folder / name).rename(tmp_path / name)
    (folder / "events.jsonl").write_bytes(
        b"\n".join((tmp_path / "events.jsonl").read_bytes().splitlines()[:-1]) + b"\n"
    )
    assert invoke("train", "--resume", "--output-dir", folder).exit_code == 0
    assert sum(event.kind == "step" for event in Run(folder).events()) == steps
    again, first = (json.loads((place / "report.json").read_text()) for place in (folder, tmp_path))
    for report in (again, first):
        assert report["behaviour"]["tuned"].pop("speed") > 0, "measured anew"
    assert again == first


def test_a_bad_row_is_named_and_the_others_are_learned(small_checkpoint, corpus, tmp_path):
    with (corpus / "data.jsonl").open("a") as file:
        file.write('{"audio_path": "audio/gone.wav", "text": "low"}\nnonsense\n')
    result = train(small_checkpoint, corpus, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "2 rows skipped" in result.output
    strict = train(small_checkpoint, corpus, tmp_path / "strict", "--strict")
    assert strict.exit_code == 1
    assert "2 rows cannot be used" in strict.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--dataset-jsonl": "none.jsonl"}, "does not exist"),
        ({"--dataset-jsonl": "empty.jsonl"}, "has no rows"),
        ({"--model-checkpoint": "nobody/nothing"}, "There is no checkpoint 'nobody/nothing'"),
        ({"--output-dir": "file/run"}, "cannot be made"),
        ({"--learning-rate": "7"}, "--learning-rate cannot be 7"),
        ({"--config": "none.json"}, r"none.json cannot be read"),
        ({"--device": "cuda"}, "no cuda device"),
    ],
)
def test_each_mistake_is_one_clear_line(small_checkpoint, corpus, tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("empty.jsonl").write_text("")
    flags = {"--model-checkpoint": small_checkpoint, "--dataset-jsonl": corpus, "--output-dir": "run", **change}
    result = invoke("train", *(word for pair in flags.items() for word in pair))
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert said in line


def test_a_failed_run_says_so_in_its_folder_and_keeps_what_it_has(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "run"
    assert train("nobody/nothing", corpus, folder).exit_code == 1
    last = Run(folder).events()[-1]
    assert last.kind == "failed"
    assert "nobody/nothing" in last.fields["what"]
    assert last.fields["fix"]
    assert (folder / "split.json").exists()


def test_a_run_that_was_saved_merged_transcribes_by_its_folder(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "run"
    assert train(small_checkpoint, corpus, folder, "--preset", "voice").exit_code == 0
    result = invoke("transcribe", folder, next((corpus / "audio").iterdir()))
    assert result.exit_code == 0, result.output


def test_transcribe_check_and_card(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "run"
    train(small_checkpoint, corpus, folder)
    waves = sorted((corpus / "audio").iterdir())[:2]
    result = invoke("transcribe", folder, *waves)
    assert result.exit_code == 0, result.output
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(wave) for wave in waves]
    assert "is missing" in invoke("transcribe", folder, "no.wav").output
    checked = invoke("check", corpus, "--show-labels", "--model-checkpoint", small_checkpoint)
    assert "12 utterances" in checked.output
    assert "</s>'  <- learned" in checked.output
    (folder / "README.md").unlink()
    assert invoke("card", folder).exit_code == 0
    assert (folder / "README.md").exists()


@pytest.mark.parametrize("script", ["train.py", "train_lora.py"])
def test_the_scripts_are_the_same_engine(script, small_checkpoint, corpus, tmp_path):
    command = [sys.executable, ROOT / "scripts" / script, "--model-checkpoint", small_checkpoint, "--epochs", "1"]
    command += ["--dataset-jsonl", corpus, "--output-dir", tmp_path / "run", "--device", "cpu"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    method = {"train.py": "full", "train_lora.py": "lora"}[script]
    assert Run(tmp_path / "run").settings().training.method == method
    assert (tmp_path / "run" / "report.json").exists()


def test_a_full_disk_is_said_and_the_run_can_go_on(small_checkpoint, corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("voxtral_finetune.model.export.shutil.copyfile", full)
        result = train(small_checkpoint, corpus, tmp_path / "run")
    assert "The disk is full. Free some space" in result.stderr
    assert Run(tmp_path / "run").status() == "failed"
    assert invoke("train", "--resume", "--output-dir", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "report.json").exists()


def test_a_mistake_uses_up_no_run_name_and_a_removed_model_is_made_again(small_checkpoint, corpus, tmp_path):
    folder = tmp_path / "mine"
    assert train(small_checkpoint, tmp_path / "typo.jsonl", folder).exit_code == 1
    assert not folder.exists()
    assert train(small_checkpoint, corpus, folder).exit_code == 0
    steps = sum(event.kind == "step" for event in Run(folder).events())
    shutil.rmtree(folder / "model")
    result = invoke("train", "--resume", "--output-dir", folder)
    assert result.exit_code == 0, result.output
    assert (folder / "model" / "adapter_model.safetensors").exists()
    assert sum(event.kind == "step" for event in Run(folder).events()) == steps
    (folder / "model" / "adapter_model.safetensors").write_bytes(b"broken")
    assert "is damaged" in invoke("transcribe", folder, next((corpus / "audio").iterdir())).stderr

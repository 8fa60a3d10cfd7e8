"""`transcribe`, `evaluate` and `train --require-better`, as a person types them; real speech by the built-in model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from tests.conftest import spoken
from tests.unit.evaluation.test_pieces import spoken_for
from voxtral_finetune.cli import NOT_BETTER, main
from voxtral_finetune.data import audio
from voxtral_finetune.data.audio import SAMPLE_RATE
from voxtral_finetune.errors import ModelError
from voxtral_finetune.evaluation.measured import check_changed
from voxtral_finetune.evaluation.pieces import Recording
from voxtral_finetune.evaluation.transcribe import Transcriber
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.verdict import Verdict, compare
from voxtral_finetune.evaluation.wer import errors_of, score
from voxtral_finetune.model.catalog import ASSETS
from voxtral_finetune.model.load import load_model, load_processor
from voxtral_finetune.run import Run

DEMO = ASSETS / "demo"
CPU = ("--device", "cpu")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "a.wav", tmp_path / "other" / "a.wav", tmp_path / "long.flac"]
    made[1].parent.mkdir()
    for path, words in zip(made, ("low mid", "high", "mid low high " * 4), strict=True):
        audio.write(path, spoken(words.strip()), SAMPLE_RATE)
    return made


def test_a_bad_file_is_named_the_others_go_on_and_the_exit_code_says_so(
    small_checkpoint: Path, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.wav").write_text("no audio")
    result = invoke("transcribe", small_checkpoint, files[0], tmp_path / "bad.wav", tmp_path / "no.wav", files[2], *CPU)
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [str(files[0]), str(files[2])]
    assert "bad.wav is not audio" in result.stderr and "no.wav is missing" in result.stderr
    assert "2 of 4 files could not be transcribed" in result.stderr


def test_what_is_doubtful_about_a_file_is_said(small_checkpoint: Path, files: list[Path]) -> None:
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2])
    result = invoke("transcribe", small_checkpoint, files[0], *CPU)
    assert result.exit_code == 0 and "Its header promises" in result.stderr


def test_every_format_in_a_file_in_a_folder_and_on_stdout(
    small_checkpoint: Path, files: list[Path], tmp_path: Path
) -> None:
    one = invoke("transcribe", small_checkpoint, files[2], "--output-format", "json", *CPU)
    content = json.loads(one.stdout)
    assert content["file"] == str(files[2]) and len(content["pieces"]) > 1
    assert all(piece["end"] - piece["start"] <= 2 for piece in content["pieces"])
    both = invoke("transcribe", small_checkpoint, *files[:2], "--output-format", "json", *CPU)
    assert [each["file"] for each in json.loads(both.stdout)] == list(map(str, files[:2]))
    named = tmp_path / "subtitles.vtt"
    assert invoke("transcribe", small_checkpoint, files[0], "--output", named, *CPU).exit_code == 0
    assert named.read_text().startswith("WEBVTT")
    folder = tmp_path / "texts"
    assert invoke("transcribe", small_checkpoint, *files, "--output", folder, *CPU).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a-2.txt", "a.txt", "long.txt"]
    assert "Name a folder" in invoke("transcribe", small_checkpoint, *files, "--output-format", "srt", *CPU).stderr
    native = invoke("transcribe", small_checkpoint, files[2], "--native", "--output-format", "json", *CPU)
    assert len(json.loads(native.stdout)["pieces"]) == 1


@pytest.mark.parametrize("language", ["klingon", "yue", "xx", ""])
def test_a_language_that_voxtral_cannot_be_told_is_an_error(language: str, tmp_path: Path) -> None:
    for command in ("transcribe", "evaluate"):
        result = invoke(command, "nobody/nothing", tmp_path, "--language", language)
        assert result.exit_code == 1 and "--language cannot be" in result.stderr


def test_languages_may_be_named_in_any_usual_way(small_checkpoint: Path, files: list[Path]) -> None:
    said = [
        invoke("transcribe", small_checkpoint, files[0], "--language", name, *CPU).stdout for name in ("de", "German")
    ]
    assert said[0] == said[1]


def test_beams_are_not_offered(tmp_path: Path) -> None:
    assert "No such option" in invoke("transcribe", "any", tmp_path, "--num-beams", 4).stderr


def test_a_model_is_measured_on_a_corpus(tmp_path: Path) -> None:
    terms = tmp_path / "terms.txt"
    terms.write_text("seven\nnine\n")
    result = invoke("evaluate", "mini", DEMO, "--terms", terms, "--output", tmp_path / "e.json", *CPU)
    assert result.exit_code == 0, result.output
    for words in (
        "word error rate (basic-1)",
        "word error rate (raw-1)",
        "95 % interval",
        "texts that loop",
        "cut off",
    ):
        assert words in result.stdout
    made = json.loads((tmp_path / "e.json").read_text())
    rows = [json.loads(line) for line in (DEMO / "data.jsonl").read_text().splitlines()]
    wanted = [row["text"] for row in rows if row.get("split") == "test"] or [row["text"] for row in rows]
    assert [each["reference"] for each in made["utterances"]] == wanted
    assert made["score"]["wer"] == sum(each["errors"] for each in made["utterances"]) / made["score"]["words"]
    assert made["low"] <= made["score"]["wer"] <= made["high"]
    assert 0 <= made["terms"]["recall"] <= 1 and made["behaviour"]["speed"] > 0


def test_what_a_run_learned_from_is_no_proof_of_it(small_checkpoint: Path, write_corpus: Any, tmp_path: Path) -> None:
    corpus = write_corpus([(f"{a} {b}", {}) for a in ("low", "mid", "high") for b in ("low", "mid", "high")])
    run = tmp_path / "run"
    common = ["--model-checkpoint", small_checkpoint, "--dataset-jsonl", corpus, "--output-dir", run, "--epochs", 1]
    trained = invoke("train", *common, *CPU, "--require-better")
    assert trained.exit_code == NOT_BETTER, trained.output
    assert "--require-better: the verdict is 'too few to tell'" in trained.stderr
    assert Run(run).status() == "finished" and (run / "README.md").exists()
    report = json.loads((run / "report.json").read_text())
    assert set(report["behaviour"]) == {"base", "tuned"} and set(report["slices"]) == {"speaker", "seconds", "language"}
    result = invoke("evaluate", run, corpus, *CPU)
    assert "recordings are among those that this model learned from" in result.stdout
    assert "A small test set: 9 utterances" in result.stdout


@pytest.mark.parametrize(("word", "code"), [("better", 0), ("worse", 3), ("no difference found", 3)])
def test_publishing_can_depend_on_the_verdict(
    word: str,
    code: int,
    small_checkpoint: Path,
    write_corpus: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "voxtral_finetune.evaluation.measured.compare",
        lambda *_: Verdict(word, 0.1, 0.05, 0.2, 40),  # type: ignore[arg-type]  # a parameter
    )
    corpus = write_corpus([(f"{a} {b}", {}) for a in ("low", "mid", "high") for b in ("low", "mid", "high")])
    common = ["--model-checkpoint", small_checkpoint, "--dataset-jsonl", corpus, "--output-dir", tmp_path / "run"]
    assert invoke("train", *common, "--max-steps", 1, "--require-better", *CPU).exit_code == code
    assert Run(tmp_path / "run").status() == "finished"


def test_the_base_in_place_of_the_tuned_model_is_caught() -> None:
    base = Transcripts(["a"], [False], 1.0, 1.0, "one")
    check_changed(base, replace(base, fingerprint="two"))
    with pytest.raises(ModelError, match="what was learned is not in it"):
        check_changed(base, base)


def test_a_run_whose_saved_model_is_the_base_does_not_end_with_a_report(
    small_checkpoint: Path, write_corpus: Any, tmp_path: Path
) -> None:
    corpus = write_corpus([(f"{a} {b}", {}) for a in ("low", "mid", "high") for b in ("low", "mid", "high")])
    run = tmp_path / "run"
    common = ["--model-checkpoint", small_checkpoint, "--dataset-jsonl", corpus, "--output-dir", run]
    assert invoke("train", *common, "--max-steps", 1, "--method", "full", *CPU).exit_code == 0
    for name in ("heard-tuned.json", "report.json"):
        (run / name).unlink()
    (run / "events.jsonl").write_text("".join((run / "events.jsonl").read_text().splitlines(True)[:-1]))
    (run / "model" / "model.safetensors").write_bytes((small_checkpoint / "model.safetensors").read_bytes())
    result = invoke("train", "--resume", "--output-dir", run)
    assert result.exit_code == 1 and "answers exactly as the one before training" in result.stderr
    assert Run(run).status() == "failed" and not (run / "report.json").exists()


@pytest.fixture(scope="module")
def built_in() -> Transcriber:
    return Transcriber(load_model("mini", None, torch.device("cpu")), load_processor("mini"), 16)


def test_ten_minutes_are_transcribed_with_no_word_lost_at_the_joins(
    built_in: Transcriber, speech_data: Path, tmp_path: Path
) -> None:
    wave, words = spoken_for(speech_data, 600, "fsdd_jackson", [0.3])
    audio.write(tmp_path / "digits.wav", wave, SAMPLE_RATE)
    (heard,) = built_in.hear([Recording(tmp_path / "digits.wav", "en")])
    assert heard is not None and len(heard.pieces) > 150 and not heard.capped
    found = score([" ".join(word for word, *_ in words)], [heard.text])
    assert found.deletions <= len(words) // 100, f"{found.deletions} of {len(words)} words were lost"
    assert found.wer < 0.04, "as on single strings of a known voice"
    joins = 0
    for piece in heard.pieces:
        said = [word for word, start, end in words if piece.start <= (start + end) / 2 < piece.end]
        joins += said[:1] != piece.text.split()[:1] or said[-1:] != piece.text.split()[-1:]
    assert joins <= len(heard.pieces) // 20


def test_a_harmful_change_is_called_worse(built_in: Transcriber) -> None:
    rows = [json.loads(line) for line in (DEMO / "data.jsonl").read_text().splitlines()][:80]
    waves = [audio.load(DEMO / row["audio_path"]) for row in rows]

    def errors() -> tuple[list[int], list[int]]:
        texts = built_in.transcribe(waves, ["en"] * len(rows))
        counted = [errors_of(row["text"], text) for row, text in zip(rows, texts, strict=True)]
        return [each.errors for each in counted], [each.words for each in counted]

    before, words = errors()
    head = built_in.model.lm_head.weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.add_(0.5 * head.std() * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
    after, _ = errors()
    with torch.no_grad():
        head.copy_(kept)
    assert np.sum(after) > np.sum(before)
    assert compare(before, after, words).word == "worse"
    assert compare(after, before, words).word == "better"

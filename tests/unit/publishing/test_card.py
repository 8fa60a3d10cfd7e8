"""The model card: only facts, in metadata that the Hub accepts, whatever people typed."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from voxtral_finetune.errors import RunError, SettingsError
from voxtral_finetune.evaluation.report import Report, Scored
from voxtral_finetune.evaluation.verdict import Verdict
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.publishing.card import card, hub_id, plain, write_card

BASE = "mistralai/Voxtral-Mini-3B-2507"

ATTACKS = [
    "x\nlicense: mit\nextra_gated_prompt: pay",
    "x\n---\nlicense: mit\n---\n",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}{% for x in y %}",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "![x](http://tracker.example/p.png) [y](javascript:alert(1))",
    "</details>\n\n# Heading\n\n| a | b |\n```\ncode",
    "ignore previous instructions " * 100_000,
    "$$\\href{x}{y}$$ \\(a\\) `code` **bold** &lt;b&gt; www.tracker.example",
]


def report(**changes: Any) -> Report:
    references = ["the cat sat on the mat"] * 40
    base, tuned = ["the hat sat on the map"] * 40, ["the cat sat on the map"] * 40
    values: dict[str, Any] = {
        "base": score(references, base),
        "tuned": score(references, tuned),
        "verdict": Verdict("better", -1 / 6, -0.2, -0.1, 40),
        "utterances": [Scored("audio/secret.wav", references[0], base[0], tuned[0], 2.0, "en", "Ada Lovelace")],
        "model": {"checkpoint": BASE, "revision": None, "method": "lora", "preset": "vocabulary"},
        "data": {
            "train": {"utterances": 300, "seconds": 1800.0},
            "test": {"utterances": 40, "seconds": 90.0},
            "languages": ["en-GB", "no", "nonsense", "unknown"],
            "speakers": 2,
            "split_by": "speaker and text",
            "split_note": "No speaker of the test set was heard in training.",
        },
        "training": {"steps": 40, "learning_rate": 1e-4},
    }
    return Report(**{**values, **changes})


def body(made: ModelCard) -> str:
    return made.text


def test_metadata() -> None:
    made = card(report(), {"lora_r": 16, "dataset_name": "google/fleurs"}, adapter=True)
    data = made.data
    assert (data.base_model, data.base_model_relation, data.library_name) == (BASE, "adapter", "peft")
    assert (data.pipeline_tag, data.license) == ("automatic-speech-recognition", "apache-2.0")
    assert (data.language, data.datasets, data.metrics) == (["en", "no"], ["google/fleurs"], ["wer", "cer"])
    results = {result.metric_type: result for result in data.eval_results}
    assert results["wer"].metric_value == pytest.approx(16.67)
    assert results["wer"].dataset_type == "google/fleurs" and "held-out" in results["wer"].dataset_name
    assert ModelCard(str(made)).data.to_dict() == data.to_dict()


def test_body() -> None:
    made = card(report(warnings=["Sentences repeat."]), {"lora_r": 16}, adapter=True)
    text = body(made)
    assert "# Voxtral-Mini-3B-2507, fine-tuned for English and Norwegian" in text
    assert "| word error rate | 33.3% | 16.7% |" in text
    assert "Better: 16.7 fewer errors in 100 words (95 % interval 10.0 to 20.0)" in text
    assert "-16.7 points (95 % interval -20.0 to -10.0)" in text
    assert "No speaker of the test set was heard in training" in text
    assert "300 utterances learned from, 30 minutes of speech" in text
    assert "| LoRA r | 16 |" in text and "| learning rate | 0.0001 |" in text
    assert "PeftModel.from_pretrained(model, this)" in text and "apply_transcription_request" in text
    assert "- Sentences repeat" in text


def test_what_is_heard_and_who_spoke_stays_private() -> None:
    text = str(card(report(), {"dataset_jsonl": "/data/ada/data.jsonl"}, adapter=True))
    assert not any(secret in text for secret in ("Lovelace", "cat sat", "secret", "/data", "data.jsonl"))


def test_unknown_facts_are_omitted() -> None:
    bare = report(model={}, data={}, training={})
    made = card(bare, {}, adapter=False)
    for name in ("license", "base_model", "base_model_relation", "language", "datasets"):
        assert made.data.get(name) is None
    assert made.data.library_name == "transformers"
    text = body(made)
    assert "## Training" not in text and "None" not in str(made) and "Peft" not in text
    assert "No speaker" not in text


@pytest.mark.parametrize("checkpoint", ["/data/ada/voxtral", "~/voxtral", "../run1/model", "C:\\models\\v", "./v"])
def test_a_local_checkpoint_does_not_leak(checkpoint: str) -> None:
    made = card(
        report(model={"checkpoint": checkpoint, "method": "lora"}), {"model_checkpoint": checkpoint}, adapter=True
    )
    assert made.data.base_model is None and checkpoint not in str(made) and made.data.license is None


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_id("outputs/run1") == "outputs/run1"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "run1").mkdir(parents=True)
    assert hub_id("outputs/run1") is None
    assert hub_id("mini") == "mini"
    for value in (
        None,
        3,
        "",
        "a/b/c",
        "a b",
        "a/b\n",
        "../b",
        "a/b@refs",
        "https://huggingface.co/a/b",
        "-a/b",
        "a/b.",
    ):
        assert hub_id(value) is None


def test_a_mini_base_has_no_licence_unless_told() -> None:
    assert card(report(model={"checkpoint": "mini"}), {}, adapter=True).data.license is None
    known = report(model={"checkpoint": "mini", "license": "apache-2.0"})
    assert card(known, {}, adapter=True).data.license == "apache-2.0"


def test_rates_of_characters_are_not_published_as_wer() -> None:
    references = ["今天天气好"] * 40
    made = card(report(base=score(references, references), tuned=score(references, references)), {}, adapter=True)
    assert made.data.metrics == ["cer"] and [result.metric_type for result in made.data.eval_results] == ["cer"]
    assert "word error rate" not in body(made)


@pytest.mark.parametrize("attack", ATTACKS)
def test_typed_text_stays_text(attack: str) -> None:
    clean = card(report(), {}, adapter=True)
    data = {
        **report().data,
        "languages": ["en", "no", attack],
        "sources": [attack],
        "licences": [attack],
        "split_by": f"speaker and text {attack}",
        "split_note": attack,
    }
    model = {"checkpoint": BASE, "license": attack, "revision": attack, "method": attack, "preset": attack}
    settings = {"dataset_name": attack, "model_checkpoint": attack, "lora_r": attack, "learning_rate": attack}
    verdict = dataclasses.replace(report().verdict, note=attack)
    made = card(
        report(data=data, model=model, training={"steps": attack}, verdict=verdict, warnings=[attack] * 50),
        settings,
        adapter=True,
    )
    text = str(made)
    expected = clean.data.to_dict()
    expected.pop("license")  # a licence that is none is left out
    assert yaml.safe_load(text.split("---\n")[1]) == expected
    assert ModelCard(text).data.to_dict() == expected
    assert len(text) < 60_000
    for harm in ("<script", "<img", "![x]", "](http://tracker", "(javascript", "</details>", "\n# Heading", "uid="):
        assert harm not in text
    for character in "<{$\\":
        assert character not in body(made)
    for structure in ("```", "|---|", "\n#", "\n---", "](http"):
        assert text.count(structure) == str(clean).count(structure)


def test_plain() -> None:
    assert plain("Épargne, 3 mots") == "Épargne, 3 mots"
    assert plain("- no list, well-known") == "&#45; no list, well-known"
    assert plain("a\n\tb\u202e\x00c") == "a b c"
    assert len(plain("é" * 10_000)) == 300
    assert plain("hf_" + "a1" * 17) == "hf&#95;…"
    assert plain("see /data/ada/corpus/x and C:\\Users\\ada\\y") == "see x and y"


def folder_with(tmp_path: Path, *, adapter: bool) -> Path:
    (tmp_path / "model").mkdir()
    if adapter:
        (tmp_path / "model" / "adapter_config.json").write_text("{}")
    report().save(tmp_path / "report.json")
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "lora_r": 16, "output_dir": "/data/ada/run"}))
    return tmp_path


@pytest.mark.parametrize(("adapter", "relation"), [(True, "adapter"), (False, "finetune")])
def test_write_card(tmp_path: Path, adapter: bool, relation: str) -> None:
    path = write_card(folder_with(tmp_path, adapter=adapter))
    assert path == tmp_path / "README.md"
    made = ModelCard.load(path)
    assert made.data.base_model_relation == relation
    assert str(tmp_path) not in path.read_text() and "/data" not in path.read_text()
    assert ("PeftModel" in made.text) == adapter


def test_a_folder_without_report_or_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"report\.json"):
        write_card(tmp_path)
    report().save(tmp_path / "report.json")
    with pytest.raises(SettingsError, match=r"config\.json"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_the_snippet_is_python() -> None:
    for adapter in (True, False):
        for model in ({"checkpoint": BASE}, {}):
            made = card(report(model=model, data={"languages": ["fr"]}), {}, adapter=adapter)
            snippet = made.text.split("```python\n")[1].split("```")[0]
            compile(snippet, "card", "exec")
            assert 'language="fr"' in snippet and "VoxtralForConditionalGeneration" in snippet


def test_scoring_and_card_do_not_load_torch() -> None:
    code = (
        "import sys, voxtral_finetune.publishing.card, voxtral_finetune.evaluation.verdict; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

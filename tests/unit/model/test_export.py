"""What leaves a run hears what the run hears, in every format; what does not is caught and nothing of it is left."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import VoxtralForConditionalGeneration

import voxtral_finetune
from tests.conftest import spoken
from voxtral_finetune.cli import main
from voxtral_finetune.data import audio
from voxtral_finetune.model import agreement, export, load, mini, mistral
from voxtral_finetune.model.catalog import resolve
from voxtral_finetune.run import Run

DEMO = Path(voxtral_finetune.__file__).parent / "assets" / "demo" / "data.jsonl"

QUICK = ("--device", "cpu", "--no-packing", "--no-vary-speed", "--no-mask-spectrum", "--batch-size", 8)

KINDS = ("adapter", "merged", "mistral")

WEIGHTS = {"adapter": "adapter_model.safetensors", "merged": "model.safetensors", "mistral": "consolidated.safetensors"}


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def trained(folder, *flags):
    """A run of a few updates, done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOXTRAL_FINETUNE_HOME", str(folder.parent))
        result = invoke("train", "--output-dir", folder, *QUICK, *flags)
    assert result.exit_code == 0, result.output
    return folder


def shipped(folder, *flags):
    counts = ("--train-count", 16, "--eval-count", 6, "--epochs", 2)
    return trained(folder, "--model-checkpoint", "mini", "--dataset-jsonl", DEMO, *counts, *flags)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The shipped checkpoint with an adapter of its language model."""
    folder = tmp_path_factory.mktemp("runs") / "vocabulary"
    return shipped(folder, "--preset", "vocabulary", "--learning-rate", 2e-3)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """The same, where projector and encoder have learned too."""
    return shipped(tmp_path_factory.mktemp("runs") / "voice", "--preset", "voice", "--learning-rate", 2e-3)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return shipped(tmp_path_factory.mktemp("runs") / "full", "--method", "full", "--learning-rate", 2e-4)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as Voxtral Mini 3B lies on the Hub, but small: bfloat16, several files, Whisper's positions."""
    folder = tmp_path_factory.mktemp("published")
    config = mini.small_config(vocab_size=512, window_seconds=2, width=64, layers=2, heads=2)
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 4, 2
    model = mini.initialise(VoxtralForConditionalGeneration(config))
    with torch.no_grad():
        positions = model.model.audio_tower.embed_positions.weight
        positions.copy_(mistral.sinusoids(*positions.shape))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="300KB")
    mini.build_processor(folder, vocab_size=512, window_seconds=2)
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.fixture(scope="module")
def tones(published, tmp_path_factory):
    """An adapter on that checkpoint, of words that are tones."""
    folder = tmp_path_factory.mktemp("tones")
    texts = [" ".join(["low", "mid", "high"][number // 3**place % 3] for place in range(4)) for number in range(12)]
    for number, text in enumerate(texts):
        audio.write(folder / f"{number}.wav", spoken(text, seed=number), 16_000)
    rows = [{"audio_path": f"{number}.wav", "text": text, "language": "en"} for number, text in enumerate(texts)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ("--dataset-jsonl", folder / "data.jsonl", "--epochs", 20, "--learning-rate", 5e-3)
    return trained(folder / "run", "--model-checkpoint", published, *flags)


def reported(run):
    return json.loads((run / "report.json").read_text())


def names(path):
    with safe_open(path, "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["vocabulary", "voice", "full", "tones"])
def test_an_export_hears_what_its_run_hears(request, tmp_path, run, kind):
    run = request.getfixturevalue(run)
    target = tmp_path / "for others"
    result = invoke("export", run, "--format", kind, "--output", target)
    if kind == "adapter" and not (run / "model" / "adapter_config.json").exists():
        assert result.exit_code == 1
        assert "has no adapter" in result.output
        assert "--format merged or mistral" in result.output
        assert not target.exists()
        return
    assert result.exit_code == 0, result.output
    report = reported(run)
    assert f"the same text for all {len(report['utterances'])} test utterances" in result.output
    assert f"(WER {report['tuned']['wer']:.1%})" in result.output
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_refusals_of_an_adapter_say_why(voice, full):
    assert "Preset voice teaches more than the language model" in invoke("export", voice, "--format", "adapter").output
    assert "Full fine-tuning changes the weights" in invoke("export", full, "--format", "adapter").output


def test_an_adapter_has_the_names_that_vllm_looks_for(vocabulary, tmp_path):
    invoke("export", vocabulary, "--format", "adapter", "--output", tmp_path / "a")
    saved = names(tmp_path / "a" / WEIGHTS["adapter"])
    # vLLM cuts off "base_model.model." and ".lora_A.weight"; the rest must be a module of its Voxtral class.
    assert "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight" in saved
    assert all(name.startswith("base_model.model.language_model.model.layers.") for name in saved)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mini"
    assert "revision" in config
    assert config["target_modules"].endswith(r"\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)")


def test_peft_loads_both_forms_of_an_adapter_alike(vocabulary, tmp_path):
    invoke("export", vocabulary, "--format", "adapter", "--output", tmp_path / "a")
    states = []
    for folder in (vocabulary / "model", tmp_path / "a"):
        base = VoxtralForConditionalGeneration.from_pretrained(resolve("mini"))
        states.append(peft.PeftModel.from_pretrained(base, folder).state_dict())
    assert names(vocabulary / "model" / WEIGHTS["adapter"]) != names(tmp_path / "a" / WEIGHTS["adapter"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert any(weight.abs().max() > 0 for name, weight in states[0].items() if "lora_B" in name)


def test_a_merged_export_of_a_published_checkpoint_lies_as_that_does(tones, published, tmp_path):
    assert invoke("export", tones, "--format", "merged", "--output", tmp_path / "m").exit_code == 0
    index = json.loads((published / "model.safetensors.index.json").read_text())
    assert names(tmp_path / "m" / WEIGHTS["merged"]) == index["weight_map"].keys()
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {"tekken.json", "processor_config.json", "generation_config.json"} <= {
        path.name for path in (tmp_path / "m").iterdir()
    }


def test_a_mistral_export_of_a_published_checkpoint_leaves_the_positions_out(tones, tmp_path):
    assert invoke("export", tones, "--format", "mistral", "--output", tmp_path / "m").exit_code == 0
    assert {path.name for path in (tmp_path / "m").iterdir()} == {WEIGHTS["mistral"], "params.json", "tekken.json"}
    assert not any("positions" in name for name in names(tmp_path / "m" / WEIGHTS["mistral"]))


def test_a_merged_export_needs_nothing_of_this_package(vocabulary, tmp_path):
    invoke("export", vocabulary, "--format", "merged", "--output", tmp_path / "m")
    code = (
        "import sys, torch\n"
        "from transformers import VoxtralForConditionalGeneration, VoxtralProcessor\n"
        "model = VoxtralForConditionalGeneration.from_pretrained(sys.argv[1])\n"
        "processor = VoxtralProcessor.from_pretrained(sys.argv[1])\n"
        "assert 'voxtral_finetune' not in sys.modules\n"
        "with torch.no_grad():\n"
        "    print(model(input_ids=torch.tensor([[1, 3, 4, 34]])).logits[0, -1, :5].tolist())\n"
        "print(processor.tokenizer.decode(processor.tokenizer('one two', add_special_tokens=False)['input_ids']))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    numbers, text = result.stdout.splitlines()[-2:]
    model = load.load_model(str(vocabulary), device=torch.device("cpu")).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[1, 3, 4, 34]])).logits[0, -1, :5]
    torch.testing.assert_close(torch.tensor(json.loads(numbers)), expected, atol=1e-4, rtol=1e-4)
    assert text == "one two"


@pytest.fixture
def spoiled(monkeypatch):
    """Has `spoil` called with every export after it was written and compared, before it is read again."""

    def install(spoil):
        write = export.write

        def spoiling(source, kind, folder, progress=None):
            write(source, kind, folder, progress)
            spoil(folder)

        monkeypatch.setattr(export, "write", spoiling)

    return install


def refused(run, kind, target):
    """What an export that does not agree says; nothing of it is there any more."""
    result = invoke("export", run, "--format", kind, "--output", target)
    assert result.exit_code == 1, result.output
    assert not target.exists()
    assert not list(target.parent.glob(".*"))
    return result.output


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("adapter", "base_model.model.language_model.model.layers.1.mlp.up_proj.lora_B.weight"),
        ("merged", "language_model.model.layers.1.self_attn.v_proj.weight"),
        ("mistral", "layers.1.attention.wv.weight"),
    ],
)
def test_a_damaged_weight_is_caught(vocabulary, tmp_path, spoiled, kind, name):
    def spoil(folder):
        weights = load_file(folder / WEIGHTS[kind])
        weights[name] += 0.1
        save_file(weights, folder / WEIGHTS[kind], metadata={"format": "pt"})

    spoiled(spoil)
    said = refused(vocabulary, kind, tmp_path / "out")
    assert "does not hear what the run does: in " in said
    assert ".flac its logits differ by" in said


def test_rows_in_the_wrong_order_are_caught(vocabulary, tmp_path, monkeypatch):
    reordered = mistral._reordered
    monkeypatch.setattr(
        mistral,
        "_reordered",
        lambda name, weight, config, pairs: weight if pairs else reordered(name, weight, config, pairs),
    )
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in refused(vocabulary, "mistral", tmp_path / "out")


@pytest.mark.parametrize("described", ["rope_theta", "norm_eps"])
def test_a_wrong_description_is_caught(vocabulary, tmp_path, spoiled, described):
    def spoil(folder):
        content = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps({**content, described: 0.5}))

    spoiled(spoil)
    assert "does not hear what the run does" in refused(vocabulary, "mistral", tmp_path / "out")


def the_base(folder):
    """Puts the base where the tuned model should be."""
    shutil.copyfile(Path(resolve("mini")) / "model.safetensors", folder / "model.safetensors")


def test_the_base_in_place_of_the_tuned_model_is_caught(vocabulary, tmp_path, spoiled):
    spoiled(the_base)
    assert "does not hear what the run does" in refused(vocabulary, "merged", tmp_path / "out")


def test_the_base_is_caught_also_where_rounding_could_explain_it(vocabulary, tmp_path, spoiled, monkeypatch):
    monkeypatch.setitem(agreement.LIMITS, torch.float32, 10.0)
    spoiled(the_base)
    assert "takes away what was learned" in refused(vocabulary, "merged", tmp_path / "out")


def test_other_words_are_caught_even_where_logits_agree(vocabulary, tmp_path, spoiled, monkeypatch):
    monkeypatch.setattr(agreement, "check_logits", lambda *_: 0.0)
    spoiled(the_base)
    said = refused(vocabulary, "merged", tmp_path / "out")
    assert "The export hears other words than the run in" in said
    assert "instead of" in said


def test_an_adapter_that_was_emptied_is_caught(vocabulary, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(vocabulary, run)
    weights = load_file(run / "model" / WEIGHTS["adapter"])
    zeroed = {name: torch.zeros_like(weight) if "lora_B" in name else weight for name, weight in weights.items()}
    save_file(zeroed, run / "model" / WEIGHTS["adapter"])
    assert "changes nothing" in refused(run, "adapter", tmp_path / "out")


def test_what_the_run_heard_on_another_device_is_not_held_against_an_export(vocabulary, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(vocabulary, run)
    report = reported(run)
    report["utterances"][0]["tuned"] = "something else"
    (run / "report.json").write_text(json.dumps(report))
    result = invoke("export", run, "--format", "merged", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_an_adapter_that_reaches_beyond_the_language_model_is_refused(vocabulary, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(vocabulary, run)
    weights = load_file(run / "model" / WEIGHTS["adapter"])
    for part in ("A", "B"):
        name = f"base_model.model.model.audio_tower.layers.0.fc1.lora_{part}.weight"
        weights[name] = torch.ones(8, 96) if part == "A" else torch.ones(384, 8)
    save_file(weights, run / "model" / WEIGHTS["adapter"])
    assert "reaches beyond the language model" in refused(run, "adapter", tmp_path / "out")


def test_nothing_is_written_over(vocabulary, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("mine")
    result = invoke("export", vocabulary, "--format", "merged", "--output", target)
    assert result.exit_code == 1
    assert "is not an empty folder" in result.output
    assert [path.name for path in target.iterdir()] == ["mine"]
    (target / "mine").unlink()
    assert invoke("export", vocabulary, "--format", "adapter", "--output", target).exit_code == 0


def test_without_an_output_it_is_kept_in_the_run(vocabulary, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(vocabulary, run)
    assert invoke("export", run, "--format", "adapter").exit_code == 0
    assert (run / "exports" / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_room_is_known_before_anything_is_written(vocabulary, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr(export, "load_model", load.load_model)
    assert "The export takes 0.1 GB" in refused(vocabulary, kind, tmp_path / "out")


def test_a_place_that_cannot_be_made_is_one_clear_line(vocabulary, tmp_path):
    (tmp_path / "file").write_text("")
    result = invoke("export", vocabulary, "--format", "merged", "--output", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert "cannot be written: Not a directory" in result.output


def test_only_a_run_that_is_done_can_be_exported(vocabulary, tmp_path):
    result = invoke("export", tmp_path / "nowhere", "--format", "merged")
    assert result.exit_code == 1
    assert "is not a run folder" in result.output
    run = tmp_path / "run"
    shutil.copytree(vocabulary, run)
    with Run(run).lock():
        assert "is being run" in invoke("export", run, "--format", "merged").output
    (run / "report.json").unlink()
    result = invoke("export", run, "--format", "merged")
    assert result.exit_code == 1
    assert "nothing to export yet" in result.output


def test_an_unknown_format_is_refused_with_the_known_ones(vocabulary):
    result = invoke("export", vocabulary, "--format", "gguf")
    assert result.exit_code == 2
    assert "'adapter', 'merged', 'mistral'" in result.output

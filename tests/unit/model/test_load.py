import json
import shutil

import pytest
import torch

from voxtral_finetune.errors import ModelError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.model.catalog import CHECKPOINTS, learned_audio, resolve, suggested
from voxtral_finetune.model.export import export
from voxtral_finetune.settings import TrainingSettings


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[1, 3, 4, 34, 60, 61, 62]])).logits


def changed_adapter(checkpoint, settings):
    """An adapted model whose update is not zero, as after training."""
    model = adapt.adapt(load.load_model(str(checkpoint)), settings, str(checkpoint))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("merge", [False, True])
def test_what_was_learned_survives_saving_and_loading(small_checkpoint, tmp_path, merge):
    model = changed_adapter(small_checkpoint, TrainingSettings(lora_r=4))
    model.save_pretrained(tmp_path / "checkpoint")
    processor = load.load_processor(str(small_checkpoint))
    export(tmp_path / "checkpoint", processor, tmp_path / "model", torch.float32, merge)
    reloaded = load.load_model(str(tmp_path / "model"))
    torch.testing.assert_close(logits(reloaded), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(load.load_model(str(small_checkpoint))) - logits(reloaded)).abs().max() > 1e-3
    assert load.load_processor(str(tmp_path / "model")).tokenizer("one", add_special_tokens=False)["input_ids"]
    assert (tmp_path / "model" / "adapter_config.json").exists() != merge


def test_a_merged_model_keeps_the_type_of_its_base(small_checkpoint, tmp_path):
    changed_adapter(small_checkpoint, TrainingSettings(lora_r=4)).save_pretrained(tmp_path / "c")
    export(tmp_path / "c", load.load_processor(str(small_checkpoint)), tmp_path / "m", torch.bfloat16, merge=True)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_an_interrupted_export_leaves_the_model_that_was_there(small_checkpoint, tmp_path, monkeypatch):
    changed_adapter(small_checkpoint, TrainingSettings()).save_pretrained(tmp_path / "c")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(tmp_path / "c", None, tmp_path / "model", torch.float32, merge=False)
    assert (tmp_path / "model" / "old").exists()


@pytest.mark.parametrize("name", ["nobody/nothing", "/nowhere", "a b c", ""])
def test_a_wrong_checkpoint_name_is_one_clear_line(name):
    with pytest.raises(ModelError, match="There is no checkpoint") as raised:
        load.load_model(name)
    assert "\n" not in str(raised.value)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ModelError, match="is a whisper model, not a Voxtral"):
        load.load_model(str(tmp_path))


def test_broken_weights_are_named(small_checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(small_checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load.load_model(str(broken))


def test_pickled_weights_are_never_opened(small_checkpoint, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(small_checkpoint, folder)
    (folder / "model.safetensors").unlink()

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"x": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load.load_model(str(folder))
    assert not (tmp_path / "owned").exists()


def test_a_device_that_is_not_there_is_named():
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no cuda device"):
            load.pick_device("cuda")


def test_the_suggested_checkpoint_can_be_taught_without_a_gpu(monkeypatch):
    monkeypatch.setattr("voxtral_finetune.model.catalog.has_gpu", lambda: False)
    assert suggested().folder
    monkeypatch.setattr("voxtral_finetune.model.catalog.has_gpu", lambda: True)
    assert suggested() == CHECKPOINTS[0]


def test_names_that_are_not_built_in_stay_as_they_are():
    assert resolve("mistralai/Voxtral-Mini-3B-2507") == "mistralai/Voxtral-Mini-3B-2507"
    assert learned_audio("mistralai/Voxtral-Mini-3B-2507") == frozenset()

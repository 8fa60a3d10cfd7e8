"""LoRA on a base in 4 bits: which layers, that it learns, and that what it learned goes onto the whole base."""

import importlib.util

import pytest
import torch
from transformers import VoxtralForConditionalGeneration

from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.errors import ModelError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.model.export import export
from voxtral_finetune.settings import TrainingSettings

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
CPU = torch.device("cpu")


def quantised(checkpoint, **chosen):
    model = load.load_model(str(checkpoint), device=CPU, quantise=True)
    return adapt.adapt(model, TrainingSettings(method="qlora", **chosen), str(checkpoint))


@needs_bitsandbytes
def test_only_the_layers_of_the_language_model_are_in_four_bits(small_checkpoint):
    model = load.load_model(str(small_checkpoint), device=CPU, quantise=True)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    packed = {name for name, module in linears.items() if type(module).__name__ == "Linear4bit"}
    assert packed == {name for name in linears if name.startswith("model.language_model.layers.")}
    assert packed == {name for name in linears if load.is_quantised(name)}
    whole = adapt.count(load.skeleton(str(small_checkpoint)))["total"]
    assert adapt.count(model)["total"] == pytest.approx(whole, rel=0.01)


@needs_bitsandbytes
@pytest.mark.parametrize("preset", ["vocabulary", "voice"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_teaches_the_adapters_and_nothing_else(small_checkpoint, preset, checkpointing):
    model = quantised(small_checkpoint, preset=preset, gradient_checkpointing=checkpointing).train()
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))
    batch = collator([Example(torch.linspace(-1, 1, 8000).sin().numpy(), "one two", "en", "a")])
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning and all("lora_" in name for name in learning)
    assert any("audio_tower" in name for name in learning) == (preset == "voice")


@needs_bitsandbytes
def test_what_was_learned_in_four_bits_goes_onto_the_whole_base(small_checkpoint, tmp_path):
    model = quantised(small_checkpoint, preset="voice")
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "checkpoint")
    assert load.adapter_base(str(tmp_path / "checkpoint")) == (str(small_checkpoint), None)
    export(
        tmp_path / "checkpoint", load.load_processor(str(small_checkpoint)), tmp_path / "m", torch.float32, merge=True
    )
    merged = VoxtralForConditionalGeneration.from_pretrained(tmp_path / "m").state_dict()
    base = load.load_model(str(small_checkpoint), device=CPU).state_dict()
    update = model.get_submodule("base_model.model.model.language_model.layers.0.mlp.up_proj").get_delta_weight(
        "default"
    )
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(merged[name], base[name] + update)


@needs_bitsandbytes
def test_adam_with_eight_bit_states_learns_on_this_machine():
    from bitsandbytes.optim import AdamW

    weight = torch.nn.Parameter(torch.ones(128, 128))
    optimizer = AdamW([weight], lr=1e-2, optim_bits=8)
    for _ in range(5):
        weight.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert weight.max() < 0.97
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_without_bitsandbytes_it_says_what_to_install(small_checkpoint, monkeypatch):
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes.*pip install 'voxtral-finetune\[qlora\]'"):
        load.load_model(str(small_checkpoint), device=CPU, quantise=True)

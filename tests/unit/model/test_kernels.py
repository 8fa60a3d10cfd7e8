"""Which kernels are switched on, and in what; that they compute the same needs a GPU."""

import sys
import types

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.model import adapt, kernels, load
from voxtral_finetune.settings import TrainingSettings

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def model(small_checkpoint):
    """A Voxtral wrapped by PEFT, as training has it."""
    return adapt.adapt(load.load_model(str(small_checkpoint), device=CPU), TrainingSettings(), str(small_checkpoint))


@pytest.fixture
def liger(monkeypatch):
    """Stands in for liger-kernel, which cannot be imported without Triton; keeps what it is asked for."""
    asked = []
    package, module = types.ModuleType("liger_kernel"), types.ModuleType("liger_kernel.transformers")
    module.apply_liger_kernel_to_llama = lambda **chosen: asked.append(chosen)
    package.__spec__ = types.SimpleNamespace(name="liger_kernel")
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    return asked


@pytest.fixture
def compiled(monkeypatch):
    """The modules that are compiled, by a compiler that needs no GPU and changes nothing."""
    seen, compile = [], torch.compile

    def noted(call):
        seen.append(call.__self__)
        return compile(call, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", noted)
    torch._dynamo.reset()
    counters.clear()
    yield seen
    torch._dynamo.reset()


def test_without_cuda_nothing_is_touched(model, liger, compiled):
    assert kernels.accelerate_kernels(model, CPU, compile=True) == []
    assert not liger + compiled


def test_liger_gets_the_language_model_itself_and_not_the_loss(model, liger):
    assert "Liger: RMSNorm, SwiGLU, RoPE" in kernels.accelerate_kernels(model, CUDA, compile=False)
    (asked,) = liger
    assert asked["model"] is model.get_base_model().model.language_model
    assert asked["rms_norm"] and asked["swiglu"] and asked["rope"]
    assert not asked["fused_linear_cross_entropy"] and not asked["cross_entropy"]


def test_compiling_takes_every_layer_alone_and_leaves_liger_out(model, liger, compiled):
    assert kernels.accelerate_kernels(model, CUDA, compile=True) == ["torch.compile"]
    inner = model.get_base_model().model
    assert compiled == [*inner.language_model.layers, *inner.audio_tower.layers]
    assert not liger


def test_layers_are_compiled_once_for_all_and_only_to_be_taught(model, small_checkpoint, compiled):
    kernels.accelerate_kernels(model, CUDA, compile=True)
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))

    def batch(text):
        return collator([Example(np.zeros(8000, np.float32), text, "en", "a") for text in (text, "one")])

    heard = batch("two")
    del heard["labels"]
    model.eval().generate(**heard, max_new_tokens=3)
    assert counters["stats"]["unique_graphs"] == 0
    graphs = []
    for text in ("one two", "two three four", "five six seven eight nine ten", "one two three four five"):
        model.train()(**batch(text), use_cache=False).loss.backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1] == graphs[-1]  # from the second shape on, shapes are free


def test_a_machine_without_extras_runs_as_it_is(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.accelerate_kernels(model, CUDA, compile=False) == []
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_flash_attention_is_taken_where_it_is_installed(model, monkeypatch):
    chosen = []
    monkeypatch.setattr(kernels, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(type(model.get_base_model()), "set_attn_implementation", lambda self, name: chosen.append(name))
    assert kernels.accelerate_kernels(model, CUDA, compile=False) == ["FlashAttention 2"]
    assert chosen == ["flash_attention_2"]

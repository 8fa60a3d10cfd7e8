"""What learns and what does not, on the real shapes of Voxtral-Mini-3B-2507 and on a small checkpoint with weights."""

import pytest
import torch
from transformers import VoxtralConfig

from voxtral_finetune.data.collate import Example, TranscriptionCollator
from voxtral_finetune.errors import ModelError
from voxtral_finetune.model import adapt, load
from voxtral_finetune.settings import TrainingSettings


@pytest.fixture(scope="module")
def mini_3b(tmp_path_factory):
    """The config of Voxtral-Mini-3B-2507 on disk: the library's defaults are that checkpoint's."""
    folder = tmp_path_factory.mktemp("mini-3b")
    VoxtralConfig().save_pretrained(folder)
    return folder


# Counts of the published architecture: 4.6763 B weights, of them 0.637 B encoder, 25.2 M projector; see docs.
@pytest.mark.parametrize(
    ("settings", "trainable"),
    [
        ({}, 27_033_600),
        ({"preset": "voice"}, 30_212_096),
        ({"preset": "voice", "freeze_audio_tower": True}, 27_262_976),
        ({"preset": "language"}, 39_059_456),
        ({"preset": "language", "freeze_audio_tower": True}, 27_262_976),
        ({"method": "full", "preset": "language"}, 4_668_941_824),
        ({"method": "full"}, 4_674_351_104),
        ({"method": "full", "freeze_audio_tower": True}, 4_039_302_144),
        ({"method": "full", "preset": "vocabulary"}, 4_014_136_320),
    ],
)
def test_the_full_size_model_learns_what_was_asked(mini_3b, settings, trainable):
    model = load.skeleton(str(mini_3b))
    assert adapt.count(model)["total"] == 4_676_271_104
    adapted = adapt.adapt(model, TrainingSettings(**settings), "base")
    assert adapt.count(adapted)["trainable"] == trainable


def learning(model, part):
    return [name for name, weight in model.named_parameters() if weight.requires_grad and part in name]


def test_the_default_adapter_touches_the_language_model_only(small_checkpoint):
    model = adapt.adapt(load.load_model(str(small_checkpoint)), TrainingSettings(), "base")
    assert learning(model, "language_model")
    assert not learning(model, "audio_tower") + learning(model, "projector")
    assert model.peft_config["default"].base_model_name_or_path == "base"


def test_voice_teaches_the_top_of_the_encoder_only(small_checkpoint):
    settings = TrainingSettings(preset="voice", top_encoder_layers=1)
    for method in ("lora", "full"):
        model = load.load_model(str(small_checkpoint))
        model = adapt.adapt(model, settings.model_copy(update={"method": method}), "base")
        assert learning(model, "audio_tower.layers.1")
        assert not learning(model, "audio_tower.layers.0")
        assert learning(model, "projector")


def test_language_teaches_every_layer_of_the_encoder_and_is_saved_merged(small_checkpoint):
    for method in ("lora", "qlora", "full"):
        settings = TrainingSettings(method=method, preset="language", top_encoder_layers=1)
        model = adapt.adapt(load.load_model(str(small_checkpoint)), settings, "base")
        for part in ("audio_tower.layers.0", "audio_tower.layers.1", "projector", "language_model.layers.0"):
            assert learning(model, part), (method, part)
        assert not learning(model, "embed_positions")
        assert adapt.merges(settings) == (method != "full")
        assert not adapt.merges(TrainingSettings(method=method))


def test_weights_that_learn_are_float32_and_frozen_ones_keep_their_type(small_checkpoint):
    model = adapt.adapt(load.load_model(str(small_checkpoint)).bfloat16(), TrainingSettings(), "base")
    for weight in model.parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_frozen_encoder_is_never_back_propagated(small_checkpoint, checkpointing):
    settings = TrainingSettings(gradient_checkpointing=checkpointing)
    model = adapt.adapt(load.load_model(str(small_checkpoint)), settings, "base").train()
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))
    seen = {}

    def note(name):
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    for name, module in model.named_modules():
        if name.endswith(("audio_tower.layers.1", "language_model.layers.1")):
            module.register_forward_hook(note(name.split(".")[-3]))
    batch = collator([Example(torch.zeros(8000).numpy(), "one", "en", "a")])
    model(**batch).loss.backward()
    assert seen["language_model"].requires_grad
    assert not seen["audio_tower"].requires_grad


def test_recomputing_activations_changes_no_gradient(small_checkpoint):
    collator = TranscriptionCollator(load.load_processor(str(small_checkpoint)))
    batch = collator([Example(torch.linspace(-1, 1, 8000).sin().numpy(), "one two", "en", "a")])
    gradients = []
    for checkpointing in (False, True):
        settings = TrainingSettings(
            method="full", preset="voice", top_encoder_layers=1, gradient_checkpointing=checkpointing
        )
        model = adapt.adapt(load.load_model(str(small_checkpoint)), settings, "base").train()
        model(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_a_model_in_which_nothing_would_learn_is_refused(small_checkpoint):
    model = load.load_model(str(small_checkpoint))
    del model.model.language_model.layers[:]
    settings = TrainingSettings(preset="voice", freeze_audio_tower=True)
    for name in ("linear_1", "linear_2"):
        setattr(model.model.multi_modal_projector, name, torch.nn.Identity())
    with pytest.raises((ModelError, ValueError)):
        adapt.adapt(model, settings, "base")


def test_an_adapter_is_not_taught_as_if_it_were_its_base(small_checkpoint):
    model = adapt.adapt(load.load_model(str(small_checkpoint)), TrainingSettings(), "base")
    for method in ("lora", "full"):
        with pytest.raises(ModelError, match="is an adapter"):
            adapt.adapt(model, TrainingSettings(method=method), "outputs/x")


def test_an_adapter_remembers_the_revision_of_its_base(small_checkpoint, tmp_path):
    model = adapt.adapt(load.load_model(str(small_checkpoint)), TrainingSettings(), str(small_checkpoint), "v1.0")
    model.save_pretrained(tmp_path)
    assert load.adapter_base(str(tmp_path)) == (str(small_checkpoint), "v1.0")

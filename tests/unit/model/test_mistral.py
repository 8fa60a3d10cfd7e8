"""Mistral's layout: every weight once, in the order that a rotation of neighbouring pairs expects."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VoxtralConfig, VoxtralForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.whisper.modeling_whisper import sinusoids

from voxtral_finetune.errors import ModelError
from voxtral_finetune.model import mini, mistral
from voxtral_finetune.model.load import load_processor, read_config, skeleton

POSITIONS = "mm_whisper_embeddings.whisper_encoder.embed_positions.weight"
CPU = torch.device("cpu")


@pytest.fixture
def model():
    """Random weights; more than one head of each kind, of a width that is not the model's divided by them."""
    config = mini.small_config(vocab_size=512, window_seconds=2, width=64, layers=2, heads=2)
    config.text_config.num_attention_heads, config.text_config.num_key_value_heads = 4, 2
    return mini.initialise(VoxtralForConditionalGeneration(config).eval())


@pytest.fixture
def written(model, small_checkpoint, tmp_path):
    """The same in Mistral's layout."""
    mistral.write(model, load_processor(str(small_checkpoint)), tmp_path)
    return tmp_path


def damage(folder, change):
    """Has `change` alter the weights of a folder by name."""
    weights = load_file(folder / mistral.WEIGHTS)
    change(weights)
    save_file(weights, folder / mistral.WEIGHTS)


def test_voxtral_mini_has_the_published_number_of_weights_each_under_a_name_of_its_own():
    names = mistral.names(VoxtralConfig())  # the defaults are Voxtral Mini 3B's
    assert len(set(names.values())) == len(names)
    assert len(names) - 1 == 761  # consolidated.safetensors of mistralai/Voxtral-Mini-3B-2507, without the positions


@pytest.mark.parametrize("base", ["mini", "default"])
def test_the_names_are_those_of_the_real_class(base):
    if base == "mini":
        config, real = read_config("mini"), skeleton("mini")
    else:
        config = VoxtralConfig()
        with torch.device("meta"):
            real = VoxtralForConditionalGeneration(config)
    assert real.state_dict().keys() == mistral.names(config).keys()


def test_a_model_survives_the_way_there_and_back(model, written):
    mistral.check_weights(model.state_dict(), written)
    back = mistral.load(written, CPU, torch.float32).eval()
    batch = {
        "input_ids": torch.tensor([[1, 3, 25, *[24] * 25, 4, 34, 60, 61]]),
        "input_features": torch.randn(1, 80, 200),
    }
    with torch.no_grad():
        assert torch.equal(back(**batch).logits, model(**batch).logits)


def test_queries_and_keys_are_in_the_order_that_rotated_neighbours_need(model, written):
    """Attention scores worked out as Mistral's code does, by complex numbers, are those of transformers."""
    text = model.config.text_config
    positions = torch.arange(7)
    hidden = torch.randn(1, 7, text.hidden_size)

    def heads(weight):
        return (hidden @ weight.T).view(1, 7, -1, text.head_dim).transpose(1, 2)

    layer = model.model.language_model.layers[0].self_attn
    cos, sin = LlamaRotaryEmbedding(text)(hidden, positions[None])
    halves = apply_rotary_pos_emb(heads(layer.q_proj.weight), heads(layer.k_proj.weight), cos, sin)

    saved = load_file(written / mistral.WEIGHTS)
    theta = json.loads((written / mistral.PARAMS).read_text())["rope_theta"]
    rates = theta ** -(torch.arange(0, text.head_dim, 2) / text.head_dim)
    turns = torch.polar(torch.ones(7, len(rates)), positions[:, None] * rates)

    def turned(name):
        pairs = torch.view_as_complex(heads(saved[f"layers.0.attention.{name}.weight"]).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2)

    for ours, theirs in ((halves[0], turned("wq")), (halves[1], turned("wk"))):
        torch.testing.assert_close(theirs @ theirs.mT, ours @ ours.mT, atol=1e-4, rtol=1e-4)
    assert not torch.equal(saved["layers.0.attention.wq.weight"], layer.q_proj.weight)


def test_positions_are_left_to_the_reader_only_where_it_makes_the_same(model, small_checkpoint, tmp_path):
    processor = load_processor(str(small_checkpoint))
    for name, whispers in (("own", False), ("whispers", True)):
        positions = model.model.audio_tower.embed_positions.weight
        if whispers:
            with torch.no_grad():
                positions.copy_(sinusoids(*positions.shape).bfloat16())
        (tmp_path / name).mkdir()
        mistral.write(model, processor, tmp_path / name)
        assert (POSITIONS in load_file(tmp_path / name / mistral.WEIGHTS)) != whispers
        mistral.check_weights(model.state_dict(), tmp_path / name)


def test_a_weight_without_a_place_is_refused(model, small_checkpoint, tmp_path):
    model.model.multi_modal_projector.linear_1.bias = torch.nn.Parameter(torch.zeros(64))
    with pytest.raises(ModelError, match=r"linear_1.bias, for which there is no place \(0 missing, 1 left over\)"):
        mistral.write(model, load_processor(str(small_checkpoint)), tmp_path)
    assert not (tmp_path / mistral.WEIGHTS).exists()


def test_another_rotation_than_the_plain_one_is_refused(model, small_checkpoint, tmp_path):
    model.config.text_config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match="no place for this language model"):
        mistral.write(model, load_processor(str(small_checkpoint)), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights: weights.pop("output.weight"), "no output.weight"),
        (lambda weights: weights.update(more=torch.zeros(1)), "more, for which there is no place"),
        (lambda weights: weights["norm.weight"][:1].add_(1), "differs from the run in model.language_model.norm"),
        (lambda weights: weights.update({"norm.weight": weights["norm.weight"].half()}), "differs from the run"),
    ],
)
def test_what_is_not_the_model_is_caught(model, written, change, said):
    damage(written, change)
    with pytest.raises(ModelError, match=said):
        mistral.check_weights(model.state_dict(), written)


def test_rows_in_the_order_of_transformers_are_caught(model, written):
    query = model.model.language_model.layers[1].self_attn.q_proj.weight.detach()
    damage(written, lambda weights: weights.update({"layers.1.attention.wq.weight": query}))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        mistral.check_weights(model.state_dict(), written)


def test_half_a_file_is_caught(model, written):
    path = written / mistral.WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="is damaged"):
        mistral.check_weights(model.state_dict(), written)


def test_the_description_holds_what_vllm_reads():
    config = VoxtralConfig()
    content = mistral.params(config, load_processor("mini").feature_extractor)
    assert {name: content[name] for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads")} == {
        "dim": 3072,
        "n_layers": 30,
        "head_dim": 128,
        "hidden_dim": 8192,
        "n_heads": 32,
        "n_kv_heads": 8,
    }
    heard = content["multimodal"]["whisper_model_args"]
    assert heard["downsample_args"] == {"downsample_factor": 4}
    encoder = heard["encoder_args"]
    assert (encoder["dim"], encoder["n_layers"], encoder["n_heads"], encoder["head_dim"]) == (1280, 32, 20, 64)
    assert {"num_mel_bins", "window_size", "sampling_rate", "hop_length"} <= encoder["audio_encoding_args"].keys()

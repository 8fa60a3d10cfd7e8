"""A Voxtral in Mistral's own layout, the one that vLLM reads: `consolidated.safetensors`, `params.json`, `tekken.json`.

The weights are those of transformers under other names, but for two things. Mistral rotates neighbouring pairs of a
head's dimensions where transformers rotates its two halves, so the rows of the language model's queries and keys are
in another order. And the encoder's positions are left out where they are Whisper's sinusoids, which the reader makes
itself. Names and order: transformers `convert_voxtral_weights_to_hf.py`; what a reader wants of `params.json`: vLLM
`transformers_utils/configs/mistral.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from voxtral_finetune.data.collate import SAMPLES_PER_TOKEN, SPECIAL
from voxtral_finetune.errors import ModelError

WEIGHTS, PARAMS = "consolidated.safetensors", "params.json"

SPEECH = "mm_whisper_embeddings."
ENCODER = f"{SPEECH}whisper_encoder."

POSITIONS = "model.audio_tower.embed_positions.weight"
POSITIONS_ERROR = 4e-3
"""How far from Whisper's sinusoids, which lie in [-1, 1], positions may be to be them: bfloat16 rounds by 2e-3."""

TEXT_LAYER = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
ENCODER_LAYER = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.out_proj": "attention.wo",
    "final_layer_norm": "ffn_norm",
    "fc1": "feed_forward.w1",
    "fc2": "feed_forward.w2",
}


def names(config: VoxtralConfig) -> dict[str, str]:
    """Mistral's name of every weight of a Voxtral, by its name in transformers; no name is there twice."""
    found = {
        "lm_head.weight": "output.weight",
        "model.language_model.norm.weight": "norm.weight",
        "model.language_model.embed_tokens.weight": f"{SPEECH}tok_embeddings.weight",
        "model.multi_modal_projector.linear_1.weight": f"{SPEECH}audio_language_projection.0.weight",
        "model.multi_modal_projector.linear_2.weight": f"{SPEECH}audio_language_projection.2.weight",
        POSITIONS: f"{ENCODER}embed_positions.weight",
    }
    for layer in range(config.text_config.num_hidden_layers):
        for ours, theirs in TEXT_LAYER.items():
            found[f"model.language_model.layers.{layer}.{ours}.weight"] = f"layers.{layer}.{theirs}.weight"
    for kind in ("weight", "bias"):
        tower = "model.audio_tower."
        found[f"{tower}conv1.{kind}"] = f"{ENCODER}conv_layers.0.{kind}"
        found[f"{tower}conv2.{kind}"] = f"{ENCODER}conv_layers.1.{kind}"
        found[f"{tower}layer_norm.{kind}"] = f"{ENCODER}transformer.norm.{kind}"
        for layer in range(config.audio_config.num_hidden_layers):
            for ours, theirs in ENCODER_LAYER.items():
                if (ours, kind) != ("self_attn.k_proj", "bias"):  # Whisper's keys have none
                    found[f"{tower}layers.{layer}.{ours}.{kind}"] = (
                        f"{ENCODER}transformer.layers.{layer}.{theirs}.{kind}"
                    )
    return found


def write(model: VoxtralForConditionalGeneration, processor: Any, folder: Path) -> None:
    """Writes a whole model in Mistral's layout; raises ModelError where it has a weight that has no place there.

    The two must be of one checkpoint: the window and the mel bins are the feature extractor's.
    """
    ours, mapping = model.state_dict(), names(model.config)
    _all_there(ours.keys(), mapping.keys(), "The model")
    saved = {mapping[name]: _reordered(name, weight, model.config, pairs=True) for name, weight in ours.items()}
    if _made_by_the_reader(ours[POSITIONS]):
        del saved[mapping[POSITIONS]]
    save_file(saved, folder / WEIGHTS, metadata={"format": "pt"})
    content = json.dumps(params(model.config, processor.feature_extractor), indent=2) + "\n"
    (folder / PARAMS).write_text(content, encoding="utf-8")
    processor.tokenizer.save_pretrained(folder)  # tekken.json


def params(config: VoxtralConfig, extractor: Any) -> dict[str, Any]:
    """The content of `params.json`; raises ModelError of a language model that Mistral's layout cannot describe."""
    text, audio = config.text_config, config.audio_config
    if text.rope_parameters["rope_type"] != "default" or text.tie_word_embeddings:
        raise ModelError("Mistral's layout has no place for this language model.", "Use --format merged.")
    encoding = {
        "sampling_rate": extractor.sampling_rate,
        "frame_rate": extractor.sampling_rate / SAMPLES_PER_TOKEN,
        "num_mel_bins": extractor.feature_size,
        "hop_length": extractor.hop_length,
        "window_size": extractor.n_fft,
        "chunk_length_s": float(extractor.chunk_length),
    }
    encoder = {
        "audio_encoding_args": encoding,
        "dim": audio.hidden_size,
        "n_layers": audio.num_hidden_layers,
        "head_dim": audio.hidden_size // audio.num_attention_heads,
        "hidden_dim": audio.intermediate_size,
        "n_heads": audio.num_attention_heads,
        "n_kv_heads": audio.num_attention_heads,
        "vocab_size": audio.vocab_size,
        "max_source_positions": audio.max_source_positions,
        "use_biases": True,
    }
    grouped = {"downsample_factor": audio.intermediate_size // audio.hidden_size}
    return {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.intermediate_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "use_biases": False,
        "rope_theta": text.rope_parameters["rope_theta"],
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "tied_embeddings": False,
        "max_seq_len": text.max_position_embeddings,
        "max_position_embeddings": text.max_position_embeddings,
        "multimodal": {"whisper_model_args": {"encoder_args": encoder, "downsample_args": grouped}},
    }


def read_config(folder: Path) -> VoxtralConfig:
    """The config of transformers that `params.json` describes; of the fixed token ids, Voxtral's own."""
    text = json.loads((folder / PARAMS).read_text(encoding="utf-8"))
    audio = text["multimodal"]["whisper_model_args"]["encoder_args"]
    special = {
        f"{name}_token_id": SPECIAL[token] for name, token in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"))
    }
    return VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "hidden_size": audio["dim"],
            "intermediate_size": audio["hidden_dim"],
            "num_hidden_layers": audio["n_layers"],
            "num_attention_heads": audio["n_heads"],
            "num_mel_bins": audio["audio_encoding_args"]["num_mel_bins"],
            "max_source_positions": audio["max_source_positions"],
            "vocab_size": audio["vocab_size"],
        },
        text_config={
            "model_type": "llama",
            "hidden_size": text["dim"],
            "intermediate_size": text["hidden_dim"],
            "num_hidden_layers": text["n_layers"],
            "num_attention_heads": text["n_heads"],
            "num_key_value_heads": text["n_kv_heads"],
            "head_dim": text["head_dim"],
            "rms_norm_eps": text["norm_eps"],
            "rope_parameters": {"rope_theta": text["rope_theta"], "rope_type": "default"},
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["max_seq_len"],
            **special,
        },
        audio_token_id=SPECIAL["[AUDIO]"],
    )


def weights(folder: Path, config: VoxtralConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of a folder under its name in transformers, one at a time; raises ModelError of one too many."""
    theirs = names(config)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            present = set(file.keys())
            _all_there(present | {theirs[POSITIONS]}, theirs.values(), str(folder / WEIGHTS))
            for name, saved in theirs.items():
                if saved in present:
                    yield name, _reordered(name, file.get_tensor(saved), config, pairs=False)
                else:
                    yield name, sinusoids(config.audio_config.max_source_positions, config.audio_config.hidden_size)
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS} is damaged: {error}.", "Export the run again.") from error


def check_weights(
    expected: Mapping[str, torch.Tensor], folder: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Raises ModelError where a weight of a folder is not, mapped back, the expected one bit for bit."""
    config = read_config(folder)
    _all_there(names(config).keys(), expected.keys(), str(folder / PARAMS))
    for done, (name, weight) in enumerate(weights(folder, config), start=1):
        wanted = expected[name].cpu()
        made = name == POSITIONS and _made_by_the_reader(wanted)
        same = weight.shape == wanted.shape and (made or (weight.dtype == wanted.dtype and torch.equal(weight, wanted)))
        if not same:
            raise ModelError(f"The export differs from the run in {name}.", "Export again; report it if it stays so.")
        if progress:
            progress(done, len(expected))


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> VoxtralForConditionalGeneration:
    """The model of a folder in Mistral's layout, as transformers runs it."""
    config = read_config(folder)
    state = dict(weights(folder, config))
    model = VoxtralForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    return model.to(device)


def sinusoids(length: int, channels: int) -> torch.Tensor:
    """Whisper's encoder positions, (length, channels): sines, then cosines, of wavelengths 2π to 2π·10 000."""
    rates = torch.exp(-torch.log(torch.tensor(10_000.0)) / (channels // 2 - 1) * torch.arange(channels // 2))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _made_by_the_reader(positions: torch.Tensor) -> bool:
    made = sinusoids(*positions.shape).to(positions.device)
    return bool((positions.float() - made).abs().max() <= POSITIONS_ERROR)


def _reordered(name: str, weight: torch.Tensor, config: VoxtralConfig, pairs: bool) -> torch.Tensor:
    """Rows of a query or key of the language model, from two halves a head to neighbouring pairs, or back."""
    weight = weight.detach()
    text = config.text_config
    heads = {"q_proj": text.num_attention_heads, "k_proj": text.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or not name.startswith("model.language_model."):
        return weight.contiguous()
    rows, columns = weight.shape
    shape = (heads, 2, rows // heads // 2, columns) if pairs else (heads, rows // heads // 2, 2, columns)
    return weight.reshape(shape).transpose(1, 2).reshape(rows, columns).contiguous()


def _all_there(present: Any, wanted: Any, who: str) -> None:
    """Raises ModelError where there is a weight that has no place, or a place without its weight."""
    missing, extra = sorted(set(wanted) - set(present)), sorted(set(present) - set(wanted))
    if missing or extra:
        what = f"no {missing[0]}" if missing else f"{extra[0]}, for which there is no place"
        raise ModelError(f"{who} has {what} ({len(missing)} missing, {len(extra)} left over).", "Use --format merged.")

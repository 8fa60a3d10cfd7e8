"""That the plan is true: what a step is said to take, against what it takes."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import VoxtralConfig

from voxtral_finetune.errors import RunError
from voxtral_finetune.model import adapt, load, mini
from voxtral_finetune.settings import TrainingSettings
from voxtral_finetune.training import memory

TEXT_TOKENS, WINDOWS = 40, 3


@pytest.fixture(scope="module")
def middling(tmp_path_factory):
    """A config with Voxtral's own 30 s window and 36 M weights: large enough that tensors outweigh the rest."""
    config = mini.small_config(vocab_size=8192, window_seconds=30, mel_bins=128, width=192, layers=6, heads=6)
    text = {**config.text_config.to_dict(), "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12}
    text |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
    folder = tmp_path_factory.mktemp("middling")
    VoxtralConfig(
        audio_config=config.audio_config.to_dict(), text_config=text, audio_token_id=config.audio_token_id
    ).save_pretrained(folder)
    return folder


MEASURE = """
import json, sys
from pathlib import Path
import torch
from voxtral_finetune.data.collate import SPECIAL
from voxtral_finetune.model import adapt, load
from voxtral_finetune.run import peak_rss
from voxtral_finetune.settings import TrainingSettings
from voxtral_finetune.training.rehearsal import PROMPT
from transformers import VoxtralForConditionalGeneration

folder, chosen, windows, text_tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
torch.nn.Linear(8, 8)(torch.ones(2, 8)).sum().backward()  # the engine's thread and the kernels' buffers are there
import peft  # so is what is imported late

def now():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024

def step():
    ids = torch.full((windows, 375 + PROMPT + text_tokens), SPECIAL["[AUDIO]"])
    ids[:, 375:] = 60
    labels = torch.full_like(ids, -100)
    labels[:, -text_tokens:] = 60
    here = torch.ones_like(ids)
    here[0, -1:] = 0  # one row is shorter, as in a batch of speech
    batch = {"input_ids": ids, "attention_mask": here, "labels": labels}
    mels = torch.zeros(windows, 128, 3000)
    keep = labels.roll(-1, 1) != -100  # as the trainer asks for logits at labels only
    there = {"logits_to_keep": keep, "shift_labels": labels[labels != -100]}
    model(**batch, input_features=mels, use_cache=False, **there).loss.backward()

before = now()
model = VoxtralForConditionalGeneration(load.read_config(folder))
model = adapt.adapt(model, TrainingSettings(**chosen), folder).train()
learning = [weight for weight in model.parameters() if weight.requires_grad]
optimizer = torch.optim.AdamW(learning, fused=True)
for weight in learning:
    weight.grad = torch.zeros_like(weight).fill_(1e-9)
optimizer.step()  # gradients of an earlier micro-batch and the optimiser's states are there
Path("/proc/self/clear_refs").write_text("5")
step()
optimizer.step()
print(json.dumps(peak_rss() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
@pytest.mark.parametrize(
    "chosen",
    [{}, {"gradient_checkpointing": True}, {"method": "full"}],
    ids=["lora", "lora recomputing", "full"],
)
def test_the_estimate_is_what_a_step_takes(middling, chosen):
    chosen = {"gradient_checkpointing": False, **chosen}
    # Freed blocks go back to the system at once, and there is one arena: the peak is of what is in use.
    tuned = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(middling), json.dumps(chosen), str(WINDOWS), str(TEXT_TOKENS)],
        capture_output=True,
        text=True,
        env={**os.environ, **tuned, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout.splitlines()[-1])
    settings = TrainingSettings(**chosen)
    told = memory.estimate(str(middling), settings, "cpu", WINDOWS, TEXT_TOKENS, chosen["gradient_checkpointing"])
    assert told.total == pytest.approx(measured, rel=0.15)


@pytest.fixture(scope="module")
def mini_3b(tmp_path_factory):
    """The config of Voxtral-Mini-3B-2507 on disk: the library's defaults are that checkpoint's."""
    folder = tmp_path_factory.mktemp("mini-3b")
    VoxtralConfig().save_pretrained(folder)
    return str(folder)


def cuda(checkpoint, windows=1, checkpointing=False, **chosen):
    return memory.estimate(checkpoint, TrainingSettings(**chosen), "cuda", windows, 60, checkpointing)


def test_the_goals_for_one_card_are_met(mini_3b):
    """LoRA of Mini 3B on a card with 16 GB, QLoRA on one with 8."""
    assert cuda(mini_3b).total < 14e9
    assert cuda(mini_3b, checkpointing=True, method="qlora").total < 8e9 * memory.HEADROOM["cuda"]


def test_full_fine_tuning_takes_sixteen_bytes_a_weight_and_more(mini_3b):
    told = cuda(mini_3b, method="full", checkpointing=True)
    learning = 4_674_351_104
    assert (told.gradients, told.optimiser) == (4 * learning, 8 * learning)
    assert told.weights == pytest.approx(4 * learning, rel=0.01)
    eight = cuda(mini_3b, method="full", checkpointing=True, optimizer="adamw8bit")
    assert eight.optimiser < told.optimiser / 2.5
    assert (eight.weights, eight.activations) == (told.weights, told.activations)


def test_what_is_in_four_bits_is_the_language_model(mini_3b):
    # 3 208.6 M weights of the decoder's linear layers go from two bytes to 0.516
    saved = cuda(mini_3b).weights - cuda(mini_3b, method="qlora").weights
    assert saved == pytest.approx(30 * 106_954_752 * (2 - 0.5159), rel=0.001)


def test_more_windows_take_more_in_a_straight_line(middling):
    one, two, four = (
        memory.estimate(str(middling), TrainingSettings(), "cuda", windows, 40, False).activations
        for windows in (1, 2, 4)
    )
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


def test_a_frozen_encoder_is_not_kept(middling):
    """Its 1500 frames a layer would be most of a step's memory."""
    frozen = memory.estimate(str(middling), TrainingSettings(), "cpu", 2, 40, False)
    taught = memory.estimate(str(middling), TrainingSettings(preset="language"), "cpu", 2, 40, False)
    assert taught.activations > 1.5 * frozen.activations


def test_a_checkpoint_on_disk_is_what_learns_and_its_optimiser(small_checkpoint, tmp_path):
    for method in ("lora", "full"):
        settings = TrainingSettings(method=method)
        model = adapt.adapt(load.load_model(str(small_checkpoint)), settings, str(small_checkpoint))
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        optimizer.step()
        folder = tmp_path / method
        model.save_pretrained(folder)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        written = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".pt"))
        assert memory.size_on_disk(str(small_checkpoint), settings, "cpu") == pytest.approx(written, rel=0.15)


def linear(windows, recompute):
    """Bytes of a step: 10 and 3 for each window, or 5 and 1 when recomputing."""
    return 5 + windows if recompute else 10 + 3 * windows


@pytest.mark.parametrize(
    ("budget", "windows", "checkpointing", "expected"),
    [
        (34, 8, None, (8, False)),
        (33, 8, None, (4, False)),
        (30, 6, None, (6, False)),
        (27, 6, None, (3, False)),
        (13, 8, None, (1, False)),
        (12, 8, None, (4, True)),
        (34, 8, True, (8, True)),
        (13, 7, True, (7, True)),
        (6, 7, None, (1, True)),
    ],
)
def test_the_largest_divisor_that_fits_is_chosen(budget, windows, checkpointing, expected):
    assert memory.choose(budget, windows, linear, checkpointing) == expected


def test_where_nothing_fits_it_says_what_would_help():
    with pytest.raises(RunError, match=r"takes 0\.0 GB .* 0\.0 GB may be used.*--method qlora"):
        memory.choose(5, 8, linear, None)
    with pytest.raises(RunError, match="Leave out --no-gradient-checkpointing"):
        memory.choose(12, 8, linear, False)


def test_a_device_is_never_filled_to_the_brim():
    assert 0 < memory.budget(torch.device("cpu")) <= 0.8 * psutil.virtual_memory().total


def test_the_documented_table_is_what_the_estimate_says(mini_3b):
    """Two rows of it; the others take minutes."""
    root = Path(__file__).parents[3]
    table = runpy.run_path(str(root / "tools" / "memory_table.py"))
    page = (root / "docs" / "performance.md").read_text(encoding="utf-8")
    again = "run python tools/memory_table.py"
    assert "\n".join(table["head"]()) in page, again
    for method in ("`qlora`", "`lora`"):
        assert table["row"]("Mini 3B", mini_3b, method) in page, again


def test_the_shapes_of_the_table_are_the_published_ones(tmp_path):
    table = runpy.run_path(str(Path(__file__).parents[3] / "tools" / "memory_table.py"))
    totals = {}
    for name, config in table["configs"]().items():
        config.save_pretrained(tmp_path / name)
        totals[name] = adapt.count(load.skeleton(str(tmp_path / name)))["total"] / 1e9
    assert totals == pytest.approx({"Mini 3B": 4.6763, "Small 24B": 24.2618}, abs=1e-4)

"""The benchmarks compare like with like: the same batches, the same clock, ratios within a round."""

import json
import shutil

import pytest
import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration

from benchmarks import compare, gpu, loss, ours, plain, shapes
from benchmarks.measure import Measured
from voxtral_finetune.data.collate import IGNORED, Example, TranscriptionCollator
from voxtral_finetune.model import mini


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Voxtral with the true window of 30 s, which the plain recipe needs, and next to no weights."""
    folder = tmp_path_factory.mktemp("tiny")
    config = mini.small_config(vocab_size=512, window_seconds=30, width=32, layers=1, heads=1)
    mini.initialise(VoxtralForConditionalGeneration(config)).save_pretrained(folder)
    mini.build_processor(folder, vocab_size=512, window_seconds=30)
    return folder


@pytest.fixture(scope="module")
def clips(speech_data, tmp_path_factory):
    """Eight real clips of 2 to 8 s, as the benchmark writes them."""
    folder = tmp_path_factory.mktemp("clips")
    some = folder / "speech" / "ivr_en"
    some.mkdir(parents=True)
    lines = (speech_data / "ivr_en" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if 2 <= row["duration"] <= 8][:8]
    for row in rows:
        (some / row["audio_path"]).parent.mkdir(exist_ok=True)
        shutil.copyfile(speech_data / "ivr_en" / row["audio_path"], some / row["audio_path"])
    (some / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return shapes.short_clips(folder / "speech", folder / "short")


def test_plain_batches_are_those_of_ours(clips, tiny):
    processor = plain.VoxtralProcessor.from_pretrained(tiny)
    dataset = plain.Clips(clips)
    collator = TranscriptionCollator(processor)
    for first in range(0, 8, 2):
        rows = [dataset[first], dataset[first + 1]]
        rows[1]["language"] = None if first else rows[1]["language"]  # prompts of different lengths
        theirs = plain.Collator(processor, "voxtral")(rows)
        mine = collator([Example(row["audio"], row["text"], row["language"], "") for row in rows])
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(theirs[name], mine[name])
        # The processor writes samples as 16 bits in between, which loses a little.
        assert (theirs["input_features"] - mine["input_features"]).abs().mean() < 0.01
    assert (theirs["labels"] != IGNORED).sum() == sum(len(collator.target(row["text"])) for row in rows)


def test_every_side_is_measured(clips, tiny, tmp_path):
    speech = compare.Speech.of(clips)
    given = {"short": speech, "full": speech}
    names = (compare.PLAIN, compare.OURS, compare.CACHED)
    found = {
        name: compare.measured(("full" if name == compare.CACHED else "short", name), tiny, given, tmp_path / name, 1)
        for name in names
    }
    for each in found.values():
        assert each.seconds > each.fetching > 0
        assert each.memory > 0
    assert found[compare.PLAIN].speech == pytest.approx(2 * speech.mean_seconds)
    assert found[compare.OURS].speech > 1.5 * found[compare.PLAIN].speech  # windows are shared
    assert found[compare.CACHED].fetching < found[compare.PLAIN].fetching


def test_ratios_are_within_a_round(tmp_path):
    speeds = {compare.PLAIN: (1.0, 2.0, 4.0), compare.OURS: (7.0, 12.0, 32.0), compare.CACHED: (2.0, 4.0, 8.0)}
    done = [
        {
            (shape, name): Measured(speeds.get(name, (1.0,) * 3)[number], 1.0, 0.05, 10)
            for shape, name in compare.variants()
        }
        for number in range(3)
    ]
    found = compare.summary(done, [(0.85, 0.93), (0.84, 0.95)], [5.0, 6.0, 7.0])
    assert set(found) == {
        "short_clips_speedup",
        "full_windows_speedup",
        "cached_speedup",
        "packing_efficiency",
        "collation_share",
        "loss_memory_ratio",
    }
    assert found["short_clips_speedup"] == {"median": 7.0, "min": 6.0, "max": 8.0}
    assert found["cached_speedup"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert found["collation_share"]["median"] == 0.05
    shown = compare.report(done, found, compare.spread([0.85, 0.84]))
    assert all(lever.name in shown for lever in ours.LEVERS)


def test_loss_at_labels_takes_their_share_of_memory():
    labels = torch.full((2, 100), IGNORED)
    labels[:, 90:] = 5
    everywhere, at_labels = (loss.loss_peak(labels, at_labels=here, vocabulary=8192) for here in (False, True))
    assert everywhere / at_labels == pytest.approx(10, rel=0.2)


def test_flops_are_those_of_mini_and_those_that_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    flops = {passes: gpu.step_flops(VoxtralConfig(), 61, passes) / 1e12 for passes in (gpu.LORA, gpu.CACHED, gpu.FULL)}
    assert flops == pytest.approx({gpu.LORA: 8.19, gpu.CACHED: 5.89, gpu.FULL: 15.72}, rel=0.01)

    config = mini.small_config(vocab_size=512, window_seconds=30, width=64, layers=2, heads=2)
    config._attn_implementation = "eager"
    model = VoxtralForConditionalGeneration(config)
    ids = torch.tensor([[1, 3, 25] + [24] * 375 + [4, 9, 9, 9, 34] + [50] * 61])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, input_features=torch.zeros(1, 80, 3000), logits_to_keep=61)
    assert gpu.step_flops(config, 61, gpu.Passes(1, 1)) == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_without_speech_or_cuda_they_say_so(monkeypatch, capsys):
    monkeypatch.delenv("VOXTRAL_SPEECH_DATA", raising=False)
    with pytest.raises(SystemExit, match="VOXTRAL_SPEECH_DATA"):
        shapes.speech_folder()
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["gpu"])
        gpu.main()
        assert capsys.readouterr().out == "This machine has no CUDA device; nothing was measured.\n"


def test_the_table_of_a_gpu_says_what_did_not_fit():
    rows = [gpu.Row("LoRA", "full", 40.0, 330.0, 0.41, 30.2), gpu.Row("full", "full", failed="out of memory")]
    shown = gpu.table(rows, "a device", 8e14)
    assert "800 TFLOP/s" in shown
    assert "| full | LoRA | 40.00 | 330 | 41.0% | 30.2 GB |" in shown
    assert "| full | full | out of memory | | | |" in shown

"""One run by one process, by one that was killed, and by several: the same curve."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import voxtral_finetune
from voxtral_finetune.run import Run
from voxtral_finetune.training import distributed

DEMO = Path(voxtral_finetune.__file__).parent / "assets" / "demo"
UPDATES = 8

TRAIN = ["--model-checkpoint", "mini", "--dataset-jsonl", DEMO, "--device", "cpu", "--method", "lora"]
TRAIN += ["--learning-rate", 2e-3, "--batch-size", 4, "--grad-accum", 2, "--packing", "--eval-count", 4]
TRAIN += ["--max-steps", UPDATES, "--save-steps", 4, "--eval-steps", UPDATES, "--logging-steps", 1]


def environment(**more):
    """As a person's shell has it: nothing of a launcher, one thread, a home of its own from the test."""
    launchers = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "ACCELERATE_", "FSDP_", "TORCHELASTIC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return {**kept, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def port():
    """One that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def torchrun(processes):
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", 1, "--nproc-per-node", processes),
        *("--master-addr", "127.0.0.1", "--master-port", port(), "--no-python", sys.executable),
    ]


def train(folder, *more, launcher=(sys.executable,), **chosen):
    command = [*launcher, "-m", "voxtral_finetune", "train", *more, "--output-dir", folder]
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=environment(**chosen),
        timeout=240,
        check=False,
    )


def finished(done, folder):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    run = Run.open(folder)
    assert run.status() == "finished"
    return run


def of_kind(run, kind):
    return [event.fields for event in run.events() if event.kind == kind]


def curve(run):
    """(losses, learning rates) by update; of an update that was made twice the last."""
    steps = {fields["step"]: fields for fields in of_kind(run, "step")}
    assert sorted(steps) == list(range(1, UPDATES + 1))
    return tuple([steps[step][name] for step in sorted(steps)] for name in ("loss", "learning_rate"))


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path):
    """With dropout, and with packing and speed that are drawn anew: whatever is random is where it was."""
    flags = [*TRAIN, "--lora-dropout", 0.2, "--vary-speed", "--mask-spectrum"]
    whole = finished(train(tmp_path / "whole", *flags), tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "voxtral_finetune", "train", *map(str, flags), "--output-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
        run = Run(folder)
        while not any(event.kind == "step" and event.fields["step"] >= 5 for event in run.events()):
            assert process.poll() is None, process.stderr.read()
            os.sched_yield()
        process.kill()
    assert run.status() == "died"
    resumed = finished(train(folder, "--resume"), folder)
    for ours, theirs in zip(curve(resumed), curve(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert [fields["step"] for fields in of_kind(resumed, "step")].count(UPDATES) == 1


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process."""
    home = tmp_path_factory.mktemp("home")
    done = train(home / "one", *TRAIN, "--lora-dropout", 0, VOXTRAL_FINETUNE_HOME=str(home))
    return finished(done, home / "one")


def test_two_processes_learn_what_one_does(tmp_path, one):
    flags = [*TRAIN, "--lora-dropout", 0]
    two = finished(train(tmp_path / "two", *flags, launcher=torchrun(2)), tmp_path / "two")
    for ours, theirs in zip(curve(two), curve(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    (plan,), (alone,) = of_kind(two, "plan"), of_kind(one, "plan")
    assert plan["windows_per_update"] == alone["windows_per_update"] == 8
    assert plan["micro_batch"] * plan["accumulation"] == 4
    dev = [[fields["loss"] for fields in of_kind(run, "eval")] for run in (one, two)]
    np.testing.assert_allclose(dev[0], dev[1], rtol=1e-3)
    assert [fields["wer"] for fields in of_kind(one, "eval")] == [fields["wer"] for fields in of_kind(two, "eval")]
    reports = [json.loads((run.folder / "report.json").read_text()) for run in (one, two)]
    assert reports[0]["tuned"]["wer"] == reports[1]["tuned"]["wer"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["two"]
    assert [event.kind for event in two.events()].count("started") == 1


def test_one_process_goes_on_where_two_were_stopped(tmp_path, one):
    """Who hears what does not depend on how many there are."""
    flags = [*TRAIN, "--lora-dropout", 0]
    folder = tmp_path / "stopped"
    command = [*torchrun(2), "-m", "voxtral_finetune", "train", *flags, "--output-dir", folder]
    command = [str(word) for word in command]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment()) as process:
        run = Run(folder)
        while not of_kind(run, "step"):
            assert process.poll() is None, process.stderr.read()
            os.sched_yield()
        run.request_stop()
        errors = process.communicate(timeout=120)[1]
    assert run.status() == "stopped", errors
    assert 0 < of_kind(run, "checkpoint")[-1]["step"] < UPDATES
    resumed = finished(train(folder, "--resume"), folder)
    for ours, theirs in zip(curve(resumed), curve(one), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_mistake_in_the_first_process_ends_all(tmp_path):
    done = train(tmp_path / "run", *TRAIN, "--grad-accum", 1, "--batch-size", 3, launcher=torchrun(2))
    assert done.returncode != 0
    assert "3 windows an update" in done.stderr + done.stdout


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_processes: 2
num_machines: 1
machine_rank: 0
mixed_precision: 'no'
main_process_port: {port}
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer,VoxtralEncoderLayer
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_reshard_after_forward: true
  fsdp_cpu_ram_efficient_loading: false
"""

WATCHED = """
import json, sys
from pathlib import Path
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from voxtral_finetune.cli import main
from voxtral_finetune.training import engine

begin = PartialState.__init__

def as_on_gpus(self, *args, **kwargs):  # accelerate shards on accelerators only; torch does it on CPUs as well
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

PartialState.__init__ = as_on_gpus

class Watch(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **_):
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        sharded = [weight for weight in learning if isinstance(weight, DTensor)]
        held = sum(weight.to_local().numel() for weight in sharded)
        told = [len(learning), len(sharded), held, sum(weight.numel() for weight in sharded)]
        Path(sys.argv[1], f"rank-{args.process_index}.json").write_text(json.dumps(told))

made = engine.build

def build(*args, **kwargs):
    trainer = made(*args, **kwargs)
    trainer.add_callback(Watch())
    return trainer

engine.build = build
main(sys.argv[2:])
"""


@pytest.mark.parametrize(("method", "file"), [("full", "model.safetensors"), ("lora", "adapter_model.safetensors")])
def test_fsdp_shards_the_weights_and_learns_the_same(tmp_path, method, file):
    config, script, folder = tmp_path / "fsdp.yaml", tmp_path / "watched.py", tmp_path / "run"
    config.write_text(FSDP.format(port=port()))
    script.write_text(WATCHED)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, script, tmp_path]
    flags = [*TRAIN, "--method", method, "--max-steps", 4, "--save-steps", 2, "--eval-steps", 2, "--warmup-share", 0]
    flags += ["--lora-dropout", 0, "--learning-rate", 1e-3]
    command = [str(word) for word in [*launcher, "train", *flags, "--output-dir", folder]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240, check=False)
    run = finished(done, folder)
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for learning, sharded, held, whole in told:
        assert sharded == learning > 0
        assert held < 0.6 * whole
    assert told[0][2] + told[1][2] == told[0][3]
    alone = finished(train(tmp_path / "alone", *flags), tmp_path / "alone")
    losses = [[fields["loss"] for fields in of_kind(each, "step")] for each in (run, alone)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    dev = [[fields["loss"] for fields in of_kind(each, "eval")] for each in (run, alone)]
    np.testing.assert_allclose(dev[0], dev[1], rtol=1e-3)
    ours, theirs = (load_file(each.folder / "model" / file) for each in (run, alone))
    assert ours.keys() == theirs.keys()
    # Adam moves a weight by the learning rate whatever the gradient is, also where that is rounding of either sign.
    apart = torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])
    assert (apart > 1e-4).float().mean() < 0.05
    for lost in ("model", "checkpoints/checkpoint-4"):
        shutil.rmtree(folder / lost)
    again = [str(word) for word in [*launcher, "train", "--output-dir", folder, "--resume"]]
    finished(subprocess.run(again, capture_output=True, text=True, env=environment(), timeout=240, check=False), folder)
    steps = [(fields["step"], fields["loss"]) for fields in of_kind(run, "step")]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 3, 4], "the resumed run goes on where the checkpoint was"
    np.testing.assert_allclose([loss for _, loss in steps[4:]], [loss for _, loss in steps[2:4]], rtol=1e-4)


def test_one_process_agrees_with_itself():
    assert distributed.agree(lambda: 3) == 3
    assert distributed.least(4) == 4
    assert distributed.any_of(True)
    assert distributed.shared([1, 2, 3], lambda rows: [row * 2 for row in rows]) == [2, 4, 6]

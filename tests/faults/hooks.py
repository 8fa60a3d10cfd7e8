"""What a command does wrong or tells besides, in the copy of the process that executes it; installed by name."""

import ctypes
import importlib
import itertools
import os
import signal
import struct
import time
from pathlib import Path

MOMENTS = {
    "reading the corpus": ("voxtral_finetune.data.survey", "examine"),
    "base test": ("voxtral_finetune.evaluation.transcribe", "Transcriber._generate"),
    "training": ("voxtral_finetune.training.trainer", "VoxtralTrainer.training_step"),
    "dev": ("voxtral_finetune.training.trainer", "VoxtralTrainer._dev_wer"),
    "restored": ("voxtral_finetune.training.engine", "Events.on_train_begin"),
    "saving": ("voxtral_finetune.training.trainer", "VoxtralTrainer._save_checkpoint"),
    "export": ("voxtral_finetune.model.export", "sync_files"),
    "tuned test": ("voxtral_finetune.evaluation.transcribe", "Transcriber._generate"),
}
"""(module, what is called at that moment of a run)."""


def at(moment, number, action):
    """Has `action()` done just before that call of the moment, counted from 1."""
    module, path = MOMENTS[moment]
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), itertools.count(1)

    def called(*arguments, **named):
        if next(calls) == number:
            action()
        return real(*arguments, **named)

    setattr(owner, name, called)


def send(moment, number, which):
    """A signal to this process at a moment."""
    at(moment, number, lambda: os.kill(os.getpid(), getattr(signal, which)))


def touch(moment, number, path):
    """A file is made at a moment: the request to stop, or a sign for the test."""
    at(moment, number, Path(path).touch)


def remove(moment, number, path):
    """A file is removed at a moment."""
    at(moment, number, Path(path).unlink)


def powerless():
    """The process may do what its user may, also where that is root."""
    version, this, none = 0x20080522, 0, bytes(24)  # linux/capability.h: sets of 64 bits, for a process id of 0
    if ctypes.CDLL(None, use_errno=True).capset(struct.pack("Ii", version, this), none):
        raise OSError(ctypes.get_errno(), "capset")


def close(moment, number, folder):
    """From a moment on a folder may only be read."""
    at(moment, number, lambda: Path(folder).chmod(0o555))


def fail(moment, number, message):
    """The device, or a library, fails at a moment."""

    def action():
        raise RuntimeError(message)

    at(moment, number, action)


def hold(moment, number, sign, go):
    """A sign is made at a moment, and nothing goes on until the file `go` is there."""

    def action():
        Path(sign).touch()
        while not Path(go).exists():
            time.sleep(0.01)

    at(moment, number, action)


def kill_in_training(call, told=None):
    """SIGKILL in the middle of training, at one of the calls of a module or of the optimizer; `told` gets how many."""
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    from voxtral_finetune.training.trainer import VoxtralTrainer

    real, made = VoxtralTrainer.train, itertools.count(1)

    def count(*_):
        if next(made) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def train(*arguments, **named):
        register_module_forward_pre_hook(count)
        register_optimizer_step_pre_hook(count)
        register_optimizer_step_post_hook(count)
        trained = real(*arguments, **named)
        if told:
            Path(told).write_text(str(next(made)), encoding="ascii")
        return trained

    VoxtralTrainer.train = train


def tell_order(path):
    """A line "<position> <what is heard>" for each window that is read, in whatever process."""
    from voxtral_finetune.training.dataset import WindowStream

    real = WindowStream.__getitem__

    def read(self, position):
        example = real(self, position)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{position} {example.name}\n")
        return example

    WindowStream.__getitem__ = read


def workers(count):
    """Batches are prepared by so many processes, as on a GPU."""
    from voxtral_finetune.training import engine

    engine._workers = lambda on_cuda: count


def fail_in_worker(position, message):
    """What prepares batches fails at a position of the stream."""
    from voxtral_finetune.training.dataset import WindowStream

    real = WindowStream.__getitem__

    def read(self, asked):
        if asked == position:
            raise RuntimeError(message)
        return real(self, asked)

    WindowStream.__getitem__ = read


def clock(seconds):
    """The clock is wrong by so much."""
    real = time.time
    time.time = lambda: real() + seconds


def claim(device):
    """The run's device is one that only one run may hold; it computes on the CPU all the same."""
    from voxtral_finetune.training import devices

    real = devices.claimed
    devices.claimed = lambda _, run: real(device, run)

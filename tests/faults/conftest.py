"""A disk and a process that fail where they are told to, and one undisturbed run to compare the others with."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.commands import SAVE_STEPS, Course, Warm, all_whole
from voxtral_finetune.run import Run

DEMO = Path(__file__).parent.parent.parent / "src" / "voxtral_finetune" / "assets" / "demo"
SETTINGS = {
    "model_checkpoint": "mini",
    "dataset_jsonl": str(DEMO),
    "preset": "voice",
    "learning_rate": 0.002,
    "max_steps": 12,
    "save_steps": SAVE_STEPS,
    "eval_steps": 6,
    "logging_steps": 1,
    "lora_r": 8,
    "device": "cpu",
    "eval_count": 6,
    "train_count": 30,
    "patience": 0,
}


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The library that makes the disk fail (shim.c), or None where it cannot be built."""
    compiler = shutil.which("cc")
    if not compiler or sys.platform != "linux":
        return None
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture(scope="session")
def warm(shim, tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("faults are tried on Linux")
    process = Warm(shim, tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture
def faulty(shim):
    """The environment of a process whose disk fails: `faulty(folder, at, do, …)` as shim.c has it."""
    if shim is None:
        pytest.skip("no C compiler to build the faulty disk with")

    def environment(folder, at=0, do="kill", **more):
        given = {"folder": folder, "at": at, "do": do, **more}
        return {f"FAULT_{name.upper()}": str(value) for name, value in given.items()}

    return environment


@dataclass
class Trial:
    """One run folder, and the commands that work on it; all of them leave traces of the order in which they hear."""

    warm: Warm
    run: Run
    home: Path

    @property
    def order(self):
        return self.home / "order.txt"

    def train(self, *words, settings=None, **options):
        """Starts `train` with settings, or with `--resume` of its folder."""
        hooks = [("tell_order", [str(self.order)]), *options.pop("hooks", [])]
        env = {"VOXTRAL_FINETUNE_HOME": str(self.home), **options.pop("env", {})}
        if settings is not None:
            config = self.home / "settings.json"
            config.write_text(json.dumps(settings), encoding="utf-8")
            words = ("--config", config, *words)
        else:
            words = ("--resume", *words)
        started = ("train", "--output-dir", self.run.folder, *words)
        return self.warm.start(*started, env=env, hooks=hooks, **{"folder": self.home, **options})

    def resume(self, **options):
        """Goes on to the end, and returns what was printed."""
        done = self.train(**options)
        assert done.wait() == 0, done.said()
        return done.said()

    def ended_as(self, reference):
        """Nothing is left of what happened but its report: curve, order, scores and folder are those of `reference`."""
        assert self.run.status() == "finished"
        Course.of(self.run, self.order).same_as(reference.course)
        all_whole(self.run)
        assert content(self.run.folder / "model").keys() == content(reference.run.folder / "model").keys()
        assert [path.name for path in self.run.folder.rglob(".*") if path.name not in (".saving", ".gone")] == []

    def warnings(self):
        return [event.fields for event, _ in self.run.follow() if event.kind == "warning"]


@dataclass
class Reference:
    """A run that nothing happened to, and how many calls of modules its training made."""

    settings: dict[str, object]
    run: Run
    course: Course
    calls: int


def content(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


@pytest.fixture(scope="session")
def reference(warm, tmp_path_factory):
    """A run that nothing happens to."""
    return undisturbed(warm, tmp_path_factory.mktemp("reference"), SETTINGS)


def undisturbed(warm, home, settings):
    trial = Trial(warm, Run(home / "run"), home)
    told = home / "calls"
    done = trial.train(settings=settings, hooks=[("kill_in_training", [0, str(told)])])
    assert done.wait() == 0, done.said()
    return Reference(settings, trial.run, Course.of(trial.run, trial.order), int(told.read_text()))


def prepared(warm, home, reference):
    """A run that has divided its corpus and tested the base already, as `reference` has."""
    trial = Trial(warm, Run(home / "run"), home)
    trial.run.folder.mkdir(parents=True)
    for file in ("config.json", "split.json", "heard-base.json"):
        shutil.copy(reference.run.folder / file, trial.run.folder)
    return trial


@pytest.fixture(scope="session")
def saves(warm, shim, reference, tmp_path_factory):
    """What a training does to its checkpoints' folder from the second save on: (number, call, path below it)."""
    if shim is None:
        pytest.skip("no C compiler to build the faulty disk with")
    trial = prepared(warm, tmp_path_factory.mktemp("saves"), reference)
    folder, log = trial.run.folder / "checkpoints", trial.home / "log"
    trial.resume(env={"FAULT_FOLDER": str(folder), "FAULT_LOG": str(log)})
    steps = [line.split(" ", 2) for line in log.read_text().splitlines()]
    first = next(place for place, (_, _, path) in enumerate(steps) if "checkpoint-6" in path)
    return [(int(number), call, path.removeprefix(str(folder))) for number, call, path in steps[first:]]


@pytest.fixture(scope="module")
def alone(warm, reference, tmp_path_factory):
    """Makes runs as `trials` does, for what several tests look at."""
    return lambda name: prepared(warm, tmp_path_factory.mktemp(name), reference)


@pytest.fixture
def trials(warm, reference, tmp_path):
    """Makes runs that only have to be trained and tested, by name; or copies of a run that was disturbed already."""

    def make(name="trial", copy=None):
        if copy is None:
            return prepared(warm, tmp_path / name, reference)
        shutil.copytree(copy.home, tmp_path / name)
        return Trial(warm, Run(tmp_path / name / "run"), tmp_path / name)

    return make


@pytest.fixture
def settings():
    return SETTINGS


@pytest.fixture
def trial(trials):
    return trials()


@pytest.fixture
def empty(warm, tmp_path):
    """A run that has not begun: no folder yet."""
    home = tmp_path / "empty"
    home.mkdir()
    return Trial(warm, Run(home / "run"), home)

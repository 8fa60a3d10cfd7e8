"""The command line in processes of their own, and what a run that was disturbed has to come to."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from voxtral_finetune.training import checkpoints

ROOT = Path(__file__).parent.parent.parent
SOAK = os.environ.get("VOXTRAL_SOAK") == "1"
SAVE_STEPS = 3
DEADLINE = 120.0
"""Seconds after which something that has to happen has not."""


def some(points, count):
    """All of them when there is time for it; else so many, evenly, with the first and the last."""
    points = list(points)
    if SOAK or len(points) <= count:
        return points
    return [points[round(place * (len(points) - 1) / max(1, count - 1))] for place in range(count)]


def until(happened, what, seconds=DEADLINE):
    """Waits for `happened()` to be true, and returns it."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.01)
    return found


class Warm:
    """The process that is forked for each command (`tests.faults.warm`)."""

    def __init__(self, shim, folder):
        self.shim, self.folder, self.number, self.started = shim, folder, 0, []
        preload = {"LD_PRELOAD": str(shim)} if shim else {}
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            **{"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
            stderr=(folder / "warm.log").open("w"),
            env={**os.environ, **threads, **preload, "TRACKIO_DIR": str(folder / "trackio")},
        )
        self._answer()

    def start(self, *words, env=None, hooks=(), cwd=None, folder=None):
        """Starts `voxtral-finetune WORDS…`; `folder` gets what it prints."""
        self.number += 1
        folder = folder or self.folder
        files = {name: str(folder / f"{name}-{self.number}") for name in ("stdout", "stderr")}
        for path in files.values():
            Path(path).touch()
        spelled = [list(os.fsencode(word)) for word in words]
        asked = {"start": spelled, "env": env or {}, "hooks": hooks, "cwd": str(cwd or folder), **files}
        self.started.append(Started(self, self._ask(asked), Path(files["stdout"]), Path(files["stderr"])))
        return self.started[-1]

    def poll(self, pid):
        return self._ask({"poll": pid})

    def close(self):
        """Ends it, and whatever a test that failed has left."""
        for started in self.started:
            if started.running():
                started.kill()
        self.process.stdin.close()
        self.process.wait(DEADLINE)

    def _ask(self, request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, (self.folder / "warm.log").read_text()
        return json.loads(line)


@dataclass
class Started:
    """A command that was started."""

    warm: Warm
    pid: int
    stdout: Path
    stderr: Path
    code: int | None = None

    def running(self):
        if self.code is None:
            self.code = self.warm.poll(self.pid)
        return self.code is None

    def wait(self, seconds=DEADLINE):
        """Its exit code: 130 where it was asked to stop, minus the signal where one has killed it."""
        until(lambda: not self.running(), f"the end of {self.pid}", seconds)
        return self.code

    def signal(self, number):
        os.kill(self.pid, number)

    def until_event(self, run, kind, seconds=DEADLINE, **fields):
        """Waits for an event of the run."""

        def happened():
            for event, _ in run.follow():
                if event.kind == kind and fields.items() <= event.fields.items():
                    return event
            assert self.running(), self.said()
            return None

        return until(happened, f"{kind} {fields}", seconds)

    def said(self):
        text = [path.read_text(encoding="utf-8", errors="replace") for path in (self.stdout, self.stderr)]
        return "".join(text)

    def error(self):
        """What it says went wrong: one line, which may follow a progress bar."""
        (line,) = re.findall("Error: .*", self.stderr.read_text(encoding="utf-8", errors="replace"))
        return line

    def left(self):
        """Processes of its session that are still there."""
        return [pid for pid in psutil.pids() if _session(pid) == self.pid]

    def kill(self):
        """Ends whatever is left of it."""
        for pid in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.wait()


def _session(pid):
    try:
        return os.getsid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


@dataclass(frozen=True)
class Course:
    """What a run did, over all of its sessions: of a step that was done twice, the later time."""

    losses: dict[int, float]
    rates: dict[int, float]
    scores: tuple[float, float]
    heard: list[str]
    order: dict[int, str]

    @staticmethod
    def of(run, order):
        steps = {event.fields["step"]: event.fields for event, _ in run.follow() if event.kind == "step"}
        report = json.loads((run.folder / "report.json").read_text(encoding="utf-8"))
        read = {}
        for line in order.read_text(encoding="utf-8").splitlines():
            position, name = line.split(" ", 1)
            assert read.setdefault(int(position), name) == name, "a place of the stream was heard with other speech"
        return Course(
            {step: fields["loss"] for step, fields in steps.items()},
            {step: fields["learning_rate"] for step, fields in steps.items()},
            (report["base"]["wer"], report["tuned"]["wer"]),
            [row["tuned"] for row in report["utterances"]],
            read,
        )

    def same_as(self, other):
        assert self.losses.keys() == other.losses.keys()
        difference = max(abs(self.losses[step] - other.losses[step]) for step in other.losses)
        assert difference <= 1e-5, f"the loss differs by {difference}"
        assert self.rates == other.rates
        assert self.order == other.order
        assert self.heard == other.heard
        assert math.isclose(self.scores[1], other.scores[1])


def steps_lost(run):
    """At most how many updates a session had to do again that an earlier one had done."""
    last, lost = 0, 0
    fresh = False
    for event, _ in run.follow():
        if event.kind == "started":
            fresh = True
        if event.kind == "step":
            if fresh:
                lost = max(lost, last - event.fields["step"] + 1)
                fresh = False
            last = event.fields["step"]
    return lost


def all_whole(run):
    """Every folder that is called a checkpoint is one, by content."""
    for path in (run.folder / "checkpoints").glob("checkpoint-*"):
        if path.suffix != ".incomplete":
            assert checkpoints.flaw(path) is None, path

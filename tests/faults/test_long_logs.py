"""A log of a long run: looking at it takes no memory that grows with it."""

import json
import subprocess
import sys

import pytest

from tests.faults.commands import ROOT, SOAK
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings

LINES = 4_000_000 if SOAK else 100_000
"""Of about 250 bytes."""

MOST = 50 << 20

LOOK = """
import sys
from pathlib import Path
from voxtral_finetune.run import Run
from voxtral_finetune.studio import progress
run = Run(Path(sys.argv[1]))
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
small = Run(Path(sys.argv[2]))
progress.view(small), small.status()
sizes = [held()]
for look in range(50):
    view = progress.view(run)
    assert len(view.loss) <= progress.MAX_POINTS * 2, len(view.loss)
    run.status(), progress.is_going(run)
    run.emit("step", step=10**9 + look, steps=10**10, loss=1.0)
    if look in (0, 9, 49):
        sizes.append(held())
print(*sizes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_looking_at_a_long_log_takes_no_more_memory(tmp_path):
    run = Run.create(Settings.of({"output_dir": tmp_path / "run"}))
    small = Run.create(Settings.of({"output_dir": tmp_path / "small"}))
    small.emit("step", step=1, steps=2, loss=1.0)
    with (run.folder / "events.jsonl").open("w") as log:
        for step in range(LINES):
            more = {"loss": 1.5, "grad_norm": 2.25, "learning_rate": 1e-4, "perplexity": 4.5, "seconds": step * 0.5}
            more |= {"epoch": 0.5, "speech_hours_per_hour": 123.4, "eta_seconds": 1234.5, "memory_bytes": 123456789}
            log.write(json.dumps({"time": 1e9 + step, "kind": "step", "step": step, "steps": LINES, **more}) + "\n")
    command = [sys.executable, "-c", LOOK, str(run.folder), str(small.folder)]
    before, first, tenth, last = map(
        int, subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.split()
    )
    assert first - before < MOST
    assert last - tenth < MOST // 10

"""A second run on the same accelerator is refused, with the name of the first; a killed one stands in nobody's way."""

import os
import signal
import stat
import subprocess
import sys
import tempfile

import pytest

from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.devices import claimed

HOLDER = """
import os, sys
from pathlib import Path
from voxtral_finetune.run import Run
from voxtral_finetune.training.devices import claimed
run = Run(Path(sys.argv[1]))
with run.lock(), claimed("mps:0", run):
    if os.fork() == 0:  # a worker that outlives its run
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return [Run.create(Settings.of({"output_dir": tmp_path / name})) for name in ("first", "second")]


@pytest.fixture
def holder(runs, tmp_path):
    """Another process that holds a device for the first run."""
    command = [sys.executable, "-c", HOLDER, str(runs[0].folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_told_who_has_the_device_and_for_how_long(runs, holder):
    runs[0].emit("step", step=5, steps=10, eta_seconds=600.0)
    runs[0].emit("checkpoint", step=5)
    with pytest.raises(RunError) as refused, claimed("mps:0", runs[1]):
        pass
    assert f"mps:0 is in use by the run {runs[0].folder} (running, about 10 min left)" in refused.value.what
    with claimed("mps:1", runs[1]), claimed("cpu", runs[1]):
        pass


def test_a_killed_run_stands_in_nobodys_way_though_its_worker_lives(runs, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with runs[0].lock(), claimed("mps:0", runs[1]):
        pass


def test_a_device_is_free_again_afterwards_and_after_an_error(runs):
    with pytest.raises(ZeroDivisionError), claimed("mps", runs[0]):
        raise ZeroDivisionError
    with claimed("mps", runs[1]), pytest.raises(RunError, match="second"), claimed("mps", runs[0]):
        pass


def test_an_owner_that_has_not_written_yet_is_another_run(runs, tmp_path):
    with claimed("mps", runs[0]):
        (tmp_path / f"voxtral-finetune-{os.getuid()}" / "mps").write_text("")
        with pytest.raises(RunError, match="in use by another run"), claimed("mps", runs[1]):
            pass


def test_only_this_person_can_open_the_locks(runs, tmp_path):
    with claimed("mps", runs[0]):
        folder = tmp_path / f"voxtral-finetune-{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "mps").stat().st_mode) == 0o600


def linked(folder, elsewhere):
    folder.symlink_to(elsewhere)


def open_to_all(folder, _):
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize("trap", [linked, open_to_all, lambda folder, _: folder.write_text("")])
def test_a_folder_that_somebody_else_has_put_there_is_refused(runs, tmp_path, trap):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    trap(tmp_path / f"voxtral-finetune-{os.getuid()}", elsewhere)
    with pytest.raises(RunError, match="only you can open"), claimed("mps", runs[0]):
        pass
    assert not list(elsewhere.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(runs, tmp_path):
    folder = tmp_path / f"voxtral-finetune-{os.getuid()}"
    folder.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("mine")
    (folder / "mps").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="mps"), claimed("mps", runs[0]):
        pass
    assert (tmp_path / "precious").read_text() == "mine"

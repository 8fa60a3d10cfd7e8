"""A checkpoint is whole or not there, whatever ends its writing, and what is damaged is never gone on from."""

import errno
import json
import os
import shutil

import pytest
from safetensors import SafetensorError

from tests.kills import every_kill
from voxtral_finetune.errors import RunError, StopRequested
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import checkpoints

FILES = {"adapter_model.safetensors": b"weights" * 1000, "optimizer.pt": b"moments" * 2000, "state/rng_0.pth": b"x"}


def writer(mark=b""):
    def write(staging):
        for name, content in FILES.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(mark + content)

    return write


def content(checkpoint):
    return {name: (checkpoint / name).read_bytes() for name in FILES}


class Said(list):
    def __call__(self, kind, **fields):
        self.append((kind, fields))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def run(tmp_path):
    return Run.create(Settings.of({"output_dir": tmp_path / "run"}))


def saved(folder, *steps):
    return [checkpoints.save(folder, step, writer()) for step in steps]


def test_a_checkpoint_tells_what_it_holds_and_nothing_else_is_left(folder):
    (path,) = saved(folder, 10)
    assert checkpoints.newest(folder, Said()) == path == folder / "checkpoint-10"
    manifest = json.loads((path / "COMPLETE").read_text())
    assert manifest["step"] == 10
    assert {"torch", "transformers", "voxtral-finetune"} == manifest["versions"].keys()
    assert {name: entry["size"] for name, entry in manifest["files"].items()} == {
        name: len(data) for name, data in FILES.items()
    }
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    assert [each.name for each in folder.rglob("*.tmp")] == []
    assert list((folder / ".saving").iterdir()) == []


def test_a_kill_at_any_step_of_saving_leaves_the_earlier_checkpoint_or_a_whole_new_one(folder):
    seen = set()

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, 5)

    def check():
        said = Said()
        assert all(content(path) == content(folder / "checkpoint-5") for path in checkpoints.whole(folder).values())
        found = checkpoints.newest(folder, said)
        assert content(found) == content(folder / "checkpoint-5")
        aside = [path.name for path in folder.glob("*.incomplete")]
        assert aside == (["checkpoint-10.incomplete"] if said else [])
        assert [kind for kind, _ in said] == ["warning"] * len(aside)
        seen.add((found.name, bool(said)))
        assert checkpoints.newest(folder, said) == found, "the second look finds the same"

    assert every_kill(folder, lambda: saved(folder, 10), prepare, check) > 10
    assert seen == {("checkpoint-5", False), ("checkpoint-5", True), ("checkpoint-10", False)}


def test_a_kill_at_any_step_of_saving_a_step_again_leaves_one_of_the_two(folder):
    seen = set()

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, 5, 10)

    def check():
        found = checkpoints.newest(folder, Said())
        assert found.name == "checkpoint-10"
        (mark,) = {data.removesuffix(FILES[name]) for name, data in content(found).items()}
        seen.add(mark)

    every_kill(folder, lambda: checkpoints.save(folder, 10, writer(b"second ")), prepare, check)
    assert seen == {b"", b"second "}


def test_a_kill_at_any_step_of_deleting_leaves_only_whole_checkpoints(folder):
    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        saved(folder, 1, 2, 3, 4, 5)

    def check():
        said = Said()
        assert checkpoints.newest(folder, said) == folder / "checkpoint-5"
        assert {2, 4, 5} <= checkpoints.whole(folder).keys()
        for path in folder.glob("checkpoint-*"):
            assert checkpoints.flaw(path) is None
        assert not said
        checkpoints.rotate(folder, {2})
        assert sorted(path.name for path in folder.iterdir()) == [
            *(".saving", "checkpoint-2", "checkpoint-4", "checkpoint-5")
        ]

    assert every_kill(folder, lambda: checkpoints.rotate(folder, {2}), prepare, check) > 5


def truncate(path):
    (path / "optimizer.pt").write_bytes((path / "optimizer.pt").read_bytes()[:-1])


def flip(path):
    data = bytearray((path / "optimizer.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "optimizer.pt").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate, "optimizer.pt has 13999 bytes instead of 14000"),
        (flip, "optimizer.pt is not what was saved"),
        (lambda path: (path / "optimizer.pt").write_bytes(b""), "optimizer.pt has 0 bytes"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "state" / "rng_0.pth").write_bytes(b"y"), "rng_0.pth is not what was saved"),
        (lambda path: (path / "COMPLETE").write_bytes(b""), "COMPLETE is damaged"),
        (lambda path: (path / "COMPLETE").write_text('{"format": 2, "files": {"a": 3}}'), "COMPLETE is damaged"),
        (lambda path: (path / "COMPLETE").unlink(), "it has no COMPLETE"),
    ],
)
def test_a_damaged_checkpoint_is_moved_aside_named_and_the_one_before_is_used(folder, damage, named):
    saved(folder, 10, 20)
    (folder / "checkpoint-20.incomplete").mkdir()
    damage(folder / "checkpoint-20")
    said = Said()
    assert checkpoints.newest(folder, said) == folder / "checkpoint-10"
    ((kind, fields),) = said
    assert kind == "warning"
    assert fields["what"].startswith("checkpoint-20 cannot be used: ")
    assert named in fields["what"]
    assert "checkpoint-20.incomplete-2" in fields["fix"]
    assert (folder / "checkpoint-20.incomplete-2").is_dir()


def test_a_run_none_of_whose_checkpoints_is_left_says_so_before_it_begins_again(folder):
    for path in saved(folder, 10, 20):
        truncate(path)
    said = Said()
    with pytest.raises(RunError, match=r"No checkpoint .* resume once more to train from the beginning"):
        checkpoints.newest(folder, said)
    assert len(said) == 2
    assert checkpoints.newest(folder, said) is None


def test_a_first_save_that_was_cut_off_is_no_reason_to_refuse(folder):
    writer()(checkpoints.begin(folder, 10))
    said = Said()
    assert checkpoints.newest(folder, said) is None
    assert len(said) == 1


def test_a_run_without_checkpoints_begins_at_the_beginning(folder):
    assert checkpoints.newest(folder, Said()) is None
    assert checkpoints.whole(folder) == {}
    checkpoints.rotate(folder, set())


def test_steps_count_and_clocks_do_not(folder):
    for number, path in enumerate(saved(folder, 9, 100, 20)):
        when = 2_000_000_000 - 1_000_000 * number
        for each in (path, *path.rglob("*")):
            os.utime(each, (when, when))
    assert checkpoints.newest(folder, Said()).name == "checkpoint-100"
    checkpoints.rotate(folder, set())
    assert sorted(checkpoints.whole(folder)) == [20, 100]


def test_of_what_was_moved_aside_the_newest_stays(folder):
    saved(folder, 30, 40)
    for name in ("checkpoint-9.incomplete", "checkpoint-10.incomplete", "checkpoint-10.incomplete-2"):
        (folder / name).mkdir()
    checkpoints.rotate(folder, set())
    assert [path.name for path in folder.glob("*.incomplete*")] == ["checkpoint-10.incomplete-2"]


def old_form(folder, step):
    (path,) = saved(folder, step)
    sizes = {name: len(data) for name, data in FILES.items()}
    (path / "COMPLETE").write_text(json.dumps(sizes))
    return path


def test_a_checkpoint_of_the_first_format_is_used_and_gets_hashes(folder):
    path = old_form(folder, 10)
    before = (path / "COMPLETE").read_bytes()
    assert checkpoints.whole(folder) == {10: path}
    assert checkpoints.newest(folder, Said()) == path
    assert (path / "COMPLETE.format-1").read_bytes() == before
    manifest = json.loads((path / "COMPLETE").read_text())
    assert (manifest["format"], manifest["step"], set(manifest["files"])) == (2, 10, set(FILES))
    flip(path)
    with pytest.raises(RunError):
        checkpoints.newest(folder, Said())


def test_a_cut_off_checkpoint_of_the_first_format_is_passed_over(folder):
    old_form(folder, 10)
    truncate(old_form(folder, 20))
    assert checkpoints.newest(folder, Said()) == folder / "checkpoint-10"


def test_a_checkpoint_of_a_newer_version_is_refused_and_left_alone(folder):
    saved(folder, 10, 20)
    (folder / "checkpoint-20" / "COMPLETE").write_text('{"format": 3}')
    with pytest.raises(RunError, match="Update voxtral-finetune"):
        checkpoints.newest(folder, Said())
    assert (folder / "checkpoint-20").is_dir()


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("write(): fd 3 failed with No space left on device"),
    ],
)
def test_a_full_disk_pauses_the_run_until_there_is_space(run, full):
    folder = run.folder / "checkpoints"
    saved(folder, 10)
    attempts = []

    def write(staging):
        attempts.append(staging)
        writer()(staging)
        if len(attempts) < 3:
            raise full
        assert content(folder / "checkpoint-10")["optimizer.pt"] == FILES["optimizer.pt"]

    path = checkpoints.save_when_there_is_room(run, 20, write, poll_seconds=0)
    assert checkpoints.newest(folder, Said()) == path == folder / "checkpoint-20"
    paused, resumed = run.events()
    assert (paused.kind, resumed.kind) == ("paused", "resumed")
    assert str(folder) in paused.fields["what"]
    assert paused.fields["needed"] > sum(map(len, FILES.values()))


def test_a_run_that_waits_for_space_can_be_stopped(run):
    def write(staging):
        run.request_stop()
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = run.folder / "checkpoints"
    saved(folder, 10)
    with pytest.raises(StopRequested, match="while the disk was full"):
        checkpoints.save_when_there_is_room(run, 20, write, poll_seconds=0)
    assert list(checkpoints.whole(folder)) == [10]
    assert list((folder / ".saving").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("no"), ValueError("no")])
def test_other_errors_are_not_waited_for(run, error):
    def write(_):
        raise error

    with pytest.raises(type(error), match=str(error.args[-1])):
        checkpoints.save_when_there_is_room(run, 20, write, poll_seconds=0)
    assert not run.events()


def test_too_small_a_disk_is_said_in_numbers_before_training(folder):
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    checkpoints.check_room(folder, free // 100)
    with pytest.raises(RunError, match=r"needs .* GB for checkpoints \(4 of .* each\), .* are free"):
        checkpoints.check_room(folder, free)
    saved(folder, 10, 20, 30)
    checkpoints.check_room(folder, int(free * 0.9))

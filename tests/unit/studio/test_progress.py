"""What a run's folder says about how far it is."""

import json
import shutil
from itertools import pairwise

import pytest

from voxtral_finetune.errors import FinetuneError, RunError
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.studio import progress, texts, train


@pytest.fixture
def run():
    return Run.create(Settings.of({}))


@pytest.fixture
def launches(monkeypatch):
    """Processes that were asked for; none is started."""
    asked = []
    monkeypatch.setattr(Run, "launch", lambda self: asked.append(self.name))
    return asked


def test_a_launched_run_is_starting_and_then_did_not_start(run, launches, monkeypatch):
    assert not progress.is_going(run)
    progress.launch(run)
    assert launches == [run.name]
    assert progress.is_going(run)
    assert progress.view(run).sentence == texts.STARTING
    monkeypatch.setattr(progress, "SECONDS_TO_START", 0)
    assert not progress.is_going(run)
    assert progress.view(run).sentence == texts.NOT_STARTED


def test_a_run_that_goes_on_is_starting_whatever_it_said_before(run, launches):
    run.emit("failed", what="Full disk.", fix="Free some.")
    progress.launch(run)
    assert progress.view(run).sentence == texts.STARTING


def test_one_run_at_a_time(run, launches):
    progress.launch(run)
    with pytest.raises(RunError, match=run.name):
        progress.launch(run)
    run.emit("finished")
    progress.launch(Run.create(Settings.of({})))
    assert len(launches) == 2


def test_a_running_run_says_its_stage_and_place(run):
    with run.lock():
        run.emit("started", folder="x", pid=1)
        assert progress.view(run).sentence == f"{texts.WORKING}."
        run.emit("stage", name="training", title="Training")
        assert progress.view(run).sentence == "Training."
        run.emit("step", step=5, steps=20, loss=2.0)
        seen = progress.view(run)
        assert (seen.sentence, seen.done) == ("Training: 5 of 20", 0.25)
        run.emit("stage", name="test", title="Testing")
        run.emit("progress", done=3, total=4)
        assert progress.view(run).sentence == "Testing: 3 of 4"
        run.request_stop()
        assert progress.view(run).sentence == texts.STOPPING
    assert progress.view(run).sentence == texts.DIED


def test_ends_are_told(run):
    run.emit("failed", what="No GPU.", fix="Use --device cpu.")
    assert progress.view(run).sentence == "No GPU. Use --device cpu."
    run.emit("stopped", what="")
    assert progress.view(run).sentence == texts.STOPPED
    run.emit("finished", wer_before=1, wer_after=0, verdict="better")
    assert progress.view(run).sentence == texts.FINISHED


def test_curves_are_thinned_to_what_a_browser_draws(run):
    for step in range(3 * progress.MAX_POINTS):
        run.emit("step", step=step, steps=3 * progress.MAX_POINTS, loss=1.0)
    run.emit("eval", step=7, steps=9, loss=0.5, wer=0.25)
    seen = progress.view(run)
    assert len(seen.loss) == progress.MAX_POINTS + 1 < 2000
    train_steps = seen.loss[seen.loss["set"] == "train"]["step"]
    assert (train_steps.iloc[0], train_steps.iloc[-1]) == (0, 3 * progress.MAX_POINTS - 1)
    assert seen.wer["wer"].tolist() == [25.0]


def steps_shown(run):
    return progress.view(run).loss["step"].tolist()


def test_a_look_reads_only_what_is_new(run, monkeypatch):
    follow, looks = Run.follow, []
    monkeypatch.setattr(Run, "follow", lambda self, position=0: looks.append(position) or follow(self, position))
    run.emit("step", step=1, steps=9, loss=1.0)
    assert steps_shown(run) == steps_shown(run) == [1]
    end = (run.folder / "events.jsonl").stat().st_size
    run.emit("step", step=2, steps=9, loss=1.0)
    assert steps_shown(run) == [1, 2]
    assert [position for position in looks if position] == [end, end]


def test_half_a_line_is_shown_once_it_is_whole(run):
    run.emit("step", step=1, steps=9, loss=1.0)
    line = json.dumps({"time": 1.0, "kind": "step", "step": 2, "steps": 9, "loss": 1.0}) + "\n"
    with (run.folder / "events.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        assert steps_shown(run) == [1]
        file.write(line[20:])
    assert steps_shown(run) == [1, 2]


def test_a_run_that_goes_on_from_an_earlier_step_has_one_curve(run):
    for step in (1, 2, 3, 4, 5, 6):
        run.emit("step", step=step, steps=9, loss=float(step))
    assert steps_shown(run) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5):
        run.emit("step", step=step, steps=9, loss=10.0 * step)
    assert progress.view(run).loss["loss"].tolist() == [1.0, 2.0, 3.0, 40.0, 50.0]


def test_another_folder_of_the_same_name_is_read_from_its_beginning(run):
    for step in range(5):
        run.emit("step", step=step, steps=9, loss=1.0)
    assert len(steps_shown(run)) == 5
    shutil.rmtree(run.folder)
    other = Run.create(Settings.of({"output_dir": run.folder}))
    assert steps_shown(other) == []
    for step in range(50, 60):  # longer than the log before
        other.emit("step", step=step, steps=99, loss=1.0)
    assert steps_shown(other) == list(range(50, 60))
    log = other.folder / "events.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))  # a copy that ends earlier is put back
    assert steps_shown(other) == [50, 51]


def test_what_a_resumed_run_says_again_is_shown_once(run):
    facts = {"total": 2e6, "trainable": 1e6, "kernels": []}
    run.emit("weights", **facts)
    for number in range(3 * progress.WARNINGS):
        run.emit("warning", what=f"Row {number} is odd.")
    before = progress.view(run).notes
    run.emit("weights", **facts)
    assert progress.view(run).notes == before
    assert before[-1] == texts.more_warnings(2 * progress.WARNINGS)
    assert len(before) == 1 + progress.WARNINGS + 1


def test_a_long_curve_stays_even_and_small(run):
    curve = progress._Curve()
    for step in range(50_000):
        curve.add(step, 0.5)
    assert len(curve.points) < 2 * progress.MAX_POINTS
    shown = [step for step, _ in curve.shown()]
    gaps = {later - earlier for earlier, later in pairwise(shown[:-1])}
    assert (shown[0], shown[-1], len(shown)) == (0, 49_999, progress.MAX_POINTS)
    assert max(gaps) <= 2 * min(gaps)


def test_runs_that_nobody_looks_at_any_more_are_forgotten(run):
    for _ in range(2 * progress.KEPT):
        progress.view(Run.create(Settings.of({})))
    assert len(progress._TOLD) == progress.KEPT
    run.emit("step", step=1, steps=9, loss=1.0)
    assert steps_shown(run) == [1]


def test_the_log_is_its_end_without_a_terminals_tricks(run):
    text = "x\n" * 100_000 + "10%\r50%\r100%\r\n\x1b[31mred\x1b[0m\n"
    (run.folder / "output.log").write_bytes(text.encode() + b"\xff")
    lines = progress.view(run).log.split("\n")
    assert lines[-3:] == ["100%", "red", "\ufffd"]
    assert len(lines) <= progress.LOG_LINES


def test_the_mark_changes_with_every_event(run):
    before = progress.mark(run)
    assert progress.mark(run) == before
    run.emit("started")
    assert progress.mark(run) != before


def test_the_newest_going_run_is_shown_first(run):
    run.emit("finished")
    assert progress.newest().name == run.name
    other = Run.create(Settings.of({}))
    other.emit("failed", what="a", fix="b")
    with run.lock():
        assert progress.newest().name == run.name


@pytest.mark.parametrize("name", ["../../etc", "nothing", "", None, "a/b"])
def test_a_run_is_found_by_its_name_only(name):
    with pytest.raises(FinetuneError):
        progress.find(name)


def test_what_a_run_says_is_escaped(run):
    run.emit("failed", what="<script>alert(1)</script>", fix="`${alert(1)}`")
    assert "<script>" not in train._status(progress.view(run))

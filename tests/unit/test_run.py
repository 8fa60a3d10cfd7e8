import json
import os
import subprocess
import sys

import pytest

from tests.kills import every_kill
from voxtral_finetune.durable import append_line, write_durably
from voxtral_finetune.errors import RunError, SettingsError
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings


@pytest.fixture
def run(tmp_path):
    return Run.create(Settings.of({"output_dir": tmp_path / "r", "epochs": 7}))


def test_settings_come_back_from_the_folder(run):
    assert Run.open(run.folder).settings().training.epochs == 7


def test_a_name_that_is_taken_gets_a_suffix(run):
    again = Run.create(run.settings())
    assert again.folder.name == "r-2"
    assert (run.folder / "config.json").exists()


def test_status_follows_the_last_event_and_the_lock(run):
    assert run.status() == "new"
    with run.lock():
        run.emit("started")
        assert Run(run.folder).status() == "running"
    assert run.status() == "died"
    run.emit("stopped")
    assert run.status() == "stopped"


def test_only_one_process_executes_a_run(run):
    with run.lock(), pytest.raises(RunError, match="another process"), Run(run.folder).lock():
        pass


def test_events_survive_a_line_cut_off_in_the_middle(run):
    run.emit("step", step=1, text="Grüße 语")
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "st')
    assert [event.fields for event in run.events()] == [{"step": 1, "text": "Grüße 语"}]


def test_an_event_after_a_cut_off_line_is_not_lost(run):
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "st')
    run.emit("finished")
    assert run.status() == "finished"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no config\.json"):
        Run.open(tmp_path)


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        Run.create(Settings.of({"output_dir": tmp_path / "file" / "r"}))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_durably(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_durably(path, "new")
    assert path.read_text() == "old"


def test_config_is_flat_json_that_the_command_line_reads(run):
    content = json.loads((run.folder / "config.json").read_text())
    assert content["format"] == 2
    assert content["epochs"] == 7


def test_events_hold_any_text_and_survive_a_line_torn_inside_a_character(run):
    run.emit("failed", what="a\u2028b\u0085c", fix="")
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write('{"time": 1, "kind": "é'.encode()[:-1])
    assert run.status() == "failed"
    assert run.events()[0].fields["what"] == "a\u2028b\u0085c"


def test_what_is_new_in_the_log_is_read_from_the_place_where_one_was(run):
    run.emit("started")
    run.emit("step", step=1, text="Grüße 语")
    (_, _), (second, place) = run.follow()
    assert second.fields["step"] == 1
    assert list(run.follow(place)) == []
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "kind": "step", "st')
        file.flush()
        assert list(run.follow(place)) == [], "half a line is left for the next time"
        file.write(b'ep": 2}\n')
    ((third, place),) = run.follow(place)
    assert third.fields == {"step": 2}
    assert place == (run.folder / "events.jsonl").stat().st_size


def test_lines_that_are_no_events_cost_no_event(run):
    run.emit("step", step=1)
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'[]\n{}\n7\nnull\n{"time": 1}\n\xff\n' + b"x" * 5_000_000 + b"\n")
    run.emit("step", step=2)
    assert [event.fields["step"] for event in run.events()] == [1, 2]


def test_a_long_log_is_followed_and_its_end_read_in_flat_memory(run):
    line = json.dumps({"time": 1.0, "kind": "step", "step": 7, "loss": 0.5, "text": "x" * 900}) + "\n"
    with (run.folder / "events.jsonl").open("w") as file:
        file.writelines(line for _ in range(100_000))
    code = (
        "import sys; from pathlib import Path; from voxtral_finetune.run import Run, peak_rss\n"
        "run = Run(Path(sys.argv[1])); before = peak_rss(); assert run.status() == 'died'\n"
        "print(sum(event.fields['step'] for event, _ in run.follow()), peak_rss() - before)"
    )
    command = [sys.executable, "-c", code, run.folder]
    steps, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(steps) == 700_000
    assert int(grown) < 8_000_000, "of a log of 100 MB"


def test_the_last_event_is_found_behind_much_that_is_none(run):
    run.emit("finished")
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b"nonsense\n" * 100_000)
    assert run.status() == "finished"


def test_a_full_disk_costs_no_event_and_no_watcher(run):
    log, seen = run.folder / "events.jsonl", []
    run.watch(seen.append)
    run.emit("started")
    log.rename(run.folder / "before")
    log.symlink_to("/dev/full")
    run.emit("step", step=1)
    run.emit("step", step=2)
    assert [event.kind for event in seen] == ["started", "step", "step"]
    log.unlink()
    (run.folder / "before").rename(log)
    run.emit("finished")
    run.emit("result")
    assert [event.kind for event in run.events()] == ["started", "step", "step", "finished", "result"]
    assert run.events() == seen


def test_a_line_that_did_not_fit_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    append_line(path, "one")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            append_line(path, "two")
    assert path.read_bytes() == b"one\n"
    append_line(path, "three")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_path_that_is_no_text_can_be_in_an_event(run):
    name = os.fsdecode(b"a\xff.wav")
    run.emit("warning", file=name)
    assert run.events()[0].fields["file"] == name


def test_a_process_can_ask_itself_to_stop_where_no_file_can_be_made(run):
    (run.folder / "stop").symlink_to(run.folder / "nowhere" / "stop")
    with run.lock():
        run.request_stop()
        assert run.stop_requested()
    with pytest.raises(FileNotFoundError):
        Run(run.folder).request_stop()
    run.clear_stop()
    assert not run.stop_requested()


def of_first_format(run):
    content = json.loads((run.folder / "config.json").read_text())
    del content["packing"], content["vary_speed"], content["mask_spectrum"]
    (run.folder / "config.json").write_text(json.dumps({**content, "format": 1}))
    return (run.folder / "config.json").read_bytes()


def test_a_run_of_the_first_format_is_opened_and_goes_on_as_it_began(run):
    before = of_first_format(run)
    learned = Run.open(run.folder).settings().training
    assert (learned.epochs, learned.packing, learned.vary_speed, learned.mask_spectrum) == (7, False, False, False)
    assert (run.folder / "config.json.format-1").read_bytes() == before
    assert json.loads((run.folder / "config.json").read_text())["format"] == 2
    assert Run(run.folder).settings().training.packing is False


def test_a_run_that_is_only_looked_at_or_being_executed_is_not_rewritten(run):
    before = of_first_format(run)
    assert Run(run.folder).settings().training.packing is False
    with run.lock():
        assert Run.open(run.folder).settings().training.packing is False
    assert (run.folder / "config.json").read_bytes() == before


def test_a_kill_at_any_step_of_opening_an_older_run_loses_nothing(run):
    before = b""

    def prepare():
        nonlocal before
        before = of_first_format(run)
        (run.folder / "config.json.format-1").unlink(missing_ok=True)

    def check():
        assert Run.open(run.folder).settings().training.packing is False
        assert (run.folder / "config.json.format-1").read_bytes() == before

    assert every_kill(run.folder, lambda: Run.open(run.folder), prepare, check) > 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 3}', "Update voxtral-finetune"),
        ('{"format": 0}', "Update voxtral-finetune"),
        ('{"format": "2"}', "Update voxtral-finetune"),
        ('{"format": 2,', "is not JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_a_config_of_a_newer_version_or_a_damaged_one_is_refused(run, content, said):
    (run.folder / "config.json").write_text(content)
    with pytest.raises(SettingsError, match=said):
        Run.open(run.folder)
    assert (run.folder / "config.json").read_text() == content

import json

import pytest

from voxtral_finetune.errors import RunError
from voxtral_finetune.run import Run, write_durably
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
    assert content["format"] == 1
    assert content["epochs"] == 7


def test_events_hold_any_text_and_survive_a_line_torn_inside_a_character(run):
    run.emit("failed", what="a\u2028b\u0085c", fix="")
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write('{"time": 1, "kind": "é'.encode()[:-1])
    assert run.status() == "failed"
    assert run.events()[0].fields["what"] == "a\u2028b\u0085c"

"""The windows of a stream: the same for any number of processes, after any stop, with bounded memory."""

import dataclasses
import itertools

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, SequentialSampler

from tests.conftest import spoken
from tests.streams import FakeHub, encoded
from voxtral_finetune.data import stream
from voxtral_finetune.data.hub import Take
from voxtral_finetune.data.stream import StreamError, as_row
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training import streaming
from voxtral_finetune.training.dataset import Hearing
from voxtral_finetune.training.speed import Speed
from voxtral_finetune.training.streaming import StreamedWindows, StreamSpeed, StreamTimeline
from voxtral_finetune.training.told import Told, teller

WORDS = ["low", "mid high", "high low mid", "low low", "mid", "high", "mid low high", "high high"]


def row_of(number, text, sound=None):
    row = as_row(Take(number, sound or encoded(spoken(text, seed=number)), text, "en", None), None, "source")
    return row if sound is None else dataclasses.replace(row, seconds=row.seconds)


class Reader:
    """An endless stream of one dataset, each epoch in another order; says how many rows it has given."""

    def __init__(self, count=40, bad=()):
        self.given = 0
        self.rows = [row_of(n, WORDS[n % len(WORDS)]) for n in range(count)]
        for place in bad:
            # What a broken connection or disk leaves: the header is whole, the sound is not.
            self.rows[place] = dataclasses.replace(self.rows[place], encoded=b"RIFF no sound", sha256=f"bad {place}")

    def __call__(self, epoch):
        for row in self.rows[epoch:] + self.rows[:epoch]:
            self.given += 1
            yield row


def windows_of(reader, per_update=4, updates=12, packing=True, refused=None, **hearing):
    chosen = Hearing(2.0, per_update, seed=5, packing=packing, **hearing)
    told = [] if refused is None else refused
    return StreamedWindows(StreamTimeline(reader.rows[:8], chosen, reader, Told(), told.append), updates)


def heard(dataset, positions):
    return [(dataset[place].text, len(dataset[place].wave), dataset[place].language) for place in positions]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK", 16)


def test_every_row_is_heard_once_an_epoch_and_the_next_one_follows_without_a_seam():
    reader = Reader(40)
    dataset = windows_of(reader, packing=False, updates=20)
    names = [dataset[place].name for place in range(80)]
    assert sorted(names[:40]) == sorted(names[40:]) == sorted({*names})
    assert names[:40] != names[40:]


def test_short_utterances_share_windows():
    dataset = windows_of(Reader())
    texts = [dataset[place].text for place in range(16)]
    assert max(len(text.split()) for text in texts) > 3
    assert all(len(dataset[place].wave) <= 2 * 16_000 for place in range(16))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_heard_does_not_depend_on_processes_and_workers(workers):
    alone = heard(windows_of(Reader(), language_free_share=0.3), range(48))

    def of_process(index):
        dataset = windows_of(Reader(), language_free_share=0.3)
        loader = DataLoader(
            dataset, batch_size=2, sampler=SequentialSampler(dataset), collate_fn=list, num_workers=workers
        )
        shared = prepare_data_loader(loader, num_processes=2, process_index=index, put_on_device=False)
        return [[(each.text, len(each.wave), each.language) for each in batch] for batch in shared]

    batches = itertools.chain.from_iterable(zip(of_process(0), of_process(1), strict=True))
    assert list(itertools.chain.from_iterable(batches)) == alone


def test_a_run_that_goes_on_hears_what_would_have_come_and_decodes_nothing_before(monkeypatch):
    whole = heard(windows_of(Reader()), range(48))
    decoded = []
    monkeypatch.setattr(streaming, "hear", lambda row: decoded.append(row.line) or stream.hear(row))
    later = windows_of(Reader())
    first = [later[place] for place in range(32, 36)]
    assert len(decoded) == sum(len(each.name.split(", ")) for each in first)
    assert [each.text for each in first] == [text for text, _, _ in whole[32:36]]
    assert heard(later, range(36, 48)) == whole[36:]


def test_going_back_reads_the_stream_again():
    dataset = windows_of(Reader())
    assert heard(dataset, [30, 0]) == [*heard(windows_of(Reader()), [30]), *heard(windows_of(Reader()), [0])]


def test_no_more_rows_are_read_than_a_block_ahead():
    reader = Reader(400)
    dataset = windows_of(reader, packing=False)
    for place in range(48):
        dataset[place]
        assert reader.given <= (place // 4 + 1) * 4 + 16


def test_a_damaged_row_is_left_out_of_its_window_in_every_process():
    refused = []
    dataset = windows_of(Reader(40, bad=(3, 11, 12)), refused=refused)
    texts = [dataset[place].text for place in range(8)]
    names = {part for place in range(8) for part in dataset[place].name.split(", ")}
    assert all(texts)
    lines = [problem.line for problem in refused]
    assert lines
    assert len(lines) == len(set(lines))
    assert not {f"line {line} (row {line})" for line in (3, 11, 12)} & names
    backwards = windows_of(Reader(40, bad=(3, 11, 12)))
    assert [backwards[place].text for place in range(7, -1, -1)] == texts[::-1]


def test_an_update_without_any_speech_ends_the_run():
    dataset = windows_of(Reader(4, bad=range(4)), packing=False)
    with pytest.raises(StreamError, match="No row of update 1 holds speech"):
        dataset[0]
    assert "No row of update 1" in dataset.timeline.told.error.what


def test_what_a_worker_read_is_known_to_the_trainer():
    dataset = windows_of(Reader(), packing=False)
    loader = DataLoader(dataset, batch_size=4, sampler=SequentialSampler(dataset), collate_fn=list, num_workers=1)
    expected = windows_of(Reader(), packing=False).timeline.update(0)
    rows = iter(loader)
    batch = next(rows)
    told = dataset.timeline.told
    assert told.seconds(0) == pytest.approx(sum(window.seconds for _, _, window in expected), abs=0.001)
    assert dataset.names(0) == [f"row {each.name.split()[1]}" for each in batch]
    speed = StreamSpeed(dataset.timeline, torch.device("cpu"))
    speed.begin(0)
    speed.heard(1)
    assert speed.facts(1, 12)["speech_hours_per_hour"] > 0
    assert isinstance(speed, Speed)
    assert sum(1 for _ in rows) == 11
    assert told.facts == {"refused": 0, "times": 2}


def test_only_some_refused_rows_are_named_and_all_counted(tmp_path):
    run, told = Run.create(Settings.of({"output_dir": tmp_path / "run"})), Told()
    refused = teller(run, told)
    for line in range(50):
        refused(stream.Problem(line, "source", f"Row {line} holds no audio.", "Leave it out."))
    warnings = [event for event in run.events() if event.kind == "warning"]
    assert len(warnings) == stream.MOST_WARNED + 1
    assert told.facts["refused"] == 50


def test_a_failure_in_a_worker_keeps_its_words():
    told = Told()
    told.fail(StreamError("The Hub is “away”. " * 200, "Try later."))
    assert told.error.what.startswith("The Hub is “away”.")
    assert told.error.fix == "Try later."


def test_the_fake_hub_gives_rows_by_its_seed():
    hub = FakeHub.of(10)
    spec = stream.spec_of(Settings.of({"dataset_name": "a/b"}))
    orders = [[row.text for row in hub.open(dataclasses.replace(spec, seed=seed)).rows] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]

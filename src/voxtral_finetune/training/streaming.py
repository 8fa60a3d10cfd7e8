"""Training on a corpus while it streams from the Hub: the same windows in the same order, without a local copy.

The order is that of the rows as they come, in blocks that share windows. Position i of a run stays a pure function of
(dataset at its commit, seed, i): every process walks all rows and decodes only those of its own batches, and a run
that goes on reads again from the beginning, without decoding, until it is where it was.

One process of each device reads, the trainer's own or one worker: each further worker would download the stream once
more, since none can know its windows without having seen all rows before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

from voxtral_finetune.data.audio import Wave
from voxtral_finetune.data.augment import NoiseBank
from voxtral_finetune.data.collate import Example
from voxtral_finetune.data.hub import open_stream
from voxtral_finetune.data.rows import Problem, Utterance
from voxtral_finetune.data.stream import (
    DamagedError,
    Open,
    Pinned,
    Refused,
    Streamed,
    StreamError,
    TrainingRows,
    blocks,
    hear,
    spec_of,
)
from voxtral_finetune.data.wave_cache import WaveCache
from voxtral_finetune.data.windows import Window, plan
from voxtral_finetune.errors import FinetuneError, StopRequested
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.training.dataset import Hearing, Timeline, WindowStream
from voxtral_finetune.training.schedule import Schedule
from voxtral_finetune.training.speed import Speed
from voxtral_finetune.training.told import Told, passer, teller

if TYPE_CHECKING:
    from voxtral_finetune.training.trainer import VoxtralTrainer


class StreamTimeline(Timeline):
    """The windows of a stream, an update after the other; going back means to read it again from its beginning.

    `rows` are the sample that the run was planned by. `read(epoch)` gives the rows of an epoch, `refused` is told of
    those that cannot be learned from, `passing` how far it is on the way to the first update of a run that goes on.
    Held are a block of rows, the update that was asked for last, and the one before it.
    """

    def __init__(
        self,
        rows: Sequence[Utterance],
        hearing: Hearing,
        read: Callable[[int], Iterator[Streamed]],
        told: Told,
        refused: Refused,
        passing: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__(rows, hearing)
        self.told = told
        self.refused = refused
        self._passing = passing
        self._read = read
        self._windows: Iterator[tuple[int, int, Window]] = iter(())
        self._next: int | None = None
        self._recent: deque[tuple[int, list[tuple[int, int, Window]]]] = deque(maxlen=2)

    def update(self, number: int) -> list[tuple[int, int, Window]]:
        for known, windows in self._recent:
            if known == number:
                return windows
        if self._next is None or number < self._next:
            self.told.begin()
            self._windows, self._next = self._walk(), 0
        while self._next <= number:
            if self._next < number:
                self._passing(self._next, number)
            taken = [next(self._windows) for _ in range(self.hearing.per_update)]
            self._next += 1
        taken.sort(key=lambda each: (-self.chunks(each[2]), -len(each[2].text), each[:2]))
        self.told.update(number, taken[-1][0], [window for _, _, window in taken])
        self._recent.append((number, taken))
        return taken

    def leave_out(self, number: int, damaged: Streamed) -> None:
        """Takes a row out of an update; a window that becomes empty is replaced by the next one of the update.

        Raises StreamError where none is left.
        """
        windows = self.update(number)
        left = [
            (epoch, place, Window(tuple(row for row in window.utterances if row.sha256 != damaged.sha256)))
            for epoch, place, window in windows
        ]
        full = [each for each in left if each[2].utterances]
        if not full:
            what = f"No row of update {number + 1} holds speech that can be learned."
            raise StreamError(what, "See the warnings of the run, and listen to some rows of the dataset.")
        for index, each in enumerate(left):
            after = (left[(index + step) % len(left)] for step in range(len(left)))
            windows[index] = each if each[2].utterances else next(other for other in after if other[2].utterances)

    def _walk(self) -> Iterator[tuple[int, int, Window]]:
        """(epoch, place in it, window), without end."""
        epoch, number = 0, 0
        while True:
            place = 0
            for block in blocks(self._read(epoch)):
                made = self._plan(block, number, epoch)
                block.clear()  # a window that was heard must not be held by its block
                while made:
                    yield epoch, place, made.popleft()
                    place += 1
                number += 1
            epoch += 1

    def _plan(self, block: list[Streamed], number: int, epoch: int) -> deque[Window]:
        chosen = self.hearing
        return deque(
            plan(block, chosen.window_seconds, chosen.packing, chosen.seed, number, length=self._length(epoch))
        )


class StreamedWindows(WindowStream):
    """The examples of a run that streams; a row that turns out to be damaged is left out, its window taught without."""

    timeline: StreamTimeline

    def __init__(self, timeline: StreamTimeline, updates: int, noises: NoiseBank | None = None) -> None:
        super().__init__(timeline, updates, cast(WaveCache, _Waves()), noises)

    def __getitem__(self, position: int) -> Example:
        try:
            while True:
                try:
                    return super().__getitem__(position)
                except DamagedError as damaged:
                    row = damaged.row
                    self.timeline.refused(Problem(row.line, "", damaged.what, damaged.fix))
                self.timeline.leave_out(position // self.timeline.hearing.per_update, row)
        except StreamError as error:
            self.timeline.told.fail(error)
            raise

    def names(self, number: int) -> list[str]:
        """The rows of an update, in any process, without reading it again."""
        return [f"row {line}" for line in self.timeline.told.lines(number)]


class _Waves:
    """Stands where others have a cache of decoded speech: each row is heard once an epoch."""

    def load(self, row: Streamed) -> Wave:
        return hear(row)


class StreamSpeed(Speed):
    """Speed of a run whose windows may be known to a worker only."""

    def heard(self, update: int) -> None:
        assert isinstance(self.timeline, StreamTimeline)
        self._speech += self.timeline.told.seconds(update - 1)


def timeline(run: Run, settings: Settings, made: Schedule, opened: Open = open_stream) -> StreamTimeline:
    """The timeline of a run that streams, as `stream.json` in its folder pins it."""
    pinned, told = Pinned.load(run.folder), Told()
    longest = made.longest * made.hearing.window_seconds
    refused = teller(run, told)
    rows = TrainingRows(spec_of(settings), pinned, longest, refused, opened)
    return StreamTimeline(pinned.sample, made.hearing, rows.epoch, told, refused, passer(run))


def keep(trainer: VoxtralTrainer, error: StreamError) -> FinetuneError:
    """Saves what was learned before the stream broke, and gives the error to raise.

    One of several processes cannot save alone: such a run goes on from its last checkpoint.
    """
    dataset = trainer.train_dataset
    assert isinstance(dataset, StreamedWindows)
    known = dataset.timeline.told.error or error
    step = trainer.state.global_step
    go_on = f"voxtral-finetune train --resume --output-dir {trainer.run.folder}"
    if trainer.run.stop_requested():  # while it read up to where it was: nothing new was learned
        return StopRequested("Stopped before training went on.", f"Go on with: {go_on}")
    if trainer.args.world_size > 1 or not step:
        return known
    trainer._save_checkpoint(trainer.model, None)
    trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
    return StreamError(known.what, f"{known.fix} Update {step} is saved; go on with: {go_on}")


def tell(trainer: VoxtralTrainer) -> None:
    """What came of a stream, as the event `streamed`: rows refused, and how many times it was begun."""
    dataset = trainer.train_dataset
    if isinstance(dataset, StreamedWindows):
        told = dataset.timeline.told
        trainer.run.emit("streamed", **told.facts)

"""A dataset of the Hub that is learned from while it streams: which rows teach, and in what order.

Whether a row teaches, or is kept for dev or test (`data.held_out`), is decided by its text and the seed alone. So no
text of dev or test is ever learned, however long the stream and however often it begins again. What a run has to know
to read the same rows again, the commit above all, is `stream.json` in its folder.

Rows stay encoded until they are heard; their length is read from the header of their audio.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import soundfile

from voxtral_finetune.data import audio, hub, measure, text_checks
from voxtral_finetune.data.hub import HubSpec, Stream, Take
from voxtral_finetune.data.rows import Problem, Utterance
from voxtral_finetune.data.text_doubts import plain
from voxtral_finetune.durable import write_durably
from voxtral_finetune.errors import DataError, RunError, SettingsError
from voxtral_finetune.settings import Settings

BLOCK = 512
"""Rows that are held at a time, still encoded, to share windows; with 10 s of 16-bit speech each, 160 MB."""

BLOCK_BYTES = 2**28
"""A block ends sooner where its rows are larger than usual."""

PAUSES = (1.0, 10.0, 30.0)
"""Seconds before each new attempt where the Hub breaks off; its own clients have tried for minutes by then."""

LONGEST_TEXT = 4096
"""Bytes of a text, and so at least its tokens: what the collator would refuse must not end a run of many days."""

OFF_SECONDS = 0.25
"""How far speech may be from the length that its header says; what is longer, an encoder's padding, is cut off."""

MOST_WARNED = 20
"""Refused rows that are named one by one; of the others the number is told at the end."""

FILE = "stream.json"

Open = Callable[[HubSpec], Stream]
Refused = Callable[[Problem], None]


class StreamError(DataError):
    """The stream cannot be read on; what has been learned is on disk."""


class DamagedError(DataError):
    """A row that promised speech and holds none that can be learned."""

    def __init__(self, what: str, fix: str, row: Streamed) -> None:
        super().__init__(what, fix)
        self.row = row


@dataclass(frozen=True, slots=True)
class Streamed(Utterance):
    """A row of a stream with its audio as the Hub has it; `audio` is but its name, `sha256` that of the bytes."""

    encoded: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True)
class Parts:
    """Says of a text what it is for: a `share` of all texts is held out, of those `dev_share` for dev."""

    seed: int
    share: float
    dev_share: float

    def of(self, text: str) -> str:
        place, which = draws(self.seed, text)
        return "train" if place >= self.share else "dev" if which < self.dev_share else "test"


@dataclass(frozen=True)
class Pinned:
    """What was settled when a run began: the commit, who is held out, and rows by which training is planned."""

    revision: str
    source: str
    parts: Parts
    held: frozenset[str]
    """SHA-256 of the encoded audio of dev and test."""
    sample: list[Utterance]
    """The first rows that teach, without their audio."""

    def save(self, folder: Path) -> None:
        sample = [{"line": row.line, **{name: getattr(row, name) for name in KNOWN}} for row in self.sample]
        content = {"revision": self.revision, "source": self.source, "parts": asdict(self.parts)}
        whole = {**content, "held": sorted(self.held), "sample": sample}
        write_durably(folder / FILE, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> Pinned:
        """Raises RunError where the file is not there or damaged."""
        try:
            found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{folder / FILE} is missing or damaged.", "Start a new run.") from error
        sample = [Utterance(_name(row["line"]), **row) for row in found["sample"]]
        held = frozenset(found["held"])
        return Pinned(found["revision"], found["source"], Parts(**found["parts"]), held, sample)


KNOWN = ("text", "language", "speaker", "seconds")


def check(settings: Settings) -> None:
    """Raises SettingsError where --stream is asked for without what it needs, or with what it cannot do."""
    chosen, taught = settings.data, settings.training
    if chosen.dataset_name is None or chosen.dataset_jsonl is not None:
        raise SettingsError("--stream reads a dataset of the Hub.", "Give --dataset-name, and no --dataset-jsonl.")
    if taught.max_steps is None:
        what = "--stream does not know how many rows there are."
        raise SettingsError(what, "Say with --max-steps how many updates to make.")
    against = {
        "--cache-audio": taught.cache_audio,
        "--train-count": chosen.train_count,
        "--max-hours": chosen.max_hours,
        "--strict": chosen.strict,
        "--split-by": chosen.split_by not in ("auto", "text"),
    }
    for flag, given in against.items():
        if given:
            raise SettingsError(f"{flag} is not possible with --stream.", "Leave one of the two out.")


def spec_of(settings: Settings) -> HubSpec:
    """What to read, without an order; `order` has that of an epoch."""
    chosen = settings.data
    where = (chosen.dataset_config, chosen.dataset_split, chosen.dataset_revision)
    return HubSpec(str(chosen.dataset_name), *where, chosen.audio_column, chosen.text_column, chosen.language)


def order(seed: int, epoch: int) -> int:
    """The seed of the order in which an epoch reads the dataset."""
    return int.from_bytes(hashlib.sha256(f"order:{seed}:{epoch}".encode()).digest()[:8], "big")


def draws(seed: int, text: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that depend on the seed and the words of a text, not on case and punctuation."""
    digest = hashlib.sha256(f"held out:{seed}:{plain(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:16], "big") / 2**64


def as_row(take: Take, language: str | None, source: str) -> Streamed | Problem:
    """A row to learn from, its audio not decoded yet, or why it cannot be learned from."""
    try:
        seconds = _seconds(take)
    except DataError as error:
        return Problem(take.number, source, error.what, error.fix)
    found = [text_checks.refusal(take.text), *text_checks.findings(take.text, seconds)]
    if len(take.text.encode()) > LONGEST_TEXT:
        return Problem(take.number, source, f"Row {take.number} has a text of over {LONGEST_TEXT} bytes.", "Cut it.")
    for finding in found:
        if finding and not finding.usable:
            return Problem(take.number, source, f"Row {take.number}: {finding.what}", finding.fix)
    code = take.language or language
    return Streamed(
        _name(take.number),
        take.text,
        language=text_checks.language_code(code) if code else None,
        speaker=take.speaker,
        seconds=seconds,
        line=take.number,
        sha256=hashlib.sha256(take.audio).hexdigest(),
        encoded=take.audio,
    )


def hear(row: Streamed) -> audio.Wave:
    """Mono 16 kHz samples of a row; raises DamagedError where it is not what its header promised, or silent."""
    try:
        wave, rate = hub.decode_bytes(row.encoded, f"Row {row.line}")
    except DataError as error:
        raise DamagedError(error.what, error.fix, row) from error
    if abs(len(wave) / rate - (row.seconds or 0.0)) > OFF_SECONDS:
        what = f"Row {row.line} holds {len(wave) / rate:.1f} s of the {row.seconds:.1f} s that it says."
        raise DamagedError(what, "Leave it out, or mend the dataset.", row)
    for finding in measure.findings(measure.measure(wave, rate)):
        if not finding.usable:
            raise DamagedError(f"Row {row.line}: {finding.what}", finding.fix, row)
    return audio.resample(wave[: round((row.seconds or 0.0) * rate)], rate)


class TrainingRows:
    """The rows that teach, epoch after epoch, each in its own order; `refused` is told of those that cannot.

    Where the Hub breaks off, it is opened again and read on from the same row, as often as there are PAUSES.
    """

    def __init__(
        self, spec: HubSpec, pinned: Pinned, longest_seconds: float, refused: Refused, opened: Open = hub.open_stream
    ) -> None:
        self.spec = spec
        self.pinned = pinned
        self.longest_seconds = longest_seconds
        self.refused = refused
        self.opened = opened

    def epoch(self, number: int) -> Iterator[Streamed]:
        """Raises StreamError where the stream ends in an error for good, or no row of it teaches."""
        teaching = 0
        for take in self._takes(number):
            if isinstance(take, Take) and self.pinned.parts.of(take.text) != "train":
                continue
            row = take if isinstance(take, Problem) else as_row(take, self.spec.language, self.pinned.source)
            if isinstance(row, Streamed) and (row.seconds or 0.0) > self.longest_seconds:
                what = f"Row {row.line} lasts {row.seconds:.0f} s; memory was planned for {self.longest_seconds:.0f} s."
                row = Problem(row.line, self.pinned.source, what, "Cut it into utterances.")
            if isinstance(row, Problem):
                self.refused(row)
            elif row.sha256 not in self.pinned.held:
                teaching += 1
                yield row
        if not teaching:
            raise StreamError(f"{self.pinned.source} has no row to learn from.", "Check its columns and texts.")

    def _takes(self, epoch: int) -> Iterator[Take | Problem]:
        spec = replace(self.spec, seed=order(self.pinned.parts.seed, epoch))
        given, failed = 0, 0
        while True:
            try:
                for take in islice(open_pinned(spec, self.pinned.revision, self.opened).rows, given, None):
                    given, failed = given + 1, 0
                    yield take
                return
            except DataError as error:
                if failed == len(PAUSES) or isinstance(error, StreamError):
                    raise StreamError(error.what, error.fix) from error
                time.sleep(PAUSES[failed])
                failed += 1


def open_pinned(spec: HubSpec, revision: str, opened: Open = hub.open_stream) -> Stream:
    """The dataset at the commit of a run, whatever its branch is at now.

    The Hub's Parquet copy is read by the name of its branch, which says how it is laid out; raises StreamError where
    that has moved on.
    """
    stream = opened(spec if spec.revision == hub.CONVERTED else replace(spec, revision=revision))
    if stream.revision != revision:
        what = f"{spec.name} has been changed on the Hub since this run began."
        raise StreamError(what, "Start a new run; what this one has learned is in its checkpoints.")
    return stream


def blocks(rows: Iterable[Streamed]) -> Iterator[list[Streamed]]:
    """Rows by the BLOCK, in their order; whoever takes a block may empty it."""
    block: list[Streamed] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.encoded)
        if len(block) == BLOCK or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _seconds(take: Take) -> float:
    """How long a row is, by the header of its audio; decoded where that does not say. Raises DataError as decoding."""
    try:
        seconds = float(soundfile.info(io.BytesIO(take.audio)).duration)
    except soundfile.LibsndfileError:
        seconds = 0.0
    if not 0 < seconds <= audio.MAX_SECONDS:
        wave, rate = hub.decode_bytes(take.audio, f"Row {take.number}")
        seconds = len(wave) / rate
    return round(seconds, 3)


def _name(line: int) -> Path:
    return Path(f"row {line}")

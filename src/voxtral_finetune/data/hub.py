"""Speech from the Hub: the rows of a dataset, streamed, decoded by our own decoder and kept in a corpus.

`datasets` brings the rows with their audio still encoded (`Audio(decode=False)`), so nothing of a dataset is executed
and a damaged file is one refused row. One row is in memory at a time, and a buffer of them where they are sampled. What
has been imported is noted beside the corpus, so that an import that was cut off goes on without doubling a row.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from voxtral_finetune.data import audio
from voxtral_finetune.data.corpus import Corpus, Problem, tidy
from voxtral_finetune.data.hub_errors import hub_errors
from voxtral_finetune.data.journal import Journal, journal_of
from voxtral_finetune.errors import DataError

CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub keeps a Parquet copy of a dataset; a config is a folder there."""

TEXT_COLUMNS = ("text", "sentence", "raw_transcription", "raw_text", "transcription", "transcript", "normalized_text")
"""Where the text is looked for; of two forms the one with case and punctuation first, as Voxtral writes them."""

SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")

SHUFFLE_BUFFER = 256
"""Rows that are held to sample from; with 10 s of 16-bit speech each, 80 MB."""

GIVE_UP = 100
"""An import ends when so many rows were refused before the first one was good."""

Progress = Callable[[int, int], None]
"""Called with (seconds of speech so far, seconds wanted or 0)."""


@dataclass(frozen=True)
class HubSpec:
    """Which rows of which dataset, and how to read them; what is None is found out or left as it is."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    language: str | None = None
    max_hours: float | None = None
    seed: int | None = None
    """Samples in an order that depends on this number; None keeps the dataset's order."""
    credit: str | None = None
    """What to say of the dataset wherever its rows go, beside its name."""
    keep: Callable[[str, float], bool] | None = None
    """Whether a row of (text, seconds) is wanted."""


@dataclass(frozen=True)
class Take:
    """One row as the Hub has it; `number` counts from 1 in the order they came."""

    number: int
    audio: bytes
    text: str
    language: str | None
    speaker: str | None

    @cached_property
    def key(self) -> str:
        """The same for the same speech and text; ids of datasets are often those of sentences, and repeat."""
        return hashlib.sha256(self.audio + b"\0" + self.text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Stream:
    """A dataset that was opened: the commit it is read at, whom to credit, and its rows."""

    revision: str
    source: str
    licence: str | None
    rows: Iterator[Take | Problem]


@dataclass(frozen=True)
class Imported:
    """What came of an import: rows added now, added by an earlier one, not wanted by `keep`, and bad ones."""

    added: int
    known: int
    unwanted: int
    refused: list[Problem]
    seconds: float
    """Speech of the rows added and known, together."""
    revision: str
    source: str


def import_hub(corpus: Corpus, spec: HubSpec, progress: Progress | None = None) -> Imported:
    """Adds the rows of a dataset to a corpus, up to `max_hours`; those already there are not doubled.

    Raises DataError where the dataset cannot be read; what was added until then stays, and the next call goes on.
    """
    wanted = spec.max_hours * 3600 if spec.max_hours else float("inf")
    added = known = unwanted = 0
    total = 0.0
    refused: list[Problem] = []
    with journal_of(corpus) as journal:
        stream = open_stream(spec)
        for row in stream.rows:
            heard = _listen(row, journal, stream.source)
            if isinstance(heard, Problem):
                refused.append(heard)
                if len(refused) == GIVE_UP and not added + known:
                    raise DataError(f"The first {GIVE_UP} rows are all refused. {heard.what}", heard.fix)
                continue
            take, seconds, sound = heard
            if sound and spec.keep and not spec.keep(take.text, seconds):
                unwanted += 1
                continue
            if total + seconds > wanted:
                break
            if sound and journal.add(take.key, *sound, take.text, _fields(take, spec, stream)):
                added += 1
            else:
                known += 1
            total += seconds
            if progress:
                progress(int(total), int(wanted) if spec.max_hours else 0)
    return Imported(added, known, unwanted, refused, round(total, 3), stream.revision, stream.source)


def open_stream(spec: HubSpec) -> Stream:
    """Opens a dataset at the commit that `revision` (default: main) names now; its rows come as they are asked for.

    Raises DataError, one line with a remedy, where the Hub or the dataset does not allow it; so do the rows.
    """
    from huggingface_hub import HfApi

    with hub_errors(spec.name, spec.revision):
        if Path(spec.name).exists():  # `datasets` would read that instead
            what = f"There is a file or folder {spec.name} here."
            raise DataError(what, "Run this elsewhere to read it from the Hub.")
        about = HfApi().dataset_info(spec.name, revision=spec.revision)
        HfApi().auth_check(spec.name, repo_type="dataset")  # a gated dataset shows what it is, not what it holds
    revision = str(about.sha)
    licence = (about.card_data.get("license") if about.card_data else None) or []
    licences = ", ".join([licence] if isinstance(licence, str) else licence)
    split, rows = _open_split(spec, revision)
    named = " ".join(filter(None, (spec.name, spec.config, split)))
    source = f"{named} @ {revision[:12]}" + (f" ({spec.credit})" if spec.credit else "")
    found = _columns(rows)
    columns = (_audio_column(spec, found), _text_column(spec, found))
    return Stream(revision, source, licences or None, _rows(spec, rows, columns, source))


def decode_bytes(data: bytes, name: str) -> tuple[audio.Wave, int]:
    """Decodes an encoded file in memory to (mono samples of shape (n,), rate in Hz); raises DataError naming `name`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            return audio.read(path)
        except DataError as error:
            raise DataError(error.what.replace(f"{folder}/", ""), "Leave it out, or mend the dataset.") from error


def _listen(
    row: Take | Problem, journal: Journal, source: str
) -> tuple[Take, float, tuple[audio.Wave, int] | None] | Problem:
    """(row, its seconds, its sound unless it is in the corpus already), or what is wrong with it."""
    if isinstance(row, Problem):
        return row
    known = journal.seconds.get(row.key)
    if known is not None:
        return row, known, None
    try:
        wave, rate = decode_bytes(row.audio, f"Row {row.number}")
    except DataError as error:
        return Problem(row.number, source, error.what, error.fix)
    return row, len(wave) / rate, (wave, rate)


def _fields(take: Take, spec: HubSpec, stream: Stream) -> dict[str, str | None]:
    language = take.language or spec.language
    return {"language": language, "speaker": take.speaker, "source": stream.source, "licence": stream.licence}


def _open_split(spec: HubSpec, revision: str) -> tuple[str, Any]:
    """(name of the split, its rows as `datasets` streams them)."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()  # the caller shows progress
    place = "data_dir" if spec.revision == CONVERTED else "name"
    with hub_errors(spec.name, spec.revision):
        splits = load_dataset(spec.name, revision=revision, streaming=True, **{place: spec.config})
    split = spec.split or ("train" if "train" in splits else next(iter(splits)))
    if split not in splits or (spec.split is None and split != "train" and len(splits) > 1):
        what = f"no split {spec.split!r}" if spec.split else "no split 'train'"
        raise DataError(f"{spec.name} has {what}; it has: {', '.join(splits)}.", "Name one with --dataset-split.")
    return split, splits[split]


def _rows(spec: HubSpec, rows: Any, columns: tuple[str, str], source: str) -> Iterator[Take | Problem]:
    from datasets import Audio

    sound, text = columns
    with hub_errors(spec.name, spec.revision):
        for number, row in enumerate(_ordered(rows.cast_column(sound, Audio(decode=False)), spec.seed), start=1):
            encoded, words = (row[sound] or {}).get("bytes"), row[text]
            if not encoded:
                yield Problem(number, source, f"Row {number} holds no audio.", "Leave it out, or mend the dataset.")
            elif not isinstance(words, str) or not tidy(words):
                yield Problem(number, source, f"Row {number} holds no text.", "Leave it out, or mend the dataset.")
            else:
                yield Take(number, encoded, tidy(words), _language(row), _first(row, SPEAKER_COLUMNS))


def _ordered(rows: Any, seed: int | None) -> Iterator[Mapping[str, Any]]:
    """Rows in the dataset's order, or sampled: files in a random order, rows through a buffer.

    Not `rows.shuffle`: its order changed between versions of `datasets`, and it holds parts of ten files at a time.
    """
    if seed is None:
        yield from rows
        return
    chance, count = random.Random(seed), rows.num_shards
    held: list[Mapping[str, Any]] = []
    for shard in chance.sample(range(count), count):
        for row in rows.shard(count, shard):
            if len(held) < SHUFFLE_BUFFER:
                held.append(row)
                continue
            place = chance.randrange(SHUFFLE_BUFFER)
            yield held[place]
            held[place] = row
    chance.shuffle(held)
    yield from held


def _columns(rows: Any) -> dict[str, str]:
    """The columns of a dataset: name to "audio", "text" or "other"."""
    features = rows.features or {}
    return {name: _kind(feature) for name, feature in features.items()}


def _kind(feature: Any) -> str:
    if type(feature).__name__ == "Audio" or (isinstance(feature, dict) and "bytes" in feature):
        return "audio"
    return "text" if getattr(feature, "dtype", None) in ("string", "large_string") else "other"


def _audio_column(spec: HubSpec, columns: Mapping[str, str]) -> str:
    of_audio = [name for name, kind in columns.items() if kind == "audio"]
    return _chosen(spec, columns, "audio", spec.audio_column, of_audio)


def _text_column(spec: HubSpec, columns: Mapping[str, str]) -> str:
    usual = [name for name in TEXT_COLUMNS if columns.get(name) == "text"]
    return _chosen(spec, columns, "text", spec.text_column, usual)


def _chosen(spec: HubSpec, columns: Mapping[str, str], kind: str, asked: str | None, usual: list[str]) -> str:
    """The column that was asked for, or else the first of the usual ones; raises DataError showing what there is."""
    if asked and columns.get(asked) == kind:
        return asked
    if usual and asked is None:
        return usual[0]
    missing = f"column {asked!r} of {kind}" if asked else f"column that is known to hold {kind}"
    there = ", ".join(f"{name} ({kind_there})" for name, kind_there in columns.items())
    raise DataError(f"{spec.name} has no {missing}; its columns: {there}.", f"Name one with --{kind}-column.")


def _language(row: Mapping[str, Any]) -> str | None:
    """What a row says of its language, where that is a two-letter code and no name or locale."""
    code = _first(row, LANGUAGE_COLUMNS) or ""
    return code.lower() if len(code) == 2 and code.isalpha() else None


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), None)

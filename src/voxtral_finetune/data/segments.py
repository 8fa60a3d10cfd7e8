"""One long recording, with its transcript or without, made into utterances of a corpus.

    decoded once: where somebody speaks → pieces, cut in silence
    decoded again, a few pieces at a time: a draft of each (the caller's callable: `data` knows no model)
    transcript aligned to the drafts: a text and a score for each piece
    decoded a last time: good pieces into the corpus, the others aside, for a person to hear

Decoding is cheap and repeats exactly, so no recording is ever held whole: at most BATCH pieces are, one MB each for
every 16 s, and the texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from voxtral_finetune.data import audio
from voxtral_finetune.data.align import align
from voxtral_finetune.data.audio import SAMPLE_RATE, Wave
from voxtral_finetune.data.corpus import Corpus, tidy
from voxtral_finetune.data.speech import Piece, activity, blocks, cut, waves
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import append_line

PIECE_SECONDS = 15.0
"""The longest piece, unless the window is shorter: a sentence or two, which a person can hear and correct at once.
Training joins pieces to fill windows; a corpus of a few long ones could not be split into train, dev and test."""

THRESHOLD = 0.5
"""The least score that is accepted: drafts with 20 % wrong words score 0.6 to 0.95, an unrelated text 0.2 to 0.3."""

ASIDE = "aside.jsonl"
"""The list, beside `data.jsonl`, of pieces that a person must hear first."""

NO_TRANSCRIPT = "there is no transcript: correct the draft"
NO_FIT = "the transcript does not fit what was heard"

ID_LENGTH = 32
"""Hexadecimal digits of the sound's SHA-256 in a file name, as `prepare` names files: 128 bits never collide."""

BATCH = 16
"""Pieces that are drafted at a time."""

Draft = Callable[[list[Wave]], list[str]]
"""Texts of mono recordings at SAMPLE_RATE, one each; "" where nothing is heard."""

Progress = Callable[[int, int], None]
"""Called with (pieces drafted so far, pieces in all)."""


@dataclass(frozen=True)
class Segment:
    """A piece, what is said in it, what the draft heard; no score where there is no transcript to compare."""

    piece: Piece
    text: str
    draft: str
    score: float | None


@dataclass(frozen=True)
class Segmented:
    """All pieces of a recording in order of time: those whose text is to be trusted, and those to be heard first."""

    accepted: list[Segment]
    aside: list[Segment]


@dataclass(frozen=True)
class Imported:
    """What an import brought: all segments of the recording, and how many of them the corpus had before."""

    segmented: Segmented
    known: int


def segment(
    path: Path,
    transcript: str | None,
    draft: Draft,
    longest: float = PIECE_SECONDS,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> Segmented:
    """Cuts a recording of any length into pieces and finds what is said in each; raises DataError without speech.

    Pieces that score below `threshold` are aside; all are without a transcript, with their drafts as texts.
    """
    pieces = cut(activity(blocks(path)), longest)
    if not pieces:
        raise DataError(f"Nobody speaks in {path}.", "Check that it is the right file and loud enough.")
    drafts = _drafts(path, pieces, draft, progress)
    if transcript is None:
        return Segmented([], [Segment(piece, text, text, None) for piece, text in zip(pieces, drafts, strict=True)])
    found = Segmented([], [])
    for piece, said, heard in zip(pieces, align(drafts, transcript), drafts, strict=True):
        good = bool(said.text) and said.score >= threshold
        (found.accepted if good else found.aside).append(Segment(piece, said.text, heard, said.score))
    return found


def import_recording(
    corpus: Corpus,
    path: Path,
    transcript: str | None,
    draft: Draft,
    longest: float = PIECE_SECONDS,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
    **fields: str | None,
) -> Imported:
    """Adds a recording's good pieces to `corpus`, with `fields` (source, language, …); the others are put aside.

    `aside.jsonl` beside the corpus' `data.jsonl` is a corpus of its own (its audio in `aside/`), each row with where
    it was cut, the draft, the score and why it is there: correct its texts and add it. Audio is named by its sound, and
    a piece that one of the two lists names is passed over, so that an import may be repeated or go on.
    """
    fields = {"source": path.name, **fields}
    found = segment(path, transcript, draft, longest, threshold, progress)
    accepted = {one.piece for one in found.accepted}
    segments = sorted(found.accepted + found.aside, key=lambda one: one.piece.start)
    there = "".join(list_.read_text(encoding="utf-8") for list_ in _lists(corpus) if list_.exists())
    known = 0
    for one, wave in zip(segments, waves(blocks(path), [one.piece for one in segments]), strict=True):
        sound = audio.content_hash(wave, SAMPLE_RATE)[:ID_LENGTH]
        if sound in there:
            known += 1
        else:
            _keep(corpus, one, wave, sound, fields, one.piece in accepted)
    return Imported(found, known)


def _drafts(path: Path, pieces: list[Piece], draft: Draft, progress: Progress | None) -> list[str]:
    drafts: list[str] = []
    stream = waves(blocks(path), pieces)
    while batch := list(islice(stream, BATCH)):
        drafts += draft(batch)
        if progress:
            progress(len(drafts), len(pieces))
    return drafts


def _lists(corpus: Corpus) -> tuple[Path, Path]:
    """(where accepted pieces are listed, where those aside are)."""
    return corpus.manifest, corpus.folder / ASIDE


def _keep(corpus: Corpus, one: Segment, wave: Wave, sound: str, fields: dict[str, str | None], accepted: bool) -> None:
    """Writes a piece's audio durably, then its row."""
    name = f"{'audio' if accepted else 'aside'}/{sound}.flac"
    row = {
        "audio_path": name,
        "text": tidy(one.text or one.draft),
        **{key: value for key, value in fields.items() if value},
        "seconds": round(len(wave) / SAMPLE_RATE, 3),
        "recording_start": round(one.piece.start, 3),
        "recording_end": round(one.piece.end, 3),
        "score": None if one.score is None else round(one.score, 3),
    }
    if not accepted:
        row |= {"draft": one.draft, "why": NO_TRANSCRIPT if one.score is None else NO_FIT}
    try:
        (corpus.folder / name).parent.mkdir(exist_ok=True)
        with corpus.lock():
            corpus.keep_audio(name, wave, SAMPLE_RATE)
            append_line(_lists(corpus)[not accepted], json.dumps(row, ensure_ascii=False))
    except OSError as error:
        what = f"{corpus.folder} cannot be written: {error.strerror}."
        raise DataError(what, "Free some space, then run it again: it goes on.") from error

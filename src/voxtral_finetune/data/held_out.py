"""Dev and test of a corpus that streams: the first rows whose texts are held out, kept on disk as a small corpus.

A share of all texts is held out; a dataset that is short gives a larger share, so that there is enough for a verdict.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from voxtral_finetune.data import hub
from voxtral_finetune.data.corpus import Corpus, Problem, Progress, Survey, Utterance
from voxtral_finetune.data.hub import GIVE_UP, HubSpec, Stream, Take
from voxtral_finetune.data.journal import Journal, journal_of
from voxtral_finetune.data.split import ENOUGH_TO_JUDGE, Split
from voxtral_finetune.data.stream import BLOCK, KNOWN, Open, Parts, Pinned, as_row, draws, open_pinned, order, spec_of
from voxtral_finetune.errors import DataError
from voxtral_finetune.settings import Settings, home

DEV, TEST = 100, 300
"""How many utterances are kept, unless --eval-count says."""

SHARES = (0.05, 0.1, 0.2, 1 / 3)
"""Of all texts, how many are held out: the first of these that gives enough."""

ENOUGH_TO_CHOOSE = 10
"""Dev utterances that are enough not to look for more."""

MOST_ROWS = 20_000
"""Rows that are read for dev and test at most: a thousand held-out ones, where texts do not repeat."""


@dataclass
class Kept:
    """What one reading found."""

    counts: Counter[str] = field(default_factory=Counter)
    audio: set[str] = field(default_factory=set)
    sample: list[Utterance] = field(default_factory=list)
    draws: list[tuple[float, float]] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    ended: bool = False


def hold_out(
    folder: Path, settings: Settings, progress: Progress, opened: Open = hub.open_stream
) -> tuple[Split, Pinned, Survey]:
    """(dev and test, with no train; what the run has to know, saved in its folder; what is wrong with their rows).

    Raises DataError where the dataset cannot be read or has nothing to test on or to learn from.
    """
    spec, seed, count = spec_of(settings), settings.training.seed, settings.data.eval_count
    wanted = {"dev": count or DEV, "test": count or TEST}
    first = opened(replace(spec, seed=order(seed, 0)))
    dev_share = wanted["dev"] / sum(wanted.values())
    parts = Parts(seed, SHARES[0], dev_share)
    corpus = Corpus.create(home() / "datasets" / _folder_name(spec, first.revision, parts, wanted))
    with journal_of(corpus) as journal:
        kept = _keep(first, spec, parts, wanted, journal, progress)
        larger = replace(parts, share=_share(kept, dev_share))
        if kept.ended and larger != parts:
            parts = larger
            again = open_pinned(replace(spec, seed=order(seed, 0)), first.revision, opened)
            kept = _keep(again, spec, parts, wanted, journal, progress)
    survey = corpus.survey()
    sets = {name: [row for row in survey.utterances if row.split == name][:most] for name, most in wanted.items()}
    if not all(sets.values()) or not kept.sample:
        lacks = "too few texts to test on" if kept.sample else "nothing to learn from"
        where = "" if kept.ended else f" in its first {MOST_ROWS} rows"
        raise DataError(f"{first.source} has {lacks}{where}.", "Leave --stream out, and give --max-hours.")
    pinned = Pinned(first.revision, first.source, parts, frozenset(kept.audio), kept.sample)
    pinned.save(folder)
    note = f"Training streams from {first.source}; no text of dev and test is in it, speakers may be shared."
    found = Survey(survey.utterances, kept.refused + survey.problems)
    return Split([], sets["dev"], sets["test"], "text", note), pinned, found


def _keep(
    stream: Stream, spec: HubSpec, parts: Parts, wanted: dict[str, int], journal: Journal, progress: Progress
) -> Kept:
    """Reads until dev and test are full and a block that teaches is known, or MOST_ROWS were read, or all."""
    kept = Kept()
    total = sum(wanted.values())
    for read, row in enumerate(stream.rows, start=1):
        problem = row if isinstance(row, Problem) else _sort(row, spec, stream, parts, wanted, journal, kept)
        if problem:
            kept.refused.append(problem)
            if len(kept.refused) == GIVE_UP and not kept.sample and not kept.audio:
                raise DataError(f"The first {GIVE_UP} rows are all refused. {problem.what}", problem.fix)
        done = sum(kept.counts.values())
        progress(min(done, total - 1), total)
        if (done == total and len(kept.sample) == BLOCK) or read == MOST_ROWS:
            return kept
    kept.ended = True
    return kept


def _sort(
    take: Take, spec: HubSpec, stream: Stream, parts: Parts, wanted: dict[str, int], journal: Journal, kept: Kept
) -> Problem | None:
    """Puts a row where it belongs; what is wrong with it, if so."""
    drawn, part = draws(parts.seed, take.text), parts.of(take.text)
    if drawn[0] < SHARES[-1]:
        kept.draws.append(drawn)
    if part == "train":
        if len(kept.sample) < BLOCK:
            row = as_row(take, spec.language, stream.source)
            if isinstance(row, Problem):
                return row
            facts = {name: getattr(row, name) for name in KNOWN}
            kept.sample.append(Utterance(row.audio, line=row.line, **facts))
        return None
    sound = hashlib.sha256(take.audio).hexdigest()
    if sound in kept.audio or kept.counts[part] == wanted[part]:
        return None
    if take.key not in journal.seconds:
        try:
            wave, rate = hub.decode_bytes(take.audio, f"Row {take.number}")
        except DataError as error:
            return Problem(take.number, stream.source, error.what, error.fix)
        about = {"source": stream.source, "licence": stream.licence, "split": part}
        journal.add(
            take.key,
            wave,
            rate,
            take.text,
            {"language": take.language or spec.language, "speaker": take.speaker, **about},
        )
    kept.audio.add(sound)
    kept.counts[part] += 1
    return None


def _share(kept: Kept, dev_share: float) -> float:
    """The smallest share that has enough for a verdict, of a dataset that was read to its end; else the largest."""

    def enough(share: float) -> bool:
        dev = sum(place < share and which < dev_share for place, which in kept.draws)
        test = sum(place < share and which >= dev_share for place, which in kept.draws)
        return test >= ENOUGH_TO_JUDGE and dev >= ENOUGH_TO_CHOOSE

    return next(filter(enough, SHARES), SHARES[-1])


def _folder_name(spec: HubSpec, revision: str, parts: Parts, wanted: dict[str, int]) -> str:
    """What was asked for is in the name: rows of one choice must not be found in the corpus of another."""
    choice = hashlib.sha256(repr((spec, revision, parts, wanted)).encode()).hexdigest()[:8]
    named = "-".join(filter(None, (spec.name, spec.config, spec.split, "held-out", choice)))
    return re.sub(r"[^A-Za-z0-9.]+", "-", named)

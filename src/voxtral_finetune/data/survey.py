"""Every file of a corpus decoded once: what can be used, what it measures, and what is wrong with the rest."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from voxtral_finetune.data import audio, measure, text_checks
from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.measure import Measures
from voxtral_finetune.data.rows import Problem, Utterance
from voxtral_finetune.errors import DataError

Progress = Callable[[int, int], None]
Result = TypeVar("Result")

THREADS = min(8, os.cpu_count() or 1)
"""Decoders at work at the same time; each holds one recording in memory."""

AT_ONCE = 256
"""Rows handed to the decoders at a time, so that results of a large corpus do not pile up."""

WORTH_PROCESSES = 500
"""Rows from which starting processes costs less than threads lose by waiting for the interpreter's lock."""


@dataclass(frozen=True)
class Survey:
    """The rows that can be used, with seconds and content hash; what each measures, in their order; what is wrong."""

    utterances: list[Utterance]
    problems: list[Problem]
    measures: list[Measures] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(row.seconds or 0 for row in self.utterances)

    @property
    def refused(self) -> list[Problem]:
        return [problem for problem in self.problems if not problem.usable]


@dataclass(frozen=True)
class Examined:
    """A row after decoding: `utterance`, `sound` and `measures` are None where it cannot be used."""

    row: Utterance
    problems: list[Problem]
    utterance: Utterance | None = None
    sound: audio.Sound | None = None
    measures: Measures | None = None


def survey(entries: Iterable[Utterance | Problem], progress: Progress | None = None) -> Survey:
    """Decodes every row once, in parallel; `progress(done, total)` is called as it goes."""
    entries = list(entries)
    rows = [entry for entry in entries if isinstance(entry, Utterance)]
    problems = [entry for entry in entries if isinstance(entry, Problem)]
    usable: list[Utterance] = []
    measures: list[Measures] = []
    for done, (_, found) in enumerate(in_processes(_without_sound, rows), start=1):
        problems += found.problems
        if found.utterance and found.measures:
            usable.append(found.utterance)
            measures.append(found.measures)
        if progress:
            progress(done, len(rows))
    problems += same_audio(usable) + languages(usable)
    return Survey(usable, sorted(problems, key=lambda problem: problem.line), measures)


def in_parallel(work: Callable[[Utterance], Result], rows: Iterable[Utterance]) -> Iterator[tuple[Utterance, Result]]:
    """(row, work(row)) in the order of the rows, a bounded number of them ahead."""
    rows = iter(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        yield from _by_chunks(pool, work, rows)


def in_processes(work: Callable[[Utterance], Result], rows: list[Utterance]) -> Iterator[tuple[Utterance, Result]]:
    """As `in_parallel`, by forked processes where there are enough rows and a fork is safe: on Linux, from one thread.

    What `work` returns is sent between processes, so it must be small.
    """
    if len(rows) < WORTH_PROCESSES or sys.platform != "linux" or threading.active_count() > 1:
        yield from in_parallel(work, rows)
        return
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(THREADS, mp_context=fork, initializer=_leave_ctrl_c_to_parent) as pool:
        yield from _by_chunks(pool, work, iter(rows), 16)


def _by_chunks(
    pool: Executor, work: Callable[[Utterance], Result], rows: Iterator[Utterance], size: int = 1
) -> Iterator[tuple[Utterance, Result]]:
    while chunk := list(islice(rows, AT_ONCE * size)):
        yield from zip(chunk, pool.map(work, chunk, chunksize=size), strict=True)


def _leave_ctrl_c_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def examine(row: Utterance) -> Examined:
    """Decodes and checks one row."""
    try:
        sound = audio.decode(row.audio, *row.span)
    except DataError as error:
        return Examined(row, [Problem(row.line, shown(row.audio), error.what, error.fix, kind="audio")])
    measures = measure.measure(sound.wave, sound.rate)
    findings = [
        *sound.findings,
        *_length(row, sound.seconds),
        *measure.findings(measures),
        *text_checks.findings(row.text, sound.seconds),
    ]
    problems = [_named(row, finding) for finding in findings]
    if not all(finding.usable for finding in findings):
        return Examined(row, problems)
    sha256 = audio.content_hash(sound.wave, sound.rate)
    # A part keeps microseconds, so that it is read again to the sample.
    seconds = round(sound.seconds, 6 if row.part else 3)
    return Examined(row, problems, replace(row, seconds=seconds, sha256=sha256), sound, measures)


def same_audio(rows: Iterable[Utterance]) -> list[Problem]:
    """A note on every row whose audio an earlier row has too, with the same text or another."""
    first: dict[str, Utterance] = {}
    problems = []
    for row in rows:
        other = first.setdefault(row.sha256 or "", row)
        if other is row:
            continue
        where = f"line {other.line} ({shown(other.audio.name)})"
        if other.text == row.text:
            finding = Finding("duplicate", f"It sounds exactly like {where}.", "Remove one of them.")
        else:
            finding = Finding("conflict", f"It sounds exactly like {where}, with another text.", "Keep the right one.")
        problems.append(_named(row, finding))
    return problems


def languages(rows: Iterable[Utterance]) -> list[Problem]:
    """One note for each language that Voxtral was not trained on, at its first row."""
    rows = list(rows)
    counts = Counter(row.language for row in rows if row.language)
    problems = []
    for code in counts:
        if finding := text_checks.language_finding(code):
            row = next(row for row in rows if row.language == code)
            count = f"{counts[code]} {'row' if counts[code] == 1 else 'rows'}: {finding.what}"
            problems.append(Problem.of(replace(finding, what=count), row.line, row.audio))
    return problems


def _without_sound(row: Utterance) -> Examined:
    return replace(examine(row), sound=None)


def _named(row: Utterance, finding: Finding) -> Problem:
    return Problem.of(replace(finding, what=f"{shown(row.audio.name)}: {finding.what}"), row.line, row.audio)


def _length(row: Utterance, seconds: float) -> list[Finding]:
    """Where the audio is not as long as the row says."""
    said = row.seconds
    if said is None or (abs(said - seconds) <= max(0.5, 0.1 * said) and not row.part):
        return []
    if not row.part:
        what = f"Its row says {said:.1f} s; {seconds:.1f} s are there."
        return [Finding("length", what, "Check that text and audio fit.")]
    if said - seconds < 0.05:
        return []
    what = f"Its row names {said:.1f} s from {row.offset:g} s; the file ends after {seconds:.1f} s of them."
    return [Finding("length", what, "Correct the row's part.", usable=seconds > 0.9 * said)]

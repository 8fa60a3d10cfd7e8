"""What an error rate hides: loops, silence, cut-off texts, lost terms, and the people who are understood worse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.evaluation.normalise import applying, normalise, units
from voxtral_finetune.evaluation.transcripts import Transcripts
from voxtral_finetune.evaluation.wer import Errors, score

REPEATED = 4
"""So many times in a row the same words are a loop, unless they were said so."""

LONGEST_LOOP = 20
"""Words; a loop of more is not looked for."""

BUCKETS = ((2, "under 2 s"), (5, "2 to 5 s"), (10, "5 to 10 s"), (30, "10 to 30 s"), (float("inf"), "30 s and more"))
"""Lengths of recordings that are scored apart: (seconds from which the next begins, name)."""

MOST_TERMS = 10_000


def behaviour(references: Sequence[str], heard: Transcripts) -> dict[str, Any]:
    """How a model behaved over a test set, rates as fractions of its utterances (None without any such).

    loop_rate     texts in which words are repeated REPEATED times or more in a row, and were not said so
    empty_rate    of those in which something was said: nothing was heard
    cap_hit_rate  texts cut off at the most that is allowed for
    speed         seconds of speech transcribed in a second (RTFx), None where it was not measured
    """
    said = [normalise(text) for text in references]
    texts = [normalise(text) for text in heard.texts]
    looped = [loops(text) and not loops(truth) for truth, text in zip(said, texts, strict=True)]
    empty = [not text for truth, text in zip(said, texts, strict=True) if truth]
    return {
        "loop_rate": _share(looped),
        "empty_rate": _share(empty),
        "cap_hit_rate": _share(heard.capped),
        "speed": heard.speed,
    }


def loops(text: str) -> bool:
    """Whether a normalised text says the same one to LONGEST_LOOP words REPEATED times or more in a row."""
    words = units(text)
    for length in range(1, min(LONGEST_LOOP, len(words) // REPEATED) + 1):
        same = (before == after for before, after in zip(words, words[length:], strict=False))
        if any(equal and len(list(run)) >= (REPEATED - 1) * length for equal, run in groupby(same)):
            return True
    return False


def slices(rows: Sequence[Utterance], counted: Mapping[str, Sequence[Errors]]) -> dict[str, list[dict[str, Any]]]:
    """The test set by speaker, length and language: {"speaker": [{"name", "utterances", "seconds", "words", "wer"}]}.

    `counted` holds the errors of each model by its name, one a row; `wer` is {model: fraction}, None where a slice has
    no word. What is not named has the name None. The largest slices come first, lengths in their order.
    """
    names = {
        "speaker": [row.speaker for row in rows],
        "seconds": [_bucket(row.seconds) for row in rows],
        "language": [row.language for row in rows],
    }
    found = {}
    for kind, keys in names.items():
        members: dict[str | None, list[int]] = {}
        for index, key in enumerate(keys):
            members.setdefault(key, []).append(index)
        made = [_slice(key, indices, rows, counted) for key, indices in members.items()]
        order = [name for _, name in BUCKETS]
        by_length = kind == "seconds"
        found[kind] = sorted(
            made, key=lambda one: order.index(one["name"]) if by_length and one["name"] else -one["utterances"]
        )
    return found


def normalised(rows: Sequence[Utterance], texts: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, float]]]:
    """Error rates under every normaliser that fits: {normaliser: {model: {"wer", "cer"}}}."""
    references = [row.text for row in rows]
    return {
        name: {model: _rates(references, heard, name) for model, heard in texts.items()}
        for name in applying(row.language for row in rows)
    }


def read_terms(path: Path) -> list[str]:
    """The terms of a text file, one a line. Raises SettingsError where it cannot be read or holds none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} cannot be read as UTF-8 text.", "Give --terms a file with a term a line."
        ) from error
    terms = [line.strip() for line in lines if normalise(line)]
    if not terms or len(terms) > MOST_TERMS:
        raise SettingsError(f"{path} holds {len(terms)} terms.", f"Write 1 to {MOST_TERMS}, one a line.")
    return terms


def recall(terms: Iterable[str], references: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """How many of the terms that were said were heard: {"said", "heard", "recall", "terms": [those of each "term"]}.

    A term is heard where its words stand in the text in a row, as often as they stand in the reference; order within
    the utterance does not matter. `recall` is None where no term was said, and terms that were not are left out.
    """
    said = [units(normalise(text)) for text in references]
    heard = [units(normalise(text)) for text in texts]
    holding: dict[str, list[int]] = {}
    for index, truth in enumerate(said):
        for word in set(truth):
            holding.setdefault(word, []).append(index)
    counts: list[dict[str, Any]] = []
    for term in dict.fromkeys(terms):
        words = units(normalise(term))
        pairs = [(_count(words, said[index]), _count(words, heard[index])) for index in holding.get(words[0], [])]
        if total := sum(there for there, _ in pairs):
            counts.append({"term": term, "said": total, "heard": sum(min(pair) for pair in pairs)})
    total, found = (sum(one[key] for one in counts) for key in ("said", "heard"))
    return {"said": total, "heard": found, "recall": found / total if total else None, "terms": counts}


def _count(words: list[str], text: list[str]) -> int:
    """How often `words` stand in `text` in a row, without overlap."""
    count = place = 0
    while place + len(words) <= len(text):
        if text[place : place + len(words)] == words:
            count, place = count + 1, place + len(words)
        else:
            place += 1
    return count


def _slice(
    name: str | None, indices: list[int], rows: Sequence[Utterance], counted: Mapping[str, Sequence[Errors]]
) -> dict[str, Any]:
    first = next(iter(counted.values()))
    words = sum(first[index].words for index in indices)
    return {
        "name": name,
        "utterances": len(indices),
        "seconds": round(sum(rows[index].seconds or 0.0 for index in indices), 3),
        "words": words,
        "wer": {
            model: sum(errors[index].errors for index in indices) / words if words else None
            for model, errors in counted.items()
        },
    }


def _rates(references: Sequence[str], texts: Sequence[str], name: str) -> dict[str, float]:
    found = score(references, texts, name)
    return {"wer": found.wer, "cer": found.cer}


def _bucket(seconds: float | None) -> str | None:
    return None if seconds is None else next(name for limit, name in BUCKETS if seconds < limit)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None

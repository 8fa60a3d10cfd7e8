"""Word and character error rates under a named normaliser, so that two numbers are comparable or visibly are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jiwer

from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.normalise import BASIC, UNSPACED, normaliser, spaced

NORMALISER = BASIC
"""What verdicts and headline numbers use."""


@dataclass(frozen=True)
class Score:
    """Errors of a whole test set: rates are pooled errors over pooled reference words (characters for `cer`).

    Rates are fractions and may pass 1. `unit` says what a word is here: "character" where most of the references'
    words are characters of scripts without spaces. An empty reference adds its hypothesis' words as insertions;
    `punctuation_only` are those of the empty references that hold signs, but no letter or digit.
    """

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    characters: int
    utterances: int
    empty_references: int
    unit: Literal["word", "character"]
    normaliser: str = NORMALISER
    punctuation_only: int = 0


@dataclass(frozen=True)
class Errors:
    """Of one utterance: wrong words of `words`, wrong characters of `characters`; over a test set they add up."""

    errors: int
    words: int
    character_errors: int
    characters: int


def score(references: Sequence[str], hypotheses: Sequence[str], name: str = NORMALISER) -> Score:
    """Scores the hypotheses of a test set, one a reference, in any script, under the normaliser of that name.

    Raises DataError where no reference has a word: there is nothing to divide by.
    """
    apply = normaliser(name)
    truths, guesses = [apply(text) for text in references], [apply(text) for text in hypotheses]
    words_of = [spaced(text) for text in truths]
    if not any(words_of):
        raise DataError("No transcript of the test set holds a word.", "Test with recordings that have transcripts.")
    words = jiwer.process_words(words_of, [spaced(text) for text in guesses])
    characters = jiwer.process_characters(truths, guesses)
    units = [unit for text in words_of for unit in text.split()]
    unspaced = sum(bool(UNSPACED.match(unit)) for unit in units)
    return Score(
        wer=words.wer,
        cer=characters.cer,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        words=len(units),
        characters=sum(map(len, truths)),
        utterances=len(truths),
        empty_references=sum(not text for text in truths),
        unit="character" if 2 * unspaced > len(units) else "word",
        normaliser=name,
        punctuation_only=sum(not truth and bool(text.strip()) for truth, text in zip(truths, references, strict=True)),
    )


def errors_of(reference: str, hypothesis: str, name: str = NORMALISER) -> Errors:
    """What one utterance adds to the `score` of its test set."""
    truth, guess = map(normaliser(name), (reference, hypothesis))
    words = jiwer.process_words([spaced(truth)], [spaced(guess)])
    characters = jiwer.process_characters([truth], [guess])
    return Errors(_wrong(words), len(words.references[0]), _wrong(characters), len(truth))


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(errors, reference words) of one utterance; over a test set they add up to what `score` pools."""
    found = errors_of(reference, hypothesis)
    return found.errors, found.words


def _wrong(output: jiwer.WordOutput | jiwer.CharacterOutput) -> int:
    return int(output.substitutions + output.deletions + output.insertions)

"""Word error rate with a named normaliser, so that two numbers are comparable or visibly are not.

A "word" is what stands between spaces. Scripts that write none (Han, Kana, Thai, Lao, Khmer, Myanmar) are counted a
character at a time instead, each with its marks; a mixed text counts both kinds, the usual mixed error rate.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import jiwer

from voxtral_finetune.errors import DataError

NORMALISER = "basic-1"
"""Name and version of `normalise`; raised with every change that can change a number."""

APOSTROPHES = "'’‘ʼʻ`´＇׳"
"""What keyboards and models write for one and the same apostrophe, in English as in Ukrainian, Uzbek or Hebrew."""

UNSPACED = re.compile(
    "["
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"  # Kana, Bopomofo
    "]"
)

DROPPED = re.compile("[\u0640\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Arabic's stretching stroke and variation selectors: they change the look of a text, not what is said."""


@dataclass(frozen=True)
class Score:
    """Errors of a whole test set: rates are pooled errors over pooled reference words (characters for `cer`).

    Rates are fractions and may pass 1. `unit` says what a word is here: "character" where most of the references'
    words are characters of scripts without spaces. An empty reference adds its hypothesis' words as insertions.
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


def normalise(text: str) -> str:
    """Lower case, no punctuation or symbols, single spaces; letters, their marks, digits and inner apostrophes stay.

    Case is folded as Unicode does it ("Straße" = "STRASSE"), and spaces next to a script that writes none are left
    out. Invisible format characters (joiners, soft hyphens, direction marks) go without leaving a space.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    text = DROPPED.sub("", text.replace("i\u0307", "i"))  # Turkish İ folds to an i with a second dot
    kept: list[str] = []
    for index, character in enumerate(text):
        kind = unicodedata.category(character)
        if character in APOSTROPHES:
            kept.append("'" if _is_inside_word(text, index) else " ")
        elif kind[0] in "LN" or (kind in ("Mn", "Mc") and kept and kept[-1] != " "):
            kept.append(character)
        elif kind not in ("Cf", "Me"):
            kept.append(" ")
    return _without_inner_spaces(" ".join("".join(kept).split()))


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Scores the hypotheses of a test set, one a reference, in any script.

    Raises DataError where no reference has a word: there is nothing to divide by.
    """
    truths, guesses = [normalise(text) for text in references], [normalise(text) for text in hypotheses]
    spaced = [_spaced(text) for text in truths]
    if not any(spaced):
        raise DataError("No transcript of the test set holds a word.", "Test with recordings that have transcripts.")
    words = jiwer.process_words(spaced, [_spaced(text) for text in guesses])
    characters = jiwer.process_characters(truths, guesses)
    units = [unit for text in spaced for unit in text.split()]
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
    )


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(errors, reference words) of one utterance; over a test set they add up to what `score` pools."""
    output = jiwer.process_words([_spaced(normalise(reference))], [_spaced(normalise(hypothesis))])
    return output.substitutions + output.deletions + output.insertions, len(output.references[0])


def _is_inside_word(text: str, index: int) -> bool:
    """Whether the character at `index` stands between two letters, digits or marks of a spaced script."""
    around = (text[index - 1 : index], text[index + 1 : index + 2])
    return all(side and unicodedata.category(side)[0] in "LNM" and not UNSPACED.match(side) for side in around)


def _without_inner_spaces(text: str) -> str:
    """Leaves out spaces beside unspaced scripts: there they are a matter of style, or once were punctuation."""
    first, *parts = text.split(" ")
    for part in parts:
        glued = first and part and (UNSPACED.match(first[-1]) or UNSPACED.match(part))
        first += part if glued else f" {part}"
    return first


def _spaced(text: str) -> str:
    """Normalised text with a space between all that counts as a word, so that jiwer can split it."""
    if not UNSPACED.search(text):
        return text
    spaced = [text[0]]
    for before, character in pairwise(text):
        starts = not unicodedata.category(character).startswith("M")  # a mark belongs to the letter before it
        if starts and (UNSPACED.match(before) or UNSPACED.match(character)):
            spaced.append(" ")
        spaced.append(character)
    return "".join(spaced)

"""Text as it is compared: named, versioned normalisers, and what a "word" is in each script.

    raw              the text as it is written: case, punctuation and all; only runs of spaces count as one
    basic            no case, punctuation or symbols; letters, their marks and digits stay, in every script
    whisper-english  OpenAI's rules for English ("colour" = "color", "ten" = "10"), by the package whisper-normalizer

A "word" is what stands between spaces. Scripts that write none (Han, Kana, Thai, Lao, Khmer, Myanmar) are counted a
character at a time instead, each with its marks; a mixed text counts both kinds, the usual mixed error rate.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise

Normaliser = Callable[[str], str]

BASIC, RAW, WHISPER_ENGLISH = "basic-1", "raw-1", "whisper-english-1"
"""Names and versions; a version is raised with every change that can change a number."""

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


def normaliser(name: str) -> Normaliser:
    """The function of a name; KeyError where there is none. The English one needs the package whisper-normalizer."""
    return {BASIC: normalise, RAW: raw, WHISPER_ENGLISH: _whisper_english}[name]


def applying(languages: Iterable[str | None]) -> list[str]:
    """The names of the normalisers that mean something for these languages, as far as they are installed."""
    english = all((language or "").lower().startswith("en") for language in languages)
    installed = importlib.util.find_spec("whisper_normalizer") is not None
    return [BASIC, RAW, *([WHISPER_ENGLISH] if english and installed else [])]


def raw(text: str) -> str:
    """The text as it is written, in Unicode's composed form and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


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


def units(text: str) -> list[str]:
    """What counts as a word of a normalised text, in order."""
    return spaced(text).split()


def joined(texts: Iterable[str]) -> str:
    """Consecutive texts as one, with a space between them unless one side is of a script that writes none."""
    whole = ""
    for text in filter(None, texts):
        glued = not whole or UNSPACED.match(whole[-1]) or UNSPACED.match(text)
        whole += text if glued else f" {text}"
    return whole


def spaced(text: str) -> str:
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


@cache
def _english() -> Normaliser:
    from whisper_normalizer.english import EnglishTextNormalizer  # an optional package

    made: Normaliser = EnglishTextNormalizer()
    return made


def _whisper_english(text: str) -> str:
    return _english()(text)


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

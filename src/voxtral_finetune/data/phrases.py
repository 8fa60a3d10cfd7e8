"""Phrases to read aloud: packs that ship with the package, one text file for each language.

A file is `assets/phrases/<pack>.<language>.txt` with a line `id<TAB>text` for each phrase; adding one adds a language.
`digits` holds every digit and every pair of digits within its first half, and 90 strings in all: so many takes give a
test set the 30 utterances that a verdict needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from voxtral_finetune.errors import DataError

FOLDER = Path(__file__).parent.parent / "assets" / "phrases"


@dataclass(frozen=True)
class Phrase:
    """Something to read; `id` is unique in its file and never given to another text."""

    id: str
    text: str


def packs() -> list[str]:
    """The names of all packs."""
    return sorted({pack for pack, _ in _files()})


def languages(pack: str) -> list[str]:
    """The languages of a pack, as two-letter codes."""
    return sorted(language for name, language in _files() if name == pack)


@cache
def phrases(pack: str, language: str) -> tuple[Phrase, ...]:
    """The phrases of a pack in the order to be read; raises DataError where there is no such pack or language."""
    path = _files().get((pack, language))
    if path is None:
        raise DataError(
            f"There are no phrases {pack!r} in the language {language!r}.",
            f"The packs are {', '.join(packs())}; {pack} has: {', '.join(languages(pack)) or 'no language'}.",
        )
    rows = (line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(Phrase(number, text) for number, text in rows)


@cache
def _files() -> dict[tuple[str, str], Path]:
    named = {path: path.name.split(".") for path in FOLDER.glob("*.*.txt")}
    return {(pack, language): path for path, (pack, language, _) in named.items()}

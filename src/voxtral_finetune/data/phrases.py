"""Phrases to read aloud: packs that ship with the package, and a person's own.

A pack is a text file for each language, `<pack>.<language>.txt`, with a line `id<TAB>text` for each phrase; it ships in
`assets/phrases` or lies in `phrases/` of the home. `digits` holds every digit and every pair of digits within its first
half; at 90 takes a test set reaches the 30 utterances that a verdict needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from voxtral_finetune.data.text_checks import tidy
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import write_durably
from voxtral_finetune.settings import home

FOLDER = Path(__file__).parent.parent / "assets" / "phrases"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

MAX_CHARACTERS = 300
"""What a person reads in half a minute; more is no phrase."""

MAX_BYTES = 10_000_000
"""A larger file of phrases is something else."""


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


def phrases(pack: str, language: str) -> tuple[Phrase, ...]:
    """The phrases of a pack in the order to be read; raises DataError where there is no such pack or language."""
    path = _files().get((pack, language))
    if path is None:
        raise DataError(
            f"There are no phrases {pack!r} in the language {language!r}.",
            f"The packs are {', '.join(packs())}; {pack} has: {', '.join(languages(pack)) or 'no language'}.",
        )
    return tuple(read(path))


def read(path: Path) -> list[Phrase]:
    """The phrases of a text file, one a line or `id<TAB>text`; ids are made where there are none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is too large for a list of phrases.", "Write one phrase a line.")
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text.", "Save the file as UTF-8.") from error
    found = [_phrase(number, line, path) for number, line in enumerate(lines, start=1)]
    if not found:
        raise DataError(f"{path} holds no phrase.", "Write one phrase a line.")
    if len({phrase.id for phrase in found}) < len(found):
        raise DataError(f"{path} gives an id to two phrases.", "Leave the ids out, or make them differ.")
    return found


def keep(pack: str, language: str, found: Iterable[Phrase]) -> Path:
    """Keeps phrases as a pack of one's own in the home, for the Studio to offer; returns its file."""
    if not NAME.fullmatch(pack) or not NAME.fullmatch(language):
        raise DataError(f"{pack!r} cannot be a pack's name.", "Use letters, digits, - and _.")
    if (FOLDER / f"{pack}.{language}.txt").exists():
        raise DataError(f"The pack {pack!r} is built in.", "Choose another name.")
    path = home() / "phrases" / f"{pack}.{language}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, "".join(f"{phrase.id}\t{phrase.text}\n" for phrase in found))
    return path


def _phrase(number: int, line: str, path: Path) -> Phrase:
    before, tab, after = line.partition("\t")
    name, text = (tidy(before), tidy(after)) if tab else (f"{number:03}", tidy(line))
    if not name or not text or len(text) > MAX_CHARACTERS:
        what = f"{path}, phrase {number}: it is empty or over {MAX_CHARACTERS} characters."
        raise DataError(what, "Write one phrase a line, or id, tab, phrase.")
    return Phrase(name, text)


def _files() -> dict[tuple[str, str], Path]:
    named = {path: path.name.split(".") for folder in (FOLDER, home() / "phrases") for path in folder.glob("*.*.txt")}
    return {(parts[0], parts[1]): path for path, parts in named.items() if len(parts) == 3}

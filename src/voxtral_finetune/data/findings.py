"""What checks say about speech or text, and names as they may be printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found: a stable `kind`, the sentence, the remedy, and whether the row is still usable."""

    kind: str
    what: str
    fix: str
    usable: bool = True


def shown(name: object) -> str:
    """A name on one line of any terminal: line ends, escapes, text direction marks and lone surrogates are spelled."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(name))

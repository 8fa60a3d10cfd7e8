"""Text as it is kept, and what is doubtful about it. Pure functions; case and punctuation always stay."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import pycountry

from voxtral_finetune.data.findings import Finding

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Soft hyphens, zero-width spaces, text direction and tag characters. The zero-width joiner and non-joiner are not
among them: Hindi, Persian and Malayalam are spelled with them."""

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
"""Control characters that are no white space."""

MODEL_LANGUAGES = frozenset({"en", "es", "fr", "pt", "hi", "de", "nl", "it"})
"""What Voxtral was trained to transcribe (model card of Voxtral-Mini-3B-2507)."""

MAX_CHARACTERS_PER_SECOND = 40
"""Twice what the fastest speakers of any alphabet reach; more text cannot be in that much audio."""

SPARE_CHARACTERS = 20
"""Allowed on top, so that a short word in a tightly cut take is never too long."""

LOOK_ALIKES = re.compile(
    r"</?s>|\[/?(?:INST|AUDIO|BEGIN_AUDIO|TRANSCRIBE|AVAILABLE_TOOLS|TOOL_CALLS|SYSTEM_PROMPT)\]"
    r"|<\|[^|<>]{1,40}\|>|<(?:pad|unk)>|\blang:[a-z]{2}\b"
)
"""Spellings of control tokens of Voxtral, Mistral's tokenizer and Whisper."""


def tidy(text: str) -> str:
    """Text as it is kept: Unicode NFC, single spaces, nothing invisible; case and punctuation stay."""
    text = CONTROL.sub("", INVISIBLE.sub("", text))
    return " ".join(unicodedata.normalize("NFC", text).split())


def refusal(text: str) -> Finding | None:
    """Why a text as it was written cannot be tidied into a transcript, if so."""
    if "\ufffd" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        return Finding("encoding", "Its text is not UTF-8.", "Save the file as UTF-8.", usable=False)
    if "\x1b" in text:
        # Without the control character the rest of the sequence ("[31m") would be left and be learned.
        what = "Its text holds terminal control sequences."
        return Finding("text", what, "Write only what is said.", usable=False)
    return None


def findings(text: str, seconds: float) -> list[Finding]:
    """What is wrong or doubtful about tidied text that is said in that many seconds."""
    found = []
    if not any(sign.isalnum() for sign in text):
        what = "Its text holds no letter and no digit."
        found.append(Finding("text", what, "Write what is said in it or remove the row.", usable=False))
    if len(text) > MAX_CHARACTERS_PER_SECOND * seconds + SPARE_CHARACTERS:
        what = f"Its text has {len(text)} characters for {seconds:.1f} s, more than anyone can say."
        found.append(Finding("text too long", what, "Correct the text, or cut text and audio into parts.", False))
    if match := LOOK_ALIKES.search(text):
        what = f"Its text holds {match.group()}, which looks like a control token; it is learned letter by letter."
        found.append(Finding("control token", what, "Remove it where it is not said."))
    return found


@lru_cache(1024)
def language_code(language: str) -> str:
    """A language in any usual form ("EN", "en-US", "eng", "English") as its two-letter code, else in lower case."""
    name = language.strip().replace("_", "-").split("-")[0].lower()
    known = pycountry.languages.get(alpha_2=name) or pycountry.languages.get(alpha_3=name)
    if known is None and len(name) > 3:  # not shorter names: a language of Vietnam is called En
        known = pycountry.languages.get(name=name.title())
    return str(getattr(known, "alpha_2", known.alpha_3)) if known else name


def language_finding(code: str) -> Finding | None:
    """What to know before teaching Voxtral a language, by `language_code`."""
    if code in MODEL_LANGUAGES:
        return None
    if len(code) == 2 and pycountry.languages.get(alpha_2=code):
        what = f"The language {code} is not one that Voxtral was trained on."
        return Finding("language", what, "It can be learned, from more recordings.")
    what = f"{code!r} is no language with a two-letter code; Voxtral will have to detect it."
    return Finding("language", what, "Check the code.")

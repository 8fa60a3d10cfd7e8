"""What is doubtful about texts beside their speech and beside each other; every finding here is a note, no refusal."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from voxtral_finetune.data.findings import Finding, shown
from voxtral_finetune.data.measure import Measures
from voxtral_finetune.data.rows import Problem, Utterance
from voxtral_finetune.data.text_checks import MODEL_LANGUAGES

PACE = (3.0, 25.0)
"""Characters a second of an alphabet, slowest and fastest. People say 4.3 to 9.1 syllables a second, whatever the
language (Coupé et al. 2019, Science Advances), of two or three letters each; with pauses, fewer."""

SYLLABIC_PACE = (1.0, 12.0)
SYLLABIC = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "ETHIOPIC"})
"""Scripts in which a character is about a syllable."""

SPARE_CHARACTERS = 10
STEADY_SECONDS = 2.0
"""Shorter takes say too little about the pace of their speaker."""

MANY_TIMES, MANY_SHARE = 10, 0.02
"""A text counts as said very often from so many rows and this share of all rows; prompts are usually read by several
people, so fewer are no sign of a mistake."""

MOST_NAMED = 10
TOKENS_SAMPLED = 200
COSTLY_TOKENS = 1.0
"""Tokens a character from which a script is spelled from bytes; English takes 0.2 to 0.3."""

ORDER = {"train": 0, None: 0, "dev": 1, "test": 2}
"""Where a row is heard first; rows without a split are learned from."""

LANGUAGES_OF = {
    "LATIN": "en de fr es pt it nl sv da no nb nn fi is pl cs sk sl hr hu ro et lv lt sq ca eu gl ga cy mt tr id ms vi"
    " tl sw so yo ig zu xh af eo la lb br oc",
    "CYRILLIC": "ru uk be bg mk ky tg",
    "ARABIC": "ar fa ur ps",
    "HEBREW": "he yi",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "bn as",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "MALAYALAM": "ml",
    "GUJARATI": "gu",
    "SINHALA": "si",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "ETHIOPIC": "am ti",
    "GREEK": "el",
    "CJK": "zh yue ja",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
}
"""Scripts, by the first word of their letters' Unicode names, and languages written in no other; languages with several
(Serbian, Kazakh, Uzbek, Punjabi) are left out."""

SCRIPTS = {
    code: frozenset(script for script, codes in LANGUAGES_OF.items() if code in codes.split())
    for code in " ".join(LANGUAGES_OF.values()).split()
}


def doubts(rows: list[Utterance], measures: list[Measures]) -> list[Problem]:
    """Everything doubtful about the texts of usable rows, which measure so; line 0 is about the corpus as a whole."""
    problems = []
    for row, sound in zip(rows, measures, strict=True):
        found = [*pace(row.text, sound), *letters(row.text), *foreign_script(row.text, row.language)]
        problems += [_of(row, finding) for finding in found]
    return problems + leaks(rows) + often(rows)


def pace(text: str, measures: Measures) -> list[Finding]:
    """Where a text is far too long for its speech, or far too short for what is not silence in it."""
    low, high = SYLLABIC_PACE if script(text) in SYLLABIC else PACE
    spoken = measures.seconds * (1 - measures.silence_share)
    if len(text) > high * measures.seconds + SPARE_CHARACTERS:
        what = f"{len(text) / measures.seconds:.0f} characters a second are faster than people speak."
        return [Finding("fast", what, "Check that the audio is not cut off and that the text is its own.")]
    if spoken >= STEADY_SECONDS and len(text) < low * spoken:
        what = f"{len(text)} characters for {spoken:.1f} s of sound: some of what is said may be missing."
        return [Finding("slow", what, "Listen to it and complete the text.")]
    return []


def letters(text: str) -> list[Finding]:
    """Where a text is damaged, or holds figures or signs only."""
    if damaged := mojibake(text):
        what = f"Its text holds {damaged!r}: UTF-8 that was read as another encoding."
        return [Finding("mojibake", what, "Export the text again as UTF-8.")]
    if any(sign.isalpha() for sign in text):
        return []
    if any(sign.isnumeric() for sign in text):
        return [Finding("digits", "Its text holds figures only.", "Write numbers as they are said.")]
    return [Finding("no words", "Its text holds no letter.", "Write what is said, or remove the row.")]


def foreign_script(text: str, language: str | None) -> list[Finding]:
    """Where most letters are of a script in which the language is not written."""
    expected = SCRIPTS.get(language or "")
    counts = _scripts(text)
    if not expected or sum(counts.values()) < 3 or 2 * sum(counts[name] for name in expected) >= sum(counts.values()):
        return []
    what = f"Its language is {language}, but its letters are {counts.most_common(1)[0][0].capitalize()}."
    return [Finding("script", what, "Correct the language, or write the text in the script of the language.")]


def leaks(rows: list[Utterance]) -> list[Problem]:
    """Rows named dev or test whose sound, or else text, is in an earlier set too."""
    if not any(ORDER[row.split] for row in rows):
        return []
    sounds: dict[str, Utterance] = {}
    texts: dict[str, Utterance] = {}
    problems = []
    for row in sorted(rows, key=lambda row: ORDER[row.split]):
        sound, text = sounds.setdefault(row.sha256 or row.id, row), texts.setdefault(plain(row.text), row)
        if ORDER[sound.split] < ORDER[row.split]:
            what = f"It is in {row.split} and in {_place(sound)}: the same sound."
            finding = Finding("leak", what, "Remove one: a test on what was learned by heart proves nothing.")
        elif ORDER[text.split] < ORDER[row.split]:
            what = f"Its text is in {row.split} and in {_place(text)}."
            finding = Finding("text leak", what, "Test with other sentences where there are enough.")
        else:
            continue
        problems.append(_of(row, finding))
    return problems


def often(rows: list[Utterance]) -> list[Problem]:
    """The texts that very many rows have, most frequent first, as notes on the corpus."""
    counts = Counter(plain(row.text) for row in rows)
    least = max(MANY_TIMES, MANY_SHARE * len(rows))
    texts = [(text, count) for text, count in counts.most_common(MOST_NAMED) if text and count >= least]
    fix = "Record other sentences: a model learns what is said often, and expects it."
    return [Problem.of(Finding("same text", f"{n} rows say {shown(text)[:60]!r}.", fix), 0, "") for text, n in texts]


def costs(rows: list[Utterance]) -> dict[str, float]:
    """Tokens a character in Voxtral's vocabulary, from a sample, for each language that it was not trained on."""
    samples: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.language and row.language not in MODEL_LANGUAGES and len(samples[row.language]) < TOKENS_SAMPLED:
            samples[row.language].append(row.text)
    return {code: round(tokens_per_character(texts), 2) for code, texts in samples.items()}


def cost_findings(tokens: dict[str, float]) -> list[Problem]:
    """A note for each language whose script is spelled from bytes."""
    fix = "It can be learned, from more recordings and in more steps; long texts fill the model's window sooner."
    return [
        Problem.of(Finding("tokens", f"A character of {code} takes {count:g} tokens, of English 0.3.", fix), 0, "")
        for code, count in tokens.items()
        if count >= COSTLY_TOKENS
    ]


def tokens_per_character(texts: Iterable[str]) -> float:
    """Average over all characters; the texts must hold at least one."""
    counts = [(len(_tekken().encode(text, bos=False, eos=False)), len(text)) for text in texts]
    return sum(tokens for tokens, _ in counts) / sum(characters for _, characters in counts)


def mojibake(text: str) -> str | None:
    """The first piece of a text that is UTF-8 read as Windows-1252, or most of it where it was read as Windows-1251."""
    for match in _LATIN_MOJIBAKE.finditer(text):
        if any(sign not in _PUNCTUATION for sign in match.group()[1:]):
            return match.group()
    if "Р" in text or "С" in text:  # with what a Cyrillic letter in UTF-8 starts, read as Windows-1251
        try:
            if text.encode("cp1251").decode("utf-8") != text:
                return text[:20]
        except ValueError:
            pass  # Cyrillic that is meant: its letters side by side are no UTF-8
    return None


def script(text: str) -> str | None:
    """The script of most letters, as Unicode names it; None without letters."""
    counts = _scripts(text)
    return counts.most_common(1)[0][0] if counts else None


def plain(text: str) -> str:
    """Words alone, as `split` compares texts."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _scripts(text: str) -> Counter[str]:
    """Letters by script."""
    counts: Counter[str] = Counter()
    for sign, count in Counter(text).items():
        if sign.isalpha():
            counts[_script(sign)] += count
    return counts


@lru_cache(65_536)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]


@lru_cache(1)
def _tekken() -> Any:
    """Voxtral's vocabulary; it takes a second to load, so only where it is asked for."""
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    return Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")


def _signs(first: int, last: int) -> str:
    """A character class of what these bytes are in Windows-1252, which leaves five of them out."""
    return "[" + re.escape(bytes(range(first, last + 1)).decode("cp1252", errors="ignore")) + "]"


_LATIN_MOJIBAKE = re.compile(
    "{two}{rest}|{three}{rest}{{2}}|{four}{rest}{{3}}".format(
        two=_signs(0xC2, 0xDF), three=_signs(0xE0, 0xEF), four=_signs(0xF0, 0xF4), rest=_signs(0x80, 0xBF)
    )
)
_PUNCTUATION = frozenset("«»‹›“”„‘’‚…–—")
"""Signs that also follow a letter that is meant, as in CAFÉ»."""


def _place(row: Utterance) -> str:
    return f"{row.split or 'train'} (line {row.line}, {shown(row.audio.name)})"


def _of(row: Utterance, finding: Finding) -> Problem:
    what = f"{shown(row.audio.name)}: {finding.what}"
    return Problem(row.line, shown(row.audio), what, finding.fix, finding.usable, finding.kind)

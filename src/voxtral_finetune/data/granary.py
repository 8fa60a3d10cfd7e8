"""NVIDIA Granary: 25 European languages of speech with texts that were made by models.

Granary itself (`nvidia/Granary`) is text only: JSONL files `<code>/<corpus>/<code>_asr*.jsonl`, whose rows name audio
that other projects hold. Audio and text together are `espnet/yodas-granary`: Parquet, a config for each language by its
English name, the split `asr_only`. docs/datasets.md says what of this was verified, and how.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtral_finetune.data.hub import HubSpec
from voxtral_finetune.data.hub_errors import hub_errors
from voxtral_finetune.data.phrases import Phrase
from voxtral_finetune.errors import DataError
from voxtral_finetune.run import write_durably
from voxtral_finetune.settings import home

AUDIO = "espnet/yodas-granary"
TEXTS = "nvidia/Granary"
CORPORA = ("voxpopuli", "ytc", "yodas")
"""Parliament, YouTube-Commons, YODAS (YouTube); for reading aloud the earlier are better: whole sentences first."""

CREDIT = "NVIDIA Granary, arXiv:2505.13404; audio: YODAS, arXiv:2406.00899; pseudo-labels"
NOTICE = (
    "The texts of Granary are pseudo-labels: Whisper large-v3 wrote them, a language model restored their punctuation, "
    "and no person checked them. Learn from them, but test on speech that people transcribed."
)

READ_BYTES = 2**18
"""How much of a text file is read for phrases: about 1200 rows of 220 bytes."""

PER_SOURCE = 20
"""At most so many phrases from one recording, so that its subject does not fill the list."""

MAX_CHARACTERS_A_SECOND = 30
"""Faster than anybody speaks: a text that the recording does not hold."""

WEB = re.compile(r"https?:|www\.|@\w|\w\.(com|org|net|eu)\b", re.IGNORECASE)
MARKS = re.compile(r"[\[\](){}<>|*#_=♪]")


@dataclass(frozen=True)
class Language:
    """A language of Granary: its English name, and whether audio and text come together."""

    name: str
    audio: bool = True


LANGUAGES = {
    "bg": Language("Bulgarian"),
    "cs": Language("Czech"),
    "da": Language("Danish"),
    "de": Language("German"),
    "el": Language("Greek"),
    "en": Language("English"),
    "es": Language("Spanish"),
    "et": Language("Estonian"),
    "fi": Language("Finnish"),
    "fr": Language("French"),
    "hr": Language("Croatian"),
    "hu": Language("Hungarian"),
    "it": Language("Italian"),
    "lt": Language("Lithuanian"),
    "lv": Language("Latvian"),
    "mt": Language("Maltese", audio=False),
    "nl": Language("Dutch"),
    "pl": Language("Polish"),
    "pt": Language("Portuguese"),
    "ro": Language("Romanian"),
    "ru": Language("Russian"),
    "sk": Language("Slovak"),
    "sl": Language("Slovenian", audio=False),
    "sv": Language("Swedish"),
    "uk": Language("Ukrainian"),
}
"""By two-letter code."""


def spec(
    language: str,
    corpus: str = "yodas",
    max_hours: float | None = None,
    seed: int | None = None,
    revision: str | None = None,
) -> HubSpec:
    """What to import for `--granary LANGUAGE`; raises DataError where that has texts but no audio beside them."""
    known = _language(language)
    if corpus != "yodas":
        what = f"Granary's {corpus} is texts without audio."
        raise DataError(what, "Take --corpus yodas, or import the recordings' own dataset with --dataset-name.")
    if not known.audio:
        with_audio = ", ".join(code for code, each in LANGUAGES.items() if each.audio)
        raise DataError(f"Granary has {known.name} texts, but no audio with them.", f"It has audio for: {with_audio}.")
    return HubSpec(
        AUDIO,
        config=known.name,
        split="asr_only",
        revision=revision,
        audio_column="audio",
        text_column="text",
        language=language,
        max_hours=max_hours,
        seed=seed,
        credit=CREDIT,
        keep=fit_to_learn,
    )


def fit_to_learn(text: str, seconds: float) -> bool:
    """Whether a recording is worth learning from: 0.5 to 30 s, words and no markup, not faster than speech."""
    return 0.5 <= seconds <= 30 and len(text) <= MAX_CHARACTERS_A_SECOND * seconds and _words_only(text)


def fit_to_read(text: str, seconds: float) -> bool:
    """Whether a text is one to read aloud: 20 to 160 characters that took 2 to 12 s, words and no markup."""
    return 2 <= seconds <= 12 and 20 <= len(text) <= 160 and _words_only(text)


def phrases_from_granary(language: str, count: int, seed: int) -> list[Phrase]:
    """Up to `count` texts of Granary to read aloud, sampled by `seed`: the same again each time.

    One range of READ_BYTES is read from the Hub and what is fit to read is kept under the home, so that later calls
    need no network. Raises DataError without either, naming what to use instead.
    """
    _language(language)
    path = home() / "datasets" / ".phrases" / f"granary.{language}.json"
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))["texts"]
    except FileNotFoundError:
        texts = _fetch(language, path)
    chosen = random.Random(seed).sample(texts, min(count, len(texts)))
    return [Phrase("granary-" + hashlib.sha256(text.encode()).hexdigest()[:12], text) for text in chosen]


def _fetch(language: str, path: Path) -> list[str]:
    """Texts from the Hub, kept at `path` with where they are from."""
    try:
        revision, corpus, rows = _read(language)
    except DataError as error:
        raise DataError(error.what, f"{error.fix} Built-in phrases need no network.") from error
    texts = _fit(rows)
    if not texts:
        raise DataError(f"Granary has no {language} text fit to read aloud there.", "Use the built-in phrases.")
    kept = {"dataset": TEXTS, "revision": revision, "corpus": corpus, "licence": "cc-by-4.0", "notice": NOTICE}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps({**kept, "texts": texts}, ensure_ascii=False, indent=0) + "\n")
    return texts


def _read(language: str) -> tuple[str, str, list[dict[str, Any]]]:
    """(commit, corpus, some rows) from the first corpus that has the language."""
    from huggingface_hub import HfApi, HfFileSystem

    with hub_errors(TEXTS):
        revision = str(HfApi().dataset_info(TEXTS).sha)
        files = HfFileSystem()
        for corpus in CORPORA:
            found = files.glob(f"datasets/{TEXTS}@{revision}/{language}/{corpus}/{language}_asr*.jsonl")
            if found:
                with files.open(sorted(found)[0], "rb", block_size=READ_BYTES, cache_type="none") as file:
                    return revision, corpus, _parsed(file.read(READ_BYTES))
    raise DataError(f"{TEXTS} has no {language} file where this version looks.", "Update voxtral-finetune.")


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """The whole rows of a piece of JSONL; its last line is cut off in the middle, or empty."""
    return [json.loads(line) for line in data.split(b"\n")[:-1] if line.strip()]


def _fit(rows: list[dict[str, Any]]) -> list[str]:
    """The texts of rows to read aloud, each once and not too many from one recording."""
    heard: Counter[str] = Counter()
    texts: dict[str, None] = {}
    for row in rows:
        text, seconds = " ".join(str(row.get("text") or "").split()), float(row.get("duration") or 0)
        source = str(row.get("original_source_id") or row.get("utt_id"))
        if text not in texts and heard[source] < PER_SOURCE and fit_to_read(text, seconds):
            heard[source] += 1
            texts[text] = None
    return list(texts)


def _words_only(text: str) -> bool:
    """At least 70 % letters beside spaces, and neither addresses nor brackets and marks of captions."""
    letters = sum(character.isalpha() for character in text)
    visible = sum(not character.isspace() for character in text)
    return visible > 0 and letters >= 0.7 * visible and not WEB.search(text) and not MARKS.search(text)


def _language(code: str) -> Language:
    if code not in LANGUAGES:
        raise DataError(f"Granary has no language {code!r}.", f"It has: {', '.join(LANGUAGES)}.")
    return LANGUAGES[code]

"""Phrase packs: what ships, and that it can be read and taught."""

import re
import subprocess
import sys
import unicodedata
from itertools import pairwise

import pytest

from voxtral_finetune.data import granary
from voxtral_finetune.data import phrases as pack
from voxtral_finetune.data.corpus import tidy
from voxtral_finetune.data.phrases import languages, packs, phrases
from voxtral_finetune.errors import DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EVERY = [(name, language) for name in packs() for language in languages(name)]


SCRIPTS = {"bg": "CYRILLIC", "ru": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK", "hi": "DEVANAGARI"}


def test_the_packs_that_ship():
    assert packs() == ["digits", "everyday"]
    assert languages("digits") == ["en"]
    assert set(languages("everyday")) == {*granary.LANGUAGES, "hi"}


@pytest.mark.parametrize(("name", "language"), EVERY)
def test_every_phrase_has_its_own_id_and_text_and_is_tidy(name, language):
    rows = phrases(name, language)
    assert len(rows) >= (90 if name == "digits" else 100)
    assert len({row.id for row in rows}) == len({row.text.casefold() for row in rows}) == len(rows)
    assert all(row.id and row.text == tidy(row.text) for row in rows)


@pytest.mark.parametrize("language", languages("everyday"))
def test_everyday_sentences_can_be_read_in_the_right_script_in_three_to_twelve_seconds(language):
    for row in phrases("everyday", language):
        assert 35 <= len(row.text) <= 150, row
        assert not re.search(r"[\d<>\[\]{}_|\\@#]", row.text), row
        letters = [unicodedata.name(sign) for sign in row.text if unicodedata.category(sign)[0] in "LM"]
        assert all(name.startswith((SCRIPTS.get(language, "LATIN"), "COMBINING")) for name in letters), row


def test_no_list_is_a_translation_with_the_same_opening_words():
    for language in languages("everyday"):
        openings = [tuple(row.text.split()[:3]) for row in phrases("everyday", language)]
        assert len(set(openings)) == len(openings), language


def test_the_packs_say_under_which_licence_they_are():
    assert "Apache-2.0" in (pack.FOLDER / "README.md").read_text(encoding="utf-8")


def test_a_file_of_ones_own_is_a_pack(tmp_path, home):
    source = tmp_path / "terms.txt"
    source.write_text("\ufeffacetylsalicylic acid\n\n  Grüß\u200b Gott \n", encoding="utf-8")
    pack.keep("terms", "de", pack.read(source))
    assert "terms" in packs()
    assert [row.text for row in phrases("terms", "de")] == ["acetylsalicylic acid", "Grüß Gott"]
    source.write_text("a\tone\nb\ttwo\n", encoding="utf-8")
    assert [row.id for row in pack.read(source)] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no phrase"), (b"a\tone\na\ttwo", "two phrases"), (b"\xff\xfe", "not UTF-8"), (b"x" * 400, "phrase 1")],
)
def test_a_file_that_is_no_pack_is_refused(tmp_path, content, said):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        pack.read(tmp_path / "p.txt")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "x.y"])
def test_a_pack_cannot_be_kept_elsewhere(name):
    with pytest.raises(DataError, match="cannot be a pack's name"):
        pack.keep(name, "en", [])
    with pytest.raises(DataError, match="built in"):
        pack.keep("everyday", "en", [])


def test_digits_cover_each_digit_and_each_pair_early_and_give_a_verdict():
    strings = [row.text.split() for row in phrases("digits", "en")]
    assert all(1 <= len(words) <= 5 and set(words) <= set(WORDS) for words in strings)
    first = strings[:60]
    assert {words[0] for words in first if len(words) == 1} == set(WORDS)
    assert {pair for words in first for pair in pairwise(words)} == {(a, b) for a in WORDS for b in WORDS}
    assert len(strings) == 90


def test_unknown_pack_or_language_says_what_there_is():
    with pytest.raises(DataError, match="digits, everyday"):
        phrases("nothing", "en")
    with pytest.raises(DataError, match="digits has: en"):
        phrases("digits", "fr")
    with pytest.raises(DataError):
        phrases("../digits", "en")


def test_phrases_import_no_torch():
    code = "import sys, voxtral_finetune.data.phrases; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

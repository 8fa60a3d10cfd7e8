"""Phrase packs: what ships, and that it can be read and taught."""

import subprocess
import sys
from itertools import pairwise

import pytest

from voxtral_finetune.data import phrases as pack
from voxtral_finetune.data.corpus import tidy
from voxtral_finetune.data.phrases import languages, packs, phrases
from voxtral_finetune.errors import DataError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EVERY = [(name, language) for name in packs() for language in languages(name)]


def test_the_packs_that_ship():
    assert packs() == ["digits", "everyday"]
    assert languages("digits") == ["en"]
    assert set(languages("everyday")) >= {"en", "fr", "de", "es", "it", "pt", "nl", "hi"}


@pytest.mark.parametrize(("name", "language"), EVERY)
def test_every_phrase_has_its_own_id_and_text_and_is_tidy(name, language):
    rows = phrases(name, language)
    assert len(rows) >= 40
    assert len({row.id for row in rows}) == len({row.text for row in rows}) == len(rows)
    assert all(row.id and row.text == tidy(row.text) for row in rows)


@pytest.mark.parametrize("language", languages("everyday"))
def test_everyday_sentences_take_three_to_eight_seconds(language):
    for row in phrases("everyday", language):
        assert 30 <= len(row.text) <= 130, row


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


def test_a_new_file_is_a_new_language(tmp_path, monkeypatch):
    (tmp_path / "everyday.xx.txt").write_text("01\tone phrase\n02\tanother\twith a tab\n", encoding="utf-8")
    monkeypatch.setattr(pack, "FOLDER", tmp_path)
    pack._files.cache_clear()
    phrases.cache_clear()
    try:
        assert languages("everyday") == ["xx"]
        assert phrases("everyday", "xx")[1].text == "another\twith a tab"
    finally:
        monkeypatch.undo()
        pack._files.cache_clear()
        phrases.cache_clear()


def test_phrases_import_no_torch():
    code = "import sys, voxtral_finetune.data.phrases; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

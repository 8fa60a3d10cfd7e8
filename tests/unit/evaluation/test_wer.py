"""Word error rate: hand-computed tables, in the scripts that break naive scorers."""

import pytest

from voxtral_finetune.errors import DataError
from voxtral_finetune.evaluation.normalise import RAW, normalise
from voxtral_finetune.evaluation.wer import NORMALISER, errors_of, score, word_errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  World!\n", "hello world"),
        ("rock 'n' roll: don’t, l'homme, 'quoted'", "rock n roll don't l'homme quoted"),
        ("Straße STRASSE ΟΔΟΣ οδός", "strasse strasse οδοσ οδόσ"),
        ("İstanbul", "istanbul"),
        ("cafe\u0301 CAFÉ", "café café"),
        ("o‘zbek м’ята п'ять", "o'zbek м'ята п'ять"),
        ("3.5 % x_y e-mail", "3 5 x y e mail"),
        ("हिन्दी में, क्या? बात।", "हिन्दी में क्या बात"),
        ("مَرْحَبًا، يا عـــالم!", "مَرْحَبًا يا عالم"),
        ("می\u200cخواهم", "میخواهم"),
        ("soft\u00adhyphen \u200fright", "softhyphen right"),
        ("你好，世界。", "你好世界"),
        ("我 love 你！", "我love你"),
        ("カタカナー です", "カタカナーです"),
        ("กำลัง ไป", "กำลังไป"),
        ("한국어 텍스트", "한국어 텍스트"),
        ("❤️ 1️⃣ 👍🏽 ok", "1 ok"),
        ("… ?! —", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected, "normalising twice changes nothing"


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("the cat sat", "the cat sat", (0, 3)),
        ("the cat sat", "The hat sat down.", (2, 3)),
        ("the cat sat", "", (3, 3)),
        ("", "hello there", (2, 0)),
        ("...", "!", (0, 0)),
        ("वह घर गया", "वह घर गयी", (1, 3)),
        ("今天天气好", "今天，天汽好。", (1, 5)),
        ("我 love 你", "我love他", (1, 3)),
        ("กิน ข้าว", "กินข้าว", (0, 5)),  # five letters; the vowel and tone marks belong to them
        ("กิน", "กน", (1, 2)),
    ],
)
def test_word_errors(reference: str, hypothesis: str, expected: tuple[int, int]) -> None:
    assert word_errors(reference, hypothesis) == expected


def test_errors_are_pooled_over_the_corpus_and_split_by_kind() -> None:
    # substitution cat→hat; deletion of "down"; insertions "oh" and, on the empty reference, "well well"
    found = score(["the cat sat", "sit down", "dear", ""], ["the hat sat", "sit", "oh dear", "well well"])
    assert (found.substitutions, found.deletions, found.insertions, found.words) == (1, 1, 3, 6)
    assert found.wer == pytest.approx(5 / 6)
    # characters: c→h (1), " down" (5), "oh " (3), "well well" (9); references have 11 + 8 + 4
    assert found.characters == 23
    assert found.cer == pytest.approx(18 / 23)
    assert (found.utterances, found.empty_references, found.unit, found.normaliser) == (4, 1, "word", NORMALISER)


@pytest.mark.parametrize(
    ("references", "hypotheses", "unit", "errors", "words", "character_errors", "characters"),
    [
        # Chinese: 2 wrong of 9 characters; punctuation and the space count nothing
        (["今天天气好。", "你好，世界"], ["今天 天汽好", "你好世界啊"], "character", 2, 9, 2, 9),
        # Japanese: カ→ガ is one letter; です is missing
        (["カタカナです"], ["ガタカナ"], "character", 3, 6, 3, 6),
        # Cantonese
        (["我哋去食飯"], ["我地去食飯"], "character", 1, 5, 1, 5),
        # Thai: 5 consonants and letters (marks belong to them); one tone mark missing makes one letter wrong,
        # and one code point of 7
        (["กินข้าว"], ["กินขาว"], "character", 1, 5, 1, 7),
        # Hindi: words by spaces; गयी for गया is one word, one sign of 13 (spaces count in CER, "।" does not)
        (["वह घर गया है।"], ["वह घर गयी है"], "word", 1, 4, 1, 12),
        # Arabic with vowel signs: one word, one sign; the stretched letter is no difference
        (["مَرْحَبًا يا عـــالم"], ["مَرْحَبَا يا عالم"], "word", 1, 3, 1, 17),
        # nothing said, or only signs: what is heard there is inserted
        (["yes", "", "…!", "  "], ["yes", "uh huh", "", "oh"], "word", 3, 1, 8, 3),
    ],
    ids=["zh", "ja", "yue", "th", "hi", "ar", "empty"],
)
def test_hand_computed_tables(
    references: list[str],
    hypotheses: list[str],
    unit: str,
    errors: int,
    words: int,
    character_errors: int,
    characters: int,
) -> None:
    found = score(references, hypotheses)
    assert (found.unit, found.words, found.characters) == (unit, words, characters)
    assert found.substitutions + found.deletions + found.insertions == errors
    assert (found.wer, found.cer) == (pytest.approx(errors / words), pytest.approx(character_errors / characters))
    each = [errors_of(*pair) for pair in zip(references, hypotheses, strict=True)]
    assert sum(one.errors for one in each) == errors and sum(one.words for one in each) == words
    assert sum(one.character_errors for one in each) == character_errors


def test_empty_and_punctuation_only_references_are_counted() -> None:
    found = score(["yes", "", "…!", "  "], ["yes", "", "", ""])
    assert (found.empty_references, found.punctuation_only, found.wer) == (3, 1, 0)


def test_the_raw_normaliser_counts_case_and_punctuation() -> None:
    found = score(["Hello,  world!"], ["hello, world!"], RAW)
    assert (found.wer, found.cer, found.normaliser) == (0.5, pytest.approx(1 / 13), "raw-1")
    with pytest.raises(KeyError):
        score(["a"], ["a"], "nobody's")


def test_scripts_without_spaces_are_scored_by_character_and_say_so() -> None:
    found = score(["今天天气好", "ok"], ["今天天汽好", "ok"])
    assert (found.unit, found.words, found.wer) == ("character", 6, pytest.approx(1 / 6))
    assert score(["a plain sentence with 好"], ["a plain sentence with 好"]).unit == "word"


def test_utterances_add_up_to_the_corpus() -> None:
    references = ["the cat sat", "", "我 love 你", "वह घर गया", "?"]
    hypotheses = ["cat sat there", "uh", "我们 love", "वह घर", "!"]
    errors, words = zip(*map(word_errors, references, hypotheses), strict=True)
    found = score(references, hypotheses)
    assert (sum(errors), sum(words)) == (found.substitutions + found.deletions + found.insertions, found.words)


@pytest.mark.parametrize("references", [[], [""], ["...", "!"]])
def test_a_corpus_without_words_is_an_error(references: list[str]) -> None:
    with pytest.raises(DataError, match="holds a word"):
        score(references, ["x" for _ in references])


def test_as_many_hypotheses_as_references() -> None:
    with pytest.raises(ValueError, match="length"):
        score(["a", "b"], ["a"])

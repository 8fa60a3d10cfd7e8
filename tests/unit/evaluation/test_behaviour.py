"""What an error rate hides: hand-made texts that loop, stay empty, are cut off, or lose a term."""

from pathlib import Path

import pytest

from voxtral_finetune.data.rows import Utterance
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.evaluation.behaviour import behaviour, loops, normalised, read_terms, recall, slices
from voxtral_finetune.evaluation.normalise import WHISPER_ENGLISH, applying, joined, normaliser
from voxtral_finetune.evaluation.transcripts import Heard, Spoken, Transcripts
from voxtral_finetune.evaluation.wer import errors_of


def heard(texts: list[str], capped: list[bool] | None = None, took: float = 2.0) -> Transcripts:
    return Transcripts(texts, capped or [False] * len(texts), 10.0, took, "f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no", False),
        ("no no no no", True),
        ("so i said thank you thank you thank you thank you and left", True),
        ("thank you thank you thank you and thank you", False),
        ("a b a b a b a", False),
        ("a b a b a b a b", True),
        ("是是是", False),
        ("今天是是是是", True),
        ("the quick brown fox " * 4, True),
        (" ".join(map(str, range(100))), False),
        ("", False),
        (" ".join(" ".join(map(str, range(21))) for _ in range(4)), False),
    ],
)
def test_loops(text: str, expected: bool) -> None:
    assert loops(text) is expected


def test_rates_are_of_the_utterances_they_speak_of() -> None:
    said = ["seven seven seven seven", "go on", "stop", "", "..."]
    texts = ["seven seven seven seven", "go go go go", "!", "", "uh"]
    found = behaviour(said, heard(texts, [False, True, False, False, False]))
    assert found == {"loop_rate": 1 / 5, "empty_rate": 1 / 3, "cap_hit_rate": 1 / 5, "speed": 5.0}
    nothing = behaviour(["..."], heard([""], took=0))
    assert nothing == {"loop_rate": 0, "empty_rate": None, "cap_hit_rate": 0, "speed": None}


def test_slices_add_up() -> None:
    rows = [
        Utterance(Path("a"), "one two", "en", "ana", 1.0),
        Utterance(Path("b"), "three", "en", "bo", 2.0),
        Utterance(Path("c"), "vier", "de", "bo", 31.0),
        Utterance(Path("d"), "...", None, None, None),
    ]
    base = [errors_of(row.text, text) for row, text in zip(rows, ["one", "tree", "vier", "uh"], strict=True)]
    tuned = [errors_of(row.text, row.text) for row in rows]
    found = slices(rows, {"base": base, "tuned": tuned})
    assert found["speaker"] == [
        {"name": "bo", "utterances": 2, "seconds": 33.0, "words": 2, "wer": {"base": 0.5, "tuned": 0.0}},
        {"name": "ana", "utterances": 1, "seconds": 1.0, "words": 2, "wer": {"base": 0.5, "tuned": 0.0}},
        {"name": None, "utterances": 1, "seconds": 0.0, "words": 0, "wer": {"base": None, "tuned": None}},
    ]
    lengths = [one["name"] for one in found["seconds"] if one["name"]]
    assert lengths == ["under 2 s", "2 to 5 s", "30 s and more"]
    assert [(one["name"], one["words"]) for one in found["language"]] == [("en", 3), ("de", 1), (None, 0)]


def test_term_recall_counts_what_was_said() -> None:
    terms = ["Voxtral", "fine tuning", "心电图", "never said", "Voxtral"]
    said = ["Voxtral, voxtral and fine-tuning.", "做心电图。", "voxtral"]
    found = recall(terms, said, ["voxtral and fine tuning fine tuning", "做 心 电 图", "vox trial"])
    assert (found["said"], found["heard"], found["recall"]) == (5, 3, 0.6)
    assert found["terms"] == [
        {"term": "Voxtral", "said": 3, "heard": 1},
        {"term": "fine tuning", "said": 1, "heard": 1},
        {"term": "心电图", "said": 1, "heard": 1},
    ]
    assert recall(["x"], ["y"], ["x"]) == {"said": 0, "heard": 0, "recall": None, "terms": []}


def test_terms_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    path.write_text("\ufeffVoxtral\n\n  fine-tuning \n...\n", encoding="utf-8")
    assert read_terms(path) == ["Voxtral", "fine-tuning"]
    path.write_text("\n")
    with pytest.raises(SettingsError, match="holds 0 terms"):
        read_terms(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_terms(tmp_path / "no.txt")


def test_rates_stand_side_by_side_under_each_normaliser() -> None:
    rows = [Utterance(Path("a"), "Hello, World!", "de")]
    found = normalised(rows, {"base": ["hello world"], "tuned": ["Hello, World!"]})
    assert found == {
        "basic-1": {"base": {"wer": 0, "cer": 0}, "tuned": {"wer": 0, "cer": 0}},
        "raw-1": {"base": {"wer": 1, "cer": pytest.approx(4 / 13)}, "tuned": {"wer": 0, "cer": 0}},
    }


def test_the_english_rules_are_for_english_where_they_are_installed() -> None:
    pytest.importorskip("whisper_normalizer")
    assert WHISPER_ENGLISH in applying(["en", "en-GB"])
    assert WHISPER_ENGLISH not in applying(["en", "de"]) + applying([None])
    assert normaliser(WHISPER_ENGLISH)("Mr. Smith's colour, uh, twenty-one!") == "mister smith is color 21"


def test_pieces_are_joined_as_their_script_joins_words() -> None:
    assert joined(["one", "", "two"]) == "one two"
    assert joined(["你好。", "世界"]) == "你好。世界"
    assert joined(["नमस्ते", "दुनिया"]) == "नमस्ते दुनिया"
    assert Heard((Spoken(0, 1, "a", True), Spoken(1, 2, "b"))).text == "a b"


def test_what_was_heard_is_kept_with_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "heard.json"
    assert Transcripts.load(path) is None
    made = heard(["नमस्ते", ""], [True, False])
    made.save(path)
    assert Transcripts.load(path) == made and made.speed == 5
    path.write_text('["only texts, of an older version"]')
    assert Transcripts.load(path) is None

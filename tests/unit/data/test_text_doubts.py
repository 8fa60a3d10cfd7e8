import subprocess
import sys
from pathlib import Path

import pytest

from voxtral_finetune.data import text_doubts
from voxtral_finetune.data.measure import Measures
from voxtral_finetune.data.rows import Utterance


def sound(seconds=4.0, silence=0.0):
    return Measures(seconds, 16_000, 0.5, -20.0, 0.0, 0.0, silence, 30.0)


def row(text="some words", line=1, **fields):
    return Utterance(Path(f"/c/{line}.wav"), text, line=line, **{"sha256": f"sound {line}", **fields})


def kinds(findings):
    return [finding.kind for finding in findings]


@pytest.mark.parametrize("text", ["maÃ±ana", "itâ€™s", "Ð¼Ð°Ð¼Ð°", "schÃ¶n", "РїСЂРёРІРµС‚", "ðŸ˜€"])
def test_text_in_a_wrong_encoding_is_found(text):
    assert text_doubts.mojibake(text)


@pytest.mark.parametrize(
    "text",
    [
        *("mañana", "AU CAFÉ»", "CORAÇÃO", "AMANHÃ…", "allé…” dit-il", "Привет, Соня", "Россия", "São João, 3º andar"),
        *("25 °C", "L’ÎLE", "日本語です", "ÄÖÜ“", "¿SÉ?", "naïve"),
    ],
)
def test_text_that_is_meant_is_no_wrong_encoding(text):
    assert text_doubts.mojibake(text) is None


@pytest.mark.parametrize(
    ("text", "language", "found"),
    [
        ("привет мир", "en", ["script"]),
        ("hello world", "ru", ["script"]),
        ("hello world", "xx", []),
        ("hello world", None, []),
        ("ok", "hi", []),  # too little to say
        ("カタカナと漢字", "ja", []),
        ("नमस्ते दुनिया", "hi", []),
        ("iPhone को चालू कीजिए", "hi", []),
        ("српски језик", "sr", []),  # written in two scripts
    ],
)
def test_letters_that_contradict_the_language(text, language, found):
    assert kinds(text_doubts.foreign_script(text, language)) == found


@pytest.mark.parametrize(
    ("text", "measures", "found"),
    [
        ("a sentence of usual length, said in four seconds", sound(), []),
        ("x" * 120, sound(), ["fast"]),
        ("hi", sound(), ["slow"]),
        ("hi", sound(silence=0.8), []),  # mostly silence, which has a finding of its own
        ("hi", sound(1.0), []),
        ("吃葡萄不吐葡萄皮", sound(), []),
        ("吃葡萄不吐葡萄皮" * 8, sound(), ["fast"]),
    ],
)
def test_the_pace_of_speech(text, measures, found):
    assert kinds(text_doubts.pace(text, measures)) == found


def test_figures_and_signs_are_no_words():
    assert kinds(text_doubts.letters("12 34")) == ["digits"]
    assert kinds(text_doubts.letters("...")) == ["no words"]
    assert text_doubts.letters("room 12") == []


def test_sound_and_text_of_training_are_named_where_they_are_tested():
    rows = [
        row("one", 1, split="test", sha256="same"),
        row("other", 2, split="train", sha256="same"),
        row("two", 3, split="dev"),
        row("Two!", 4, split="test"),
        row("three", 5),  # no split: learned from
        row("three", 6, split="test"),
        row("four", 7, split="test"),
    ]
    problems = text_doubts.leaks(rows)
    assert {(problem.line, problem.kind) for problem in problems} == {(1, "leak"), (4, "text leak"), (6, "text leak")}
    assert "in test and in train (line 2, 2.wav)" in next(problem.what for problem in problems if problem.line == 1)


def test_without_named_sets_nothing_leaks():
    assert text_doubts.leaks([row("one", 1), row("one", 2)]) == []


def test_a_text_said_very_often_is_one_note():
    rows = [row("again", line) for line in range(1, 21)] + [row(f"text {line}", line) for line in range(21, 60)]
    (problem,) = text_doubts.often(rows)
    assert (problem.line, problem.kind, problem.usable) == (0, "same text", True)
    assert problem.what.startswith("20 rows")


def test_tokens_are_counted_where_voxtral_was_not_trained():
    rows = [row("hello there", language="en"), row("ሰላም ለዓለም", language="am"), row("habari ya asubuhi", language="sw")]
    costs = text_doubts.costs(rows)
    assert set(costs) == {"am", "sw"}
    assert costs["sw"] < 1 < costs["am"]
    assert kinds(text_doubts.cost_findings(costs)) == ["tokens"]


def test_counting_tokens_needs_no_torch():
    code = (
        "import sys; from voxtral_finetune.data.text_doubts import tokens_per_character as count; "
        "assert count(['ab']) > 0; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

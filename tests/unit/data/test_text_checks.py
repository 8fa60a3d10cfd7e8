import pytest

from voxtral_finetune.data.text_checks import findings, language_code, language_finding, refusal, tidy


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("  Grüß \t\u00a0Gott\r\n", "Grüß Gott"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth \ufeffmark so\u00adft \u202edirection\u202c", "zerowidth mark soft direction"),
        ("nul\x00 bell\x07 del\x7f", "nul bell del"),
        ("CASE, and “Punctuation”!", "CASE, and “Punctuation”!"),
        ("क्\u200dष नमस्ते", "क्\u200dष नमस्ते"),  # the joiner is part of how Hindi is spelled
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\u200b \x07", ""),
    ],
)
def test_text_is_tidied_and_no_letter_is_lost(written, kept):
    assert tidy(written) == kept
    assert tidy(kept) == kept


@pytest.mark.parametrize("text", ["ma\ufffdana", "lone \ud800", "\x1b[31mred"])
def test_what_tidying_cannot_mend_is_refused(text):
    assert refusal(text)
    assert not refusal("fine")


@pytest.mark.parametrize(
    ("text", "seconds", "kinds"),
    [
        ("yes", 0.2, []),
        ("ሰላም", 1.0, []),
        ("?! … 🎤", 1.0, ["text"]),
        ("the quick brown fox jumps over the lazy dog", 1.5, []),
        ("word " * 100, 7.0, ["text too long"]),
        ("<s>[INST] hi", 3.0, ["control token"]),
        ("<|en|> hi", 3.0, ["control token"]),
        ("lang:en", 3.0, ["control token"]),
        ("a < b and [sic] c|d", 3.0, []),
    ],
)
def test_texts_that_do_not_fit_or_look_like_tokens_are_found(text, seconds, kinds):
    assert [finding.kind for finding in findings(text, seconds)] == kinds


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("EN", "en"),
        ("en-US", "en"),
        ("en_us", "en"),
        ("English", "en"),
        ("deu", "de"),
        ("zh-Hant", "zh"),
        ("yue", "yue"),
    ],
)
def test_languages_are_known_by_any_usual_name(given, code):
    assert language_code(given) == code


@pytest.mark.parametrize(
    ("code", "said"), [("en", None), ("hi", None), ("ml", "not one that Voxtral"), ("xx", "no language")]
)
def test_languages_that_voxtral_was_not_trained_on_are_noted(code, said):
    finding = language_finding(code)
    assert (finding is None) == (said is None)
    assert not said or (said in finding.what and finding.usable)

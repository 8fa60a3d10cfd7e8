"""A transcript as text, JSON and subtitles that players read."""

import json

import pytest

from voxtral_finetune.evaluation.formats import written
from voxtral_finetune.evaluation.transcripts import Heard, Spoken

HEARD = Heard(
    (
        Spoken(0.0, 3.9996, "Hello & <b>you</b>"),
        Spoken(4.0, 5.0, ""),
        Spoken(3725.0625, 3726.5, "one --> two\nthree\x1b[31m", True),
    )
)


def test_plain_text_is_one_line_without_control_characters() -> None:
    assert written(HEARD, "txt", "a.wav") == "Hello & <b>you</b> one --> two three [31m\n"
    assert written(Heard(), "txt", "a.wav") == "\n"


def test_json_keeps_pieces_times_and_what_was_cut_off() -> None:
    content = json.loads(written(HEARD, "json", "a.wav"))
    assert content["file"] == "a.wav" and content["cut_off"] is True
    assert content["pieces"][0] == {"start": 0.0, "end": 4.0, "text": "Hello & <b>you</b>", "cut_off": False}
    assert [piece["cut_off"] for piece in content["pieces"]] == [False, False, True]


def test_srt() -> None:
    assert written(HEARD, "srt", "a.wav") == (
        "1\n00:00:00,000 --> 00:00:04,000\nHello & <b>you</b>\n\n"
        "2\n01:02:05,062 --> 01:02:06,500\none -> two three [31m\n\n"
    )


def test_vtt() -> None:
    assert written(HEARD, "vtt", "a.wav") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:04.000\nHello &amp; &lt;b&gt;you&lt;/b&gt;\n\n"
        "01:02:05.062 --> 01:02:06.500\none --&gt; two three [31m\n\n"
    )


@pytest.mark.parametrize(("form", "text"), [("srt", ""), ("vtt", "WEBVTT\n\n")])
def test_nothing_said_is_no_subtitle(form: str, text: str) -> None:
    assert written(Heard((Spoken(0, 1, ""),)), form, "a.wav") == text  # type: ignore[arg-type]  # a parameter

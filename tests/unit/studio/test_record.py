"""The page Record's handlers, called as a browser (or a program that is none) would."""

from dataclasses import asdict

import gradio as gr
import pytest

from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.studio import projects, record
from voxtral_finetune.studio.recorder import STATIC, recorder


def event(**data):
    return gr.EventData(None, {**asdict(projects.prompt("mine", "digits", "en", 0)), **data})


def test_an_accepted_take_is_saved_and_the_next_phrase_shown(upload, home):
    shown, progress = record._accept(event(path=str(upload())), "Ana")
    assert shown["number"] == 2
    assert "mine has 1 take" in progress
    (row,) = Corpus(home / "datasets" / "mine").rows()[0]
    assert (row.text, row.speaker) == (projects.prompt("mine", "digits", "en", 0).text, "Ana")


@pytest.mark.parametrize("data", [{"path": "/etc/passwd"}, {"path": None}, {"id": "x"}, {"project": "../up"}])
def test_an_event_that_was_made_up_saves_nothing(upload, home, data):
    with pytest.raises(gr.Error):
        record._accept(event(**{"path": str(upload()), **data}), "")
    assert not (home / "datasets").exists()
    with pytest.raises(gr.Error):
        record._accept(gr.EventData(None, "nonsense"), "")


def test_skip_and_the_arrows_move_by_what_the_browser_shows():
    assert record._skip(event())[0]["number"] == 2
    assert record._next(event())[0]["number"] == 2
    assert record._previous(event())[0]["number"] == 90


def test_a_pack_without_the_language_falls_back_to_one_that_it_has():
    language, shown, _ = record._change_pack("mine", "everyday", "fr")
    assert (language.value, shown["language"]) == ("fr", "fr")
    language, shown, _ = record._change_pack("mine", "digits", "fr")
    assert (language.value, shown["language"]) == ("en", "en")


def test_refused_files_are_listed_escaped(upload):
    page, _ = record._add("mine", [str(upload("<img src=x>.wav", content=b"no"))], "text", "en", "")
    assert "<img" not in page
    assert "1 file refused" in page


def test_the_template_has_nothing_for_gradio_to_evaluate():
    for name in ("recorder.html", "recorder.css"):
        text = (STATIC / name).read_text(encoding="utf-8")
        assert "{{" not in text
        assert "${" not in text
        assert "`" not in text


def test_the_recorder_offers_its_events():
    with gr.Blocks():
        box = recorder()
        for name in ("accept", "skip", "previous", "next"):
            assert callable(getattr(box, name))

"""The one place where an error becomes something to read."""

import inspect

import gradio as gr
import pytest

from voxtral_finetune.errors import DataError
from voxtral_finetune.studio.errors import guarded


def test_what_and_fix_are_shown_escaped_and_not_printed():
    @guarded
    def handler():
        raise DataError("<b>Nothing</b> here.", "Record it.")

    with pytest.raises(gr.Error) as caught:
        handler()
    assert caught.value.message == "&lt;b&gt;Nothing&lt;/b&gt; here. Record it."
    assert caught.value.print_exception is False
    assert caught.value.duration is None


def test_faults_of_the_program_are_not_dressed_up():
    @guarded
    def handler():
        raise KeyError("x")

    with pytest.raises(KeyError):
        handler()


def test_gradio_still_sees_what_a_handler_asks_for():
    @guarded
    def handler(event: gr.EventData, name: str) -> str:
        return name

    assert list(inspect.signature(handler).parameters) == ["event", "name"]
    assert handler(None, "a") == "a"

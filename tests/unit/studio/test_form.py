"""The form is the settings tree, whole."""

import gradio as gr
import pytest

from voxtral_finetune.flags import command_line
from voxtral_finetune.settings import Settings, every_setting
from voxtral_finetune.studio import form


def test_every_setting_is_on_the_page_once():
    names = [setting.name for main in (True, False) for setting in form.settings(main)]
    assert sorted([*names, *form.ELSEWHERE]) == sorted(setting.name for setting in every_setting())
    assert {setting.name for setting in form.settings(main=True)} == set(form.MAIN)


@pytest.mark.parametrize("setting", list(every_setting()), ids=lambda setting: setting.name)
def test_a_widget_says_what_it_is_and_starts_at_the_default(setting):
    if setting.name in form.ELSEWHERE:
        return
    widget = form.widget(setting, {})
    assert (widget.label, widget.info) == (setting.help, setting.flag)
    assert form.flat([setting.name], [widget.value]) in ({}, {setting.name: setting.default})


def test_an_untouched_form_is_the_default_settings():
    everything = [setting for main in (True, False) for setting in form.settings(main)]
    values = [form.widget(setting, {}).value for setting in everything]
    flat = form.flat([setting.name for setting in everything], values)
    assert Settings.of(flat) == Settings.of({})
    assert command_line(flat) == "voxtral-finetune train"


def test_a_switch_says_yes_no_or_nothing():
    flat = form.flat(["packing", "cache_audio", "compile"], ["false", "", True])
    assert flat == {"packing": False, "compile": True}
    assert command_line(flat) == "voxtral-finetune train --no-packing --compile"


def test_typed_numbers_are_numbers():
    flat = form.flat(["learning_rate", "eval_steps", "epochs"], [" 2e-4 ", "", None])
    assert flat == {"learning_rate": "2e-4"}
    assert Settings.of(flat).learning_rate == 2e-4


def test_an_empty_optional_number_is_not_zero():
    (rate,) = (setting for setting in every_setting() if setting.name == "learning_rate")
    assert isinstance(form.widget(rate, {}), gr.Textbox)

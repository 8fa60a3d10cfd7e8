"""The page Train: from the form's values to a run, with what is wrong said before anything is started."""

import gradio as gr
import pytest

from voxtral_finetune.model import catalog
from voxtral_finetune.run import Run
from voxtral_finetune.studio import form, projects, train

SETTINGS = [setting for main in (True, False) for setting in form.settings(main)]
NAMES = [setting.name for setting in SETTINGS]


def values(project, name="", checkpoint="some/model", **changes):
    defaults = [changes.get(setting.name, form.widget(setting, {}).value) for setting in SETTINGS]
    return [project, checkpoint, *defaults, name]


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr(Run, "launch", lambda self: 0)
    return train._start(NAMES)


@pytest.fixture
def project(upload):
    for number in range(6):
        projects.save_take("mine", str(upload(seed=number)), f"text {number}", "en", None)
    return "mine"


def test_start_makes_a_run_with_what_the_form_says(start, project, home):
    name, *_ = start(*values(project, "first", method="full", epochs=2, learning_rate="2e-5"))
    settings = Run.open(home / "outputs" / name).settings()
    assert name == "first"
    assert settings.model.model_checkpoint == "some/model"
    assert settings.data.dataset_jsonl == home / "datasets" / "mine"
    assert (settings.training.method, settings.training.epochs, settings.learning_rate) == ("full", 2, 2e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"project": None}, "No project"),
        ({"project": "other"}, "6 more"),
        ({"project": "../mine"}, "cannot be"),
        ({"project": "mine", "name": "../../up"}, "cannot be"),
        ({"project": "mine", "epochs": -1}, "--epochs"),
        ({"project": "mine", "learning_rate": "fast"}, "--learning-rate"),
        ({"project": "mine", "batch_size": 1.5}, "--batch-size"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_made(start, project, home, arguments, said):
    with pytest.raises(gr.Error, match=said):
        start(*values(**arguments))
    assert Run.all() == []


def test_the_command_line_says_the_same(project, home):
    command = train._command(NAMES)(*values(project, "first", lora_r=8, strict=True))
    assert command == (
        f"voxtral-finetune train --dataset-jsonl {home}/datasets/mine --strict --model-checkpoint some/model --lora-r 8"
        f" --output-dir {home}/outputs/first"
    )


def test_stop_asks_and_a_strange_name_is_refused(start, project):
    name, *_ = start(*values(project))
    train._stop(name)
    assert Run.all()[0].stop_requested()
    for strange in ("../x", None, "nothing"):
        with pytest.raises(gr.Error):
            train._stop(strange)


def test_a_chosen_checkpoint_shows_its_recommended_settings_and_another_the_defaults(start, project, home):
    names = ["epochs", "learning_rate", "preset"]
    show = train._recommended(names)
    advice = next(entry for entry in catalog.CHECKPOINTS if entry.recommended)
    shown = dict(zip(names, show(advice.name), strict=True))
    assert shown == {name: str(advice.recommended[name]) if name != "epochs" else 11 for name in names}
    assert show("some/model") == [3, "", ""]
    name, *_ = start(*values(project, "advised", checkpoint=advice.name, **shown))
    settings = Run.open(home / "outputs" / name).settings()
    assert settings.learning_rate == advice.recommended["learning_rate"]
    assert settings.training.preset == advice.recommended["preset"]

import json

import pytest

from voxtral_finetune.errors import SettingsError
from voxtral_finetune.settings import Settings, every_setting, home, read_config

PUBLISHED = """{"model_checkpoint": "mistralai/Voxtral-Mini-3B-2507", "batch_size": 2,
"learning_rate": 5e-5, "epochs": 3, "lora_r": 8, "lora_alpha": 32}"""


def test_a_published_configuration_works_as_it_stands():
    settings = Settings.of(json.loads(PUBLISHED))
    assert settings.training.lora_r == 8
    assert settings.learning_rate == 5e-5


def test_names_are_unique_so_that_flat_files_are_unambiguous():
    names = [setting.name for setting in every_setting()]
    assert len(names) == len(set(names))
    assert all(setting.help for setting in every_setting())


def test_flat_settings_come_back_the_same():
    settings = Settings.of({"dataset_jsonl": "a/b.jsonl", "preset": "voice", "audio_root": ["x", "y"]})
    assert Settings.of(settings.flat()) == settings


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-4), ("full", 1e-5)])
def test_the_learning_rate_depends_on_the_method(method, rate):
    assert Settings.of({"method": method}).learning_rate == rate


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ({"batchsize": 2}, "Did you mean batch_size"),
        ({"batch_size": 0}, "--batch-size cannot be 0"),
        ({"learning_rate": "fast"}, "--learning-rate cannot be 'fast'"),
        ({"method": "magic"}, "--method cannot be 'magic'"),
        ({"language": "english"}, "--language cannot be 'english'"),
        ({"format": 3}, "Update voxtral-finetune"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_do(flat, said):
    with pytest.raises(SettingsError, match=said):
        Settings.of(flat)


@pytest.mark.parametrize("content", ["not json", "[1]"])
def test_a_file_that_holds_no_settings_is_named(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"c\.json"):
        read_config(path)


def test_home_is_the_current_folder_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("VOXTRAL_FINETUNE_HOME")
    monkeypatch.chdir(tmp_path)
    assert home() == tmp_path

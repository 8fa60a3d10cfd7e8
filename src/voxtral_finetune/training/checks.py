"""Settings that cannot go together, or not here: refused before a run folder is made. Imports no torch."""

from __future__ import annotations

import importlib.util

from voxtral_finetune.data.augment import NoiseBank
from voxtral_finetune.errors import SettingsError
from voxtral_finetune.settings import Settings

NEED_BITSANDBYTES = {"method": "qlora", "optimizer": "adamw8bit"}


def check_training(settings: Settings) -> None:
    """Raises SettingsError where training cannot do what the settings say."""
    chosen = settings.training
    for name, value in NEED_BITSANDBYTES.items():
        if getattr(chosen, name) == value and importlib.util.find_spec("bitsandbytes") is None:
            what = f"--{name} {value} needs bitsandbytes."
            raise SettingsError(what, "Run: pip install 'voxtral-finetune[qlora]'")
    if chosen.replay is not None and not chosen.replay.expanduser().exists():
        raise SettingsError(f"--replay: {chosen.replay} does not exist.", "Check the path of the corpus.")
    if chosen.replay is not None and settings.data.stream:
        raise SettingsError("--replay cannot go with --stream.", "Leave out --stream: import the corpus instead.")
    if chosen.scale_scan and chosen.method == "full":
        raise SettingsError("--scale-scan needs an adapter, and --method full makes none.", "Use --method lora.")
    if chosen.noise is not None and not chosen.noise.expanduser().exists():
        raise SettingsError(f"--noise: {chosen.noise} does not exist.", "Name a folder with recordings of noise.")
    if chosen.noise is not None:
        NoiseBank(chosen.noise.expanduser())  # says so where it holds no audio
    if chosen.cache_audio:
        against = [
            (not hears_frozen(settings), "what hears the audio learns too"),
            (chosen.vary_speed or chosen.mask_spectrum or chosen.noise, "the audio is changed anew in each epoch"),
            (chosen.replay, "other utterances are replayed in each epoch"),
        ]
        for holds, why in against:
            if holds:
                raise SettingsError(f"--cache-audio is not possible: {why}.", "Leave one of the two out.")


def hears_frozen(settings: Settings) -> bool:
    """Whether nothing that learns lies before the language model."""
    preset = settings.training.preset
    return preset == "vocabulary" or (preset is None and settings.training.method != "full")

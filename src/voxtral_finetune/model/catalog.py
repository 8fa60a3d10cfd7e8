"""Which checkpoints there are by name, and where they lie. Imports no torch: every door asks here what to offer."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "assets"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is offered by name.

    `phrases` is the pack of phrases that suits what it knows, `recommended` the settings that teach it best where
    those are not the general defaults.
    """

    name: str
    title: str
    folder: Path | None = None
    phrases: str = "everyday"
    recommended: Mapping[str, Any] = field(default_factory=dict)


def _demo_settings() -> dict[str, Any]:
    """How the demo teaches the built-in checkpoint."""
    settings: dict[str, Any] = json.loads((ASSETS / "demo" / "settings.json").read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if name != "model_checkpoint"}


CHECKPOINTS = (
    Checkpoint("mistralai/Voxtral-Mini-3B-2507", "Voxtral Mini 3B (a GPU with 16 GB or more)"),
    Checkpoint("mistralai/Voxtral-Small-24B-2507", "Voxtral Small 24B (a GPU with 80 GB or more)"),
    Checkpoint(
        name="mini",
        title="Built-in mini: knows spoken digits, runs on any computer",
        folder=ASSETS / "mini",
        phrases="digits",
        recommended=_demo_settings(),
    ),
)

BUILT_IN = {entry.name: entry.folder for entry in CHECKPOINTS if entry.folder}


def resolve(name: str) -> str:
    """What transformers loads for a checkpoint's name: a built-in folder, a local path, or the Hub id as it is."""
    return str(BUILT_IN.get(name, name))


def suggested() -> Checkpoint:
    """The checkpoint to start with here: the default one with a GPU, otherwise one that any computer can teach."""
    return CHECKPOINTS[0] if has_gpu() else next(entry for entry in CHECKPOINTS if entry.folder)


def named(name: str) -> Checkpoint:
    """What is known of a checkpoint by its name; of one that is not listed, the general defaults."""
    return next((entry for entry in CHECKPOINTS if entry.name == name), Checkpoint(name, name))


def has_gpu() -> bool:
    """Whether there is an NVIDIA driver or an Apple GPU, told without loading torch."""
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return apple or Path("/proc/driver/nvidia/version").exists()


def learned_audio(name: str) -> frozenset[str]:
    """Content hashes of the recordings that a checkpoint says it was built from (`learned_audio.json` beside it)."""
    path = Path(resolve(name)) / "learned_audio.json"
    if not path.is_file():
        return frozenset()
    return frozenset(json.loads(path.read_text(encoding="utf-8"))["sha256"])

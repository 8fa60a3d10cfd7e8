"""Writes what fits on which card into docs/performance.md, from the estimate that runs are planned by."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import VoxtralConfig

from voxtral_finetune.errors import RunError
from voxtral_finetune.settings import TrainingSettings
from voxtral_finetune.training import memory

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARKERS = ("<!-- memory table -->", "<!-- end of memory table -->")

CARDS = (8, 12, 16, 24, 48, 80, 141)
"""GB of 10^9 bytes, as cards are sold; what they really have is a little more."""

MOST_WINDOWS = 64
TEXT_TOKENS = 60
"""About 30 s of speech in English."""

PLAYED = (1, 4)
"""Sizes that are played through; memory grows in a straight line with windows."""


def configs() -> dict[str, VoxtralConfig]:
    """The published checkpoints' shapes. The library's defaults are Mini's; Small has Mistral Small 3's."""
    small = {
        **VoxtralConfig().text_config.to_dict(),
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
    }
    return {"Mini 3B": VoxtralConfig(), "Small 24B": VoxtralConfig(text_config=small)}


METHODS: dict[str, dict[str, Any]] = {
    "`qlora`": {"method": "qlora"},
    "`lora`": {"method": "lora"},
    "`lora`, preset `language`": {"method": "lora", "preset": "language"},
    "`full`, `adamw8bit`": {"method": "full", "optimizer": "adamw8bit"},
    "`full`": {"method": "full"},
}


def row(name: str, folder: str, method: str) -> str:
    """One line of the table: a checkpoint taught by a method."""
    settings = TrainingSettings(**METHODS[method])

    @functools.cache
    def line(recompute: bool) -> tuple[float, float]:
        few, more = (
            memory.estimate(folder, settings, "cuda", windows, TEXT_TOKENS, recompute).total for windows in PLAYED
        )
        slope = (more - few) / (PLAYED[1] - PLAYED[0])
        return few - slope * PLAYED[0], slope

    def peak(windows: int, recompute: bool) -> int:
        start, slope = line(recompute)
        return int(start + slope * windows)

    cells = [name, method]
    for recompute in (False, True):
        cells += [f"{peak(1, recompute) / 1e9:.1f}", f"{line(recompute)[1] / 1e9:.2f}"]
    for card in CARDS:
        try:
            windows, recompute = memory.choose(
                int(card * 1e9 * memory.HEADROOM["cuda"]), MOST_WINDOWS, peak, checkpointing=None
            )
            cells.append(f"{windows}{' r' if recompute else ''}")
        except RunError:
            cells.append("–")
    return f"| {' | '.join(cells)} |"


def rows() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs().items():
            config.save_pretrained(Path(folder) / name)
            for method in METHODS:
                yield row(name, str(Path(folder) / name), method)


def head() -> list[str]:
    titles = ["Voxtral", "method", "one window", "each more", "one, recomputed", "each more"]
    return [
        f"| {' | '.join([*titles, *(f'{card} GB' for card in CARDS)])} |",
        f"|{'---|' * (len(titles) + len(CARDS))}",
    ]


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    lines = []
    for line in rows():
        print(line, flush=True)
        lines.append(line)
    table = "\n".join([MARKERS[0], "", *head(), *lines, "", MARKERS[1]])
    PAGE.write_text(before + table + after, encoding="utf-8")


if __name__ == "__main__":
    main()

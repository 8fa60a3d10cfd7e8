"""Writes docs/settings.md from the settings tree: python tools/settings_page.py"""

import json
from pathlib import Path

from voxtral_finetune.settings import SECTIONS, every_setting


def reference() -> str:
    """The text of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every setting is a flag of `voxtral-finetune train`, a key of a `--config` JSON file and a field of the",
        "Studio. A flag wins over the file. `python tools/settings_page.py` writes this page; a test compares the two.",
    ]
    for section, kind in SECTIONS.items():
        lines += [
            "",
            f"## {section}: {(kind.__doc__ or '').strip()}",
            "",
            "| flag | default | meaning |",
            "|---|---|---|",
        ]
        for setting in every_setting():
            if setting.section == section:
                default = json.dumps(setting.default) if setting.default not in (None, []) else ""
                lines.append(f"| `{setting.flag}` | {f'`{default}`' if default else ''} | {setting.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "settings.md").write_text(reference(), encoding="utf-8")

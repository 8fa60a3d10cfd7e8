"""Writes docs/settings.md from the settings tree: python tools/settings_page.py"""

from pathlib import Path

from voxtral_finetune.settings import reference

if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "settings.md").write_text(reference(), encoding="utf-8")

"""The shape of the house: who may import whom, how long things may be, and what must start without torch."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.settings_page import reference

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "voxtral_finetune"
ORDER = (
    *("errors", "durable", "settings", "run", "data", "model", "training", "evaluation", "publishing", "running"),
    *("pipeline", "flags", "console", "commands", "evaluate_commands", "export_command", "cli", "studio"),
)
HEAVY = ("hear", "transcribe")
LIGHT = (
    *(
        "errors",
        "settings",
        "run",
        "pipeline",
        "flags",
        "console",
        "commands",
        "evaluate_commands",
        "cli",
        "studio.app",
    ),
    *(
        f"data.{path.stem}"
        for path in sorted((SOURCE / "data").glob("[a-z]*.py"))
        if path.stem not in ("collate", "mel")
    ),
    "model.catalog",
    *(
        f"evaluation.{path.stem}"
        for path in sorted((SOURCE / "evaluation").glob("[a-z]*.py"))
        if path.stem not in HEAVY
    ),
    "publishing.card",
)
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("voxtral_finetune.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_import_leftwards_only(path):
    if room(path) in ("__init__", "__main__"):
        return
    allowed = ORDER[: ORDER.index(room(path)) + 1]
    assert imports(path) <= set(allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_and_functions_stay_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_light_modules_import_neither_torch_nor_transformers():
    modules = ", ".join(f"voxtral_finetune.{name}" for name in LIGHT)
    check = f"import sys, {modules}; print(sorted({{'torch', 'transformers', 'peft'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom voxtral_finetune.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'gradio', 'trackio', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Teach Voxtral" in output
    assert output.splitlines()[-1] == "[]"


def test_only_loading_knows_the_built_in_checkpoint():
    mentions = re.compile(r"(?<![-\w])mini(?![\w-])")
    for path in FILES:
        if path.relative_to(SOURCE).parts[0] != "model":
            assert not mentions.search(path.read_text(encoding="utf-8")), path


def test_settings_page_is_what_the_tree_says():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference(), "run python tools/settings_page.py"

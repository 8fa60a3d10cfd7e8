"""Documentation that cannot rot: links lead somewhere, the README's tree is the tree."""

import json
import re
import shlex
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import spoken
from voxtral_finetune.cli import main
from voxtral_finetune.data import audio

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'click \w+ "([^"]+)"', text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_lists_every_module_with_a_line():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## The tree") :]
    source = ROOT / "src" / "voxtral_finetune"
    for path in [*source.rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "tools").glob("*.py")]:
        if path.name != "__init__.py":
            assert re.search(rf"(^|\s){re.escape(path.name)}\s+\S", tree, re.MULTILINE), path


def test_every_docs_page_is_linked_from_the_overview():
    overview = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in overview, page


def commands(page):
    """The voxtral-finetune command lines of a page's indented blocks, without their comments."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^    voxtral-finetune (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that docs/datasets.md names, made on the spot."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number, text in enumerate(("low mid", "high low mid", "mid mid")):
        audio.write(folder / f"{number}.wav", spoken(text, seed=number), 16_000)
        (folder / f"{number}.txt").write_text(text)
    rows = [(f"recordings/{number}.wav", (folder / f"{number}.txt").read_text()) for number in range(3)]
    for name, header in (("speech.csv", "audio,text,speaker"), ("odd.csv", "clip,words_said,speaker")):
        Path(name).write_text("\n".join([header, *(",".join((*row, "ana")) for row in rows)]) + "\n")
    with zipfile.ZipFile("corpus.zip", "w") as archive:
        archive.writestr("data.jsonl", "".join(json.dumps({"audio": a, "text": t}) + "\n" for a, t in rows))
        for path, _ in rows:
            archive.write(path)
    return tmp_path


def test_the_commands_of_the_datasets_page_do_what_it_says(files):
    ran = []
    for arguments in commands("datasets.md"):
        if "--dataset-name" in arguments or "--granary" in arguments:
            continue  # tests/integration/test_hub_sources.py runs these against a Hub on loopback
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, (arguments, result.output)
        ran.append(arguments[0])
    assert ran.count("prepare") >= 5
    assert {"check", "forget"} <= set(ran)
    assert len((files / "datasets" / "zipped" / "data.jsonl").read_text().splitlines()) == 3
    assert (files / "datasets" / "mine" / "data.jsonl").read_text() == ""


@pytest.mark.parametrize("page", ["datasets.md", "recording.md", "evaluation.md"])
def test_the_flags_of_every_documented_command_exist(page):
    for arguments in commands(page):
        command = main.commands[arguments[0]]
        flags = {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        used = {word for word in arguments[1:] if word.startswith("--")}
        assert used <= flags, (arguments, used - flags)

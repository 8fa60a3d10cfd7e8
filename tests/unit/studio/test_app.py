"""The Studio as a whole: what it imports, what it answers, and that every handler is guarded."""

import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from voxtral_finetune.evaluation.report import Report, Scored
from voxtral_finetune.evaluation.verdict import Verdict
from voxtral_finetune.evaluation.wer import score
from voxtral_finetune.run import Run
from voxtral_finetune.settings import Settings
from voxtral_finetune.studio import results
from voxtral_finetune.studio.app import LoopbackOnly, build


@pytest.fixture(scope="module")
def studio():
    return build()


def test_building_the_studio_imports_neither_torch_nor_transformers():
    code = (
        "import sys\nfrom voxtral_finetune.studio.app import build\nbuild()\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_every_handler_is_guarded_and_none_is_offered_as_an_api(studio):
    functions = [each for each in studio.fns.values() if each.fn is not None]
    assert len(functions) > 12
    for each in functions:
        assert hasattr(each.fn, "__wrapped__"), f"{each.fn} shows no FinetuneError"
        assert each.api_visibility == "private"


def test_pages_have_paths_of_their_own(studio):
    assert [path for path, _, _ in studio.pages] == ["", "train", "results"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost:7860", "origin": "http://localhost:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:9999"}, 403),
        ({"host": "127.0.0.1:7860", "origin": "null"}, 403),
    ],
)
def test_other_sites_cannot_use_the_studio(headers, status):
    async def home(request):
        return PlainTextResponse("in")

    app = Starlette(routes=[Route("/", home)], middleware=[Middleware(LoopbackOnly)])
    assert TestClient(app).get("/", headers=headers).status_code == status


def test_results_are_escaped_and_show_before_and_after():
    run = Run.create(Settings.of({}))
    references, heard = ["one two <b>"] * 3, ["one too <i>"] * 3
    report = Report(
        base=score(references, heard),
        tuned=score(references, references),
        verdict=Verdict("better", -0.5, -0.6, -0.4, 3, note="<script>note</script>"),
        utterances=[Scored("a.wav", "one two <b>", "one too <i>", "one two <b>", 1.0)],
        model={},
        data={},
        training={},
        warnings=["<img src=x onerror=alert(1)>"],
    )
    report.save(run.folder / "report.json")
    page, rows = results._shown(run)
    assert "<script>" not in page
    assert "<img" not in page
    assert "66.7 %" in page
    assert "0.0 %" in page
    assert "Better" in page
    assert rows.value["data"] == [["one two <b>", "one too <i>", "one two <b>"]]
    assert results._row(run)[4:] == ["66.7 %", "0.0 %", "better"]


def test_a_run_without_a_report_says_how_it_stands():
    run = Run.create(Settings.of({}))
    run.emit("failed", what="Full disk.", fix="Free some.")
    page, _ = results._shown(run)
    assert "Full disk. Free some." in page

"""Every Mermaid diagram of the documentation is parsed by Mermaid itself: the copy inside Gradio."""

import http.server
import re
import threading
from functools import partial
from pathlib import Path

import gradio
import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DIAGRAMS = {
    f"{page.name} {number}": diagram
    for page in PAGES
    for number, diagram in enumerate(re.findall(r"```mermaid\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mermaid(browser):
    """A page in which `window.mermaid` is Mermaid."""
    folder = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
    (script,) = folder.glob("mermaid.core-*.js")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browser() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.evaluate(f"import('/{script.name}').then(module => {{ window.mermaid = module.default }})")
        yield page
    server.shutdown()


@pytest.mark.browser
def test_every_diagram_is_drawn_from_what_is_written(mermaid):
    assert len(DIAGRAMS) >= 3
    for name, diagram in DIAGRAMS.items():
        problem = mermaid.evaluate("text => window.mermaid.parse(text).then(() => null, String)", diagram)
        assert problem is None, f"{name}: {problem}"


@pytest.mark.browser
def test_a_broken_diagram_would_be_found(mermaid):
    problem = mermaid.evaluate("text => window.mermaid.parse(text).then(() => null, String)", "flowchart LR\n a -->")
    assert "Parse error" in problem

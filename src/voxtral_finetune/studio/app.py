"""The Studio: the same corpora and runs in the browser, one page for each step of the journey.

All state lies in `datasets/` and `outputs/` of the home; a page reads it when it is opened and after every action. The
process never imports torch: a run is a detached process of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from voxtral_finetune.settings import home
from voxtral_finetune.studio import record, results, texts, train
from voxtral_finetune.studio.projects import MAX_BYTES

HOST = "127.0.0.1"
KEPT_SECONDS = 3600
"""How long Gradio keeps uploads that nobody accepted."""

PAGES: list[tuple[str, str, Callable[[gr.Blocks], None]]] = [
    (texts.TRAIN, "train", train.build),
    (texts.RESULTS, "results", results.build),
]


class LoopbackOnly:
    """Refuses requests that another site's page makes a browser send here, by name (DNS rebinding) or by origin."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._welcome(Headers(scope=scope)):
            await PlainTextResponse("This Studio answers only its own pages.", 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _welcome(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        return host.rpartition(":")[0] in (HOST, "localhost") and origin in (None, f"http://{host}")


def theme() -> gr.themes.Base:
    """Gradio's default with the system's own fonts and text that is dark enough to read."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="gray",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
    )


def build() -> gr.Blocks:
    """All pages, not yet served."""
    with gr.Blocks(title=texts.TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as studio:
        gr.Navbar(main_page_name=texts.RECORD)
        record.build(studio)
    for name, path, build_page in PAGES:
        with studio.route(name, path) as page:
            gr.Navbar(main_page_name=texts.RECORD)
            build_page(page)
    return studio.queue(default_concurrency_limit=4, max_size=64, api_open=False)


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), help="Port on 127.0.0.1 (default: the first free from 7860).")
def main(port: int | None) -> None:
    """Open the Studio in a browser: record, train, compare. It answers this computer only."""
    with tempfile.TemporaryDirectory(prefix="voxtral-studio-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # readable by this person only, and gone afterwards
        studio = build()
        try:
            _, url, _ = studio.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                footer_links=[],
                run_history=False,
                mcp_server=False,
                enable_monitoring=False,
                max_file_size=MAX_BYTES,
                app_kwargs={"middleware": [Middleware(LoopbackOnly)]},
                theme=theme(),
                css_paths=Path(__file__).parent / "static" / "studio.css",
            )
        except OSError as error:
            raise click.ClickException(
                f"Port {port or '7860 to 7959'} is in use. Choose another with --port."
            ) from error
        click.echo(f"Home:   {home()}\nStudio: {url}  (Ctrl-C ends it; runs go on)")
        studio.block_thread()

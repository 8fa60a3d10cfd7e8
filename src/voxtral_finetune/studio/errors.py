"""The Studio's one place where an error becomes something to read."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any, TypeVar

import gradio as gr

from voxtral_finetune.errors import FinetuneError

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""How a page connects its handlers: no overlay while they work, no API. Gradio shows errors only of queued ones."""

Handler = TypeVar("Handler", bound=Callable[..., Any])


def guarded(handler: Handler) -> Handler:
    """Shows a FinetuneError of a page's handler as a message that stays until it is closed.

    Gradio renders messages as HTML, so the text is escaped. Anything else is a fault in the program: Gradio writes it
    to the terminal and tells the browser no more than that there was one.
    """

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except FinetuneError as error:
            message = html.escape(f"{error.what} {error.fix}")
            raise gr.Error(message, duration=None, print_exception=False) from error

    return call  # type: ignore[return-value]  # same signature, by functools.wraps

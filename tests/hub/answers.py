"""What `LoopbackHub` answers with: files, ranges of them, and what is said about them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse


def entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}


def card(files: Mapping[str, bytes]) -> Any:
    header = re.match(r"---\n(.*?)\n---", files.get("README.md", b"").decode(), re.S)
    return yaml.safe_load(header.group(1)) if header else None


def content(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """A file, or the range of it that was asked for."""
    kind = "application/octet-stream"
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(len(data))}, media_type=kind)
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not part:
        return Response(data, headers=headers, media_type=kind)
    first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
    if first >= len(data):
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return Response(data[first : last + 1], 206, headers=headers, media_type=kind)


def cut(answer: Response, sent: int) -> Response:
    """The answer with all of its headers, of which only the first bytes arrive."""

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(answer.body)[:sent]
        raise ConnectionAbortedError  # the server closes the connection

    return StreamingResponse(broken(), answer.status_code, headers=dict(answer.headers))

"""A Hugging Face Hub on loopback, for tests of what the unmodified `huggingface_hub` and `datasets` do with ours.

    with LoopbackHub() as hub:
        hub.add("dataset", "alice/speech", {"README.md": b"...", "train.parquet": b"..."}, private=True)
        hub.fail(r"/resolve/", status=429)
        subprocess.run(..., env=hub.environment(home, token="hf_alice"))
        assert hub.asked("/resolve/")

Repositories are commits of {path: content} in memory. A client is pointed here by HF_ENDPOINT, which it reads when it
is imported: so it runs in a process of its own. A route is a method of `LoopbackHub` marked with `@route`; it answers
with the headers and error codes that `huggingface_hub` 2.4 reads.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.hub import answers

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
"""Who each token belongs to; a name owns the repositories under it."""

NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{NAME}"
PAGE = 1000
"""Entries of a file list in one answer, as on the Hub."""


class Refused(Exception):
    """An answer that is an error: HTTP status, message, and the code that the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Repo:
    """One repository: branches and tags name commits, a commit is {path: content}."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """(commit id, its files); percent-encoded, as revisions travel."""
        wanted = unquote(revision)
        sha = self.refs.get(wanted, wanted)
        if sha not in self.commits:
            raise Refused(404, f"Invalid rev id: {wanted}", "RevisionNotFound")
        return sha, self.commits[sha]


@dataclass
class Fault:
    """An answer to come instead of the right one, so many times; `cut` sends so many bytes and drops the connection."""

    pattern: re.Pattern[str]
    status: int
    times: int
    headers: Mapping[str, str]
    cut: int | None


@dataclass(frozen=True)
class Asked:
    """A request as it came: who asked (by token), what for, which bytes."""

    method: str
    path: str
    user: str | None
    range: str | None


Handler = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Has a method answer requests whose raw path matches; its named groups become arguments."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class LoopbackHub:
    """The server; usable as a context manager, from which on `url` answers."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Asked] = []
        self.faults: list[Fault] = []
        self._numbers = itertools.count()
        methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> LoopbackHub:
        self._thread.start()  # the socket listens already: a client that is early waits in its queue
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    # what a test says and asks

    def add(self, kind: str, name: str, files: Mapping[str, bytes], revision: str = "main", **settings: bool) -> str:
        """Commits files to a repository (made if need be; `private`, `gated`) and returns the commit id."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name, **settings))
        before = repo.commits.get(repo.refs.get(revision, ""), {})
        sha = hashlib.sha1(f"{name} {next(self._numbers)}".encode()).hexdigest()
        repo.commits[sha] = {**before, **files}
        repo.refs[revision] = sha
        return sha

    def fail(
        self, pattern: str, status: int = 503, times: int = 1, headers: Mapping[str, str] = {}, cut: int | None = None
    ) -> None:
        """Lets the next `times` requests whose path matches go wrong."""
        self.faults.append(Fault(re.compile(pattern), status, times, headers, cut))

    def asked(self, pattern: str) -> list[Asked]:
        """The requests so far whose path matches."""
        return [request for request in self.requests if re.search(pattern, request.path)]

    def clear(self) -> None:
        """Forgets repositories, faults and requests."""
        self.repos.clear()
        self.faults.clear()
        self.requests.clear()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a client process that knows no other Hub, login or cache."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
        }

    # how a request is answered

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode()  # raw: a revision arrives as refs%2Fconvert%2Fparquet
        token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        self.requests.append(Asked(request.method, path, TOKENS.get(token), request.headers.get("range")))
        fault = next((fault for fault in self.faults if fault.times and fault.pattern.search(path)), None)
        try:
            if fault and fault.cut is None:
                fault.times -= 1
                return JSONResponse({"error": "injected"}, fault.status, headers=dict(fault.headers))
            if token and token not in TOKENS:
                raise Refused(401, "Invalid credentials in Authorization header")
            answer = self._routed(request, path, TOKENS.get(token))
        except Refused as refused:
            headers = {"X-Error-Message": refused.message, "X-Error-Code": refused.code}
            return JSONResponse({"error": refused.message}, refused.status, headers=headers)
        if fault and request.method == "GET":
            fault.times -= 1
            return answers.cut(answer, fault.cut or 0)
        return answer

    def _routed(self, request: Request, path: str, user: str | None) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, handler in ROUTES:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                return handler(self, request, user, **match.groupdict())
        raise Refused(404, f"this Hub has no {request.method} {path}")

    def _repo(self, kind: str, name: str, user: str | None) -> Repo:
        """A repository that `user` may see; a private one looks to others as if it were not there."""
        repo = self.repos.get((kind, name))
        if repo is None or (repo.private and user != name.split("/")[0]):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _opened(self, kind: str, name: str, user: str | None) -> Repo:
        """A repository whose files `user` may read."""
        repo = self._repo(kind, name, user)
        if repo.gated and user != name.split("/")[0]:
            raise Refused(403 if user else 401, f"Access to {name} is restricted.", "GatedRepo")
        return repo

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request, user: str | None) -> Response:
        if user is None:
            raise Refused(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": "read"}}
        return JSONResponse({"type": "user", "id": user, "name": user, "fullname": user, "orgs": [], "auth": access})

    @route("GET", rf"{API}(/revision/(?P<revision>[^/]+))?")
    def _info(self, request: Request, user: str | None, kind: str, name: str, revision: str | None) -> Response:
        repo = self._repo(kind, name, user)
        sha, files = repo.commit(revision or "main")
        about = {"id": name, "sha": sha, "private": repo.private, "gated": repo.gated, "tags": []}
        siblings = [{"rfilename": path} for path in sorted(files)]
        return JSONResponse({**about, "siblings": siblings, "cardData": answers.card(files)})

    @route("GET", rf"{API}/auth-check")
    def _auth_check(self, request: Request, user: str | None, kind: str, name: str) -> Response:
        self._opened(kind, name, user)
        return JSONResponse({})

    @route("GET", rf"{API}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
    def _tree(
        self, request: Request, user: str | None, kind: str, name: str, revision: str, folder: str | None
    ) -> Response:
        _, files = self._repo(kind, name, user).commit(revision)
        inside = f"{unquote(folder)}/" if folder else ""
        deep = request.query_params.get("recursive", "").lower() == "true"
        listed: dict[str, dict[str, Any]] = {}
        for path in sorted(path for path in files if path.startswith(inside)):
            parts = path.removeprefix(inside).split("/")
            for depth in range(1, len(parts) if deep else min(len(parts), 2)):
                above = inside + "/".join(parts[:depth])
                listed.setdefault(above, {"type": "directory", "path": above, "oid": "0" * 40, "size": 0})
            if deep or len(parts) == 1:
                listed[path] = answers.entry(path, files[path])
        if inside and not listed:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        start = int(request.query_params.get("cursor", 0))
        following = urlencode({**request.query_params, "cursor": start + PAGE})
        link = f'<{self.url}{request.scope["raw_path"].decode()}?{following}>; rel="next"'
        entries = list(listed.values())
        more = {"Link": link} if start + PAGE < len(entries) else {}
        return JSONResponse(entries[start : start + PAGE], headers=more)

    @route("GET", rf"/((?P<kind>dataset|space)s/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(
        self, request: Request, user: str | None, kind: str | None, name: str, revision: str, path: str
    ) -> Response:
        sha, files = self._opened(kind or "model", name, user).commit(revision)
        content = files.get(unquote(path))
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if content is None:
            missing = {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return Response("Entry not found", 404, headers=missing)
        return answers.content(request, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

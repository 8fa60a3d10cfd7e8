"""The other end of `LoopbackHub`: a process that calls our functions with the unmodified clients and says what came.

`python -m tests.hub.client` reads one JSON object a line, {"call": "import", ...}, and writes one: {"answer": ...}, or
{"error": [what, fix]} where ours raised. It stays, because importing `datasets` takes longer than most tests.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voxtral_finetune.data import granary, hub
from voxtral_finetune.data.corpus import Corpus
from voxtral_finetune.errors import FinetuneError


def import_hub(spec: dict[str, Any], folder: str, die_after: int | None = None) -> Any:
    """Imports, or kills this process outright after so many rows."""
    return _import(hub.HubSpec(**spec), folder, die_after)


def import_granary(folder: str, **chosen: Any) -> Any:
    return _import(granary.spec(**chosen), folder)


def phrases(home: str, **chosen: Any) -> Any:
    os.environ["VOXTRAL_FINETUNE_HOME"] = home
    return [[phrase.id, phrase.text] for phrase in granary.phrases_from_granary(**chosen)]


def _import(spec: hub.HubSpec, folder: str, die_after: int | None = None) -> Any:
    calls = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if len(calls) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    imported = hub.import_hub(Corpus.create(Path(folder)), spec, progress)
    return {**asdict(imported), "calls": calls}


CALLS = {"import": import_hub, "granary": import_granary, "phrases": phrases}


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        _log_in(asked.pop("token"))
        try:
            answer = {"answer": CALLS[asked.pop("call")](**asked)}
        except FinetuneError as error:
            answer = {"error": [error.what, error.fix]}
        print(json.dumps(answer), file=answers, flush=True)


def _log_in(token: str | None) -> None:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token


if __name__ == "__main__":
    main()

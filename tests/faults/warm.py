"""A process that has imported everything and is forked for each command, so that a test of many kills takes seconds.

A copy is the command line right after its imports: a session of its own, its files, its environment, its exit code.
Requests and answers are lines of JSON on stdin and stdout.
"""

import ctypes
import importlib
import json
import os
import sys

HEAVY = (
    *("torch", "transformers", "peft", "voxtral_finetune.cli", "voxtral_finetune.training.engine"),
    *("voxtral_finetune.model.export", "voxtral_finetune.evaluation.transcribe"),
)


def serve():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    importlib.import_module("transformers").VoxtralForConditionalGeneration  # noqa: B018  # imported when it is named
    for name in HEAVY:
        importlib.import_module(name)
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if not pid:
                become(request)
            print(json.dumps(pid), file=answers)
        else:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), file=answers)


def become(request):
    """Turns this copy into the command that was asked for, and ends with its exit code."""
    os.setsid()
    for number, path in enumerate(("/dev/null", request["stdout"], request["stderr"])):
        handle = os.open(path, os.O_RDONLY if not number else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, number)
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for name, arguments in request["hooks"]:
        getattr(importlib.import_module("tests.faults.hooks"), name)(*arguments)
    if "LD_PRELOAD" in os.environ:
        ctypes.CDLL(None).fault_read()
    from voxtral_finetune.cli import main

    main([os.fsdecode(bytes(word)) for word in request["start"]], prog_name="voxtral-finetune")


if __name__ == "__main__":
    serve()

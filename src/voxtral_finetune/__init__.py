"""Teach Mistral's Voxtral a voice, a language or a vocabulary, and prove that it learned."""

import os
import sys

__version__ = "0.1.0"

# The libraries below this one report usage by default; a tool for people's voices does not.
for _switch in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

if sys.platform == "win32":  # locks and the safe writing of files need POSIX
    sys.exit(
        "voxtral-finetune does not run on Windows itself. Use WSL2: https://learn.microsoft.com/windows/wsl/install"
    )

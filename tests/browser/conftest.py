"""A real Studio in a process of its own, and a real browser whose microphone plays a WAV file."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.conftest import spoken
from voxtral_finetune.data import audio
from voxtral_finetune.model import catalog

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "src" / "voxtral_finetune" / "assets" / "demo" / "audio"
QUIET = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
DEVICE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="session")
def chromium():
    """Where Chromium is: CHROMIUM, or on the path; without one the browser tests are skipped."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no Chromium: install one or name it in the environment variable CHROMIUM")
    return found


@pytest.fixture(scope="session")
def microphone(tmp_path_factory):
    """A WAV file for the fake microphone, played in a loop: spoken digits where they ship, tones otherwise."""
    path = tmp_path_factory.mktemp("microphone") / "speech.wav"
    files = sorted(DEMO.glob("*.flac"))[:12]
    waves = [audio.load(file) for file in files] or [spoken("low mid high low", seed=seed) for seed in range(12)]
    audio.write(path, np.concatenate(waves), audio.SAMPLE_RATE)
    return path


@pytest.fixture(scope="session")
def checkpoint(request):
    """What to train: the built-in checkpoint where it ships, otherwise a random one."""
    entry = next(entry for entry in catalog.CHECKPOINTS if entry.folder)
    if (entry.folder / "model.safetensors").is_file():
        return entry.name
    return str(request.getfixturevalue("small_checkpoint"))


class Studio:
    """The address and the home of a running Studio."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """`python interface.py` on a free port, with a home of its own, until the module's tests are done."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "interface.py"), "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "VOXTRAL_FINETUNE_HOME": str(home), "PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("Studio:") for line in lines), "the Studio ended before it was ready"
        yield Studio(f"http://127.0.0.1:{port}", home)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def browser(chromium, microphone):
    """Opens a page in a fresh Chromium; fails the test where a page asks for anything that is not on this machine."""
    from playwright.sync_api import sync_playwright

    strangers: list[str] = []
    with sync_playwright() as play:

        @contextmanager
        def opened(*flags):
            device = flags or (*DEVICE, f"--use-file-for-fake-audio-capture={microphone}")
            found = play.chromium.launch(executable_path=chromium, headless=True, args=[*QUIET, *device])
            context = found.new_context(viewport={"width": 1280, "height": 900})
            context.set_default_timeout(60_000)
            context.on("request", lambda request: strangers.append(request.url) if _strange(request.url) else None)
            try:
                yield context
            finally:
                found.close()

        yield opened
    assert strangers == []


def _strange(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "file") and parts.hostname != "127.0.0.1"

"""What tests that need a Hub share; a module takes it with `pytest_plugins = ["tests.hub.fixtures"]`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.loopback import LoopbackHub

ROOT = Path(__file__).parent.parent.parent


class Client:
    """A process that uses the loopback Hub: `call` asks it for one of the functions in `tests.hub.client`."""

    def __init__(self, hub: LoopbackHub, home: Path) -> None:
        command = [sys.executable, "-m", "tests.hub.client"]
        self.log = (home / "client.log").open("w")
        environment = {**hub.environment(home), "USE_TORCH": "0"}  # datasets loads torch otherwise, for seconds
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def call(self, name: str, token: str | None = None, **arguments: Any) -> dict[str, Any]:
        """What the function answered: {"answer": ...} or {"error": [what, fix]}; {} where the process died."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"call": name, "token": token, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="session")
def hub_server() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def hub(hub_server: LoopbackHub) -> LoopbackHub:
    """A Hub on loopback with nothing on it."""
    hub_server.clear()
    return hub_server


@pytest.fixture(scope="session")
def shared_client(hub_server: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub_server, tmp_path_factory.mktemp("hub-client"))
    yield client
    client.close()


@pytest.fixture
def call(hub: LoopbackHub, shared_client: Client) -> Callable[..., dict[str, Any]]:
    """Calls a function of `tests.hub.client` in the process that all tests share."""
    return shared_client.call


@pytest.fixture
def fresh_client(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client process of this test's own, which it may end."""
    client = Client(hub, tmp_path_factory.mktemp("hub-client"))
    yield client
    client.close()

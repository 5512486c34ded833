"""A server and the controllers of several machines, as processes with data folders of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import vi
from tests.support.waiting import eventually

START_TIMEOUT_S = 60


@dataclass(frozen=True)
class Deployment:
    """A running server; its data folder is also that of the first machine."""

    server_dir: Path
    stack: ExitStack

    @property
    def organization_id(self) -> str:
        return str(self._read_json("credentials.json")["organization_id"])

    def client(self) -> vi.Client:
        return self.stack.enter_context(vi.Client(config_file=self.server_dir / "credentials.json"))

    def start_machine(self, data_dir: Path, **settings: str) -> subprocess.Popen[bytes]:
        """Start the controller of a machine, which is ended with the deployment.

        A machine with a data folder of its own joins the server first.
        """
        if data_dir == self.server_dir:
            command = ["runyard.controller"]
        else:
            with self.client() as client:
                invitation = client.machines.invite()
                join = ["--join", client.endpoint, "--token", invitation.token]
            command = ["runyard.cli", "worker", *join]
        return self.stack.enter_context(_run(command, data_dir, settings))

    def _read_json(self, name: str) -> dict[str, str]:
        return dict(json.loads((self.server_dir / name).read_text()))


@contextmanager
def deploy(server_dir: Path, **settings: str) -> Iterator[Deployment]:
    """Start a server, and end it with all machines."""
    with ExitStack() as stack:
        server = stack.enter_context(_run(["runyard.server"], server_dir, settings | {"PORT": "0"}))
        eventually(
            lambda: server.poll() is None and (server_dir / "server.json").exists(),
            timeout_s=START_TIMEOUT_S,
            what="the server has started",
        )
        yield Deployment(server_dir, stack)


def count_bytes(data_dir: Path, *words: str) -> int:
    """Return the bytes of all files below whose path contains one of the words."""
    return sum(
        path.stat().st_size
        for path in data_dir.rglob("*")
        if path.is_file() and any(word in str(path.relative_to(data_dir)) for word in words)
    )


@contextmanager
def _run(
    command: list[str], data_dir: Path, settings: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("RUNYARD_")
    } | {
        f"RUNYARD_{name}": value
        for name, value in {
            "DATA_DIR": str(data_dir), "THREADS": "1", "GRACE_S": "5", "WARM": "0", **settings
        }.items()
    }  # fmt: skip
    data_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
    with open(data_dir / f"{command[0]}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *command], env=environ, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()

"""Starts supervisors as detached processes: forked from the warm parent, or cold without one.

The warm parent has torch imported, so a supervisor forked from it, and the trainer that this one
forks, start in a moment; a cold start spends seconds on the same imports. Nothing else differs. The
supervisor leads a session of its own and writes its log to the run folder. It gets its token
through a socket or an inherited descriptor, because other users can read arguments and environment.

The warm parent is started with placeholders for both marks in its environment (see
``runyard.processes``).
"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runyard.executors import StartRequest, Warmth
from runyard.ports import Identity
from runyard.processes import ATTEMPT_MARK, MARK_PLACEHOLDER, SUPERVISOR_MARK, identify
from runyard.rundir import AttemptDir
from runyard.settings import Settings
from runyard.supervisor.launch import filter_environment

log = logging.getLogger(__name__)

SUPERVISE = "runyard.supervisor.main:supervise"
LONGEST_SOCKET_PATH = 100
END_TIMEOUT_S = 5.0


class LocalExecutor:
    """Starts supervisors on this machine, and owns the warm parent of one controller."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._socket = settings.machine_dir / "warm.sock"
        self._log = settings.logs_dir / "warm.log"
        self._warm: subprocess.Popen[bytes] | None = None
        self._cold: list[subprocess.Popen[bytes]] = []

    def start(self, request: StartRequest) -> Identity | None:
        AttemptDir(request.folder).supervisor_log.parent.mkdir(mode=0o700, exist_ok=True)
        if self.warmth() == "ready":
            identity = self._start_warm(request)
            if identity is not None:
                return identity
        return self._start_cold(request)

    def warmth(self) -> Warmth:
        if not self._settings.warm or len(os.fsencode(self._socket)) > LONGEST_SOCKET_PATH:
            return "off"
        if self._warm is None or self._warm.poll() is not None:
            return "down"
        return "ready" if _is_listening(self._socket) else "starting"

    def warm_up(self) -> None:
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        with open(self._log, "ab") as output:
            self._warm = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "runyard.trainer.warm",
                    str(self._socket),
                    "--child",
                    SUPERVISE,
                ],
                env={
                    **filter_environment(os.environ),
                    ATTEMPT_MARK: MARK_PLACEHOLDER,
                    SUPERVISOR_MARK: MARK_PLACEHOLDER,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def reap(self) -> None:
        self._cold = [process for process in self._cold if process.poll() is None]

    def close(self) -> None:
        if self._warm is None or self._warm.poll() is not None:
            return
        self._warm.terminate()
        try:
            self._warm.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._warm.kill()
            self._warm.wait()

    def _start_warm(self, request: StartRequest) -> Identity | None:
        """Start a supervisor from the warm parent; return None if that fails, and a cold start is
        needed.
        """
        from runyard.trainer.warm import request_fork  # imports no torch

        message: dict[str, Any] = {
            "folder": str(request.folder),
            **_name_credentials(request),
            "log": str(AttemptDir(request.folder).supervisor_log),
        }
        if request.environment:
            message["environment"] = dict(request.environment)
        try:
            answer = request_fork(self._socket, message)
        except (OSError, ValueError) as error:
            log.warning(
                "the warm parent does not answer (%s); starting %s cold", error, request.mark
            )
            return None
        if "pid" not in answer:
            log.warning("the warm parent cannot start %s: %s", request.mark, answer.get("error"))
            return None
        return identify(answer["pid"])

    def _start_cold(self, request: StartRequest) -> Identity | None:
        reader, writer = os.pipe()
        try:
            # This fits into the pipe's buffer, so the write does not block without a reader.
            os.write(writer, json.dumps(_name_credentials(request)).encode())
            os.close(writer)
            with open(AttemptDir(request.folder).supervisor_log, "ab") as output:
                command = [sys.executable, "-P", "-m", "runyard.supervisor", str(request.folder)]
                process = subprocess.Popen(
                    [*command, "--credentials-fd", str(reader)],
                    env={
                        **filter_environment(os.environ),
                        **request.environment,
                        SUPERVISOR_MARK: request.mark,
                    },
                    pass_fds=(reader,),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        finally:
            os.close(reader)
        self._cold.append(process)
        return identify(process.pid)


def _name_credentials(request: StartRequest) -> dict[str, Any]:
    """Return what a supervisor needs to reach the server, as JSON."""
    return {
        "endpoint": request.endpoint,
        "token": request.token,
        "trust": dataclasses.asdict(request.trust),
    }


def _is_listening(socket_path: Path) -> bool:
    """Return whether the warm parent accepts requests: it binds its socket after all imports."""
    return socket_path.is_socket()

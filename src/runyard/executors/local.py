"""Supervisors as detached processes on this machine: forked from the warm parent, or started cold without one.

The warm parent has torch imported, so a supervisor forked from it, and the trainer that one forks, begin in a moment;
a cold start pays seconds for the same imports. Which way is taken changes nothing else. Either way a supervisor leads a
session of its own, writes its log to the run folder, and is handed its token through a socket or an inherited
descriptor: arguments and environment can be read by others.

The warm parent is started with room for both marks in its environment (``runyard.processes`` says why).
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from runyard import rundir
from runyard.executors import Order, Warmth
from runyard.ports import Identity
from runyard.processes import ATTEMPT_MARK, MARK_ROOM, SUPERVISOR_MARK, identify
from runyard.settings import Settings
from runyard.supervisor.launch import trainer_environment

log = logging.getLogger(__name__)

SUPERVISE = "runyard.supervisor.main:supervise"
LONGEST_SOCKET_PATH = 100
END_TIMEOUT_S = 5.0


class LocalExecutor:
    """Starts supervisors on this machine, and keeps the warm parent of one controller."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._socket = settings.machine_dir / "warm.sock"
        self._log = settings.logs_dir / "warm.log"
        self._warm: subprocess.Popen[bytes] | None = None
        self._cold: list[subprocess.Popen[bytes]] = []

    def start(self, order: Order) -> Identity | None:
        (order.folder / rundir.SUPERVISOR_LOG).parent.mkdir(mode=0o700, exist_ok=True)
        if self.warmth() == "ready":
            identity = self._start_warm(order)
            if identity is not None:
                return identity
        return self._start_cold(order)

    def warmth(self) -> Warmth:
        if not self._settings.warm or len(os.fsencode(self._socket)) > LONGEST_SOCKET_PATH:
            return "off"
        if self._warm is None or self._warm.poll() is not None:
            return "down"
        return "ready" if _accepts(self._socket) else "starting"

    def warm_up(self) -> None:
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        with open(self._log, "ab") as output:
            self._warm = subprocess.Popen(
                [sys.executable, "-P", "-m", "runyard.trainer.warm", str(self._socket), "--child", SUPERVISE],
                env={**trainer_environment(os.environ), ATTEMPT_MARK: MARK_ROOM, SUPERVISOR_MARK: MARK_ROOM},
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

    def _start_warm(self, order: Order) -> Identity | None:
        """None when the warm parent could not do it; then a cold start is as good, only slower."""
        from runyard.trainer.warm import ask  # imports no torch

        request: dict[str, Any] = {
            "folder": str(order.folder),
            "endpoint": order.endpoint,
            "token": order.token,
            "log": str(order.folder / rundir.SUPERVISOR_LOG),
        }
        if order.environment:
            request["environment"] = dict(order.environment)
        try:
            answer = ask(self._socket, request)
        except (OSError, ValueError) as error:
            log.warning("The warm parent does not answer (%s); starting %s cold", error, order.mark)
            return None
        if "pid" not in answer:
            log.warning("The warm parent cannot start %s: %s", order.mark, answer.get("error"))
            return None
        return identify(answer["pid"])

    def _start_cold(self, order: Order) -> Identity | None:
        reader, writer = os.pipe()
        try:
            # Less than a pipe holds, so nobody has to read while we write.
            os.write(writer, json.dumps({"endpoint": order.endpoint, "token": order.token}).encode())
            os.close(writer)
            with open(order.folder / rundir.SUPERVISOR_LOG, "ab") as output:
                command = [sys.executable, "-P", "-m", "runyard.supervisor", str(order.folder)]
                process = subprocess.Popen(
                    [*command, "--credentials-fd", str(reader)],
                    env={**trainer_environment(os.environ), **order.environment, SUPERVISOR_MARK: order.mark},
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


def _accepts(socket_path: Path) -> bool:
    """Whether the warm parent listens: it binds its socket only when everything is imported."""
    return socket_path.is_socket()

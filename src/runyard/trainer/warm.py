"""The warm parent: a process that has imported everything and is forked when a run starts.

    python -m runyard.trainer.warm SOCKET --child module:function

Importing torch and transformers takes seconds. A fork of a process that has imported them takes
milliseconds and shares its memory. A fork copies one thread only, so this process must never have a
second one: it imports, but runs no tensor operation and starts nothing. It listens on a unix socket
that only its user may open, reads one request per connection, forks, and answers with the child's
identity:

    {"folder": "...", "endpoint": "...", "token": "...", "trust": {...}, "log": "...",
     "environment": {...}}
    {"pid": 123, "startTicks": 456}    or    {"error": "..."}

``trust``, ``log`` and ``environment`` are optional. The child leads a session of its own and calls
the named function with the folder, ``endpoint=``, ``token=``, ``trust=`` and ``train=``. The
function is named by a string because the trainer does not import the supervisor. When the process
that started the parent is gone, the parent exits. Its children continue, each with its own
supervision.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from runyard.processes import identify

MAX_REQUEST_BYTES = 64 << 10
REQUEST_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.5  # for the parent process, and for children to reap
Child = Callable[..., int | None]


def request_fork(
    socket_path: Path, request: dict[str, Any], *, timeout_s: float = REQUEST_TIMEOUT_S
) -> dict[str, Any]:
    """Send one request to a warm parent; return its answer.

    Raises:
        OSError: nothing listens on the socket, or no answer came in time.
        ValueError: the answer is not an object.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(socket_path))
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(_receive_line(connection))
    if not isinstance(answer, dict):
        raise ValueError(f"the warm parent answered {answer!r}; expected an object")
    return answer


def serve(socket_path: Path, child: Child, train: Callable[[Path], int]) -> None:
    """Listen until the process that started us is gone or SIGTERM comes."""
    parent = os.getppid()
    # Signals write to this pipe, which wakes up ``select``.
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_read, False)
    os.set_blocking(wakeup_write, False)
    signals: list[int] = []
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    listener = listen(socket_path)
    try:
        while not signals and os.getppid() == parent:
            ready, _, _ = select.select([listener.fileno(), wakeup_read], [], [], POLL_INTERVAL_S)
            if wakeup_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup_read, 4096)
            _reap_children()
            if listener.fileno() in ready:
                _handle_request(listener, child, train)
    finally:
        listener.close()
        socket_path.unlink(missing_ok=True)


def listen(socket_path: Path) -> socket.socket:
    """Return the listening socket, with mode 0600, in place of one that a killed process left."""
    socket_path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(socket_path))
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


def _handle_request(listener: socket.socket, child: Child, train: Callable[[Path], int]) -> None:
    """Handle one request. A caller that stalls, vanishes or sends garbage costs a timeout."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(REQUEST_TIMEOUT_S)
        try:
            request = _parse_request(json.loads(_receive_line(connection)))
        except (OSError, ValueError) as error:
            answer: dict[str, Any] = {"error": str(error)}
        else:
            pid = _fork(request, child, train)
            identity = identify(pid)
            answer = {"pid": pid, "startTicks": identity.start_ticks if identity else 0}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(answer).encode() + b"\n")


def _parse_request(request: Any) -> dict[str, Any]:
    if not isinstance(request, dict) or not all(
        isinstance(request.get(n), str) for n in ("folder", "endpoint", "token")
    ):
        raise ValueError("a request must be an object with the strings folder, endpoint and token")
    if (
        not isinstance(request.get("environment") or {}, dict)
        or not isinstance(request.get("trust") or {}, dict)
        or not isinstance(request.get("log") or "", str)
    ):
        raise ValueError("environment and trust must be objects and log a string, if present")
    return request


def _fork(request: dict[str, Any], child: Child, train: Callable[[Path], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run_child(request, child, train)
    return pid


def _run_child(request: dict[str, Any], child: Child, train: Callable[[Path], int]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _redirect_output(request.get("log"))
        # The parent's socket and the caller's connection must not stay open in the child.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.update(
            {str(name): str(value) for name, value in (request.get("environment") or {}).items()}
        )
        code = (
            child(
                Path(request["folder"]),
                endpoint=request["endpoint"],
                token=request["token"],
                trust=request.get("trust"),
                train=train,
            )
            or 0
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    # The last frame of a process: the trace goes to its log, the code to its parent.
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect_output(log: str | None) -> None:
    output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _reap_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _receive_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(4096)
        if not piece:
            raise ValueError("the connection closed within a line")
        line += piece
        if len(line) > MAX_REQUEST_BYTES:
            raise ValueError(f"a request may have at most {MAX_REQUEST_BYTES} bytes")
    return line


def main(arguments: list[str]) -> int:
    """Import everything, then serve. The socket appears when the process is ready."""
    parser = argparse.ArgumentParser(prog="python -m runyard.trainer.warm")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--child", required=True, help="module:function that a child calls")
    given = parser.parse_args(arguments)
    parent = os.getppid()
    # scikit-learn imports pandas where it is installed, and pandas pyarrow, whose allocator starts
    # a thread; a process that forks must have only one.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    from runyard.trainer.main import preload, train_attempt

    module, _, function = given.child.partition(":")
    child = getattr(importlib.import_module(module), function)
    preload()
    gc.collect()
    gc.freeze()
    if os.getppid() == parent:
        serve(given.socket, child, train_attempt)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A TCP relay between two parts of an instance, whose link a test can spoil: the network, as far as faults go.

One thread listens and two carry each connection, so that a connection can stand still while others go on. What is wrong
with the link is one word, looked at anew for every piece of data; healing therefore also frees what is under way.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Literal

Spoilt = Literal["", "refused", "half-open", "slow", "cut", "no-answers"]
SPOILT: tuple[Spoilt, ...] = ("refused", "half-open", "slow", "cut", "no-answers")
PIECE_BYTES = 16 << 10
SLOW_S = 0.3


class Link:
    """``spoil`` and ``heal`` may be called at any time. ``lose_share`` drops that share of all answers instead."""

    def __init__(self, target: tuple[str, int], *, seed: int = 0):
        self._target = target
        self._random = random.Random(seed)  # noqa: S311 - chooses faults, guards nothing
        self._spoilt: Spoilt = ""
        self._cut_after_bytes = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.lose_share = 0.0
        self.lost_answers = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def spoil(self, how: Spoilt) -> None:
        self._cut_after_bytes = self._random.randrange(1, 2000)
        self._spoilt = how
        if how == "refused":
            self._drop_all()

    def heal(self) -> None:
        """New connections are whole again; those that were spoilt end, as after a restart of a router."""
        self._spoilt = ""
        self._drop_all()

    def close(self) -> None:
        self._listener.close()
        self._drop_all()

    def _drop_all(self) -> None:
        with self._guard:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self._spoilt == "refused":
                return
            with socket.create_connection(self._target, timeout=5) as far:
                far.settimeout(None)
                with self._guard:
                    self._open |= {near, far}
                there = threading.Thread(target=self._pump, args=(near, far, False), daemon=True)
                there.start()
                self._pump(far, near, True)
                there.join()
        with self._guard:
            self._open = {one for one in self._open if one.fileno() >= 0}

    def _pump(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if self._spoilt == "slow":
                    time.sleep(SLOW_S)
                if is_answer and (self._spoilt == "no-answers" or self._random.random() < self.lose_share):
                    self.lost_answers += 1
                    break
                if self._spoilt == "half-open":
                    continue  # taken and never delivered
                if self._spoilt == "cut" and carried + len(data) > self._cut_after_bytes:
                    sink.sendall(data[: max(0, self._cut_after_bytes - carried)])
                    break
                sink.sendall(data)
                carried += len(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

"""A TCP relay between two parts of an instance, which a test can break to simulate network faults.

One thread listens and two relay each connection, so that one connection can stall while others
continue. The current fault is checked for each chunk of data, so healing also affects open
connections.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from typing import Literal

LinkFault = Literal["", "refused", "half-open", "slow", "cut", "no-answers"]
LINK_FAULTS: tuple[LinkFault, ...] = ("refused", "half-open", "slow", "cut", "no-answers")
PIECE_BYTES = 16 << 10
SLOW_S = 0.3


class Link:
    """A relay with faults. ``break_with`` and ``heal`` may be called at any time.

    ``answer_loss_rate`` is the share of answers to drop.
    """

    def __init__(self, target: tuple[str, int], *, seed: int = 0):
        self._target = target
        self._random = random.Random(seed)  # noqa: S311 - chooses faults, guards nothing
        self._fault: LinkFault = ""
        self._cut_after_bytes = 0
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.answer_loss_rate = 0.0
        self.lost_answers = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, name="link", daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def break_with(self, how: LinkFault) -> None:
        self._cut_after_bytes = self._random.randrange(1, 2000)
        self._fault = how
        if how == "refused":
            self._drop_all()

    def heal(self) -> None:
        """Repair the link: new connections work, and broken ones end, as after a restart of a
        router.
        """
        self._fault = ""
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
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self._fault == "refused":
                return
            with socket.create_connection(self._target, timeout=5) as far:
                far.settimeout(None)
                with self._guard:
                    self._open |= {near, far}
                there = threading.Thread(
                    target=self._copy_data, args=(near, far, False), daemon=True
                )
                there.start()
                self._copy_data(far, near, True)
                there.join()
        with self._guard:
            self._open = {one for one in self._open if one.fileno() >= 0}

    def _copy_data(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if self._fault == "slow":
                    time.sleep(SLOW_S)
                if is_answer and (
                    self._fault == "no-answers" or self._random.random() < self.answer_loss_rate
                ):
                    self.lost_answers += 1
                    break
                if self._fault == "half-open":
                    continue  # accepted and never delivered
                if self._fault == "cut" and carried + len(data) > self._cut_after_bytes:
                    sink.sendall(data[: max(0, self._cut_after_bytes - carried)])
                    break
                sink.sendall(data)
                carried += len(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

"""A fake server that records requests, and can refuse them, fail, or lose its answers.

It serves one attempt at a time, which is all a supervisor sees of a server, and hands out
assignments to a controller.
"""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Quiet(ThreadingHTTPServer):
    """An HTTP server that ignores the broken connections of killed clients."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


class FakeServer:
    """A server of the internal protocol over a real socket."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lines: dict[str, list[str]] = defaultdict(list)
        self.resumable: list[dict[str, Any]] = []
        self.dataset: dict[str, Any] | None = None
        self.weights: dict[str, Any] | None = None
        self.contents = b""
        self.kept: list[dict[str, Any]] | None = None  # None: every reported checkpoint
        self.offsets: dict[str, int] = defaultdict(int)
        self.blobs: dict[str, bytes] = {}
        self.checkpoints: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.processes: list[dict[str, Any]] = []
        self.phases: list[str | None] = []
        self.notes: list[str | None] = []
        self.renewal: dict[str, Any] = {
            "action": "continue",
            "lease_s": 1.2,
            "grace_s": 5.0,
            "epoch": "e1",
        }
        self.credentials: set[str | None] = set()
        self.is_refusing = False
        self.waiting: list[dict[str, Any]] = []  # assignments to be claimed
        self.claims: dict[str, dict[str, Any]] = {}
        self.offers: list[dict[str, Any]] = []  # what controllers claimed with
        self.machines: dict[str, dict[str, Any]] = {}  # what their controllers have reported
        # The answer to a machine's report; None: a server of an earlier version, which has none.
        self.instructions: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.open: list[dict[str, Any]] = []  # assignments claimed and not finished
        # Maps a path and its number of calls to "503", "lose" (done, but the answer is lost), "cut"
        # (half of the answer is sent), or None.
        self.fail: Callable[[str, int], str | None] = lambda path, times: None
        self.changed = threading.Condition()
        self._http = _Quiet(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 15.0) -> None:
        """Wait for a condition that a call or another process changes; check it periodically."""
        deadline_s = time.monotonic() + timeout_s
        with self.changed:
            while not condition():
                assert time.monotonic() < deadline_s, self.calls[-20:]
                self.changed.wait(0.05)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/internal/v1/claims":
            return 200, {"assignment": self._claim(json.loads(body))}
        if method == "PUT" and path.startswith("/internal/v1/machines/"):
            report = json.loads(body)
            if self.instructions is None and "run_folders" in report:
                return 400, {"code": "InvalidBody", "message": "unknown field `run_folders`"}
            self.machines[path.rpartition("/")[2]] = report
            return (204, None) if self.instructions is None else (200, self.instructions(report))
        if path.startswith("/internal/v1/machines/"):
            return 200, {"attempts": self.open}
        word = path.removeprefix("/internal/v1/attempt/").partition("?")[0]
        if self.is_refusing:
            return 409, {"code": "LeaseLost", "message": "the attempt is somebody else's"}
        if word.startswith("blobs/"):
            return self._blob(method, word.removeprefix("blobs/"), body)
        if word == "dataset":
            missing = {"code": "NotFound", "message": "built-in data"}
            return (404, missing) if self.dataset is None else (200, self.dataset)
        if word == "weights":
            nothing = {"code": "NotFound", "message": "none of another run"}
            return (404, nothing) if self.weights is None else (200, self.weights)
        if word == "dataset/contents":
            return 200, self.contents
        if word == "resume":
            return 200, {"checkpoints": self.resumable}
        document = json.loads(body)
        if word == "lines":
            return 200, {"offset": self._lines(document)}
        if word == "process":
            self.offsets.clear()  # a new attempt has streams of its own
        if word == "finish":
            self.open.clear()
        if word == "renew":
            self.phases.append(document["phase"])
            self.notes.append(document["note"])
        {"process": self.processes, "checkpoints": self.checkpoints, "finish": self.reports}.get(
            word, []
        ).append(document)
        kept = (
            self.kept
            if self.kept is not None
            else [
                {"attempt": 1, "checkpoint_id": report["checkpoint_id"]}
                for report in self.checkpoints
            ]
        )
        return {"checkpoints": (201, {"kept": kept}), "finish": (204, None)}.get(
            word, (200, self.renewal)
        )

    def _claim(self, claim: dict[str, Any]) -> dict[str, Any] | None:
        self.offers.append(claim)
        self.changed.wait_for(lambda: self.waiting or claim["claim_id"] in self.claims, 0.3)
        if claim["claim_id"] not in self.claims and self.waiting:
            assignment = self.claims[claim["claim_id"]] = self.waiting.pop(0)
            self.open.append(assignment)
        return self.claims.get(claim["claim_id"])

    def _blob(self, method: str, sha256: str, body: bytes) -> tuple[int, Any]:
        if method == "HEAD":
            return (200 if sha256 in self.blobs else 404), None
        if method == "GET":
            known = self.blobs.get(sha256)
            return (
                (200, known)
                if known is not None
                else (409, {"code": "BlobMissing", "message": "it is lost"})
            )
        self.blobs[sha256] = body
        return 201, None

    def _lines(self, document: dict[str, Any]) -> int:
        stream = document["stream"]
        if document["offset"] == self.offsets[stream]:
            self.lines[stream] += document["lines"]
            self.offsets[stream] = document["next_offset"]
        return self.offsets[stream]

    def _handler(fake: "FakeServer") -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with fake.changed:
                    fake.calls.append(f"{self.command} {self.path}")
                    fake.credentials.add(self.headers.get("Authorization"))
                    failure = fake.fail(self.path, fake.calls.count(f"{self.command} {self.path}"))
                    status, answer = (
                        (503, {"code": "Busy"})
                        if failure == "503"
                        else fake.answer(self.command, self.path, body)
                    )
                    fake.changed.notify_all()
                if failure == "lose":
                    self.close_connection = True
                    return
                if answer is None or self.command == "HEAD":
                    data = b""
                else:
                    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type",
                    "application/problem+json" if status >= 400 else "application/json",
                )
                if status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if failure == "cut" else data)
                self.close_connection = failure == "cut"

            do_GET = do_POST = do_PUT = do_HEAD = do_any  # noqa: N815

        return Handler

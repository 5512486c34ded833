"""Rendering of chat templates in a child process with CPU and memory limits.

A chat template is a program written by the author of the model folder. Jinja's sandbox denies it
files and objects, but not nested loops, recursion, or strings that double, and a single operation
on huge numbers cannot be interrupted within the process, whichever thread waits for it. So a child
is forked before the weights are loaded (it shares no page that training writes to) and renders one
conversation after another. The kernel kills it when one takes more CPU time or memory than a
template can need. An interrupted rendering ends the run: a retry would fail again.

The same child tries the tokenizer on texts that expose patterns with catastrophic backtracking.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import struct
import threading
import time
import warnings
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol

from runyard.trainer.errors import InvalidFlow

CPU_S = 10.0  # per rendering; real templates take less than a thousandth of it
WAIT_S = 120.0  # for a child that gets no CPU time at all
MEMORY_BYTES = 512 << 20  # beyond what the process uses when it is forked
MAX_TEXT_CHARACTERS = 1 << 20
MAX_REASON_CHARACTERS = 300
# The parent may still need a rendering to finish its step.
_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
)
_READY = b"r"
_LENGTH = struct.Struct("<Q")
_REPEATED = 2000
PROBES = tuple(
    piece * (_REPEATED // len(piece)) + end
    for piece in ("a", "A", " ", "0", "\n", "!", "a ")
    for end in ("", "\x01")
)

Messages = list[dict[str, Any]]


class Renderer(Protocol):
    """Formats a conversation with the model's chat template."""

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str: ...


class BuiltInTemplate:
    """The template of the model that Runyard builds itself, rendered in this process."""

    def __init__(self, processor: Any):
        self._processor = processor

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str:
        return _render(self._processor, messages, with_generation_prompt)


class TemplateProcess:
    """The template of a model folder, rendered in a child process.

    Usable from any thread, and after a fork.
    """

    def __init__(self, processor: Any):
        self._processor = processor
        self._name = (
            Path(str(getattr(processor.tokenizer, "name_or_path", ""))).name or "the model folder"
        )
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._owner = 0
        self._get_child()

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str:
        """Return the conversation as text.

        Raises:
            InvalidFlow: the template failed or exceeded a limit.
        """
        answer = self._request(
            {"messages": messages, "prompt": with_generation_prompt}, "chat template"
        )
        return str(answer["text"])

    def check_tokenizer(self) -> None:
        """Check that the tokenizer splits texts that are hard for backtracking patterns.

        Raises:
            InvalidFlow: it exceeded a limit.
        """
        self._request({"probes": list(PROBES)}, "tokenizer")

    def _request(self, request: dict[str, Any], part: str) -> dict[str, Any]:
        with self._lock:
            try:
                answer = self._get_child().request(request)
            except _Stopped as error:
                self._child = None
                raise self._make_error(part, str(error)) from None
            # An interrupt: a late answer of this child must not be taken for the next request's.
            except BaseException:
                self._child = None
                raise
        if "failure" in answer:
            raise self._make_error(part, answer["failure"])
        return answer

    def _make_error(self, part: str, reason: str) -> InvalidFlow:
        return InvalidFlow(
            f"the {part} of {self._name} {reason}; try: other weights, or a corrected "
            f"{_FILES[part]} in that folder"
        )

    def _get_child(self) -> "_Child":
        # A fork must not use its parent's pipes.
        if self._child is None or self._owner != os.getpid():
            self._child, self._owner = _Child(self._processor), os.getpid()
        return self._child


_FILES = {"chat template": "chat_template.jinja", "tokenizer": "tokenizer.json"}


class _Stopped(Exception):
    """The child ended before it answered; the message says why."""


class _Child:
    """A forked process that serves requests and ends with its parent or its last user."""

    def __init__(self, processor: Any):
        requests, request_end = os.pipe()
        answer_end, answers = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until the child ignores them
        with warnings.catch_warnings():
            # Python warns that other threads may hold locks; the child takes only its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _serve(requests, answers, processor, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(requests)
        os.close(answers)
        self._pid, self._requests, self._answers = pid, request_end, answer_end
        self._end = weakref.finalize(self, _kill, pid, os.getpid(), request_end, answer_end)
        with contextlib.suppress(OSError, EOFError, _Stopped):  # the first request will report it
            # The child has closed the run's lock.
            self._read(len(_READY), time.monotonic() + WAIT_S)

    def request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer. Raises _Stopped."""
        data = json.dumps(request).encode()
        deadline_s = time.monotonic() + WAIT_S
        try:
            _write(self._requests, _LENGTH.pack(len(data)) + data)
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline_s))
            if length > 16 * MAX_TEXT_CHARACTERS:
                raise _Stopped("sent a malformed answer")
            answer: dict[str, Any] = json.loads(self._read(length, deadline_s))
        except (OSError, EOFError):
            raise _Stopped(_describe_status(self._reap())) from None
        return answer

    def _read(self, length: int, deadline_s: float) -> bytes:
        data = b""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while len(data) < length:
            if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                self._end()
                raise _Stopped(f"did not answer within {WAIT_S:.0f} s")
            piece = os.read(self._answers, min(length - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _reap(self) -> int:
        if self._end.detach() is None:  # already killed and reaped
            return 0
        os.close(self._requests)
        os.close(self._answers)
        try:
            return os.waitpid(self._pid, 0)[1]
        except ChildProcessError:  # another part of this process waits for every child
            return 0


def _describe_status(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number == signal.SIGPROF:
        return f"was stopped after {CPU_S:g} s of CPU time, which is the limit"
    if number == signal.SIGSEGV:
        return "was stopped: it nests too deeply"
    return f"was stopped by {signal.Signals(number).name}" if number else "ended its process"


def _kill(pid: int, owner: int, *descriptors: int) -> None:
    if os.getpid() != owner:
        return
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(requests: int, answers: int, processor: Any, signals: Iterable[int]) -> NoReturn:
    """Serve requests until the parent closes the pipe; never returns."""
    try:
        # Close the run's lock and every file and device of the parent: they must not outlive it.
        low, high = sorted((requests, answers))
        for begin, end in ((3, low), (low + 1, high), (high + 1, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(begin, end)
        signal.set_wakeup_fd(-1)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _limit_memory()
        gc.freeze()
        _write(answers, _READY)
        while True:
            (length,) = _LENGTH.unpack(_read_exactly(requests, _LENGTH.size))
            request = json.loads(_read_exactly(requests, length))
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            data = json.dumps(_handle(processor, request)).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(answers, _LENGTH.pack(len(data)) + data)
    except BaseException:  # noqa: S110  # the parent is gone, or will notice that the child is
        pass
    finally:
        os._exit(0)


def _handle(processor: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        for probe in request.get("probes", ()):
            try:
                processor.tokenizer(probe, add_special_tokens=False)
            except MemoryError:
                raise
            # A tokenizer without these characters may still have those of the data.
            except Exception:  # noqa: S112
                continue
        text = (
            _render(processor, request["messages"], request["prompt"])
            if "messages" in request
            else ""
        )
    except MemoryError:
        return {
            "failure": f"needs more than {MEMORY_BYTES >> 20} MiB of memory, which is the limit"
        }
    except RecursionError:
        return {"failure": "nests too deeply"}
    except Exception as error:  # templates may raise any class, including on purpose
        reason = f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]
        return {
            "failure": "does not support this conversation "
            f"({reason.encode(errors='replace').decode()})"
        }
    if len(text) > MAX_TEXT_CHARACTERS:
        return {"failure": f"wrote {len(text):,} characters; the limit is {MAX_TEXT_CHARACTERS:,}"}
    return {"text": text}


def _render(processor: Any, messages: Messages, with_generation_prompt: bool) -> str:
    return str(
        processor.apply_chat_template(
            messages, add_generation_prompt=with_generation_prompt, tokenize=False
        )
    )


def _limit_memory() -> None:
    """Limit the address space to ``MEMORY_BYTES`` more than now, where its size is known."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit, limit if hard == resource.RLIM_INFINITY else min(limit, hard)),
        )


def _read_exactly(descriptor: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(descriptor, length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

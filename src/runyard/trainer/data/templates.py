"""Renders chat templates of model folders in a process of its own, within limits.

A chat template is a program from whoever made the model folder. Jinja's sandbox keeps it from files and objects, but
not from loops within loops, recursion, or texts that double, and one operation on large numbers cannot be interrupted
within a process, whichever thread waits for it. So a child is forked before the weights are loaded (it shares no page
that training writes to), renders one conversation after another, and is ended by the kernel when one takes more
processor time or memory than a template can need. A rendering that is broken off ends the run: trying again would fail
again.

The same child tries the tokenizer on texts with which a pattern that backtracks without end shows itself.
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

CPU_S = 10.0  # of one rendering; real templates take less than a thousandth of it
WAIT_S = 120.0  # for a child that is not even given the processor
MEMORY_BYTES = 512 << 20  # beyond what the process has when it is forked
LARGEST_TEXT_CHARACTERS = 1 << 20
LONGEST_REASON_CHARACTERS = 300
_IGNORED = (signal.SIGINT, signal.SIGTERM)  # the parent may still need an answer to finish its step
_READY = b"r"
_LENGTH = struct.Struct("<Q")
_REPEATED = 2000
PROBES = tuple(
    piece * (_REPEATED // len(piece)) + end for piece in ("a", "A", " ", "0", "\n", "!", "a ") for end in ("", "\x01")
)

Messages = list[dict[str, Any]]


class Renderer(Protocol):
    """Writes a conversation as the model's chat template does."""

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str: ...


class BuiltInTemplate:
    """The template of the model that Runyard builds itself, rendered here."""

    def __init__(self, processor: Any):
        self._processor = processor

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str:
        return _rendered(self._processor, messages, with_generation_prompt)


class TemplateProcess:
    """The template of a model folder, rendered in a child process. May be used by any thread, and after a fork."""

    def __init__(self, processor: Any):
        self._processor = processor
        self._name = Path(str(getattr(processor.tokenizer, "name_or_path", ""))).name or "the model folder"
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._owner = 0
        self._of_this_process()

    def render(self, messages: Messages, *, with_generation_prompt: bool) -> str:
        """Return the conversation as text.

        Raises:
            InvalidFlow: the template failed, or was stopped at a limit.
        """
        answer = self._ask({"messages": messages, "prompt": with_generation_prompt}, "chat template")
        return str(answer["text"])

    def check_tokenizer(self) -> None:
        """Let the tokenizer split texts that are hard for patterns which backtrack.

        Raises:
            InvalidFlow: it was stopped at a limit.
        """
        self._ask({"probes": list(PROBES)}, "tokenizer")

    def _ask(self, request: dict[str, Any], part: str) -> dict[str, Any]:
        with self._lock:
            try:
                answer = self._of_this_process().ask(request)
            except _Stopped as error:
                self._child = None
                raise self._refused(part, str(error)) from None
            except BaseException:  # an interrupt: what the child still answers belongs to no later question
                self._child = None
                raise
        if "failure" in answer:
            raise self._refused(part, answer["failure"])
        return answer

    def _refused(self, part: str, why: str) -> InvalidFlow:
        return InvalidFlow(
            f"the {part} of {self._name} {why}; try: other weights, or a corrected {_FILES[part]} in that folder"
        )

    def _of_this_process(self) -> "_Child":
        if self._child is None or self._owner != os.getpid():  # a fork must not talk over its parent's connection
            self._child, self._owner = _Child(self._processor), os.getpid()
        return self._child


_FILES = {"chat template": "chat_template.jinja", "tokenizer": "tokenizer.json"}


class _Stopped(Exception):
    """The child ended before it had an answer; the message says why."""


class _Child:
    """A forked process that answers one request after another, and ends with its parent or its last user."""

    def __init__(self, processor: Any):
        requests, request_end = os.pipe()
        answer_end, answers = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until the child ignores them
        with warnings.catch_warnings():
            # Python warns of locks that other threads hold: the child takes none but its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _serve(requests, answers, processor, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(requests)
        os.close(answers)
        self._pid, self._requests, self._answers = pid, request_end, answer_end
        self._end = weakref.finalize(self, _end, pid, os.getpid(), request_end, answer_end)
        with contextlib.suppress(OSError, EOFError, _Stopped):  # the first question finds out
            self._read(len(_READY), time.monotonic() + WAIT_S)  # it has let go of the run's lock

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises _Stopped."""
        data = json.dumps(request).encode()
        deadline_s = time.monotonic() + WAIT_S
        try:
            _write(self._requests, _LENGTH.pack(len(data)) + data)
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline_s))
            if length > 16 * LARGEST_TEXT_CHARACTERS:
                raise _Stopped("wrote an answer that cannot be read")
            answer: dict[str, Any] = json.loads(self._read(length, deadline_s))
        except (OSError, EOFError):
            raise _Stopped(_why(self._reap())) from None
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
        if self._end.detach() is None:  # it has been ended before
            return 0
        os.close(self._requests)
        os.close(self._answers)
        try:
            return os.waitpid(self._pid, 0)[1]
        except ChildProcessError:  # somebody waits for every child of this process
            return 0


def _why(status: int) -> str:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if number == signal.SIGPROF:
        return f"was stopped after {CPU_S:g} s of processor time, which is the limit"
    if number == signal.SIGSEGV:
        return "was stopped: it nests deeper than can be followed"
    return f"was stopped by {signal.Signals(number).name}" if number else "ended its process"


def _end(pid: int, owner: int, *descriptors: int) -> None:
    if os.getpid() != owner:
        return
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(requests: int, answers: int, processor: Any, signals: Iterable[int]) -> NoReturn:
    """Answer until nobody is left to ask."""
    try:
        # Not the run's lock, nor any file or device of the parent: they must end with it.
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
            (length,) = _LENGTH.unpack(_read_whole(requests, _LENGTH.size))
            request = json.loads(_read_whole(requests, length))
            signal.setitimer(signal.ITIMER_PROF, CPU_S)
            data = json.dumps(_answer(processor, request)).encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(answers, _LENGTH.pack(len(data)) + data)
    except BaseException:  # noqa: S110  # the parent is gone, or will see that we are
        pass
    finally:
        os._exit(0)


def _answer(processor: Any, request: dict[str, Any]) -> dict[str, Any]:
    try:
        for probe in request.get("probes", ()):
            try:
                processor.tokenizer(probe, add_special_tokens=False)
            except MemoryError:
                raise
            except Exception:  # noqa: S112 - one that does not know these characters may know those of the data
                continue
        text = _rendered(processor, request["messages"], request["prompt"]) if "messages" in request else ""
    except MemoryError:
        return {"failure": f"needs more than {MEMORY_BYTES >> 20} MiB of memory, which is the limit"}
    except RecursionError:
        return {"failure": "nests deeper than can be followed"}
    except Exception as error:  # whatever a template raises is its own, including what it raises on purpose
        reason = f"{type(error).__name__}: {error}"[:LONGEST_REASON_CHARACTERS]
        return {"failure": f"does not take this conversation ({reason.encode(errors='replace').decode()})"}
    if len(text) > LARGEST_TEXT_CHARACTERS:
        return {"failure": f"wrote {len(text):,} characters; at most {LARGEST_TEXT_CHARACTERS:,} are taken"}
    return {"text": text}


def _rendered(processor: Any, messages: Messages, with_generation_prompt: bool) -> str:
    return str(processor.apply_chat_template(messages, add_generation_prompt=with_generation_prompt, tokenize=False))


def _limit_memory() -> None:
    """Allow so much more than the process has now; nothing is limited where the system does not say how much it has."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit if hard == resource.RLIM_INFINITY else min(limit, hard)))


def _read_whole(descriptor: int, length: int) -> bytes:
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

"""Worker processes that encode samples, in the order in which they are needed.

Decoding and processing an image takes tens of milliseconds of one core, mostly in Python. So
processes are forked that share the model's processor and the dataset with this one: they need no
import, and no memory but what they change. Each gets one sample after another, and answers with its
tokens and packed images. Results are returned in the order of the samples, whichever worker was
first, and as many samples are ahead as ``AHEAD_BYTES`` allow.

Workers change no result. A sample whose worker is lost, hangs or fails is encoded in this process,
which raises the error again. The kernel ends workers together with the process that forked them.
They have neither its locks nor its other open files, except those that they read samples from.

Few or quick samples are encoded in this process alone, as its first ones show.
"""

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import struct
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import msgspec
import numpy as np

from runyard.datasets.pixels import BrokenImage
from runyard.processes import die_with_parent
from runyard.trainer.data.encode import EncodedSample
from runyard.trainer.data.image_resolution import TooLong
from runyard.trainer.data.pixels import PackedArray

AHEAD_BYTES = 128 << 20  # of encoded samples that wait to be read
TASKS_PER_WORKER = 2  # so that none waits for the next
NEIGHBORS_PER_WORKER = 8  # tasks about one image, which a worker decodes once
MIN_GAIN_S = 1.0  # forking a process that has a model takes up to a tenth of a second
POLL_S = 0.05
MESSAGE_TIMEOUT_S = 60.0  # within a message; then the worker counts as lost
SAMPLE_TIMEOUT_S = 120.0  # for a sample; a fork may wait for a lock that a thread held
ENCODED_ERRORS = {kind.__name__: kind for kind in (BrokenImage, TooLong)}
_TASK, _LENGTHS = struct.Struct("<q"), struct.Struct("<QQ")
_ALIGNMENT = 8
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # options of ``mallopt``

Encode = Callable[[int], EncodedSample]


class SampleSource:
    """Encodes samples by number, in worker processes once that is worth it.

    ``total`` samples will be read, in the order that ``expect`` names. Samples are ``near`` if they
    have the same image. ``descriptors`` are the open files that ``encode`` reads.
    """

    def __init__(
        self,
        encode: Encode,
        *,
        total: int,
        processes: int,
        near: Callable[[int, int], bool] = lambda one, other: False,
        descriptors: Callable[[], Sequence[int]] = tuple,
        check: Callable[[], None] = lambda: None,
    ):
        self._encode, self._left, self._processes = encode, total, processes
        self._near, self._descriptors, self._check = near, descriptors, check
        self._expected: list[int] = []
        self._workers: SampleWorkers | None = None
        self._read = 0

    def expect(self, numbers: Iterable[int]) -> None:
        """Name the samples that are read next, in order. Others that are ready are dropped."""
        self._expected = list(numbers)
        if self._workers is not None:
            self._workers.expect(self._expected)

    def read(self, number: int) -> EncodedSample:
        """Return a sample.

        Raises:
            BrokenImage, TooLong: it has none.
        """
        self._left -= 1
        if self._workers is not None:
            item = self._workers.read(number, self._check)
            if item is not None:
                return item
        began_s = time.monotonic()
        try:
            return self._encode(number)
        finally:
            self._read += 1
            self._start_if_worthwhile(number, time.monotonic() - began_s)

    def run(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` does, while workers continue; they would wait for a reader."""
        return work() if self._workers is None else self._workers.run(work)

    def close(self) -> None:
        """End the workers at once."""
        if self._workers is not None:
            self._workers.close()

    def _start_if_worthwhile(self, number: int, seconds: float) -> None:
        # The first sample also fills caches, such as that of rendered prompts.
        processes = min(self._processes, self._left)
        if self._workers is not None or processes < 2 or self._read < 2:
            return
        if seconds * self._left * (1 - 1 / processes) < MIN_GAIN_S:
            return
        self._workers = SampleWorkers(
            self._encode, processes, near=self._near, descriptors=self._descriptors()
        )
        at = self._expected.index(number) + 1 if number in self._expected else 0
        self._workers.expect(self._expected[at:])


class SamplesAhead:
    """Encodes the samples of coming batches in worker processes, from epoch and index.

    ``count`` samples are in an epoch. After ``start``, ``expect`` and ``read`` belong to one
    thread.
    """

    def __init__(
        self,
        encode: Callable[[int, int], EncodedSample],
        *,
        count: int,
        processes: int,
        descriptors: Callable[[], Sequence[int]] = tuple,
    ):
        self._encode, self._count, self.processes = encode, count, processes
        self._descriptors = descriptors
        self._workers: SampleWorkers | None = None

    @property
    def is_started(self) -> bool:
        return self._workers is not None

    def start(self) -> None:
        def encode(number: int) -> EncodedSample:
            return self._encode(*divmod(number, self._count))

        self._workers = SampleWorkers(encode, self.processes, descriptors=self._descriptors())

    def stop(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def expect(self, indices: Iterable[int], epoch: int) -> None:
        """Name the samples of the batches that are read next; others are dropped."""
        if self._workers is not None:
            self._workers.expect(epoch * self._count + index for index in indices)

    def read(self, epoch: int, index: int) -> EncodedSample | None:
        """Return a sample; None if this process has to encode it."""
        if self._workers is None:
            return None
        return self._workers.read(epoch * self._count + index, lambda: None)


class SampleWorkers:
    """Forked processes that encode samples, and the results that have not been read yet."""

    def __init__(
        self,
        encode: Encode,
        count: int,
        *,
        near: Callable[[int, int], bool] = lambda one, other: False,
        descriptors: Sequence[int] = (),
    ):
        self._near = near
        self._workers: list[_Worker] = []
        self._queue: deque[int] = deque()
        self._wanted: set[int] = set()
        self._results: dict[int, EncodedSample | Exception | None] = {}
        self._last: tuple[int, _Worker] | None = None
        self._most_ahead = (TASKS_PER_WORKER + 1) * count
        self._end = weakref.finalize(self, _end_workers, self._workers, os.getpid())
        for _ in range(count):
            self._workers.append(_Worker(encode, descriptors))

    def expect(self, numbers: Iterable[int]) -> None:
        """Name the samples that are read next, in order; drop all others."""
        ordered = list(numbers)
        self._wanted = set(ordered)
        self._results = {n: item for n, item in self._results.items() if n in self._wanted}
        in_work = {number for worker in self._workers for number in worker.tasks}
        self._queue = deque(n for n in ordered if n not in self._results and n not in in_work)
        self._assign()

    def read(self, number: int, check: Callable[[], None]) -> EncodedSample | None:
        """Return a sample, or None if this process has to encode it.

        ``check`` is called while waiting.
        """
        while number not in self._results:
            if not self._workers or not self._is_in_work(number):
                return None
            self.receive(POLL_S)
            check()
        self._wanted.discard(number)
        item = self._results.pop(number)
        self._assign()
        if isinstance(item, Exception):
            raise item
        return item

    def run(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` does in a thread, and receive results meanwhile."""
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append((work(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=call, name="writer", daemon=True)
        thread.start()
        while thread.is_alive():
            self.receive(POLL_S)
        found, error = outcome[0]
        if error is not None:
            raise error
        return found

    def receive(self, timeout_s: float) -> None:
        """Receive the results that arrive in time, and hand out more work."""
        poll = select.poll()
        busy = {worker.socket.fileno(): worker for worker in self._workers if worker.tasks}
        for descriptor in busy:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(timeout_s * 1000):
            worker = busy[descriptor]
            try:
                item, size_bytes = worker.receive()
            except (OSError, EOFError, msgspec.DecodeError):
                self._drop(worker)
                continue
            number = worker.tasks.popleft()
            worker.waits_since_s = time.monotonic()
            if number in self._wanted:
                self._results[number] = item
            if size_bytes:
                least = (TASKS_PER_WORKER + 1) * len(self._workers)
                self._most_ahead = max(least, AHEAD_BYTES // size_bytes)
        for worker in busy.values():
            if worker.is_hung and worker in self._workers:
                self._drop(worker)
        self._assign()

    def close(self) -> None:
        """End all workers at once."""
        self._end()

    def _is_in_work(self, number: int) -> bool:
        return number in self._queue or any(number in worker.tasks for worker in self._workers)

    def _assign(self) -> None:
        """Give workers their next samples."""
        while self._queue and self._workers:
            ahead = len(self._results) + sum(len(worker.tasks) for worker in self._workers)
            worker = self._choose_worker(self._queue[0])
            if worker is None or ahead >= self._most_ahead:
                return
            number = self._queue.popleft()
            self._last = number, worker
            try:
                worker.send(number)
            except OSError:
                self._results[number] = None
                self._drop(worker)

    def _choose_worker(self, number: int) -> "_Worker | None":
        """Return the worker that has the same image, or the one with the least to do, if any."""
        if self._last is not None and self._near(self._last[0], number):
            worker = self._last[1]
            if worker in self._workers and len(worker.tasks) < NEIGHBORS_PER_WORKER:
                return worker
        least = min(self._workers, key=lambda worker: len(worker.tasks))
        return least if len(least.tasks) < TASKS_PER_WORKER else None

    def _drop(self, worker: "_Worker") -> None:
        """Give up a lost worker; this process will encode its samples."""
        self._workers.remove(worker)
        self._results |= {n: None for n in worker.tasks if n in self._wanted}
        worker.end()


class _Worker:
    """One process, and the samples that it has yet to return, in order."""

    def __init__(self, encode: Encode, descriptors: Sequence[int]):
        self.tasks: deque[int] = deque()
        self.waits_since_s = 0.0  # for the first of its tasks, on the monotonic clock
        self.socket, theirs = socket.socketpair()
        parent_pid = os.getpid()
        ignored = (signal.SIGINT, signal.SIGTERM)  # the parent ends its workers
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
        with warnings.catch_warnings():
            # Python warns that other threads may hold locks; a worker takes none of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _serve(theirs, encode, (*descriptors, theirs.fileno()), parent_pid, ignored)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.socket.settimeout(MESSAGE_TIMEOUT_S)

    @property
    def is_hung(self) -> bool:
        waited_s = time.monotonic() - self.waits_since_s
        return bool(self.tasks) and waited_s > SAMPLE_TIMEOUT_S

    def send(self, number: int) -> None:
        if not self.tasks:
            self.waits_since_s = time.monotonic()
        self.tasks.append(number)
        self.socket.sendall(_TASK.pack(number))

    def receive(self) -> tuple[EncodedSample | Exception | None, int]:
        """Return the next result, and its size in bytes."""
        header_size, body_size = _LENGTHS.unpack(self._receive_exactly(_LENGTHS.size))
        header, body = self._receive_exactly(header_size), self._receive_exactly(body_size)
        return _unpack(header, body), body_size

    def end(self) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _receive_exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            received = self.socket.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return data


def _end_workers(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().end()


def _serve(
    connection: socket.socket,
    encode: Encode,
    descriptors: Sequence[int],
    parent_pid: int,
    ignored: Sequence[signal.Signals],
) -> NoReturn:
    """Encode samples until the parent closes the connection; never returns."""
    try:
        die_with_parent(parent_pid)
        begin = 3
        for descriptor in sorted(descriptors):  # keep neither the run's lock nor anything else
            os.closerange(begin, descriptor)
            begin = max(begin, descriptor + 1)
        os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
        signal.set_wakeup_fd(-1)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _use_one_thread()
        _retain_freed_memory()
        gc.freeze()
        while True:
            (number,) = _TASK.unpack(_read_task(connection))
            for part in _pack(_try(encode, number)):
                connection.sendall(part)
    except BaseException:  # noqa: S110  # the parent is gone, or will notice that the worker is
        pass
    finally:
        os._exit(0)


def _use_one_thread() -> None:
    """Start no thread: those of the parent do not exist in a fork, but their locks do."""
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _retain_freed_memory() -> None:
    """Have the C library keep freed memory for the next image: a third less CPU time (measured)."""
    with contextlib.suppress(OSError, AttributeError):  # C libraries other than glibc
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def _read_task(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < _TASK.size:
        piece = connection.recv(_TASK.size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _try(encode: Encode, number: int) -> EncodedSample | Exception | None:
    """Return a sample, an error that belongs to it, or None for any other error."""
    try:
        return encode(number)
    except Exception as error:
        # Any other the parent raises, when it encodes the sample itself.
        return error if type(error) in ENCODED_ERRORS.values() else None


class _ArrayHeader(msgspec.Struct, array_like=True, frozen=True):
    """Where an array belongs, and its dtype and shape; ``restored`` as of an ``ArraySpan``."""

    field: str
    name: str | None
    kind: str
    shape: tuple[int, ...]
    restored: tuple[str, tuple[int, ...], int, int] | None = None


class _Header(msgspec.Struct, array_like=True, frozen=True):
    """A result: the arrays that follow, in order, and the other values of an ``EncodedSample``.

    ``error`` has the kind and the message of an error instead. With neither, the worker failed.
    """

    arrays: list[_ArrayHeader] = []
    values: dict[str, Any] | None = None
    error: tuple[str, str] | None = None


def _pack(item: EncodedSample | Exception | None) -> list[Any]:
    """Return a result as the bytes to send."""
    if item is None or isinstance(item, Exception):
        error = None if item is None else (type(item).__name__, str(item))
        header = msgspec.msgpack.encode(_Header(error=error))
        return [_LENGTHS.pack(len(header), 0), header]
    arrays: list[_ArrayHeader] = []
    values: dict[str, Any] = {}
    parts: list[Any] = []
    length = 0

    def add(field: str, name: str | None, array: Any) -> None:
        nonlocal length
        restored = None
        if isinstance(array, PackedArray):
            restored, array = (array.kind, array.shape, array.block, array.repeats), array.data
        data = np.ascontiguousarray(array)
        arrays.append(_ArrayHeader(field, name, data.dtype.str, np.shape(array), restored))
        padding = -data.nbytes % _ALIGNMENT
        parts.extend([data.reshape(-1).view(np.uint8).data, bytes(padding)])
        length += data.nbytes + padding

    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, dict):
            values[field.name] = {}
            for name, array in value.items():
                add(field.name, name, array)
        elif isinstance(value, np.ndarray):
            add(field.name, None, value)
        else:
            values[field.name] = value
    header = msgspec.msgpack.encode(_Header(arrays, values))
    return [_LENGTHS.pack(len(header), length), header, *parts]


def _unpack(header_bytes: bytearray, body: bytearray) -> EncodedSample | Exception | None:
    header = msgspec.msgpack.decode(header_bytes, type=_Header)
    if header.error is not None:
        kind, message = header.error
        return ENCODED_ERRORS[kind](message)
    if header.values is None:
        return None
    values, at = header.values, 0
    for found in header.arrays:
        count = int(np.prod(found.shape, dtype=np.int64))
        array: Any = np.frombuffer(body, np.dtype(found.kind), count, at).reshape(found.shape)
        at += array.nbytes + -array.nbytes % _ALIGNMENT
        if found.restored is not None:
            array = PackedArray(array, *found.restored)
        if found.name is None:
            values[found.field] = array
        else:
            values[found.field][found.name] = array
    spans = tuple((begin, end) for begin, end in values.pop("answer_spans"))
    return EncodedSample(**values, answer_spans=spans)

"""Checkpoints that a thread writes while training continues.

The loop waits for a copy in host memory, and mostly not even for that.

    loop    ... step 10 | step 11: forward, backward | optimizer | ... | step 13 | event
    writer               copies ---------------------^ writes, fsyncs, renames ---^

Only the optimizer's step changes weights and optimizer state. So they are copied while the next
step computes its gradients, and the copies must be complete before its optimizer step. Everything
else that changes (counters, random states, buffers) is copied at once. The host memory for the
copies is allocated once and reused by every save.

One checkpoint is written at a time. The loop polls for completion after each step. It waits for
completion before the next save, before it ends, and after a stop request. Only the loop's thread
writes events. Training continues while the writer waits for disk space, until the next save is due.

Where host memory is too small for the copies, the loop writes checkpoints synchronously. Small
models use the thread too: a save of the tiny model takes 25 ms, mostly for a dozen fsyncs, of
which its loop waits for 4 ms (measured).
"""

import copy
import errno
import queue
import resource
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import torch

from runyard import rundir
from runyard.rundir import NO_ROOM, EventWriter
from runyard.trainer.checkpoints.checkpoint import CheckpointContents, SavedCheckpoint
from runyard.trainer.devices import has_streams
from runyard.trainer.disk_space import DiskSpaceGate
from runyard.trainer.steps.memory import is_out_of_memory, read_host_memory

SPARE_MEMORY_BYTES = 256 << 20  # left free in addition to the copies and a tenth of their size
MAX_SAVE_ATTEMPTS = 3  # on a failing disk; on a full one there is no limit
Pair = tuple[torch.Tensor, torch.Tensor]


class AsyncCheckpointer:
    """Writes or removes checkpoints one at a time, in a thread or synchronously.

    Only the loop's thread may call its methods, apart from ``set_phase``, ``warn`` and
    ``write_when_space``. Used as a context manager: however the loop ends, the write in progress is
    completed and reported first.
    """

    def __init__(
        self,
        folder: Path,
        events: EventWriter,
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
        free_bytes: Callable[[Path], int] = rundir.free_bytes,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.disk_space = DiskSpaceGate(
            folder=folder,
            should_stop=lambda: self._is_ending or should_stop(),
            on_wait=lambda message: self.set_phase("WaitingForDisk", message),
            free_bytes=free_bytes,
            sleep=sleep,
        )
        # How long the loop waited for disk space; a waiting writer does not count.
        self.waited_s = 0.0
        self.is_refused = False  # whether a stop ended the last save before there was disk space
        self.pending_step: int | None = None  # the step that is being saved
        self._events, self._say = events, say
        self._loop_thread = threading.get_ident()
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._copied = threading.Event()
        self._copied.set()
        self._buffers: HostBuffers | None = HostBuffers()
        self._is_busy = self._is_ending = False
        self._phase: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self.wait()
            return
        self._is_ending = True  # so that nothing waits for disk space any more
        while self._is_busy:
            with suppress(Exception):  # the first error is the one to report
                self.wait()

    def reserve(self, processor: Any, *, peak_bytes: int) -> None:
        """Copy the processor before training starts: 0.6 s for a vocabulary of 150,000 (measured).

        ``peak_bytes`` is the predicted peak of the process's host memory, or 0.
        """
        if self._buffers is not None:
            self._buffers.copy_processor(processor)
            self._buffers.peak_bytes = peak_bytes

    def stage(self, contents: CheckpointContents, device: torch.device) -> "StagedContents | None":
        """Return copies for a background write; None, from then on, if host memory is too small."""
        if self._buffers is None:
            return None
        try:
            return self._buffers.stage(contents, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._buffers = None
            problem = "not enough host memory for asynchronous checkpointing"
            self.warn(f"{problem}; saving synchronously: {error}")
            return None

    def submit(
        self,
        step: int,
        write: Callable[[], SavedCheckpoint | None],
        on_done: Callable[[SavedCheckpoint | None], None],
        staged: "StagedContents | None",
    ) -> None:
        """Write the checkpoint of ``step``. No other write may be in progress.

        Without ``staged`` it is written synchronously, otherwise in a thread, after the copies.
        ``write`` returns None when a stop request came before there was disk space. ``on_done``
        receives what it returned, on the loop's thread.

        Raises:
            Exception: what ``write`` raised; from a thread, it is raised by a later ``poll``.
        """
        self.pending_step, self.is_refused = step, False
        if staged is None:
            before_s = self.disk_space.waited_s
            try:
                saved = write()
            finally:
                self.waited_s += self.disk_space.waited_s - before_s
            self._finish(saved, on_done)
            return
        # Before the thread starts: otherwise the next optimizer step could overtake the copies.
        self._copied.clear()

        def copy_and_write() -> None:
            try:
                staged.fill()
            finally:
                self._copied.set()
            saved = write()
            self._messages.put(lambda: self._finish(saved, on_done))

        self._start(copy_and_write)

    def remove(self, work: Callable[[], None]) -> None:
        """Run ``work``, which removes old checkpoints; in a thread where saves use one.

        Removing large files takes a tenth of a second.
        """
        if self._buffers is None:
            work()
            return

        def remove_and_report() -> None:
            work()
            self._messages.put(self._set_idle)

        self._start(remove_and_report)

    def write_when_space(
        self,
        write: Callable[[SavedCheckpoint | None], SavedCheckpoint],
        name: str,
        *,
        previous: SavedCheckpoint | None,
        needed_bytes: int,
        needed_bytes_without_links: Callable[[], int],
    ) -> SavedCheckpoint | None:
        """Call ``write`` when there is disk space, and again when the disk refuses or fails.

        ``write`` receives the checkpoint whose files it may hard-link. Returns None when a stop
        request came first. Called by the thread that writes.

        Raises:
            OSError: the disk failed ``MAX_SAVE_ATTEMPTS`` times.
        """
        failures = 0
        while True:
            if not self.disk_space.wait_for_space(needed_bytes, name):
                return None
            try:
                return write(previous)
            except OSError as error:
                if error.errno in NO_ROOM:
                    if not self.disk_space.wait_after_refusal(needed_bytes, name):
                        return None
                    continue
                failures += 1
                if error.errno != errno.EIO or failures == MAX_SAVE_ATTEMPTS:
                    raise
                # Files of an earlier checkpoint on a failing disk are not linked either.
                previous, needed_bytes = None, needed_bytes_without_links()
                self.warn(f"saving {name} failed and is retried: {error.strerror}")

    def wait_for_copies(self) -> None:
        """Wait until the copies are complete: call it before weights or optimizer state change.

        Writes no event and raises nothing.
        """
        self._copied.wait()

    def poll(self) -> None:
        """Report the write in progress if it has ended, without waiting; raise what it raised."""
        with suppress(queue.Empty):
            while self._is_busy:
                self._messages.get_nowait()()

    def wait(self) -> None:
        """Wait until no write is in progress; raise what it raised."""
        before_s = self.disk_space.waited_s
        try:
            while self._is_busy:
                self._messages.get()()
        finally:
            self.waited_s += self.disk_space.waited_s - before_s

    def set_phase(self, phase: Literal["Saving", "WaitingForDisk"], message: str) -> None:
        """Write a phase event, unless it repeats the one before. May be called by either thread."""
        if threading.get_ident() != self._loop_thread:
            self._messages.put(lambda: self.set_phase(phase, message))
            return
        if self._phase == (phase, message):
            return
        self._phase = (phase, message)
        self._events.write("phase", phase=phase, message=message)
        if phase == "WaitingForDisk":
            self._say(f"waiting for disk space: {message}")

    def warn(self, message: str) -> None:
        """Write a warning event. May be called by either thread."""
        if threading.get_ident() != self._loop_thread:
            self._messages.put(lambda: self.warn(message))
            return
        self._events.write("warning", message=message)

    def _start(self, work: Callable[[], None]) -> None:
        def report_errors() -> None:
            try:
                work()
            except BaseException as error:
                self._messages.put(lambda error=error: self._raise(error))  # type: ignore[misc]

        self._is_busy = True
        threading.Thread(target=report_errors, name="checkpoint-writer", daemon=True).start()

    def _finish(
        self, saved: SavedCheckpoint | None, on_done: Callable[[SavedCheckpoint | None], None]
    ) -> None:
        self._set_idle()
        self.is_refused = saved is None
        on_done(saved)

    def _raise(self, error: BaseException) -> None:
        self._set_idle()
        raise error

    def _set_idle(self) -> None:
        self._is_busy, self.pending_step = False, None


class StagedContents:
    """The contents of a checkpoint whose tensors are copies, which ``fill`` has yet to fill."""

    def __init__(
        self, contents: CheckpointContents, pairs: list[Pair], stream: torch.Stream | None
    ):
        self.contents, self._pairs, self._stream = contents, pairs, stream

    def fill(self) -> None:
        """Copy in the calling thread alone: torch's own threads would slow down training."""
        with self._stream or nullcontext():
            for target, source in self._pairs:
                _copy(target, source)
        if self._stream is not None:
            self._stream.synchronize()


class HostBuffers:
    """Host memory for the tensors of a checkpoint, reused by every save, and a processor copy."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._processor: Any = None
        self._stream: torch.Stream | None = None

    def copy_processor(self, processor: Any) -> None:
        """Copy the processor: a tokenizer whose padding another thread changes cannot be saved."""
        self._processor = copy.deepcopy(processor)

    def stage(self, contents: CheckpointContents, device: torch.device) -> StagedContents:
        """Copy what the next forward pass may change; leave the rest to ``StagedContents.fill``.

        Raises:
            MemoryError, RuntimeError: host memory is too small for the copies.
        """
        # Tied weights share a location; they are copied once, and their copies are tied too.
        names_by_location: dict[tuple[Any, ...], list[tuple[str, str]]] = {}
        sources: dict[tuple[str, str], torch.Tensor] = {}
        for kind, tensors in (("weights", contents.weights), ("tensors", contents.tensors)):
            for name, value in tensors.items():
                if isinstance(value, torch.Tensor) and not _is_frozen(value):
                    location = (
                        (value.data_ptr(), value.shape, value.stride(), value.dtype)
                        if value.numel()
                        else (name,)
                    )
                    names_by_location.setdefault(location, []).append((kind, name))
                    sources[kind, name] = value
        self._allocate(
            {names[0]: sources[names[0]] for names in names_by_location.values()}, device
        )
        copies: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "tensors": {}}
        pairs: list[Pair] = []
        for first, *others in names_by_location.values():
            target, source = self._buffers[first], sources[first].detach()
            for kind, name in (first, *others):
                copies[kind][name] = target
            if first[0] == "weights" and not isinstance(sources[first], torch.nn.Parameter):
                target.copy_(source)
            else:
                pairs.append((target, source))
        if self._processor is None:
            self.copy_processor(contents.processor)
        if has_streams(device):
            self._stream = self._stream or torch.Stream(device)
            self._stream.wait_stream(torch.accelerator.current_stream(device))
        weights, state = copies["weights"], copies["tensors"]
        staged = replace(
            contents,
            weights={name: weights.get(name, value) for name, value in contents.weights.items()},
            tensors={name: state.get(name, value) for name, value in contents.tensors.items()},
            processor=self._processor,
        )
        return StagedContents(staged, pairs, self._stream)

    def _allocate(self, needed: dict[tuple[str, str], torch.Tensor], device: torch.device) -> None:
        """Keep the buffers that fit, and allocate the others if there is enough host memory."""
        buffers = {
            name: tensor
            for name, tensor in self._buffers.items()
            if name in needed
            and (tensor.shape, tensor.dtype) == (needed[name].shape, needed[name].dtype)
        }
        missing = {name: value for name, value in needed.items() if name not in buffers}
        is_pinned = has_streams(device)
        needed_bytes = sum(
            count_host_bytes(value.nbytes, is_pinned=is_pinned) for value in missing.values()
        )
        available = available_bytes(self.peak_bytes) if needed_bytes else 0
        if needed_bytes and available < needed_bytes + needed_bytes // 10 + SPARE_MEMORY_BYTES:
            free = max(0, available) >> 20
            raise MemoryError(f"{needed_bytes >> 20:,} MiB are needed and {free:,} MiB are free")
        for name, value in missing.items():
            buffers[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=is_pinned)
        self._buffers = buffers


def _is_frozen(value: torch.Tensor) -> bool:
    """Return whether this is a parameter that is not trained, which may be read at any time."""
    return isinstance(value, torch.nn.Parameter) and not value.requires_grad


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if source.device.type == "cpu" and source.is_contiguous() and source.numel():
        # Through NumPy: torch would copy with several threads.
        target.view(-1).view(torch.uint8).numpy()[:] = source.reshape(-1).view(torch.uint8).numpy()
    else:
        target.copy_(source, non_blocking=True)


def count_host_bytes(size_bytes: int, *, is_pinned: bool) -> int:
    """Return what a buffer takes: torch rounds the size of pinned memory up to a power of two."""
    return 1 << (size_bytes - 1).bit_length() if is_pinned and size_bytes else size_bytes


def available_bytes(peak_bytes: int) -> int:
    """Return the free host memory, less what a step will allocate again.

    That is the process's highest use so far, or the predicted ``peak_bytes`` if it is higher.
    """
    room = read_host_memory(Path("/"))
    highest = max(peak_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return room.free - max(0, highest - room.used)

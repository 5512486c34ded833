"""Checkpoints are written beside training: the loop waits for a copy in memory, and mostly not even for that.

    loop      ... step 10 | step 11: forward, backward | optimizer | ...          | step 13 | told, older ones removed
    writer                 copies ----------------------^ writes, fsyncs, hashes, renames ---^

Weights and optimizer state change in nothing but the optimizers' step. So they are copied while the next step computes
its gradients, and only before its optimizers move must the copies be there. What else moves on (counters, random
states, buffers) is copied at once. Host memory for the copies is taken once and used again by every save.

One checkpoint is written at a time. The loop looks after each step whether one is done; it waits for that before the
next save, before it ends, and when it is told to stop. All events are the loop's. Training goes on beside a writer that
waits for room on the disk, until the next save is due.

Where memory does not hold the copies, everything is written in the loop's stead. Small models are no exception to the
thread: the tiny one's save takes 25 ms, most of them for a dozen fsyncs, and its loop then waits 4 (measured).
"""

import copy
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
from runyard.rundir import EventWriter
from runyard.trainer.checkpoints.checkpoint import Contents, Saved
from runyard.trainer.disk_space import Room
from runyard.trainer.steps.memory import is_out_of_memory, read_host_memory

SPARE_MEMORY_BYTES = 256 << 20  # left free beside the copies, and a tenth of them
Pair = tuple[torch.Tensor, torch.Tensor]


class Saver:
    """Does one piece of saving at a time, in a thread or at once. Its methods are for the loop's thread alone.

    Used as a context: whatever ends the loop, what is being written is waited for and told.
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
        self.room = Room(
            folder=folder,
            should_stop=lambda: self._is_ending or should_stop(),
            tell=lambda message: self.tell("WaitingForDisk", message),
            free_bytes=free_bytes,
            sleep=sleep,
        )
        self.waited_s = 0.0  # by the loop, for room; training beside a writer that waits is training
        self.is_refused = False  # whether the last save was given up for want of room, because of a stop
        self.step: int | None = None  # which is being saved
        self._events, self._say = events, say
        self._loop = threading.get_ident()
        self._told: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._copied = threading.Event()
        self._copied.set()
        self._copies: Copies | None = Copies()
        self._is_busy = self._is_ending = False
        self._phase: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self.finish()
            return
        self._is_ending = True  # so that nobody waits for room any more
        while self._is_busy:
            with suppress(Exception):  # the first error is the one to tell
                self.finish()

    def take(self, processor: Any, *, peak_bytes: int) -> None:
        """Copy the processor before training begins: 0.6 s for a tokenizer of 150,000 words (measured).

        ``peak_bytes`` is how much of the host's memory the process will have taken, as far as that is predicted.
        """
        if self._copies is not None:
            self._copies.take(processor)
            self._copies.peak_bytes = peak_bytes

    def copies_of(self, contents: Contents, device: torch.device) -> "Copied | None":
        """Copies for what is written beside training; None, for good, where memory has not held them."""
        if self._copies is None:
            return None
        try:
            return self._copies.hold(contents, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._copies = None
            self.warn(f"training waits while checkpoints are written, as memory holds no copy of them: {error}")
            return None

    def begin(
        self,
        step: int,
        write: Callable[[], Saved | None],
        done: Callable[[Saved | None], None],
        copied: "Copied | None",
    ) -> None:
        """Write the checkpoint of ``step``, while no other is being written.

        At once, or in a thread behind the copying when there are copies. ``write`` returns None when it was told to
        stop before there was room. ``done`` gets what it returned, on the loop's thread.

        Raises:
            Exception: what ``write`` raised; of one in a thread a later look raises it.
        """
        self.step, self.is_refused = step, False
        if copied is None:
            before_s = self.room.waited_s
            try:
                item = write()
            finally:
                self.waited_s += self.room.waited_s - before_s
            self._end(item, done)
            return
        self._copied.clear()

        def work() -> None:
            try:
                try:
                    copied.fill()
                finally:
                    self._copied.set()
                item = write()
            except BaseException as error:
                self._told.put(lambda error=error: self._fail(error))  # type: ignore[misc]
            else:
                self._told.put(lambda: self._end(item, done))

        self._start(work)

    def remove(self, work: Callable[[], None]) -> None:
        """Remove what need not be kept: in a thread too, for that of large files takes a tenth of a second."""
        if self._copies is None:
            work()
            return

        def and_tell() -> None:
            try:
                work()
            except BaseException as error:
                self._told.put(lambda error=error: self._fail(error))  # type: ignore[misc]
            else:
                self._told.put(self._rest)

        self._start(and_tell)

    def wait_for_copies(self) -> None:
        """Before anything changes weights or the optimizers' state. Tells and raises nothing."""
        self._copied.wait()

    def look(self) -> None:
        """Tell what has come of the save under way, without waiting. Raises what it raised."""
        with suppress(queue.Empty):
            while self._is_busy:
                self._told.get_nowait()()

    def finish(self) -> None:
        """Wait until nothing is being saved. Raises what it raised."""
        before_s = self.room.waited_s
        try:
            while self._is_busy:
                self._told.get()()
        finally:
            self.waited_s += self.room.waited_s - before_s

    def tell(self, phase: Literal["Saving", "WaitingForDisk"], message: str) -> None:
        """From either thread. What stands there already is not said again."""
        if threading.get_ident() != self._loop:
            self._told.put(lambda: self.tell(phase, message))
            return
        if self._phase == (phase, message):
            return
        self._phase = (phase, message)
        self._events.write("phase", phase=phase, message=message)
        if phase == "WaitingForDisk":
            self._say(f"waiting for disk space: {message}")

    def warn(self, message: str) -> None:
        """From either thread."""
        if threading.get_ident() != self._loop:
            self._told.put(lambda: self.warn(message))
            return
        self._events.write("warning", message=message)

    def _start(self, work: Callable[[], None]) -> None:
        self._is_busy = True
        threading.Thread(target=work, name="saving", daemon=True).start()

    def _end(self, item: Saved | None, done: Callable[[Saved | None], None]) -> None:
        self._rest()
        self.is_refused = item is None
        done(item)

    def _fail(self, error: BaseException) -> None:
        self._rest()
        raise error

    def _rest(self) -> None:
        self._is_busy, self.step = False, None


class Copied:
    """The contents of a checkpoint whose tensors are copies, as yet to be filled."""

    def __init__(self, contents: Contents, pairs: list[Pair], stream: torch.cuda.Stream | None):
        self.contents, self._pairs, self._stream = contents, pairs, stream

    def fill(self) -> None:
        """Copy, in the calling thread alone: threads of torch's own would take the time of those that train."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            for target, source in self._pairs:
                _copy(target, source)
        if self._stream is not None:
            self._stream.synchronize()


class Copies:
    """Host memory for the tensors of a checkpoint and a processor of its own, used again for each."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._held: dict[tuple[str, str], torch.Tensor] = {}
        self._processor: Any = None
        self._stream: torch.cuda.Stream | None = None

    def take(self, processor: Any) -> None:
        """A tokenizer cannot be read by one thread while another changes how it fills up rows."""
        self._processor = copy.deepcopy(processor)

    def hold(self, contents: Contents, device: torch.device) -> Copied:
        """Copies what the next forward pass may change, and leaves the rest to ``Copied.fill``.

        Raises:
            MemoryError, RuntimeError: memory does not hold the copies.
        """
        moving: dict[
            tuple[Any, ...], list[tuple[str, str]]
        ] = {}  # names of what lies in one place: tied weights stay so
        sources: dict[tuple[str, str], torch.Tensor] = {}
        for kind, tensors in (("weights", contents.weights), ("tensors", contents.tensors)):
            for name, value in tensors.items():
                if isinstance(value, torch.Tensor) and not _is_fixed(value):
                    place = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
                    moving.setdefault(place, []).append((kind, name))
                    sources[kind, name] = value
        self._make_room({names[0]: sources[names[0]] for names in moving.values()}, device)
        found: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "tensors": {}}
        pairs: list[Pair] = []
        for first, *others in moving.values():
            target, source = self._held[first], sources[first].detach()
            for kind, name in (first, *others):
                found[kind][name] = target
            if first[0] == "weights" and not isinstance(sources[first], torch.nn.Parameter):
                target.copy_(source)
            else:
                pairs.append((target, source))
        if self._processor is None:
            self.take(contents.processor)
        if device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        held = replace(
            contents,
            weights={name: found["weights"].get(name, value) for name, value in contents.weights.items()},
            tensors={name: found["tensors"].get(name, value) for name, value in contents.tensors.items()},
            processor=self._processor,
        )
        return Copied(held, pairs, self._stream)

    def _make_room(self, wanted: dict[tuple[str, str], torch.Tensor], device: torch.device) -> None:
        fits = {
            name: tensor
            for name, tensor in self._held.items()
            if name in wanted and (tensor.shape, tensor.dtype) == (wanted[name].shape, wanted[name].dtype)
        }
        missing = {name: value for name, value in wanted.items() if name not in fits}
        needed = sum(value.nbytes for value in missing.values())
        available = available_bytes(self.peak_bytes) if needed else 0
        if needed and available < needed + needed // 10 + SPARE_MEMORY_BYTES:
            raise MemoryError(f"{needed >> 20:,} MiB are needed and {max(0, available) >> 20:,} MiB are free")
        for name, value in missing.items():
            fits[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=device.type == "cuda")
        self._held = fits


def _is_fixed(value: torch.Tensor) -> bool:
    """Parameters that nobody trains may be read while training goes on."""
    return isinstance(value, torch.nn.Parameter) and not value.requires_grad


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    if source.device.type == "cpu" and source.is_contiguous() and source.numel():
        target.view(-1).view(torch.uint8).numpy()[:] = source.reshape(-1).view(torch.uint8).numpy()
    else:
        target.copy_(source, non_blocking=True)


def available_bytes(peak_bytes: int) -> int:
    """Memory of the host that is free now, less what a step will take again: the most so far, or ``peak_bytes``."""
    room = read_host_memory(Path("/"))
    most = max(peak_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return room.free - max(0, most - room.used)

"""The processes that train one model together, each with a share of every batch.

They are called ranks, and are numbered from 0. Each has the whole model. In a step, a rank computes
the gradients of its share of the batch, then ``World.combine`` sums them over all ranks, weighted
by label tokens, so that every rank takes the step that one process would take with the whole batch.
One small all-reduce per step comes first: it says whether a rank ran out of memory, how many tokens
there are, and which parameters have a gradient anywhere.

Rank 0 leads: it alone measures, saves, reads clocks and stop requests, and writes files. It
announces what all ranks do next: take a step, evaluate, save, or end. So they never disagree on
what is due.

With a single rank nothing is sent and no number changes.
"""

import contextlib
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

from runyard.beats import BeatWriter
from runyard.rundir import AttemptDir
from runyard.trainer.errors import InvalidFlow, PeerLost
from runyard.trainer.steps.memory import (
    AvailableMemory,
    is_out_of_memory,
    read_available_memory,
)

STORE = "ranks.store"  # where ranks find each other, below the attempt's folder
CANCEL = "ranks.cancel"  # exists while the other ranks are to end an evaluation early
# Rank 0 may evaluate for hours or wait for disk space. A peer that dies is noticed at once.
WAIT = datetime.timedelta(days=7)
BUCKET_NUMBERS = 8 << 20  # gradients summed at once, 32 MiB of float32

Turn = Literal["step", "evaluate", "save", "end"]
TURNS: tuple[Turn, ...] = get_args(Turn)

_Parameters = Sequence[torch.nn.Parameter]


@dataclass(frozen=True)
class World:
    """All ranks, and which of them this process is. By default it is the only one.

    ``folder`` is the attempt's; ``beat`` shows the supervisor what this rank is doing.
    """

    rank: int = 0
    size: int = 1
    folder: Path = Path()
    beat: BeatWriter = field(default_factory=BeatWriter, compare=False)

    @property
    def is_single(self) -> bool:
        return self.size == 1

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    def select(self, indices: list[int]) -> list[int]:
        """Return this rank's share of a batch.

        Where samples of similar length are neighbors, all ranks have about the same work.
        """
        return indices if self.is_single else indices[self.rank :: self.size]

    def seed(self, seed: int, step: int) -> None:
        """Seed dropout for a step, so that no random state of any rank has to be saved.

        A single process continues the random state of the step before, as its checkpoints have it.
        """
        if not self.is_single:
            digest = hashlib.sha256(f"{seed} {step} {self.rank}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:8]) >> 1)

    def combine(self, work: Callable[[], tuple[float, int]], parameters: _Parameters) -> float:
        """Compute this rank's gradients with ``work``, then sum them over all ranks.

        ``work`` returns the mean loss per label token and the number of these tokens, and leaves
        the gradients of that mean. Returns the mean over the tokens of all ranks.

        Raises:
            MemoryError: a rank has run out of memory, so no rank may take the step.
            PeerLost: another rank is gone.
        """
        if self.is_single:
            return work()[0]
        loss, tokens, problem = 0.0, 0, ""
        try:
            loss, tokens = work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error) or type(error).__name__
        has_gradient = [float(parameter.grad is not None) for parameter in parameters]
        numbers = self._sum([float(bool(problem)), tokens, loss * tokens, *has_gradient])
        out_of_memory, all_tokens, loss_sum, *found = numbers
        if out_of_memory:
            raise MemoryError(problem or "another rank has run out of memory")
        all_tokens = max(1.0, all_tokens)
        chosen = [parameter for parameter, count in zip(parameters, found, strict=True) if count]
        self._sum_gradients(chosen, weight=tokens / all_tokens)
        return loss_sum / all_tokens

    def announce(self, turn: Turn) -> None:
        """Let the other ranks know what all do next; called by rank 0."""
        if not self.is_single:
            self._broadcast_turn(TURNS.index(turn))

    def receive(self) -> Turn:
        """Return what rank 0 announces."""
        return TURNS[self._broadcast_turn(0)]

    def gather(self, document: Any) -> list[Any]:
        """Return the documents of all ranks, in their order."""
        if self.is_single:
            return [document]
        data = json.dumps(document).encode()
        sizes = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
        with self._exchange():
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = int(max(sizes))
            padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
            found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(found, padded)
        return [json.loads(received.numpy().tobytes()) for received in found]

    def cancel(self) -> None:
        """Have the other ranks end what they do for an evaluation."""
        (self.folder / CANCEL).touch()

    def is_canceled(self) -> bool:
        return (self.folder / CANCEL).exists()

    def clear_cancel(self) -> None:
        (self.folder / CANCEL).unlink(missing_ok=True)

    def read_memory(self, device: torch.device) -> AvailableMemory:
        """Return the memory of this rank: of the host's, which all ranks use, an equal share."""
        found = read_available_memory(device)
        if self.is_single or device.type != "cpu":
            return found
        total = max(found.used, found.total // self.size)
        return replace(found, free=found.free // self.size, total=total)

    def sum(self, *numbers: float) -> list[float]:
        """Return the sums of numbers over all ranks."""
        return list(numbers) if self.is_single else self._sum(list(numbers))

    def share(self, document: Any) -> Any:
        """Return the document of rank 0, which the others wait for."""
        if self.is_single:
            return document
        data = bytearray(json.dumps(document).encode()) if self.is_leader else bytearray()
        with self._exchange():
            size = torch.tensor([len(data)])  # (1,)
            dist.broadcast(size, 0)
            held = torch.frombuffer(data, dtype=torch.uint8) if data else None
            received = torch.empty(int(size), dtype=torch.uint8) if held is None else held
            dist.broadcast(received, 0)
        return json.loads(received.numpy().tobytes())

    def share_weights(self, parameters: _Parameters) -> None:
        """Give every rank the trained weights of rank 0."""
        if not self.is_single:
            with torch.no_grad(), self._exchange():
                for parameter in parameters:
                    dist.broadcast(parameter, 0)

    def leave(self) -> None:
        """Close the connections to the other ranks."""
        if not self.is_single:
            dist.destroy_process_group()

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """Show that this rank waits; raise ``PeerLost`` for the error of a broken connection."""
        with self.beat.waiting(), _naming_lost_peers():
            yield

    def _sum_gradients(self, parameters: _Parameters, *, weight: float) -> None:
        """Replace the gradients by their weighted sum over all ranks."""
        with torch.no_grad():
            for bucket in _split(parameters):
                gradients = [
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    for parameter in bucket
                ]
                # (N,), summed in float32 also where gradients are bfloat16.
                flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
                flat.mul_(weight)
                with self._exchange():
                    dist.all_reduce(flat)
                for parameter, piece in zip(
                    bucket, flat.split([parameter.numel() for parameter in bucket]), strict=True
                ):
                    if parameter.grad is None:
                        parameter.grad = piece.view_as(parameter).to(parameter.dtype, copy=True)
                    else:
                        parameter.grad.copy_(piece.view_as(parameter))

    def _broadcast_turn(self, number: int) -> int:
        turn = torch.tensor([number])  # (1,)
        with self._exchange():
            dist.broadcast(turn, 0)
        return int(turn)

    def _sum(self, numbers: list[float]) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64)
        with self._exchange():
            dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found


def read_world(environ: Mapping[str, str], folder: Path) -> World:
    """Return the world that the supervisor of ``folder`` describes with RANK and WORLD_SIZE."""
    rank, size = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    return World(rank, size, folder, BeatWriter(AttemptDir(folder).beat(rank)))


def join(world: World, folder: Path, *, has_cuda: bool) -> None:
    """Connect to the other ranks of the attempt in ``folder``; return once all are here.

    They find each other through a file, which other users cannot read, and use the loopback
    interface.

    Raises:
        InvalidFlow: there are fewer accelerators than ranks.
        PeerLost: another rank is gone.
    """
    if world.is_single:
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if has_cuda:
        if world.size > torch.cuda.device_count():
            raise InvalidFlow(
                f"settings.resources asks for {world.size} processes, but the run has "
                f"{torch.cuda.device_count()} accelerators; try: resources.accelerators "
                f"{world.size}, which reserves as many"
            )
        torch.cuda.set_device(world.rank)
    with world.beat.waiting(), _naming_lost_peers():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if has_cuda else "gloo",
            store=dist.FileStore(str(folder / STORE), world.size),
            rank=world.rank,
            world_size=world.size,
            timeout=WAIT,
        )


def _split(parameters: _Parameters) -> Iterator[list[torch.nn.Parameter]]:
    """Return parameters of one kind together, in order, up to the size of a bucket."""
    bucket: list[torch.nn.Parameter] = []
    numbers = 0
    for parameter in parameters:
        is_other = bucket and (parameter.dtype, parameter.device) != (
            bucket[0].dtype,
            bucket[0].device,
        )
        if bucket and (is_other or numbers + parameter.numel() > BUCKET_NUMBERS):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(parameter)
        numbers += parameter.numel()
    if bucket:
        yield bucket


@contextlib.contextmanager
def _naming_lost_peers() -> Iterator[None]:
    """Raise ``PeerLost`` for the error of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(f"another rank is gone: {str(error).splitlines()[0]}") from error

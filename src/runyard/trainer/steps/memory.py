"""What memory has to do with training: how much the steps will take, and telling want of it from other errors.

The longest sample of the data goes forwards and backwards once alone and once with a copy of itself, and after every
operation it is noted how many bytes are alive. Both runs do the same operations, and what is alive grows by as much
with each further sample, so the two give the course of a micro-batch of any size, and its peak, without one of that
size ever having lain in memory. This holds for every family, with adapters, frozen parts and gradient checkpointing,
as nothing is assumed of them. What the optimizers keep follows from the shapes of the parameters.

Not counted are what an operation takes for itself alone, evaluations and saving. On the CPU it is what is needed: where
there is ample memory, the C library is told to keep what is freed, which is faster and takes more (``keep_freed``);
where there is not, to hand it back (``hand_back``), and then the process takes what was predicted.
"""

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runyard.flows import ResolvedFlow
from runyard.trainer.data.encode import Batch
from runyard.trainer.plan import Plan, with_memory, with_micro_batch

WARN_SHARE = 0.85  # of what is free: what the allocator cannot use again needs room too
FLOAT_BYTES = 4
NO_LIMIT = 1 << 62
HELD_BYTES = 128 << 10  # where memory is handed back, larger pieces go to the system at once
AMPLE = 4  # times what is needed; a heap of freed pieces grew to 3.3 times that (measured)
FIRST_USE_BYTES = 48 << 20  # code that the first steps read, and a heap that small objects spread over (measured)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MOST_MAPS, _LARGEST_INT = 65_536, (1 << 31) - 1  # glibc's own number of maps, and the largest number it takes
Verdict = Literal["Allow", "Warn", "Deny"]


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and Python have classes for it, the CPU allocator only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]  # torch says nothing of it
    """Notes after every operation within it how many bytes of tensors are alive that were not there before.

    A storage counts once, however many tensors are views of it. ``course`` has one number for each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.course: list[int] = []
        self._live = 0
        self._known: dict[int, Any] = {}

    @property
    def peak(self) -> int:
        return max(self.course, default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            self._note(value, is_new=False)
        made = func(*args, **kwargs)
        for value in tree_leaves(made):
            self._note(value, is_new=True)
        self.course.append(self._live)
        return made

    def _note(self, value: Any, *, is_new: bool) -> None:
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size_bytes = storage.nbytes() if is_new else 0

        def forget(_: Any) -> None:
            self._live -= size_bytes
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, forget)
        self._live += size_bytes


@dataclass(frozen=True)
class Course:
    """Bytes alive after each operation of forward and backward pass, with ``count`` samples and with one more."""

    fewer: Sequence[int]
    more: Sequence[int]
    count: int = 1

    @property
    def is_even(self) -> bool:
        """Whether both have the same operations."""
        return len(self.fewer) == len(self.more)

    def peak(self, size: int) -> int:
        """The most that is alive at once with so many samples."""
        fewer, more = np.asarray(self.fewer, np.int64), np.asarray(self.more, np.int64)
        if not self.is_even:  # then the peaks have to do
            fewer, more = fewer.max(keepdims=True), more.max(keepdims=True)
        return int((fewer + (size - self.count) * (more - fewer)).max())


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the steps of a training will take beside what is there before the first one, in bytes.

    ``alone`` is the course of a micro-batch that is the whole batch, None where there is no such; ``further`` that of
    one behind another, whose gradients are there already and are added to.
    """

    alone: Course | None
    further: Course
    gradients: int  # of all trained parameters
    optimizer: int  # what the optimizers will keep and do not have yet
    moving: int  # what they take for a moment while they move the parameters
    sample: int  # the inputs of one sample
    first_use: int = 0  # what does not grow with anything

    def peak(self, micro_batch_size: int, batch_size: int) -> int:
        """The most that is alive at once in a step. The inputs of all its micro-batches are made at its beginning."""
        if self.alone is not None and micro_batch_size == batch_size:
            # Where two samples are worked on otherwise than one, the peak of one may be its gradients, and then says
            # nothing of many: no less than without gradients it can be.
            passes = max(self.alone.peak(micro_batch_size), self.further.peak(micro_batch_size))
        else:
            passes = self.gradients + self.further.peak(micro_batch_size)
        at_once = max(passes, self.gradients + self.moving)
        return self.sample * batch_size + self.optimizer + at_once + self.first_use


def optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """What the optimizers will keep of their parameters, less what they have already."""
    wanted = sum(
        _kept_bytes(optimizer, group, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    return max(0, wanted - kept_bytes(optimizers))


def kept_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """What the optimizers keep of their parameters now."""
    return sum(
        value.untyped_storage().nbytes()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def _kept_bytes(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor) -> int:
    numel, size = int(parameter.numel()), int(parameter.element_size())
    whole = numel * size
    match type(optimizer).__name__:
        case "SGD":
            return whole if group["momentum"] else 0
        case "Muon":
            return whole
        case "Adafactor":
            if parameter.dim() < 2:
                return whole + FLOAT_BYTES
            rows, columns = parameter.shape[-2:]
            return numel // int(rows * columns) * int(rows + columns) * size + FLOAT_BYTES
        case "AdamW8bit":
            return numel * 2
    return 2 * whole + FLOAT_BYTES


def _moving_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Copies of a parameter while it is moved: of one at a time, so the largest counts."""
    copies = {"Muon": 4, "Adafactor": 3, "SGD": 1}
    return max(
        (
            copies.get(type(optimizer).__name__, 0) * parameter.numel() * parameter.element_size()
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        ),
        default=0,
    )


def measure_step(
    draw: Callable[[Sequence[int], int], Batch],
    losses: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    longest: int,
    plan: Plan,
    device: torch.device,
) -> Step:
    """Run the sample with index ``longest``. Gradients are forgotten and the random state is as before.

    Logits are made of so many places at a time, so no more of them are run than a whole micro-batch would at once.
    """
    most = max(1, losses.rows_at_once // plan.micro_batch_size)
    inputs: list[int] = []

    def course(count: int) -> list[int]:
        batch = draw([longest] * count, 0).to(device)
        inputs.append(sum(value.nbytes for value in batch.inputs.values()) // count)
        batch = replace(batch, places=batch.places[: most * count], wanted=batch.wanted[: most * count])
        with LiveBytes() as live:
            (losses(batch) / max(1, batch.learnt_tokens)).backward()
        found: list[int] = live.course
        return found

    def both(is_first: bool) -> Course:
        def one_more(count: int) -> list[int]:
            if is_first:
                losses.forget_gradients()
            return course(count)

        found = Course(one_more(1), one_more(2))
        if not found.is_even and plan.micro_batch_size > 2:  # one sample alone is worked on otherwise
            found = Course(found.more, one_more(3), count=2)
        return found

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            # The first run makes the gradients, and does what is done only once, such as reading weights from a map.
            course(1)
            further = both(is_first=False)
            alone = both(is_first=True) if plan.micro_batch_size == plan.batch_size else None
        finally:
            losses.forget_gradients()
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    return Step(
        alone=alone,
        further=further,
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        optimizer=optimizer_bytes(optimizers),
        moving=_moving_bytes(optimizers),
        sample=inputs[0],
        first_use=0 if device.type == "cuda" else FIRST_USE_BYTES,
    )


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is, in bytes: taken by this process, free for it, and all that it could ever have."""

    taken: int
    free: int
    total: int
    name: str = "the machine"


def room_of(device: torch.device) -> Room:
    """The accelerator's memory, or the host's: the machine's, or less where a cgroup limits it."""
    if device.type == "cuda":
        taken = torch.cuda.memory_allocated(device)
        free, total = torch.cuda.mem_get_info(device)
        return Room(taken=taken, free=free + torch.cuda.memory_reserved(device) - taken, total=total, name="the GPU")
    give_back()
    return host_room(Path("/"))


def give_back() -> None:
    """Have the C library return to the system what it holds for itself, so that what is taken is what is used."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def hand_back() -> None:
    """Have the C library (glibc) hand every larger piece back at once, and never hold more for later.

    By itself it holds pieces of up to 32 MiB once such have been returned, in a heap that is soon full of holes: small
    objects are cut from the pieces that tensors leave, and no tensor fits there again.
    """
    _tell_heap({_M_MMAP_MAX: _MOST_MAPS, _M_MMAP_THRESHOLD: HELD_BYTES, _M_TRIM_THRESHOLD: HELD_BYTES})


def keep_freed() -> None:
    """Have the C library (glibc) keep what is freed for what comes next, instead of having new pages zeroed for it.

    A step took 0.57 to 0.74 of the processor time that it takes where all is handed back, and 0.65 to 1.04 of that with
    glibc's own habits (language models 64 to 512 wide; least with large outputs, nothing gained with few tokens). The
    steps then take up to 3.3 times what they need.
    """
    _tell_heap({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST_INT})


def _tell_heap(settings: dict[int, int]) -> None:
    """Other C libraries have other habits, and no such function."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name, value in settings.items():
            library.mallopt(name, value)


def host_room(root: Path) -> Room:
    """The same for the host's memory; ``root`` is where ``proc`` and ``sys`` lie. Swap counts to the total alone."""
    with contextlib.suppress(OSError):
        found = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        machine = {name: int(value.split()[0]) * 1024 for name, value in found.items() if value.split()}
        taken = int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        free, total = machine["MemAvailable"], machine["MemTotal"] + machine.get("SwapTotal", 0)
        limit, used = _cgroup(root)
        if limit < total:
            return Room(taken=taken, free=min(free, max(0, limit - used)), total=limit, name="the cgroup")
        return Room(taken=taken, free=free, total=total)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Room(taken=0, free=pages * size, total=pages * size)


def _cgroup(root: Path) -> tuple[int, int]:
    """The tightest limit of this process's cgroups, and what is used below it without what could be dropped."""
    tightest, used = NO_LIMIT, 0
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            if kind not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / kind
            names = ("memory.max", "memory.current") if not kind else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folder = top / path.strip("/")
            for place in (folder, *folder.parents):
                limit = _number(place / names[0])
                if limit is not None and limit < tightest:
                    tightest, used = limit, (_number(place / names[1]) or 0) - _droppable(place)
                if place == top:
                    break
    return tightest, max(0, used)


def _number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _droppable(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
    return 0


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The verdict, why, and the micro-batch that would fit; None where none smaller would.

    ``is_ample``: there is so much memory that none need be saved.
    """

    verdict: Verdict
    value: int
    reason: str
    fitting: int | None
    is_ample: bool = False


def judge(step: Step, room: Room, plan: Plan, *, mode: str) -> Outlook:
    """Compare what is predicted with what there is.

    On the CPU what is free may change, and swap may help, so only what is more than all that there could ever be is
    denied; on an accelerator, what is more than is free.
    """

    def peak(size: int) -> int:
        return room.taken + step.peak(size, plan.batch_size)

    size, limit = plan.micro_batch_size, room.taken + room.free
    value = peak(size)
    most = limit if plan.device == "cuda" else max(room.total, room.taken)
    verdict: Verdict = "Deny" if value > most else "Warn" if value > WARN_SHARE * limit else "Allow"
    told = (
        f"{verdict}: predicted for the longest sample {size} times; of {in_words(limit)} of {room.name} "
        f"({in_words(room.taken)} taken before the first step)"
    )
    if verdict == "Allow":
        is_ample = AMPLE * value <= limit
        if is_ample and plan.device == "cpu":
            told += "; there is ample memory, so what is freed is kept for what comes next"
        return Outlook(verdict=verdict, value=value, reason=told, fitting=None, is_ample=is_ample)
    smaller = [part for part in range(1, size) if plan.batch_size % part == 0]
    bound = WARN_SHARE * (limit if verdict == "Warn" else most)
    fitting = max((part for part in smaller if peak(part) <= bound), default=None)
    less = [] if fitting is None else [f"microBatchSize {fitting} would take {in_words(peak(fitting))}"]
    if not plan.gradient_checkpointing:
        less.append("compute.gradientCheckpointing true")
    if mode != "lora":
        less.append("training.mode 'lora'")
    told = f"{told}; what asks for less: {', '.join([*less, 'a smaller model'])}"
    return Outlook(verdict=verdict, value=value, reason=told, fitting=fitting)


def look_ahead(
    plan: Plan,
    recipe: ResolvedFlow,
    *,
    measure: Callable[[], Step],
    room: Callable[[], Room],
) -> tuple[Plan, Outlook | None]:
    """The plan with what is predicted of memory, and with a smaller micro-batch where that is wanted and needed.

    Nothing is predicted of the tiny model, whose start would take longer, nor of a compiled one, whose operations are
    not those that are noted.
    """
    for is_left_out, why in (
        (recipe.is_tiny, "not predicted: the tiny model takes little"),
        (plan.compile, "not predicted: a compiled model does other operations"),
    ):
        if is_left_out:
            return with_memory(plan, None, why), None
    try:
        step = measure()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or plan.micro_batch_size == 1:
            raise
        return with_memory(plan, None, "not predicted: memory did not suffice for two samples"), None
    mode = recipe.model.training.mode
    outlook = judge(step, room(), plan, mode=mode)
    if outlook.verdict == "Deny" and outlook.fitting is not None and recipe.model.on_out_of_memory == "shrink":
        before = plan.micro_batch_size
        plan = with_micro_batch(plan, outlook.fitting, f"{before} would need {in_words(outlook.value)} of memory")
        outlook = judge(step, room(), plan, mode=mode)
    return with_memory(plan, outlook.value, outlook.reason), outlook


def in_words(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.2f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.0f} MiB"

"""Memory: an estimate of what training steps will take, and the recognition of out-of-memory
errors.

The longest sample of the data runs forward and backward once alone and once with a copy of itself,
and after every operation the bytes of all live tensors are recorded. Both runs perform the same
operations, and the live bytes grow linearly with the number of samples. So the two timelines give
the timeline and the peak of a micro-batch of any size, without one of that size ever being in
memory. This holds for every family, with adapters, frozen parts and gradient checkpointing, as it
assumes nothing about them. The optimizers' state follows from the parameters' shapes. A slow first
pass on the CPU stays the only one where memory is ample even if all that it takes counts once per
sample.

The estimate does not include temporary memory within an operation, evaluation or saving. On the CPU
the allocator matters too. Where memory is ample, the C library is set to keep freed memory, which
is faster and takes more (``retain_freed_memory``). Otherwise it is set to return it
(``return_freed_memory``), and the process takes what was estimated.
"""

import contextlib
import ctypes
import math
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from runyard.flows import ResolvedFlow
from runyard.trainer.data.encode import Batch
from runyard.trainer.devices import keep_random_states, read_memory, synchronize
from runyard.trainer.plan import Plan, with_memory, with_micro_batch
from runyard.trainer.steps.rounding import estimate_rounding_numbers
from runyard.trainer.steps.trial_budget import NoTimeLeft, TrialBudget

WARN_SHARE = 0.85  # of the free memory: fragmentation takes some too
GROWTH_SHARE = 0.7  # up to which a micro-batch is made larger
FLOAT_BYTES = 4
MIN_8BIT_NUMEL, BLOCK_8BIT_NUMEL = 4096, 256  # defaults of bitsandbytes
NO_LIMIT = 1 << 62
RETAINED_BYTES = 128 << 10  # where freed memory is returned, larger blocks go to the system at once
AMPLE_FACTOR = 4  # times the need; a heap of freed blocks grew to 3.3 times the need (measured)
# Code pages that the first steps read, and a heap fragmented by small objects (measured).
FIRST_USE_BYTES = 48 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Glibc's default number of maps, and its largest value.
_DEFAULT_MAX_MAPS, _MAX_INT = (
    65_536,
    (1 << 31) - 1,
)
_MEMORY_WORDS = (
    "can't allocate memory",  # torch's CPU allocator
    "out of memory",  # CUDA, HIP, XPU, MPS and Triton, after the name of the library
    "cudaerrormemoryallocation",
    "hiperroroutofmemory",
    "hiperrormemoryallocation",
    "_status_alloc_failed",  # cuBLAS, cuBLASLt, cuDNN, cuSOLVER, cuSPARSE, hipBLAS
    "rocblas_status_memory_error",
    "miopenstatusallocfailed",
    "out_of_device_memory",  # Level Zero, Unified Runtime and OpenCL, for Intel's devices
    "out_of_host_memory",
)
Verdict = Literal["Allow", "Warn", "Deny"]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the host or of an accelerator.

    Only torch's caching allocators raise a class of their own. Its CPU allocator, drivers and
    libraries of kernels are recognized by their messages.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).casefold()
    return isinstance(error, RuntimeError) and any(words in message for words in _MEMORY_WORDS)


class LiveBytesRecorder(TorchDispatchMode):  # type: ignore[misc]  # torch has no type for it
    """Records after every operation the bytes of live tensors that were created within the context.

    A storage counts once, however many tensors view it. ``timeline`` has one number per operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timeline: list[int] = []
        self._live = 0
        self._known: dict[int, Any] = {}

    @property
    def peak(self) -> int:
        return max(self.timeline, default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._track_all((*args, *kwargs.values()), is_new=False)
        result = func(*args, **kwargs)
        self._track_all((result,), is_new=True)
        self.timeline.append(self._live)
        return result

    def _track_all(self, values: Iterable[Any], *, is_new: bool) -> None:
        # Operations take and return tensors and lists of them, nothing deeper; torch's own walk
        # through any structure took a third of the recording.
        for value in values:
            if isinstance(value, torch.Tensor):
                self._track(value, is_new=is_new)
            elif isinstance(value, list | tuple):
                self._track_all(value, is_new=is_new)

    def _track(self, value: torch.Tensor, *, is_new: bool) -> None:
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
class MemoryTimeline:
    """Live bytes after each operation of a pass, with ``count`` samples and with one more."""

    fewer: Sequence[int]
    more: Sequence[int]
    count: int = 1

    @property
    def is_aligned(self) -> bool:
        """Return whether both passes have the same operations."""
        return len(self.fewer) == len(self.more)

    def peak(self, size: int) -> int:
        """Return the peak with ``size`` samples, extrapolating each operation linearly."""
        # (operations,).
        fewer, more = (
            np.asarray(self.fewer, np.int64),
            np.asarray(self.more, np.int64),
        )
        if not self.is_aligned:  # only the peaks can be compared
            fewer, more = fewer.max(keepdims=True), more.max(keepdims=True)
        return int((fewer + (size - self.count) * (more - fewer)).max())


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """What training steps take in addition to the memory used before the first one, in bytes.

    ``whole_batch`` is the timeline of a micro-batch that is the whole batch, None if the batch is
    larger. ``accumulating`` is that of a later micro-batch, which adds to existing gradients.
    """

    whole_batch: MemoryTimeline | None
    accumulating: MemoryTimeline
    gradients: int  # of all trained parameters
    optimizer: int  # state that the optimizers do not have yet
    update: int  # temporary memory of the optimizers' update
    inputs: int  # of one sample
    first_use: int = 0  # constant
    is_bound: bool = False  # from a single pass: whatever that takes counts once per sample

    def peak(self, micro_batch_size: int, batch_size: int) -> int:
        """Return the peak of live bytes in a step.

        The inputs of all its micro-batches are built at its start.
        """
        if self.whole_batch is not None and micro_batch_size == batch_size:
            # Where two samples take other operations than one, the peak of one may be its
            # gradients, which do not grow with the size. So the peak without gradients is a lower
            # bound.
            passes = max(
                self.whole_batch.peak(micro_batch_size), self.accumulating.peak(micro_batch_size)
            )
        else:
            passes = self.gradients + self.accumulating.peak(micro_batch_size)
        at_once = max(passes, self.gradients + self.update)
        return self.inputs * batch_size + self.optimizer + at_once + self.first_use


def estimate_optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Return the bytes of optimizer state that will be allocated in the first step."""
    total = sum(
        _estimate_state_bytes(optimizer, group, parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    return max(0, total - count_optimizer_bytes(optimizers))


def count_optimizer_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Return the bytes of optimizer state that exist now."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())


def _estimate_state_bytes(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.Tensor
) -> int:
    """Return the bytes of a parameter's optimizer state.

    AdamW: two moments (Kingma & Ba 2015). SGD and Muon: one momentum. Adafactor: one row and one
    column of second moments per matrix (Shazeer & Stern 2018). AdamW8bit: two moments of one byte
    with a scale per block, or of float32 for small parameters (Dettmers et al. 2022).
    """
    # Float32 also where weights are bfloat16.
    numel, size = int(parameter.numel()), FLOAT_BYTES
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
            if numel < MIN_8BIT_NUMEL:
                return 2 * numel * FLOAT_BYTES
            return 2 * (numel + math.ceil(numel / BLOCK_8BIT_NUMEL) * FLOAT_BYTES)
    return 2 * whole + FLOAT_BYTES


def _estimate_update_bytes(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Return the temporary bytes of an update: those of the largest parameter.

    Weights in bfloat16 and their gradients are in float32 meanwhile.
    """
    copies = {"Muon": 4, "Adafactor": 3, "SGD": 1}
    largest = 0
    for optimizer in optimizers:
        numels = [p.numel() for group in optimizer.param_groups for p in group["params"]]
        update = copies.get(type(optimizer).__name__, 0) * max(numels, default=0)
        if any(_is_bfloat16(group) for group in optimizer.param_groups):
            update += estimate_rounding_numbers(numels)
        largest = max(largest, update * FLOAT_BYTES)
    return largest


def _is_bfloat16(group: dict[str, Any]) -> bool:
    return any(parameter.dtype == torch.bfloat16 for parameter in group["params"])


def measure_step_memory(
    build_batch: Callable[[Sequence[int], int], Batch],
    losses: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    longest: int,
    plan: Plan,
    device: torch.device,
    budget: TrialBudget | None = None,
    on_activity: Callable[[str], None] = lambda activity: None,
    is_enough: Callable[["StepMemory"], bool] = lambda bound: False,
) -> StepMemory:
    """Run the sample with index ``longest`` and return what steps take; zeroes gradients, keeps the
    random state.

    Logits are computed in chunks of ``losses.max_rows`` positions, so each sample gets its share of
    one chunk. Passes for which ``budget`` has no time left are skipped where the rest gives an
    upper bound. ``is_enough`` gets the upper bound that the first pass gives, and returns whether
    that suffices without the other passes.

    Raises:
        NoTimeLeft: the rest gives none.
    """
    budget = budget or TrialBudget(math.inf)
    max_labels = max(1, losses.max_rows // plan.micro_batch_size)
    inputs: list[int] = []

    def record(count: int) -> list[int]:
        on_activity(f"Measuring memory: micro-batch of {count}")
        with budget.time(count):
            return run(count)

    def run(count: int) -> list[int]:
        batch = build_batch([longest] * count, 0).to(device)
        inputs.append(sum(value.nbytes for value in batch.inputs.values()) // count)
        end = max_labels * count
        batch = replace(
            batch, label_positions=batch.label_positions[:end], labels=batch.labels[:end]
        )
        with LiveBytesRecorder() as live:
            (losses(batch) / max(1, batch.label_count)).backward()
        synchronize(device)
        timeline: list[int] = live.timeline
        return timeline

    def compare(is_first: bool) -> MemoryTimeline:
        def record_pass(count: int) -> list[int]:
            if is_first:
                losses.zero_gradients()
            return record(count)

        timeline = MemoryTimeline(record_pass(1), record_pass(2))
        # A single sample takes other operations.
        is_bound = timeline.is_aligned or plan.micro_batch_size <= 2
        if not is_bound and budget.permits(3, "a micro-batch of 3"):
            timeline = MemoryTimeline(timeline.more, record_pass(3), count=2)
        return timeline

    def describe(accumulating: MemoryTimeline, whole_batch: MemoryTimeline | None) -> StepMemory:
        parameters = [
            p
            for optimizer in optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        return StepMemory(
            whole_batch=whole_batch,
            accumulating=accumulating,
            gradients=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            optimizer=estimate_optimizer_bytes(optimizers),
            update=_estimate_update_bytes(optimizers),
            inputs=inputs[0],
            first_use=FIRST_USE_BYTES if device.type == "cpu" else 0,
        )

    with keep_random_states(device):
        try:
            # The first pass allocates gradients and does one-time work, such as reading
            # memory-mapped weights.
            first = record(1)
            bound = replace(
                describe(MemoryTimeline([0] * len(first), first, count=0), None), is_bound=True
            )
            if is_enough(bound):
                return bound
            if not budget.permits(3, "the measurement of memory"):
                raise NoTimeLeft
            accumulating, whole_batch = compare(is_first=False), None
            # Without it, the gradients count as if all existed at the peak.
            if plan.micro_batch_size == plan.batch_size and budget.permits(
                3, "the measurement without earlier gradients"
            ):
                whole_batch = compare(is_first=True)
        finally:
            losses.zero_gradients()
    return describe(accumulating, whole_batch)


@dataclass(frozen=True, kw_only=True)
class AvailableMemory:
    """Memory in bytes: used by this process, free for it, and the total it could ever have."""

    used: int
    free: int
    total: int
    name: str = "the machine"


def read_available_memory(device: torch.device) -> AvailableMemory:
    """Return the memory of the accelerator, or of the host, which a cgroup may limit."""
    if device.type != "cpu":
        found = read_memory(device)
        return AvailableMemory(used=found.used, free=found.free, total=found.total, name="the GPU")
    trim_heap()
    return read_host_memory(Path("/"))


def trim_heap() -> None:
    """Have the C library return free heap memory to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory() -> None:
    """Have the C library (glibc) return every larger block at once.

    By default it raises its threshold to blocks of up to 32 MiB once such have been freed, and
    keeps them in a heap that soon fragments: small objects are cut from the blocks that tensors
    leave, and no tensor fits there again.
    """
    _set_malloc_options(
        {
            _M_MMAP_MAX: _DEFAULT_MAX_MAPS,
            _M_MMAP_THRESHOLD: RETAINED_BYTES,
            _M_TRIM_THRESHOLD: RETAINED_BYTES,
        }
    )


def retain_freed_memory() -> None:
    """Have the C library (glibc) keep freed memory for reuse, instead of having the system zero new
    pages.

    Measured: a step takes 0.57 to 0.74 of the CPU time with all memory returned, and 0.65 to 1.04
    of that with glibc's defaults (language models 64 to 512 wide; least with large outputs, no gain
    with few tokens). Steps then take up to 3.3 times the memory they need.
    """
    _set_malloc_options({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _MAX_INT})


def _set_malloc_options(options: dict[int, int]) -> None:
    """Call ``mallopt``, which C libraries other than glibc do not have."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name, value in options.items():
            library.mallopt(name, value)


def read_host_memory(root: Path) -> AvailableMemory:
    """Return the memory of the host; ``root`` contains ``proc`` and ``sys``.

    Swap counts only toward the total.
    """
    with contextlib.suppress(OSError):
        lines = dict(
            line.split(":")
            for line in (root / "proc/meminfo").read_text().splitlines()
            if ":" in line
        )
        machine = {
            name: int(value.split()[0]) * 1024 for name, value in lines.items() if value.split()
        }
        used = int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        free, total = machine["MemAvailable"], machine["MemTotal"] + machine.get("SwapTotal", 0)
        limit, in_cgroup = _read_cgroup(root)
        if limit < total:
            return AvailableMemory(
                used=used, free=min(free, max(0, limit - in_cgroup)), total=limit, name="the cgroup"
            )
        return AvailableMemory(used=used, free=free, total=total)
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return AvailableMemory(used=0, free=pages * size, total=pages * size)


def _read_cgroup(root: Path) -> tuple[int, int]:
    """Return the tightest limit of this process's cgroups, and the unreclaimable use."""
    tightest, used = NO_LIMIT, 0
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kind, path = line.split(":", 2)
            if kind not in ("", "memory"):
                continue
            top = root / "sys/fs/cgroup" / kind
            names = (
                ("memory.max", "memory.current")
                if not kind
                else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            )
            folder = top / path.strip("/")
            for level in (folder, *folder.parents):
                limit = _read_number(level / names[0])
                if limit is not None and limit < tightest:
                    tightest, used = (
                        limit,
                        (_read_number(level / names[1]) or 0) - _read_reclaimable(level),
                    )
                if level == top:
                    break
    return tightest, max(0, used)


def _read_number(file: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _read_reclaimable(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))
    return 0


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The estimated peak, the verdict with its reason, and the largest smaller micro-batch that
    fits, if any.

    ``is_ample``: there is so much memory that none needs to be saved. ``larger`` is the estimate
    for the largest of the larger micro-batches that fit with a margin, if any does.
    """

    verdict: Verdict
    peak_bytes: int
    reason: str
    fitting_micro_batch: int | None
    is_ample: bool = False
    fits_sharded: bool = False  # where it does not fit, but parts of it on each rank would
    micro_batch_size: int = 0
    larger: "MemoryEstimate | None" = None


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Over how many ranks weights may be sharded, and the bytes of all weights and of those that
    are gathered at once.
    """

    ranks: int
    weights: int
    gathered: int


def shard_step(
    step: StepMemory, available: AvailableMemory, sharding: Sharding
) -> tuple[StepMemory, AvailableMemory]:
    """Return what steps take with sharded weights, and the memory available then.

    Before the first step, each rank drops what it does not keep of the weights.
    """
    ranks, dropped = sharding.ranks, sharding.weights - sharding.weights // sharding.ranks
    dropped = min(dropped, available.used)
    sharded = replace(
        step,
        whole_batch=None,
        gradients=step.gradients // ranks,
        optimizer=step.optimizer // ranks,
        update=step.update // ranks,
        # Weights and gradients of what is gathered
        first_use=step.first_use + 2 * sharding.gathered,
    )
    return sharded, replace(available, used=available.used - dropped, free=available.free + dropped)


def compare_with_available(
    step: StepMemory, available: AvailableMemory, plan: Plan, *, mode: str
) -> MemoryEstimate:
    """Compare the estimate with the available memory.

    On the CPU the free memory may change, and swap may help, so only more than the total is denied;
    on an accelerator, more than is free.
    """

    def estimate_peak(size: int) -> int:
        return available.used + step.peak(size, plan.batch_size)

    size, limit = plan.micro_batch_size, available.used + available.free
    peak_bytes = estimate_peak(size)
    maximum = max(available.total, available.used) if plan.device == "cpu" else limit
    verdict: Verdict = (
        "Deny" if peak_bytes > maximum else "Warn" if peak_bytes > WARN_SHARE * limit else "Allow"
    )
    basis = "extrapolated from one sample" if step.is_bound else "estimated"
    reason = (
        f"{verdict}: {basis} for a micro-batch of {size} times the longest sample; available are "
        f"{format_bytes(limit)} of {available.name} ({format_bytes(available.used)} used before "
        "the first step)"
    )
    if verdict == "Allow":
        is_ample = AMPLE_FACTOR * peak_bytes <= limit
        if is_ample and plan.device == "cpu":
            reason += "; memory is ample, so freed memory is kept for reuse"
        larger = max(
            (
                part
                for part in range(size + 1, plan.batch_size + 1)
                if plan.batch_size % part == 0 and estimate_peak(part) <= GROWTH_SHARE * limit
            ),
            default=None,
        )
        return MemoryEstimate(
            verdict=verdict,
            peak_bytes=peak_bytes,
            reason=reason,
            fitting_micro_batch=None,
            is_ample=is_ample,
            micro_batch_size=size,
            larger=None
            if larger is None
            else compare_with_available(
                step, available, with_micro_batch(plan, larger, ""), mode=mode
            ),
        )
    smaller = [part for part in range(1, size) if plan.batch_size % part == 0]
    bound = WARN_SHARE * (limit if verdict == "Warn" else maximum)
    fitting = max((part for part in smaller if estimate_peak(part) <= bound), default=None)
    fixes = (
        []
        if fitting is None
        else [f"microBatchSize {fitting}, which would take {format_bytes(estimate_peak(fitting))}"]
    )
    if not plan.gradient_checkpointing:
        fixes.append("compute.gradientCheckpointing true")
    if mode != "lora":
        fixes.append("training.mode 'lora'")
    reason = f"{reason}; try: {', '.join([*fixes, 'a smaller model'])}"
    return MemoryEstimate(
        verdict=verdict, peak_bytes=peak_bytes, reason=reason, fitting_micro_batch=fitting
    )


def estimate_memory(
    plan: Plan,
    flow: ResolvedFlow,
    *,
    measure: Callable[[], StepMemory],
    available: Callable[[], AvailableMemory],
    sharding: Sharding | None = None,
) -> tuple[Plan, MemoryEstimate | None]:
    """Return the plan with its memory estimate, and with a smaller micro-batch where it is allowed
    and needed. With ``sharding`` the estimate says whether sharded weights would fit.

    There is no estimate for the tiny model, whose start would take longer, nor for a compiled one,
    whose operations differ from the recorded ones.
    """
    for is_left_out, reason in (
        (flow.is_tiny, "not estimated: the tiny model takes little"),
        (plan.compile, "not estimated: a compiled model runs other operations"),
    ):
        if is_left_out:
            return with_memory(plan, None, reason), None
    try:
        step = measure()
    except NoTimeLeft:
        return with_memory(plan, None, "not estimated"), None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or plan.micro_batch_size == 1:
            raise
        return with_memory(
            plan, None, "not estimated: memory did not suffice for two samples"
        ), None
    mode = flow.model.training.mode
    estimate = compare_with_available(step, available(), plan, mode=mode)
    fitting = estimate.fitting_micro_batch
    if (
        estimate.verdict == "Deny"
        and fitting is not None
        and flow.model.on_out_of_memory == "shrink"
    ):
        needed = format_bytes(estimate.peak_bytes)
        plan = with_micro_batch(
            plan, fitting, f"{plan.micro_batch_size} would need {needed} of memory"
        )
        estimate = compare_with_available(step, available(), plan, mode=mode)
    if estimate.verdict == "Deny" and sharding is not None:
        parts = compare_with_available(*shard_step(step, available(), sharding), plan, mode=mode)
        if parts.verdict != "Deny":
            estimate = replace(parts, fits_sharded=True)
    return with_memory(plan, estimate.peak_bytes, estimate.reason), estimate


def format_bytes(size_bytes: int) -> str:
    return (
        f"{size_bytes / (1 << 30):.2f} GiB"
        if size_bytes >= 1 << 30
        else f"{size_bytes / (1 << 20):.0f} MiB"
    )

"""What an attempt uses of its machine, every few seconds: CPU, memory, disk, accelerators.

A thread of the supervisor samples, so the trainer does nothing for it. Samples are lines of
``system.jsonl`` in the attempt's folder, which is shipped like the other streams: by offset, each
line once, later while the server is unreachable, and at most ``spool_mib`` of it. A sample that the
disk does not accept is dropped, and so is a value that cannot be measured.
"""

import contextlib
import ctypes
import json
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runyard import processes, rundir
from runyard.ports import Clock, Identity

log = logging.getLogger(__name__)

FIRST_AFTER_S, SAMPLE_EVERY_S = 1.0, 5.0
CPU, MEMORY, DISK = "system/cpuPercent", "system/memoryBytes", "system/diskFreeBytes"
ACCELERATOR = "system/acceleratorPercent"
ACCELERATOR_MEMORY = "system/acceleratorMemoryBytes"
NVML = "libnvidia-ml.so.1"  # comes with NVIDIA's driver
VISIBLE = "CUDA_VISIBLE_DEVICES"
MOST_ACCELERATORS = 64


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class Accelerators:
    """The accelerators of NVIDIA that ``CUDA_VISIBLE_DEVICES`` does not hide; none without NVML."""

    def __init__(self, library: Any = None, visible: str | None = None) -> None:
        self._library = _load_library() if library is None else library
        self._handles: list[ctypes.c_void_p] = []
        if self._library is not None and self._library.nvmlInit_v2() == 0:
            indices = _parse_visible(os.environ.get(VISIBLE) if visible is None else visible)
            self._handles = self._open(indices)

    def _open(self, indices: list[int] | None) -> list[ctypes.c_void_p]:
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        handles = []
        for index in range(min(count.value, MOST_ACCELERATORS)) if indices is None else indices:
            handle = ctypes.c_void_p()
            found = self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            if found == 0:
                handles.append(handle)
        return handles

    def measure(self) -> dict[str, float]:
        """Return use and memory by key; of several accelerators with the position appended."""
        values: dict[str, float] = {}
        for position, handle in enumerate(self._handles):
            suffix = f"/{position}" if len(self._handles) > 1 else ""
            use, memory = _Utilization(), _Memory()
            if self._library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(use)) == 0:
                values[ACCELERATOR + suffix] = float(use.gpu)
            if self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
                values[ACCELERATOR_MEMORY + suffix] = float(memory.used)
        return values


class Sampler:
    """Samples the processes below this one, and appends lines until it is stopped."""

    def __init__(self, folder: Path, clock: Clock, accelerators: Accelerators | None = None):
        self._folder, self._clock = folder, clock
        self._accelerators = accelerators
        self._stopped = threading.Event()
        self._cpu_s: Mapping[Identity, float] = {}
        self._measured_at_s = 0.0

    def start(self) -> None:
        threading.Thread(target=self._run, name="sampling", daemon=True).start()

    def stop(self) -> None:
        """Take no further sample. One may still be written."""
        self._stopped.set()

    def _run(self) -> None:
        try:
            if self._accelerators is None:
                self._accelerators = Accelerators()
            self.measure()  # use of CPU is measured between two samples
            pause_s = FIRST_AFTER_S
            while not self._stopped.wait(pause_s):
                self.write(self.measure())
                pause_s = SAMPLE_EVERY_S
        except Exception:  # an attempt must not end because of its samples
            log.exception("sampling of %s has ended", self._folder)

    def measure(self) -> dict[str, float]:
        """Return what the attempt uses now, by key; nothing if it has no process."""
        now_s = self._clock.monotonic()
        cpu_s: dict[Identity, float] = {}
        memory_bytes = 0
        for identity in processes.list_descendants(os.getpid()):
            if (use := processes.read_use(identity.pid)) is not None:
                cpu_s[identity] = use.cpu_s
                memory_bytes += use.memory_bytes
        if not cpu_s:
            return {}  # the trainer has ended
        elapsed_s = now_s - self._measured_at_s
        used_s = sum(value - self._cpu_s.get(identity, 0.0) for identity, value in cpu_s.items())
        self._cpu_s, self._measured_at_s = cpu_s, now_s
        values = {MEMORY: float(memory_bytes)}
        if elapsed_s > 0:
            values[CPU] = round(100 * used_s / elapsed_s, 1)
        with contextlib.suppress(OSError):
            values[DISK] = float(rundir.free_bytes(self._folder))
        return values | (self._accelerators.measure() if self._accelerators is not None else {})

    def write(self, values: Mapping[str, float]) -> None:
        """Append a line, if there are values; a full or failing disk drops it."""
        if not values:
            return
        line = json.dumps({"t": self._clock.now_ms(), "values": values}).encode() + b"\n"
        with contextlib.suppress(OSError):
            rundir.append_line(rundir.AttemptDir(self._folder).system, line)


def _load_library() -> Any:
    try:
        return ctypes.CDLL(NVML)
    except OSError:
        return None  # no driver of NVIDIA


def _parse_visible(value: str | None) -> list[int] | None:
    """Return the indices that ``CUDA_VISIBLE_DEVICES`` names; None for all devices.

    Devices that it names by other ids (``GPU-…``, ``MIG-…``) cannot be distinguished, so all count.
    """
    if value is None:
        return None
    words = [word.strip() for word in value.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        return None
    return [int(word) for word in words]

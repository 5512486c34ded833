"""What a machine reports of its accelerators: from the driver's program, from the driver, or of the processor alone."""

import os
import stat
from pathlib import Path

import pytest

from runyard.controller.accelerators import accelerators, short_name
from runyard.protocol import Accelerator

GIB = 1 << 30


def nothing() -> None:
    """No program of a driver."""


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_equal_accelerators_are_counted(tmp_path: Path) -> None:
    said = "NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\nNVIDIA A10, 23028\nNVIDIA GB10, [N/A]\n"
    assert accelerators(ask=lambda: said, root=tmp_path) == [
        Accelerator(name="h100", model="NVIDIA H100 80GB HBM3", count=2, memory_gib=79.65),
        Accelerator(name="a10", model="NVIDIA A10", count=1, memory_gib=22.49),
        Accelerator(name="gb10", model="NVIDIA GB10", count=1, memory_gib=None),
    ]


def test_the_driver_s_program_is_really_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\n[ "$1" = --query-gpu=name,memory.total ] && echo "Tesla T4, 15360"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert accelerators(root=tmp_path) == [Accelerator(name="t4", model="Tesla T4", count=1, memory_gib=15.0)]


def test_a_program_that_fails_leaves_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexit 9\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for number in (1, 2):
        write(tmp_path, f"proc/driver/nvidia/gpus/0000:0{number}/information", "Model: \t NVIDIA H200\nIRQ: 5\n")
    assert accelerators(root=tmp_path) == [Accelerator(name="h200", model="NVIDIA H200", count=2, memory_gib=None)]


@pytest.mark.parametrize(
    ("cgroup", "limits", "memory_gib"),
    [
        ("0::/", {}, 16.0),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": str(4 * GIB)}, 4.0),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": str(64 * GIB)}, 16.0),
        # Inside a container the path may be that of outside, with nothing of it to be seen but the top.
        ("0::/x/y", {"sys/fs/cgroup/memory.max": str(3 * GIB)}, 3.0),
        ("5:cpu:/a\n4:memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * GIB)}, 2.0),
    ],
)
def test_a_processor_has_the_machine_s_memory_or_what_its_cgroup_allows(
    tmp_path: Path, cgroup: str, limits: dict[str, str], memory_gib: float
) -> None:
    write(tmp_path, "proc/meminfo", f"MemTotal:       {16 * GIB // 1024} kB\nMemFree: 5 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some Processor\n")
    write(tmp_path, "proc/self/cgroup", f"{cgroup}\n")
    for name, limit in limits.items():
        write(tmp_path, name, f"{limit}\n")
    found = accelerators(ask=nothing, root=tmp_path)
    assert found == [Accelerator(name="cpu", model="Some Processor", count=1, memory_gib=memory_gib)]


def test_a_machine_that_says_nothing_has_a_processor_of_unknown_memory(tmp_path: Path) -> None:
    assert accelerators(ask=nothing, root=tmp_path) == [Accelerator(name="cpu", memory_gib=None)]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA TITAN V", "nvidia-titan-v"),
    ],
)
def test_short_names_are_the_words_of_tolerations(model: str, name: str) -> None:
    assert short_name(model) == name

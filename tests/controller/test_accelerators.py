"""The accelerators that a machine reports: from nvidia-smi, from the driver's files, or its
processor.
"""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from runyard.controller.accelerators import (
    Device,
    find_least_used,
    limit_slots,
    list_devices,
    make_labels,
    shorten_model,
    summarize_accelerators,
)
from runyard.protocol import Accelerator

GIB = 1 << 30


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def fake_nvidia_smi(query: str, listing: str = "") -> Callable[[Sequence[str]], str | None]:
    """Return a runner of nvidia-smi with these outputs."""
    return lambda arguments: listing if arguments == ("-L",) else query


def install_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script named nvidia-smi on PATH."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_equal_accelerators_are_counted(tmp_path: Path) -> None:
    printed = (
        "GPU-1, NVIDIA H100 80GB HBM3, 81559\nGPU-2, NVIDIA H100 80GB HBM3, 81559\n"
        "GPU-3, NVIDIA A10, 23028\nGPU-4, NVIDIA GB10, [N/A]\n"
    )
    found = list_devices(run_smi=fake_nvidia_smi(printed), root=tmp_path, visible="0,1,2,3")
    assert summarize_accelerators(found, root=tmp_path) == [
        Accelerator(name="h100", model="NVIDIA H100 80GB HBM3", count=2, memory_gib=79.65),
        Accelerator(name="a10", model="NVIDIA A10", count=1, memory_gib=22.49),
        Accelerator(name="gb10", model="NVIDIA GB10", count=1, memory_gib=None),
    ]
    assert make_labels(found) == {"accelerator": ["80gb", "a10", "gb10", "h100", "hbm3"]}


def test_nvidia_smi_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(
        tmp_path,
        monkeypatch,
        '[ "$1" = --query-gpu=uuid,name,memory.total ] && echo "GPU-7, Tesla T4, 15360" || true',
    )
    assert list_devices(root=tmp_path) == [Device("GPU-7", "Tesla T4", 15.0)]


def test_driver_files_are_used_when_nvidia_smi_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, "exit 9")
    for number, uuid in ((1, "GPU UUID: \t GPU-12ab-34\n"), (2, "GPU UUID: \t GPU-????????\n")):
        text = f"Model: \t NVIDIA H200\nIRQ: 5\n{uuid}"
        write(tmp_path, f"proc/driver/nvidia/gpus/0000:0{number}/information", text)
    found = list_devices(root=tmp_path)
    assert summarize_accelerators(found) == [
        Accelerator(name="h200", model="NVIDIA H200", count=2, memory_gib=None)
    ]
    assert [device.environment for device in found] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-12ab-34"},
        {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    ]


FOUR_DEVICES = "".join(f"GPU-{letter}{letter}-1, NVIDIA A100, 40960\n" for letter in "abcd")
MIG_LISTING = """GPU 0: NVIDIA A100 (UUID: GPU-aa-1)
  MIG 1g.5gb      Device  0: (UUID: MIG-x1)
  MIG 2g.10gb     Device  1: (UUID: MIG-x2)
GPU 1: NVIDIA A100 (UUID: GPU-bb-1)
GPU 2: NVIDIA A100 (UUID: GPU-cc-1)
GPU 3: NVIDIA A100 (UUID: GPU-dd-1)
  MIG 1g.5gb      Device  0: (UUID: MIG-GPU-dd-1/1/0)
"""


# As CUDA reads its variable: numbers, UUIDs, and their prefixes, in order, up to the first invalid
# entry.
@pytest.mark.parametrize(
    ("visible", "whole", "divided"),
    [
        ("0,1,2,3", "aa bb cc dd", "x1 x2 bb cc 1/1/0"),
        ("2,0", "cc aa", "cc x1 x2"),
        ("GPU-bb-1,GPU-dd", "bb dd", "bb 1/1/0"),
        ("MIG-x2, 1", "", "x2 bb"),
        ("MIG-GPU-dd-1/1/0", "", "1/1/0"),
        ("1,1", "bb", "bb"),
        ("1,-1,2", "bb", "bb"),
        ("1,9,2", "bb", "bb"),
        ("GPU-", "", ""),
        ("", "", ""),
        ("-1", "", ""),
        ("NoDevFiles", "", ""),
    ],
)
def test_only_visible_devices_count_and_partitions_of_divided_ones(
    tmp_path: Path, visible: str, whole: str, divided: str
) -> None:
    found = list_devices(run_smi=fake_nvidia_smi(FOUR_DEVICES), root=tmp_path, visible=visible)
    assert [device.id for device in found] == [f"GPU-{letters}-1" for letters in whole.split()]
    found = list_devices(
        run_smi=fake_nvidia_smi(FOUR_DEVICES, MIG_LISTING), root=tmp_path, visible=visible
    )
    ends = divided.split()
    assert len(found) == len(ends)
    assert all(
        device.id.removesuffix("-1").endswith(end) for device, end in zip(found, ends, strict=True)
    )


def test_a_partition_has_the_memory_of_its_profile(tmp_path: Path) -> None:
    found = list_devices(
        run_smi=fake_nvidia_smi(FOUR_DEVICES, MIG_LISTING), root=tmp_path, visible="MIG-x2"
    )
    assert found == [Device("MIG-x2", "NVIDIA A100 MIG 2g.10gb", 10.0, whole="GPU-aa-1")]
    assert found[0].environment == {"CUDA_VISIBLE_DEVICES": "MIG-x2"}
    assert "a100" in make_labels(found)["accelerator"]


def test_the_environment_of_the_controller_hides_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-cc-1")
    assert [
        device.id for device in list_devices(run_smi=fake_nvidia_smi(FOUR_DEVICES), root=tmp_path)
    ] == ["GPU-cc-1"]


def test_a_machine_takes_one_run_per_accelerator_unless_they_are_shared() -> None:
    two = [Device("GPU-1", "A"), Device("GPU-2", "A")]
    cases = [
        (1, two, False),
        (2, two, False),
        (5, two, False),
        (5, two, True),
        (5, [], False),
        (5, [], True),
    ]
    assert [limit_slots(slots, found, are_shared=shared) for slots, found, shared in cases] == [
        1,
        2,
        2,
        5,
        5,
        5,
    ]
    assert find_least_used(two, ["GPU-1"]) == [two[1]]
    assert find_least_used(two, ["GPU-1", "GPU-2", "GPU-2"]) == [two[0]]
    assert find_least_used(two, ["GPU-1"], count=2) == [two[1], two[0]]
    assert find_least_used([], []) == []


@pytest.mark.parametrize(
    ("cgroup", "limits", "memory_gib"),
    [
        ("0::/", {}, 16.0),
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": str(4 * GIB)},
            4.0,
        ),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": str(64 * GIB)}, 16.0),
        # In a container the path may be that of the host, of which only the top is visible.
        ("0::/x/y", {"sys/fs/cgroup/memory.max": str(3 * GIB)}, 3.0),
        (
            "5:cpu:/a\n4:memory:/a",
            {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(2 * GIB)},
            2.0,
        ),
    ],
)
def test_a_cpu_has_the_memory_of_the_machine_or_of_its_cgroup(
    tmp_path: Path, cgroup: str, limits: dict[str, str], memory_gib: float
) -> None:
    write(tmp_path, "proc/meminfo", f"MemTotal:       {16 * GIB // 1024} kB\nMemFree: 5 kB\n")
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Some Processor\n")
    write(tmp_path, "proc/self/cgroup", f"{cgroup}\n")
    for name, limit in limits.items():
        write(tmp_path, name, f"{limit}\n")
    assert list_devices(run_smi=lambda _: None, root=tmp_path) == []
    assert summarize_accelerators([], root=tmp_path) == [
        Accelerator(name="cpu", model="Some Processor", count=1, memory_gib=memory_gib)
    ]


def test_a_machine_without_information_has_a_cpu_of_unknown_memory(tmp_path: Path) -> None:
    assert summarize_accelerators([], root=tmp_path) == [Accelerator(name="cpu", memory_gib=None)]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA TITAN V", "nvidia-titan-v"),
    ],
)
def test_models_are_shortened_to_the_names_in_tolerations(model: str, name: str) -> None:
    assert shorten_model(model) == name

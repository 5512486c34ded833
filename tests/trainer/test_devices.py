"""Accelerators of every kind, with a stand-in for torch's module of the kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.flows import resolve
from runyard.rundir import read_json
from runyard.trainer import devices
from runyard.trainer.evaluation.batches import BatchLimit, ignore_warning, run_in_batches
from runyard.trainer.main import detect_machine, train_attempt
from runyard.trainer.plan import choose_precision
from runyard.trainer.steps.memory import read_available_memory
from vi.api.resources.flows.responses import FlowBlock, FlowSpec

GIB = 1 << 30


class FakeAccelerator:
    """What torch offers for two devices of one kind, without a device."""

    def __init__(self, kind: str, *, is_bfloat16_fast: bool = True):
        self.device = torch.device(kind)
        self.is_bfloat16_fast = is_bfloat16_fast
        self.random_state = torch.arange(4, dtype=torch.uint8)
        self.calls: list[str] = []

    # As torch.cuda, torch.xpu and torch.mps.
    def get_device_name(self, number: int = 0) -> str:
        return f"Card {number}"

    def is_bf16_supported(self, *, including_emulation: bool) -> bool:
        return self.is_bfloat16_fast or including_emulation

    def get_rng_state(self) -> torch.Tensor:
        return self.random_state.clone()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.random_state = state

    def recommended_max_memory(self) -> int:
        return 16 * GIB

    def current_allocated_memory(self) -> int:
        return 3 * GIB

    # As torch.accelerator.
    def current_accelerator(self, check_available: bool = False) -> torch.device:
        return self.device

    def device_count(self) -> int:
        return 2

    def get_memory_info(self, device: torch.device) -> tuple[int, int]:
        return 4 * GIB, 16 * GIB

    def memory_allocated(self, device: torch.device) -> int:
        return 3 * GIB

    def memory_reserved(self, device: torch.device) -> int:
        return 5 * GIB

    def synchronize(self, device: torch.device) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeAccelerator]:
    """Return a function that lets torch find an accelerator of a kind."""

    def attach(kind: str, **more: Any) -> FakeAccelerator:
        fake = FakeAccelerator(kind, **more)
        for name in (
            "current_accelerator",
            "device_count",
            "get_memory_info",
            "memory_allocated",
            "memory_reserved",
            "synchronize",
            "empty_cache",
        ):
            monkeypatch.setattr(torch.accelerator, name, getattr(fake, name))
        monkeypatch.setattr(torch, "get_device_module", lambda kind: fake)
        return fake

    return attach


Attach = Callable[..., FakeAccelerator]


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_an_accelerator_of_every_supported_kind_is_found(kind: str, attach: Attach) -> None:
    attach(kind)
    assert devices.find_device() == torch.device(kind)
    assert devices.count_devices() == 2
    machine = detect_machine(1)
    name = "Apple GPU" if kind == "mps" else "Card 0"
    assert (machine.device, machine.device_name) == (kind, name)
    assert machine.hardware["accelerators"][0] == name
    assert machine.has_good_bfloat16 == (kind != "mps")


@pytest.mark.parametrize("kind", ["hpu", "mtia"])
def test_an_accelerator_of_another_kind_is_not_used(kind: str, attach: Attach) -> None:
    attach(kind)
    assert devices.find_device() == devices.CPU
    assert devices.count_devices() == 0
    assert devices.list_device_names() == []


@pytest.mark.parametrize(
    ("kind", "is_fast", "precision"),
    [
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),
        ("xpu", True, "bfloat16"),
        ("xpu", False, "float16"),
        ("mps", True, "float32"),
    ],
)
def test_auto_precision_depends_on_the_kind(
    kind: str, is_fast: bool, precision: str, attach: Attach
) -> None:
    attach(kind, is_bfloat16_fast=is_fast)
    blocks = [
        FlowBlock(block="vi-model", settings={"architecture": {"name": "qwen3vl", "size": "2B"}})
    ]
    flow = resolve(FlowSpec(blocks=blocks))
    assert choose_precision(flow, detect_machine(1))[0] == precision


@pytest.mark.parametrize(("kind", "free"), [("cuda", 6), ("xpu", 6), ("mps", 13)])
def test_memory_that_torch_holds_unused_is_free(kind: str, free: int, attach: Attach) -> None:
    attach(kind)
    found = read_available_memory(torch.device(kind))
    assert (found.used, found.free, found.total) == (3 * GIB, free * GIB, 16 * GIB)
    assert found.name == "the GPU"


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_random_states_are_stored_by_kind_and_restored(kind: str, attach: Attach) -> None:
    fake = attach(kind)
    states = devices.read_random_states(fake.device)
    assert states.keys() == {"random.cpu", f"random.{kind}"}
    fake.random_state = torch.zeros(4, dtype=torch.uint8)
    devices.restore_random_states(states, fake.device)
    assert torch.equal(fake.random_state, torch.arange(4, dtype=torch.uint8))
    # Of a checkpoint from a machine of another kind, only the CPU's state can be used.
    other = {"random.cpu": states["random.cpu"], "random.other": torch.zeros(4)}
    devices.restore_random_states(other, fake.device)
    assert torch.equal(fake.random_state, torch.arange(4, dtype=torch.uint8))
    with devices.keep_random_states(fake.device):
        fake.random_state = torch.ones(4, dtype=torch.uint8)
    assert torch.equal(fake.random_state, torch.arange(4, dtype=torch.uint8))


def test_on_the_cpu_random_states_are_kept_as_torch_does() -> None:
    torch.manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        inside = torch.rand(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with pytest.raises(KeyError), devices.keep_random_states(devices.CPU):
        assert torch.equal(torch.rand(3), inside)
        raise KeyError
    assert torch.equal(torch.rand(3), expected)
    assert devices.read_random_states(devices.CPU).keys() == {"random.cpu"}


@pytest.mark.parametrize(("kind", "calls"), [("xpu", ["synchronize", "empty_cache"]), ("cpu", [])])
def test_only_accelerators_are_waited_for_and_return_memory(
    kind: str, calls: list[str], attach: Attach
) -> None:
    fake = attach("xpu")
    devices.synchronize(torch.device(kind))
    devices.return_memory(torch.device(kind))
    assert fake.calls == calls


def test_memory_is_returned_before_a_smaller_batch_is_tried(attach: Attach) -> None:
    fake, sizes = attach("xpu"), []

    def run(batch: list[int]) -> None:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("UR backend failed. UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY")

    list(run_in_batches(range(4), BatchLimit(4, ignore_warning), run))
    assert (sizes, fake.calls) == ([4, 2, 2], ["empty_cache"])


def test_streams_and_pinned_memory_are_for_cards() -> None:
    having = [kind for kind in ("cpu", "cuda", "xpu", "mps") if has_streams(kind)]
    assert having == ["cuda", "xpu"]


def has_streams(kind: str) -> bool:
    return devices.has_streams(torch.device(kind))


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_several_workers_on_other_kinds_than_cuda_are_refused(
    kind: str, attach: Attach, make_attempt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(kind)
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = make_attempt(settings={"resources": {"workers": 2}})
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert result["reason"] == "InvalidFlow"
    assert "workers is 2, but several workers cannot use" in result["message"]

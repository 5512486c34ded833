"""The self-test of a machine: real parts pass, broken ones are named, a crash has failed."""

import sys
from pathlib import Path

import pytest

from runyard.controller import self_test as controller_side
from runyard.trainer import self_test
from runyard.trainer.errors import is_device_failure
from runyard.trainer.self_test import BrokenMachine


def test_a_working_machine_passes(tmp_path: Path) -> None:
    result = controller_side.run_test(tmp_path)
    assert result.passed, result.message
    assert result.message == "256 MiB of memory, 32 MiB on the disk, 1 device"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_be_written_fails(tmp_path: Path) -> None:
    with pytest.raises(BrokenMachine, match="disk: No such file or directory"):
        self_test.check_disk(tmp_path / "missing")


def test_a_device_that_multiplies_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    multiply = torch.Tensor.__matmul__

    def flip_a_bit(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = multiply(left, right)
        if product.dtype == torch.float32:
            product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", flip_a_bit)
    with pytest.raises(BrokenMachine, match="cpu: a product of matrices is wrong"):
        self_test.check_devices()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the self-test ended with signal 11"),
        ("raise SystemExit('no torch')", "the self-test ended with code 1: no torch"),
        ("import time; time.sleep(60)", "the self-test did not end within 0.5 s"),
    ],
)
def test_a_test_that_does_not_answer_has_failed(program: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", program]
    result = controller_side.run_test(tmp_path, command=command, timeout_s=0.5)
    assert (result.passed, result.message) == (False, message)


@pytest.mark.parametrize(
    ("message", "is_failure"),
    [
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("NCCL error in: ProcessGroupNCCL.cpp: ncclSystemError", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA out of memory", False),
    ],
)
def test_only_errors_of_a_device_count_as_such(message: str, is_failure: bool) -> None:
    assert is_device_failure(RuntimeError(message)) is is_failure
    assert not is_device_failure(ValueError(message))

"""Flash attention is refused before data and model are read, wherever it could not work."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers.utils

from runyard.flows import FlowProblems, validate
from runyard.rundir import read_json
from runyard.trainer.errors import InvalidFlow
from runyard.trainer.main import train_attempt
from runyard.trainer.models import attention as attention_module
from runyard.trainer.models.attention import FLASH, check_attention
from runyard.trainer.models.model import load_model


def check(device: str = "cuda", *, precision: str = "bfloat16", name: str = FLASH) -> None:
    check_attention(name, precision=precision, device=device, device_name="Tesla T4")


def test_flash_attention_needs_a_card_that_supports_it_and_16_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capability = (7, 5)
    monkeypatch.setattr(attention_module, "get_capability", lambda: capability)
    with pytest.raises(InvalidFlow, match=r"needs CUDA; try: compute\.attention 'auto'"):
        check("cpu")
    with pytest.raises(InvalidFlow, match="the precision is float32"):
        check(precision="float32")
    with pytest.raises(InvalidFlow, match=r"needs compute capability 8\.0, and Tesla T4 has 7\.5"):
        check()
    check("cpu", name="sdpa", precision="float32")


def test_flash_attention_needs_a_package_that_fits_the_installed_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_module, "get_capability", lambda: (9, 0))
    with pytest.raises(InvalidFlow, match=r"needs the package flash-attn .* not installed"):
        check()
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(InvalidFlow, match="flash-attn does not fit the installed torch"):
        check()
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    check()


def test_a_run_that_cannot_have_flash_attention_ends_before_it_reads_data(
    make_attempt: Callable[..., Path], events_of: Callable[[Path, str], list[dict[str, Any]]]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may support it")
    model = {"compute": {"attention": FLASH, "precisionType": "bfloat16"}}
    folder = make_attempt({"vi-dataset": {"datasetId": "digits"}, "vi-model": model})
    assert train_attempt(folder) == 64
    result = read_json(folder / "result.json") or {}
    assert (result["reason"], "needs CUDA" in result["message"]) == ("InvalidFlow", True)
    assert events_of(folder, "plan") == []


def test_a_model_without_flash_attention_is_refused_before_its_weights_are_read(
    miniature: Callable[[str], Path],
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine may support it")
    with pytest.raises(InvalidFlow, match="does not support attention 'flash_attention_2'"):
        load_model(miniature("llava"), dtype=torch.bfloat16, attention=FLASH)


def test_a_new_flow_with_flash_attention_in_float32_is_refused_when_it_is_checked() -> None:
    def check_flow(precision: str) -> None:
        compute = {"attention": FLASH, "precisionType": precision}
        blocks = [{"block": "vi-model", "settings": {"compute": compute}, "style": {}}]
        validate({"name": "test", "schema": "v1", "blocks": blocks})

    check_flow("bfloat16")
    with pytest.raises(FlowProblems) as caught:
        check_flow("float32")
    (problem,) = caught.value.problems
    assert "computes in 16 bits, but precisionType is float32" in problem.message

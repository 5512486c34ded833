"""Packed rows: loss and every gradient as with padding, for each family that can be packed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import runyard.trainer.data.packing as packing_module
from runyard.trainer.answers import Answer
from runyard.trainer.data.datasets import Sample
from runyard.trainer.data.encode import Batch, Encoder, InMemoryEncodings, Layout
from runyard.trainer.data.packing import (
    compute_padding_share,
    get_position_function,
    pack,
    use_packed_attention,
)
from runyard.trainer.families import PARTS, get_family_parts
from runyard.trainer.models.model import load_model
from runyard.trainer.steps.losses import TokenLosses
from tests.support.slow import mark_slow

PACKED = [model_type for model_type, parts in PARTS.items() if parts.packing_obstacle is None]
TEXTS = [
    "a",
    "a longer answer with words",
    "b",
    "the longest answer of all of these, by far, with a number: 12345",
]
CLOSE = 1e-5  # of the largest entry of a gradient


def samples() -> list[Sample]:
    from PIL import Image

    random = np.random.default_rng(5)
    images = [Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)) for _ in TEXTS]
    questions = ["Which?", "Which digit is this, please?", "Which?", "Where?"]
    return [Sample(p, q, Answer(t)) for p, q, t in zip(images, questions, TEXTS, strict=True)]


def loss_and_gradients(
    losses: TokenLosses, module: Any, batch: Batch
) -> tuple[float, dict[str, torch.Tensor]]:
    loss = losses(batch) / batch.label_count
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    losses.zero_gradients()
    return float(loss.detach()), found


@pytest.mark.parametrize("model_type", PACKED)
def test_packed_and_padded_have_the_same_gradients(
    model_type: str, miniature: Callable[[str], Path]
) -> None:
    model = load_model(miniature(model_type), dtype=torch.float32)
    module = model.module.train()
    encoder = Encoder(model.processor, model.parts, system_prompt="", task="vqa")
    data = InMemoryEncodings([encoder.encode(sample) for sample in samples()], Layout(pad_id=0))
    losses = TokenLosses(
        module, precision="float32", device=torch.device("cpu"), label_smoothing=0.0
    )
    padded = data.make_batch([0, 1, 2, 3])
    expected, gradients = loss_and_gradients(losses, module, padded)

    use_packed_attention(module)
    again, unchanged = loss_and_gradients(losses, module, padded)
    packed = pack(padded, get_position_function(module.model))
    loss, found = loss_and_gradients(losses, module, packed)

    assert packed.inputs["input_ids"].numel() == data.lengths.sum()
    assert packed.segments == tuple(data.lengths)
    assert again == expected
    assert all(torch.equal(unchanged[name], gradients[name]) for name in gradients)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert found.keys() == gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).abs().max()) <= CLOSE * largest, name


def attend_as_flash_does(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute on the CPU what the kernel computes within the boundaries that it gets."""
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        whole = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole[0], None
    assert (cu_seq_lens_q.dtype, cu_seq_lens_q.tolist()) == (torch.int32, cu_seq_lens_k.tolist())
    sizes = cu_seq_lens_q.diff().tolist()
    assert max_length_q == max_length_k == max(sizes)
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts]
    return torch.cat(outputs, dim=1), None


@pytest.mark.parametrize(
    "model_type", mark_slow(PACKED, unless=lambda name: name in ("llava", "qwen3_vl"))
)
def test_flash_attention_gets_the_boundaries_of_packed_samples(
    model_type: str, miniature: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(miniature(model_type), dtype=torch.float32)
    module = model.module.train()
    encoder = Encoder(model.processor, model.parts, system_prompt="", task="vqa")
    data = InMemoryEncodings([encoder.encode(sample) for sample in samples()], Layout(pad_id=0))
    losses = TokenLosses(
        module, precision="float32", device=torch.device("cpu"), label_smoothing=0.0
    )
    padded = data.make_batch([0, 1, 2, 3])
    expected, gradients = loss_and_gradients(losses, module, padded)

    monkeypatch.setattr(packing_module, "flash_attention_forward", attend_as_flash_does)
    flash = AttentionInterface()["flash_attention_2"]
    try:
        for config in (module.config, module.config.get_text_config()):
            config._attn_implementation = "flash_attention_2"  # without the check for a GPU
        use_packed_attention(module)
        packed = pack(padded, get_position_function(module.model))
        loss, found = loss_and_gradients(losses, module, packed)
    finally:
        AttentionInterface.register("flash_attention_2", flash)
    assert loss == pytest.approx(expected, rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).abs().max()) <= CLOSE * largest, name


def test_a_sample_does_not_attend_to_its_neighbors(miniature: Callable[[str], Path]) -> None:
    model = load_model(miniature("llava"), dtype=torch.float32)
    module = model.module.eval()
    use_packed_attention(module)
    encoder = Encoder(model.processor, model.parts, system_prompt="", task="vqa")
    data = InMemoryEncodings([encoder.encode(sample) for sample in samples()], Layout(pad_id=0))

    def hidden(indices: list[int]) -> torch.Tensor:
        batch = pack(data.make_batch(indices))
        with torch.inference_mode():
            states: torch.Tensor = module.model(
                **batch.inputs, segments=batch.segments
            ).last_hidden_state[0]
        return states[-int(data.lengths[indices[-1]]) :]

    alone = hidden([3])
    assert torch.allclose(hidden([0, 1, 3]), alone, atol=1e-6)
    assert torch.allclose(hidden([2, 3]), alone, atol=1e-6)


def test_chunks_of_the_loss_change_nothing(
    miniature: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(miniature("llava"), dtype=torch.float32)
    encoder = Encoder(model.processor, get_family_parts("llava"), system_prompt="", task="vqa")
    batch = InMemoryEncodings(
        [encoder.encode(sample) for sample in samples()], Layout(pad_id=0)
    ).make_batch([0, 1, 2, 3])

    def measured() -> tuple[float, dict[str, torch.Tensor]]:
        losses = TokenLosses(
            model.module, precision="float32", device=torch.device("cpu"), label_smoothing=0.1
        )
        return loss_and_gradients(losses, model.module, batch)

    whole, gradients = measured()
    row_bytes = 4 * model.module.config.get_text_config().vocab_size
    monkeypatch.setattr("runyard.trainer.steps.losses.LARGEST_LOGITS_BYTES", 7 * row_bytes)
    chunked, found = measured()
    assert chunked == pytest.approx(whole, rel=1e-6)
    assert all(
        torch.allclose(found[name], gradient, atol=1e-6) for name, gradient in gradients.items()
    )


def test_padding_is_counted_over_batches() -> None:
    assert compute_padding_share([np.array([2, 4]), np.array([3, 3])]) == pytest.approx(1 - 12 / 14)

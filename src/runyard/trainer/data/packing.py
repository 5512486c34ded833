"""Packing: samples one behind the other in one row, with nothing filled up, and each seeing only itself.

A padded batch becomes a packed one by dropping what fills it up; positions begin anew with every sample. Attention is
computed sample by sample (those of one length together), so the row costs what its samples cost and no mask of the
whole row is ever made. Loss and gradients are those of the padded batch to the last bits of the arithmetic.

Families whose attention is more than causal (images seen in both directions, sliding windows, states that run through
the row) are not packed; ``families.PARTS`` says which.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from runyard.trainer.data.encode import Batch

ATTENTION = "runyard_packed"
Positions = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def pack(batch: Batch, positions: Positions | None = None) -> Batch:
    """The samples of a padded batch in one row.

    ``positions`` gives the places of all tokens, (axes, rows, columns), where a family counts them in its own way.
    """
    mask = batch.inputs["attention_mask"].bool()
    lengths = mask.sum(1)
    is_real = mask.flatten()
    inputs = {
        name: value[mask][None] if value.shape == mask.shape else value
        for name, value in batch.inputs.items()
        if name != "attention_mask"
    }
    if positions is not None:
        inputs["position_ids"] = positions(batch.inputs)[:, mask][:, None]
    else:
        inputs["position_ids"] = torch.arange(mask.shape[1]).expand(mask.shape)[mask][None]
    return replace(
        batch,
        inputs=inputs,
        places=(is_real.cumsum(0) - 1)[batch.places],
        segments=tuple(lengths.tolist()),
    )


def padding_share(batches: Sequence[np.ndarray[Any, Any]]) -> float:
    """Which share of padded batches of these lengths only fills them up."""
    return 1 - sum(int(lengths.sum()) for lengths in batches) / sum(
        lengths.size * int(lengths.max()) for lengths in batches
    )


def positions_of(model: Any) -> Positions | None:
    """How a family with places in two dimensions counts them; None for those that count tokens."""
    if not hasattr(model, "get_rope_index"):
        return None

    def positions(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        found: torch.Tensor = model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})[0]
        return found

    return positions


def use_packed_attention(module: Any) -> None:
    """Let the language model attend within samples when a batch is packed, and as always when it is not."""
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, _mask)
    module.set_attn_implementation({"text_config": ATTENTION})


def packed_arguments(batch: Batch) -> dict[str, Any]:
    """What the model is called with besides its inputs."""
    return {} if batch.segments is None else {"segments": batch.segments}


def _mask(*arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """None for packed rows, which alone come without a mask of their own: there is nothing filled up to hide."""
    if attention_mask is None:
        return None
    return sdpa_mask(*arguments, attention_mask=attention_mask, **options)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over (1, heads, tokens, width), each segment by itself; returns (1, tokens, heads, width)."""
    if segments is None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return attended
    runs = [(length, len(list(group))) for length, group in groupby(segments)]
    sizes = [length * count for length, count in runs]
    parts = zip(runs, *(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    found = []
    for (length, count), *tensors in parts:
        # (1, heads, count * length, width) to (count, heads, length, width): samples of one length side by side.
        rows = (tensor[0].unflatten(1, (count, length)).transpose(0, 1) for tensor in tensors)
        found.append(sdpa_attention_forward(module, *rows, None, **options)[0].flatten(0, 1))
    return torch.cat(found)[None], None

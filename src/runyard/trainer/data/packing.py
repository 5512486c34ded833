"""Packing: samples one after another in one row without padding, where each attends only to itself.

A padded batch becomes a packed one by dropping its padding; position IDs restart with every sample.
Attention is computed per sample (samples of one length together), so a row costs what its samples
cost, and the mask of the whole row is never built. Flash attention has a form for rows of several
samples, which gets their boundaries. Loss and gradients equal those of the padded
batch up to floating-point rounding.

Families whose attention is more than causal (bidirectional within images, sliding windows,
recurrent states) are not packed; ``families.PARTS`` says which.

Shapes: B samples of a padded batch, T tokens of its rows, N real tokens in a packed row, H heads, D
head width, A position axes, P label positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from runyard.trainer.data.encode import Batch

ATTENTION, FLASH = "runyard_packed", "flash_attention_2"
PositionFunction = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def pack(batch: Batch, compute_positions: PositionFunction | None = None) -> Batch:
    """Return the samples of a padded batch in one row.

    ``compute_positions`` returns the position IDs (A, B, T) of families that do not simply count
    tokens.
    """
    mask = batch.inputs["attention_mask"].bool()  # (B, T)
    lengths = mask.sum(1)  # (B,)
    is_real = mask.flatten()  # (B * T,)
    inputs = {
        name: value[mask][None] if value.shape == mask.shape else value  # (B, T) -> (1, N)
        for name, value in batch.inputs.items()
        if name != "attention_mask"
    }
    if compute_positions is not None:
        # (A, B, T) -> (A, 1, N).
        inputs["position_ids"] = compute_positions(batch.inputs)[:, mask][:, None]
    else:
        # (1, N).
        inputs["position_ids"] = torch.arange(mask.shape[1]).expand(mask.shape)[mask][None]
    return replace(
        batch,
        inputs=inputs,
        # (P,), now within the packed row.
        label_positions=(is_real.cumsum(0) - 1)[batch.label_positions],
        segments=tuple(lengths.tolist()),
    )


def compute_padding_share(batches: Sequence[np.ndarray[Any, Any]]) -> float:
    """Return the share of padding tokens in padded batches of samples with these lengths."""
    return 1 - sum(int(lengths.sum()) for lengths in batches) / sum(
        lengths.size * int(lengths.max()) for lengths in batches
    )


def get_position_function(model: Any) -> PositionFunction | None:
    """Return how a family with multi-axis position IDs computes them.

    None for those that count tokens.
    """
    if not hasattr(model, "get_rope_index"):
        return None

    def compute_positions(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        position_ids: torch.Tensor = model.get_rope_index(
            **{n: inputs[n] for n in names if n in inputs}
        )[0]
        return position_ids  # (A, B, T)

    return compute_positions


def use_packed_attention(module: Any) -> None:
    """Make the language model attend within samples where a batch is packed."""
    if module.config.get_text_config()._attn_implementation == FLASH:
        AttentionInterface.register(FLASH, _attend_flash)
        return
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, _make_mask)
    module.set_attn_implementation({"text_config": ATTENTION})


def get_packed_arguments(batch: Batch) -> dict[str, Any]:
    """Return the model arguments of a batch besides its inputs."""
    return {} if batch.segments is None else {"segments": batch.segments}


def _make_mask(
    *arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor | None:
    """Return None for packed rows, the only ones without an attention mask."""
    if attention_mask is None:
        return None
    return sdpa_mask(*arguments, attention_mask=attention_mask, **options)


def _attend(
    module: Any,
    query: torch.Tensor,  # (B, H, T, D); packed: (1, H, N, D)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention output (B, T, H, D).

    For packed rows (1, N, H, D), each segment by itself.
    """
    if segments is None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return attended
    runs = [(length, len(list(group))) for length, group in groupby(segments)]
    sizes = [length * count for length, count in runs]
    parts = zip(runs, *(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for (length, count), *tensors in parts:
        # (1, H, count * length, D) -> (count, H, length, D): neighbors of one length form a batch.
        rows = (tensor[0].unflatten(1, (count, length)).transpose(0, 1) for tensor in tensors)
        # (count, length, H, D) -> (count * length, H, D)
        outputs.append(sdpa_attention_forward(module, *rows, None, **options)[0].flatten(0, 1))
    return torch.cat(outputs)[None], None  # (1, N, H, D)


def _attend_flash(
    module: Any,
    query: torch.Tensor,  # (B, H, T, D); packed: (1, H, N, D)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: tuple[int, ...] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output of flash attention (B, T, H, D) with the boundaries of a row's samples.

    Vision encoders use it too. They are not causal, and their rows have boundaries of their own.
    """
    if segments is not None and getattr(module, "is_causal", False):
        ends = [0, *accumulate(segments)]
        bounds = torch.tensor(ends, dtype=torch.int32, device=query.device)  # (samples + 1,)
        options |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        options |= {"max_length_q": max(segments), "max_length_k": max(segments)}
    attended: tuple[torch.Tensor, None] = flash_attention_forward(
        module, query, key, value, attention_mask, **options
    )
    return attended

"""From a batch to the sum of its token losses.

A sum, not a mean: micro-batches with answers of different lengths then add up to exactly the mean
over the batch. Only positions with a label go through the output layer: with a vocabulary of
150,000 tokens, the logits of prompts would otherwise take most of a large model's time. Many
positions are processed in chunks, so that the logits of a long batch are never in memory all at
once.

Shapes: B samples, T tokens, C hidden width, V vocabulary, P label positions (at most B * T). In a
packed batch B is 1.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from runyard.trainer.data.encode import FEATURES, Batch
from runyard.trainer.data.packing import get_packed_arguments

LARGEST_LOGITS_BYTES = 256 << 20  # float32, of one chunk


class TokenLosses:
    """Runs the model in the plan's precision and compares its predictions with the labels."""

    def __init__(
        self, module: Any, *, precision: str, device: torch.device, label_smoothing: float
    ):
        base = get_base_model(module)
        self._module = module
        self._body, self._head = base.model, base.get_output_embeddings()
        text = base.config.get_text_config()
        self._softcap = getattr(text, "final_logit_softcapping", None)
        self.max_rows = max(1, LARGEST_LOGITS_BYTES // (4 * text.vocab_size))
        self.precision, self._device = precision, device
        # Arguments in place of pixels.
        self.expand_features: Callable[[torch.Tensor], dict[str, Any]] | None = None
        self._label_smoothing = label_smoothing
        # Replaced where the weights are sharded, and have to be gathered first.
        self.compute: Callable[[Batch], torch.Tensor] = self._compute

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the model is run."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        autocast: contextlib.AbstractContextManager[Any] = torch.autocast(
            self._device.type, self.dtype
        )
        return autocast

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the sum of the batch's token losses, a scalar."""
        return self.compute(batch)

    def compute_logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits at a batch's labels in float32, (P, V)."""
        with self.autocast():
            return self._compute_logits(self._compute_hidden(batch)).float()

    def _compute(self, batch: Batch) -> torch.Tensor:
        with self.autocast():
            chosen = self._compute_hidden(batch)
            if len(chosen) <= self.max_rows:
                return self._compute_loss(chosen, batch.labels)
            # Activation checkpointing: the logits of a chunk are recomputed in the backward pass.
            chunks = zip(
                chosen.split(self.max_rows), batch.labels.split(self.max_rows), strict=True
            )
            losses = [
                checkpoint(self._compute_loss, *chunk, use_reentrant=False) for chunk in chunks
            ]
            return torch.stack(losses).sum()

    def _compute_hidden(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states of the positions with a label, (P, C)."""
        inputs = self.replace_features(batch.inputs | get_packed_arguments(batch))
        hidden: torch.Tensor = self._body(**inputs, use_cache=False).last_hidden_state  # (B, T, C)
        return hidden.flatten(0, 1)[batch.label_positions]  # (B * T, C) -> (P, C)

    def replace_features(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a model's arguments with stored image features as the model takes them."""
        if self.expand_features is None or FEATURES not in inputs:
            return inputs
        others = {name: value for name, value in inputs.items() if name != FEATURES}
        return others | self.expand_features(inputs[FEATURES])

    def zero_gradients(self) -> None:
        """Drop all gradients accumulated since the last step."""
        self._module.zero_grad(set_to_none=True)

    def _compute_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the summed cross-entropy of hidden states (P, C) and labels (P,)."""
        return cross_entropy(
            self._compute_logits(hidden).float(),
            labels,
            reduction="sum",
            label_smoothing=self._label_smoothing,
        )

    def _compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states (P, C).

        They are soft-capped where the family requires it, ``cap * tanh(logits / cap)`` (Gemma 2,
        Gemma Team 2024).
        """
        logits: torch.Tensor = self._head(hidden)  # (P, V)
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits


def get_base_model(module: Any) -> Any:
    """Return the model itself, without its adapter if it has one."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module

"""From a batch to the sum of its token losses.

A sum, not a mean: micro-batches with answers of different length then add up to exactly the mean over the whole batch.
Only the places whose next token is learnt go through the output layer, which with a vocabulary of 150,000 words is most
of what a large model would spend on prompts for nothing; and of many such places only some at a time, so that the
logits of a long batch never lie in memory all at once.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from runyard.trainer.data.encode import FEATURES, Batch
from runyard.trainer.data.packing import packed_arguments

LARGEST_LOGITS_BYTES = 256 << 20  # float32, of one chunk


class TokenLosses:
    """Calls the model in the plan's arithmetic and compares what it expects with what comes."""

    def __init__(self, module: Any, *, precision: str, device: torch.device, label_smoothing: float):
        base = base_of(module)
        self._module = module
        self._body, self._head = base.model, base.get_output_embeddings()
        text = base.config.get_text_config()
        self._cap = getattr(text, "final_logit_softcapping", None)
        self.rows_at_once = max(1, LARGEST_LOGITS_BYTES // (4 * text.vocab_size))
        self.precision, self._device = precision, device
        self.from_features: Callable[[torch.Tensor], dict[str, Any]] | None = None  # arguments in place of pixels
        self._label_smoothing = label_smoothing

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model is called."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        autocast: contextlib.AbstractContextManager[Any] = torch.autocast(self._device.type, self.dtype)
        return autocast

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    def __call__(self, batch: Batch) -> torch.Tensor:
        with self.arithmetic():
            inputs = batch.inputs | packed_arguments(batch)
            if self.from_features is not None and FEATURES in inputs:
                inputs |= self.from_features(inputs.pop(FEATURES))
            hidden = self._body(**inputs, use_cache=False).last_hidden_state
            chosen = hidden.flatten(0, 1)[batch.places]
            if len(chosen) <= self.rows_at_once:
                return self._loss(chosen, batch.wanted)
            # What is forgotten of a chunk is computed once more when its gradient is asked for.
            chunks = zip(chosen.split(self.rows_at_once), batch.wanted.split(self.rows_at_once), strict=True)
            losses = [checkpoint(self._loss, *chunk, use_reentrant=False) for chunk in chunks]
            return torch.stack(losses).sum()

    def forget_gradients(self) -> None:
        """As if nothing had been called since the last step."""
        self._module.zero_grad(set_to_none=True)

    def _loss(self, hidden: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = self._head(hidden)
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return cross_entropy(logits.float(), wanted, reduction="sum", label_smoothing=self._label_smoothing)


def base_of(module: Any) -> Any:
    """The model itself, below an adapter if there is one."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module

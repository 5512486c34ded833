"""From a batch to the sum of its token losses.

A sum, not a mean: micro-batches with answers of different length then add up to exactly the mean over the whole batch.
Only the columns from the first answer on go through the output layer, which with a vocabulary of 150,000 words is most
of what a large model would spend on prompts for nothing.
"""

import contextlib
import inspect
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from runyard.trainer.encode import IGNORED, Batch


class TokenLosses:
    """Calls the model in the plan's arithmetic and compares what it expects with the labels."""

    def __init__(self, module: Any, *, precision: str, device: torch.device, label_smoothing: float):
        self._module, self._precision, self._device = module, precision, device
        self._label_smoothing = label_smoothing
        base = module.get_base_model() if hasattr(module, "get_base_model") else module
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model is called."""
        if self._precision == "float32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self._precision == "bfloat16" else torch.float16
        autocast: contextlib.AbstractContextManager[Any] = torch.autocast(self._device.type, dtype)
        return autocast

    def __call__(self, batch: Batch) -> torch.Tensor:
        # The logits of column i say what is expected in column i + 1.
        columns = batch.labels.shape[1] - (batch.first_label - 1)
        options = {"logits_to_keep": columns} if self._keeps_logits else {}
        with self.arithmetic():
            logits = self._module(**batch.inputs, use_cache=False, **options).logits
        expected = logits[:, -columns:][:, :-1].float()
        wanted = batch.labels[:, batch.first_label :]
        return cross_entropy(
            expected.flatten(0, 1),
            wanted.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self._label_smoothing,
        )

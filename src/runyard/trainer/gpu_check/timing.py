"""How long the steps of a training loop take, and how much memory."""

import time
from typing import Any

import torch

from runyard.trainer.gpu_check.devices import synchronize
from runyard.trainer.gpu_check.memory import read_peak, reset_peak

WARM_UP_STEPS = {True: 1, False: 3}  # dry, and on a device
STEPS = {True: 3, False: 8}


class StepTimer:
    """The time and the tokens of every step after the first ones, and the peak of memory."""

    def __init__(self, device: torch.device, is_dry: bool):
        self._device, self._warm_up, self._steps = device, WARM_UP_STEPS[is_dry], STEPS[is_dry]
        self._tokens: list[int] = []
        self._ends_s: list[float] = []
        reset_peak(device)

    @property
    def count(self) -> int:
        """How many steps a loop has to take."""
        return self._warm_up + self._steps

    @property
    def is_done(self) -> bool:
        return len(self._ends_s) == self.count

    def record_step(self, tokens: int) -> None:
        """Note the end of a step with so many tokens, padding left out."""
        synchronize(self._device)
        self._ends_s.append(time.perf_counter())
        self._tokens.append(tokens)

    def summarize(self) -> dict[str, Any]:
        seconds = self._ends_s[-1] - self._ends_s[self._warm_up - 1]
        tokens = sum(self._tokens[self._warm_up :])
        return {
            "tokensPerSecond": tokens / seconds,
            "secondsPerStep": seconds / self._steps,
            "tokens": tokens,
            "peakBytes": read_peak(self._device),
        }

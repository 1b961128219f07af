"""Learning rate over a training."""

from __future__ import annotations

import math


class WarmupCosine:
    """Factor on the learning rate: linear from 0 to 1, then a half cosine down to `final`."""

    def __init__(self, warmup: int, total: int, final: float) -> None:
        """Schedule over `total` steps.

        Args:
            warmup: steps of the rise.
            total: steps of the training.
            final: factor at the end.
        """
        self.warmup, self.total, self.final = warmup, total, final

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))

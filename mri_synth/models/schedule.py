"""Learning rate over a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


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


class LinearDecay:
    """Factor on the learning rate: 1, and then a straight line to 0, which it reaches when the last step is made."""

    def __init__(self, total: int, start: float) -> None:
        """Schedule over `total` steps.

        Args:
            total: steps of the training.
            start: share of them after which it falls; 1: never.
        """
        self.total, self.start = total, round(start * total)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        return 1 - max(step - self.start, 0) / max(self.total - self.start, 1)


def rates(settings: Mapping[str, Any]) -> str:
    """What a method's learning rates are called, for remedies.

    Args:
        settings: its constructor's arguments.

    Returns:
        Such as "model.lr", or "model.lr_g and model.lr_d".
    """
    return " and ".join(f"model.{name}" for name in ("lr", "lr_g", "lr_d") if name in settings) or "learning rate"

"""Losses of segmentation. Logits and masks are (B, 1, H, W); every function gives one value per sample, (B,)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel, in nats.

    `CE = -mean_HW [m log p + (1 - m) log(1 - p)]`, p the sigmoid of the logit

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W) in {0, 1}.

    Returns:
        (B,) float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none").mean((1, 2, 3))


def soft_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """One minus the overlap of probabilities and mask (Milletari et al. 2016, with the 1 that empty masks need).

    `L = 1 - (2 sum_HW p m + 1) / (sum_HW p + sum_HW m + 1)`, p the sigmoid of the logit

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W) in {0, 1}.

    Returns:
        (B,) float32 in [0, 1): 0 for a mask that is told exactly, an empty one too.
    """
    p, m = logits.float().sigmoid(), mask.float()
    return 1 - (2 * (p * m).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + m.sum((1, 2, 3)) + 1)

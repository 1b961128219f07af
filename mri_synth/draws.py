"""Counter-based random numbers: an item's are the same wherever, whenever and beside whatever they are drawn.

What training, augmentation and sampling draw is keyed by item and not by batch, so that it does not change with the
batch size, the number of processes, a resume, or the order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN, _MIX_1, _MIX_2 = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's constants as signed numbers: sums and products of int64 wrap to the same bits."""


def uniform(seed: int, epoch: int | Tensor, items: Tensor, draws: int) -> Tensor:
    """Uniform numbers of each item.

    SplitMix64 (Steele, Lea, Flood 2014) of a counter made from seed, epoch, item and draw; on the items' device, so
    that no step waits for it.

    Args:
        seed: of the run.
        epoch: number of the epoch, or of the step; (B,) int64 where items are at different ones.
        items: (B,) int64 item numbers.
        draws: numbers per item.

    Returns:
        (B, draws) float32 in [0, 1), multiples of 2^-24.
    """
    x = _mix(torch.full((), seed + _GOLDEN, dtype=torch.int64, device=items.device))
    x = _mix(_mix(x ^ epoch) ^ items)
    bits = _mix(x[:, None] + _GOLDEN * torch.arange(1, draws + 1, device=items.device))
    return _shift(bits, 40).float() * 2.0**-24


def normal(seed: int, epoch: int | Tensor, items: Tensor, draws: int) -> Tensor:
    """Standard normal numbers of each item, by the transform of Box and Muller 1958.

    Args:
        seed: of the run.
        epoch: number of the epoch, or of the step; (B,) int64 where items are at different ones.
        items: (B,) int64 item numbers.
        draws: numbers per item.

    Returns:
        (B, draws) float32, at most 5.9 in size.
    """
    half = (draws + 1) // 2
    u = uniform(seed, epoch, items, 2 * half)
    radius = torch.sqrt(-2 * torch.log(u[:, :half] + 2.0**-25))  # the middle of a step of 2^-24: never log 0
    angle = 2 * math.pi * u[:, half:]
    return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :draws]


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """x >> by of the unsigned number with the bits of x."""
    shifted: Tensor = (x >> by) & (2 ** (64 - by) - 1)
    return shifted

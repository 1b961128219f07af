"""Diversity: how like two random images of one set are, by multi-scale SSIM. High for fakes alone means collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mri_synth.metrics.ssim import WINDOW, _blur, _gaussian, _window_size, ssim

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents from fine to coarse (Wang 2003, sec. 3.2)."""

PROTOCOL = (
    "MS-SSIM of Wang 2003 between random pairs of one set (Odena 2017): window 11x11, sigma 1.5, K1 0.01, K2 0.03, "
    "data range 1 on [0, 1], windows wholly inside the image at every scale, halving by 2x2 means, negative contrast "
    "terms as 0; five scales, or as many as leave the coarsest at least as large as the window (4 at 128 px, 3 at "
    "64 px), weights renormalised; pairs of real images are of different subjects where there are several. "
    "Lower is more diverse"
)
"""Said beside every MS-SSIM."""


def scales(height: int, width: int) -> int:
    """How many scales images of a size are compared on: the coarsest is at least as large as the window.

    Args:
        height: in pixels.
        width: in pixels.

    Returns:
        1 to 5: 5 from 176 px, 4 from 88, 3 from 44, 2 from 22.
    """
    side, count = min(height, width), 1
    while count < len(WEIGHTS) and side // 2 >= WINDOW:
        side, count = side // 2, count + 1
    return count


def ms_ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image with another (Wang 2003, eq. 7): 1 is equality.

    `MS-SSIM = SSIM_M^(w_M) prod_{j < M} CS_j^(w_j)`, CS_j the mean over windows at scale j of
    `(2 sigma_xy + C2) / (sigma_x^2 + sigma_y^2 + C2)`, each scale half of the one before, M = `scales(H, W)`, w the
    first M of `WEIGHTS` over their sum. Terms below 0 count as 0.

    Args:
        x_hat: (B, C, H, W) float32 in [0, 1].
        x: (B, C, H, W) float32 in [0, 1].

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: the shapes differ or are not 4-dimensional.
    """
    if x_hat.shape != x.shape or x.ndim != 4:
        raise ValueError(f"images must be (B, C, H, W) of one shape, got {tuple(x_hat.shape)} and {tuple(x.shape)}")
    count = scales(*x.shape[-2:])
    weights = torch.tensor(WEIGHTS[:count], dtype=torch.float64)
    weights = weights / weights.sum()
    with torch.autocast(x.device.type, enabled=False):
        a, b = x_hat.float(), x.float()
        out = torch.ones(len(x), device=x.device)
        for weight in weights[:-1].tolist():
            out = out * _contrast(a, b).clamp(min=0) ** weight
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
        return out * ssim(a, b).clamp(min=0) ** float(weights[-1])


def _contrast(a: Tensor, b: Tensor) -> Tensor:
    """(B,) mean of SSIM's contrast and structure terms, without luminance."""
    window, c2 = _gaussian(_window_size(a), a), 0.03**2
    a, b = a - 0.5, b - 0.5  # variances lose fewer digits when the middle of the range is zero
    mu_a, mu_b = _blur(a, window), _blur(b, window)
    covariance = _blur(a * b, window) - mu_a * mu_b
    variances = _blur(a.square() + b.square(), window) - mu_a.square() - mu_b.square()
    return ((2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def random_pairs(n: int, pairs: int, subjects: Sequence[str] | NDArray[Any] | None = None, seed: int = 0) -> Any:
    """Different pairs of different images, drawn at random.

    Args:
        n: images there are.
        pairs: how many are wanted; fewer are drawn where there are fewer.
        subjects: (N,) whose image each is: then only pairs of different subjects count, unless there is one subject.
        seed: of the draw.

    Returns:
        (P, 2) int64 indices, the first below the second; no pair twice.
    """
    groups = np.arange(n) if subjects is None else np.unique(np.asarray(subjects), return_inverse=True)[1]
    if n and groups.max() == 0:
        groups = np.arange(n)
    rng = np.random.default_rng(seed)
    if n <= 64 or n * (n - 1) // 2 <= 4 * pairs:  # few: choose among all
        every = np.stack(np.triu_indices(n, 1), 1)
        every = every[groups[every[:, 0]] != groups[every[:, 1]]]
        return every[np.sort(rng.permutation(len(every))[:pairs])]
    drawn = np.sort(rng.integers(n, size=(8 * pairs, 2)), axis=1)
    drawn = drawn[groups[drawn[:, 0]] != groups[drawn[:, 1]]]
    _, first = np.unique(drawn[:, 0] * n + drawn[:, 1], return_index=True)
    return drawn[np.sort(first)[:pairs]]


@torch.no_grad()
def diversity(
    read: Callable[[Sequence[int]], Tensor], indices: NDArray[Any], batch_size: int = 64
) -> dict[str, float | int | None]:
    """Mean MS-SSIM over pairs of images.

    Args:
        read: images (B, C, H, W) in [-1, 1] of B indices.
        indices: (P, 2), as `random_pairs` draws them.
        batch_size: pairs at once.

    Returns:
        "mean" and "sd" over pairs (None where there are too few), "pairs" and "scales" (0 without a pair).
    """
    values, count = [], 0
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        a, b = ((read(part[:, side].tolist()).float().cpu().clamp(-1, 1) + 1) / 2 for side in (0, 1))
        values.append(ms_ssim(a, b))
        count = scales(*a.shape[-2:])
    found = torch.cat(values).double() if values else torch.zeros(0)
    return {
        "mean": float(found.mean()) if len(found) else None,
        "sd": float(found.std()) if len(found) > 1 else None,
        "pairs": len(found),
        "scales": count,
    }

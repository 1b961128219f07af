"""What a translation must keep of its source, where no target says it: structure, and the order of tissues."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mri_synth.data.prepare import FOREGROUND

WINDOW = 5
"""Side of the neighbourhood in which one image is explained by another, pixels."""
NOISE = 1e-4
"""Variance, on [0, 1], below which a neighbourhood of the source explains nothing, and an image has nothing to explain:
a standard deviation of 0.01."""
BINS = 8
"""Classes of source intensity that stand for tissues."""


def unexplained(x: Tensor, source: Tensor) -> Tensor:
    """Share of an image's structure that its source does not have, whatever its contrast.

    `U = mean_p max(v_p(x) - c_p^2 / (v_p(s) + e), 0) / max(mean_p v_p(x), e)`, c and v covariance and variance in the
    5x5 pixels around p on [0, 1], e = 1e-4: of the variance of x, what a straight line of the source's pixels, rising
    or falling, leaves in each neighbourhood. 1 - U is the squared local correlation by which images of two contrasts
    are registered (Cachier & Pennec 2000), weighted by how much there is to explain.

    Args:
        x: (B, 1, H, W) in [-1, 1].
        source: the same of the images that it was made of.

    Returns:
        (B,) float32 in [0, 1]; 0 for the source itself, inverted or not, and for an image without structure.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, s = x.float() / 2, source.float() / 2
        mean_x, mean_s = _mean(x), _mean(s)
        v_x = (_mean(x * x) - mean_x.square()).clamp(min=0)
        v_s = (_mean(s * s) - mean_s.square()).clamp(min=0)
        c = _mean(x * s) - mean_x * mean_s
        left = (v_x - c.square() / (v_s + NOISE)).clamp(min=0)
        return left.mean((1, 2, 3)) / v_x.mean((1, 2, 3)).clamp(min=NOISE)


def tissues(source: Tensor) -> Tensor:
    """Pixels by the intensity of the source: classes of the same width from the foreground's threshold to 1.

    Args:
        source: (B, 1, H, W) in [-1, 1].

    Returns:
        (B, BINS, H, W) float32 in {0, 1}; all 0 where there is background.
    """
    width = (1 - FOREGROUND) / BINS
    number = ((source.float() - FOREGROUND) / width).ceil().long() - 1
    return (number.clamp(max=BINS - 1) == torch.arange(BINS, device=source.device)[:, None, None]).float()


def tissue_order(one: Tensor, other: Tensor, count: Tensor) -> float:
    """Whether two contrasts have the same order of tissues from dark to bright.

    `r = sum_k n_k (x_k - x)(y_k - y) / sqrt(sum_k n_k (x_k - x)^2 sum_k n_k (y_k - y)^2)`, x_k and y_k the mean
    intensities of tissue k in either contrast, n_k its pixels, x and y the means over all

    Args:
        one: (BINS,) sums of intensities over the pixels of each tissue.
        other: the same of the other contrast.
        count: (BINS,) pixels of each tissue.

    Returns:
        -1 to 1; 0 where all tissues are alike in one of them.
    """
    n = count.double()
    x, y = (sums.double() / n.clamp(min=1) for sums in (one, other))
    x, y = (v - (n * v).sum() / n.sum().clamp(min=1) for v in (x, y))
    norm = ((n * x * x).sum() * (n * y * y).sum()).sqrt()
    return float((n * x * y).sum() / norm) if float(norm) > 1e-9 else 0.0


def _mean(x: Tensor) -> Tensor:
    return avg_pool2d(x, WINDOW, 1)

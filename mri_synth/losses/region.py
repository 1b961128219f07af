"""What is asked of an image inside a marked region, and outside of it; per-sample tensors, float32, on [-1, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, max_pool2d, pad

EPSILON = 1e-6
"""Of logarithms and roots: chances are kept this far from 0 and 1."""


def soft_edges(mask: Tensor, sigma: float) -> Tensor:
    """A region that falls off outside of its edge as a Gaussian does, so that what is put there has no seam.

    `s = G_sigma * d(m)`, d the region grown by r = ceil(sigma) pixels, so that a lesion of few pixels is covered too;
    the Gaussian is cut off at 2 sigma: 0 from r + 2 sigma pixels on outside

    Args:
        mask: (B, 1, H, W) in [0, 1].
        sigma: of the Gaussian, pixels; 0: the mask as it is.

    Returns:
        (B, 1, H, W) float32 in [0, 1].
    """
    if not sigma:
        return mask.float()
    reach, grow = math.ceil(2 * sigma), math.ceil(sigma)
    at = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    weights = torch.exp(-0.5 * (at / sigma).square())
    weights = weights / weights.sum()
    with torch.autocast(mask.device.type, enabled=False):
        grown = max_pool2d(mask.float(), 2 * grow + 1, 1, grow)
        down = conv2d(pad(grown, (0, 0, reach, reach)), weights.view(1, 1, -1, 1))
        return conv2d(pad(down, (reach, reach, 0, 0)), weights.view(1, 1, 1, -1)).clamp(0, 1)


def laid(x: Tensor, reference: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """An image with a region of another laid upon it.

    `x + s (y - x)`, `s = G_sigma * m` the region with soft edges

    Args:
        x: (B, 1, H, W).
        reference: (B, 1, H, W) y.
        mask: (B, 1, H, W) m in [0, 1].
        sigma: as in `soft_edges`.

    Returns:
        (B, 1, H, W).
    """
    return x + soft_edges(mask, sigma) * (reference - x)


def dilated(mask: Tensor, pixels: int) -> Tensor:
    """A region and all that lies within so many pixels of it.

    `d(p) = 1 where some q with m(q) > 0 has |p - q| <= r`

    Args:
        mask: (B, 1, H, W), above 0 in the region.
        pixels: r.

    Returns:
        (B, 1, H, W) float32 in {0, 1}.
    """
    at = torch.arange(-pixels, pixels + 1, device=mask.device)
    disc = (at[:, None].square() + at.square() <= pixels**2).float()
    with torch.autocast(mask.device.type, enabled=False):
        return (conv2d((mask > 0).float(), disc[None, None], padding=pixels) > 0.5).float()


def region_l1(x_hat: Tensor, x: Tensor, region: Tensor) -> Tensor:
    """Mean absolute difference over a region, whatever its size.

    `L = sum m |x_hat - x| / sum m`

    Args:
        x_hat: (B, 1, H, W).
        x: the same of what it should be.
        region: (B, 1, H, W) m in [0, 1].

    Returns:
        (B,) float32, at least 0; 0 where the region is empty.
    """
    region = region.float()
    total = (region * (x_hat.float() - x.float()).abs()).sum((1, 2, 3))
    return total / region.sum((1, 2, 3)).clamp(min=1e-3)


def region_style(x_hat: Tensor, reference: Tensor, region: Tensor) -> Tensor:
    """How far a region's grey values and their spread are from those of the reference in the same region.

    `L = |mu(x_hat) - mu(y)| + |sd(x_hat) - sd(y)|`, mu and sd over the region

    Args:
        x_hat: (B, 1, H, W), into which the reference's lesion was put.
        reference: (B, 1, H, W) y.
        region: (B, 1, H, W) in [0, 1], of the lesion in both.

    Returns:
        (B,) float32, at least 0; 0 where the region is empty.
    """
    (mean, spread), (wanted, wanted_spread) = (_moments(i.float(), region.float()) for i in (x_hat, reference))
    return (mean - wanted).abs() + (spread - wanted_spread).abs()


def placement(chance: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of where a network sees a lesion against where one is; both kinds of pixels count alike.

    `L = -(mean_m log p + mean_(1 - m) log(1 - p)) / 2`, the means over the lesion's pixels and over the others: a mean
    over all of them is least, for long, where nothing is seen anywhere, as lesions are small

    Args:
        chance: (B, 1, H, W) p in [0, 1].
        mask: (B, 1, H, W) m in {0, 1}.

    Returns:
        (B,) float32, at least 0; without a lesion the second part alone.
    """
    p, m = chance.float(), mask.float()
    seen, free = -m * torch.log(p + EPSILON), -(1 - m) * torch.log(1 - p + EPSILON)
    each = (part.sum((1, 2, 3)) / of.sum((1, 2, 3)).clamp(min=1) for part, of in ((seen, m), (free, 1 - m)))
    return 0.5 * sum(each, torch.zeros((), device=p.device))


def presence(log_odds: Tensor, there: Tensor, region: Tensor) -> Tensor:
    """Cross-entropy of the chance that something is at a pixel, over a region; least where the chances are right.

    `L = -sum_m (t log p + (1 - t) log(1 - p)) / sum m`, p the sigmoid of the log odds

    Args:
        log_odds: (B, 1, H, W), any real numbers.
        there: (B, 1, H, W) t in {0, 1}.
        region: (B, 1, H, W) m in {0, 1}.

    Returns:
        (B,) float32, at least 0; 0 where the region is empty.
    """
    weight = region.float()
    each = binary_cross_entropy_with_logits(log_odds.float(), there.float(), weight, reduction="none")
    return each.sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)


def _moments(image: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) mean and standard deviation over a region; of a constant one EPSILON's root, which has a gradient."""
    size = region.sum((1, 2, 3)).clamp(min=1e-3)
    mean = (region * image).sum((1, 2, 3)) / size
    variance = (region * (image - mean.view(-1, 1, 1, 1)).square()).sum((1, 2, 3)) / size
    return mean, (variance + EPSILON).sqrt()

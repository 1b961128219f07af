"""Noise of pixels that are shown in a window: normal, and cut off at black and at white."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

DARK = -0.9
"""Below it a reconstruction may stand for a mean below black."""
WEIGHED = -4.0
"""Logarithm of the scale below which the mean's distance weighs no more: no noise would make it weigh infinitely."""
LEAST = 1e-3
"""Standard deviation of noise, of a range of 2, that no image is said to be below."""


def censored_nll(mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """Negative log-likelihood of pixels under a normal distribution censored at black and white, in nats.

    `-log p(x) = (x - m)^2 / (2 s^2) + log s + log(2 pi) / 2` inside (-1, 1), `-log Phi((-1 - m) / s)` of a black pixel,
    `-log Phi((m - 1) / s)` of a white one (Tobin 1958, "Estimation of relationships for limited dependent variables")

    Intensities are clipped to a window when MR images are prepared: of the noise of air only the peaks stay. With a
    mean below black the distribution has just these.

    Args:
        mean: (B, C, H, W) m, any real numbers.
        log_scale: (B, C, H, W) logarithms of s.
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B, C, H, W) float32, of a density where a pixel is neither black nor white: it may be negative.
    """
    with torch.autocast(x.device.type, enabled=False):
        mean, log_scale, x = mean.float(), log_scale.float(), x.float()
        z = (x - mean) * torch.exp(-log_scale)
        inside = 0.5 * z.square() + log_scale + 0.5 * math.log(2 * math.pi)
        beyond = -torch.special.log_ndtr(torch.where(x > 0, -z, z))
        return torch.where(x.abs() < 1, inside, beyond)


def noise_level(x_hat: Tensor, x: Tensor) -> Tensor:
    """Standard deviation of the noise that a reconstruction lacks, one for an image, as sensor noise is.

    `s^2 = (median |d(x)|^2 - median |d(x_hat)|^2) / 0.6745^2`, d the diagonal detail `(v_11 - v_12 - v_21 + v_22) / 2`
    of blocks of 2x2 pixels without a black or a white one, of the half of them in which x_hat changes least (Donoho and
    Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", section 4.2)

    Noise of neighbouring pixels is independent and d has its deviation, while anatomy hardly shows in d, least of
    all where it is flat. The errors of a reconstruction are smooth or at edges and no part of it: the
    whole residual would give a noise too strong, and grains along every edge. Noise that is smooth itself, of images
    that were enlarged or are turned by augmentation, is taken for weaker than it is.

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; H and W even.
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B, C) float32, at least LEAST, which it also is without any such block.
    """
    with torch.autocast(x.device.type, enabled=False):
        blocks, blocks_hat = (pixel_unshuffle(v.float(), 2).unflatten(1, (-1, 4)) for v in (x, x_hat))
        spread = blocks_hat.amax(2) - blocks_hat.amin(2)
        spread = spread.masked_fill((blocks.abs() >= 1).any(2), torch.nan)
        flat = spread <= spread.flatten(2).nanmedian(2).values[..., None, None]
        found, known = (
            _diagonal(v).abs().masked_fill(~flat, torch.nan).flatten(2).nanmedian(2).values
            for v in (blocks, blocks_hat)
        )
        variance = (found.square() - known.square()) / 0.6745**2
        return variance.nan_to_num(0.0).clamp(min=LEAST**2).sqrt()


def noise_loss(x_hat: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """What it costs to describe the noise that a reconstruction lacks; the reconstruction gets no gradient.

    `L = mean_CHW [x_hat < -0.9 ? -log p(x; m, s) : (x_hat - m)^2 / (2 s^2)] + mean_C (log s - log s*)^2 / 2`, p the
    censored normal distribution, which says how far below black m lies where it is dark, s* = `noise_level`; m alone
    learns by the first term, where s counts as at least e^WEIGHED

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; H and W even.
        mean: (B, C, H, W) m.
        log_scale: (B, C, 1, 1) logarithms of s.
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B,) float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        x_hat, mean, log_scale, x = (v.float() for v in (x_hat.detach(), mean, log_scale, x))
        fixed = log_scale.detach().clamp(min=WEIGHED)
        to_mean = 0.5 * (x_hat - mean).square() * torch.exp(-2 * fixed)
        dark = censored_nll(mean, fixed.expand_as(mean), x)
        of_mean = torch.where(x_hat < DARK, dark, to_mean).mean(dim=(1, 2, 3))
        of_scale = 0.5 * (log_scale[..., 0, 0] - noise_level(x_hat, x).log()).square().mean(1)
        return of_mean + of_scale


def _diagonal(blocks: Tensor) -> Tensor:
    """(B, C, H, W) diagonal detail of (B, C, 4, H, W) blocks."""
    a, b, c, d = blocks.unbind(2)
    return (a - b - c + d) / 2


def censored_draw(mean: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
    """Pixels drawn from that distribution.

    `x = min(max(m + s e, -1), 1)`, e standard normal

    Args:
        mean: (B, C, H, W) m.
        log_scale: (B, C, 1, 1) or (B, C, H, W) logarithms of s.
        noise: (B, C, H, W) e.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    return (mean.float() + torch.exp(log_scale.float()) * noise).clamp(-1, 1)

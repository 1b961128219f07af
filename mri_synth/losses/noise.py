"""Noise of pixels that are shown in a window: normal, and cut off at black and at white."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle


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


def noise_loss(x_hat: Tensor, mean: Tensor, log_scale: Tensor, x: Tensor) -> Tensor:
    """What it costs to describe the noise that a reconstruction lacks; the reconstruction gets no gradient.

    `L = -log p(x)` where a block of 2x2 pixels has a black or a white one. In others m is to be the reconstruction,
    `(x_hat - m)^2 / (2 s^2)`, and s is learned as what its finest detail lacks, `(d(x)^2 - d(x_hat)^2) / (2 s^2) +
    log s`, with the diagonal detail `d(v) = (v_11 - v_12 - v_21 + v_22) / 2`

    Noise of neighbouring pixels is independent and d has its variance, while anatomy hardly shows in d (the wavelet
    coefficient from which Donoho and Johnstone 1994 estimate noise, section 4.2). The errors of a reconstruction are
    smooth and no part of it, so that the whole residual would give a noise too strong.

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; H and W even.
        mean: (B, C, H, W) m.
        log_scale: (B, C, H, W) logarithms of s.
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B,) float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        every = (v.float() for v in (x_hat.detach(), mean, log_scale, x))
        x_hat, mean, log_scale, x = (pixel_unshuffle(v, 2).unflatten(1, (-1, 4)) for v in every)
        inside = (x.abs() < 1).all(2, keepdim=True)
        to_mean = 0.5 * (x_hat - mean).square() * torch.exp(-2 * log_scale.detach())
        variance = torch.exp(2 * log_scale).mean(2, keepdim=True)
        lacking = _diagonal(x).square() - _diagonal(x_hat).square()
        detail = lacking / (2 * variance) + 0.5 * variance.log()
        return torch.where(inside, to_mean + detail, censored_nll(mean, log_scale, x)).mean(dim=(1, 2, 3, 4))


def _diagonal(blocks: Tensor) -> Tensor:
    """(B, C, 1, H, W) diagonal detail of (B, C, 4, H, W) blocks."""
    a, b, c, d = blocks.unbind(2)
    return ((a - b - c + d) / 2)[:, :, None]


def censored_draw(mean: Tensor, log_scale: Tensor, noise: Tensor) -> Tensor:
    """Pixels drawn from that distribution.

    `x = min(max(m + s e, -1), 1)`, e standard normal

    Args:
        mean: (B, C, H, W) m.
        log_scale: (B, C, H, W) logarithms of s.
        noise: (B, C, H, W) e.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    return (mean.float() + torch.exp(log_scale.float()) * noise).clamp(-1, 1)

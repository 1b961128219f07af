"""Noise of magnitude images that are shown in a window: Rician, and cut off at black and at white.

Gudbjartsson and Patz 1995, "The Rician distribution of noisy MRI data" (MRM 34:910-914): a pixel is
`R = sqrt((A + s e_1)^2 + (s e_2)^2)`, A the signal, e standard normal. Air has A = 0, where R is Rayleigh distributed,
`P(R > r) = exp(-r^2 / (2 s^2))`. Two numbers of an image decide it all: the level s, and how far above no signal black
lies, the depth b in units of s: of air's noise the share `exp(-b^2 / 2)` is seen, as specks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pixel_unshuffle

DARK = -0.95
"""Below it a reconstruction stands for air, which has no signal."""
MARGIN = 2
"""Pixels next to others than dark ones that do not count as air: edges are smoother in a reconstruction."""
FEWEST = 64
"""Pixels of air that tell a depth."""
LEAST = 1e-3
"""Standard deviation of noise, of a range of 2, that no image is said to be below."""


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


def black_depth(x_hat: Tensor, x: Tensor) -> Tensor:
    """How far above no signal black lies, in standard deviations of the noise, by the specks in an image's air.

    `b = sqrt(-2 log p)`, p the share of pixels of air that are not black, `(k + 1/2) / (n + 1)`: of Rayleigh
    distributed noise as much lies above b. Air is where x_hat is below DARK, and MARGIN pixels around.

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1].
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B, C) float32, above 0; NaN without FEWEST pixels of air.
    """
    with torch.autocast(x.device.type, enabled=False):
        air = max_pool2d(x_hat.float(), 2 * MARGIN + 1, 1, MARGIN) < DARK
        n, specks = air.sum((2, 3)), (air & (x > -1)).sum((2, 3))
        depth = torch.sqrt(-2 * torch.log((specks + 0.5) / (n + 1)))
        return torch.where(n >= FEWEST, depth, torch.nan)


def noise_loss(x_hat: Tensor, log_level: Tensor, depth: Tensor, log_spread: Tensor, x: Tensor) -> Tensor:
    """What it costs to describe the noise that a reconstruction lacks; the reconstruction gets no gradient.

    `L = mean_C (log s - log s*)^2 / 2 + (b - b*)^2 / 2 + (sg[b] - b*)^2 / (2 t^2) + log t`, s* = `noise_level`, b* =
    `black_depth`, t the spread of b* about b: volumes of the same codes may have more specks or less, and so do samples

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1]; H and W even.
        log_level: (B, C) logarithms of s.
        depth: (B, C) b.
        log_spread: (C,) logarithms of t.
        x: (B, C, H, W) in [-1, 1].

    Returns:
        (B,) float32; without air of the level alone.
    """
    with torch.autocast(x.device.type, enabled=False):
        x_hat = x_hat.detach()
        of_level = 0.5 * (log_level - noise_level(x_hat, x).log()).square()
        found = black_depth(x_hat, x)
        error = depth - torch.where(found.isnan(), depth.detach(), found)
        of_depth = 0.5 * error.square()
        of_spread = 0.5 * error.detach().square() * torch.exp(-2 * log_spread) + log_spread
        return (of_level + of_depth + torch.where(found.isnan(), 0.0, of_spread)).mean(1)


def noise_draws(channels: int, pixels: int) -> int:
    """Standard normal numbers that `rician_draw` takes for an image of so many channels and pixels in each."""
    return channels * (1 + 2 * pixels)


def rician_draw(x_hat: Tensor, log_level: Tensor, depth: Tensor, log_spread: Tensor, e: Tensor) -> Tensor:
    """Images as they would be measured.

    `x = min(max(R - 1 - b s, -1), 1)`, `A^2 = (x_hat + 1 + b s)^2 - s^2`, or 0 where that is below s^2 or x_hat below
    DARK; b is drawn about its value

    So the mean of R is where the reconstruction is: `E[R]^2 = A^2 + s^2` where the signal is well above the noise.

    Args:
        x_hat: (B, C, H, W) reconstruction in [-1, 1].
        log_level: (B, C) logarithms of s.
        depth: (B, C) b.
        log_spread: (C,) logarithms of b's spread.
        e: (B, `noise_draws`) standard normal.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    channels = x_hat.shape[1]
    s = torch.exp(log_level.float())[..., None, None]
    b = (depth + torch.exp(log_spread) * e[:, :channels]).clamp(min=0)[..., None, None]
    real, imaginary = e[:, channels:].unflatten(1, (2, *x_hat.shape[1:])).unbind(1)
    m = x_hat.float() + 1 + b * s
    signal = (m.square() - s.square()).clamp(min=0).sqrt()
    signal = torch.where((x_hat < DARK) | (signal < s), 0.0, signal)
    return (torch.hypot(signal + s * real, s * imaginary) - 1 - b * s).clamp(-1, 1)


def _diagonal(blocks: Tensor) -> Tensor:
    """(B, C, H, W) diagonal detail of (B, C, 4, H, W) blocks."""
    a, b, c, d = blocks.unbind(2)
    return (a - b - c + d) / 2

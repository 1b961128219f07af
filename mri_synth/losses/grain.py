"""How strong the noise of generated images must be, and how dark their air, for them to be like real ones there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

_SHARE = 0.25
"""Of the blocks, those that count: the flattest ones, which show noise and hardly any anatomy."""


def grain(x: Tensor) -> Tensor:
    """Mean size of the diagonal detail where an image is flat: of white noise alone 0.8 standard deviations.

    `g = mean |d|, d = (v_11 - v_12 - v_21 + v_22) / 2` of blocks of 2x2 pixels without a black or a white one, of the
    quarter of them in which `h^2 + v^2` is least, h and v the horizontal and the vertical detail

    Of white noise the three details are independent, so that the choice of blocks does not change d (Donoho and
    Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", take the same measure of noise, of all blocks).

    Args:
        x: (B, C, H, W) in [-1, 1]; H and W even.

    Returns:
        (B, C) float32, at least 0; 0 without any such block.
    """
    with torch.autocast(x.device.type, enabled=False):
        blocks = pixel_unshuffle(x.float(), 2).unflatten(1, (-1, 4)).flatten(3)
        a, b, c, d = blocks.unbind(2)
        edges = (a + b - c - d).square() + (a - b + c - d).square()
        edges = edges.masked_fill((blocks.abs() >= 1).any(2), torch.inf)
        inside = edges.isfinite()
        count = (inside.sum(2, keepdim=True) * _SHARE).ceil().long()
        least = edges.sort(2).values.gather(2, (count - 1).clamp(min=0))
        flat = inside & (edges <= least)
        out: Tensor = ((a - b - c + d).abs() / 2 * flat).sum(2) / flat.sum(2).clamp(min=1)
        return out


def grain_loss(log_level: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """What moves the noise of generated images up while real ones are grainier, and down while they are smoother.

    `L = mean_C log s (g(fake) - g(real))`, s the level; images get no gradient

    The discriminator is no guide to s: a generator sooner learns structures that look like noise than noise, and s then
    falls to 0. Only where it settles means anything, not L itself: where both are as grainy. A generator that draws
    noise by structures is left for the discriminator to tell.

    Args:
        log_level: (C,) logarithms of s.
        fake: (B, C, H, W) in [-1, 1], with noise of that level.
        real: (B, C, H, W) in [-1, 1].

    Returns:
        (B,) float32.
    """
    return (log_level.float() * (grain(fake) - grain(real)).detach()).mean(1)


def black_loss(depth: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """What moves the dark of generated images down while real ones have more black pixels, and up while they have less.

    `L = mean_C k (b(fake) - b(real))`, b the share of pixels that are black, k the depth; images get no gradient

    Args:
        depth: (C,) k, any real numbers.
        fake: (B, C, H, W) in [-1, 1].
        real: (B, C, H, W) in [-1, 1].

    Returns:
        (B,) float32.
    """
    share = [(x <= -1).float().mean((2, 3)) for x in (fake, real)]
    return (depth.float() * (share[0] - share[1]).detach()).mean(1)

"""Coarse noise, or foreign structures, on what a model sees in training, so that it learns to take off what does not
belong there. Self-supervised: healthy images are all it takes, and no lesion is shown."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from mri_synth.data.prepare import FOREGROUND
from mri_synth.draws import normal, uniform

CELLS = (8, 12, 16, 24)
"""Nodes of the noise along a side: on 240 mm, patches of 30 to 10 mm."""
SIZES = (3 / 240, 20 / 240)
"""Semi-axes of foreign structures as shares of the image's side, 3 to 20 mm of 240: wider than any kind of lesion."""
_STREAM = 1 << 40
"""Added to the seed, so that these draws are not those of the latent numbers."""


def coarse_noise(image: Tensor, strength: float, seed: int, step: int, index: Tensor) -> Tensor:
    """Images with smooth patches made darker and brighter (Kascenas et al. 2022, PMLR 172, section 2: coarse noise).

    `x' = clamp(x + m a u(e), -1, 1)`, e ~ N(0, 1) at the nodes of a coarse grid, u bicubic enlargement and shift, m the
    foreground, a ~ U(0, 1.5 strength)

    The grid is one of CELLS, the same for the whole step; strength, shift and noise are drawn for each item by its
    index, whatever else is in the batch.

    Args:
        image: (B, C, H, W) in [-1, 1], square.
        strength: scale of the noise, of a range of 2: an item's standard deviation at the nodes is 0 to 1.5 times it.
        seed: of the run.
        step: of the training.
        index: (B,) int64, of each item.

    Returns:
        (B, C, H, W) float32 in [-1, 1].
    """
    if not strength:
        return image
    size, items = image.shape[-1], index.to(image.device)
    cells = CELLS[step % len(CELLS)]
    nodes = cells + 3
    noise = normal(seed + _STREAM, step, items, nodes**2).view(-1, 1, nodes, nodes)
    amount, down, right = uniform(seed + 2 * _STREAM, step, items, 3).unbind(1)
    enlarged = interpolate(noise, size=(round(size * nodes / cells),) * 2, mode="bicubic", align_corners=False)
    room = enlarged.shape[-1] - size + 1
    rows, columns = ((u * room).long()[:, None] + torch.arange(size, device=image.device) for u in (down, right))
    every = torch.arange(len(image), device=image.device)[:, None, None]
    patch = enlarged[every, 0, rows[:, :, None], columns[:, None, :]][:, None]
    changed = (image + 1.5 * strength * amount[:, None, None, None] * patch).clamp(-1, 1)
    return torch.where((image > FOREGROUND).any(1, keepdim=True), changed, image)


def foreign_structures(image: Tensor, most: int, seed: int, step: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """Images with ellipses that do not belong there, darker, brighter, or of one grey, sharp or blurred, faint or full.

    `x' = clamp(x + m w c, -1, 1)`, m the foreground, w the ellipse with its edge, c of two structures in five `d`, of
    the others `a (M + d - S x)`; M the mean of x under m w, S x that of 3 x 3 pixels, of the foreground alone, so that
    one grey keeps its noise; log |d| ~ U(log 0.1, 0), most of them faint, both signs alike; a ~ U(0.5, 1)

    Structures blended into healthy images are those of foreign patch interpolation (Tan et al. 2020, arXiv:2011.04197,
    equation 1), there from other images; random shapes and contents those of DRAEM (Zavrtanik et al. 2021,
    arXiv:2108.07610, section 3.2). Centre (in the foreground), semi-axes (log-uniform over SIZES), angle, edge and
    intensity are drawn for each item by its index, whatever else is in the batch.

    Args:
        image: (B, C, H, W) in [-1, 1], square.
        most: structures of an image; each is there with a chance of 0.8.
        seed: of the run.
        step: of the training.
        index: (B,) int64, of each item.

    Returns:
        (B, C, H, W) float32 in [-1, 1], and (B, 1, H, W) the largest w of each pixel, 0 to 1.
    """
    size, out = image.shape[-1], image.float()
    share = torch.zeros_like(out[:, :1])
    inside = (image > FOREGROUND).any(1, keepdim=True)
    near = avg_pool2d(inside.float(), 3, 1, 1).clamp(min=1 / 9)
    passed = inside.flatten(1).cumsum(1)  # number of foreground pixels up to each
    ticks = torch.arange(size, device=image.device)
    draws = uniform(seed + 3 * _STREAM, step, index.to(image.device), 9 * most).view(len(image), most, 9)
    for k in range(most):
        at = (passed <= (draws[:, k, :1] * passed[:, -1:])).sum(1).clamp(max=size**2 - 1)
        there, edge, opacity, value, added, *shape = draws[:, k, 1:, None, None, None].unbind(1)
        weight = _ellipse(ticks - (at // size)[:, None], ticks - (at % size)[:, None], edge, *shape)
        signed = 2 * value - 1
        shift = signed.sign() * 10 ** (signed.abs() - 1)
        one_grey = _mean(out, weight * inside) + shift - avg_pool2d(out * inside, 3, 1, 1) / near
        change = weight * torch.where(added < 0.4, shift, (0.5 + 0.5 * opacity) * one_grey)
        use = inside & (there < 0.8)
        out = torch.where(use, (out + change).clamp(-1, 1), out)
        share = torch.where(use, weight, 0.0).maximum(share)
    return out, share


def _mean(image: Tensor, weight: Tensor) -> Tensor:
    """(B, C, 1, 1) mean of images by (B, 1, H, W) weights; 0 where these are."""
    return (weight * image).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1e-3)


def _ellipse(down: Tensor, right: Tensor, edge: Tensor, first: Tensor, second: Tensor, turn: Tensor) -> Tensor:
    """(B, 1, H, W) weight in [0, 1] of ellipses, by (B, H) and (B, W) offsets to their centres and (B, 1, 1, 1) draws.

    1 inside, half at the ellipse, and a smooth edge of 0.1 to 1 of the radius.
    """
    low, high = (math.log(share * down.shape[1]) for share in SIZES)
    a, b = (torch.exp(low + (high - low) * draw) for draw in (first, second))
    cos, sin = torch.cos(math.pi * turn), torch.sin(math.pi * turn)
    y, x = down[:, None, :, None], right[:, None, None, :]
    rho = torch.sqrt(((cos * x + sin * y) / a).square() + ((cos * y - sin * x) / b).square())
    ramp = ((1 - rho) / (0.1 + 0.9 * edge) + 0.5).clamp(0, 1)
    return ramp.square() * (3 - 2 * ramp)

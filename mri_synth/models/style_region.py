"""Where style transfer may change an image, and which part of a style image lends its style."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mri_synth.data.batch import Batch
from mri_synth.data.prepare import FOREGROUND
from mri_synth.errors import UserError

Region = Literal["image", "brain", "mask"]
CLOSING = 9
"""Pixels, of a frame of 128, over which holes of a brain's foreground are closed."""


def changeable(batch: Batch, region: Region) -> Tensor:
    """Where the canvases may differ from the contents.

    Args:
        batch: jobs.
        region: the whole "image", the "brain", or the "mask".

    Returns:
        (B, 1, H, W) bool.

    Raises:
        UserError: the region is the mask, and there is none, or it is of another size.
    """
    if region == "image":
        return torch.ones_like(batch.image[:, :1], dtype=torch.bool)
    if region == "brain":
        return brain(batch.image)
    if batch.mask is None or batch.mask.shape != batch.image[:, :1].shape:
        there = "there is none" if batch.mask is None else f"it is {tuple(batch.mask.shape)}"
        raise UserError(f"model.region=mask: a mask of {tuple(batch.image[:, :1].shape)} is needed, {there}; "
                        "choose model.region=brain or image")  # fmt: skip
    return batch.mask > 0.5


def lending(style: Tensor, mask: Tensor | None, region: Region) -> Tensor | None:
    """Whose features make the style.

    Args:
        style: (1, 1 or 3, H, W) in [-1, 1].
        mask: (1, 1, H, W) of it; None where it has none.
        region: of the canvases.

    Returns:
        (1, 1, H, W) float32 in {0, 1}: of the region "mask" the style's own mask, where there is something in it; else
        its brain. None: all of it, as of a painting, which has no background.

    Raises:
        UserError: the mask is of another size than the image.
    """
    if region == "mask" and mask is not None and mask.any():
        if mask.shape[-2:] != style.shape[-2:]:
            sizes = " and ".join(f"{s.shape[-2]}x{s.shape[-1]}" for s in (mask, style))
            raise UserError(f"model.region=mask: mask and style image are of two sizes, {sizes}")
        return (mask > 0.5).float()
    return None if region == "image" or style.shape[1] == 3 else brain(style).float()


def brain(image: Tensor) -> Tensor:
    """What is not background, with holes closed.

    Args:
        image: (B, C, H, W) in [-1, 1].

    Returns:
        (B, 1, H, W) bool.
    """
    bright = (image > FOREGROUND).any(1, keepdim=True).float()
    side = max(3, round(CLOSING * image.shape[-1] / 128) // 2 * 2 + 1)
    wide = functional.max_pool2d(bright, side, 1, side // 2)
    return -functional.max_pool2d(-wide, side, 1, side // 2) > 0.5


def correlation(x: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """Pearson's correlation of two images over a region.

    `r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2)`

    Args:
        x: (B, C, H, W).
        y: (B, C, H, W).
        where: (B, 1, H, W) bool.

    Returns:
        (B,) float32; 0 where one of them is constant.
    """
    m = where.expand_as(x).float().flatten(1)
    n = m.sum(1, keepdim=True).clamp(min=1)
    a, b = ((v.float().flatten(1) - (v.float().flatten(1) * m).sum(1, keepdim=True) / n) * m for v in (x, y))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-12)

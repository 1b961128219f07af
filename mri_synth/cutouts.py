"""Cutouts of images for a guide: crops, turned, mirrored and noisy, all of a batch in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mri_synth.draws import normal, uniform

DRAWS = 6
"""Uniform numbers of a cutout: its size, two of its place, angle, mirroring and gain; one more is its noise's level."""
FINEST = 4
"""A guide's pixel is the mean of at most so many samples a side: what is made smaller would else alias."""

_NOISE = 1 << 33
"""Between the seeds of places and of noise, which a run's own seed does not bridge."""


@dataclass(frozen=True, kw_only=True)
class CutoutSettings:
    """How cutouts are made.

    Attributes:
        count: K, of an image at a time.
        whole: so many of them are the whole image, so that no place of it is missed.
        scale: least and largest side, as shares of the image's.
        power: of the uniform number between the two; above 1 more small ones.
        rotate_deg: turned by up to this many degrees.
        flip: probability that one is mirrored left to right.
        gain: intensities on [0, 1] are multiplied by a factor from 1 - gain to 1 + gain.
        noise: largest standard deviation of the noise, each cutout's its own share of it.
    """

    count: int = 16
    whole: int = 2
    scale: tuple[float, float] = (0.5, 1.0)
    power: float = 1.0
    rotate_deg: float = 0.0
    flip: float = 0.0
    gain: float = 0.0
    noise: float = 0.0


def cutouts(image: Tensor, size: int, how: CutoutSettings, seed: int, step: int | Tensor, items: Tensor) -> Tensor:
    """Cutouts of a batch; what an item's are depends on (seed, step, item) alone.

    Args:
        image: (B, C, H, H) in [-1, 1].
        size: S, their side.
        how: they are made.
        seed: of the draws.
        step: of the optimisation; (B,) where items are at different ones.
        items: (B,) int64.

    Returns:
        (B, K, C, S, S) in [-1, 1]; differentiable in the image.
    """
    batch, channels, side = image.shape[:3]
    u = uniform(seed, step, items.to(image.device), how.count * (DRAWS + 1)).view(batch, how.count, DRAWS + 1)
    theta = placements(u, how)
    finer = min(FINEST, max(1, math.ceil(how.scale[1] * side / size)))
    grid = _places(theta, size * finer)
    grid = grid.view(batch, how.count * size * finer, size * finer, 2)  # one below the other: no image is copied
    seen = image
    if how.noise:
        grain = normal(seed + _NOISE, step, items.to(image.device), image[0].numel()).view_as(image)
        seen = torch.cat([image, grain], 1)
    cut = functional.grid_sample(seen.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    cut = cut.view(batch, -1, how.count, size * finer, size * finer).transpose(1, 2)
    if finer > 1:
        cut = functional.avg_pool2d(cut.flatten(0, 1), finer).view(*cut.shape[:3], size, size)
    made = cut[:, :, :channels]
    if how.gain:
        factor = 1 + how.gain * (2 * u[..., 5] - 1)
        made = (made + 1) * factor[..., None, None, None] - 1
    if how.noise:
        made = made + how.noise * u[..., 6, None, None, None] * cut[:, :, channels:]
    return made.clamp(-1, 1) if how.gain or how.noise else made


def placements(u: Tensor, how: CutoutSettings) -> Tensor:
    """Where cutouts lie in their image, as affine maps from their own [-1, 1] x [-1, 1] to its.

    `h = s_0 + (s_1 - s_0) u^power`, `c = (1 - h) (2 u - 1)`: a cutout that is not turned lies within the image

    Args:
        u: (B, K, at least 5) uniform numbers.
        how: they are made; the first `whole` have h = 1 and no angle.

    Returns:
        (B, K, 2, 3).
    """
    low, high = how.scale
    h = low + (high - low) * u[..., 0] ** how.power
    angle = math.radians(how.rotate_deg) * (2 * u[..., 3] - 1)
    first = torch.arange(u.shape[1], device=u.device) < how.whole
    h, angle = torch.where(first, 1.0, h), torch.where(first, 0.0, angle)
    x, y = ((1 - h) * (2 * u[..., k] - 1) for k in (1, 2))
    mirror = torch.where(u[..., 4] < how.flip, -1.0, 1.0)
    cos, sin = h * torch.cos(angle), h * torch.sin(angle)
    return torch.stack([torch.stack([mirror * cos, -sin, x], -1), torch.stack([mirror * sin, cos, y], -1)], -2)


def _places(theta: Tensor, size: int) -> Tensor:
    """(B, K, size, size, 2) of maps (B, K, 2, 3): what `affine_grid` gives, whose small products cost more."""
    at = (torch.arange(size, device=theta.device) + 0.5) * 2 / size - 1
    by_column = theta[..., None, None, :, 0] * at[:, None]  # (B, K, 1, size, 2)
    by_row = theta[..., None, None, :, 1] * at[:, None, None] + theta[..., None, None, :, 2]  # (B, K, size, 1, 2)
    return by_column + by_row

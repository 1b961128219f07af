"""Augmentation of a whole batch on the training device. What an item gets depends on (seed, epoch, item) alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.batch import Batch
from mri_synth.data.settings import AugmentSettings

_DRAWS = 7


def uniform(seed: int, epoch: int, items: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Counter-based random numbers: the same for an item wherever and whenever it is drawn.

    SplitMix64 (Steele, Lea, Flood 2014) of a counter made from seed, epoch, item and draw.

    Args:
        seed: of the run.
        epoch: number of the epoch.
        items: (B,) item numbers.
        draws: numbers per item.

    Returns:
        (B, draws) in [0, 1).
    """
    with np.errstate(over="ignore"):
        x = _mix(np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15))
        x = _mix(x ^ np.uint64(epoch))
        x = _mix(x ^ items.astype(np.uint64))
        bits = _mix(x[:, None] + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, draws + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    x = np.asarray(x, np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def augment(batch: Batch, settings: AugmentSettings, seed: int, epoch: int) -> Batch:
    """Flip, rotate, shift and zoom image, target and mask alike; gain and gamma per channel of image and target.

    Args:
        batch: as loaded; left as it is.
        settings: `data.augment`.
        seed: of the run.
        epoch: number of the epoch.

    Returns:
        The augmented batch; image and target stay in [-1, 1], beyond the frame is -1 (0 in the mask).
    """
    if not settings:
        return batch
    items = batch.index.cpu().numpy()
    channels = batch.image.shape[1] + (0 if batch.target is None else batch.target.shape[1])
    u = uniform(seed, epoch, items, _DRAWS + 2 * channels)
    image, target, mask = batch.image, batch.target, batch.mask
    if settings.rotate_deg or settings.translate or settings.scale:
        theta = torch.from_numpy(_matrices(u, settings)).to(image)
        grid = _grid(theta, image.shape[2], image.shape[3])
        image, target = _warp(image, grid), None if target is None else _warp(target, grid)
        mask = None if mask is None else F.grid_sample(mask, grid, "nearest", "zeros", align_corners=False)
    elif settings.flip:
        flipped = torch.from_numpy(u[:, 0] < settings.flip).to(image.device)
        image = _flip(image, flipped)
        target, mask = (None if x is None else _flip(x, flipped) for x in (target, mask))
    if settings.gain or settings.gamma:
        draw = torch.from_numpy(u[:, _DRAWS:]).to(image).reshape(len(items), channels, 2, 1, 1)
        image = _intensity(image, draw[:, : image.shape[1]], settings)
        target = None if target is None else _intensity(target, draw[:, image.shape[1] :], settings)
    return replace(batch, image=image, target=target, mask=mask)


def _matrices(u: NDArray[np.float64], settings: AugmentSettings) -> NDArray[np.float32]:
    """(B, 2, 3) maps from output to input coordinates in [-1, 1], flips included."""
    signed = 2 * u - 1
    angle = np.deg2rad(settings.rotate_deg) * signed[:, 1]
    zoom = np.exp(-np.log1p(settings.scale) * signed[:, 2])
    mirror = np.where(u[:, 0] < settings.flip, -1.0, 1.0)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    shift = 2 * settings.translate * signed[:, 3:5]
    rows = [[mirror * cos, -mirror * sin, shift[:, 0]], [sin, cos, shift[:, 1]]]
    return np.stack([np.stack(row, 1) for row in rows], 1).astype(np.float32)


def _grid(theta: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, 2): `F.affine_grid(align_corners=False)` as a sum of two vectors per axis, on a CPU 30 times faster."""
    across = (2 * torch.arange(width, device=theta.device) + 1) / width - 1
    down = (2 * torch.arange(height, device=theta.device) + 1) / height - 1
    row = theta[:, :, 0, None] * across
    column = theta[:, :, 1, None] * down + theta[:, :, 2:]
    return (row[:, :, None, :] + column[:, :, :, None]).permute(0, 2, 3, 1)


def _warp(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images + 1, grid, "bilinear", "zeros", align_corners=False).sub_(1)


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def _intensity(images: Tensor, draw: Tensor, settings: AugmentSettings) -> Tensor:
    """gain * x^gamma of x on [0, 1], as `2^(gamma log2 x + log2 gain)`; draw (B, C, 2, 1, 1) in [0, 1)."""
    signed = 2 * draw - 1
    gain = 1 + settings.gain * signed[:, :, 0]
    gamma = torch.exp(np.log1p(settings.gamma) * signed[:, :, 1])
    twice = (images + 1).clamp_(0, 2)  # 2 x; the factor goes into the offset
    return torch.addcmul(torch.log2(2 * gain) - gamma, twice.log2_(), gamma).exp2_().clamp_(max=2).sub_(1)

"""Coarse noise on what a model sees in training, so that it learns to take off what does not belong there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mri_synth.data.prepare import FOREGROUND
from mri_synth.draws import normal, uniform

CELLS = (8, 12, 16, 24)
"""Nodes of the noise along a side: on 240 mm, patches of 30 to 10 mm."""
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

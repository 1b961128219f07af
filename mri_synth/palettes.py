"""Colour for art: grey pictures through a palette, differentiably. MRI itself stays grey."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mri_synth.drawing import MAGMA

Palette = Literal["none", "copper", "forest", "magma", "space", "volcano"]

COLOURS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "copper": ((0, 0, 0), (96, 58, 37), (191, 121, 77), (255, 185, 121), (255, 236, 214)),
    "forest": ((4, 6, 10), (16, 52, 38), (52, 112, 44), (156, 188, 74), (244, 248, 214)),
    "magma": MAGMA,
    "space": ((2, 3, 12), (21, 27, 84), (88, 44, 142), (214, 108, 168), (255, 242, 230)),
    "volcano": ((8, 6, 10), (74, 12, 14), (190, 44, 12), (250, 152, 28), (255, 246, 206)),
}
"""Points of each palette from -1 to 1, straight in between."""


def coloured(image: Tensor, palette: Palette) -> Tensor:
    """Grey images in the colours of a palette.

    Args:
        image: (B, 1, H, W) in [-1, 1]; one of 3 channels stays as it is.
        palette: its name; "none" changes nothing.

    Returns:
        (B, 3, H, W) in [-1, 1], differentiable; the image itself with "none".
    """
    if palette == "none" or image.shape[1] == 3:
        return image
    points = torch.tensor(COLOURS[palette], device=image.device, dtype=torch.float32) / 127.5 - 1
    place = (image.float() + 1) / 2 * (len(points) - 1)
    at = torch.arange(len(points), device=image.device)[None, :, None, None]
    near = (1 - (place - at).abs()).clamp(min=0)  # (B, points, H, W): 1 at a point, falling to 0 at its neighbours
    return torch.einsum("bkhw,kc->bchw", near, points)

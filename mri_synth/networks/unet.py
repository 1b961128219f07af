"""A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597) from images to maps of the same size."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

FACTOR = 8
"""Image side over that of the lowest resolution."""
_PLACES = 4
"""Channels of what is learned of each place."""
_GROUPS = 4


class UNet(nn.Module):
    """Three resolutions, the highest of them half the image's: rearrangements replace convolutions above it.

    A learned map beside the image tells the convolutions where they are: what is healthy here is not so there.
    The last layer starts at 0, and so does the output.

    Args:
        channels: of the image.
        out_channels: of the output.
        size: image side, pixels; a multiple of 8.
        hidden: channels at the highest of the three resolutions; twice as many below it.
    """

    def __init__(self, channels: int, out_channels: int, size: int, hidden: int) -> None:
        super().__init__()
        if size % FACTOR or hidden % _GROUPS:
            raise ValueError(f"size must be a multiple of {FACTOR} and hidden of {_GROUPS}, got {size} and {hidden}")
        widths = [4 * channels + _PLACES, hidden, 2 * hidden, 2 * hidden]
        self.places = nn.Parameter(torch.zeros(1, _PLACES, size // 2, size // 2))
        self.rearranged = nn.PixelUnshuffle(2)
        self.down = nn.ModuleList(_block(above, below) for above, below in pairwise(widths))
        self.up = nn.ModuleList([_block(4 * hidden, 2 * hidden), _block(3 * hidden, hidden)])
        self.last = nn.Sequential(nn.Conv2d(hidden, 4 * out_channels, 1), nn.PixelShuffle(2))
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, size, size) to (B, out_channels, size, size) float32."""
        out = torch.cat([self.rearranged(x), self.places.expand(len(x), -1, -1, -1)], 1)
        passed = []
        for k, block in enumerate(self.down):
            out = block(avg_pool2d(out, 2) if k else out)
            passed.append(out)
        for block, skip in zip(self.up, passed[-2::-1], strict=True):
            out = block(torch.cat([interpolate(out, scale_factor=2), skip], 1))
        last: Tensor = self.last(out)
        return last.float()


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(_GROUPS, after), nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1), nn.ReLU(),
    )  # fmt: skip

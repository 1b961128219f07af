"""Overlapping tiles over images larger than a network's, and smooth weights that sum to one at every pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mri_synth.data.frame import Frame


@dataclass(frozen=True, eq=False)
class Tiles:
    """Squares of one size on a larger square image.

    Attributes:
        size: side of a tile.
        corners: (row, column) of the first pixel of each.
        weights: (T, size, size) float32; at every pixel that tiles cover, theirs sum to 1.
        covered: (side, side) bool, pixels of the image that lie in a tile.
    """

    size: int
    corners: tuple[tuple[int, int], ...]
    weights: Tensor
    covered: Tensor

    @classmethod
    def over(cls, frame: Frame, size: int, overlap: float) -> Tiles:
        """Tiles over the part of a frame that holds the slice.

        Where the slice is shorter than a tile, it lies in the tile as it would in a frame of the tile's size.

        Args:
            frame: that holds the whole slice.
            size: side of a tile.
            overlap: share of its side that a tile has in common with the next, at least.

        Returns:
            The tiles, row by row.
        """
        rows, columns = (starts(length, frame.size, size, overlap) for length in frame.scaled)
        corners = tuple((row, column) for row in rows for column in columns)
        window = hann(size)
        window = window[:, None] * window
        total = torch.zeros(frame.size, frame.size)
        for row, column in corners:
            total[row : row + size, column : column + size] += window
        weights = torch.stack([window / total[r : r + size, c : c + size] for r, c in corners])
        return cls(size, corners, weights, total > 0)

    def to(self, device: torch.device) -> Tiles:
        """The same on a device."""
        return Tiles(self.size, self.corners, self.weights.to(device), self.covered.to(device))

    def through(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Images through a network tile by tile, blended.

        `y_p = sum_t w_t,p f(x_t)_p / sum_t w_t,p`, over the tiles t that hold the pixel p, w a Hann window, in float32

        Args:
            network: (B, S, size, size) to (B, 1, size, size).
            images: (B, S, side, side).

        Returns:
            (B, 1, side, side) float32; -1 where there is no tile.
        """
        out = torch.zeros(len(images), 1, *images.shape[2:], device=images.device)
        for (row, column), weight in zip(self.corners, self.weights, strict=True):
            here = (..., slice(row, row + self.size), slice(column, column + self.size))
            out[here].addcmul_(network(images[here]).float(), weight)
        return out.masked_fill_(~self.covered, -1)


def starts(length: int, side: int, size: int, overlap: float) -> list[int]:
    """Where tiles begin along one axis.

    Args:
        length: of the slice, which lies in the middle of `side`.
        side: of the image.
        size: of a tile.
        overlap: share of a tile that lies in the next, at least.

    Returns:
        Ascending; evenly spaced from the slice's first pixel to its last.
    """
    first = (side - length) // 2
    if length <= size:
        return [first - (size - length) // 2]
    count = 1 + math.ceil((length - size) / max(1, math.floor(size * (1 - overlap))))
    return [first + int(k) for k in np.rint(np.linspace(0, length - size, count))]


def hann(size: int) -> Tensor:
    """A window that falls smoothly from the middle to the ends, where it is above 0.

    `w_i = sin^2(pi (i + 1/2) / n)` (periodic Hann window, by half a pixel; with an overlap of one half it sums to 1)

    Args:
        size: n.

    Returns:
        (n,) float32.
    """
    return (torch.sin(math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2).float()


def convolutional(model: nn.Module) -> bool:
    """Whether a model's weights know no place: what it learned of the middle of a frame then holds for any tile.

    Args:
        model: any.

    Returns:
        False where a parameter of several dimensions is no convolution's: a map of places, a layer over all pixels.
    """
    convolutions = (nn.Conv2d, nn.ConvTranspose2d, nn.utils.parametrize.ParametrizationList)
    return all(
        parameter.ndim < 2 or isinstance(module, convolutions)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )

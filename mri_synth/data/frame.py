"""Where a slice lies in the square image a model sees, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from mri_synth.data.settings import Fit
from mri_synth.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """A resize to `scaled`, then a centred pad and crop to (size, size).

    Attributes:
        source: (h, w) of the slices.
        source_spacing_mm: (row, column) of the slices.
        scaled: (h, w) after the resize.
        size: the frame is (size, size) pixels.
    """

    source: tuple[int, int]
    source_spacing_mm: tuple[float, float]
    scaled: tuple[int, int]
    size: int

    @classmethod
    def fit(
        cls,
        source: tuple[int, int],
        spacing_mm: tuple[float, float],
        size: int,
        fit: Fit,
        spacing_mm_target: float | None = None,
    ) -> Frame:
        """The frame that settings mean for slices of this size and spacing.

        Args:
            source: (h, w) of the slices.
            spacing_mm: (row, column) of the slices.
            size: side of the frame in pixels.
            fit: "contain" scales, equally in mm, so that the whole slice fits; "crop" does not scale; "stretch" scales
                each side to the frame. With a target spacing "contain" and "crop" both scale to it, and cut off what
                does not fit.
            spacing_mm_target: pixel spacing wanted in the frame; None leaves it to `fit`.

        Returns:
            The frame. Sides are rounded to whole pixels, so that its spacing may differ a little from the target.

        Raises:
            UserError: "stretch" with a target spacing.
        """
        extent = (source[0] * spacing_mm[0], source[1] * spacing_mm[1])
        if fit == "stretch":
            if spacing_mm_target is not None:
                raise UserError(
                    f"fit=stretch sets the spacing itself: drop spacing_mm={spacing_mm_target}, or set fit=contain."
                )
            return cls(source, spacing_mm, (size, size), size)
        if fit == "crop" and spacing_mm_target is None:
            return cls(source, spacing_mm, source, size)
        target = max(extent) / size if spacing_mm_target is None else spacing_mm_target
        scaled = (max(1, round(extent[0] / target)), max(1, round(extent[1] / target)))
        return cls(source, spacing_mm, scaled, size)

    @property
    def spacing_mm(self) -> tuple[float, float]:
        """(row, column) pixel spacing in the frame."""
        (h, w), (row, column) = self.source, self.source_spacing_mm
        return h * row / self.scaled[0], w * column / self.scaled[1]

    @property
    def covered(self) -> float:
        """Share of the slice's area that lies inside the frame."""
        return min(1.0, self.size / self.scaled[0]) * min(1.0, self.size / self.scaled[1])

    def apply(self, images: Array, fill: float, nearest: bool = False) -> Array:
        """Slices into the frame.

        Args:
            images: (N, h, w) float32.
            fill: value around them.
            nearest: nearest neighbour, for masks; else bilinear with antialiasing.

        Returns:
            (N, size, size) float32; the very same values where nothing is scaled.
        """
        if images.shape[1:] != self.source:
            raise ValueError(f"slices are {images.shape[1:]}, the frame was made for {self.source}")
        resized = _resize(images, self.scaled, nearest)
        out = np.full((len(images), self.size, self.size), fill, np.float32)
        out[:, _span(self.size, self.scaled[0]), _span(self.size, self.scaled[1])] = resized[
            :, _span(self.scaled[0], self.size), _span(self.scaled[1], self.size)
        ]
        return out

    def invert(self, images: Array, fill: float, nearest: bool = False) -> Array:
        """Frames back to slices.

        Args:
            images: (N, size, size) float32.
            fill: value of the slice's pixels whose centres lie outside the frame.
            nearest: nearest neighbour, for masks; else bilinear with antialiasing.

        Returns:
            (N, h, w) float32.
        """
        if images.shape[1:] != (self.size, self.size):
            raise ValueError(f"images are {images.shape[1:]}, the frame is {self.size}x{self.size}")
        inside = images[:, _span(self.size, self.scaled[0]), _span(self.size, self.scaled[1])]
        # Beyond the frame its border is repeated, so that the fill does not bleed into what the frame does show.
        margins = [(0, 0)] + [(_span(s, self.size).start, s - _span(s, self.size).stop) for s in self.scaled]
        canvas = np.pad(inside, margins, mode="edge") if np.any(margins) else inside
        out = _resize(canvas, self.source, nearest)
        outside = ~self.shown()
        if outside.any():
            out = np.where(outside, np.float32(fill), out)
        return out

    def shown(self) -> npt.NDArray[np.bool_]:
        """(h, w), which pixels of the slice have their centre inside the frame."""
        return self._shown(0)[:, None] & self._shown(1)

    def _shown(self, axis: int) -> npt.NDArray[np.bool_]:
        centres = (np.arange(self.source[axis]) + 0.5) * self.scaled[axis] / self.source[axis]
        span = _span(self.scaled[axis], self.size)
        inside: npt.NDArray[np.bool_] = (centres >= span.start) & (centres < span.stop)
        return inside


def _span(outer: int, inner: int) -> slice:
    """Where `inner` pixels lie, centred, in `outer`; all of `outer` where it is the smaller."""
    start = max(0, (outer - inner) // 2)
    return slice(start, start + min(outer, inner))


def _resize(images: Array, shape: tuple[int, int], nearest: bool) -> Array:
    if images.shape[1:] == shape:
        return images.astype(np.float32)
    x = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
    if nearest:
        y = F.interpolate(x, shape, mode="nearest-exact")
    else:
        y = F.interpolate(x, shape, mode="bilinear", align_corners=False, antialias=True)
    resized: Array = y[:, 0].numpy()
    return resized

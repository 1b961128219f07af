"""Source intensities to [-1, 1] and back, one linear map per volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mri_synth.data.settings import IntensitySettings
from mri_synth.errors import UserError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Intensity:
    """The line that takes `low` to -1 and `high` to 1, clipped beyond.

    Attributes:
        low: in source units.
        high: in source units, above `low`.
    """

    low: float
    high: float

    def apply(self, x: Array) -> npt.NDArray[np.float32]:
        """Source units, any shape, to float32 in [-1, 1]."""
        scale = 2.0 / (self.high - self.low)
        return _in_double(x, lambda v: np.clip((v - self.low) * scale - 1.0, -1.0, 1.0))

    def invert(self, y: Array) -> npt.NDArray[np.float32]:
        """[-1, 1], any shape, to source units."""
        scale = (self.high - self.low) / 2.0
        return _in_double(y, lambda v: (v + 1.0) * scale + self.low)

    def clipped(self, x: Array) -> float:
        """Share of the values of `x` that lie beyond low and high, and are lost."""
        return float(((x < self.low) | (x > self.high)).mean())


def _in_double(x: Array, change: Callable[[Array], Array]) -> npt.NDArray[np.float32]:
    """Change every value in double precision, so that integers up to 2**24 come back as they were.

    A part after the other, which stays in the cache: fresh memory for a volume of doubles takes longer than the
    arithmetic.
    """
    parts = np.nditer(
        [x, None], ["external_loop", "buffered", "zerosize_ok"], [["readonly"], ["writeonly", "allocate"]],
        [np.dtype(np.float64), np.dtype(np.float32)], buffersize=1 << 15,
    )  # fmt: skip
    with parts:
        for old, new in parts:
            new[...] = change(old)
        out: npt.NDArray[np.float32] = parts.operands[1]
    return out


def fit_intensity(array: Array, settings: IntensitySettings, name: str = "the volume") -> Intensity:
    """The map that the settings mean for this volume.

    Args:
        array: all voxels, in source units.
        settings: percentile, minmax or fixed.
        name: the file, for messages.

    Returns:
        The map, to be recorded with the volume.

    Raises:
        UserError: `range` or `percentiles` missing or not two increasing numbers (percentiles within 0..100), or the
            volume has one value at both ends.
    """
    if settings.method == "fixed":
        low, high = _pair(settings.range, "data.intensity.range", "two increasing numbers, such as [0, 255]")
        return Intensity(low, high)
    if settings.method == "minmax":
        low, high = float(array.min()), float(array.max())
    else:
        ends = _pair(settings.percentiles, "data.intensity.percentiles", "two increasing numbers in 0..100")
        if ends[0] < 0 or ends[1] > 100:
            raise UserError(f"data.intensity.percentiles={list(ends)}: two increasing numbers in 0..100 are needed.")
        low, high = (float(v) for v in np.percentile(array, ends))
    if not low < high:
        what = f"{settings.percentiles} percent" if settings.method == "percentile" else "minimum and maximum"
        raise UserError(
            f"{name}: {what} of its values are both {low:g}, which leaves nothing between -1 and 1. "
            "Set data.intensity.method=minmax or wider data.intensity.percentiles, or leave the file out."
        )
    return Intensity(low, high)


def _pair(values: list[float] | None, key: str, allowed: str) -> tuple[float, float]:
    if values is None or len(values) != 2 or not np.isfinite(values).all() or not values[0] < values[1]:
        raise UserError(f"{key}={values}: {allowed} are needed.")
    return float(values[0]), float(values[1])

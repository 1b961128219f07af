"""Whether slices that were made one by one fit together: gradients from slice to slice against those within slices.

A 2-D model sees no neighbour, so its volume may flicker along the axis. Differences are total variation along one axis
(Rudin, Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F, per voxel, anisotropic). The quotient with the
variation within slices, and with that of a real volume of the same place, is defined here: it does not change with the
intensity scale, so that volumes of two contrasts can be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

PROTOCOL = (
    "g_z / g_xy of the volume over that of the real one: mean absolute difference of neighbouring voxels across slices "
    "and within them, over pairs of voxels that are both foreground of the real volume; 1 is as consistent as the real "
    "one, above 1 flickers more, below 1 is smoother"
)
"""Said beside every ratio."""


def slice_gradient(slices: Array, foreground: Array) -> float:
    """Mean absolute difference from slice to slice.

    `g_z = mean |v_(k+1, p) - v_(k, p)|`, over pixels p of slices k that are foreground in both slices

    Args:
        slices: (N, H, W), in any units, in which the result is too.
        foreground: (N, H, W) bool.

    Returns:
        At least 0; 0 of identical slices; NaN without a pair of foreground voxels.
    """
    return _mean_step(slices, foreground, 0)


def plane_gradient(slices: Array, foreground: Array) -> float:
    """Mean absolute difference of neighbouring pixels within slices.

    `g_xy = (mean |v_(k, i+1, j) - v_(k, i, j)| + mean |v_(k, i, j+1) - v_(k, i, j)|) / 2`, over foreground pairs

    Args:
        slices: (N, H, W).
        foreground: (N, H, W) bool.

    Returns:
        At least 0; NaN without a pair of foreground pixels.
    """
    return (_mean_step(slices, foreground, 1) + _mean_step(slices, foreground, 2)) / 2


def consistency(slices: Array, real: Array, foreground: Array) -> dict[str, float | None]:
    """How consistent slices are, as a multiple of how consistent those of a real volume are.

    `R = (g_z(v) / g_xy(v)) / (g_z(u) / g_xy(u))`, v the volume, u the real one, which may be of another contrast

    Args:
        slices: (N, H, W), in any units.
        real: (N, H, W), on the same grid, in any units.
        foreground: (N, H, W) bool, of the real volume.

    Returns:
        "ratio": R, 1 where both are alike, above 1 where the volume flickers, 0 where its slices are identical;
        "slice_gradient" and "plane_gradient" of the volume, "real_slice_gradient" and "real_plane_gradient". None where
        undefined: of one slice, of a flat volume.
    """
    found = {
        "slice_gradient": slice_gradient(slices, foreground),
        "plane_gradient": plane_gradient(slices, foreground),
        "real_slice_gradient": slice_gradient(real, foreground),
        "real_plane_gradient": plane_gradient(real, foreground),
    }
    own, other = (_quotient(found[f"{p}slice_gradient"], found[f"{p}plane_gradient"]) for p in ("", "real_"))
    return {k: v if np.isfinite(v) else None for k, v in ({"ratio": _quotient(own, other)} | found).items()}


def _mean_step(values: Array, foreground: Array, axis: int) -> float:
    """Mean absolute difference of neighbours along an axis, slice by slice, so that no copy of the volume is made."""
    total, count = 0.0, 0
    later, earlier = (slice(1, None), slice(None, -1))
    for k in range(len(values) - (axis == 0)):
        if axis == 0:
            pairs = foreground[k] & foreground[k + 1]
            step = values[k + 1] - values[k]
        else:
            here, there = (later, earlier) if axis == 1 else ((slice(None), later), (slice(None), earlier))
            pairs = foreground[k][here] & foreground[k][there]
            step = values[k][here] - values[k][there]
        total += float((np.abs(step, out=step) * pairs).sum(dtype=np.float64))
        count += int(pairs.sum())
    return total / count if count else float("nan")


def _quotient(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")

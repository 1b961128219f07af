"""How well a segmentation finds what is marked: Dice of each subject's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOL = (
    "Dice of all pixels of a subject's test images together, at probability 0.5, mean over the subjects with a marked "
    "pixel, interval by resampling them; false: pixels called marked among 1,000 of images that have none"
)
"""Said beside every Dice of subjects."""


def dice_by_subject(found: NDArray[Any], mask: NDArray[Any], subjects: Sequence[str]) -> tuple[list[str], Any]:
    """Overlap of what was found with what is marked, all images of a subject taken together.

    `Dice = 2 |F & M| / (|F| + |M|)`, F the found and M the marked pixels of a subject

    Args:
        found: (N, ...) bool.
        mask: (N, ...) bool.
        subjects: (N,) whose image it is.

    Returns:
        The subjects that have a marked pixel, and (S,) float64 their Dice.
    """
    names, who = np.unique(np.asarray(subjects, str), return_inverse=True)
    both, f, m = (np.bincount(who, x.reshape(len(x), -1).sum(1), len(names)) for x in (found & mask, found, mask))
    kept = np.flatnonzero(m > 0)
    return names[kept].tolist(), 2 * both[kept] / (f[kept] + m[kept])


def falsely_marked(found: NDArray[Any], mask: NDArray[Any]) -> float | None:
    """Share of the pixels called marked in images where nothing is.

    Args:
        found: (N, ...) bool.
        mask: (N, ...) bool.

    Returns:
        0 to 1; None where every image has a marked pixel.
    """
    empty = ~mask.reshape(len(mask), -1).any(1)
    return float(found[empty].mean()) if empty.any() else None

"""What is kept of an image to tell it again: a small picture of it, and a sketch of its fine detail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mri_synth.data.prepare import FOREGROUND

Array = NDArray[Any]

SIDE = 128
"""Images come in frames of this side."""
THUMB = 32
SKETCH = 4096
DETAIL = 1.5
"""Standard deviation, in pixels, of the blur that detail is what is left of."""
SAME_IMAGE = 0.9995
"""Correlation of small pictures. Copies encoded anew: 0.9998 and above; neighbouring slices, even noise-free: 0.998."""
SAME_HEAD = 0.4
"""Correlation of detail. One child on several days, aligned: 0.51 and above; strangers: up to 0.2."""


@dataclass(frozen=True)
class Fingerprint:
    """One image, three middle slices of a volume or the picture.

    Attributes:
        thumb: (n, 32, 32) float32, the slices made small.
        sketch: (4096,) float32, fine detail.
    """

    thumb: Array
    sketch: Array


def fingerprint(images: Array) -> Fingerprint:
    """Of the prepared slices of one volume.

    Detail is `D = (I - G*I) / sqrt(G2*(I - G*I)^2 + 0.02^2)`, G a Gaussian of 1.5 pixels, G2 of 3: folds and vessels,
    which are a person's own, and not how tissue and coil are bright. It is kept as a count sketch (Charikar 2002): sums
    with fixed random signs in 4,096 places, whose correlations are those of the images within 0.02.

    Args:
        images: (N, 128, 128) in [-1, 1].

    Returns:
        Thumbnails and sketch of the slices at a quarter, the middle and three quarters of those that show something.
    """
    filled = np.flatnonzero((images > FOREGROUND).mean((1, 2)) > 0.02)
    images = images[filled] if len(filled) else images
    n = len(images)
    chosen = images[[n // 4, n // 2, 3 * n // 4]] if n > 1 else images
    each = SIDE // THUMB
    thumb = chosen.reshape(len(chosen), THUMB, each, THUMB, each).mean((2, 4))
    blurred = gaussian_filter(chosen, (0, DETAIL, DETAIL))
    detail = chosen - blurred
    detail = detail / np.sqrt(gaussian_filter(detail**2, (0, 2 * DETAIL, 2 * DETAIL)) + 0.02**2) * (blurred > -0.7)
    place, sign = _sketch(len(chosen))
    sketch = np.bincount(place, detail.reshape(-1) * sign, minlength=SKETCH)
    return Fingerprint(thumb.astype(np.float32), sketch.astype(np.float32))


@cache
def _sketch(n: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(n)
    pixels = n * SIDE * SIDE
    return rng.integers(SKETCH, size=pixels), rng.choice([-1.0, 1.0], size=pixels)


def alike(prints: list[Fingerprint]) -> Iterator[tuple[int, int, str, float]]:
    """Pairs that show one image, or one head.

    Args:
        prints: of images of one contrast, all with as many slices.

    Yields:
        First and second, "image" or "head", and the correlation that tells it. Heads are told where six images or more
        give a mean to be compared with, and only where they lie alike, as after registration to one template.
    """
    thumbs = unit(np.stack([p.thumb.reshape(-1) for p in prints]))
    details = np.stack([p.sketch for p in prints])
    details = unit(details - details.mean(0)) if len(prints) >= 6 else np.zeros((len(prints), 1), np.float32)
    for start in range(0, len(prints), 512):
        here = slice(start, start + 512)
        image, head = thumbs[here] @ thumbs.T, details[here] @ details.T
        for i, j in np.argwhere((image >= SAME_IMAGE) | (head >= SAME_HEAD)).tolist():
            if j > start + i:
                same = image[i, j] >= SAME_IMAGE
                yield start + i, j, "image" if same else "head", float(image[i, j] if same else head[i, j])


def unit(rows: Array) -> NDArray[np.float32]:
    """Rows without their mean, of length 1; zero for constant ones."""
    rows = rows - rows.mean(1, keepdims=True)
    out: NDArray[np.float32] = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    return out

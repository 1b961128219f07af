"""Distributions of real and generated images that are drawn over one another: intensities, and places in feature space.

Pictures for the eye, beside the figures that decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

BINS = 64
POINTS = 250
MOST = 1000

Array = NDArray[np.float64]


def intensities(real: Iterable[Tensor], fake: Iterable[Tensor], bins: int = BINS) -> dict[str, list[float]]:
    """Histograms of all pixels' intensities.

    Args:
        real: batches (B, C, H, W) in [-1, 1]; what lies outside counts at the ends.
        fake: the same.
        bins: of equal width.

    Returns:
        "edges" (bins + 1) in [0, 1], and counts "real" and "fake".
    """
    edges = np.linspace(0, 1, bins + 1)

    def counts(batches: Iterable[Tensor]) -> Array:
        total = np.zeros(bins)
        for batch in batches:
            values = (batch.float().clamp(-1, 1).cpu().numpy() + 1) / 2
            total += np.histogram(values, edges)[0]
        return total

    return {"edges": _plain(edges), "real": counts(real).tolist(), "fake": counts(fake).tolist()}


def features(real: NDArray[Any], fake: NDArray[Any], bins: int = 32, seed: int = 0) -> dict[str, Any]:
    """Where generated images lie among real ones: in the plane of the reals' main directions, and how far out.

    The plane is that of the first two principal components of the real vectors; distances are Euclidean, in all
    directions, from the mean of the real vectors.

    Args:
        real: (M, D) vectors, M at least 2.
        fake: (N, D) vectors.
        bins: of the histogram of distances.
        seed: of the choice of vectors where there are more than `MOST`, and of points that are drawn.

    Returns:
        "components": "real" and "fake" points (x, y), at most `POINTS` each, and "explained", the share of the real
        vectors' variance along either; "distances": "edges", and counts "real" and "fake".
    """
    rng = np.random.default_rng(seed)
    x, y = (v[np.sort(rng.permutation(len(v))[:MOST])].astype(np.float64) for v in (real, fake))
    mean = x.mean(0)
    axes, explained = principal(x - mean)
    out = [np.linalg.norm(v - mean, axis=1) for v in (x, y)]
    low, high = min(map(np.min, out)), max(map(np.max, out))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    distances = {"edges": _plain(edges)}
    distances |= {
        k: np.histogram(v, edges)[0].astype(float).tolist() for k, v in zip(("real", "fake"), out, strict=True)
    }
    points = {k: [_plain(p) for p in (v - mean)[:POINTS] @ axes.T] for k, v in (("real", x), ("fake", y))}
    return {"components": {**points, "explained": _plain(explained)}, "distances": distances}


def principal(centred: Array, count: int = 2) -> tuple[Array, Array]:
    """Directions of the largest variance, and the share of it along each (Pearson 1901).

    Args:
        centred: (N, D) vectors whose mean is 0.
        count: of directions.

    Returns:
        (count, D) unit vectors, the largest entry of each positive, 0 where there is no further direction; (count,)
        shares from 0 to 1.
    """
    _, singular, rows = np.linalg.svd(centred, full_matrices=False)
    axes, shares = np.zeros((count, centred.shape[1])), np.zeros(count)
    total = float((singular**2).sum())
    for k in range(min(count, len(singular))):
        if singular[k] ** 2 > 1e-12 * total:
            axes[k] = rows[k] * np.sign(rows[k][np.abs(rows[k]).argmax()])
            shares[k] = singular[k] ** 2 / total
    return axes, shares


def _plain(values: Array) -> list[float]:
    return [float(f"{v:.4g}") for v in values]

"""Precision and recall, density and coverage: are the fakes among the reals, and are all reals among the fakes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOL = (
    "precision and recall of Kynkäänniemi 2019 (there k = 3), density and coverage of Naeem 2020, in Euclidean "
    "distance of the features, balls reaching to the k-th nearest neighbour; as many fake as real images"
)
"""Said beside precision, recall, density and coverage, with k."""

# A fake that is a copy of the very image a ball reaches to lies on its rim: inside, whatever the last digit of a sum.
_RIM = 1 + 1e-9


def prdc(fake: NDArray[Any], real: NDArray[Any], k: int = 5) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi 2019, eq. 2), density and coverage (Naeem 2020, eqs. 4 and 5).

    `precision = mean_j [f_j in any B(r_i)]`, `recall = mean_i [r_i in any B(f_j)]`,
    `density = sum_j sum_i [f_j in B(r_i)] / (k N)`, `coverage = mean_i [any f_j in B(r_i)]`, with B(x) the closed ball
    about x that reaches to its k-th nearest neighbour in x's own set. For two sets of n images of one distribution
    density is 1 and coverage 1 - prod_{l=1..k} (n - l) / (2n - l), near 1 - 2^-k, on average.

    Args:
        fake: (N, D) features.
        real: (M, D) features.
        k: neighbour to which the balls reach.

    Returns:
        "precision", "recall", "coverage" in [0, 1]; "density" at least 0, above 1 where fakes crowd among reals.

    Raises:
        ValueError: k is not below the size of each set, or the sets have not the same D.
    """
    if fake.ndim != 2 or real.ndim != 2 or fake.shape[1] != real.shape[1]:
        raise ValueError(f"needs (N, D) and (M, D) features, got {fake.shape} and {real.shape}")
    if not 1 <= k < min(len(fake), len(real)):
        raise ValueError(f"k={k} must be from 1 to one less than the smaller set has, {min(len(fake), len(real)) - 1}")
    between = squared_distances(fake, real)
    in_real = between <= _squared_radii(real, k)[None, :] * _RIM
    in_fake = between <= _squared_radii(fake, k)[:, None] * _RIM
    return {
        "precision": float(in_real.any(1).mean()),
        "recall": float(in_fake.any(0).mean()),
        "density": float(in_real.sum() / (k * len(fake))),
        "coverage": float(in_real.any(0).mean()),
    }


def squared_distances(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Squared Euclidean distances between all vectors of two sets.

    Args:
        a: (N, D).
        b: (M, D).

    Returns:
        (N, M), at least 0, good to about 1e-15 of the vectors' squared lengths.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    out: NDArray[np.float64] = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * (x @ y.T)
    return np.maximum(out, 0, out=out)


def _squared_radii(x: NDArray[Any], k: int) -> NDArray[np.float64]:
    """(N,) squared distance of each vector to its k-th nearest other."""
    distances = squared_distances(x, x)
    np.fill_diagonal(distances, np.inf)
    out: NDArray[np.float64] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return out

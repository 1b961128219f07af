"""The Fréchet distance between two sets of feature vectors; on Inception's features it is called FID."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

PROTOCOL = (
    "Fréchet distance of Heusel 2017, eq. 6: means and sample covariances (N - 1) of the features, in float64. It "
    "falls with N, so it is read against the same distance between two sets of as many real images"
)
"""Said beside every Fréchet distance."""


def frechet_distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Fréchet distance between the Gaussians that two sets of features have as their moments (Heusel 2017, eq. 6).

    `FD = |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`, mu mean, S covariance. The trace of the root is the sum
    of the roots of the eigenvalues of S_a S_b. With S_a = A^T A and S_b = B^T B, A and B the centred features over
    sqrt(N - 1), those roots that are not zero are the singular values of A B^T, a matrix of as many rows and columns as
    there are images or features, whichever is fewer. No root is taken, so that covariances without full rank need no
    care and lose no digits.

    Args:
        a: (N, D) features.
        b: (M, D) features.

    Returns:
        The distance, at least 0; symmetric in its arguments.

    Raises:
        ValueError: a set has fewer than two vectors, or the sets have not the same D.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"needs (N, D) and (M, D) with N and M at least 2, got {a.shape} and {b.shape}")
    (mean_a, root_a), (mean_b, root_b) = _moments(a), _moments(b)
    traces = root_a.square().sum() + root_b.square().sum()
    distance = (mean_a - mean_b).square().sum() + traces - 2 * torch.linalg.svdvals(root_a @ root_b.T).sum()
    return max(0.0, float(distance))


def _moments(features: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """(D,) mean, and a root R of the covariance, (N or D, D), whichever is fewer: R^T R."""
    x = torch.from_numpy(features).double()
    mean = x.mean(0)
    root = (x - mean) / (len(x) - 1) ** 0.5
    return mean, root if len(x) <= x.shape[1] else torch.linalg.qr(root, mode="r")[1]

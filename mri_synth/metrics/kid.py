"""Kernel distance between two sets of feature vectors; on Inception's features it is called KID.

Every estimate here is one weighted sum over pairs of images: weights of one give the estimate from all images, weights
that count how often a subject was drawn give the bootstrap, weights of zero and one the subsets of the usual protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_synth.metrics.scores import LEAST_SUBJECTS

PROTOCOL = (
    "KID of Binkowski 2018: unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3 "
    "from all images at once, so that it may be negative; two images of one subject count as any other pair, which "
    "lifts it where a subject's images are alike; interval: 2.5 % to 97.5 % of a bootstrap that draws real images by "
    "subject and fake images one by one, and forms no pair of an image, or a subject, with its own copy"
)
"""Said beside every KID."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Kernels:
    """The kernel between all images of two sets.

    Attributes:
        fake: (N, N), between fake images.
        real: (M, M), between real images.
        cross: (N, M), between fake and real.
    """

    fake: Array
    real: Array
    cross: Array


def kernels(fake: NDArray[Any], real: NDArray[Any]) -> Kernels:
    """The cubic polynomial kernel `k(x, y) = (x.y / D + 1)^3` between all feature vectors (Binkowski 2018, sec. 4).

    Args:
        fake: (N, D) features.
        real: (M, D) features.

    Returns:
        Their kernels, float64.

    Raises:
        ValueError: a set has fewer than two vectors, or the sets have not the same D.
    """
    if fake.ndim != 2 or real.ndim != 2 or fake.shape[1] != real.shape[1] or min(len(fake), len(real)) < 2:
        raise ValueError(f"needs (N, D) and (M, D) with N and M at least 2, got {fake.shape} and {real.shape}")
    x, y = fake.astype(np.float64), real.astype(np.float64)
    return Kernels(*(_cubic(a @ b.T, x.shape[1]) for a, b in ((x, x), (y, y), (x, y))))


def _cubic(products: Array, dim: int) -> Array:
    """The kernel in place of its inner products: these matrices are most of the memory of a comparison."""
    products /= dim
    products += 1
    products *= np.square(products)
    return products


def kid(k: Kernels) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton 2012, eq. 3).

    `KID = mean_{i != j} k(f_i, f_j) + mean_{i != j} k(r_i, r_j) - 2 mean_{i, j} k(f_i, r_j)`, f fake, r real

    Args:
        k: kernels of the two sets.

    Returns:
        The estimate; 0 on average for sets of one distribution, so that it may be negative.
    """
    return float(_estimates(k, np.ones((1, len(k.fake))), np.ones((1, len(k.real))))[0])


def kid_interval(
    k: Kernels, subjects: Sequence[str] | NDArray[Any] | None, draws: int = 1000, seed: int = 0
) -> list[float] | None:
    """Bootstrap interval of `kid`: real images are drawn by subject, fake images one by one.

    A plain bootstrap of this estimate is biased, since an image drawn twice makes a pair with itself, whose kernel is
    the largest there is. So no image is paired with its own copy, and no subject with its own copy.

    Args:
        k: kernels of the two sets.
        subjects: (M,) whose image each real one is; None where that is unknown: then images are drawn one by one.
        draws: resamples.
        seed: of the resamples.

    Returns:
        [2.5 %, 97.5 %] of the resamples; None for fewer subjects, or fake images, than `LEAST_SUBJECTS`.
    """
    groups = np.arange(len(k.real)) if subjects is None else np.unique(np.asarray(subjects), return_inverse=True)[1]
    fakes, count = len(k.fake), int(groups.max()) + 1
    if min(fakes, count) < LEAST_SUBJECTS:
        return None
    rng = np.random.default_rng(seed)
    drawn_real = rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    drawn_fake = rng.multinomial(fakes, np.full(fakes, 1 / fakes), draws).astype(np.float64)
    values = _estimates(k, drawn_fake, drawn_real, groups)
    return [float(q) for q in np.nanquantile(values, [0.025, 0.975])]


def kid_subsets(k: Kernels, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID as it is usually printed: mean and spread over random subsets (torchmetrics', torch-fidelity's protocol).

    The spread says nothing of the error of the mean: subsets overlap, and it vanishes when they are the whole sets.

    Args:
        k: kernels of the two sets.
        subsets: how many.
        subset_size: images of each set in a subset, at most as many as there are.
        seed: of the subsets; the same as after `torch.manual_seed(seed)` in torchmetrics.

    Returns:
        Mean and standard deviation (over `subsets`, not one less).

    Raises:
        ValueError: a subset would be larger than a set, or hold fewer than two images.
    """
    fakes, reals = len(k.fake), len(k.real)
    if not 2 <= subset_size <= min(fakes, reals):
        raise ValueError(
            f"subset_size must be from 2 to {min(fakes, reals)}, the smaller set's size; got {subset_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn_fake, drawn_real = np.zeros((subsets, fakes)), np.zeros((subsets, reals))
    for row in range(subsets):
        drawn_real[row, torch.randperm(reals, generator=generator)[:subset_size].numpy()] = 1
        drawn_fake[row, torch.randperm(fakes, generator=generator)[:subset_size].numpy()] = 1
    values = _estimates(k, drawn_fake, drawn_real)
    return float(values.mean()), float(values.std())


def _estimates(k: Kernels, drawn_fake: Array, drawn_real: Array, groups: NDArray[Any] | None = None) -> Array:
    """(S,) estimates from (S, N) and (S, G) numbers of times that each fake image and each real group was drawn."""
    groups = np.arange(len(k.real)) if groups is None else groups
    pairs = drawn_fake.sum(1) * (drawn_real @ np.bincount(groups))
    cross = ((drawn_fake @ sums_by_group(k.cross.T, groups).T) * drawn_real).sum(1) / pairs
    fake, real = _within(k.fake, drawn_fake, np.arange(len(k.fake))), _within(k.real, drawn_real, groups)
    estimates: Array = fake + real - 2 * cross
    return estimates


def _within(kernel: Array, drawn: Array, groups: NDArray[Any]) -> Array:
    """(S,) mean kernel over pairs of different images, each pair as often as it was drawn.

    Two images of different groups g and h are paired drawn_g drawn_h times, two of one group drawn_g times: each copy
    of a group has its own pairs, and none with another copy.
    """
    sums = sums_by_group(sums_by_group(kernel, groups).T, groups)
    sizes, itself = (np.bincount(groups, weights) for weights in (None, np.diag(kernel)))
    own = np.diag(sums) - itself
    total = ((drawn @ sums) * drawn).sum(1) - np.square(drawn) @ np.diag(sums) + drawn @ own
    count = np.square(drawn @ sizes) - np.square(drawn) @ np.square(sizes) + drawn @ (np.square(sizes) - sizes)
    # one image drawn every time: no pair
    means: Array = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return means


def sums_by_group(rows: Array, groups: NDArray[Any]) -> Array:
    """Rows of one group added up.

    Args:
        rows: (N, M).
        groups: (N,) of 0 to G - 1, none of them missing.

    Returns:
        (G, M).
    """
    order = np.argsort(groups, kind="stable")
    if len(order) == int(groups.max()) + 1:  # each has one row
        return rows if (groups == np.arange(len(groups))).all() else rows[order]
    starts = np.searchsorted(groups[order], np.arange(int(groups.max()) + 1))
    sums: Array = np.add.reduceat(rows[order], starts, axis=0)
    return sums

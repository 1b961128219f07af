"""Does a model copy? Fakes' nearest neighbours in the training set against those among images it never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mri_synth.metrics.kid import sums_by_group
from mri_synth.metrics.prdc import squared_distances
from mri_synth.metrics.scores import LEAST_SUBJECTS

PROTOCOL = (
    "nearest neighbours in Euclidean distance; copy_rate: probability that a fake lies nearer its nearest training "
    "image than a held-out real image lies to its own (0.5 without copying, 1 for copies; blurred fakes lie nearer to "
    "everything and also raise it), interval from a bootstrap of fakes, and of held-out images by subject; "
    "closer_to_train: share of fakes whose nearest real image is in train and not held out, corrected for the sizes of "
    "the two sets (0.5 without copying, whatever the fakes' quality); near_duplicates: share of fakes no farther from "
    "train than the nearest 1 % of held-out images are"
)
"""Said beside every memorisation figure."""

PIXELS = 32
"""Longer sides are averaged down to this before images are compared pixel by pixel."""

Array = NDArray[np.float64]


def nearest(
    x: NDArray[Any], reference: NDArray[Any], rows: int = 1024, columns: int = 8192
) -> tuple[NDArray[np.int64], Array]:
    """Nearest reference vector of each vector.

    Args:
        x: (N, D).
        reference: (M, D).
        rows: of x at once; this and the next bound the memory.
        columns: of the reference at once.

    Returns:
        (N,) index into `reference` (the first of equals), and (N,) Euclidean distance, exactly 0 for a copy.
    """
    parts = []
    for start in range(0, len(x), rows):
        found, least = [], []
        for first in range(0, len(reference), columns):
            squared = squared_distances(x[start : start + rows], reference[first : first + columns])
            found.append(first + squared.argmin(1))
            least.append(squared.min(1))
        parts.append(np.take_along_axis(np.stack(found), np.stack(least).argmin(0)[None], 0)[0])
    index = np.concatenate(parts)
    return index, np.linalg.norm(x.astype(np.float64) - reference[index].astype(np.float64), axis=1)


def memorisation(
    fake: NDArray[Any],
    train: NDArray[Any],
    held_out: NDArray[Any],
    subjects: Sequence[str] | NDArray[Any] | None = None,
    show: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether fakes lie nearer to the training images than images that were not trained on do.

    `copy_rate = mean_{f, h} [d(f) < d(h)] + [d(f) = d(h)] / 2`, d the distance to the nearest training image, f fake,
    h held out. `closer_to_train = (c / T) / (c / T + (1 - c) / H)`, c the share of fakes nearer to one of T training
    images than to any of H held-out ones. `near_duplicates = mean_f [d(f) <= 1st percentile of d(h)]`.

    Args:
        fake: (N, D) vectors: features, or pixels (`pixel_vectors`).
        train: (T, D), of all training images.
        held_out: (H, D).
        subjects: (H,) whose image each held-out one is; None where that is unknown.
        show: fakes listed in "pairs".
        seed: of the bootstrap.

    Returns:
        "copy_rate"; "copy_rate_ci" [2.5 %, 97.5 %] or None for fewer than `LEAST_SUBJECTS` subjects or fakes;
        "closer_to_train"; "near_duplicates", "near_duplicates_held_out" (the same share of held-out images, what is to
        be expected) and "threshold"; medians of d(f), d(h); n of each set; "pairs": the fakes nearest to a training
        image, nearest first, each with the indices "fake", "train", "held_out" and the distances "to_train" and
        "to_held_out".

    Raises:
        ValueError: a set is empty.
    """
    if min(len(fake), len(train), len(held_out)) < 1:
        raise ValueError(f"no set may be empty, got {len(fake)} fake, {len(train)} train, {len(held_out)} held-out")
    in_train, to_train = nearest(fake, train)
    in_held_out, to_held_out = nearest(fake, held_out)
    _, reference = nearest(held_out, train)
    copy_rate, copy_rate_ci = _copy_rate(to_train, reference, subjects, seed)
    share = float((to_train < to_held_out).mean() + (to_train == to_held_out).mean() / 2)
    per_train, per_held_out = share / len(train), (1 - share) / len(held_out)
    threshold = float(np.quantile(reference, 0.01, method="lower"))
    order = np.argsort(to_train, kind="stable")[:show]
    return {
        "copy_rate": copy_rate,
        "copy_rate_ci": copy_rate_ci,
        "closer_to_train": per_train / (per_train + per_held_out),
        "near_duplicates": float((to_train <= threshold).mean()),
        "near_duplicates_held_out": float((reference <= threshold).mean()),
        "threshold": threshold,
        "median_fake_to_train": float(np.median(to_train)),
        "median_held_out_to_train": float(np.median(reference)),
        "n_fake": len(fake),
        "n_train": len(train),
        "n_held_out": len(held_out),
        "pairs": [
            {
                "fake": int(i),
                "train": int(in_train[i]),
                "held_out": int(in_held_out[i]),
                "to_train": float(to_train[i]),
                "to_held_out": float(to_held_out[i]),
            }
            for i in order
        ],
    }


def pixel_vectors(images: Tensor) -> NDArray[np.float32]:
    """Images as vectors whose Euclidean distance is the root mean squared difference of their intensities on [0, 1].

    Args:
        images: (B, C, H, W) in [-1, 1]; sides above `PIXELS` are averaged down to it.

    Returns:
        (B, D) float32.
    """
    size = (min(PIXELS, images.shape[2]), min(PIXELS, images.shape[3]))
    flat = adaptive_avg_pool2d((images.detach().float().cpu() + 1) / 2, size).flatten(1)
    out: NDArray[np.float32] = (flat / flat.shape[1] ** 0.5).numpy()
    return out


def _copy_rate(
    fake: Array, held_out: Array, subjects: Sequence[str] | NDArray[Any] | None, seed: int, draws: int = 1000
) -> tuple[float, list[float] | None]:
    """Mean over all pairs of `[fake < held_out] + [fake = held_out] / 2`, and [2.5 %, 97.5 %] of it in a bootstrap.

    Fakes and held-out subjects are drawn anew. No table of pairs is made, which would be large: how often the fakes
    below a held-out distance were drawn is read off the running sum over the fakes in order of distance.
    """
    order = np.argsort(fake)
    below, up_to = (np.searchsorted(fake, held_out, side, order) for side in ("left", "right"))
    rate = float((below + up_to).sum() / 2 / (len(fake) * len(held_out)))
    groups = np.arange(len(held_out)) if subjects is None else np.unique(np.asarray(subjects), return_inverse=True)[1]
    fakes, count = len(fake), int(groups.max()) + 1
    if min(fakes, count) < LEAST_SUBJECTS:
        return rate, None
    rng = np.random.default_rng(seed)
    drawn_fake = rng.multinomial(fakes, np.full(fakes, 1 / fakes), draws)
    drawn_real = rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    drawn = np.zeros((fakes + 1, draws))
    np.cumsum(drawn_fake.T[order], axis=0, out=drawn[1:])
    sums = sums_by_group((drawn[below] + drawn[up_to]) / 2, groups).T
    means = (sums * drawn_real).sum(1) / (fakes * (drawn_real @ np.bincount(groups)))
    return rate, [float(q) for q in np.quantile(means, [0.025, 0.975])]

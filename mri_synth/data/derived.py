"""Sources made from the target itself, for data without pairs: tissue clusters, edges, and the class as a plane."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mri_synth.data.prepare import FOREGROUND

LEVELS = 128
"""Grey levels that tissue clusters are told by: steps of 1/64 of [-1, 1]."""
WEAK, STRONG = 0.1, 0.2
"""Canny's two thresholds as scikit-image has them (`skimage.feature.canny`): Sobel sums of an image in [0, 1]."""
REACH = 8
"""Pixels that a weak edge may be away from a strong one, along the edge."""
_GAUSS = (0.00443305, 0.05400558, 0.24203623, 0.39905028, 0.24203623, 0.05400558, 0.00443305)  # sigma 1, to 3 sigma


def channels(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the channels of `derive`: tissue, edges, and one of each class.

    Args:
        classes: of the data, in index order.

    Returns:
        "tissue", "edges", "class:NAME", ...
    """
    return ("tissue", "edges", *(f"class:{name}" for name in classes))


def derive(target: Tensor, label: Tensor, classes: Sequence[str]) -> Tensor:
    """A condition from the image that is to be made of it: where which tissue lies, where edges are, which class it is.

    Args:
        target: (B, 1, H, W) in [-1, 1].
        label: (B,) int64, index into `classes`; -1 where unlabelled.
        classes: names in index order.

    Returns:
        (B, S, H, W) float32 in [-1, 1], the channels of `channels(classes)`. Tissue is -1 for the background and -1/3,
        1/3, 1 for the clusters from dark to bright; an edge is 1 and the rest -1; the plane of an item's class is 1
        and those of the others -1 (of an unlabelled item all).
    """
    image = target.float()
    planes = F.one_hot(label + 1, len(classes) + 1)[:, 1:].to(image)  # -1 is of no class
    planes = (2 * planes - 1)[:, :, None, None].expand(-1, -1, *image.shape[2:])
    return torch.cat([tissue(image), edges(image), planes], 1)


def tissue(image: Tensor) -> Tensor:
    """Each slice's foreground in three clusters by intensity, as CSF, grey and white matter are told in T1.

    `argmin over a < b of sum_k sum_{i in k} (x_i - m_k)^2`, k the levels up to a, up to b, and above: one-dimensional
    k-means, solved exactly by trying every pair of thresholds on the histogram, which needs no start and no luck.
    Equal to Otsu's two thresholds (Otsu 1979, eq. 19; Liu and Yu 2009). Per slice, so that it needs nothing but the
    image.

    Args:
        image: (B, 1, H, W) in [-1, 1].

    Returns:
        (B, 1, H, W) float32: -1 background (below 10 % of the range), then -1/3, 1/3, 1 from dark to bright.
    """
    level = ((image.flatten(1) + 1) * (LEVELS / 2)).clamp(0, LEVELS - 1).long()
    inside = image.flatten(1) > FOREGROUND
    counts = torch.zeros(len(image), LEVELS, dtype=torch.float64, device=image.device)
    counts.scatter_add_(1, level, inside.double())
    number = counts.cumsum(1)
    total = (counts * torch.arange(LEVELS, device=image.device)).cumsum(1)
    low, high = torch.triu_indices(LEVELS, LEVELS, 1, device=image.device)

    def part(n: Tensor, s: Tensor) -> Tensor:  # the squares that a cluster's mean explains
        return s.square() / n.clamp(min=1)

    explained = part(number, total)[:, low]
    explained += part(number[:, high] - number[:, low], total[:, high] - total[:, low])
    explained += part(number[:, -1:] - number, total[:, -1:] - total)[:, high]
    best = explained.argmax(1)
    above = (level > low[best][:, None]).float() + (level > high[best][:, None])
    return torch.where(inside, (2 * above - 1) / 3, -1.0).view_as(image)


def edges(image: Tensor) -> Tensor:
    """Thin edges: maxima of the gradient across the edge, strong or joined to strong ones (Canny 1986).

    `g = |sobel(gauss * x)|`, an edge where g is not less than either neighbour along its direction (to the nearest of
    four) and above WEAK, and a pixel above STRONG lies within REACH along such pixels. x in [0, 1], Gauss of sigma 1,
    the borders repeated; sigma and thresholds as in `skimage.feature.canny`.

    Args:
        image: (B, 1, H, W) in [-1, 1].

    Returns:
        (B, 1, H, W) float32: 1 on an edge, -1 elsewhere.
    """
    smooth = _blurred(_blurred(F.pad((image + 1) / 2, (4, 4, 4, 4), mode="replicate"), 2), 3)  # a border of one remains
    across = smooth[..., 2:] - smooth[..., :-2]
    along = smooth[..., 1:-1].mul(2).add_(smooth[..., :-2]).add_(smooth[..., 2:])
    dx = across[..., 1:-1, :].mul(2).add_(across[..., :-2, :]).add_(across[..., 2:, :])
    dy = along[..., 2:, :] - along[..., :-2, :]
    size = (dx.square() + dy.square()).sqrt_()
    thin = (size >= WEAK) & _ridge(size, dx, dy)
    found = thin & (size >= STRONG)
    for _ in range(REACH):
        found = _dilated(found) & thin
    return found.float().mul_(2).sub_(1)


def _blurred(x: Tensor, axis: int) -> Tensor:
    """Seven shifted sums: for one channel several times as fast as a convolution."""
    length = x.shape[axis] - len(_GAUSS) + 1
    out = x.narrow(axis, 0, length) * _GAUSS[0]
    for k, weight in enumerate(_GAUSS[1:], 1):
        out.add_(x.narrow(axis, k, length), alpha=weight)
    return out


def _dilated(x: Tensor) -> Tensor:
    """Bool, grown by one pixel in all eight directions; bytes, so several times as fast as pooling."""
    wide = F.pad(x, (1, 1, 1, 1))
    rows = wide[..., :-2] | wide[..., 1:-1] | wide[..., 2:]
    return rows[..., :-2, :] | rows[..., 1:-1, :] | rows[..., 2:, :]


def _ridge(size: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """(B, 1, H, W) bool: not less than the neighbours before and behind along the gradient; of equals the latter."""
    wide = F.pad(size, (1, 1, 1, 1))
    height, width = size.shape[2:]

    def beats(down: int, to_right: int) -> Tensor:
        before = wide[..., 1 - down : 1 - down + height, 1 - to_right : 1 - to_right + width]
        behind = wide[..., 1 + down : 1 + down + height, 1 + to_right : 1 + to_right + width]
        return (size >= before) & (size > behind)

    steep, x, y = 0.41421356, dx.abs(), dy.abs()  # tan 22.5 degrees
    diagonal = torch.where(dx * dy > 0, beats(1, 1), beats(1, -1))
    return torch.where(y <= steep * x, beats(0, 1), torch.where(x <= steep * y, beats(1, 0), diagonal))

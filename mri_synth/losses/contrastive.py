"""Loss and figures of an encoder that learns from two views of each image; row i of both belongs to image i."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def standardise(z: Tensor) -> Tensor:
    """Embeddings with mean 0 and variance 1 over the batch in every dimension.

    `(z - mean_B z) / sqrt(var_B z + 1e-4)`, a batch norm without weights, as SimCLR has before and after the
    projection. Without it, images as alike as slices of brains start with equal embeddings, and stay there.

    Args:
        z: (B, D), all views of the batch, of all processes; B at least 2.

    Returns:
        (B, D) float32.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.float()
        variance, mean = torch.var_mean(z, 0)
        return (z - mean) * torch.rsqrt(variance + 1e-4)


def nt_xent(z_1: Tensor, z_2: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding an image's other view among all other views of the batch (Chen 2020, eq. 1).

    `L_i = -1/2 sum_v log(exp(s(z_i^v, z_i^w) / tau) / sum_k exp(s(z_i^v, z_k) / tau))`, s the cosine, w the other view
    of image i, k over all 2 B - 1 views but the one itself

    Args:
        z_1: (B, D) embeddings of the first views.
        z_2: (B, D) of the second views.
        temperature: tau > 0.

    Returns:
        (B,) float32, at least 0; log(2 B - 1) when all embeddings are equal.
    """
    with torch.autocast(z_1.device.type, enabled=False):
        z = F.normalize(torch.cat([z_1.float(), z_2.float()]), dim=1)
        n = len(z_1)
        scores = (z @ z.T / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -torch.inf)
        others = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(scores, others, reduction="none").view(2, n).mean(0)


def retrieved(f_1: Tensor, f_2: Tensor, part: int = 1024) -> Tensor:
    """Which first view is nearest to each second view, by cosine.

    `argmax_j s(f_i^2, f_j^1)`; the first one of several that are equally near

    Args:
        f_1: (N, D) features of the first views.
        f_2: (M, D) of the second views.
        part: second views at a time; bounds the memory.

    Returns:
        (M,) int64 in [0, N).
    """
    gallery = F.normalize(f_1.float(), dim=1)
    return torch.cat([(F.normalize(q.float(), dim=1) @ gallery.T).argmax(1) for q in f_2.split(part)])


def top1(f_1: Tensor, f_2: Tensor) -> Tensor:
    """Share of images whose second view is nearer to their own first view than to that of any other image.

    `top1 = mean_i [argmax_j s(f_i^2, f_j^1) = i]`, s the cosine of features; 1 / N by chance

    Args:
        f_1: (N, D) features of the first views of all images of a split.
        f_2: (N, D) of the second views.

    Returns:
        Scalar in [0, 1].
    """
    return (retrieved(f_1, f_2) == torch.arange(len(f_1), device=f_1.device)).float().mean()


def feature_std(features: Tensor) -> Tensor:
    """How much features differ between images: about 1, and near 0 when the encoder has collapsed.

    `mean_d std_N f_d`

    Args:
        features: (N, D), scaled to variance 1 over the training images while they differ at all.

    Returns:
        Scalar, at least 0; 0 for one image.
    """
    return features.float().std(0, correction=0).mean()

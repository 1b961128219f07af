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


def image_text(z_image: Tensor, z_text: Tensor, scale: Tensor | float, fits: Tensor) -> Tensor:
    """How well images and captions find each other, where a caption may be true of several images.

    `L_i = 1/2 (l_i + l'_i), l_i = mean_{p in P_i} -log(exp(k s_ip) / (exp(k s_ip) + sum_{n not in P_i} exp(k s_in)))`,
    s_ij the cosine of image i and caption j, P_i the captions that are true of image i, k the scale; l' the same from
    captions to images. What is true is drawn nearer and never pushed away; where each caption is true of its own image
    alone this is the loss of CLIP (Radford et al. 2021, arXiv:2103.00020, fig. 3).

    Args:
        z_image: (B, D) embeddings of images.
        z_text: (B, D) of their captions.
        scale: k > 0, one over the temperature.
        fits: (B, B) bool, whether caption j is true of image i; the diagonal is true.

    Returns:
        (B,) float32, at least 0; log(B) when all embeddings are equal and each caption is of its image alone.
    """
    with torch.autocast(z_image.device.type, enabled=False):
        scores = scale * (F.normalize(z_image.float(), dim=1) @ F.normalize(z_text.float(), dim=1).T)
        return (_to_what_fits(scores, fits) + _to_what_fits(scores.T, fits.T)) / 2


def _to_what_fits(scores: Tensor, fits: Tensor) -> Tensor:
    """(B,): -log softmax of each that fits among itself and all that do not, its mean over those that fit."""
    others = scores.masked_fill(fits, torch.finfo(scores.dtype).min / 2).logsumexp(1, keepdim=True)
    return (F.softplus(others - scores) * fits).sum(1) / fits.sum(1)


def where_lesion(log_odds: Tensor, mask: Tensor, weight: float = 5.0) -> Tensor:
    """How well a coarse map says where a lesion is.

    `-mean_c [w m_c log p_c + (1 - m_c) log(1 - p_c)]`, p the sigmoid of the map, m_c 1 where place c has any of the
    lesion, w for that there are few such places

    Args:
        log_odds: (B, 1, h, w) of the places.
        mask: (B, 1, H, W) in {0, 1}, H and W at least h and w.
        weight: w.

    Returns:
        (B,) float32, at least 0.
    """
    with torch.autocast(log_odds.device.type, enabled=False):
        places = F.adaptive_max_pool2d(mask.float(), log_odds.shape[2:])
        each = F.binary_cross_entropy_with_logits(
            log_odds.float(), places, reduction="none", pos_weight=log_odds.new_tensor(weight).float()
        )
        return each.mean((1, 2, 3))


def recall(scores: Tensor, fits: Tensor, k: int) -> Tensor:
    """Whether something that fits is among the k best.

    `R@k_i = [max_{j in top k of s_i} fits_ij]`

    Args:
        scores: (N, M) of each of N queries with M candidates.
        fits: (N, M) bool.
        k: how many are looked at.

    Returns:
        (N,) float32, 0 or 1; NaN where nothing fits.
    """
    best = scores.topk(min(k, scores.shape[1]), 1).indices
    hit = fits.gather(1, best).any(1).float()
    return torch.where(fits.any(1), hit, torch.nan)

"""How far an image is from what was asked for, on the sphere of a guide's embeddings."""

from __future__ import annotations

import torch
from torch import Tensor


def spherical_distance(u: Tensor, v: Tensor) -> Tensor:
    """Squared distance on the unit sphere, as the published notebooks of VQGAN and CLIP measure it (Crowson 2021).

    `d(u, v) = 2 arcsin(|u - v| / 2)^2 = a^2 / 2`, a the angle between u and v

    The angle is taken from `a = 2 atan2(|u - v|, |u + v|)`, the same with a finite gradient at both ends.

    Args:
        u: (..., D) of unit length.
        v: (..., D) of unit length, broadcast.

    Returns:
        (...) float32, from 0 to pi^2 / 2.
    """
    with torch.autocast(u.device.type, enabled=False):
        u, v = u.float(), v.float()
        half = torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))
        return 2 * half.square()


def guidance_loss(embedded: Tensor, prompts: Tensor, weights: Tensor) -> Tensor:
    """Weighted distances of an image's cutouts from its prompts (Crowson 2021, `Prompt.forward`).

    `L = sum_p w_p mean_k d(e_k, t_p)`, e_k the embedding of cutout k, t_p that of prompt p; w_p below 0 drives away

    Args:
        embedded: (B, K, D) of unit length, of K cutouts.
        prompts: (B, P, D) of unit length.
        weights: (B, P); 0 where an image has fewer prompts than others.

    Returns:
        (B,) float32.
    """
    distances = spherical_distance(embedded[:, :, None], prompts[:, None]).mean(1)
    return (weights * distances).sum(1)


def similarity(embedded: Tensor, prompts: Tensor, weights: Tensor) -> Tensor:
    """Mean cosine of an image's cutouts and its prompts, those which it is driven away from counted negative.

    `s = sum_p w_p mean_k cos(e_k, t_p) / sum_p |w_p|`

    Args:
        embedded: (B, K, D) of unit length.
        prompts: (B, P, D) of unit length.
        weights: (B, P).

    Returns:
        (B,) float32 in [-1, 1].
    """
    with torch.autocast(embedded.device.type, enabled=False):
        cosine = torch.einsum("bkd,bpd->bp", embedded.float(), prompts.float()) / embedded.shape[1]
        return (weights * cosine).sum(1) / weights.abs().sum(1).clamp(min=1e-12)


def anchor_loss(z: Tensor, start: Tensor) -> Tensor:
    """How far latents have gone from where they started (Crowson 2021).

    `L_init = mean (z - z_0)^2 / 2`

    Args:
        z: (B, ...).
        start: the same shape.

    Returns:
        (B,) float32.
    """
    return (z.float() - start.float()).square().flatten(1).mean(1) / 2


def structure_loss(image: Tensor, start: Tensor, edge: float = 0.1) -> Tensor:
    """How far an image's edges are from those of its start, whatever their sign and strength.

    `L_structure = mean_x 1 - (|g.g_0| + e^2)^2 / ((|g|^2 + e^2) (|g_0|^2 + e^2))`, g and g_0 the gradients at x of the
    image and of its start: the normalised gradient fields of Haber and Modersitzki 2006 (MICCAI, eq. 3), made to
    register images of different contrasts

    Args:
        image: (B, C, H, W) in [-1, 1]; of the mean of its channels.
        start: the same shape.
        edge: e, difference of neighbouring pixels at which an edge begins.

    Returns:
        (B,) float32 in [0, 1]; 0 where gradients are parallel or opposite, and equally strong where they are faint.
    """
    with torch.autocast(image.device.type, enabled=False):
        g, g_0 = (_gradient(x.float().mean(1)) for x in (image, start))
        both = ((g * g_0).sum(1).abs() + edge**2).square()
        return (1 - both / ((g.square().sum(1) + edge**2) * (g_0.square().sum(1) + edge**2))).mean((1, 2))


def _gradient(x: Tensor) -> Tensor:
    """(B, H, W) to (B, 2, H - 2, W - 2), half the differences of the two neighbours along each axis."""
    return torch.stack([x[:, 2:, 1:-1] - x[:, :-2, 1:-1], x[:, 1:-1, 2:] - x[:, 1:-1, :-2]], 1) / 2

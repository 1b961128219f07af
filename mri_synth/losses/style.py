"""Style transfer's losses (Gatys, Ecker and Bethge 2016, "Image style transfer using convolutional neural networks").

All give one number an item, so that jobs in one batch do not see each other; to the last bit: sums are taken in two
steps, since torch sums what leaves a single number by all threads, in an order that a batch of two does not have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gram(features: Tensor, where: Tensor | None = None) -> Tensor:
    """Which features occur together, wherever that is: what is called style.

    `G_ij = sum_p m_p F_ip F_jp / sum_p m_p`, F the features of a layer, p its positions, m a map of the region that
    counts (all of it without; Gatys et al. 2016, eq. 3, over the number of positions; regions: Gatys et al. 2017,
    "Controlling perceptual factors", eq. 5)

    Args:
        features: (B, C, h, w).
        where: (B, 1, h, w), not negative; None: everywhere.

    Returns:
        (B, C, C) float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        f = features.permute(0, 2, 3, 1).flatten(1, 2)  # of features in channels_last a view
        m = f.new_ones(len(f), 1, 1, dtype=torch.float32) if where is None else where.float().flatten(2).mT
        count = m.sum(1, keepdim=True).clamp(min=1e-6) if where is not None else m * f.shape[1]
        out: Tensor = _Gram.apply(f, m, count)  # type: ignore[no-untyped-call]
        return out


class _Gram(torch.autograd.Function):
    """Products of (B, P, C) features in float32, their gradient in the type and the order of the features: one product
    in place of the two of autograd, which does not know that both factors are the same. Item by item, since products
    of a batch are summed up in another order than those of one."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, m: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(f, m, count)
        wide = f.float()
        return torch.stack([a.mT @ b for a, b in zip(wide, wide if m.shape[1] == 1 else wide * m, strict=True)]) / count

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        f, m, count = ctx.saved_tensors
        out = torch.stack([a @ b for a, b in zip(f, ((d + d.mT) / count).to(f.dtype), strict=True)])
        return (out if m.shape[1] == 1 else out * m.to(f.dtype)), None, None


def style_loss(g: Tensor, target: Tensor) -> Tensor:
    """How unlike two styles are in one layer.

    `E = sum_ij (G_ij - A_ij)^2 / (4 N^2)`, N the channels of the layer (Gatys et al. 2016, eq. 4, whose M^2 is in the
    Gram matrices of `gram`)

    Args:
        g: (B, N, N) of the canvas.
        target: (B, N, N) of the style image.

    Returns:
        (B,) float32.
    """
    return (g.float() - target.float()).square().sum(2).sum(1) / (4 * g.shape[1] ** 2)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """How far the content of an image moved.

    `L = sum_ip (F_ip - P_ip)^2 / (2 N M)`, N the channels and M the positions of the layer (Gatys et al. 2016, eq. 1,
    over the number of features)

    Args:
        features: (B, N, h, w) of the canvas.
        target: (B, N, h, w) of the content image.

    Returns:
        (B,) float32.
    """
    return (features.float() - target.float()).square().mean((2, 3)).mean(1) / 2


def total_variation(x: Tensor) -> Tensor:
    """How rough an image is.

    `TV = mean_ij (x_i+1,j - x_ij)^2 + mean_ij (x_i,j+1 - x_ij)^2` (Mahendran and Vedaldi 2015, "Understanding deep
    image representations by inverting them", section 2, with beta = 2)

    Args:
        x: (B, C, H, W).

    Returns:
        (B,) float32.
    """
    x = x.float()
    down, across = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    return down.square().mean(3).mean((1, 2)) + across.square().mean(3).mean((1, 2))


def quantiles(features: Tensor, where: Tensor | None = None, count: int = 256) -> Tensor:
    """Values of each channel in order, at evenly spaced shares of the positions.

    Args:
        features: (B, C, h, w).
        where: (B, 1, h, w); positions with at least half count, and all where none has; None: all.
        count: how many quantiles.

    Returns:
        (B, C, count) float32, ascending, differentiable.
    """
    rows = []
    for k, f in enumerate(features.float().flatten(2)):
        here = None if where is None else where[k].flatten() >= 0.5
        chosen = f if here is None or not here.any() else f[:, here]
        ordered = chosen.sort(1).values
        at = torch.linspace(0, ordered.shape[1] - 1, count, device=f.device)
        low, high = at.floor().long(), at.ceil().long()
        rows.append(torch.lerp(ordered[:, low], ordered[:, high], at - low))
    return torch.stack(rows)


def histogram_loss(q: Tensor, target: Tensor) -> Tensor:
    """How unlike the histograms of a layer's channels are.

    `H = mean_ik (q_ik - t_ik)^2 / 2`, q and t the quantiles of channel i (after Risser et al. 2017, "Stable and
    controllable neural texture synthesis and style transfer using histogram losses", section 4.1, with quantiles for
    histogram matching)

    Args:
        q: (B, C, K) of the canvas, of `quantiles`.
        target: (B, C, K) of the style image.

    Returns:
        (B,) float32.
    """
    return (q.float() - target.float()).square().mean(2).mean(1) / 2

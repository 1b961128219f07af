"""How much an adversarial loss may pull beside a reconstruction loss (Esser et al. 2021, arXiv:2012.09841)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON, MOST = 1e-6, 1e4
"""The paper's delta, and the largest weight of its code."""
_SCALE = 2.0**10
"""Of losses while they are differentiated: a power of 2 changes no digit, and float16 does not underflow."""


def adaptive_weight(rec: Tensor, adv: Tensor) -> Tensor:
    """Weight of the adversarial loss with which it pulls at the decoder's last layer as hard as the reconstruction.

    `lambda = |grad_L L_rec| / (|grad_L L_adv| + 1e-6)`, grad_L the gradient at the last layer's weights (Esser et al.
    2021, eq. 7); at most 1e4

    Args:
        rec: gradient of the reconstruction loss, perceptual loss included, of any shape; the mean over all processes.
        adv: the same of the generator's adversarial loss.

    Returns:
        () float32, without a graph.
    """
    rec, adv = rec.detach().float(), adv.detach().float()
    weight: Tensor = torch.linalg.vector_norm(rec) / (torch.linalg.vector_norm(adv) + EPSILON)
    return weight.clamp(max=MOST)


def balanced(
    x_hat: Tensor,
    seen: Tensor,
    rec: Tensor,
    adv: Tensor | None,
    last: Tensor,
    factor: float,
    mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Reconstruction and adversarial loss, the second weighted so that both pull as hard at the last layer.

    `L = L_rec + factor lambda L_adv`, lambda the adaptive weight

    Both are differentiated up to the reconstruction, each once: the networks behind them are the dear ones, and from
    there one gradient goes on.

    Args:
        x_hat: (B, C, H, W) the reconstruction, with its graph.
        seen: (B, C, H, W) a leaf of the same values, from which the losses were computed.
        rec: () loss.
        adv: () loss; None: not yet.
        last: weights of the decoder's last layer.
        factor: on the adaptive weight.
        mean: takes the mean over processes of gradients of the last layer.

    Returns:
        () loss, with the graph of `x_hat`; and () the adaptive weight, 0 without `adv`.
    """
    (of_rec,) = torch.autograd.grad(rec * _SCALE, seen)
    if adv is None:
        return pulled(x_hat, rec, of_rec / _SCALE), rec.new_zeros(())
    (of_adv,) = torch.autograd.grad(adv * _SCALE, seen)
    both = [torch.autograd.grad(x_hat, last, g, retain_graph=True)[0].float() for g in (of_rec, of_adv)]
    weight = adaptive_weight(*mean(torch.stack(both) / _SCALE))
    return pulled(x_hat, rec + factor * weight * adv, (of_rec + factor * weight * of_adv) / _SCALE), weight


def pulled(x_hat: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A loss of a value, whose gradient at the reconstruction is known: nothing behind it is differentiated again.

    `L = value + <x_hat - sg[x_hat], gradient>`

    Args:
        x_hat: (B, C, H, W) with its graph.
        value: () of the loss.
        gradient: (B, C, H, W).

    Returns:
        () float32.
    """
    s = (x_hat * gradient.detach()).sum()
    return value.detach() + (s - s.detach())

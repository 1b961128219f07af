"""Loss of vector quantisation (van den Oord et al. 2017, arXiv:1711.00937, eq. 3); per-sample tensors."""

from __future__ import annotations

from torch import Tensor


def commitment(z: Tensor, e: Tensor) -> Tensor:
    """Commitment loss: how far the encoder's vectors lie from their codebook vectors, which stay put here.

    `L_commit = mean_DHW (z - sg[e])^2`

    Args:
        z: (B, D, H, W) encoder output, float32.
        e: (B, D, H, W) the codebook vectors chosen for it; no gradient reaches them.

    Returns:
        (B,) float32.
    """
    return (z - e.detach()).square().mean(dim=(1, 2, 3))

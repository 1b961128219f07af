"""Losses of two translations that are each other's way back; per-sample tensors, float32, images (B, C, H, W)."""

from __future__ import annotations

from torch import Tensor

from mri_synth.losses.reconstruction import l1


def cycle_consistency(back_a: Tensor, a: Tensor, back_b: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference between images and what there and back makes of them, in both contrasts.

    `L_cyc = mean |G_BA(G_AB(a)) - a| + mean |G_AB(G_BA(b)) - b|` (Zhu et al. 2017, arXiv:1703.10593, eq. 2)

    Args:
        back_a: G_BA(G_AB(a)).
        a: images of the first contrast.
        back_b: G_AB(G_BA(b)).
        b: images of the second contrast.

    Returns:
        (B,) float32, at least 0.
    """
    return l1(back_a, a) + l1(back_b, b)


def identity(same_a: Tensor, a: Tensor, same_b: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference between images and their translations to the contrast that they have already.

    `L_id = mean |G_BA(a) - a| + mean |G_AB(b) - b|` (Zhu et al. 2017, arXiv:1703.10593, section 5.2)

    Args:
        same_a: G_BA(a).
        a: images of the first contrast.
        same_b: G_AB(b).
        b: images of the second contrast.

    Returns:
        (B,) float32, at least 0.
    """
    return l1(same_a, a) + l1(same_b, b)

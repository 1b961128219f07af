"""Losses of two translations that are each other's way back; per-sample tensors, float32, images (B, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_synth.losses.reconstruction import l1
from mri_synth.metrics.structure import unexplained


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


def structure(fake_b: Tensor, a: Tensor, fake_a: Tensor, b: Tensor) -> Tensor:
    """Share of structure that translations have and their sources do not, or the other way, in both directions.

    `L_str = S(G_AB(a), a) + S(G_BA(b), b)`, `S(x, s) = (U(x, s) + U(s, x)) / 2`, U of `unexplained`: 1 - local squared
    correlation, whatever the contrast. There and back again finds nothing wrong with a translation that moves, swells
    or shrinks everything by a pixel or two and a way back that undoes it, and a discriminator, which sees slices of
    others, does not either. As the structure-consistency loss of Yang et al. 2018 (arXiv:1809.04536), with local
    correlation in the place of MIND. U(s, x) is there for images without structure, of which U(x, s) is 0.

    Args:
        fake_b: G_AB(a), (B, 1, H, W) in [-1, 1].
        a: images of the first contrast.
        fake_a: G_BA(b).
        b: images of the second contrast.

    Returns:
        (B,) float32 in [0, 2]. A right translation does not have 0: T1 and T2 of the same slices of a phantom have 0.6
        together, and 1.5 when one is moved by two pixels.
    """
    both = ((fake_b, a), (a, fake_b), (fake_a, b), (b, fake_a))
    return torch.stack([unexplained(x, s) for x, s in both]).sum(0) / 2

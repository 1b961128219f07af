"""Ways through a latent space: from one vector to the next, and round through several."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def slerp(a: Tensor, b: Tensor, way: Tensor) -> Tensor:
    """Spherical interpolation, which stays where the prior has its mass (White 2016, arXiv:1609.04468, section 2).

    `slerp(a, b; t) = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b`, w the angle between a and b

    Args:
        a: (B, n) vectors, or (1, n).
        b: the same.
        way: (B, 1), 0 at a and 1 at b.

    Returns:
        (B, n); straight where the angle is almost 0.
    """
    cos = cosine_similarity(a, b, dim=1, eps=1e-12)[:, None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cos)
    bent = (torch.sin((1 - way) * angle) * a + torch.sin(way * angle) * b) / torch.sin(angle)
    return torch.where(angle < 1e-2, (1 - way) * a + way * b, bent)


def line(anchors: Tensor, steps: int) -> Tensor:
    """From each vector to the one after it.

    Args:
        anchors: (A, D), A at least 2.
        steps: vectors from one to the next, both among them; at least 2.

    Returns:
        (A - 1, steps, D); the first of each row is its anchor, the last the next one.
    """
    ways = torch.linspace(0, 1, steps, device=anchors.device)[:, None]
    return torch.stack([slerp(a[None], b[None], ways) for a, b in pairwise(anchors)])


def loop(anchors: Tensor, frames: int) -> Tensor:
    """Round through all vectors and back to the first, which is not repeated: shown over and over it has no seam.

    Args:
        anchors: (A, D).
        frames: vectors in all.

    Returns:
        (frames, D).
    """
    at = torch.arange(frames, dtype=torch.float64) * len(anchors) / frames
    before = at.floor().long()
    way = (at - before).to(anchors.dtype).to(anchors.device)[:, None]
    return slerp(anchors[before], anchors[(before + 1) % len(anchors)], way)

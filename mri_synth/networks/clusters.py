"""Nearest code and k-means, on flat vectors: what the quantiser's codebook is made with."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index (N,) of the code (K, D) nearest to each vector (N, D): `argmin_k |e_k|^2 - 2 <z, e_k>`.

    |z|^2 is left out, being the same for all k. On a CPU the (N, K) products are made piece by piece: beyond 32 MiB
    every call would ask the system for fresh pages, which takes as long as the product itself.
    """
    squares, rows = codes.square().sum(1), len(vectors)
    if vectors.device.type == "cpu":
        rows = max(1, 2**21 // len(codes))
    pieces = [torch.addmm(squares, piece, codes.t(), alpha=-2).argmin(1) for piece in vectors.split(max(rows, 1))]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def kmeans(vectors: Tensor, k: int, iters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k randomly chosen vectors (repeated when there are fewer than k).

    Args:
        vectors: (N, D) float32, N at least 1.
        k: number of means.
        iters: iterations.
        generator: draws the start; on the vectors' device.

    Returns:
        Means (k, D), and how many vectors belong to each (k,) float32. A mean without vectors stays where it was.
    """
    n, device = len(vectors), vectors.device
    if n >= k:
        rows = torch.randperm(n, generator=generator, device=device)[:k]
    else:
        rows = torch.randint(n, (k,), generator=generator, device=device)
    means, ones = vectors[rows], torch.ones(n, device=device)
    counts = torch.zeros(k, device=device)
    for _ in range(iters):
        codes = nearest(vectors, means)
        counts = torch.zeros(k, device=device).index_add_(0, codes, ones)
        sums = torch.zeros_like(means).index_add_(0, codes, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), means)
    return means, counts

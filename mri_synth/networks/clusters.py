"""Nearest code and k-means, on flat vectors: what the quantiser's codebook is made with."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(vectors: Tensor, codes: Tensor, cost: Tensor | None = None) -> Tensor:
    """Index (N,) of the code (K, D) nearest to each vector (N, D): `argmin_k |e_k|^2 - 2 <z, e_k> + cost_k`.

    |z|^2 is left out, being the same for all k. `cost` (K,) is what a code costs wherever it is taken. On a CPU the
    (N, K) products are made piece by piece: beyond 32 MiB every call would ask the system for fresh pages, which takes
    as long as the product itself.
    """
    squares, rows = codes.square().sum(1), len(vectors)
    if cost is not None:
        squares = squares + cost
    if vectors.device.type == "cpu":
        rows = max(1, 2**21 // len(codes))
    parts = (vectors,) if torch.compiler.is_exporting() else vectors.split(max(rows, 1))  # a graph knows no number
    pieces = [torch.addmm(squares, piece, codes.t(), alpha=-2).argmin(1) for piece in parts]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def code_costs(counts: Tensor, rate: float) -> Tensor | None:
    """What each code costs when codes are to be foreseen (Chou et al. 1989): `rate * -log p_k`, p_k = n_k / sum n.

    Args:
        counts: (K,) how often each code is taken; none counts as less than 1e-5 of all over K.
        rate: squared distance that a nat is worth.

    Returns:
        (K,) in nats times rate; None when the rate is 0.
    """
    if not rate:
        return None
    total = counts.sum().clamp(min=1e-12)
    return -rate * (counts / total).clamp(min=1e-5 / len(counts)).log()


def kmeans(vectors: Tensor, k: int, iters: int, generator: torch.Generator, rate: float = 0.0) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k randomly chosen vectors (repeated when there are fewer than k).

    Args:
        vectors: (N, D) float32, N at least 1.
        k: number of means.
        iters: iterations.
        generator: draws the start; on the vectors' device.
        rate: squared distance that a nat is worth, from the second iteration on: means that few vectors need lose
            them (entropy-constrained vector quantisation).

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
    for n_iter in range(iters):
        codes = nearest(vectors, means, code_costs(counts, rate) if n_iter else None)
        counts = torch.zeros(k, device=device).index_add_(0, codes, ones)
        sums = torch.zeros_like(means).index_add_(0, codes, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), means)
    return means, counts

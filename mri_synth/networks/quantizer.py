"""Vector quantisation with a codebook that follows its vectors by moving averages.

Sources: van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv:1711.00937), section 3 and
appendix A.1; Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2" (arXiv:1906.00446), eq. 3
and 4; dead codes are revived as in Dhariwal et al. 2020, "Jukebox" (arXiv:2005.00341), section 3.3; with a rate,
codes are chosen as in Chou, Lookabaugh and Gray 1989, "Entropy-Constrained Vector Quantization" (IEEE ASSP 37), eq. 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mri_synth.losses.vq import commitment
from mri_synth.networks.clusters import code_costs, kmeans, nearest

_SEED = 0x5EED_C0DE
"""Draws come from (this constant + updates done), never from the global generator: they resume exactly."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a quantizer makes of z (B, D, H, W).

    Attributes:
        z_q: (B, D, H, W) in z's dtype, the chosen codebook vectors; its gradient goes to z unchanged.
        codes: (B, H, W) int64 in [0, codebook_size).
        commitment: (B,) float32, `mean_DHW (z - sg[e])^2`; its gradient goes to z.
    """

    z_q: Tensor
    codes: Tensor
    commitment: Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward the quantised value exactly (z + (e - z) would round in bf16), backward the identity in z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, z_q: Tensor) -> Tensor:
        return z_q.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantiser; in training mode its codebook is a moving average of the vectors it was given.

    All arithmetic is float32 whatever the surrounding autocast. Codebook, averages and draws depend on buffers only,
    so a `state_dict` resumes bit for bit. With `torch.distributed` initialised, counts and sums are summed over ranks
    and every rank keeps the same codebook. Vectors with a NaN or infinity get a code but never reach the codebook.

    Args:
        codebook_size: K, number of codes.
        codebook_dim: D, length of a code vector.
        decay: gamma of the moving averages, in [0, 1).
        eps: Laplace smoothing of the cluster sizes.
        kmeans_init: start from k-means on the vectors of the first training batch (of rank 0).
        kmeans_iters: Lloyd iterations of that start.
        revive_below: a code whose averaged vectors per batch fall below this is replaced by a random vector of the
            batch (of rank 0); 0 never replaces.
        warmup_steps: the first so many training batches pass unquantised, and k-means waits for the batch after
            them: an encoder in its first steps outruns any codebook and leaves it a handful of codes.
        rate: squared distance that a nat of a code is worth: of codes about equally near the more frequent one is
            taken, `argmin_k |z - e_k|^2 - rate log p_k`. What noise alone tells apart, such as the air around a head,
            then has one code in place of many, which leaves codes for the rest and a prior less to learn. 0: nearest.

    Raises:
        ValueError: a size below 1, a decay outside [0, 1), or a negative threshold.
    """

    embedding: Tensor
    embedding_sum: Tensor
    cluster_size: Tensor
    num_updates: Tensor
    initialised: Tensor

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        decay: float = 0.99,
        eps: float = 1e-5,
        kmeans_init: bool = True,
        kmeans_iters: int = 10,
        revive_below: float = 1.0,
        warmup_steps: int = 0,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1 or kmeans_iters < 1:
            sizes = f"{codebook_size}, {codebook_dim} and {kmeans_iters}"
            raise ValueError(f"codebook_size, codebook_dim and kmeans_iters must be at least 1, got {sizes}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if min(revive_below, warmup_steps, rate) < 0:
            given = f"{revive_below}, {warmup_steps} and {rate}"
            raise ValueError(f"revive_below, warmup_steps and rate must not be negative, got {given}")
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.decay, self.eps = decay, eps
        self.kmeans_iters, self.revive_below, self.warmup_steps = kmeans_iters, revive_below, warmup_steps
        self.rate = rate

        embedding = torch.randn(codebook_size, codebook_dim) / codebook_dim**0.5
        self.register_buffer("embedding", embedding)
        self.register_buffer("embedding_sum", embedding.clone())
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("num_updates", torch.tensor(0))
        self.register_buffer("initialised", torch.tensor(not kmeans_init))
        # Python copies of the last two: reading a buffer on a GPU would stop the stream at every step
        self._updates = 0
        self._initialised = not kmeans_init

    def forward(self, z: Tensor) -> Quantized:
        """Quantise, and in training mode let the codebook follow.

        Args:
            z: (B, D, H, W), any floating dtype.

        Returns:
            Quantised vectors, codes, and the commitment loss of each sample.
        """
        with torch.autocast(z.device.type, enabled=False):
            z32, shape = z.float(), (z.shape[0], *z.shape[2:])
            flat = _flatten(z32.detach())
            warming = self.training and self._updates < self.warmup_steps
            if self.training and not warming and not self._initialised:
                self._start(flat)
            codes = self._nearest(flat)
            if warming:
                self._count()
                return Quantized(z_q=z, codes=codes.view(shape), commitment=z32.new_zeros(len(z)))
            e = _unflatten(nn.functional.embedding(codes, self.embedding), z)  # a copy: the update below is in place
            if self.training:
                self._update(flat, codes)
            z_q: Tensor = _StraightThrough.apply(z, e)  # type: ignore[no-untyped-call]
            return Quantized(z_q=z_q, codes=codes.view(shape), commitment=commitment(z32, e))

    def encode(self, z: Tensor) -> Tensor:
        """Codes (B, H, W) int64 of z (B, D, H, W); nothing is updated."""
        with torch.autocast(z.device.type, enabled=False):
            return self._nearest(_flatten(z.detach().float())).view(z.shape[0], *z.shape[2:])

    def lookup(self, codes: Tensor) -> Tensor:
        """Codebook vectors (B, D, H, W) float32 of codes (B, H, W)."""
        return nn.functional.embedding(codes, self.embedding).movedim(-1, 1)

    def _nearest(self, flat: Tensor) -> Tensor:
        return nearest(flat, self.embedding, code_costs(self.cluster_size, self.rate))

    @torch.no_grad()
    def _update(self, flat: Tensor, codes: Tensor) -> None:
        """Razavi 2019, eq. 3 and 4: moving averages of counts and sums, codes as their smoothed ratio."""
        finite = torch.isfinite(flat.sum(1))
        flat = torch.where(finite[:, None], flat, 0.0)
        counts = torch.zeros_like(self.cluster_size).index_add_(0, codes, finite.to(flat.dtype))
        sums = torch.zeros_like(self.embedding).index_add_(0, codes, flat)
        fresh, usable = self._draw(flat, finite) if self.revive_below else (None, None)
        if _world_size() > 1:
            parts = [counts[:, None], sums]
            if fresh is not None and usable is not None:  # rank 0's draws ride along: one message a step
                first = float(dist.get_rank() == 0)
                parts += [fresh * first, usable[:, None].to(fresh.dtype) * first]
            message = torch.cat(parts, 1)
            dist.all_reduce(message)
            counts, sums = message[:, 0], message[:, 1 : self.codebook_dim + 1]
            if fresh is not None:
                fresh, usable = message[:, self.codebook_dim + 1 : -1], message[:, -1] > 0.5
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.embedding_sum.lerp_(sums, 1 - self.decay)
        if fresh is not None and usable is not None:
            dead = (self.cluster_size < self.revive_below) & usable
            self.cluster_size.masked_fill_(dead, self.revive_below)
            self.embedding_sum.copy_(torch.where(dead[:, None], fresh * self.revive_below, self.embedding_sum))
            self._normalise()
            self.embedding.copy_(torch.where(dead[:, None], fresh, self.embedding))
        else:
            self._normalise()
        self._count()

    def _count(self) -> None:
        self._updates += 1
        self.num_updates += 1

    def _normalise(self) -> None:
        """Codes = averaged sums over averaged counts, the counts Laplace-smoothed so that none is zero."""
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.eps) / (total + self.codebook_size * self.eps) * total
        self.embedding.copy_(self.embedding_sum / smoothed[:, None])

    def _draw(self, flat: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """One random vector per code (K, D) and whether it may be used (K,): no dead code is counted, so no sync."""
        rows = torch.randint(len(flat), (self.codebook_size,), generator=self._generator(flat), device=flat.device)
        return flat[rows], finite[rows]

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """k-means on rank 0's finite vectors, shared with all ranks; happens once."""
        if _world_size() == 1 or dist.get_rank() == 0:
            vectors = flat[torch.isfinite(flat.sum(1))]
            if len(vectors):
                means, counts = kmeans(vectors, self.codebook_size, self.kmeans_iters, self._generator(flat), self.rate)
                self.cluster_size.copy_(counts.clamp(min=1))
                self.embedding_sum.copy_(means * self.cluster_size[:, None])
                self._normalise()
                self.initialised.fill_(True)
        if _world_size() > 1:
            for buffer in (self.cluster_size, self.embedding_sum, self.embedding, self.initialised):
                dist.broadcast(buffer, src=0)
        self._initialised = bool(self.initialised)

    def _generator(self, like: Tensor) -> torch.Generator:
        return torch.Generator(like.device).manual_seed(_SEED + self._updates)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._updates, self._initialised = int(self.num_updates), bool(self.initialised)

    def extra_repr(self) -> str:
        return f"{self.codebook_size}, {self.codebook_dim}, decay={self.decay}, revive_below={self.revive_below}"


def codebook_usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """How much of a codebook is in use: the share of its codes, and how many, used equally often, would carry as much.

    `usage = |{k: n_k > 0}| / K`, `perplexity = exp(-sum_k p_k log p_k)`, p_k = n_k / sum n

    Args:
        counts: (K,) how often each code occurred.

    Returns:
        Share of codes that occurred at all, in [0, 1], and the perplexity `exp(-sum_k p_k log p_k)`, in [1, K]: the
        number of codes that, used equally often, would carry as much. Both are 0-dimensional float32; without any
        count they are 0 and 1.
    """
    counts = counts.float()
    p = counts / counts.sum().clamp(min=1e-12)
    return (counts > 0).float().mean(), torch.special.entr(p).sum().exp()


def _flatten(z: Tensor) -> Tensor:
    """(B, D, H, W) to (B H W, D); a view when z is channels_last."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def _unflatten(flat: Tensor, z: Tensor) -> Tensor:
    """(B H W, D) to z's (B, D, H, W), channels_last in memory; no copy."""
    return flat.view(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1

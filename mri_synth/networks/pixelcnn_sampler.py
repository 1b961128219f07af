"""Codes drawn from a gated PixelCNN one after the other, with nothing computed twice.

`sample_codes` is what to call; `sample_codes_naive` is its definition, hundreds of times slower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mri_synth.networks.pixelcnn import GatedPixelCNN
from mri_synth.networks.pixelcnn_cache import Cache


def sample_codes(
    network: GatedPixelCNN,
    u: Tensor,
    shape: tuple[int, int],
    condition: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Grids of codes by inverting the distribution of each code at a uniform number.

    Args:
        network: in evaluation mode or not, dropout is off.
        u: (B, h * w) in [0, 1), one number per code in raster order; the same number chooses the same code.
        shape: (h, w) of the grids.
        condition: (B,) int64 in [-1, conditions), -1 where unknown; None: all unknown.
        temperature: divides the logits; towards 0 the likeliest code, 1 the network's distribution.
        top_k: only so many of the likeliest codes of each position are drawn; None: all.
        dtype: of the arithmetic. In float64 no rounding reaches a code, whatever else is in the batch; in float32 a
            code whose number falls within about 1e-6 of a boundary may differ between batch sizes and machines. None:
            float32 on a CPU; float64 elsewhere, where convolutions would round float32 to 11 bits.

    Returns:
        (B, h, w) int64.

    Raises:
        ValueError: temperature is not positive, top_k is not in [1, codebook_size], or u, shape or condition do not
            fit the network.
    """
    check_draws(network, u, shape, condition, temperature, top_k)
    with torch.inference_mode(), torch.autocast(u.device.type, enabled=False):
        precision = dtype or (torch.float32 if u.device.type == "cpu" else torch.float64)
        cache = Cache(network, len(u), shape[1], condition, precision)
        codes = torch.zeros(len(u), *shape, dtype=torch.int64, device=u.device)
        numbers = u.view(len(u), *shape)
        for i in range(shape[0]):
            cache.start_row(i, codes[:, i - 1])
            for j in range(shape[1]):
                chosen = choose(cache.logits(j), numbers[:, i, j], temperature, top_k)
                codes[:, i, j] = chosen
                cache.append(j, chosen)
    return codes.clone()  # outside of inference mode: an ordinary tensor


def sample_codes_naive(
    network: GatedPixelCNN,
    u: Tensor,
    shape: tuple[int, int],
    condition: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """The definition that `sample_codes` is measured against: the whole grid through the network for every code.

    Args:
        network: in evaluation mode.
        u: (B, h * w) in [0, 1).
        shape: (h, w) of the grids.
        condition: (B,) int64 or None.
        temperature: divides the logits.
        top_k: only so many of the likeliest codes; None: all.

    Returns:
        (B, h, w) int64, the codes of `sample_codes`.
    """
    check_draws(network, u, shape, condition, temperature, top_k)
    codes = torch.zeros(len(u), *shape, dtype=torch.int64, device=u.device)
    with torch.no_grad():
        for n in range(shape[0] * shape[1]):
            i, j = divmod(n, shape[1])
            logits = network(codes, condition)[:, :, i, j]
            codes[:, i, j] = choose(logits, u[:, n], temperature, top_k)
    return codes


def choose(logits: Tensor, u: Tensor, temperature: float = 1.0, top_k: int | None = None) -> Tensor:
    """The code at which the cumulated probability passes u: codes (B,) of logits (B, K) and u (B,) in [0, 1)."""
    scores = logits.float()
    if temperature != 1:
        scores = scores / temperature
    if top_k is not None and top_k < scores.shape[1]:
        kept = scores.topk(top_k)
        scores = torch.full_like(scores, -math.inf).scatter_(1, kept.indices, kept.values)
    cumulated = torch.softmax(scores, 1).cumsum(1, dtype=torch.float64)
    target = cumulated[:, -1:] * u[:, None]
    return torch.searchsorted(cumulated, target, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


def check_draws(
    network: GatedPixelCNN,
    u: Tensor,
    shape: tuple[int, int],
    condition: Tensor | None,
    temperature: float,
    top_k: int | None,
) -> None:
    """Raise a ValueError that names what cannot be drawn, and what can; the arguments are those of `sample_codes`."""
    network.check(shape, condition)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a positive number, got {temperature}")
    if top_k is not None and not 1 <= top_k <= network.codebook_size:
        raise ValueError(f"top_k must lie in [1, {network.codebook_size}], the number of codes, got {top_k}")
    if u.ndim != 2 or u.shape[1] != shape[0] * shape[1]:
        raise ValueError(f"u must be (B, {shape[0] * shape[1]}) for a grid of {shape}, got {tuple(u.shape)}")
    if condition is not None:
        known = all(-1 <= label < network.conditions for label in condition.tolist())
        if len(condition) != len(u) or not known:
            allowed = f"{len(u)} numbers below {network.conditions}, the number of classes, or -1 where unknown"
            raise ValueError(f"condition must be {allowed}, got {condition.tolist()}")

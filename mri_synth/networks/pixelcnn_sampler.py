"""Codes drawn from a gated PixelCNN one after the other, with nothing computed twice.

`sample_codes` is what to call; `sample_codes_naive` is its definition, hundreds of times slower.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mri_synth.networks.pixelcnn import GatedPixelCNN, unknown
from mri_synth.networks.pixelcnn_cache import Cache


def sample_codes(
    network: GatedPixelCNN,
    u: Tensor,
    shape: tuple[int, int],
    condition: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    dtype: torch.dtype | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Grids of codes by inverting the distribution of each code at a uniform number.

    Args:
        network: in evaluation mode or not, dropout is off.
        u: (B, h * w) in [0, 1), one number per code in raster order; the same number chooses the same code.
        shape: (h, w) of the grids.
        condition: (B,) int64 in [-1, conditions), -1 where unknown; or (B, vectors); None: all unknown.
        temperature: divides the logits; towards 0 the likeliest code, 1 the network's distribution.
        top_k: only so many of the likeliest codes of each position are drawn; None: all.
        dtype: of the arithmetic. In float64 no rounding reaches a code, whatever else is in the batch; in float32 a
            code whose number falls within about 1e-6 of a boundary may differ between batch sizes and machines. None:
            float32 on a CPU; float64 elsewhere, where convolutions would round float32 to 11 bits.
        guidance: how much further than asked for the condition moves the logits, as `guided` says; 1: no further.

    Returns:
        (B, h, w) int64.

    Raises:
        ValueError: temperature is not positive, top_k is not in [1, codebook_size], u, shape or condition do not fit
            the network, or there is guidance without a condition.
    """
    check_draws(network, u, shape, condition, temperature, top_k)
    condition, times = beside_unknown(condition, guidance)
    with torch.inference_mode(), torch.autocast(u.device.type, enabled=False):
        precision = dtype or (torch.float32 if u.device.type == "cpu" else torch.float64)
        cache = Cache(network, len(u) * times, shape[1], condition, precision)
        codes = torch.zeros(len(u), *shape, dtype=torch.int64, device=u.device)
        numbers = u.view(len(u), *shape)
        for i in range(shape[0]):
            cache.start_row(i, codes[:, i - 1].repeat(times, 1))
            for j in range(shape[1]):
                chosen = choose(guided(cache.logits(j), guidance), numbers[:, i, j], temperature, top_k)
                codes[:, i, j] = chosen
                cache.append(j, chosen.repeat(times))
    return codes.clone()  # outside of inference mode: an ordinary tensor


def sample_codes_naive(
    network: GatedPixelCNN,
    u: Tensor,
    shape: tuple[int, int],
    condition: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """The definition that `sample_codes` is measured against: the whole grid through the network for every code.

    Args:
        network: in evaluation mode.
        u: (B, h * w) in [0, 1).
        shape: (h, w) of the grids.
        condition: (B,) int64 or (B, vectors), or None.
        temperature: divides the logits.
        top_k: only so many of the likeliest codes; None: all.
        guidance: as there.

    Returns:
        (B, h, w) int64, the codes of `sample_codes`.
    """
    check_draws(network, u, shape, condition, temperature, top_k)
    condition, times = beside_unknown(condition, guidance)
    codes = torch.zeros(len(u), *shape, dtype=torch.int64, device=u.device)
    with torch.no_grad():
        for n in range(shape[0] * shape[1]):
            i, j = divmod(n, shape[1])
            logits = network(codes.repeat(times, 1, 1), condition)[:, :, i, j]
            codes[:, i, j] = choose(guided(logits, guidance), u[:, n], temperature, top_k)
    return codes


def beside_unknown(condition: Tensor | None, guidance: float) -> tuple[Tensor | None, int]:
    """The condition, and behind it in the batch nothing known, where guidance compares them; how many there are."""
    if guidance == 1:
        return condition, 1
    if condition is None:
        raise ValueError(f"guidance={guidance} needs a condition to guide by")
    return torch.cat([condition, unknown(condition)]), 2


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Logits under a condition, moved further away from those without it: classifier-free guidance.

    `l = l_unknown + g (l_condition - l_unknown)`

    Source: Ho and Salimans 2022, arXiv:2207.12598, eq. 6, where 1 + w is our g; of codes drawn one by one as in Gafni
    et al. 2022, arXiv:2203.13131, section 3.4.

    Args:
        logits: (2B, K), under the condition and then without; (B, K) where guidance is 1.
        guidance: g.

    Returns:
        (B, K).
    """
    if guidance == 1:
        return logits
    told, untold = logits.chunk(2)
    return untold + guidance * (told - untold)


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
        vectors = condition.is_floating_point()
        known = vectors or all(-1 <= label < network.conditions for label in condition.tolist())
        if len(condition) != len(u) or not known:
            allowed = f"{len(u)} numbers below {network.conditions}, the number of classes, or -1 where unknown"
            got = tuple(condition.shape) if vectors else condition.tolist()
            raise ValueError(f"condition must be {allowed}, got {got}")

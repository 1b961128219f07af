"""How two sets of images look, without any network: their intensities, and their power by spatial frequency."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.metrics.kid import sums_by_group
from mri_synth.metrics.scores import LEAST_SUBJECTS

LEVELS = 256
"""Of a histogram of intensities."""
FLOOR = 1e-10
"""Least power that counts, on intensities in [0, 1]: rounding them to 16 bits leaves about as much."""

PROTOCOL = (
    "histogram distance: Wasserstein-1 between the intensities on [0, 1] of all pixels of either set, in 256 bins; "
    "spectrum distance: mean absolute difference in dB of the sets' mean power, over rings of spatial frequency from 1 "
    "cycle per shorter side to half its pixels. Real against real: the same between halves that share no subject. "
    "Intervals: the value and 1.96 standard deviations of a bootstrap, of real images by subject and fake images one "
    "by one, to either side and not below 0 (its quantiles lie too high, since every resample adds to a distance)"
)
"""Said beside both distances."""

Array = NDArray[np.float64]
Halves = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]


def histograms(images: Tensor, levels: int = LEVELS) -> Array:
    """Shares of an image's pixels by intensity.

    Args:
        images: (B, C, H, W) in [-1, 1]; what lies outside counts at the ends.
        levels: bins of equal width.

    Returns:
        (B, levels), each summing to 1.
    """
    flat = ((images.float().cpu().flatten(1) + 1) * (levels / 2)).long().clamp(0, levels - 1)
    counts = torch.zeros(len(flat), levels, dtype=torch.float64)
    counts.scatter_add_(1, flat, torch.ones(flat.shape, dtype=torch.float64))
    out: Array = (counts / flat.shape[1]).numpy()
    return out


def wasserstein(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """Wasserstein-1 distance of two histograms over the same bins of [0, 1]: how far intensities must be moved.

    `W1 = (1 / L) sum_l |A_l - B_l|`, A and B cumulative shares, L bins

    Args:
        a: (..., L) shares that sum to 1.
        b: the same.

    Returns:
        (...) in [0, 1); 0 for equal histograms, d for one that is the other shifted by d.
    """
    return np.abs(np.cumsum(a, -1) - np.cumsum(b, -1)).mean(-1)


def radial_power(images: Tensor) -> Array:
    """Power of an image by spatial frequency, whatever the direction.

    `P(k) = mean_{|f| rounds to k} |F(f)|^2 / (H W)^2`, F the discrete Fourier transform of the intensities on [0, 1],
    |f| in cycles per shorter side

    Args:
        images: (B, C, H, W) in [-1, 1]; channels are averaged.

    Returns:
        (B, R) for k = 1 to R, half the shorter side; the mean intensity (k = 0) is left out.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    with torch.autocast(images.device.type, enabled=False):
        grey = (images.float().cpu().mean(1) + 1) / 2
        power = torch.fft.rfft2(grey).abs().square().double() / (height * width) ** 2
    down, across = torch.fft.fftfreq(height) * side, torch.fft.rfftfreq(width) * side
    ring = (down[:, None].square() + across.square()).sqrt().round().long()
    # a column of the half transform stands for its mirror image too, but for the first and (of even widths) the last
    twice = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if width % 2 == 0:
        twice[-1] = 1
    weight = twice.expand(height, -1)
    rings = side // 2
    kept = (ring >= 1) & (ring <= rings)
    sums = torch.zeros(len(power), rings + 1, dtype=torch.float64)
    sums.index_add_(1, ring[kept], (power * weight)[:, kept])
    counts = torch.zeros(rings + 1, dtype=torch.float64).index_add_(0, ring[kept], weight[kept])
    out: Array = (sums / counts.clamp(min=1))[:, 1:].numpy()
    return out


def spectrum_distance(a: NDArray[Any], b: NDArray[Any]) -> Any:
    """How far two radial power spectra lie apart, on the average over frequencies.

    `D = mean_k |10 log10(P_a(k) / P_b(k))|` in dB, powers below `FLOOR` counting as that

    Args:
        a: (..., R) power by frequency, of a set the mean over its images.
        b: the same.

    Returns:
        (...) dB, 0 for equal spectra; 6.02 where all amplitudes of one are twice the other's.
    """
    return np.abs(10 * np.log10(np.maximum(a, FLOOR) / np.maximum(b, FLOOR))).mean(-1)


def compared(
    fake: Array, real: Array, distance: Callable[[Array, Array], Any], subjects: NDArray[Any], halves: Halves,
    draws: int = 200, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The distance between the mean rows of two sets, and what there is between real images themselves.

    Args:
        fake: (N, K) a row of each image.
        real: (M, K).
        distance: of two rows, or of two arrays of rows.
        subjects: (M,) whose image each real one is.
        halves: pairs of sets of real images that share no subject; none where that cannot be had.
        draws: resamples.
        seed: of the resamples.

    Returns:
        "value"; "ci" as `PROTOCOL` says, None for fewer subjects or fakes than `LEAST_SUBJECTS`; "real_against_real",
        the mean over the halves, or None.
    """
    between = [float(distance(real[a].mean(0), real[b].mean(0))) for a, b in halves]
    out: dict[str, Any] = {"value": float(distance(fake.mean(0), real.mean(0))), "ci": None,
                           "real_against_real": float(np.mean(between)) if between else None}  # fmt: skip
    groups = np.unique(subjects, return_inverse=True)[1]
    count, fakes = int(groups.max()) + 1, len(fake)
    if min(count, fakes) < LEAST_SUBJECTS:
        return out
    rng = np.random.default_rng(seed)
    drawn_fake = rng.multinomial(fakes, np.full(fakes, 1 / fakes), draws) / fakes
    drawn_real = rng.multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    sizes = np.bincount(groups).astype(np.float64)
    rows = (drawn_real @ sums_by_group(real, groups)) / (drawn_real @ sizes)[:, None]
    spread = 1.96 * float(np.std(distance(drawn_fake @ fake, rows), ddof=1))
    return out | {"ci": [max(0.0, out["value"] - spread), out["value"] + spread]}

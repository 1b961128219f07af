"""What an SSIM must be read against: a trivial baseline, and on phantoms the ceiling that noise sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.prepare import FOREGROUND
from mri_synth.metrics.ssim import foreground_ssim, ssim

NOTES = {
    "baseline/ssim": "the mean training image in place of every reconstruction",
    "ceiling/ssim": "the noise-free phantom in place of its reconstruction: what is left is noise, and no model that "
    "does not copy noise comes above it",
}


def references(data: MRIDataModule) -> dict[str, float]:
    """Reference values on the test images.

    Args:
        data: set up.

    Returns:
        "baseline/ssim", "baseline/ssim_foreground", and where data can be simulated without noise "ceiling/...".
    """
    test = data.view("test")
    if not len(test):
        return {}
    mean = mean_image(data)
    out = _score("baseline", ((b.image, mean.expand_as(b.image)) for b in _batches(test)))
    clean = data.without_noise()
    if clean is not None:
        pairs = zip(_batches(test), _batches(clean.view("test")), strict=True)
        out |= _score("ceiling", ((b.image, _renormalise(c, clean, b, data)) for b, c in pairs))
    return out


def mean_image(data: MRIDataModule, at_most: int = 2000) -> Tensor:
    """Mean of the training images.

    Args:
        data: set up.
        at_most: evenly spaced training images that are used.

    Returns:
        (1, C, H, W) in [-1, 1].
    """
    items = data.view("train")
    total, count = torch.zeros(()), 0
    for batch in _batches(items, max(1, len(items) // at_most)):
        total, count = total + batch.image.sum(0, keepdim=True), count + len(batch)
    return total / count


def _batches(items: Any, step: int = 1, size: int = 64) -> Iterator[Batch]:
    chosen = list(range(0, len(items), step))
    for start in range(0, len(chosen), size):
        yield items.__getitems__(chosen[start : start + size])


def _renormalise(clean: Batch, clean_data: MRIDataModule, noisy: Batch, noisy_data: MRIDataModule) -> Tensor:
    """The clean images in the intensity scale of their noisy twins."""
    low_c, high_c = _limits(clean, clean_data)
    low_n, high_n = _limits(noisy, noisy_data)
    source = (clean.image + 1) / 2 * (high_c - low_c) + low_c
    return (2 * (source - low_n) / (high_n - low_n) - 1).clamp(-1, 1)


def _limits(batch: Batch, data: MRIDataModule) -> tuple[Tensor, Tensor]:
    of = {(f["subject"], f["contrast"]): (f["low"], f["high"]) for f in data.manifest if f["low"] is not None}
    pairs = np.asarray([of[key] for key in zip(batch.subject, batch.contrast, strict=True)], np.float32)
    low, high = torch.from_numpy(pairs).T[:, :, None, None, None]
    return low, high


def _score(name: str, pairs: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    plain, foreground = [], []
    for x, x_hat in pairs:
        a, b = (x_hat + 1) / 2, (x + 1) / 2
        plain.append(ssim(a, b))
        foreground.append(foreground_ssim(a, b, (x > FOREGROUND).any(1, keepdim=True)))
    return {
        f"{name}/ssim": float(torch.cat(plain).mean()),
        f"{name}/ssim_foreground": float(torch.cat(foreground).nanmean()),
    }

"""What a score must be read against: trivial baselines, and on phantoms the ceiling that noise sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.prepare import Study, prepare
from mri_synth.data.scan import Scan
from mri_synth.data.settings import IntensitySettings, SliceSettings
from mri_synth.data.store import SCALE
from mri_synth.data.volume import Volume
from mri_synth.metrics.scores import image_scores

NOTES = {
    "baseline/ssim": "the mean training image in place of every reconstruction or translation",
    "copy/ssim": "the source, of several the first, in place of its translation",
    "ceiling/ssim": "the noise-free phantom in place of its reconstruction or translation: what is left is noise, and "
    "no model that does not copy noise comes above it",
}
SCORES = ("ssim", "ssim_foreground", "psnr")


def references(data: MRIDataModule) -> dict[str, float]:
    """Reference values on the test images.

    Args:
        data: set up.

    Returns:
        "baseline/ssim", "baseline/ssim_foreground", "baseline/psnr", where one contrast is made of another "copy/...",
        and where data can be simulated without noise "ceiling/...".
    """
    test = data.view("test")
    if not len(test):
        return {}
    mean = mean_image(data)
    truths = ((_truth(b) if test.goal is not None else (b.image, b.image)) for b in _batches(test))
    out = _score("baseline", ((x, mean.expand_as(x)) for x, _ in truths))
    if test.goal is not None and test.sources[0] in data.contrasts:
        out |= _score("copy", ((x, image[:, :1]) for x, image in map(_truth, _batches(test))))
    return out | _score("ceiling", _noise_free(data, test.goal))


def _truth(batch: Batch) -> tuple[Tensor, Tensor]:
    """What a method must arrive at, and where it starts, of those items of which both are known."""
    if batch.target is None:
        return batch.image, batch.image
    here = slice(None) if batch.paired is None else batch.paired
    return batch.target[here], batch.image[here]


def mean_image(data: MRIDataModule, at_most: int = 2000) -> Tensor:
    """Mean of the training images, of the goal's contrast where one is made of another.

    Args:
        data: set up.
        at_most: evenly spaced training images that are used.

    Returns:
        (1, C, H, W) in [-1, 1].
    """
    items = data.view("train")
    total, count = torch.zeros(()), 0
    for batch in _batches(items, max(1, len(items) // at_most)):
        image = batch.image if batch.target is None or items.goal is None else batch.target
        total, count = total + image.sum(0, keepdim=True), count + len(image)
    return total / count


def _batches(items: Any, step: int = 1, size: int = 64) -> Iterator[Batch]:
    chosen = list(range(0, len(items), step))
    for start in range(0, len(chosen), size):
        yield items.__getitems__(chosen[start : start + size])


def _noise_free(data: MRIDataModule, goal: str | None) -> Iterator[tuple[Tensor, Tensor]]:
    """(test images, the same without noise in the same intensity scale) of each test scan that can be had so."""
    store, test = data.store, data.split_rows["test"]
    used = {(f["path"], f["contrast"]): f for f in data.manifest if f["split"] == "test" and f["low"] is not None}
    every = SliceSettings(unit="index")  # the store has chosen: by noisy intensities
    for scan in data.found:
        file = used.get((str(scan.path), scan.contrast)) if goal in (None, scan.contrast) else None
        clean = data.noise_free(scan) if file else None
        if file is None or clean is None:
            continue
        scale = IntensitySettings(method="fixed", range=[file["low"], file["high"]])
        item = prepare(
            Study({scan.contrast: scan}), replace(data.preparation, intensity=scale, slices=every), _always(clean)
        )
        study = next(
            i for i, s in enumerate(store.studies) if s["subject"] == scan.subject and s["path"] == file["study"]
        )
        here = (store.table["study"] == study) & (store.table[f"row_{scan.contrast}"] >= 0)
        rows = test[here[test]]
        if not len(rows):
            continue
        same = np.searchsorted(item.columns["slice"], store.table["slice"][rows])
        noisy = store.read(scan.contrast, store.table[f"row_{scan.contrast}"][rows])[:, None].astype(np.float32) / SCALE
        yield torch.from_numpy(noisy), torch.from_numpy(item.images[scan.contrast][same])[:, None]


def _always(volume: Volume) -> Callable[[Scan], Volume]:
    return lambda scan: volume


def _score(name: str, pairs: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    scores = [image_scores(x_hat, x) for x, x_hat in pairs if len(x)]
    if not scores:  # measured data have no noise-free twins
        return {}
    return {f"{name}/{score}": float(torch.cat([s[score] for s in scores]).nanmean()) for score in SCORES}

"""Scores of every image of a split, gathered over ranks; and their summary per subject with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mri_synth.data.prepare import FOREGROUND
from mri_synth.metrics.lpips import PROTOCOL as LPIPS_PROTOCOL
from mri_synth.metrics.lpips import lpips
from mri_synth.metrics.ssim import (
    PROTOCOL,
    foreground_mae,
    foreground_nmse,
    foreground_psnr,
    foreground_ssim,
    mae,
    nmse,
    psnr,
    ssim,
)

PROTOCOLS = {
    "ssim": PROTOCOL,
    "ssim_foreground": "the same map averaged over the foreground (original above 10 % of the range)",
    "psnr": "PSNR in dB, data range 1 on [0, 1], whole frame",
    "mae": "mean absolute error on [0, 1], whole frame",
    "nmse": "squared error over the original's squares, on [0, 1], whole frame",
    "psnr_foreground": "PSNR in dB, data range 1 on [0, 1], over the foreground (original above 10 % of the range)",
    "mae_foreground": "mean absolute error on [0, 1], over the same foreground",
    "nmse_foreground": "squared error over the original's squares, on [0, 1], over the same foreground",
    "lpips": LPIPS_PROTOCOL,
    "lpips_foreground": f"{LPIPS_PROTOCOL}; both images black outside of the same foreground",
}
"""Of every score that stands under its bare name; those of published habits are in `protocols.HABITS`."""
EXPLAINED: dict[str, Callable[..., Any]] = {
    "ssim": ssim,
    "ssim_10": ssim,
    "ssim_foreground": foreground_ssim,
    "psnr": psnr,
    "mae": mae,
    "nmse": nmse,
    "psnr_foreground": foreground_psnr,
    "mae_foreground": foreground_mae,
    "nmse_foreground": foreground_nmse,
    "lpips": lpips,
}
"""Whose docstrings stand under the curves."""


def image_scores(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """What an image is worth as a reconstruction of another.

    Args:
        x_hat: (B, C, H, W) in [-1, 1].
        x: the same of the originals.

    Returns:
        Score name, as in PROTOCOLS, to (B,) float32: the four that are watched in training. `protocols.full_scores`
        has all.
    """
    a, b = (x_hat.detach().float() + 1) / 2, (x.float() + 1) / 2
    a = a.clamp(0, 1)
    foreground = (x > FOREGROUND).any(1, keepdim=True)
    return {"ssim": ssim(a, b), "ssim_foreground": foreground_ssim(a, b, foreground), "psnr": psnr(a, b),
            "mae": mae(a, b)}  # fmt: skip


class ItemScores(Metric):
    """Any scores of each item, with the item's index, over all ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("indices", default=[], dist_reduce_fx="cat")

    def update(self, scores: Mapping[str, Tensor], index: Tensor) -> None:
        """Keep the scores of a batch.

        Args:
            scores: name to (B,); the same names every time.
            index: (B,) positions in the split.
        """
        self.names = list(scores)
        self.values.append(torch.stack([v.detach().float() for v in scores.values()], 1))  # type: ignore[union-attr, operator]
        self.indices.append(index)  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """Score name to (N,) values in the order of the split, and "index"."""
        values, indices = dim_zero_cat(self.values), dim_zero_cat(self.indices)  # type: ignore[arg-type]
        order = torch.argsort(indices)
        table = values[order].double().cpu().numpy()
        return {name: table[:, k] for k, name in enumerate(self.names)} | {"index": indices[order].cpu().numpy()}

    def means(self) -> dict[str, float]:
        """Score name to its mean over all images for which it is finite (a blank image has no foreground)."""
        finite = {name: v[np.isfinite(v)] for name, v in self.compute().items() if name != "index"}
        return {name: float(v.mean()) for name, v in finite.items() if v.size}

    def ten(self, seed: int = 10) -> float:
        """Mean SSIM of ten images, the same ones every time (all, when there are fewer).

        Args:
            seed: of the draw.

        Returns:
            The mean.
        """
        values = self.compute()["ssim"]
        return float(values[np.random.default_rng(seed).permutation(len(values))[:10]].mean())


class ImageScores(ItemScores):
    """SSIM, foreground SSIM, PSNR and MAE of each image."""

    def update(self, x_hat: Tensor, x: Tensor, index: Tensor) -> None:  # type: ignore[override]
        """Score a batch.

        Args:
            x_hat: (B, C, H, W) in [-1, 1].
            x: the same of the originals.
            index: (B,) positions in the split.
        """
        ItemScores.update(self, image_scores(x_hat, x), index)


LEAST_SUBJECTS = 5
"""Below, no interval is given."""


def summarise(values: NDArray[np.float64], subjects: Sequence[str], draws: int = 2000) -> dict[str, Any]:
    """Mean over slices, spread over subjects, and an interval from resampling subjects.

    Args:
        values: (N,) one per slice; NaN (no foreground) is left out.
        subjects: (N,) whose slice it is.
        draws: bootstrap resamples of the subjects.

    Returns:
        mean, sd (of subject means), ci [2.5 %, 97.5 %], n_subjects, n_slices; sd is None for one subject, ci for
        fewer than LEAST_SUBJECTS (a bootstrap of two has three outcomes), and mean too when nothing is finite.
    """
    known = np.isfinite(values)
    if not known.any():
        return {"mean": None, "sd": None, "ci": None, "n_subjects": 0, "n_slices": 0}
    names, inverse = np.unique(np.asarray(subjects, str)[known], return_inverse=True)
    sums = np.bincount(inverse, values[known], minlength=len(names))
    counts = np.bincount(inverse, minlength=len(names))
    pick = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    means = sums[pick].sum(1) / counts[pick].sum(1)
    return {
        "mean": float(values[known].mean()),
        "sd": float((sums / counts).std(ddof=1)) if len(names) > 1 else None,
        "ci": [float(q) for q in np.quantile(means, [0.025, 0.975])] if len(names) >= LEAST_SUBJECTS else None,
        "n_subjects": len(names),
        "n_slices": int(known.sum()),
    }

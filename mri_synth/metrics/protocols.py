"""Scores of a test, plain and foreground; and the rescaling habits of the literature, each under its own name.

A gain error that a habit divides away costs nothing under it, so that one image has as many PSNRs as there are habits.
They are computed here for comparison with a paper that has the same habit, under names such as psnr@own_max, and stand
in a section of their own: never in a column with the plain ones, and never ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.prepare import FOREGROUND
from mri_synth.metrics.lpips import LPIPS, lpips
from mri_synth.metrics.scores import image_scores, summarise
from mri_synth.metrics.ssim import foreground_mae, foreground_nmse, foreground_psnr, nmse, uniform_ssim
from mri_synth.weights import find

AT = "@"
"""Between a score and the habit under which it was computed."""
LEAST_SIDE = 31
"""Pixels that AlexNet of LPIPS needs."""

Rescaled = tuple[Tensor, Tensor, Tensor]


def own_max(x_hat: Tensor, x: Tensor) -> Rescaled:
    """Each image over its own largest value; the data range is 1.

    `x_hat / max x_hat, x / max x, R = 1`. SynDiff (test.py) and ResViT (train.py) compute PSNR so, slice by slice;
    SynDiff crops first, which is not done here.

    Args:
        x_hat: (B, C, H, W) in [0, 1].
        x: the same of the originals.

    Returns:
        Both rescaled, and (B,) data ranges.
    """
    return x_hat / _per_image(x_hat.amax((1, 2, 3))), x / _per_image(x.amax((1, 2, 3))), x.new_ones(len(x))


def own_mean(x_hat: Tensor, x: Tensor) -> Rescaled:
    """Each image over its own mean; the data range is the original's largest value then.

    `x_hat / mean x_hat, x / mean x, R = max(x / mean x)`. SelfRDB (utils.py, `compute_metrics`), and SynDiff in
    validation.

    Args:
        x_hat: (B, C, H, W) in [0, 1].
        x: the same of the originals.

    Returns:
        Both rescaled, and (B,) data ranges.
    """
    a, b = x_hat / _per_image(x_hat.mean((1, 2, 3))), x / _per_image(x.mean((1, 2, 3)))
    return a, b, b.amax((1, 2, 3))


def gt_max(x_hat: Tensor, x: Tensor) -> Rescaled:
    """Images as they are; the data range is the original's largest value.

    `R = max x`. ganslate (val_test_metrics.py), after fastMRI, which takes it of the volume; here it is the slice's.

    Args:
        x_hat: (B, C, H, W) in [0, 1].
        x: the same of the originals.

    Returns:
        Both as they are, and (B,) data ranges.
    """
    return x_hat, x, x.amax((1, 2, 3))


def skimage_default(x_hat: Tensor, x: Tensor) -> Rescaled:
    """Images as they are; the data range is 2, though they lie in [0, 1].

    `R = 2`: what scikit-image up to 0.19 took for SSIM of floating-point images unless told otherwise (it refuses now).
    Of PSNR it took 1 where no value is negative, which is the plain protocol.

    Args:
        x_hat: (B, C, H, W) in [0, 1].
        x: the same of the originals.

    Returns:
        Both as they are, and (B,) data ranges.
    """
    return x_hat, x, x.new_full((len(x),), 2.0)


@dataclass(frozen=True)
class Habit:
    """A published way to rescale before scoring.

    Attributes:
        rescale: (x_hat, x) in [0, 1] to both rescaled and their data ranges.
        scores: which scores it has: psnr, ssim.
        protocol: what is said beside every one of them.
    """

    rescale: Callable[[Tensor, Tensor], Rescaled]
    scores: tuple[str, ...]
    protocol: str


_SSIM = "SSIM as scikit-image's default: 7x7 uniform window, sample statistics"
HABITS: dict[str, Habit] = {
    "own_max": Habit(own_max, ("psnr", "ssim"), "prediction and target each divided by its own maximum, data range 1 "
                     f"(SynDiff, ResViT); {_SSIM}"),
    "own_mean": Habit(own_mean, ("psnr", "ssim"), "prediction and target each divided by its own mean, data range the "
                      f"maximum of the target so divided (SelfRDB); {_SSIM}"),
    "gt_max": Habit(gt_max, ("psnr", "ssim"), f"data range the target's maximum (ganslate); {_SSIM}"),
    "skimage_default": Habit(skimage_default, ("ssim",), "data range 2, scikit-image's default for floats up to "
                             f"version 0.19, on images in [0, 1]; {_SSIM}"),
}  # fmt: skip


def full_scores(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """All that an image is worth as another, plain and over the foreground.

    Args:
        x_hat: (B, C, H, W) in [-1, 1].
        x: the same of the originals.

    Returns:
        Score name, as in `scores.PROTOCOLS`, to (B,) float32; LPIPS where AlexNet's weights are here.
    """
    a, b = _unit(x_hat), _unit(x)
    foreground = (x > FOREGROUND).any(1, keepdim=True)
    found = image_scores(x_hat, x) | {
        "nmse": nmse(a, b),
        "psnr_foreground": foreground_psnr(a, b, foreground),
        "mae_foreground": foreground_mae(a, b, foreground),
        "nmse_foreground": foreground_nmse(a, b, foreground),
    }
    net = _local_lpips(str(x.device)) if min(x.shape[-2:]) >= LEAST_SIDE and x.shape[1] in (1, 3) else None
    if net is not None:
        made, true = x_hat.detach().float().clamp(-1, 1), x.float()
        found["lpips"] = lpips(made, true, net)
        black = -torch.ones_like(true)
        masked = lpips(torch.where(foreground, made, black), torch.where(foreground, true, black), net)
        found["lpips_foreground"] = torch.where(foreground.any((1, 2, 3)), masked, torch.nan)
    return found


def habit_scores(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The same images under every published habit.

    Args:
        x_hat: (B, C, H, W) in [-1, 1].
        x: the same of the originals.

    Returns:
        Such as "psnr@own_max" to (B,) float32; NaN where a habit divides by nothing.
    """
    a, b = _unit(x_hat), _unit(x)
    found: dict[str, Tensor] = {}
    for name, habit in HABITS.items():
        p, q, r = habit.rescale(a, b)
        if "psnr" in habit.scores:
            found[f"psnr{AT}{name}"] = 10 * torch.log10(r.square() / (p - q).square().mean((1, 2, 3)))
        if "ssim" in habit.scores:
            found[f"ssim{AT}{name}"] = uniform_ssim(p, q, r)
    return found


def habit_details(results: Mapping[str, NDArray[Any]], subjects: Sequence[str]) -> dict[str, Any]:
    """Mean, spread over subjects and interval of every score under a habit, for results.json.

    Args:
        results: of a test: score name to (N,) values.
        subjects: (N,) whose slices they are.

    Returns:
        "psnr@own_max" to its summary and protocol; empty where nothing was computed under a habit.
    """
    found = {k: np.asarray(v, np.float64) for k, v in results.items() if AT in k}
    return {k: summarise(v, subjects) | {"protocol": HABITS[k.partition(AT)[2]].protocol} for k, v in found.items()}


def _unit(images: Tensor) -> Tensor:
    return ((images.detach().float() + 1) / 2).clamp(0, 1)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


@cache
def _local_lpips(device: str) -> LPIPS | None:
    """LPIPS on a device where its weights are here already; nothing is fetched."""
    found = find("lpips_alexnet").path
    return LPIPS("alexnet", found).to(device) if found else None

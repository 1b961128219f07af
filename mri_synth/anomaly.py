"""Anomaly maps of what reconstructs: the score of each pixel, and how well it finds the lesions of the test split.

The score uses an image and what the model says of it and nothing else, so that a checkpoint alone makes the maps, of
any file: the model's own suspicion where it has one (`SynthModule.suspicion`), else the residual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from mri_synth import drawing
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import DataSpec
from mri_synth.data.lesions import Lesions
from mri_synth.data.views import Images
from mri_synth.metrics.anomaly import Detection, brain, by_subject, gain, summary
from mri_synth.models.base import SynthModule

Array = NDArray[Any]
SIGMA_MM = 4.0
"""Of the smoothing: about the radius of a small lesion."""
VIEW_MM = 240.0
"""Side of the frame that is assumed where the spacing of its pixels is not known."""
BUSY_MM = 4.0
"""Of the neighbourhood in which the reconstruction's own spread is taken."""
FLOOR = 0.5
"""Added to that spread (of a range of 2). Large, and the score is the residual alone; small, and busy places count
little. This and the two lengths were chosen on the validation subjects of bench-v1."""
MEANING = (
    f"|G * (x - x_hat)| / ({FLOOR:g} + s), x and x_hat on [-1, 1] over the head or brain, s the local standard "
    f"deviation of x_hat, both by Gaussians within the slice, sigma {SIGMA_MM:g} and {BUSY_MM:g} mm: higher is less "
    "like what the model was trained on, darker or brighter alike; 0 where there is no head"
)
SUSPICION_MM = 3.0
"""Of the smoothing of a model's own suspicion, which knows of the surroundings already."""
SUSPECTED = (
    "G * p, p the model's own chance that a pixel is foreign, over the head or brain, G a Gaussian within the slice, "
    f"sigma {SUSPICION_MM:g} mm: higher is less like what the model was trained on, darker or brighter alike; 0 where "
    "there is no head"
)
BASELINES = {
    "bright pixel": "the image itself, smoothed like the residual, in place of the score",
    "dark pixel": "its negative",
    "training median": "the score with the median of the training images at each pixel in place of x_hat",
    "own median": "the score with the median of the image's own brain in place of x_hat",
}
PARTS = {
    "residual": MEANING,
    "residual alone": "|G * (x - x_hat)|, the residual without its divisor",
}
"""Maps of the model that are not its score, beside it."""


def smoothed(residual: Array, region: Array, spacing_mm: Sequence[float]) -> Array:
    """Size of the smoothed residual: what noise and displaced edges leave cancels, what a lesion leaves adds up.

    `a = m |G * (m r)|`, r = x - x_hat the residual, m the region, G a Gaussian of SIGMA_MM within the slice

    Args:
        residual: (N, H, W).
        region: (N, H, W) bool; nothing outside it counts.
        spacing_mm: (row, column) of the pixels.

    Returns:
        (N, H, W) float32, at least 0, and 0 outside the region.
    """
    return np.abs(_blur(residual * region, spacing_mm)) * region


def meaning(model: SynthModule) -> str:
    """What the anomaly score of a model is."""
    return SUSPECTED if model.suspects() else MEANING


def suspected(x: Array, p: Array, spacing_mm: Sequence[float], region: Array | None = None) -> Array:
    """The anomaly score of models that have a suspicion of their own: `s = m G * (m p)`, G a Gaussian of SUSPICION_MM.

    Args:
        x: (N, H, W) in [-1, 1].
        p: (N, H, W) in [0, 1], what the model suspects.
        spacing_mm: (row, column) of the pixels.
        region: (N, H, W) bool, m: where the head or brain is; None for `brain(x)`.

    Returns:
        (N, H, W) float32 in [0, 1], 0 outside the region.
    """
    region = brain(x) if region is None else region
    return _blur(p * region, spacing_mm, SUSPICION_MM) * region


def score(x: Array, x_hat: Array, spacing_mm: Sequence[float], region: Array | None = None) -> Array:
    """The anomaly score by reconstruction: the smoothed residual, as a multiple of what so busy a place lets expect.

    `s = m |G * (m (x - x_hat))| / (FLOOR + sd)`, m the head or brain, `sd^2 = B * x_hat^2 - (B * x_hat)^2`, B a
    Gaussian of BUSY_MM

    A reconstruction is never quite in place, so that healthy folds and edges leave residuals which grow with the
    contrasts around them: those of the reconstruction, which the lesion is not in.

    Args:
        x: (N, H, W) in [-1, 1].
        x_hat: their reconstructions.
        spacing_mm: (row, column) of the pixels.
        region: (N, H, W) bool, where the head or brain is; None for `brain(x)`.

    Returns:
        (N, H, W) float32, at least 0, at most 4, and 0 outside the region.
    """
    region = brain(x) if region is None else region
    mean, square = (_blur(v, spacing_mm, BUSY_MM, "nearest") for v in (x_hat, np.square(x_hat)))
    spread = np.sqrt(np.maximum(square - np.square(mean), 0))
    out: Array = smoothed(x - x_hat, region, spacing_mm) / (np.float32(FLOOR) + spread)
    return out


def pixel_mm(spec: DataSpec) -> tuple[float, float]:
    """(row, column) spacing of the frame; where it is not known or differs, that of a view of 240 mm."""
    known = spec.spacing_mm
    return (known[0], known[1]) if known else (VIEW_MM / spec.size, VIEW_MM / spec.size)


def _blur(images: Array, spacing_mm: Sequence[float], sigma_mm: float = SIGMA_MM, mode: Any = "constant") -> Array:
    sigma = (0.0, sigma_mm / spacing_mm[0], sigma_mm / spacing_mm[1])
    blurred: Array = ndimage.gaussian_filter(images.astype(np.float32), sigma, mode=mode)
    return blurred


def anomaly_results(
    model: SynthModule, data: MRIDataModule, batch_size: int = 64, picture: Path | None = None
) -> dict[str, dict[str, Any]]:
    """How well the model's anomaly map finds the lesions of the test split, beside maps that need no model.

    Args:
        model: that reconstructs, with its best weights; its device is used.
        data: set up.
        batch_size: images at once.
        picture: PNG of examples to write: original, reconstruction, score, mask.

    Returns:
        "metrics": test/anomaly_auroc, test/anomaly_ap, test/anomaly_dice to means over subjects, and
        test/anomaly_auroc_gain, over the best of the BASELINES; "details": the same to sd, interval, numbers and
        protocol; "references": <map>/anomaly_<score> of the BASELINES and of the residual alone; "notes": what those
        maps are. Empty when the model does not reconstruct single images, or no test item
        has a marked pixel.
    """
    items = data.view("test")
    items = items.every() if isinstance(items, Lesions) else items
    if not model.reconstructs() or type(items) is not Images or data.spec.channels != 1 or not len(items):
        return {}
    spacing, subjects = pixel_mm(data.spec), items.subjects
    median = median_images(data) if len(data.view("train")) else None  # data that are only tested on have none
    found: dict[str, dict[str, Detection]] = {}
    drawn: list[tuple[str, tuple[Array, Array, Array, Array]]] = []
    for at in _groups(subjects):
        x, x_hat, p, mask = _through(model, items, at, batch_size)
        region = brain(x)
        residual = score(x, x_hat, spacing, region)
        maps = {"score": residual} if p is None else {"score": suspected(x, p, spacing, region), "residual": residual}
        maps["residual alone"] = smoothed(x - x_hat, region, spacing)
        maps |= baselines(x, region, None if median is None else median[items.contrast[at]], spacing)
        for name, values in maps.items():
            found.setdefault(name, {}).update(by_subject(values, mask, region, subjects[at].tolist()))
        drawn += largest(x, x_hat, maps["score"], mask, subjects[at])
    if not drawn:
        return {}
    found = {name: dict(sorted(values.items())) for name, values in found.items()}
    summaries = {name: summary(values) for name, values in found.items()}
    lesioned = sorted(name for name, d in found["score"].items() if not np.isnan(d.auroc))
    slices = int(np.isin(subjects, lesioned).sum())
    if picture is not None:
        drawing.save(examples(drawn, data.spec.simulated), picture)
    against = {name: values for name, values in found.items() if name in BASELINES}
    figures = summaries.pop("score") | {"anomaly_auroc_gain": gain(found["score"], against)}
    own = {f"test/{k}": v | {"n_slices": slices} for k, v in figures.items()}
    own = {k: v | {"protocol": f"{v['protocol']}; score: {meaning(model)}"} for k, v in own.items()}
    return {
        "metrics": {k: v["mean"] for k, v in own.items() if v["mean"] is not None},
        "details": own,
        "references": {f"{name}/{k}": v["mean"] for name, values in summaries.items() for k, v in values.items()},
        "notes": {f"{name}/anomaly": text for name, text in (BASELINES | PARTS).items() if name in found},
    }


def _groups(subjects: NDArray[Any], most: int = 1000) -> Iterator[NDArray[np.intp]]:
    """Items of whole subjects, about so many at a time: scores are per subject, and maps are large."""
    _, number = np.unique(subjects, return_inverse=True)
    order = np.argsort(number, kind="stable")
    ends = np.flatnonzero(np.diff(number[order], append=-1)) + 1
    start = 0
    for k, end in enumerate(ends.tolist()):
        if k + 1 == len(ends) or ends[k + 1] - start > most:
            yield order[start:end]
            start = end


@torch.no_grad()
def _through(
    model: SynthModule, items: Images, at: NDArray[np.intp], batch_size: int
) -> tuple[Array, Array, Array | None, Array]:
    """Images, reconstructions, suspicion and masks of some items of a view, (N, H, W) each."""
    model.eval()
    parts: list[tuple[Array, Array, Array, Array]] = []
    for start in range(0, len(at), batch_size):
        batch = items.__getitems__(at[start : start + batch_size].tolist())
        x_hat = model.reconstruct(batch.image.to(model.device)).float().clamp(-1, 1).cpu()
        p = model.suspicion(batch.image.to(model.device)).cpu() if model.suspects() else x_hat
        mask = batch.mask if batch.mask is not None else torch.zeros_like(batch.image)
        parts.append((batch.image[:, 0].numpy(), x_hat[:, 0].numpy(), p[:, 0].numpy(), mask[:, 0].numpy() > 0))
    x, made, chances, masks = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x, made, chances if model.suspects() else None, masks


def baselines(x: Array, region: Array, median: Array | None, spacing_mm: Sequence[float]) -> dict[str, Array]:
    """The maps that any anomaly score must beat, smoothed like the score.

    Args:
        x: (N, H, W) in [-1, 1].
        region: (N, H, W) bool.
        median: (N, H, W), of the training images of the same contrast; None where there are none, and no such map.
        spacing_mm: (row, column) of the pixels.

    Returns:
        Name, as in BASELINES, to (N, H, W); of the first two higher may be negative.
    """
    bright = _blur((x + 1) * region, spacing_mm)
    own = np.array([np.median(i[r]) if r.any() else -1.0 for i, r in zip(x, region, strict=True)])[:, None, None]
    from_medians = (None if m is None else score(x, m + 0 * x, spacing_mm, region) for m in (median, own))
    maps = zip(BASELINES, (bright, -bright, *from_medians), strict=True)
    return {name: values for name, values in maps if values is not None}


def median_images(data: MRIDataModule, at_most: int = 500) -> Array:
    """Median of the training images of each contrast at each pixel.

    Args:
        data: set up.
        at_most: evenly spaced training images of a contrast that are used.

    Returns:
        (contrasts, H, W) in [-1, 1]; -1 for a contrast that train lacks.
    """
    items = data.view("train")
    out = np.full((len(items.contrasts), data.spec.size, data.spec.size), -1, np.float32)
    for k in np.unique(items.contrast).tolist():
        of_contrast = np.flatnonzero(items.contrast == k)
        at = np.unique(np.linspace(0, len(of_contrast) - 1, at_most).astype(int))
        out[k] = np.median(items.__getitems__(of_contrast[at].tolist()).image[:, 0].numpy(), axis=0)
    return out


def largest(
    x: Array, x_hat: Array, scores: Array, mask: Array, subjects: NDArray[Any]
) -> list[tuple[str, tuple[Array, Array, Array, Array]]]:
    """Each subject's slice with the most lesion.

    Args:
        x: (N, H, W) in [-1, 1].
        x_hat: their reconstructions.
        scores: of their pixels.
        mask: bool.
        subjects: (N,) whose slice it is.

    Returns:
        Subject, and original, reconstruction, score and mask of its slice, (H, W) each; those without lesion left out.
    """
    size, out = mask.sum((1, 2)), []
    for name in np.unique(subjects).tolist():
        rows = np.flatnonzero(subjects == name)
        k = int(rows[size[rows].argmax()])
        if size[k]:
            out.append((str(name), (x[k].copy(), x_hat[k].copy(), scores[k].copy(), mask[k].copy())))
    return out


def examples(
    drawn: Sequence[tuple[str, tuple[Array, Array, Array, Array]]], simulated: bool = False, count: int = 8
) -> Any:
    """A sheet of such slices.

    Args:
        drawn: as `largest` gives them.
        simulated: the title says so.
        count: of columns at most.

    Returns:
        An RGB picture: original, reconstruction, score, mask.
    """
    names = [name for name, _ in drawn[:count]]
    x, x_hat, scores, mask = (np.stack(images) for images in zip(*(images for _, images in drawn[:count]), strict=True))
    rows = {
        "original": x, "reconstruction": x_hat,
        "anomaly score": drawing.Row(scores, "error", float(f"{np.quantile(scores, 0.999):.2g}") or 1.0),
        "lesion mask": mask * 2.0 - 1,
    }  # fmt: skip
    title = "Anomaly score: each subject's slice with the most lesion" + (" · SIMULATED" if simulated else "")
    return drawing.sheet(rows, title, names)

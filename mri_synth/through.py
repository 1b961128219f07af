"""A file to a model and back: prepared as the model's training files were, and the way home."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_synth.data.frame import Frame
from mri_synth.data.intensity import Array, Intensity, fit_intensity
from mri_synth.data.nifti import whole_file
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import IntensitySettings
from mri_synth.data.volume import Volume, from_slices, resample_to, same_grid, to_slices
from mri_synth.errors import UserError
from mri_synth.metrics.scores import ItemScores, image_scores
from mri_synth.models.base import SynthModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Ready:
    """A volume as a model sees it.

    Attributes:
        volume: as read.
        intensity: the map of its values to [-1, 1]; None for a label map, whose marked voxels are 1 and the others -1.
        slices: (N, h, w) in [-1, 1], all slices on the grid that is written.
        frame: where they lie in the model's images.
        images: (N, size, size) in [-1, 1], what the model gets.
        outside: share of the foreground's pixels that lie outside the frame.
        clipped: share of the voxels whose values are beyond `intensity`.
        resampled: the volume had another grid than the one that is written.
    """

    volume: Volume
    intensity: Intensity | None
    slices: Array
    frame: Frame
    images: Array
    outside: float
    clipped: float
    resampled: bool = False


def preparation(model: SynthModule, checkpoint: Path) -> dict[str, Any]:
    """How the model's training files were prepared.

    Args:
        model: of the checkpoint.
        checkpoint: for messages.

    Returns:
        plane, fit, size, spacing_mm, intensity.

    Raises:
        UserError: the checkpoint does not say it, or the model's images have several channels.
    """
    if model.spec.channels != 1:
        raise UserError(
            f"{checkpoint}: its model, {type(model).__name__}, takes {model.spec.channels} channels; one file has 1."
        )
    keys = ("plane", "fit", "size", "spacing_mm", "intensity")
    if missing := [k for k in keys if k not in model.spec.preparation]:
        raise UserError(
            f"{checkpoint}: does not say how its training files were prepared ({', '.join(missing)} missing), so a new "
            "file cannot be brought to it. Give a checkpoint that `python -m mri_synth.run` wrote."
        )
    return {k: model.spec.preparation[k] for k in keys}


def ready(
    volume: Volume, how: dict[str, Any], *, onto: Ready | None = None, whole: bool = False, mask: bool = False
) -> Ready:
    """Bring a volume to a model.

    Args:
        volume: as read.
        how: `preparation`.
        onto: of the volume whose grid and frame are taken; intensities are fitted before the volume is resampled, as
            in training.
        whole: the frame is widened to hold the whole slice, for a model that goes over it tile by tile.
        mask: a label map.

    Returns:
        What the model gets, and what leads back.

    Raises:
        UserError: a volume of one value, a single slice of another plane, or pictures that are not on one grid.
    """
    intensity = None if mask else fit_intensity(volume.array, IntensitySettings(**how["intensity"]), volume.name)
    moved = volume if onto is None else resample_to(volume, onto.volume, nearest=mask)
    cut = to_slices(moved, how["plane"])
    if onto is None:
        frame = Frame.fit(cut.images.shape[1:], cut.spacing_mm, how["size"], how["fit"], how["spacing_mm"])
        frame = replace(frame, size=max(frame.size, *frame.scaled)) if whole else frame
    else:
        frame = onto.frame
    slices = (
        np.where(cut.images > 0, np.float32(1), np.float32(-1)) if intensity is None else intensity.apply(cut.images)
    )
    foreground = slices > FOREGROUND
    return Ready(
        volume, intensity, slices, frame, frame.apply(slices, fill=-1, nearest=mask),
        float((foreground & ~frame.shown()).sum() / max(1, foreground.sum())),
        0.0 if intensity is None else intensity.clipped(volume.array),
        onto is not None and not same_grid(volume, onto.volume),
    )  # fmt: skip


def back(made: Array, source: Ready, how: dict[str, Any]) -> Array:
    """What a model made, as an array on its source's grid.

    Args:
        made: (N, size, size) in [-1, 1].
        source: what it was made from.
        how: `preparation`.

    Returns:
        Canonical, (X, Y, Z) or (H, W) of a picture, in [-1, 1]; -1 outside the frame.
    """
    return from_slices(source.frame.invert(made, fill=-1), source.volume, how["plane"])


def warn(model: SynthModule, source: Ready) -> None:
    """Warn of a file unlike those that the model was trained on, and of what is lost of it.

    Args:
        model: that it goes through.
        source: brought to it.
    """
    volume, frame = source.volume, source.frame
    if source.outside > 0:
        log.warning(
            "%s: %.2g %% of the foreground lie outside the model's %dx%d frame and are left empty",
            volume.name, 100 * source.outside, frame.size, frame.size,
        )  # fmt: skip
    if model.spec.plane is None and not volume.picture:
        plane = model.spec.preparation["plane"]
        log.warning(
            "%s: the model was trained on pictures of unknown plane; its slices are taken as %s", volume.name, plane
        )
    here, there = frame.spacing_mm, model.spec.spacing_mm
    placed = volume.source is None or volume.source.kind != "picture"  # a PNG's spacing is not known
    if placed and there is not None and not np.allclose(here, there, rtol=0.1):
        log.warning(
            "%s: pixels of %.2f x %.2f mm, the model was trained on %.2f x %.2f mm", volume.name, *here, *there
        )  # fmt: skip
    if model.reconstructs() and source.clipped > 0.01 and source.intensity is not None:
        log.warning("%s: %.2g %% of the voxels lie beyond %g to %g, which the model knows for this file, and "
                    "come back as these", volume.name, 100 * source.clipped, source.intensity.low,
                    source.intensity.high)  # fmt: skip


def mean_scores(
    made: Array,
    images: Array,
    score: Callable[[Tensor, Tensor], dict[str, Tensor]] = image_scores,
    batch_size: int = 16,
) -> dict[str, float | None]:
    """Scores of images, averaged over the slices for which they are defined.

    Args:
        made: (N, H, W) in [-1, 1].
        images: the true ones.
        score: of (B, 1, H, W) and the true ones; name to (B,).
        batch_size: slices at once.

    Returns:
        Score name to mean; None where it is defined for no slice.
    """
    scores = ItemScores()
    for start in range(0, len(images), batch_size):
        x_hat, x = (torch.from_numpy(a[start : start + batch_size])[:, None] for a in (made, images))
        scores.update(score(x_hat, x), torch.arange(start, start + len(x)))
    with np.errstate(invalid="ignore"):
        values = {name: v[np.isfinite(v)] for name, v in scores.compute().items() if name != "index"}
    return {name: float(v.mean()) if len(v) else None for name, v in values.items()}


def unwindowed(volume: Volume) -> Volume:
    """The volume without the display window of its header, which is not that of an image in other units.

    Args:
        volume: any.

    Returns:
        The same with cal_min and cal_max 0.
    """
    source = volume.source
    if source is None or source.header is None:
        return volume
    header = source.header.copy()
    header["cal_min"] = header["cal_max"] = 0
    return replace(volume, source=replace(source, header=header))


def stem_of(path: Path) -> str:
    """A file's name without .nii, .nii.gz or .png."""
    name = path.name
    for ending in (".gz", ".nii", ".png"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def sidecar_of(output: Path) -> Path:
    """The JSON beside an output, unless there is one that is not ours.

    Args:
        output: .nii, .nii.gz or .png.

    Returns:
        Its path.

    Raises:
        UserError: it is there and belongs to another file.
    """
    path = output.with_name(f"{stem_of(output)}.json")
    if path.exists() and '"synthetic"' not in path.read_text(errors="replace"):
        raise UserError(f"{path}: belongs to another file and would be overwritten. Give the output another name.")
    return path


def write_json(path: Path, about: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: of the file.
        about: plain values.
    """
    with whole_file(path) as part:
        part.write_text(json.dumps(about, indent=2) + "\n")

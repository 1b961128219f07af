"""`mri-synth reconstruct`: a volume through a model and back, slice by slice, into a file at the same place."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_synth import __version__
from mri_synth.data.frame import Frame
from mri_synth.data.intensity import Array, Intensity, fit_intensity
from mri_synth.data.nifti import whole_file
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import IntensitySettings, Plane
from mri_synth.data.volume import Volume, check_target, from_slices, read, save_like, to_slices
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.metrics.scores import PROTOCOLS, ImageScores
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model

log = logging.getLogger(__name__)


def reconstruct(
    checkpoint: Path,
    source: Path,
    output: Path,
    *,
    series: str | None = None,
    residual: bool = False,
    batch_size: int = 16,
    device: str = "auto",
) -> Path:
    """Reconstruct every slice of a volume, or a picture, and write it as its source is stored.

    Slices are brought to the model as its training files were (plane, frame, intensity), and back. Shape, affine,
    header, units and dtype of the source are kept; the header's description says that the image is synthetic. Beside
    the output a JSON of the same name tells how it was made. Parts outside the model's frame get its lowest intensity.

    With `residual` two maps are written beside it, float32 on the source's grid: OUTPUT_residual, the source less the
    reconstruction before rounding, in source units; and OUTPUT_score, the anomaly score (`mri_synth.anomaly.score`).

    Args:
        checkpoint: of a run whose model reconstructs.
        source: NIfTI, MGH or Analyze file, folder of a DICOM series, or picture.
        output: .nii or .nii.gz; .png for a picture.
        series: SeriesInstanceUID, where a DICOM folder holds several.
        residual: write the two maps too; volumes only.
        batch_size: slices at once.
        device: "auto" (CUDA where there is some), "cpu", "cuda", "cuda:1", ...

    Returns:
        The output's path.

    Raises:
        UserError: the model does not reconstruct, the source cannot be read, or is a picture of which maps are wanted,
            or an output cannot be written or would overwrite the source or another file's JSON.
    """
    source, output = Path(source), Path(output)
    place = device_of(device)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: 1 or more slices at once.")
    model = load_model(checkpoint)
    how = _preparation(model, checkpoint)
    volume = read(source, series)
    check_target(volume, output)
    sidecar = _sidecar(output)
    maps = _maps(volume, output) if residual else {}

    slices = to_slices(volume, how["plane"])
    intensity = fit_intensity(volume.array, IntensitySettings(**how["intensity"]), str(source))
    height, width = slices.images.shape[1:]
    frame = Frame.fit((height, width), slices.spacing_mm, how["size"], how["fit"], how["spacing_mm"])
    prepared = intensity.apply(slices.images)
    outside = _foreground_outside(prepared, frame)
    _warn(model, volume, frame, outside)
    if (clipped := intensity.clipped(volume.array)) > 0.01:
        log.warning("%s: %.2g %% of the voxels lie beyond %g to %g, which the model knows for this file, and "
                    "come back as these", volume.name, 100 * clipped, intensity.low, intensity.high)  # fmt: skip
    images = frame.apply(prepared, fill=-1)
    made, scores = _through(model.to(place).eval(), images, batch_size, place)
    array = from_slices(intensity.invert(frame.invert(made, fill=-1)), volume, how["plane"])

    name = type(model).__name__
    save_like(array, volume, output, f"synthetic: mri_synth {__version__}, {name}")
    written = {}
    for kind, path in maps.items():
        values, meaning = (_residual if kind == "residual" else _score)(
            volume, array, images, made, frame, how["plane"]
        )
        save_like(values, _unwindowed(volume), path, f"{kind}, derived: mri_synth {__version__}, {name}", "float32")
        written[path.name] = meaning
    about = {
        "synthetic": f"reconstruction by mri_synth {__version__}; not a measured image",
        "source": str(source.resolve()),
        "checkpoint": str(Path(checkpoint).resolve()),
        "model": f"{type(model).__module__}.{name}",
        "preparation": how,
        "slices": len(images),
        "frame_spacing_mm": list(frame.spacing_mm),
        "share_of_view_covered": frame.covered,
        "share_of_foreground_outside": outside,
        "intensity": {"low": intensity.low, "high": intensity.high, "clipped": intensity.clipped(volume.array)},
        "scores_in_frame": scores,
        "protocols": PROTOCOLS,
        "errors_in_source_units": _errors(array, volume, intensity),
        **({"maps": written} if written else {}),
    }
    with whole_file(sidecar) as part:
        part.write_text(json.dumps(about, indent=2) + "\n")
    return output


def _preparation(model: SynthModule, checkpoint: Path) -> dict[str, Any]:
    """How the model's training files were prepared: plane, fit, size, spacing_mm, intensity."""
    name = type(model).__name__
    if not model.reconstructs():
        raise UserError(
            f"{checkpoint}: its model, {name}, does not reconstruct images. Give a checkpoint of one that does, such "
            "as model=vqvae."
        )
    if model.spec.channels != 1:
        raise UserError(f"{checkpoint}: its model, {name}, takes {model.spec.channels} channels; one file has 1.")
    keys = ("plane", "fit", "size", "spacing_mm", "intensity")
    if missing := [k for k in keys if k not in model.spec.preparation]:
        raise UserError(
            f"{checkpoint}: does not say how its training files were prepared ({', '.join(missing)} missing), so a new "
            "file cannot be brought to it. Give a checkpoint that `python -m mri_synth.run` wrote."
        )
    return {k: model.spec.preparation[k] for k in keys}


@torch.no_grad()
def _through(
    model: SynthModule, images: Array, batch_size: int, device: torch.device
) -> tuple[Array, dict[str, float | None]]:
    """(N, size, size) images in [-1, 1] through the model, and mean scores over slices (None where undefined)."""
    made = np.empty_like(images)
    scores = ImageScores()
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(images[start : start + batch_size])[:, None]
        x_hat = model.reconstruct(x.to(device)).float().clamp(-1, 1).cpu()
        if x_hat.shape != x.shape:
            raise UserError(f"{type(model).__name__} gave {tuple(x_hat.shape)} for {tuple(x.shape)}: not usable.")
        made[start : start + len(x)] = x_hat[:, 0].numpy()
        scores.update(x_hat, x, torch.arange(start, start + len(x)))
    with np.errstate(invalid="ignore"):
        values = {name: v[np.isfinite(v)] for name, v in scores.compute().items() if name != "index"}
    return made, {name: float(v.mean()) if len(v) else None for name, v in values.items()}


def _warn(model: SynthModule, volume: Volume, frame: Frame, outside: float) -> None:
    """Of a file unlike those that the model was trained on."""
    if outside > 0:
        log.warning(
            "%s: %.2g %% of the foreground lie outside the model's %dx%d frame and are left empty",
            volume.name, 100 * outside, frame.size, frame.size,
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


def _foreground_outside(images: Array, frame: Frame) -> float:
    """Share of the foreground's pixels, over all slices, whose centres lie outside the frame."""
    foreground = images > FOREGROUND
    return float((foreground & ~frame.shown()).sum() / max(1, foreground.sum()))


def _errors(array: Array, volume: Volume, intensity: Intensity) -> dict[str, float | None]:
    """Mean absolute error against the source, whole and over the foreground."""
    difference = np.abs(array - volume.array)
    foreground = intensity.apply(volume.array) > FOREGROUND
    return {
        "mae": float(difference.mean()),
        "mae_foreground": float(difference[foreground].mean()) if foreground.any() else None,
    }


def _maps(volume: Volume, output: Path) -> dict[str, Path]:
    """Where the residual and the score go: beside the output, with its ending."""
    if volume.source is not None and volume.source.kind == "picture":
        raise UserError(f"{volume.name}: a picture, and its residual has signs and fractions that a PNG does not hold. "
                        "Leave out --residual, or store the picture as NIfTI first.")  # fmt: skip
    stem, ending = _stem(output), output.name[len(_stem(output)) :]
    paths = {kind: output.with_name(f"{stem}_{kind}{ending}") for kind in ("residual", "score")}
    for path in paths.values():
        check_target(volume, path)
    return paths


def _residual(
    volume: Volume, array: Array, images: Array, made: Array, frame: Frame, plane: Plane
) -> tuple[Array, str]:
    shown = np.broadcast_to(frame.shown(), (len(images), *frame.source))
    values = np.where(from_slices(shown, volume, plane), volume.array - array, np.float32(0))
    return values, "source less reconstruction, in source units; 0 outside the model's frame"


def _score(volume: Volume, array: Array, images: Array, made: Array, frame: Frame, plane: Plane) -> tuple[Array, str]:
    from mri_synth.anomaly import MEANING, score

    values = from_slices(frame.invert(score(images, made, frame.spacing_mm), fill=0), volume, plane)
    return values, f"anomaly score: {MEANING}"


def _unwindowed(volume: Volume) -> Volume:
    """The volume without the display window of its header, in which a map would be black."""
    source = volume.source
    if source is None or source.header is None:
        return volume
    header = source.header.copy()
    header["cal_min"] = header["cal_max"] = 0
    return replace(volume, source=replace(source, header=header))


def _stem(path: Path) -> str:
    """The name without its ending."""
    name = path.name
    for ending in (".gz", ".nii", ".png"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def _sidecar(output: Path) -> Path:
    """The JSON beside the output, unless there is one that is not ours."""
    path = output.with_name(f"{_stem(output)}.json")
    if path.exists() and '"synthetic"' not in path.read_text(errors="replace"):
        raise UserError(f"{path}: belongs to another file and would be overwritten. Give the output another name.")
    return path

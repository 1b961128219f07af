"""`mri-synth reconstruct`: a volume through a model and back, slice by slice, into a file at the same place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mri_synth import __version__
from mri_synth.data.frame import Frame
from mri_synth.data.intensity import Array, Intensity
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import Plane
from mri_synth.data.volume import Volume, check_target, from_slices, read, save_like
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.metrics.scores import PROTOCOLS
from mri_synth.models.checkpoint import load_model
from mri_synth.through import back, mean_scores, preparation, ready, sidecar_of, stem_of, unwindowed, warn, write_json


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
    reconstruction before rounding, in source units; and OUTPUT_score, the anomaly score (`mri_synth.anomaly`).

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
    if not model.reconstructs():
        raise UserError(
            f"{checkpoint}: its model, {type(model).__name__}, does not reconstruct images. Give a checkpoint of one "
            "that does, such as model=vqvae."
        )
    how = preparation(model, checkpoint)
    volume = read(source, series)
    check_target(volume, output)
    sidecar = sidecar_of(output)
    maps = _maps(volume, output) if residual else {}

    source_ready = ready(volume, how)
    warn(model, source_ready)
    frame, images, intensity = source_ready.frame, source_ready.images, source_ready.intensity
    assert intensity is not None
    model.to(place).eval()
    made = _through(model.reconstruct, images, batch_size, place).clip(-1, 1)
    array = intensity.invert(back(made, source_ready, how))

    name = type(model).__name__
    save_like(array, volume, output, f"synthetic: mri_synth {__version__}, {name}")
    written = {}
    for kind, path in maps.items():
        if kind == "residual":
            values, meaning = _residual(volume, array, len(images), frame, how["plane"])
        else:
            suspicion = _through(model.suspicion, images, batch_size, place) if model.suspects() else None
            values, meaning = _score(volume, images, made, suspicion, frame, how["plane"])
        save_like(values, unwindowed(volume), path, f"{kind}, derived: mri_synth {__version__}, {name}", "float32")
        written[path.name] = meaning
    scores = mean_scores(made, images, batch_size=batch_size)
    about = {
        "synthetic": f"reconstruction by mri_synth {__version__}; not a measured image",
        "source": str(source.resolve()),
        "checkpoint": str(Path(checkpoint).resolve()),
        "model": f"{type(model).__module__}.{name}",
        "preparation": how,
        "slices": len(images),
        "frame_spacing_mm": list(frame.spacing_mm),
        "share_of_view_covered": frame.covered,
        "share_of_foreground_outside": source_ready.outside,
        "intensity": {"low": intensity.low, "high": intensity.high, "clipped": source_ready.clipped},
        "scores_in_frame": scores,
        "protocols": {name: PROTOCOLS[name] for name in scores},
        "errors_in_source_units": _errors(array, volume, intensity),
        **({"maps": written} if written else {}),
    }
    write_json(sidecar, about)
    return output


@torch.no_grad()
def _through(
    says: Callable[[torch.Tensor], torch.Tensor], images: Array, batch_size: int, device: torch.device
) -> Array:
    """What a model says of (N, size, size) images in [-1, 1], in the same shape."""
    made = np.empty_like(images)
    for start in range(0, len(images), batch_size):
        x = torch.from_numpy(images[start : start + batch_size])[:, None]
        said = says(x.to(device)).float().cpu()
        if said.shape != x.shape:
            raise UserError(f"{says.__qualname__} gave {tuple(said.shape)} for {tuple(x.shape)}: not usable.")
        made[start : start + len(x)] = said[:, 0].numpy()
    return made


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
    stem, ending = stem_of(output), output.name[len(stem_of(output)) :]
    paths = {kind: output.with_name(f"{stem}_{kind}{ending}") for kind in ("residual", "score")}
    for path in paths.values():
        check_target(volume, path)
    return paths


def _residual(volume: Volume, array: Array, slices: int, frame: Frame, plane: Plane) -> tuple[Array, str]:
    shown = np.broadcast_to(frame.shown(), (slices, *frame.source))
    values = np.where(from_slices(shown, volume, plane), volume.array - array, np.float32(0))
    return values, "source less reconstruction, in source units; 0 outside the model's frame"


def _score(
    volume: Volume, images: Array, made: Array, suspicion: Array | None, frame: Frame, plane: Plane
) -> tuple[Array, str]:
    from mri_synth.anomaly import MEANING, SUSPECTED, score, suspected

    if suspicion is None:
        values, meaning = score(images, made, frame.spacing_mm), MEANING
    else:
        values, meaning = suspected(images, suspicion, frame.spacing_mm), SUSPECTED
    return from_slices(frame.invert(values, fill=0), volume, plane), f"anomaly score: {meaning}"

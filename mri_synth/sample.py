"""`mri-synth sample`: new images from a checkpoint, each from a seed of its own, as PNG, NIfTI and sheets."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mri_synth import __version__, drawing
from mri_synth.data.nifti import whole_file, write_nifti
from mri_synth.data.volume import AXES, Volume, from_slices
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.models.first_stage import redecode

log = logging.getLogger(__name__)

ENDINGS = {"png": ("png",), "nifti": ("nii.gz",), "both": ("png", "nii.gz")}
PER_SHEET = 64
RECORD = "samples.json"
LAST_SEED = 2**63 - 1


def sample(
    checkpoint: Path,
    n: int,
    output: Path,
    *,
    seed: int = 0,
    label: str | None = None,
    options: Mapping[str, float | int | str | None] | None = None,
    format: str = "png",
    batch_size: int = 16,
    device: str = "auto",
    first_stage: Path | None = None,
) -> Path:
    """Draw images with the seeds seed, seed + 1, ..., and write them, one file each, with sheets of all.

    A seed gives the same image in every call of the same settings, whatever the batch size but for the last of 16 bits.
    What is there already is not drawn again, so a call that was stopped is gone on with by giving it again, and a
    larger `n` adds.

    Args:
        checkpoint: of a run whose model samples.
        n: how many.
        output: folder of the files; made where missing.
        seed: of the first image.
        label: what is asked for, of conditional models: one of its classes or contrasts.
        options: further ones that the method's `sample` takes, such as temperature, or a prompt in the place of a
            label; None values are left out.
        format: "png" (16 bits, grey), "nifti" (float32 in [0, 1]), or "both".
        batch_size: images at once.
        device: "auto" (CUDA where there is some), "cpu", "cuda", ...
        first_stage: of a prior over codes: checkpoint whose decoder draws them, trained further on the same codes.

    Returns:
        The folder.

    Raises:
        UserError: the model does not sample, does not know the label, a prompt's words or an option, a number is out of
            range, or the folder holds samples of other settings.
    """
    if n < 1 or batch_size < 1 or seed < 0:
        wrong, least = next((w, k) for w, k in ((f"n={n}", 1), (f"batch_size={batch_size}", 1), (f"seed={seed}", 0))
                            if int(w.partition("=")[2]) < k)  # fmt: skip
        raise UserError(f"{wrong}: allowed: a whole number from {least} on")
    if seed + n > LAST_SEED:
        raise UserError(f"seed={seed}: allowed: a whole number from 0 to {LAST_SEED} less n")
    if format not in ENDINGS:
        raise UserError(f"--format={format}: allowed: {', '.join(ENDINGS)}")
    place = device_of(device)
    model = load_model(checkpoint)
    if first_stage is not None:
        redecode(model, first_stage)
    model = model.to(place)
    if not model.samples():
        raise UserError(f"{checkpoint}: its model, {type(model).__name__}, makes no new images; give a checkpoint of "
                        "one that does, such as model=pixelcnn or model=vae")  # fmt: skip
    chosen = {k: v for k, v in (options or {}).items() if v is not None}
    check_options(model, chosen)
    prompt = chosen.get("prompt")
    if prompt is not None:
        if label is not None:
            raise UserError(f"--label={label} --prompt='{prompt}': a model knows the one or the other; give one")
        model.prompted([str(prompt)])
    wanted = label_index(model, label)
    by_slice = wanted is not None and model.hparams.get("condition") == "slice"
    place_mm = model.spec.slices_mm[wanted] if by_slice and wanted is not None else 0.0
    record = {
        "synthetic": f"sampled by mri_synth {__version__}; not measured images",
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "model": f"{type(model).__module__}.{type(model).__name__}",
        "label": label, "options": chosen, "simulated": model.spec.simulated, "batch_size": batch_size,
    }  # fmt: skip
    if first_stage is not None:
        record["first_stage_sha256"] = hashlib.sha256(first_stage.read_bytes()).hexdigest()
    _same_settings(output, record)
    files = [[output / f"sample_{s:06d}.{e}" for e in ENDINGS[format]] for s in range(seed, seed + n)]
    with whole_file(output / RECORD) as part:
        part.write_text(json.dumps(record | {"checkpoint": str(checkpoint.resolve())}, indent=2) + "\n")
    about = f"synthetic: mri_synth {__version__}, {type(model).__name__}" + (f', "{prompt}"' if prompt else "")
    for images, at in _batches(model, range(seed, seed + n), files, wanted, chosen, batch_size, place):
        for image, paths in zip(images, files[at], strict=True):
            for path in paths:
                _write(image, model, path, about, place_mm)
    _sheets(output, model, range(seed, seed + n), files, str(prompt) if prompt else label)
    return output


def check_options(model: SynthModule, options: Mapping[str, Any]) -> None:
    """Refuse options that a method's `sample` does not take, and values out of range.

    Args:
        model: samples.
        options: name to value.

    Raises:
        UserError: names the option.
    """
    known = [n for n, p in inspect.signature(model.sample).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name, value in options.items():
        if name not in known:
            here = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"--{name.replace('_', '-')}: {type(model).__name__} has no such option; {here}")
        if not isinstance(value, bool | str) and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')}={value}: allowed: a number above 0")


def label_index(model: SynthModule, label: str | None) -> int | None:
    """Index of a label by name.

    Args:
        model: samples.
        label: one of `model.conditions()`; None: any.

    Returns:
        The index; None for none.

    Raises:
        UserError: no such label, or an unconditional model.
    """
    if label is None:
        return None
    known = model.conditions()
    if not known:
        way = "model.condition=label" if "condition" in model.hparams else "model=pixelcnn model.condition=label"
        raise UserError(f"--label={label}: {type(model).__name__} was trained without labels; train one with {way}")
    if label not in known:
        near = difflib.get_close_matches(label, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--label={label}: allowed: {', '.join(known)}{hint}")
    return known.index(label)


@torch.no_grad()
def draw(model: SynthModule, seeds: Sequence[int], label: Tensor | None, options: Mapping[str, Any]) -> Tensor:
    """One batch of samples on the model's device.

    Args:
        model: samples.
        seeds: one per image.
        label: (n,) int64 indices into `model.conditions()`, or None.
        options: keyword arguments of its `sample`.

    Returns:
        (n, C, H, W) float32 in [-1, 1], on the CPU.
    """
    given = torch.tensor(list(seeds), dtype=torch.int64, device=model.device)
    labels = None if label is None else label.to(model.device)
    with torch.autocast(model.device.type, enabled=False):
        return model.sample(given, labels, **options).float().clamp(-1, 1).cpu()


def _batches(
    model: SynthModule, seeds: range, files: list[list[Path]], label: int | None, options: Mapping[str, Any],
    batch_size: int, device: torch.device,
) -> Iterator[tuple[Tensor, slice]]:  # fmt: skip
    """(images, which of all) of the batches of which some file is missing."""
    from tqdm import tqdm

    starts = [k for k in range(0, len(seeds), batch_size)
              if not all(p.exists() for paths in files[k : k + batch_size] for p in paths)]  # fmt: skip
    if len(starts) * batch_size < len(seeds):
        log.info(
            "%d of %d samples are there already", len(seeds) - min(len(starts) * batch_size, len(seeds)), len(seeds)
        )
    for start in tqdm(starts, "sampling", unit="batch", disable=len(starts) < 2):
        at = slice(start, min(start + batch_size, len(seeds)))
        labels = None if label is None else torch.full((len(seeds[at]),), label)
        yield draw(model, seeds[at], labels, options), at


def _same_settings(output: Path, record: Mapping[str, Any]) -> None:
    """Samples of other settings are never mixed with these."""
    path = output / RECORD
    if not path.exists() or not any(output.glob("sample_*")):
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: not readable; delete it, or give another folder") from None
    keys = ("checkpoint_sha256", "first_stage_sha256", "label", "options")
    if differ := [f"{k}: {before.get(k)} there, {record.get(k)} here" for k in keys if before.get(k) != record.get(k)]:
        raise UserError(f"{output}: holds samples of other settings ({'; '.join(differ)}); give another folder")


def _write(image: Tensor, model: SynthModule, path: Path, description: str, place_mm: float) -> None:
    """One image; PNG in 16 bits, NIfTI as one slice in the model's plane and spacing, where it was asked for."""
    values = ((image + 1) / 2).numpy()
    if path.suffix == ".png":
        about = PngInfo()
        about.add_text("Description", description)
        with whole_file(path) as part:
            _picture(values).save(part, format="PNG", pnginfo=about)
        return
    if len(values) != 1:
        raise UserError(f"{path}: an image of {len(values)} channels is no NIfTI slice; give --format png")
    write_nifti(*_volume(values[0], model, place_mm), path, description, np.dtype(np.float32))


def _picture(values: NDArray[Any]) -> Image.Image:
    if len(values) == 1:
        return Image.fromarray(np.rint(values[0] * 65535).astype(np.uint16))
    return Image.fromarray(np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0))


def _volume(values: NDArray[Any], model: SynthModule, place_mm: float) -> tuple[NDArray[Any], Volume]:
    """(X, Y, Z) array of one slice, and its place: in the middle of its plane, which lies at `place_mm`."""
    plane = model.spec.plane or "axial"
    row, column = model.spec.spacing_mm or (1.0, 1.0)
    axis = AXES[plane]  # type: ignore[index]
    spacing = np.ones(3)
    across, down = (a for a in range(3) if a != axis)
    spacing[across], spacing[down] = column, row
    array = from_slices(values[None], Volume(values, np.eye(4), np.dtype(np.float32)), plane)  # type: ignore[arg-type]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(array.shape) - 1) / 2
    affine[axis, 3] = place_mm
    return array, Volume(array, affine, np.dtype(np.float32))


def _sheets(output: Path, model: SynthModule, seeds: range, files: list[list[Path]], what: str | None) -> None:
    """All images on sheets, read back from their files."""
    for number, start in enumerate(range(0, len(seeds), PER_SHEET)):
        part = seeds[start : start + PER_SHEET]
        images = np.stack([_read(paths[0]) for paths in files[start : start + PER_SHEET]])
        asked = f" · {what}" if what else ""
        simulated = " · trained on SIMULATED images" if model.spec.simulated else ""
        title = f"{type(model).__name__} · synthetic · seeds {part[0]} to {part[-1]}{asked}{simulated}"
        drawing.save(drawing.grid(images, title, columns=8), output / f"sheet_{number:03d}.png")


def _read(path: Path) -> NDArray[np.float32]:
    """(1, H, W) in [-1, 1]; (3, H, W) of a coloured picture."""
    if path.suffix == ".png":
        with Image.open(path) as opened:
            values = np.asarray(opened)
        if values.ndim == 3:
            return values.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
        return values[None].astype(np.float32) / 32767.5 - 1
    from mri_synth.data.volume import read, to_slices

    volume = read(path, allow_constant=True)
    plane = next(p for p, a in AXES.items() if volume.array.shape[a] == 1)
    return 2 * to_slices(volume, plane).images - 1

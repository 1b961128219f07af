"""Style images from files: a picture, grey or in colour, a NIfTI volume, or a folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from mri_synth.data.intensity import fit_intensity
from mri_synth.data.settings import IntensitySettings, Plane
from mri_synth.data.volume import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read, to_slices
from mri_synth.errors import UserError

SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)


def files(path: Path) -> list[Path]:
    """The style files of a path.

    Args:
        path: a file, or a folder, such as one that `mri-synth sample` wrote (its sheets are no style).

    Returns:
        In order of their names.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return [path]
    found = [p for p in sorted(path.glob("*")) if p.name.lower().endswith(SUFFIXES) and not p.name.startswith("sheet_")]
    if not found:
        what = "no picture and no volume in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(f"model.style={path}: {what}; give a picture, a NIfTI file, or a folder of them")
    return found


def load(path: Path, size: int, plane: Plane = "axial") -> Tensor:
    """A style image, its shorter side at the size of the canvases and its shape its own.

    Args:
        path: picture of 8 or 16 bits, grey or RGB; or volume, of which it is the middle slice, percentiles 0.1 and 99.9
            becoming -1 and 1.
        size: pixels.
        plane: of a volume's slice.

    Returns:
        (1, 1 or 3, H, W) float32 in [-1, 1].

    Raises:
        UserError: it cannot be read.
    """
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        volume = read(path)
        slices = to_slices(volume, plane).images
        window = fit_intensity(volume.array, IntensitySettings(), str(path))
        values = torch.from_numpy(np.ascontiguousarray(window.apply(slices[len(slices) // 2])))[None].float()
    else:
        values = _picture(path)
    height, width = values.shape[-2:]
    scale = size / min(height, width)
    to = (max(size, round(height * scale)), max(size, round(width * scale)))
    return functional.interpolate(values[None], to, mode="bilinear", antialias=True).clamp(-1, 1)


def _picture(path: Path) -> Tensor:
    """(1 or 3, H, W) in [-1, 1]."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                values = np.asarray(image, np.float32)[..., None] / 65535
            else:
                image = image.convert("L" if image.mode in ("L", "1", "LA") else "RGB")
                values = np.asarray(image, np.float32).reshape(image.height, image.width, -1) / 255
    except Exception as error:  # whatever Pillow's readers raise
        raise UserError(f"model.style={path}: damaged or not a picture ({str(error)[:100]})") from error
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))) * 2 - 1

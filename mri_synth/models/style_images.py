"""Style images from files: a picture, grey or in colour, a NIfTI volume, or a folder of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from mri_synth.data.intensity import fit_intensity
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import IntensitySettings, Plane
from mri_synth.data.volume import AXES, PICTURE_SUFFIXES, VOLUME_SUFFIXES, Volume, read, to_slices
from mri_synth.errors import UserError

SUFFIXES = (*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)
LEAST_SHOWN = 0.02
"""Share of a slice's pixels that are foreground where it shows something that can lend its style."""


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


def problems(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with the arguments of style transfer: files that are not there, or an init without its image.

    Args:
        arguments: of the configuration.

    Returns:
        The mistakes.
    """
    given: dict[str, Any] = {"init": "content", "init_image": None, "vgg": None, "style": None, **arguments}
    found = [f"model.{key}={given[key]}: no such file" for key in ("vgg", "init_image")
             if given[key] is not None and not Path(given[key]).is_file()]  # fmt: skip
    if given["style"] is not None:
        try:
            files(Path(given["style"]))
        except UserError as error:
            found.append(str(error))
    if (given["init"] == "image") != (given["init_image"] is not None):
        found.append(f"model.init={given['init']} and model.init_image={given['init_image'] or 'null'}: an image "
                     "is given with model.init=image, and only then")  # fmt: skip
    return found


def initial(path: Path, shape: Sequence[int], channels: int) -> Tensor:
    """The image that canvases start from.

    Args:
        path: as of `load`.
        shape: (H, W) of the canvases, to which it is stretched.
        channels: of the canvases; colour becomes grey for 1.

    Returns:
        (1, channels, H, W) float32 in [-1, 1].
    """
    image = load(path, min(shape))
    image = image.mean(1, keepdim=True) if channels == 1 else image.expand(-1, channels, -1, -1)
    return functional.interpolate(image, list(shape), mode="bilinear", antialias=True)


def load(path: Path, size: int, plane: str = "axial") -> Tensor:
    """A style image, its shorter side at the size of the canvases and its shape its own.

    Args:
        path: as of `read_style`; of a volume it is the middle slice.
        size: pixels.
        plane: of a volume's slice.

    Returns:
        (1, 1 or 3, H, W) float32 in [-1, 1].
    """
    return read_style(path, plane).scaled(None, size)


@dataclass(frozen=True, eq=False)
class Style:
    """The images of a style file.

    Attributes:
        images: (N, 1 or 3, H, W) float32 in [-1, 1]; N is 1 of a picture.
        spacing_mm: (row, column); None of a picture.
        filled: (M,) numbers of the slices that show something; all where none does.
    """

    images: Tensor
    spacing_mm: tuple[float, float] | None
    filled: Tensor

    def scaled(self, share: float | None, size: int, spacing_mm: tuple[float, float] | None = None) -> Tensor:
        """One of them at the scale of a canvas.

        Args:
            share: of the way from the first slice that shows something to the last; None: the middle slice of all.
            size: shorter side, pixels, where a spacing is not known.
            spacing_mm: (row, column) of the canvas, to which a volume's slice is brought.

        Returns:
            (1, 1 or 3, H, W) float32 in [-1, 1].
        """
        at = len(self.images) // 2 if share is None else int(self.filled[round(share * (len(self.filled) - 1))])
        height, width = self.images.shape[-2:]
        if spacing_mm is None or self.spacing_mm is None:
            scale = size / min(height, width)
            to = (max(size, round(height * scale)), max(size, round(width * scale)))
        else:
            (row, column), (y, x) = self.spacing_mm, spacing_mm
            to = (max(1, round(height * row / y)), max(1, round(width * column / x)))
        image = self.images[at : at + 1]
        return functional.interpolate(image, to, mode="bilinear", antialias=True).clamp(-1, 1)


def read_style(path: Path, plane: str = "axial") -> Style:
    """Read a style file.

    Args:
        path: picture of 8 or 16 bits, grey or RGB; or volume, of which percentiles 0.1 and 99.9 become -1 and 1.
        plane: of a volume's slices; a volume of one slice has its own.

    Returns:
        Its images.

    Raises:
        UserError: it cannot be read.
    """
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        return Style(_picture(path)[None], None, torch.zeros(1, dtype=torch.int64))
    volume = read(path)
    cut = to_slices(volume, plane_of(volume, plane))
    window = fit_intensity(volume.array, IntensitySettings(), str(path))
    images = torch.from_numpy(np.ascontiguousarray(window.apply(cut.images)))[:, None].float()
    filled = (images > FOREGROUND).flatten(1).float().mean(1) > LEAST_SHOWN
    return Style(images, cut.spacing_mm, (filled if filled.any() else ~filled).nonzero()[:, 0])


def plane_of(volume: Volume, plane: str) -> Plane:
    """The plane in which a volume is cut.

    Args:
        volume: any.
        plane: that is wanted.

    Returns:
        It; the volume's own where it is one slice.
    """
    thin: list[Any] = [p for p, axis in AXES.items() if volume.array.ndim == 3 and volume.array.shape[axis] == 1]
    wanted: Any = plane
    return thin[0] if len(thin) == 1 else wanted  # type: ignore[no-any-return]


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
        raise UserError(f"{path}: damaged or not a picture ({str(error)[:100]})") from error
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))) * 2 - 1

"""Pictures from files that an optimisation starts from or aims at: one slice of a volume, or a picture."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from mri_synth.data.batch import DataSpec
from mri_synth.data.volume import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read
from mri_synth.errors import UserError
from mri_synth.through import ready

log = logging.getLogger(__name__)

PLAIN: dict[str, Any] = {"plane": "axial", "fit": "contain", "spacing_mm": None, "intensity": {}}
"""How a volume is prepared for a generator that does not say how its training files were."""


def load(path: Path, number: int | None, size: int, channels: int, spec: DataSpec, key: str = "--slice") -> Tensor:
    """A file as a square image of a generator.

    Volumes are brought to it as its training files were; pictures are scaled, equally in both directions, so that
    they fit, and padded with black. What had another size is said in the log.

    Args:
        path: NIfTI, MGH or Analyze volume; PNG, JPEG or TIFF picture.
        number: of a volume's slice, from 0 on; None for what has only one.
        size: side of the image, pixels.
        channels: 1 or 3.
        spec: what the generator's data knew of themselves.
        key: what `number` is called where it is given, for messages.

    Returns:
        (1, channels, size, size) float32 in [-1, 1].

    Raises:
        UserError: no such file, unreadable, 3-D without a slice, no such slice, or a slice of a picture.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a NIfTI volume or a picture "
                        f"({', '.join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)})")  # fmt: skip
    if not path.name.lower().endswith(VOLUME_SUFFIXES):
        if number is not None:
            raise UserError(f"{key}={number}: {path} is a picture, which has no slices; leave it out")
        image = _picture(path, size)
        if channels == 1:
            return image.mean(1, keepdim=True)
        return image.expand(-1, channels, -1, -1)
    volume = read(path)
    how = PLAIN | {k: v for k, v in spec.preparation.items() if k in PLAIN} | {"size": size}
    if how["spacing_mm"]:
        how["spacing_mm"] *= spec.size / size  # a larger canvas shows the same, finer
    made = ready(volume, how)
    count = len(made.images)
    if count > 1 and number is None:
        raise UserError(f"{path}: a volume of {count} {how['plane']} slices, and one is needed: add {key}=K, K from 0 "
                        f"to {count - 1}, such as {key}={count // 2} from its middle")  # fmt: skip
    if number is not None and not 0 <= number < count:
        raise UserError(f"{key}={number}: {path} has {count} {how['plane']} slices; allowed: 0 to {count - 1}")
    if made.frame.source != (size, size):
        log.info("%s: slices of %d x %d pixels, brought to %d x %d", path, *made.frame.source, size, size)
    image = torch.from_numpy(np.ascontiguousarray(made.images[number or 0])).float()
    return image.expand(1, channels, -1, -1).contiguous()


def _picture(path: Path, size: int) -> Tensor:
    """(1, 1 or 3, size, size) in [-1, 1]."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                values = np.asarray(image, np.float32)[None] / 65535
            else:
                image = image.convert("L" if image.mode in ("L", "1", "LA") else "RGB")
                values = np.asarray(image, np.float32).reshape(image.height, image.width, -1).transpose(2, 0, 1) / 255
    except Exception as error:  # whatever Pillow's readers raise
        raise UserError(f"{path}: damaged or not a picture ({str(error)[:100]})") from error
    found = torch.from_numpy(np.ascontiguousarray(values))[None] * 2 - 1
    height, width = found.shape[-2:]
    if (height, width) == (size, size):
        return found
    scale = size / max(height, width)
    to = (max(1, round(height * scale)), max(1, round(width * scale)))
    log.info("%s: %d x %d pixels, brought to %d x %d", path, height, width, *to)
    found = functional.interpolate(found, to, mode="bilinear", antialias=True).clamp(-1, 1)
    top, left = (size - to[0]) // 2, (size - to[1]) // 2
    return functional.pad(found, (left, size - to[1] - left, top, size - to[0] - top), value=-1.0)

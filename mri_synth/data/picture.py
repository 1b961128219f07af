"""PNG, JPEG and TIFF pictures: grey values in, grey PNG out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from mri_synth.data.nifti import reason, whole_file
from mri_synth.data.volume import WAY_OUT, Array, Source, Volume
from mri_synth.errors import UserError

# Largest difference between the channels of an RGB picture that still counts as grey, of 255. Of 300 JPEG from the
# web (Br35H), 277 have 0, visibly grey ones with chroma noise or a tint up to 17; coloured banners begin at 33.
GREY_TOLERANCE = 20


def read_picture(path: Path) -> Volume:
    """Read a grey picture with the grey values it has.

    Args:
        path: PNG, JPEG or TIFF, 8 or 16 bit; RGB where its channels agree within `GREY_TOLERANCE`.

    Returns:
        (H, W) picture, dtype uint8 or uint16, pixel spacing 1 mm (unknown).

    Raises:
        UserError: damaged, coloured, transparent, of several frames, or of another number type.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise UserError(f"{path}: {frames} frames in one file, one picture is needed. {WAY_OUT}")
            if _colour_16bit(path, image):
                raise UserError(f"{path}: 16-bit colour; save it as 16-bit grey. {WAY_OUT}")
            image.load()
            grey = _grey(path, ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever their parsers raise
        raise UserError(f"{path}: damaged or not a picture ({reason(error)}). {WAY_OUT}") from error
    source = Source(path, "picture", grey.shape, np.eye(4), np.ones(2))
    return Volume(grey.astype(np.float32), np.eye(4), grey.dtype, picture=True, source=source)


def write_picture(values: Array, volume: Volume, path: Path, description: str) -> None:
    """Write a grey PNG of the source's bit depth.

    Args:
        values: (H, W); rounded and clipped to the bit depth.
        volume: whose bit depth is kept.
        path: .png.
        description: the PNG's texts "synthetic" and "Description", the latter as all PNGs of the package have it.

    Raises:
        UserError: the target cannot be written.
    """
    limit = np.iinfo(volume.dtype)
    grey = np.clip(np.rint(values), limit.min, limit.max).astype(volume.dtype)
    text = PngImagePlugin.PngInfo()
    for key in ("synthetic", "Description"):
        text.add_text(key, description)
    with whole_file(path) as part:
        Image.fromarray(grey).save(part, format="PNG", pnginfo=text)


def _grey(path: Path, image: Image.Image) -> Array:
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            raise UserError(f"{path}: {int((alpha < 255).sum())} transparent pixels have no grey value. {WAY_OUT}")
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode == "L":
        return np.array(image)
    if image.mode == "RGB":
        channels = np.asarray(image).astype(np.int16)
        difference = channels.max(axis=-1) - channels.min(axis=-1)
        if difference.max() > GREY_TOLERANCE:
            raise UserError(
                f"{path}: coloured: the channels differ by up to {difference.max()} of 255 (allowed for JPEG's chroma "
                f"noise: {GREY_TOLERANCE}), in {100 * (difference > GREY_TOLERANCE).mean():.2g} % of the pixels beyond "
                "that. Crop banners away and convert it to grey, or leave it out by data.on_bad_file=skip."
            )
        return np.array(image.convert("L"))
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.array(image)
        if values.min() >= 0 and values.max() <= 65535:
            return values.astype(np.uint16)
    raise UserError(f"{path}: pixels of mode {image.mode}; 8- or 16-bit grey (unsigned) is needed. {WAY_OUT}")


def _colour_16bit(path: Path, image: Image.Image) -> bool:
    """16-bit RGB, which Pillow would hand out as 8 bit."""
    if image.format == "PNG":
        with path.open("rb") as file:
            head = file.read(26)
        return len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6)
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (8,))
        return image.mode in ("RGB", "RGBA") and max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return False

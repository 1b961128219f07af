"""Pictures of brains: labelled sheets on dark ground, error maps with their range, animations.

Images come as numpy arrays or torch tensors with intensities in [-1, 1]; torch itself is not imported. The letters
are those of Pillow's own font, which knows little beyond ASCII: other letters are written as their nearest ASCII form.
"""

from __future__ import annotations

import math
import os
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mri_synth import __version__

Images: TypeAlias = Any  # numpy array or torch tensor, (N, H, W) or (N, C, H, W)
Bytes: TypeAlias = NDArray[np.uint8]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

GROUND = (13, 17, 23)
INK = (230, 237, 243)
SOFT = (155, 167, 180)
SIGN = f"synthetic: mri_synth {__version__}, a drawing; images on it that are real are named so"
"""What is written into every picture and animation, for whoever meets it without its folder."""
GAP = 4
MARGIN = 16
PAGE_WIDTH = 1100
ERROR_MAX = 0.25
# Eleven points of matplotlib's magma (CC0), from 0 to 1; linear in between.
MAGMA = (
    (0, 0, 4), (20, 14, 54), (59, 15, 112), (100, 26, 128), (140, 41, 129), (183, 55, 121), (222, 73, 104),
    (247, 112, 92), (254, 159, 109), (254, 207, 146), (252, 253, 191),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of a sheet.

    Attributes:
        images: (N, H, W) or (N, C, H, W), C = 1 or 3. For "image" in [-1, 1]; for "error" |x_hat - x| / 2, that is
            in units of the whole intensity range (the data range 1 of SSIM and PSNR).
        kind: "image" (grey or colour), or "error" (magma from 0 to `maximum`, a scale beside the row's name).
        maximum: the error that is drawn brightest.
    """

    images: Images
    kind: Literal["image", "error"] = "image"
    maximum: float = ERROR_MAX


def error(x_hat: Images, x: Images, maximum: float = ERROR_MAX) -> Row:
    """The row |x_hat - x|, as a share of the intensity range.

    Args:
        x_hat: reconstruction or translation, in [-1, 1].
        x: what it should be, in [-1, 1], same shape.
        maximum: the share that is drawn brightest.

    Returns:
        A row for `sheet`.
    """
    return Row(np.abs(array(x_hat) - array(x)) / 2, "error", maximum)


def array(images: Images) -> NDArray[np.float32]:
    """Images as float32 (N, C, H, W) on the CPU.

    Args:
        images: numpy array or torch tensor (any floating type and device), (N, H, W) or (N, C, H, W).

    Returns:
        The values, unchanged.

    Raises:
        ValueError: if the shape is another, or C is neither 1 nor 3.
    """
    if hasattr(images, "detach"):
        images = images.detach().float().cpu().numpy()
    values = np.asarray(images, dtype=np.float32)
    if values.ndim == 3:
        values = values[:, None]
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise ValueError(f"images are (N, H, W) or (N, 1 or 3, H, W), not {values.shape}")
    return values


def grey(values: NDArray[np.float32]) -> Bytes:
    """(..., C, H, W) in [-1, 1] as (..., H, W, 3) bytes: -1 is 0, 1 is 255, clipped beyond, not-a-number is magenta."""
    bad = ~np.isfinite(values).all(axis=-3)
    levels = np.rint((np.clip(np.nan_to_num(values), -1, 1) + 1) * 127.5).astype(np.uint8)
    pixels = np.moveaxis(np.broadcast_to(levels, (*levels.shape[:-3], 3, *levels.shape[-2:])), -3, -1).copy()
    pixels[bad] = (255, 0, 255)
    return pixels


def magma(share: NDArray[np.float32]) -> Bytes:
    """Shares in [0, 1] (clipped beyond) of any shape (...) as (..., 3) bytes from black through red to pale yellow."""
    points = np.linspace(0, 1, len(MAGMA))
    clipped = np.clip(np.nan_to_num(share, nan=1.0), 0, 1)
    channels = [np.interp(clipped, points, [colour[c] for colour in MAGMA]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def font(size: int) -> Font:
    """Pillow's built-in font, `size` pixels high."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """The text in letters the built-in font has: accents dropped, dashes and signs in their ASCII form."""
    text = text.translate(str.maketrans("–—−×≤≥µμ", "---x<>uu"))
    kept = unicodedata.normalize("NFKD", text)
    kept = "".join(letter for letter in kept if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() or letter in "·±…" else "?" for letter in kept)


def wrap(text: str, width: float, face: Font) -> list[str]:
    """Lines of at most `width` pixels; breaks at spaces, and within a word only where the word alone is too long."""
    lines: list[str] = []
    for given in plain(text).split("\n"):
        line = ""
        for word in given.split(" "):
            candidate = f"{line} {word}" if line else word
            if face.getlength(candidate) <= width:
                line = candidate
                continue
            if line:
                lines.append(line)
            while face.getlength(word) > width and len(word) > 1:
                fits = max(1, sum(face.getlength(word[: n + 1]) <= width for n in range(len(word))))
                lines.append(word[:fits])
                word = word[fits:]
            line = word
        lines.append(line)
    return lines


def enlargement(values: NDArray[np.float32], cell: int) -> int:
    """The whole factor that brings both sides of (..., H, W) images to at least `cell` pixels."""
    return max(1, math.ceil(cell / min(int(side) for side in values.shape[-2:])))


def sheet(
    rows: Mapping[str, Images | Row], title: str, captions: Sequence[str] | None = None, cell: int = 128
) -> Image.Image:
    """Rows of images, one below the other, the same column being the same item.

    Args:
        rows: name -> images in [-1, 1], or a `Row` (see `error`). Rows may differ in size but not in N.
        title: written at the top, wrapped where it is long.
        captions: one per column, written under it, wrapped.
        cell: least side of an image on the sheet, in pixels; reached by repeating pixels, so that one pixel of the
            image stays one square of the sheet.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if there are no images, rows differ in N, or captions are not N.
    """
    drawn = {name: row if isinstance(row, Row) else Row(row) for name, row in rows.items()}
    values = {name: array(row.images) for name, row in drawn.items()}
    counts = {len(v) for v in values.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"a sheet needs rows of equally many images; got {sorted(counts)} images")
    count = counts.pop()
    if captions is not None and len(captions) != count:
        raise ValueError(f"{count} columns but {len(captions)} captions")
    scales = {name: enlargement(v, cell) for name, v in values.items()}
    column = max(v.shape[-1] * scales[name] for name, v in values.items())
    width = max(count * (column + GAP) - GAP, 320)
    head, names, small = font(20), font(15), font(13)
    title_lines = wrap(title, width, head)
    caption_lines = [wrap(c, column - 4, small) for c in captions or []]
    name_lines = {name: wrap(name, width - (190 if row.kind == "error" else 0), names) for name, row in drawn.items()}
    height = MARGIN + 26 * len(title_lines)
    height += sum(10 + 20 * len(name_lines[n]) + 4 + v.shape[-2] * scales[n] for n, v in values.items())
    height += (8 + 17 * max(len(lines) for lines in caption_lines) if caption_lines else 0) + MARGIN
    canvas = Image.new("RGB", (width + 2 * MARGIN, height), GROUND)
    pen = ImageDraw.Draw(canvas)
    y = MARGIN
    for line in title_lines:
        pen.text((MARGIN, y), line, font=head, fill=INK)
        y += 26
    for name, row in drawn.items():
        y += 10
        if row.kind == "error":
            _scale(pen, canvas, MARGIN + width, y, row.maximum, small)
        for line in name_lines[name]:
            pen.text((MARGIN, y), line, font=names, fill=SOFT)
            y += 20
        y += 4
        pixels = magma(values[name].mean(axis=1) / row.maximum) if row.kind == "error" else grey(values[name])
        pixels = pixels.repeat(scales[name], axis=1).repeat(scales[name], axis=2)
        for i, image in enumerate(pixels):
            canvas.paste(Image.fromarray(image), (MARGIN + i * (column + GAP), y))
        y += pixels.shape[1]
    for i, lines in enumerate(caption_lines):
        for j, line in enumerate(lines):
            pen.text((MARGIN + i * (column + GAP), y + 8 + 17 * j), line, font=small, fill=SOFT)
    return canvas


def _scale(pen: ImageDraw.ImageDraw, canvas: Image.Image, right: int, y: int, maximum: float, face: Font) -> None:
    """The colours of an error row and their range, ending at `right`."""
    high = f"{maximum:g}"
    left = right - face.getlength(high)
    pen.text((left, y + 1), high, font=face, fill=SOFT)
    bar = magma(np.tile(np.linspace(0, 1, 120, dtype=np.float32), (12, 1)))
    start = int(left) - 6 - 120
    canvas.paste(Image.fromarray(bar), (start, y + 3))
    pen.rectangle((start - 1, y + 2, start + 120, y + 15), outline=(72, 82, 94))
    pen.text((start - 6 - face.getlength("0"), y + 1), "0", font=face, fill=SOFT)


def grid(
    images: Images, title: str, columns: int | None = None, captions: Sequence[str] | None = None, cell: int = 128
) -> Image.Image:
    """Images row by row: samples, or the slices of one subject.

    Args:
        images: (N, H, W) or (N, C, H, W) in [-1, 1].
        title: written at the top, wrapped where it is long.
        columns: images in a row; None for as many as a page is wide (1100 pixels), at most 8.
        captions: one per image, written under it, wrapped.
        cell: least side of an image on the sheet, in pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if there are no images or captions are not N.
    """
    values = array(images)
    if len(values) == 0:
        raise ValueError("a grid needs at least one image")
    if captions is not None and len(captions) != len(values):
        raise ValueError(f"{len(values)} images but {len(captions)} captions")
    scale = enlargement(values, cell)
    high, wide = values.shape[-2] * scale, values.shape[-1] * scale
    columns = max(1, min(columns or min(8, PAGE_WIDTH // (wide + GAP)), len(values)))
    head, small = font(20), font(13)
    width = max(columns * (wide + GAP) - GAP, 320)
    lines = wrap(title, width, head)
    notes = [wrap(c, wide - 4, small) for c in captions or []]
    note = 17 * max((len(n) for n in notes), default=0) + (6 if notes else 0)
    rows = math.ceil(len(values) / columns)
    top = MARGIN + 26 * len(lines) + 8
    canvas = Image.new("RGB", (width + 2 * MARGIN, top + rows * (high + note + GAP) - GAP + MARGIN), GROUND)
    pen = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + 26 * i), line, font=head, fill=INK)
    for i, image in enumerate(grey(values).repeat(scale, axis=1).repeat(scale, axis=2)):
        x, y = MARGIN + i % columns * (wide + GAP), top + i // columns * (high + note + GAP)
        canvas.paste(Image.fromarray(image), (x, y))
        for j, line in enumerate(notes[i] if notes else []):
            pen.text((x, y + high + 3 + 17 * j), line, font=small, fill=SOFT)
    return canvas


def save(image: Image.Image, path: Path, sign: str = SIGN) -> Path:
    """Writes a PNG by rename and returns its path; the folder is made.

    Args:
        image: a picture.
        path: the file.
        sign: its text "Description"; "" for a picture that holds nothing synthetic.

    Returns:
        The path.
    """
    text = PngInfo()
    if sign:
        text.add_text("Description", sign)
    return _replace(path, lambda file: image.save(file, format="PNG", pnginfo=text))


def gif(frames: Sequence[Image.Image], path: Path, ms: int = 400, last_ms: int = 2000) -> Path:
    """Writes an animation by rename: frames in order, for ever, the last one held.

    All frames share one palette, taken from the first, the middle and the last, without dithering: greys stay still
    from frame to frame. Equal neighbours are written as one frame with the durations of both (so does GIF itself).

    Args:
        frames: pictures; where sizes differ (a longer title), the smaller are padded below and to the right.
        path: the file; its folder is made.
        ms: milliseconds per frame.
        last_ms: milliseconds of the last frame.

    Returns:
        The path.

    Raises:
        ValueError: if there are no frames.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    box = (0, 0, max(frame.width for frame in frames), max(frame.height for frame in frames))
    padded = []
    for frame in frames:
        padded.append(Image.new("RGB", box[2:], GROUND))
        padded[-1].paste(frame, (0, 0))
    mosaic = np.concatenate([np.asarray(padded[i]) for i in (0, len(padded) // 2, -1)])
    palette = Image.fromarray(mosaic).quantize(256, method=Image.Quantize.MEDIANCUT)
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in padded]
    times = [ms] * (len(flat) - 1) + [last_ms]
    return _replace(
        path,
        lambda file: flat[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=flat[1:],
            duration=times,
            loop=0,
            optimize=False,
            comment=SIGN.encode(),
        ),
    )


def _replace(path: Path, save_to: Any) -> Path:
    """Lets `save_to(file)` fill a neighbour of `path`, then renames it: a reader never meets half a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            save_to(file)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path

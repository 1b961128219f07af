"""What one file tells by itself: its header, its grey levels, its slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import IntensitySettings, Plane
from mri_synth.data.volume import Volume, to_slices
from mri_synth.doctor.findings import Finding

Array = NDArray[Any]

LEVELS_OF_8_BIT = 256
CLIPPED = 0.005
"""Share of the foreground at the highest value from which on the top is called clipped."""
OBLIQUE_DEGREES = 20.0
NEAR_EMPTY = 0.02
"""Share of foreground pixels below which a chosen slice is called near-empty."""


def header_findings(volume: Volume) -> Iterator[Finding]:
    """Orientation: missing, conflicting, sheared, or far from the axes.

    Args:
        volume: as read.

    Yields:
        What is not as it should be; nothing of pictures, and of volumes made in memory.
    """
    source = volume.source
    if source is None or source.kind != "nifti":
        return
    header, name = source.header, volume.name
    if header is None or name.lower().endswith((".img", ".img.gz", ".hdr")):
        yield Finding("note", "orientation", name, "the format says no orientation (Analyze)",
                      "check left and right once in a viewer; NIfTI would say it")  # fmt: skip
        return
    if volume.picture:
        return
    sform, s_code = header.get_sform(coded=True)
    qform, q_code = header.get_qform(coded=True)
    way_out = "take header and affine from the scanner's own file (dcm2niix), then mri-synth doctor again"
    if not s_code and not q_code:
        yield Finding("warning", "orientation", name, "sform_code and qform_code are 0: the file does not say how the "
                      f"head lies; taken as {''.join(map(str, nib.aff2axcodes(source.affine)))}", way_out)  # fmt: skip
    elif np.allclose(source.affine, np.eye(4)):
        yield Finding("warning", "orientation", name, "the affine is the identity: written by a program that lost the "
                      "orientation, unless 1 mm RAS from the corner is meant", way_out)  # fmt: skip
    if s_code and q_code and sform is not None and qform is not None:
        yield from _conflict(name, volume.array.shape, np.asarray(sform), np.asarray(qform), source)
    axes = source.affine[:3, :3] / np.linalg.norm(source.affine[:3, :3], axis=0)
    if (shear := np.abs(axes.T @ axes - np.eye(3)).max()) > 0.02:
        yield Finding("warning", "orientation", name, f"the axes are sheared: {np.degrees(np.arcsin(shear)):.0f} "
                      "degrees from a right angle", "resample it onto a grid with right angles")  # fmt: skip
    tilt = np.degrees(np.arccos(np.clip(np.abs(axes).max(0).min(), 0, 1)))
    if tilt > OBLIQUE_DEGREES:
        yield Finding("note", "orientation", name, f"oblique by {tilt:.0f} degrees: its slices are taken along its own "
                      "axes, not the patient's", "resample it onto the patient's axes if slices must be "
                      "axial")  # fmt: skip


def _conflict(name: str, shape: tuple[int, ...], sform: Array, qform: Array, source: Any) -> Iterator[Finding]:
    corners = np.array(np.meshgrid(*([0, n - 1] for n in source.shape[:3]))).reshape(3, -1)
    apart = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
    distance = float(np.linalg.norm(apart, axis=0).max())
    said = ["".join(map(str, nib.aff2axcodes(a))) for a in (sform, qform)]
    if said[0] != said[1]:
        yield Finding("error", "orientation", name, f"sform says {said[0]}, qform {said[1]}: programs will disagree on "
                      f"left and right (here the sform is used)", "find out which is true in a viewer, and write it "
                      "into both: img.set_sform(a, 1); img.set_qform(a, 1)")  # fmt: skip
    elif distance > 1:
        yield Finding("note", "orientation", name, f"sform and qform differ by up to {distance:.0f} mm (the sform is "
                      "used)", "fine if the sform is a registration; else copy one into the other")  # fmt: skip


def value_findings(volume: Volume) -> Iterator[Finding]:
    """Grey levels: few of them, a clipped top.

    Args:
        volume: as read.

    Yields:
        What is not as it should be; 8 bit of a picture file is said once for all of them, elsewhere.
    """
    array, name = volume.array, volume.name
    levels = distinct(array)
    if levels <= LEVELS_OF_8_BIT // (4 if volume.picture else 1):
        kind = "picture" if volume.picture else f"volume stored as {volume.dtype}"
        yield Finding("warning", "grey levels", name, f"{levels} distinct values in a {kind}: intensities were rounded",
                      "go back to the scanner's 12 or 16 bits where they can be had")  # fmt: skip
    low, high = float(array.min()), float(array.max())
    bright = array > low + 0.1 * (high - low)
    share = float((array == high).sum() / max(1, bright.sum()))
    if share > CLIPPED and levels > 2:
        yield Finding("warning", "clipped", name, f"{100 * share:.1f} % of the foreground has the highest value, "
                      f"{high:g}: the top was cut off", "take the images before windowing or 8-bit conversion; what is "
                      "cut off cannot be learnt")  # fmt: skip


def range_finding(volume: Volume, settings: IntensitySettings) -> Iterator[Finding]:
    """Whether a fixed range of intensities fits the file.

    Args:
        volume: as read.
        settings: `data.intensity`.

    Yields:
        A warning where it does not.
    """
    if settings.method != "fixed" or settings.range is None:
        return
    low, high = settings.range
    beyond = float(((volume.array < low) | (volume.array > high)).mean())
    used = float(np.percentile(volume.array, 99.9) - low) / (high - low)
    if beyond > 0.01 or used < 0.25:
        outside, inside = f"{100 * beyond:.1f} % of the values lie beyond", f"values reach {100 * used:.0f} % of"
        what = outside if beyond > 0.01 else inside
        yield Finding("warning", "intensity range", volume.name, f"{what} data.intensity.range=[{low:g},{high:g}]",
                      "data.intensity.method=percentile fits each volume by itself")  # fmt: skip


def distinct(array: Array) -> int:
    """How many different values there are; more than 256 are not counted further than a sample shows."""
    flat = array.reshape(-1)
    few = len(np.unique(flat[:: max(1, flat.size // 100_000)]))
    return few if few > LEVELS_OF_8_BIT else len(np.unique(flat))


def slice_findings(volume: Volume, plane: Plane) -> Iterator[Finding]:
    """Slices without anything in the midst of a head.

    Args:
        volume: as read.
        plane: in which it is cut.

    Yields:
        A warning that names them.
    """
    if volume.picture:
        return
    images = to_slices(volume, plane).images
    low, high = np.percentile(images[:, ::2, ::2], [0.1, 99.9])
    share = (images > low + 0.1 * (high - low)).mean((1, 2))
    filled = np.flatnonzero(share > 0.02)
    if not len(filled):
        return
    inner = np.arange(filled[0], filled[-1] + 1)
    gaps = inner[share[inner] < 1e-3]
    if len(gaps):
        yield Finding("warning", "empty slices", volume.name, f"{len(gaps)} of {len(images)} {plane} slices are empty "
                      f"between filled ones: {_ranges(gaps)}", "convert or export the series anew")  # fmt: skip


def chosen_findings(name: str, images: Array) -> Iterator[Finding]:
    """Chosen slices that show next to nothing.

    Args:
        name: of the file.
        images: (N, H, W) in [-1, 1], as a run would see them.

    Yields:
        A warning with their number.
    """
    few = int(((images > FOREGROUND).mean((1, 2)) < NEAR_EMPTY).sum())
    if few:
        yield Finding("warning", "empty slices", name, f"{few} of the {len(images)} chosen slices show less than "
                      f"{100 * NEAR_EMPTY:.0f} % foreground", "data.slices.min_foreground=0.05 leaves them out, or a "
                      "narrower data.slices.start and stop")  # fmt: skip


def _ranges(numbers: Array) -> str:
    """3, 4, 5, 9 as "3-5, 9"."""
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    words = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts]
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")

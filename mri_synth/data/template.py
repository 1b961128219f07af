"""Where simulated subjects come from: the MNI152 template, grids on it, random streams and smooth random fields.

Template: ICBM 152 nonlinear symmetric 2009a (Fonov et al., NeuroImage 54:313-327, 2011), as shipped in nilearn's wheel.
Coordinates are millimetres in MNI space, RAS. "Fine" is the lattice of about 0.9 mm on which tissue is decided; the
voxels of an image are its block averages, which is what makes partial volume.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from mri_synth.errors import UserError

Array = npt.NDArray[np.float64]
Axes = tuple[Array, Array, Array]
Part = tuple[slice, slice, slice]
CENTRE_MM = (0.0, -17.0, 13.0)  # of the brain in the frame, MNI
FOV_MM = 240.0  # the template's largest axial slice (181 mm long) fills 75 % of it, drawn subjects 77 % on average
FINE_MM = 0.9375  # 256 fine points across the field of view
BOX_MM = ((-132.0, 132.0), (-150.0, 116.0), (-60.0, 96.0))  # where random fields are defined: more than any frame
SHARPEN_MM = 3.0
FLUID_T1 = 75.0  # T1 intensity of CSF in the template
_LOCK = Lock()
STREAMS = ("anatomy", "tissue", "bias", "noise", "lesion", "demographics")
Stream = Literal["anatomy", "tissue", "bias", "noise", "lesion", "demographics"]


def stream(seed: int, subject: int, name: Stream, contrast: int = 0) -> np.random.Generator:
    """An independent random stream of one subject: drawing from one changes no other.

    Args:
        seed: of the whole set of subjects.
        subject: number of the subject, from 0.
        name: what the numbers are for.
        contrast: number of the contrast, for what differs between the scans of one subject (noise).

    Returns:
        PCG64 generator (numpy's SeedSequence with a spawn key, so streams do not overlap).
    """
    key = (STREAMS.index(name), contrast)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, subject], spawn_key=key)))


@dataclass(frozen=True)
class Grid:
    """The voxels of a simulated volume: axial slices, (size, size, slices), RAS.

    Attributes:
        size: voxels along x and along y; the field of view is always `FOV_MM`, so spacing is FOV_MM / size.
        slices: number of axial slices, evenly placed from `first_mm` to `last_mm`.
        first_mm: z of the lowest slice (MNI).
        last_mm: z of the highest slice (MNI).
    """

    size: int = 128
    slices: int = 10
    first_mm: float = -10.0
    last_mm: float = 44.0

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxel centres along x, y, z."""
        gap = (self.last_mm - self.first_mm) / (self.slices - 1) if self.slices > 1 else 6.0
        return FOV_MM / self.size, FOV_MM / self.size, gap

    @property
    def fold(self) -> int:
        """Fine points per voxel along x and along y."""
        return max(1, round(FOV_MM / self.size / FINE_MM))

    @property
    def affine(self) -> Array:
        """(4, 4) voxel index -> mm, RAS."""
        step = self.spacing_mm
        half = (self.size - 1) / 2
        affine = np.diag([*step, 1.0])
        affine[:3, 3] = CENTRE_MM[0] - half * step[0], CENTRE_MM[1] - half * step[1], self.first_mm
        return affine

    def axes(self, *, fine: bool = False) -> Axes:
        """Coordinates in mm along x, y, z of the voxel centres, or of the fine points."""
        n = self.size * (self.fold if fine else 1)
        offset = (np.arange(n, dtype=np.float64) - (n - 1) / 2) * (FOV_MM / n)
        height = self.first_mm + np.arange(self.slices, dtype=np.float64) * self.spacing_mm[2]
        return CENTRE_MM[0] + offset, CENTRE_MM[1] + offset, height

    def average(self, fine: Array) -> Array:
        """Block means: (X * fold, Y * fold, Z) -> (X, Y, Z), of the grid or a part of it."""
        k, (x, y, z) = self.fold, fine.shape
        coarse: Array = fine.reshape(x // k, k, y // k, k, z).mean(axis=(1, 3))
        return coarse

    def part(self, centre_mm: Sequence[float], reach_mm: Sequence[float]) -> tuple[Part, Part]:
        """Whole voxels within a box.

        Args:
            centre_mm: x, y, z.
            reach_mm: from the centre to each side, along x, y, z.

        Returns:
            Slices into arrays of voxels, and into arrays of fine points.
        """
        spans = []
        for x, centre, reach, step in zip(self.axes(), centre_mm, reach_mm, self.spacing_mm, strict=True):
            found = np.flatnonzero(np.abs(x - centre) <= reach + step)
            spans.append((int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0))
        (a, b), (c, d), (e, f) = spans
        k = self.fold
        return (slice(a, b), slice(c, d), slice(e, f)), (slice(a * k, b * k), slice(c * k, d * k), slice(e, f))


@dataclass(frozen=True)
class Template:
    """MNI152 maps, (197, 233, 189) uint8 at 1 mm, voxel (i, j, k) at `origin_mm` + (i, j, k).

    Attributes:
        wm: white matter fraction, 0 to 255.
        gm: grey matter fraction, 0 to 255.
        brain: 255 inside the brain mask, 0 outside.
        t1: T1 intensity, sharpened: the average of 152 heads has lost the depth of its sulci.
        near: the brain and two voxels around it; elsewhere there is nothing to interpolate.
        origin_mm: of voxel (0, 0, 0).
    """

    wm: npt.NDArray[np.uint8]
    gm: npt.NDArray[np.uint8]
    brain: npt.NDArray[np.uint8]
    t1: npt.NDArray[np.uint8]
    near: npt.NDArray[np.bool_]
    origin_mm: tuple[float, float, float]


def load_template() -> Template:
    """The MNI152 maps in nilearn's wheel, read once per process (nilearn itself is not imported: that is slow).

    Returns:
        The template.

    Raises:
        UserError: nilearn is not installed, or its maps are not where they are known to be.
    """
    with _LOCK:  # volumes are prepared by several threads
        return _load_template()


@cache
def _load_template() -> Template:
    found = importlib.util.find_spec("nilearn")
    if found is None or not found.submodule_search_locations:
        raise UserError("data=phantom needs the MNI152 maps that come with nilearn: pip install nilearn")
    folder = Path(found.submodule_search_locations[0]) / "datasets" / "data"
    maps = []
    for name in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            raise UserError(f"{path}: missing, and data=phantom needs it: pip install 'nilearn>=0.11,<1'")
        maps.append(nib.nifti1.Nifti1Image.from_filename(path))
    t1, gm, wm = (np.asanyarray(image.dataobj).astype(np.uint8) for image in maps)
    brain = t1 > 0
    weight: Array = ndimage.gaussian_filter(brain.astype(np.float64), SHARPEN_MM)
    blurred: Array = ndimage.gaussian_filter(t1.astype(np.float64), SHARPEN_MM) / np.maximum(weight, 1e-3)
    sharp = np.where(brain, 2.0 * t1 - blurred, FLUID_T1)  # t1 + (t1 - blurred)
    affine = maps[0].affine
    assert affine is not None
    return Template(
        wm=wm,
        gm=gm,
        brain=(brain * 255).astype(np.uint8),
        t1=np.clip(np.rint(sharp), 0, 255).astype(np.uint8),
        near=ndimage.binary_dilation(brain, iterations=2),
        origin_mm=(float(affine[0, 3]), float(affine[1, 3]), float(affine[2, 3])),
    )


def at_part(axes: Axes, part: Part) -> Axes:
    """The coordinates of a part of a grid."""
    return axes[0][part[0]], axes[1][part[1]], axes[2][part[2]]


def spline_basis(x: Array, start: float, spacing: float, count: int) -> Array:
    """Uniform cubic B-splines: (len(x), count), column k centred at start + k * spacing; rows sum to 1 inside."""
    t = np.abs((x[:, None] - start) / spacing - np.arange(count))
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, near, far)


def smooth_field(rng: np.random.Generator, axes: Axes, spacing_mm: float, sd: float) -> Array:
    """A smooth Gaussian random field: cubic B-splines on a lattice that does not depend on the points asked for.

    Args:
        rng: the stream; always the same count of numbers is drawn for one `spacing_mm`.
        axes: coordinates in mm along x, y, z.
        spacing_mm: of the lattice of coefficients; about the correlation length.
        sd: standard deviation of the field.

    Returns:
        (X, Y, Z) values.
    """
    counts = [int(np.ceil((b - a) / spacing_mm)) + 3 for a, b in BOX_MM]
    field = rng.standard_normal(counts)
    field *= sd / (151 / 315) ** 1.5  # mean square of the basis is 151/315 along each axis
    # Sparse products: four of the splines reach a point, and unlike BLAS they sum in one order on every machine.
    field = np.moveaxis(field, 2, 0)
    for k in (2, 0, 1):  # z first: it has the fewest points
        basis = sparse.csr_array(spline_basis(axes[k], BOX_MM[k][0] - spacing_mm, spacing_mm, counts[k]))
        rest = field.shape[1:]
        field = np.moveaxis((basis @ field.reshape(counts[k], -1)).reshape(len(axes[k]), *rest), 0, -1)
    return np.ascontiguousarray(np.moveaxis(field, 0, -1))

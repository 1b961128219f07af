"""Images with their place in the patient: reading, cutting into displayed slices, resampling, writing back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mri_synth.data.settings import Plane
from mri_synth.errors import UserError

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

Array = npt.NDArray[Any]

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".img", ".hdr")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

WAY_OUT = "Mend, convert or remove the file; data.on_bad_file=skip leaves it out and lists it."
AXES: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True, eq=False)
class Source:
    """What a file said besides its voxels: all that writing back needs.

    Attributes:
        path: the file, or the folder of a DICOM series.
        kind: "nifti" (anything nibabel reads), "dicom" or "picture" (PNG, JPEG, TIFF).
        shape: shape of the stored array.
        affine: (4, 4) RAS mm of the stored array.
        orientation: (3, 2) nibabel orientation of the stored axes; for 2-D files (2,) the signs of their two axes.
        header: NIfTI header (converted where the file is no NIfTI), None where there is none.
        slope: scale factor of the stored numbers; 0 is "not scaled", as in NIfTI.
        inter: offset of the stored numbers.
        files: of a DICOM series, by name.
    """

    path: Path
    kind: Literal["nifti", "dicom", "picture"]
    shape: tuple[int, ...]
    affine: Array
    orientation: Array
    header: Nifti1Header | None = None
    slope: float = 0.0
    inter: float = 0.0
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in canonical order.

    Attributes:
        array: (X, Y, Z) float32; axes run (most nearly, by the affine) towards Right, Anterior, Superior.
            A picture is (H, W), as displayed.
        affine: (4, 4) RAS mm of `array`; for a picture diag(row mm, column mm, 1, 1), its place is unknown.
        dtype: numpy dtype of the stored numbers.
        picture: the file is 2-D (PNG, JPEG, TIFF, 2-D NIfTI): one slice of an unknown plane.
        source: how the file stored it; None for a volume made in memory.
    """

    array: Array
    affine: Array
    dtype: np.dtype[Any]
    picture: bool = False
    source: Source | None = None

    @property
    def name(self) -> str:
        """The path of the file, for messages."""
        return str(self.source.path) if self.source else "a volume made in memory"

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each axis of `array`."""
        norms = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(n) for n in norms[: self.array.ndim])

    @property
    def source_axes(self) -> str:
        """Where the stored axes run, such as "PSR"; "" for pictures and volumes made in memory."""
        if self.picture or self.source is None:
            return ""
        ends = ("LR", "PA", "IS")
        return "".join(ends[int(axis)][int(sign > 0)] for axis, sign in self.source.orientation)


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of one volume in display orientation.

    Attributes:
        images: (N, H, W) float32.
        spacing_mm: (row, column) distance of neighbouring pixels.
        index: (N,) int64, from the inferior, posterior or left end.
        position_mm: (N,) float64, world coordinate (RAS) of each slice's centre along the plane's axis; 0 for pictures.
    """

    images: Array
    spacing_mm: tuple[float, float]
    index: Array
    position_mm: Array


def read(path: Path, series: str | None = None, *, allow_constant: bool = False) -> Volume:
    """Read one file, or one DICOM series, and check that it can be used.

    Args:
        path: NIfTI, MGH or Analyze file; PNG, JPEG or TIFF picture; folder of a DICOM series.
        series: SeriesInstanceUID, where a DICOM folder holds several series.
        allow_constant: accept a volume of one single value (an empty lesion mask).

    Returns:
        The voxels in canonical order, as float32, with the file's scale factors applied.

    Raises:
        UserError: the file is missing, damaged, coloured, complex, 4-D, constant, has NaN or inf, or cannot be placed.
    """
    path = Path(path)
    if path.is_dir():
        from mri_synth.data.dicom import read_series

        volume = read_series(path, series)
    elif not path.exists():
        raise UserError(f"{path}: no such file.")
    elif path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes). {WAY_OUT}")
    elif path.name.lower().endswith(VOLUME_SUFFIXES + tuple(s + ".gz" for s in (".img", ".hdr"))):
        from mri_synth.data.nifti import read_nifti

        volume = read_nifti(path)
    elif path.suffix.lower() in PICTURE_SUFFIXES:
        from mri_synth.data.picture import read_picture

        volume = read_picture(path)
    else:
        raise UserError(
            f"{path}: not a kind of file that is read. Allowed: {', '.join(VOLUME_SUFFIXES + PICTURE_SUFFIXES)}, "
            "or the folder (not one file) of a DICOM series."
        )
    _check_values(volume, allow_constant)
    return volume


def to_slices(volume: Volume, plane: Plane) -> Slices:
    """Cut a volume into slices as they are looked at.

    Axial: anterior up; coronal and sagittal: superior up. Axial and coronal: the patient's left at the image's left
    (neurological); sagittal: anterior at the image's left. A picture is one slice whatever the plane.

    Args:
        volume: canonical volume, or a picture.
        plane: axial, coronal or sagittal.

    Returns:
        All slices, from inferior, posterior or left.

    Raises:
        UserError: the volume is one single slice of another plane.
    """
    if volume.picture:
        row, column = volume.spacing_mm
        return Slices(volume.array[None].copy(), (row, column), np.zeros(1, np.int64), np.zeros(1))
    axis = AXES[plane]
    thin = [p for p, a in AXES.items() if volume.array.shape[a] == 1]
    if len(thin) == 1 and plane not in thin:
        shape = "x".join(map(str, volume.array.shape))
        raise UserError(f"{volume.name}: one {thin[0]} slice ({shape}), but plane={plane}. Set plane={thin[0]}.")
    columns, rows = (a for a in range(3) if a != axis)
    images = np.flip(np.transpose(volume.array, (axis, rows, columns)), _flipped(plane))
    n, spacing = volume.array.shape[axis], volume.spacing_mm
    centre = np.repeat([[(s - 1) / 2 for s in volume.array.shape]], n, 0)
    centre[:, axis] = np.arange(n)
    position = centre @ volume.affine[axis, :3] + volume.affine[axis, 3]
    return Slices(np.ascontiguousarray(images), (spacing[rows], spacing[columns]), np.arange(n), position)


def from_slices(images: Array, volume: Volume, plane: Plane) -> Array:
    """The canonical array whose slices these are: exact inverse of `to_slices`.

    Args:
        images: (N, H, W), all slices of the volume's grid in display orientation.
        volume: the volume that was cut.
        plane: the plane it was cut in.

    Returns:
        (X, Y, Z) array, or (H, W) for a picture.
    """
    if volume.picture:
        return np.array(images[0])
    axis = AXES[plane]
    columns, rows = (a for a in range(3) if a != axis)
    turned = np.transpose(np.flip(images, _flipped(plane)), np.argsort((axis, rows, columns)))
    return np.ascontiguousarray(turned)


def to_source_order(array: Array, volume: Volume) -> Array:
    """A canonical array in the axis order and shape of the file.

    Args:
        array: (X, Y, Z), or (H, W) for a picture.
        volume: the volume whose file is meant.

    Returns:
        The same values in the shape `volume.source.shape`; unchanged without a source.
    """
    source = volume.source
    if source is None or source.kind == "picture":
        return array
    if volume.picture:
        return np.ascontiguousarray(flip_picture(array, source.orientation).T).reshape(source.shape)
    order = source.orientation[:, 0].astype(int)
    flipped = np.flip(array, tuple(int(a) for a, sign in source.orientation if sign < 0))
    return np.ascontiguousarray(np.transpose(flipped, order)).reshape(source.shape)


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same shape and place, within 1e-3 mm at every voxel."""
    if a.array.shape != b.array.shape or a.picture != b.picture:
        return False
    corners = np.array(np.meshgrid(*([0, s - 1] for s in (*a.array.shape, 1)[:3]))).reshape(3, -1)
    moved = (a.affine - b.affine)[:3, :3] @ corners + (a.affine - b.affine)[:3, 3:]
    return bool(np.abs(moved).max() < 1e-3)


def resample_to(volume: Volume, reference: Volume, nearest: bool = False) -> Volume:
    """Bring a volume onto another's grid by world coordinates; nothing is registered.

    Args:
        volume: what is resampled, linearly and without smoothing beforehand.
        reference: whose grid is taken.
        nearest: nearest neighbour, for masks and label maps.

    Returns:
        `volume`'s values at `reference`'s voxels; outside its field of view its minimum (0 with `nearest`). It is
        written back like `reference`, in its own dtype.

    Raises:
        UserError: pictures of different size or spacing, which have no place in the world.
    """
    if same_grid(volume, reference):
        return volume
    if volume.picture or reference.picture:
        raise UserError(
            f"{volume.name} {volume.array.shape} and {reference.name} {reference.array.shape} are not on one grid, and "
            "2-D pictures carry no place in the patient to resample by. Bring them to one size first."
        )
    from scipy.ndimage import affine_transform

    to_voxel = np.linalg.inv(volume.affine) @ reference.affine
    fill = 0.0 if nearest else float(volume.array.min())
    array = affine_transform(
        volume.array,
        to_voxel[:3, :3],
        to_voxel[:3, 3],
        reference.array.shape,
        order=0 if nearest else 1,
        cval=fill,
    )
    source = reference.source
    if source and volume.source:
        source = replace(source, path=volume.source.path, slope=volume.source.slope, inter=volume.source.inter)
    return replace(reference, array=array.astype(np.float32), dtype=volume.dtype, source=source)


def check_target(volume: Volume, path: Path) -> None:
    """Whether `save_like` can write this volume under this name.

    Args:
        volume: the volume whose file is imitated.
        path: the file to be written.

    Raises:
        UserError: the ending does not fit, or the file is the source itself.
    """
    picture = volume.source is not None and volume.source.kind == "picture"
    allowed = (".png",) if picture else (".nii", ".nii.gz")
    if not path.name.lower().endswith(allowed):
        what = "a picture is written as" if picture else "a volume is written as"
        raise UserError(f"{path}: {what} {' or '.join(allowed)}; give the output such an ending.")
    if volume.source and path.exists() and volume.source.path.exists() and path.samefile(volume.source.path):
        raise UserError(f"{path}: is the input itself, and would be overwritten. Give the output another name.")


def save_like(
    array: Array, volume: Volume, path: Path, description: str, dtype: Literal["source", "float32"] = "source"
) -> None:
    """Write an array as the volume's file stores it: shape, axis order, affine, header, units, dtype.

    NIfTI for volumes (a DICOM series becomes NIfTI at the same place), PNG of the same bit depth for pictures.
    The file appears complete or not at all.

    Args:
        array: canonical, (X, Y, Z) or (H, W) for a picture, in the volume's units.
        volume: the volume it was made from.
        path: .nii or .nii.gz, .png for pictures.
        description: what it is, at most 79 characters: the header's `descrip`, or the PNG's text "synthetic".
        dtype: the stored one (integers are rounded, and clipped to its range), or float32.

    Raises:
        UserError: wrong ending, values that are not finite, or a target that cannot be written.
    """
    path = Path(path)
    check_target(volume, path)
    if array.shape != volume.array.shape:
        raise ValueError(f"array has shape {array.shape}, the volume {volume.array.shape}")
    if bad := int(np.size(array) - np.isfinite(array).sum()):
        raise UserError(f"{path}: not written, {bad} of the {array.size} values are NaN or infinite.")
    stored = to_source_order(array, volume)
    if volume.source and volume.source.kind == "picture":
        from mri_synth.data.picture import write_picture

        write_picture(stored, volume, path, description)
    else:
        from mri_synth.data.nifti import write_nifti

        write_nifti(stored, volume, path, description[:79], volume.dtype if dtype == "source" else np.dtype(np.float32))


def _flipped(plane: Plane) -> tuple[int, ...]:
    """Axes of (N, H, W) that run against the canonical axes."""
    return (1, 2) if plane == "sagittal" else (1,)


def flip_picture(array: Array, signs: Array) -> Array:
    """(H, W) between display (rows downwards, columns rightwards) and the stored signs of axes (column, row)."""
    axes = tuple(axis for axis, flip in ((0, signs[1] > 0), (1, signs[0] < 0)) if flip)
    return np.flip(array, axes)


def _check_values(volume: Volume, allow_constant: bool) -> None:
    finite = np.isfinite(volume.array)
    if not finite.all():
        nan = int(np.isnan(volume.array).sum())
        inf = int(finite.size - finite.sum()) - nan
        raise UserError(f"{volume.name}: {nan} NaN and {inf} infinite of {finite.size} values. {WAY_OUT}")
    if not allow_constant and volume.array.min() == volume.array.max():
        raise UserError(f"{volume.name}: constant, every value is {volume.array.flat[0]:g}. {WAY_OUT}")

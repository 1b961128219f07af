"""What nibabel reads, to a `Volume` and back into a file with the same header."""

# mypy: untyped-calls-exclude="nibabel,isal"
from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, igzip_lib
from nibabel.filebasedimages import SerializableImage
from nibabel.spatialimages import SpatialImage

from mri_synth.data.volume import WAY_OUT, Array, Source, Volume, flip_picture
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

_STALE_SECONDS = 600.0
_LEVEL = 1
"""Of isa-l's gzip, several times as fast as zlib's lowest; measured and synthetic voxels hardly shrink further."""


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI, MGH or Analyze file.

    Args:
        path: the file.

    Returns:
        The volume; a 2-D file is a picture: columns run along its first axis, rows along its second, upwards where
        the affine's sign says so. (Which anatomical plane it lies in, a 2-D file cannot say; its axes are not swapped.)

    Raises:
        UserError: damaged, 4-D, complex, coloured, or with an affine that places nothing.
    """
    try:
        image = nib.load(path)
        if not isinstance(image, SpatialImage):
            raise UserError(f"{path}: holds no voxels ({type(image).__name__}). {WAY_OUT}")
        if path.name.lower().endswith("gz") and isinstance(image, SerializableImage):
            # to the end, where the checksum is: nibabel stops behind the last voxel and never sees it
            image = type(image).from_bytes(igzip.decompress(path.read_bytes()))
        _check_type(path, image)
        shape = _check_shape(path, image.shape)
        array = np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged")).reshape(shape)
    except UserError:
        raise
    except Exception as error:  # the readers raise whatever their parsers raise
        raise UserError(f"{path}: damaged or not complete ({reason(error)}). {WAY_OUT}") from error
    affine = _check_affine(path, image)
    slope, inter = _scaling(image)
    dtype = image.get_data_dtype().newbyteorder("=")
    header = _header(image, affine)
    if len(shape) == 2:
        signs = np.array([_sign(affine[:3, axis]) for axis in (0, 1)])
        column, row = np.linalg.norm(affine[:3, :2], axis=0)
        source = Source(path, "nifti", image.shape, affine, signs, header, slope, inter)
        picture = np.ascontiguousarray(flip_picture(array.T, signs))
        return Volume(picture, np.diag([row, column, 1.0, 1.0]), dtype, picture=True, source=source)
    orientation = nib.io_orientation(affine)
    source = Source(path, "nifti", image.shape, affine, orientation, header, slope, inter)
    return canonical(array, dtype, source)


def canonical(array: Array, dtype: np.dtype[Any], source: Source) -> Volume:
    """A stored 3-D array as a volume with axes towards Right, Anterior, Superior.

    Args:
        array: (I, J, K) float32 in stored order.
        dtype: of the stored numbers.
        source: where it came from, with its affine and orientation.

    Returns:
        The volume; its affine gives every voxel the place it had.
    """
    turned = np.ascontiguousarray(nib.apply_orientation(array, source.orientation))
    affine = source.affine @ nib.orientations.inv_ornt_aff(source.orientation, array.shape)
    return Volume(turned, affine, dtype, source=source)


def write_nifti(stored: Array, volume: Volume, path: Path, description: str, dtype: np.dtype[Any]) -> None:
    """Write an array in stored order with its source's header.

    Args:
        stored: values in the stored shape.
        volume: whose header, affine and scale factors are kept.
        path: .nii or .nii.gz.
        description: becomes `descrip`.
        dtype: type of the numbers in the file.

    Raises:
        UserError: the target cannot be written.
    """
    source = volume.source
    dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype
    header, affine = (source.header, source.affine) if source else (None, volume.affine)
    header = _new_header(affine) if header is None else header.copy()
    slope, inter = (source.slope, source.inter) if source and dtype == volume.dtype else (1.0, 0.0)
    numbers, slope, inter = to_numbers(stored, dtype, slope, inter, str(path))
    header.set_data_dtype(dtype)
    header["descrip"] = description.encode("ascii", "replace")
    kind: type[nib.Nifti1Image] = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(numbers, affine, header)
    # nibabel writes numbers as they are, under these factors, once the factors are set.
    image.header["scl_slope"], image.header["scl_inter"] = slope, inter
    with whole_file(path) as part:
        if path.name.lower().endswith("gz"):
            # without name and time: equal content gives equal files
            part.write_bytes(igzip_lib.compress(image.to_bytes(), _LEVEL, igzip_lib.COMP_GZIP))
        else:
            nib.save(image, part)


def to_numbers(
    values: Array, dtype: np.dtype[Any], slope: float, inter: float, name: str
) -> tuple[Array, float, float]:
    """Numbers that stand for values under NIfTI's `value = slope * number + inter`.

    Args:
        values: any shape, finite.
        dtype: of the numbers.
        slope: scale factor; 0 is "not scaled".
        inter: offset.
        name: file named in the warning.

    Returns:
        Numbers, slope, inter. Unscaled integers are rounded and clipped to the type's range (warned of); factors under
        which values would be clipped are replaced by ones that hold them all.
    """
    scaled = slope not in (0.0, 1.0) or (slope == 1.0 and inter != 0.0)
    if dtype.kind == "f" and not scaled:
        return values.astype(dtype, copy=False), slope, inter
    numbers = (values.astype(np.float64) - inter) / slope if scaled else values.astype(np.float64)
    if dtype.kind == "f":
        return numbers.astype(dtype), slope, inter
    info = np.iinfo(dtype)
    numbers = np.rint(numbers)
    outside = int(((numbers < info.min) | (numbers > info.max)).sum())
    if outside and scaled:
        low, high = float(values.min()), float(values.max())
        # The factors are stored in single precision: leave a step at either end.
        slope = float(np.float32((high - low) / (float(info.max) - float(info.min) - 2)))
        inter = float(np.float32(low - (info.min + 1) * slope))
        numbers = np.rint((values.astype(np.float64) - inter) / slope)
    elif outside:
        log.warning("%s: %d of %d values clipped to the range of %s", name, outside, values.size, dtype)
    return np.clip(numbers, info.min, info.max).astype(dtype), slope, inter


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; renamed to `path` at the end, removed on failure.

    What a process left that was killed goes when another writes there, if nobody has written to it for ten minutes.

    Args:
        path: the file to appear; its folder is made where missing.

    Yields:
        The name to write under, with the same ending.

    Raises:
        UserError: the folder cannot be made or written, or the disk is full.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _tidy(path.parent.resolve())
        yield part
        part.replace(path)
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else reason(error)
        raise UserError(f"{path}: cannot be written ({why}). Free space there or name another place.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@functools.cache  # looking through a folder of thousands takes a moment: once is enough
def _tidy(folder: Path) -> None:
    for part in folder.glob(".part-*"):
        with contextlib.suppress(OSError):  # another process may be quicker
            if time.time() - part.stat().st_mtime > _STALE_SECONDS:  # it may be another machine's
                part.unlink()


def _check_type(path: Path, image: SpatialImage) -> None:
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb":
        what = "complex" if dtype.kind == "c" else "coloured (RGB)" if dtype.names else "not numeric"
        raise UserError(f"{path}: voxels are {what} (dtype {dtype}), one real number each is needed. {WAY_OUT}")


def _check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The 2-D or 3-D shape, without trailing axes of one."""
    kept = shape[:3] + tuple(n for n in shape[3:] if n != 1)
    text = "x".join(map(str, shape))
    if len(kept) > 3:
        raise UserError(
            f"{path}: {len(shape)}-D ({text}), several frames in one file; one volume is needed. Take one frame with "
            f"`nib.save(nib.load('{path.name}').slicer[..., 0], 'frame0.nii.gz')`, or skip it by data.on_bad_file=skip."
        )
    if len(kept) < 2 or 0 in kept:
        raise UserError(f"{path}: shape ({text}) is not an image. {WAY_OUT}")
    return kept


def _check_affine(path: Path, image: SpatialImage) -> Array:
    if image.affine is None or not np.isfinite(image.affine).all():
        raise UserError(f"{path}: the affine is missing or not finite: the image has no place. {WAY_OUT}")
    affine = np.array(image.affine, dtype=np.float64)
    axes = affine[:3, : min(3, len(image.shape))]
    sizes = np.linalg.norm(axes, axis=0)
    # A sine below 1e-3 between an axis and the others: the axes do not span the image.
    if sizes.min() < 1e-6 or np.linalg.svd(axes / sizes, compute_uv=False).min() < 1e-3:
        raise UserError(f"{path}: the affine is singular (axes {sizes.round(4).tolist()} mm); mend sform or qform.")
    header = image.header
    unplaced = isinstance(header, nib.Nifti1Header) and header["qform_code"] == 0 and header["sform_code"] == 0
    if unplaced or not isinstance(header, nib.Nifti1Header | nib.freesurfer.mghformat.MGHHeader):
        log.warning("%s: the header does not say how the head lies; taken as %s", path, _codes(affine))
    return affine


def _scaling(image: SpatialImage) -> tuple[float, float]:
    """The scale factors as the file has them (nibabel's own header forgets them)."""
    holder = image.file_map.get("header", image.file_map["image"])
    if not isinstance(image.header, nib.Nifti1Header):
        return 1.0, 0.0
    with holder.get_prepare_fileobj(mode="rb") as file:
        raw = type(image.header).from_fileobj(file, check=False)
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    return (slope, inter if np.isfinite(inter) else 0.0) if np.isfinite(slope) else (1.0, 0.0)


def _header(image: SpatialImage, affine: Array) -> nib.Nifti1Header:
    if isinstance(image.header, nib.Nifti1Header):
        header: nib.Nifti1Header = image.header.copy()
        return header
    return _new_header(affine)


def _new_header(affine: Array) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_xyzt_units("mm")
    return header


def _sign(axis: Array) -> float:
    return float(np.sign(axis[np.argmax(np.abs(axis))]))


def _codes(affine: Array) -> str:
    return "".join(str(code) for code in nib.aff2axcodes(affine))


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its name."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]

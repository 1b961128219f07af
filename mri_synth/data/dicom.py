"""DICOM series to volumes. DICOM counts mm towards Left, Posterior, Superior; a `Volume` towards Right, Anterior."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import nibabel as nib
import numpy as np

from mri_synth.data.nifti import canonical, reason
from mri_synth.data.volume import WAY_OUT, Array, Source, Volume
from mri_synth.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

log = logging.getLogger(__name__)
_HEAD = ["SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality", "Rows"]
_SUFFIXES = (".dcm", ".ima", ".dicom")
# What gives a slice its place, and how many numbers each holds.
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE_MM = 0.02  # positions are written with few decimals


class Series(NamedTuple):
    """One series of a folder, by its headers alone.

    Attributes:
        uid: SeriesInstanceUID.
        files: its files, by name.
        description: SeriesDescription, "" where missing.
        number: SeriesNumber, -1 where missing.
        modality: "MR", "CT", ...
    """

    uid: str
    files: tuple[Path, ...]
    description: str
    number: int
    modality: str


def series_in(folder: Path) -> list[Series]:
    """The image series in a folder, not in folders below it; other files are passed over, damaged ones warned of.

    Args:
        folder: where the files lie, whatever their names.

    Returns:
        Series by number, then UID; none where the folder holds no DICOM images.

    Raises:
        UserError: pydicom is not installed.
    """
    found, damaged = _search(folder)
    for file, why in damaged.items():
        log.warning("%s: left out, %s", file, why)
    return found


def read_series(folder: Path, series: str | None = None) -> Volume:
    """Read one series as a volume.

    Args:
        folder: where its files lie.
        series: SeriesInstanceUID; may be left out where there is only one.

    Returns:
        The volume, slices in order of their position along the slice normal, rescale slope and intercept applied.

    Raises:
        UserError: no or several series, no such one, damaged or coloured files, missing slices, or slices that
            do not form one regular stack.
    """
    found, damaged = _search(folder)
    if damaged:
        first = "".join(f"\n  {file.name}: {why}" for file, why in list(damaged.items())[:5])
        raise UserError(f"{folder}: damaged DICOM files ({len(damaged)}), slices may be missing:{first}\n{WAY_OUT}")
    if not found:
        raise UserError(f"{folder}: no DICOM images in this folder (folders below it are not searched). {WAY_OUT}")
    listed = "".join(f"\n  {s.uid}  {s.description or '(no description)'}, {len(s.files)} files" for s in found)
    if series is None and len(found) > 1:
        raise UserError(f"{folder}: {len(found)} series; name one by --series UID:{listed}")
    chosen = [s for s in found if series in (None, s.uid)]
    if not chosen:
        raise UserError(f"{folder}: no series={series}; there is:{listed}")
    return _stack(folder, chosen[0].files)


def _search(folder: Path) -> tuple[list[Series], dict[Path, str]]:
    """The series of a folder, and its DICOM image files that are damaged, with the reason."""
    pydicom = _pydicom()
    files: dict[str, list[Path]] = defaultdict(list)
    heads: dict[str, Dataset] = {}
    damaged: dict[Path, str] = {}
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_HEAD)
            uid = str(head.get("SeriesInstanceUID", ""))
            kind = pydicom.uid.UID(head.get("SOPClassUID") or head.file_meta.get("MediaStorageSOPClassUID", ""))
        except Exception as error:  # the readers raise whatever their parsers raise
            if file.suffix.lower() in _SUFFIXES or _has_preamble(file):
                damaged[file] = reason(error)
            continue
        if "Rows" in head and uid:
            files[uid].append(file)
            heads.setdefault(uid, head)
        elif kind.name.endswith("Image Storage") or (not kind and _has_preamble(file)):
            damaged[file] = "the header breaks off"
    found = [Series(uid, tuple(paths), *_described(heads[uid])) for uid, paths in files.items()]
    return sorted(found, key=lambda s: (s.number, s.uid)), damaged


def _described(head: Dataset) -> tuple[str, int, str]:
    number = str(head.get("SeriesNumber", ""))
    return (
        str(head.get("SeriesDescription", "")),
        int(number) if number.isdigit() else -1,
        str(head.get("Modality", "")),
    )


def _has_preamble(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(132)[128:] == b"DICM"


def _read(file: Path) -> Dataset:
    pydicom = _pydicom()
    try:
        data: Dataset = pydicom.dcmread(file)
        place = {key: np.atleast_1d(np.array(data.get(key) or [], float)) for key in _PLACE}
        frames, samples = (int(data.get(key) or 1) for key in ("NumberOfFrames", "SamplesPerPixel"))
        _ = int(data.Rows), int(data.Columns), _rescale(data)
    except Exception as error:  # the readers raise whatever their parsers raise
        raise UserError(f"{file}: damaged or not complete ({reason(error)}). {WAY_OUT}") from error
    if frames > 1:
        raise UserError(f"{file}: several frames in one file (enhanced DICOM); convert it to NIfTI, e.g. by dcm2niix.")
    if samples != 1:
        raise UserError(f"{file}: coloured ({data.get('PhotometricInterpretation')}), no MR image. {WAY_OUT}")
    missing = [key for key, count in _PLACE.items() if place[key].size != count or not np.isfinite(place[key]).all()]
    if missing:
        raise UserError(f"{file}: {', '.join(missing)} missing: the slice has no place in the patient. {WAY_OUT}")
    normal = np.cross(*place["ImageOrientationPatient"].reshape(2, 3))
    if abs(np.linalg.norm(normal) - 1) > 0.01 or place["PixelSpacing"].min() <= 0:
        raise UserError(f"{file}: ImageOrientationPatient or PixelSpacing is not that of an image. {WAY_OUT}")
    if data.get("PhotometricInterpretation") == "MONOCHROME1":
        log.warning("%s: MONOCHROME1, low values are bright; the values are taken as they are", file)
    return data


def _stack(folder: Path, files: tuple[Path, ...]) -> Volume:
    """One regular stack of slices as a canonical volume."""
    slices = [_read(file) for file in files]
    for key in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        if (kinds := _distinct([np.atleast_1d(np.array(s[key].value, float)) for s in slices])) and len(kinds) > 1:
            raise UserError(
                f"{folder}: {key} differs within one series ({' / '.join(map(str, kinds[:3]))}), as in a localizer; "
                f"the slices do not form one volume. {WAY_OUT}"
            )
    along_row, along_column = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    positions = np.array([np.array(s.ImagePositionPatient, float) for s in slices])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    step = _step(folder, slices, positions, normal)
    row_mm, column_mm = (float(v) for v in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * column_mm, along_column * row_mm, step, positions[0]], 1)
    affine = _LPS_TO_RAS @ affine
    array = np.stack([_values(s).T for s in slices], -1)
    dtype = np.dtype(np.float32) if any(_rescale(s) != (1.0, 0.0) for s in slices) else slices[0].pixel_array.dtype
    orientation = nib.io_orientation(affine)
    return canonical(array, dtype, Source(folder, "dicom", array.shape, affine, orientation, files=files))


def _step(folder: Path, slices: list[Dataset], positions: Array, normal: Array) -> Array:
    """(3,) mm from each slice to the next, or an error where that is not one vector."""
    n = len(slices)
    if n == 1:
        thickness = slices[0].get("SpacingBetweenSlices") or slices[0].get("SliceThickness") or 1.0
        return normal * float(thickness)
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if same := int((gaps < _TOLERANCE_MM).sum()):
        echoes = sorted({str(s.get("EchoTime", "")) for s in slices})
        hint = f"; echo times {', '.join(echoes)} ms" if len(echoes) > 1 else ""
        raise UserError(
            f"{folder}: {same} of {n} slices share their position with another (several echoes, time points or copies "
            f"in one series{hint}). Keep one set of slices in the folder, or convert it by dcm2niix."
        )
    steps = np.diff(positions, axis=0)
    off = np.linalg.norm(steps - np.median(steps, axis=0), axis=1)
    odd = np.flatnonzero(off > max(_TOLERANCE_MM, 0.01 * usual))
    if len(odd):
        at = ", ".join(f"{gaps[i]:.2f} mm after slice {i + 1}" for i in odd[:4])
        raise UserError(
            f"{folder}: slices are not evenly spaced: {usual:.2f} mm mostly, but {at}; of {n} slices read, some are "
            f"missing or belong elsewhere. {WAY_OUT}"
        )
    step: Array = (positions[-1] - positions[0]) / (n - 1)
    return step


def _values(data: Dataset) -> Array:
    """(rows, columns) float32, rescaled."""
    try:
        pixels = data.pixel_array
    except Exception as error:  # the decoders raise whatever they raise
        raise UserError(f"{data.filename}: pixels cannot be read ({reason(error)}). {WAY_OUT}") from error
    slope, inter = _rescale(data)
    values: Array = (pixels * slope + inter).astype(np.float32)
    return values


def _rescale(data: Dataset) -> tuple[float, float]:
    slope, inter = data.get("RescaleSlope"), data.get("RescaleIntercept")
    return float(1 if slope is None else slope), float(0 if inter is None else inter)


def _distinct(values: Sequence[Array]) -> list[Array]:
    """Values that differ by more than rounding."""
    kinds: list[Array] = []
    for value in values:
        if not any(np.allclose(value, kind, atol=1e-4) for kind in kinds):
            kinds.append(value)
    return kinds


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.uid
    except ImportError as error:
        raise UserError("DICOM needs pydicom: pip install 'mri-synth[dicom]'") from error
    return pydicom

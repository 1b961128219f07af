"""DICOM series of a tree as scans: headers are read, pixels are not."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from mri_synth.data.contrasts import UNKNOWN, contrast_in, contrast_of_path
from mri_synth.data.demographics import age_of, known, sex_of
from mri_synth.data.names import report_ignored
from mri_synth.data.scan import Scan

log = logging.getLogger(__name__)

_HEAD = ["PatientID", "PatientAge", "PatientSex", "StudyDate", "StudyInstanceUID", "InstitutionName"]
_LOCALIZER = re.compile(r"loc(?:alizer)?|scout|survey|3[- ]?plane|aahead", re.IGNORECASE)


def dicom_folders(root: Path, files: Sequence[str]) -> list[str]:
    """Folders with DICOM files, told by .dcm or .ima, else by the letters DICM at byte 128 of one file.

    Args:
        root: of the data.
        files: posix paths relative to it, images of other kinds left out.

    Returns:
        Posix paths relative to `root`, "" for itself, in the order of the files.
    """
    found: dict[str, bool] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if found.get(folder):
            continue
        if name.lower().endswith((".dcm", ".ima")):
            found[folder] = True
        elif folder not in found and ("." not in name or re.search(r"\.\d+$", name)) and name != "DICOMDIR":
            found[folder] = _magic(root / file)
    return [folder for folder, yes in found.items() if yes]


def _magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_scans(root: Path, folder: str) -> list[Scan]:
    """The MR series of one folder.

    Args:
        root: of the data.
        folder: relative to it, "" for itself.

    Returns:
        One scan per series: subject is the PatientID (else the first folder below the root), session the StudyDate,
        contrast told by the SeriesDescription, else by the path. Localizers and other modalities are reported and
        left out.

    Raises:
        UserError: pydicom is not installed.
    """
    from mri_synth.data.dicom import series_in

    scans, other = [], []
    for series in series_in(root / folder):
        about = f"{folder or '.'}: {series.description or series.uid}"
        if series.modality not in ("MR", "") or _LOCALIZER.match(series.description):
            other.append(about)
            continue
        head = _head(series.files[0])
        contrast = contrast_in(series.description) or contrast_of_path(folder)
        scans.append(
            Scan(
                path=root / folder,
                series=series.uid,
                subject=head["PatientID"] or folder.split("/")[0] or root.name,
                session=head["StudyDate"] or "",
                contrast=UNKNOWN if contrast == "mask" else contrast,
                age=age_of(head["PatientAge"]),
                sex=sex_of(head["PatientSex"]),
                site=head["InstitutionName"],
            )
        )
    report_ignored("folder", other, "DICOM series that are no MR volumes: localizers, other modalities")
    return scans


def _head(file: Path) -> dict[str, str | None]:
    import pydicom

    head = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEAD))
    return {tag: known(str(head.get(tag, ""))) for tag in _HEAD}

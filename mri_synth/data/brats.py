"""BraTS, 2013 to 2023: four contrasts and a segmentation per tumour patient, by the names of every year."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from mri_synth.data import names, pairs
from mri_synth.data.base import MRIDataModule
from mri_synth.data.contrasts import MASK
from mri_synth.data.scan import Scan
from mri_synth.data.views import Pairs
from mri_synth.data.volume import Volume

log = logging.getLogger(__name__)

ADDRESS = "https://www.synapse.org/brats (free account; the Task 1 training data of a year)"
LAYOUT = """
ROOT/                                    (any folders in between; several patients)
  BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz   (2023; also -t1c -t2w -t2f -seg)
  BraTS2021_00000/BraTS2021_00000_t1.nii.gz            (2021; also _t1ce _t2 _flair _seg)
  BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz  (2020)
  HGG/Brats18_TCIA01_131_1/Brats18_TCIA01_131_1_t1.nii.gz             (2017 to 2019)
  HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1.54513/VSD...mha       (2013, 2015)
"""
_CONTRASTS = {
    "t1": "T1", "t1n": "T1", "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce", "t2": "T2", "t2w": "T2",
    "flair": "FLAIR", "t2f": "FLAIR", "seg": "mask", "ot": "mask",
}  # fmt: skip
_KIND = r"(?P<kind>flair|seg|t1ce|t1c|t1gd|t1n|t1|t2f|t2w|t2)\.nii(\.gz)?"
_BY_NAME = [
    re.compile(rf"(?P<subject>BraTS-[A-Z]+-\d+)-(?P<session>\d+)-{_KIND}", re.IGNORECASE),
    re.compile(rf"(?P<subject>BraTS2021_\d+)_{_KIND}", re.IGNORECASE),
    re.compile(rf"(?P<subject>BraTS20_[A-Z]+_\d+)_{_KIND}", re.IGNORECASE),
    # 2017 to 2019: the last number counts the visits of a patient
    re.compile(rf"(?P<subject>BraTS1[789]_(?P<site>[A-Z0-9]+)_[A-Z0-9]+)_(?P<session>\d+)_{_KIND}", re.IGNORECASE),
]
# The one misnamed file of the 2020 release: the segmentation of BraTS20_Training_355.
_STRAY = re.compile(r"(?:.*/)?(?P<subject>BraTS20_Training_\d+)/W39_1998\.09\.19_Segm\.nii(\.gz)?")
# 2013, 2015: VSD.Brain.XX.O.MR_T1c.54532.mha, VSD.Brain_3more.XX.O.OT.54535.mha; a folder above says the patient.
_VSD = re.compile(r"VSD\.Brain[^/]*?\.(?:MR_)?(?P<kind>Flair|T1c|T1|T2|OT)(\.\d+)?\.(mha|nii|nii\.gz)", re.IGNORECASE)
_PLAIN = re.compile(r"(?P<kind>Flair|T1c|T1|T2|OT)(?:_\w+|MultiClass)?\.(mha|nii|nii\.gz)", re.IGNORECASE)
_PATIENT = re.compile(r"brats_(?P<year>2013|tcia)_pat(?P<number>\d+)_(?P<session>\w+)", re.IGNORECASE)
_GRADES = ("HG", "LG", "HGG", "LGG")
# Tumours with their oedema stay under 400 ml, a brain has some 1,200.
_LARGEST_TUMOUR_ML = 600.0


@dataclass(kw_only=True, eq=False)
class BraTS(MRIDataModule):
    """BraTS by the file names of 2013 to 2023. Contrasts T1, T1ce, T2, FLAIR; the segmentation is the mask.

    Slices are labelled "tumour" or "none" by their mask; a case without segmentation (validation data) is
    unlabelled, never "none". Source: https://www.synapse.org/brats
    """

    label_from_mask: ClassVar[tuple[str, str]] = ("none", "tumour")

    def scans(self) -> list[Scan]:
        """Every contrast of `data.contrasts`, and every segmentation.

        Returns:
            One scan per file; a patient's visits share the subject and differ in session.

        Raises:
            UserError: an unusable root, no file of these names, or one scan in two files.
        """
        root = names.resolve_root("brats", self.root, LAYOUT, ADDRESS)
        files = names.list_files(root)
        scans = {file: scan for file in files if (scan := scan_of(root, file))}
        if not scans:
            wanted = "BraTS2021_00000_t1.nii.gz or BraTS-GLI-00001-000-t1n.nii.gz"
            raise names.no_match("brats", root, files, wanted, LAYOUT, ADDRESS)
        names.report_ignored("brats", [f for f in files if f not in scans], "no BraTS name")
        names.refuse_twins("brats", scans)
        found = list(scans.values())
        names.refuse_duplicates("brats", found, "Keep one of each.")
        _warn_of_years(found)
        kept = names.keep_contrasts("brats", found, self.contrasts)
        asked = [*self.contrasts[-1:], MASK] if self.source == "mask" else self.contrasts
        pairs.report("brats", kept, asked if self.source != "derived" else (), needed=self.view_class is Pairs)
        return kept

    def read(self, scan: Scan) -> Volume:
        """The scan's voxels; of a segmentation without the label of the brain, which med-ddpm's copies of BraTS have.

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume.
        """
        volume = super().read(scan)
        return without_brain(volume) if scan.contrast == MASK else volume


def without_brain(volume: Volume) -> Volume:
    """A segmentation whose labels are all of tumour: a label too large for one is set to 0, and warned of.

    Args:
        volume: whole numbers, 0 is no tumour.

    Returns:
        The same volume, or one without that label.
    """
    labels, counts = np.unique(volume.array, return_counts=True)
    ml = counts * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    large = labels[(labels > 0) & (ml > _LARGEST_TUMOUR_ML)]
    if not len(large):
        return volume
    log.warning("%s: label %s fills %.0f ml, which is no tumour but the brain; it is not taken as one", volume.name,
                " and ".join(f"{label:g}" for label in large), ml[np.isin(labels, large)].max())  # fmt: skip
    return replace(volume, array=np.where(np.isin(volume.array, large), 0, volume.array).astype(np.float32))


def scan_of(root: Path, file: str) -> Scan | None:
    """The scan a file is by its name.

    Args:
        root: of the data set.
        file: posix path relative to `root`.

    Returns:
        The scan, None for a name of no year.
    """
    *folders, name = file.split("/")
    for pattern in _BY_NAME:
        if match := pattern.fullmatch(name):
            said = match.groupdict()
            return Scan(path=root / file, subject=said["subject"], session=said.get("session") or "",
                        contrast=_CONTRASTS[said["kind"].lower()], site=said.get("site"))  # fmt: skip
    if match := _STRAY.fullmatch(f"{root.name}/{file}"):
        return Scan(path=root / file, subject=match["subject"], contrast="mask")
    patient = _patient([root.name, *folders])
    plain = _PLAIN.fullmatch(name) if patient and patient[1] else None
    match = _VSD.fullmatch(name) or plain
    if patient is None or match is None:
        return None
    contrast = _CONTRASTS[match["kind"].lower()]
    return Scan(path=root / file, subject=patient[0], session=patient[1], contrast=contrast)


def _patient(folders: Sequence[str]) -> tuple[str, str] | None:
    """Subject and session from the folders of 2013 and 2015: HG/0001 or HGG/brats_2013_pat0001_1."""
    above = [f for f in folders if not f.upper().startswith("VSD.")]
    if not above:
        return None
    grade = next((f for f in above[:-1] if f.upper() in _GRADES), "")
    if match := _PATIENT.fullmatch(above[-1]):
        subject = f"brats_{match['year'].lower()}_pat{match['number']}"
        # The 2013 numbers count high and low grade patients separately.
        prefixed = f"{grade}_{subject}" if grade and match["year"] == "2013" else subject
        return prefixed, match["session"]
    return (f"{grade}_{above[-1]}" if grade else above[-1]), ""


def _warn_of_years(scans: Sequence[Scan]) -> None:
    years = sorted({re.split(r"[-_]", scan.subject)[0] for scan in scans if scan.subject.lower().startswith("brats")})
    if len(years) > 1:
        log.warning("data=brats: names of several releases (%s). Later years hold patients of earlier ones under new "
                    "names, so the split cannot keep them apart: use one release", ", ".join(years))  # fmt: skip

"""OASIS: the 2-D slices of the course with their own split, or the OASIS-1 volumes with demographics."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mri_synth.data import names
from mri_synth.data.base import MRIDataModule
from mri_synth.data.demographics import (
    TABLES,
    Person,
    add_people,
    age_of,
    column,
    known,
    merge_people,
    read_table,
    sex_of,
)
from mri_synth.data.scan import Scan, Split
from mri_synth.data.views import Images
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

ADDRESS = "https://www.oasis-brains.org (OASIS-1, after accepting its terms); the PNG slices come from their course"
LAYOUT = """
ROOT/                                                    either the slices
  keras_png_slices_train/case_001_slice_0.nii.png
  keras_png_slices_validate/case_402_slice_0.nii.png
  keras_png_slices_test/case_441_slice_0.nii.png
ROOT/                                                    or the volumes
  disc1/OAS1_0001_MR1/PROCESSED/MPRAGE/T88_111/OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img (and .hdr)
  oasis_cross-sectional.csv                              (age, sex, CDR; or .xlsx; optional)
"""
_SLICE = re.compile(r"(?:.*/)?keras_png_slices_(train|validate|test)/case_(\d+)_slice_(\d+)(?:\.nii)?\.png")
_SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
_SEG = re.compile(r"(?:.*/)?keras_png_slices_seg_\w+/[^/]+\.png")
_SESSION = re.compile(r"(OAS1_\d{4})_(MR\d)")
_MASKED = re.compile(r"OAS1_\d{4}_MR\d_mpr_n\d_anon_111_t88_masked_gfc\.(img|nii|nii\.gz)")


@dataclass(kw_only=True, eq=False)
class OASIS(MRIDataModule):
    """OASIS-1 T1, as PNG slices (`layout` png) or as volumes; source https://www.oasis-brains.org (Marcus 2007).

    Attributes:
        layout: which of the two lies in the root; "auto" finds out.
        label: "cdr" labels each visit by its Clinical Dementia Rating ("cdr0", "cdr0.5", "cdr1", "cdr2"); visits
            without a rating (the young) stay unlabelled. Volumes only.
    """

    layout: Literal["auto", "png", "volumes"] = "auto"
    label: Literal["none", "cdr"] = "none"

    @classmethod
    def refuses(cls, view: type[Images], arguments: Mapping[str, Any]) -> str:
        """There is no second contrast to make of the first."""
        reason = super().refuses(view, arguments)
        if reason or len(arguments.get("contrasts") or ()) < 2:
            return reason
        return (
            f"needs {view.name} of several contrasts, and data=oasis has T1 alone; try data=ixi, or "
            "data.contrasts=[T1] data.source=derived"
        )

    def scans(self) -> list[Scan]:
        """Every slice with its given split, or one T1 volume per visit.

        Returns:
            Scans with subject "case_001" and slice number, or subject "OAS1_0001" and session "MR1".

        Raises:
            UserError: an unusable root, both layouts in it, or settings made for the other layout.
        """
        root = names.resolve_root("oasis", self.root, LAYOUT, ADDRESS)
        files = names.list_files(root)
        slices = [f for f in files if _SLICE.fullmatch(f)]
        volumes = [f for f in files if _session(f, root) and names.has_suffix(f, names.VOLUMES)]
        layout = self.layout
        if layout == "auto" and slices and volumes:
            raise UserError(
                f"data=oasis: {root} holds both PNG slices ({slices[0]}) and volumes ({volumes[0]}); "
                "choose with data.layout=png or data.layout=volumes"
            )
        if layout == "auto":
            layout = "volumes" if volumes else "png"
        if not (slices if layout == "png" else volumes):
            wanted = (
                "OAS1_0001_MR1/.../OAS1_0001_MR1_mpr_n4_anon_111_t88_masked_gfc.img"
                if layout == "volumes"
                else "keras_png_slices_train/case_001_slice_0.nii.png"
            )
            raise names.no_match("oasis", root, files, wanted, LAYOUT, ADDRESS)
        scans = self._slices(root, files) if layout == "png" else self._volumes(root, files, volumes)
        return names.keep_contrasts("oasis", scans, self.contrasts)

    def _slices(self, root: Path, files: Sequence[str]) -> list[Scan]:
        if self.label == "cdr":
            raise UserError("data.label=cdr needs the OASIS-1 volumes: the PNG slices do not say whose they are")
        matches = {f: m for f in files if (m := _SLICE.fullmatch(f))}
        segs = [f for f in files if _SEG.fullmatch(f)]
        names.report_ignored("oasis", segs, "tissue maps of the slices, not used")
        others = set(segs) | set(matches)
        names.report_ignored("oasis", [f for f in files if f not in others], "no case_NNN_slice_K.nii.png")
        return [
            Scan(path=root / f, subject=f"case_{m[2]}", contrast="T1", slice=int(m[3]), split=_SPLITS[m[1]])
            for f, m in matches.items()
        ]

    def _volumes(self, root: Path, files: Sequence[str], volumes: Sequence[str]) -> list[Scan]:
        changes = []
        if self.split.by == "given" and self.split.file is None:
            changes.append("data.split.by=subject")
        if self.intensity.method == "fixed" and self.intensity.range == [0, 255]:
            changes.append("data.intensity.method=percentile")
        if changes:
            raise UserError(
                f"data=oasis: {root} holds OASIS-1 volumes, which have no split of their own and are not 8-bit; "
                f"the defaults are for the PNG slices. Add: {' '.join(changes)}"
            )
        chosen = _one_per_visit(root, volumes)
        tables = [f for f in files if re.match(r"oasis_cross-sectional.*\.(csv|xlsx|xls)$", f.rsplit("/", 1)[-1])]
        kept = {*chosen, *tables, *(re.sub(r"\.img$", ".hdr", f) for f in chosen)}
        names.report_ignored("oasis", [f for f in files if f not in kept], "not the masked T88 volume of a visit")
        scans = []
        for file, (subject, session) in chosen.items():
            scans.append(Scan(path=root / file, subject=subject, session=session, contrast="T1"))
        names.refuse_twins("oasis", chosen)
        names.refuse_duplicates("oasis", scans, "Keep one of each.")
        return self._joined(scans, root, tables)

    def _joined(self, scans: list[Scan], root: Path, tables: Sequence[str]) -> list[Scan]:
        try:
            if not tables:
                raise UserError(f"no oasis_cross-sectional.csv (or .xlsx) under {root}")
            best = min(tables, key=lambda name: TABLES.index(Path(name).suffix.lower()))
            people = read_people(root / best, self.label == "cdr")
        except UserError as error:
            if self.label == "cdr":
                raise UserError(f"data.label=cdr: {error}") from error
            log.warning("data=oasis: age and sex stay unknown: %s", error)
            return scans
        return add_people(scans, people, best, key=lambda scan: f"{scan.subject}_{scan.session}")


def _session(file: str, root: Path) -> tuple[str, str] | None:
    """Subject and visit of a file by its own name, else by the nearest folder that says one."""
    for part in reversed([root.name, *file.split("/")]):
        if match := _SESSION.match(part):
            return match[1], match[2]
    return None


def _one_per_visit(root: Path, volumes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The masked, bias-corrected Talairach volume of every visit, else its only NIfTI."""
    visits: dict[tuple[str, str], list[str]] = defaultdict(list)
    for file in volumes:
        visit = _session(file, root)
        if visit:
            visits[visit].append(file)
    chosen: dict[str, tuple[str, str]] = {}
    without = []
    for visit, files in visits.items():
        masked = [f for f in files if _MASKED.fullmatch(f.rsplit("/", 1)[-1])]
        nifti = [f for f in files if names.has_suffix(f, names.NIFTI)]
        names.refuse_twins("oasis", nifti)
        if not masked and len(nifti) > 1:
            raise UserError(
                f"data=oasis: visit {'_'.join(visit)} has {len(nifti)} NIfTI files and none is called "
                f"..._t88_masked_gfc: {names.examples(nifti)}; leave one, or use data=folder with data.pattern="
            )
        chosen |= dict.fromkeys(masked or nifti, visit)
        if not masked and not nifti:
            without.append("_".join(visit))
    if without:
        log.warning("data=oasis: %d visit(s) without a masked T88 volume or a NIfTI, left out: %s",
                    len(without), names.examples(without))  # fmt: skip
    if not chosen:
        raise UserError(f"data=oasis: no visit under {root} has ..._t88_masked_gfc.img or a NIfTI; "
                        f"found {names.examples(volumes)}")  # fmt: skip
    return chosen


def read_people(path: Path, with_cdr: bool) -> dict[str, Person]:
    """Age, sex and, if asked, the dementia rating per visit.

    Args:
        path: oasis_cross-sectional.csv or .xlsx; columns ID, M/F, Age, CDR.
        with_cdr: label by CDR.

    Returns:
        "OAS1_0001_MR1" to person.

    Raises:
        UserError: a table that cannot be read, or lacks a column.
    """
    rows = read_table(path)
    identity, sex, age = (column(rows, path, name) for name in ("ID", "M/F", "Age"))
    cdr = column(rows, path, "CDR") if with_cdr else ""
    entries = []
    for row in rows:
        rating = known(row.get(cdr)) if with_cdr else None
        label = f"cdr{float(rating):g}" if rating and re.fullmatch(r"\d+(\.\d+)?", rating) else None
        person = Person(age=age_of(row.get(age)), sex=sex_of(row.get(sex)), label=label)
        entries.append((row.get(identity, ""), person))
    return merge_people([(key, person) for key, person in entries if key], path.name)

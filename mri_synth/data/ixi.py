"""IXI: T1, T2, PD and MRA of about 600 healthy people from three London hospitals."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mri_synth.data import download, names
from mri_synth.data.base import MRIDataModule
from mri_synth.data.demographics import TABLES, Person, add_people, age_of, column, merge_people, read_table
from mri_synth.data.scan import Scan
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

LICENCE = "CC BY-SA 3.0 (https://brain-development.org/ixi-dataset/)"
OFFICIAL = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/"
ADDRESS = f"https://brain-development.org/ixi-dataset/ (CC BY-SA 3.0): data.download=true fetches it from {OFFICIAL}"
TABLE = "IXI.xls"
LAYOUT = """
ROOT/
  IXI-T1/IXI002-Guys-0828-T1.nii.gz    (folders as unpacked, or all files in one)
  IXI-T2/IXI002-Guys-0828-T2.nii.gz
  IXI.xls                              (age and sex; or IXI.csv, IXI.xlsx; optional)
"""
CONTRASTS = ("T1", "T2", "PD", "MRA")
_FETCHED = re.compile(r"IXI(-[A-Z0-9]+\.tar(\.json)?|\.xls\.json)")
_NAME = re.compile(r"(IXI\d{3})-([A-Za-z]+)-\d+-(T1|T2|PD|MRA)\.nii(\.gz)?")
_SEX = {"1": "M", "2": "F"}  # the table's own code, in its column's name: SEX_ID (1=m, 2=f); 0 is unknown


@dataclass(kw_only=True, eq=False)
class IXI(MRIDataModule):
    """IXI by its published file names; age and sex from IXI.xls, IXI.xlsx or IXI.csv where one lies in the root.

    Site is the hospital of the name: Guys (1.5 T), HH (3 T), IOP (1.5 T). T1 is not on the grid of T2 and PD.
    `register` puts T2 and PD onto the T1. DTI is 4-D and is not read.

    Source: https://brain-development.org/ixi-dataset/

    Attributes:
        download: fetch what is wanted and not there from the official address into the root: several GB a contrast.
    """

    download: bool = False

    def scans(self) -> list[Scan]:
        """Every T1, T2, PD and MRA of `data.contrasts`.

        Returns:
            One scan per file, subject such as "IXI002".

        Raises:
            UserError: an unusable root, no file of that name, or one scan in two files.
        """
        if self.download:
            self._fetch()
        root = names.resolve_root("ixi", self.root, LAYOUT, ADDRESS)
        files = names.list_files(root)
        matches = {f: m for f in files if (m := _NAME.fullmatch(f.rsplit("/", 1)[-1]))}
        if not matches:
            raise names.no_match("ixi", root, files, "IXI002-Guys-0828-T1.nii.gz", LAYOUT, ADDRESS)
        tables = [f for f in files if re.fullmatch(r"ixi\.(csv|xlsx|xls)", f.rsplit("/", 1)[-1].lower())]
        left_out = [f for f in files if f not in matches and f not in tables and not _FETCHED.fullmatch(f)]
        names.report_ignored("ixi", left_out, "no T1, T2, PD or MRA by their name")
        scans = [Scan(path=root / f, subject=m[1], contrast=m[3], site=m[2]) for f, m in matches.items()]
        names.refuse_twins("ixi", matches)
        names.refuse_duplicates("ixi", scans, "Keep one of each.")
        return _joined(names.keep_contrasts("ixi", scans, self.contrasts), root, tables)

    def _fetch(self) -> None:
        """What is wanted and not there; scans that were not fetched here are left as they are."""
        base = os.environ.get(names.ENVIRONMENT)
        if self.root is None and not base:
            names.resolve_root("ixi", None, LAYOUT, ADDRESS)  # says so
        root = Path(self.root or f"{base}/ixi").expanduser()
        files = names.list_files(root) if root.is_dir() else []
        there = [m[3] for f in files if (m := _NAME.fullmatch(f.rsplit("/", 1)[-1]))]
        for contrast in self.contrasts or CONTRASTS:
            address = f"{OFFICIAL}IXI-{contrast}.tar"
            if contrast in CONTRASTS and (contrast not in there or download.is_fetched(address, root)):
                download.fetch(address, root, f"IXI-{contrast}", LICENCE)
            elif contrast in there:
                log.info("data=ixi: %d %s scans are in %s: none is fetched", there.count(contrast), contrast, root)
        try:
            download.fetch(f"{OFFICIAL}{TABLE}", root, None, LICENCE)
        except UserError as error:
            if download.is_fetched(f"{OFFICIAL}{TABLE}", root):
                raise
            log.warning("data=ixi: the table of ages was not fetched: %s", error)


def _joined(scans: list[Scan], root: Path, tables: Sequence[str]) -> list[Scan]:
    if not tables:
        log.warning("data=ixi: no IXI.xls, IXI.xlsx or IXI.csv under %s: age and sex stay unknown", root)
        return scans
    best = min(tables, key=lambda name: TABLES.index(Path(name).suffix.lower()))
    try:
        people = read_people(root / best)
    except UserError as error:
        log.warning("data=ixi: age and sex stay unknown: %s", error)
        return scans
    return add_people(scans, people, best)


def read_people(path: Path) -> dict[str, Person]:
    """Age and sex per subject from the published table.

    Args:
        path: IXI.xls, or the same as .xlsx or .csv; columns IXI_ID, "SEX_ID (1=m, 2=f)", AGE.

    Returns:
        "IXI002" to person. Rows of one id are merged, contradictions become unknown; both are logged.

    Raises:
        UserError: a table that cannot be read, or lacks a column.
    """
    rows = read_table(path)
    identity, sex, age = (column(rows, path, name) for name in ("IXI_ID", "SEX_ID", "AGE"))
    entries = []
    for row in rows:
        number = re.fullmatch(r"(?:IXI)?(\d{1,3})", row.get(identity, ""))
        if number:
            person = Person(age=age_of(row.get(age)), sex=_SEX.get(row.get(sex, "")))
            entries.append((f"IXI{int(number[1]):03d}", person))
    if len(entries) < len(rows):
        log.warning("%s: %d row(s) without a number in %s left out", path.name, len(rows) - len(entries), identity)
    return merge_people(entries, path.name)

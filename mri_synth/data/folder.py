"""Any folder of MRI: NIfTI, 2-D NIfTI, DICOM series, PNG, JPEG, TIFF; subjects from names, a pattern or a table."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from mri_synth.data import names, places
from mri_synth.data.base import MRIDataModule
from mri_synth.data.contrasts import MASK, UNKNOWN, contrast_of_path, count
from mri_synth.data.demographics import add_people
from mri_synth.data.dicom_tree import dicom_folders, series_scans
from mri_synth.data.places import Found
from mri_synth.data.scan import Scan
from mri_synth.data.subjects import Subjects, find_table, read_subjects
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

ADDRESS = "your own data"
LAYOUT = """
ROOT/
  sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz   (BIDS; participants.tsv is joined)
  patient07/T1.nii.gz, patient07/T2.nii.gz    (a folder per subject)
  s01_T1.nii.gz, s01_T2.nii.gz                (a name per subject)
  patient07/series1/*.dcm                     (DICOM series)
  glioma/1.jpg, meningioma/2.jpg              (pictures; data.label=folder data.split.by=block)
"""
TEXTS = (".csv", ".tsv", ".xlsx", ".xls", ".json", ".txt", ".md", ".pdf", ".bval", ".bvec")
FROM_MASK = ("none", "lesion")
"""Classes of slices by a label map."""
GROUPS = ("subject", "session", "contrast", "label", "slice")


@dataclass(kw_only=True, eq=False)
class Folder(MRIDataModule):
    """Any tree of images. What is said goes before what is guessed; how subjects were told is logged.

    Attributes:
        pattern: regular expression searched in each path below the root (with "/"), with any of the named groups
            subject, session, contrast, label, slice; files that do not match are left out. None guesses.
        subjects: table with the columns file (path, name or glob) and subject, and any of session, contrast, age, sex,
            site, label, split; files without a row are left out. Without the column file it describes the subjects.
            None joins participants.tsv where it lies in the root.
        contrast_names: glob of a file name or path -> its contrast ("mask" for a label map), where names do not say.
        label: "folder": the class is the folder a file (or its subject's folder) lies in; "mask": "lesion" for slices
            that the subject's label map marks, "none" for the others, no class for those of images without one.
    """

    pattern: str | None = None
    subjects: str | None = None
    contrast_names: dict[str, str] | None = None
    label: Literal["none", "folder", "mask"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if found := _two_sayings(vars(self)):
            raise UserError(found)
        if self.label == "mask":
            vars(self)["label_from_mask"] = FROM_MASK  # hides the class's own

    @classmethod
    def labelled(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether items may have classes: by folder, by the pattern's group or by the table (not opened here)."""
        pattern = str(arguments.get("pattern") or "")
        return super().labelled(arguments) or "(?P<label>" in pattern or bool(arguments.get("subjects"))

    @classmethod
    def problems(cls, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with these constructor arguments beyond types and ranges; nothing is opened.

        Args:
            arguments: by name; those left out have their default.

        Returns:
            One message each.
        """
        found = super().problems(arguments)
        unknown = [c for c in arguments.get("train_classes") or () if c not in FROM_MASK]
        if arguments.get("label") == "mask" and unknown:
            found.append(f"data.train_classes: there is no {' and no '.join(unknown)}; classes of data.label=mask: "
                         f"{', '.join(FROM_MASK)}")  # fmt: skip
        return found + ([twice] if (twice := _two_sayings(arguments)) else [])

    def scans(self) -> list[Scan]:
        """Every image and label map of `data.contrasts` (all contrasts when that is empty).

        Returns:
            One scan per file or DICOM series.

        Raises:
            UserError: an unusable root, pattern or table, no image, a scan stored twice, an absent contrast, or no
                label map where those are to say the class.
        """
        root = names.resolve_root("folder", self.root, LAYOUT, ADDRESS)
        pattern = _compiled(self.pattern)
        table = find_table(self.subjects, root)
        kinds = sort_files(root, names.list_files(root))
        if pattern:
            kinds = _matching(kinds, pattern, root)
        scans = self._files(root, kinds)
        scans |= {(f"{folder}/", s.series): s for folder in kinds.dicom for s in series_scans(root, folder)}
        told = {key: self._told(key[0], scan, pattern) for key, scan in scans.items()}
        kept = [scan for scan in told.values() if scan is not None]
        if table:
            kept = _with_table(read_subjects(table), kept, root)
        if not kept:
            raise UserError(f"data=folder: no image under {root} is left; see the log for what was left out and why")
        if self.label == "mask" and not any(scan.contrast == MASK for scan in kept):
            raise UserError(
                f"data.label=mask: no label map among the {len(kept)} files under {root}; they are told by seg, mask, "
                "label, lesion or gold_standard in their names, or by 'data.contrast_names={*wml*: mask}'"
            )
        _report(kept)
        hint = ", or which files are which: 'data.contrast_names={*t1*: T1}'"
        return names.keep_contrasts("folder", kept, self.contrasts, hint)

    def _files(self, root: Path, kinds: Kinds) -> dict[tuple[str, str | None], Scan]:
        """Volumes and pictures by what their names say; pictures beside volumes only by a pattern."""
        chosen = kinds.volumes + kinds.pictures if self.pattern else kinds.volumes or kinds.pictures
        if kinds.dicom and not kinds.volumes and not self.pattern:
            chosen = []
        taken = set(chosen)
        aside = [f for f in kinds.volumes + kinds.pictures if f not in taken]
        names.report_ignored("folder", aside, "pictures beside volumes or series; data.pattern= can choose them")
        volumes = [f for f in chosen if names.has_suffix(f, names.VOLUMES)]
        pictures = [f for f in chosen if not names.has_suffix(f, names.VOLUMES)]
        scans: dict[tuple[str, str | None], Scan] = {}
        for found in (places.of_volumes(volumes, root.name), places.of_pictures(pictures)):
            for reason, files in found.left_out.items():
                names.report_ignored("folder", files, reason)
            if found.places and not self._says_subject(found):
                blocks = self.split.by == "block"
                log.log(
                    logging.INFO if blocks else logging.WARNING,
                    "data=folder: the names of %d pictures say no patients, so each is its own subject: %s",
                    len(found.places), (
                        f"{self.split.block_size} neighbours stay in one split (data.split.by=block)" if blocks else
                        "neighbouring slices of one patient can fall into train and test. Use data.split.by=block, or "
                        "name the patients by data.pattern= or data.subjects="
                    ),
                )  # fmt: skip
            for file, place in found.places.items():
                scans[file, None] = Scan(
                    path=root / file, subject=place.subject, session=place.session, contrast=place.contrast,
                    slice=place.slice, split=places.split_folder(file),
                )  # fmt: skip
            if found.places:
                log.info("data=folder: subjects are told by %s", "pattern or table" if self._said else found.rule)
        return scans

    @property
    def _said(self) -> bool:
        return self.subjects is not None or "(?P<subject>" in (self.pattern or "")

    def _says_subject(self, found: Found) -> bool:
        return found.patients or self._said

    def _told(self, file: str, scan: Scan, pattern: re.Pattern[str] | None) -> Scan | None:
        """The scan with what pattern, `contrast_names` and `label` say of it; None for a number that is none."""
        match = pattern.search(file) if pattern else None
        said = {k: v for k, v in match.groupdict().items() if v} if match else {}
        number = said.pop("slice", None)
        if number is not None and not number.isdigit():
            raise UserError(f"data.pattern={self.pattern}: the group slice is {number!r} in {file}; it must be digits")
        if "contrast" in said:
            as_path = contrast_of_path(said["contrast"])
            said["contrast"] = said["contrast"] if as_path == UNKNOWN else as_path
        name = file.rstrip("/").rsplit("/", 1)[-1]
        for glob, contrast in (self.contrast_names or {}).items():
            if fnmatchcase(name, glob) or fnmatchcase(file, glob):
                said["contrast"] = contrast
                break
        subject = said.get("subject", scan.subject)
        if self.label == "folder" and "label" not in said and (label := places.label_folder(file, subject)):
            said["label"] = label
        scan = replace(scan, slice=scan.slice if number is None else int(number))
        return replace(scan, **said)  # type: ignore[arg-type]  # the groups are all text fields


@dataclass(frozen=True)
class Kinds:
    """The files of a tree by kind: volumes, pictures, and folders of DICOM series; posix paths below the root."""

    volumes: list[str]
    pictures: list[str]
    dicom: list[str]


def sort_files(root: Path, files: Sequence[str]) -> Kinds:
    """Sort a tree's files by kind; what is no image, table or text is reported.

    Args:
        root: the folder.
        files: posix paths relative to it.

    Returns:
        The kinds.

    Raises:
        UserError: no image at all, or a scan stored both plain and compressed.
    """
    volumes = [f for f in files if names.has_suffix(f, names.VOLUMES)]
    pictures = [f for f in files if names.has_suffix(f, names.PICTURES)]
    images = {*volumes, *pictures}
    others = [f for f in files if f not in images]
    dicom = dicom_folders(root, others)
    if not images and not dicom:
        raise names.no_match("folder", root, files, "*.nii, *.nii.gz, *.dcm, *.png, *.jpg, *.tif", LAYOUT, ADDRESS)
    names.refuse_twins("folder", volumes)
    headers = {places.path_stem(f) for f in volumes if f.lower().endswith(".img")}
    strange = [f for f in others if f.rpartition("/")[0] not in dicom and not names.has_suffix(f, TEXTS)
               and places.path_stem(f) not in headers]  # fmt: skip
    names.report_ignored("folder", strange, "not a kind of image that is read")
    return Kinds(volumes, pictures, dicom)


def _two_sayings(arguments: Mapping[str, Any]) -> str:
    """The mistake of a class that both the label map and the pattern say; "" when it is not made."""
    if arguments.get("label") != "mask" or "(?P<label>" not in str(arguments.get("pattern") or ""):
        return ""
    return "data.label=mask: data.pattern says the class too, by its group label; take one of the two"


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"data.pattern={pattern}: not a regular expression ({error})") from error
    unknown = [g for g in compiled.groupindex if g not in GROUPS]
    if unknown or not compiled.groupindex:
        what = f"unknown group {', '.join(unknown)}" if unknown else "no named group"
        raise UserError(
            f"data.pattern={pattern}: {what}; groups are written (?P<subject>...) and may be {', '.join(GROUPS)}"
        )
    return compiled


def _matching(kinds: Kinds, pattern: re.Pattern[str], root: Path) -> Kinds:
    kept = Kinds(
        [f for f in kinds.volumes if pattern.search(f)],
        [f for f in kinds.pictures if pattern.search(f)],
        [f for f in kinds.dicom if pattern.search(f"{f}/")],
    )
    every = kinds.volumes + kinds.pictures + [f"{f}/" for f in kinds.dicom]
    if not (kept.volumes or kept.pictures or kept.dicom):
        raise UserError(
            f"data.pattern={pattern.pattern}: none of the {len(every)} images under {root} matches; paths that it is "
            f"searched in: {names.examples(every)}"
        )
    left = [f for f in every if not pattern.search(f)]
    names.report_ignored("folder", left, "do not match data.pattern")
    return kept


def _with_table(table: Subjects, scans: list[Scan], root: Path) -> list[Scan]:
    """Join `data.subjects`; files without a row are left out when its rows are about files."""
    if not table.by_file:
        return add_people(scans, table.people(), table.name)
    files = list(dict.fromkeys(scan.path.relative_to(root).as_posix() for scan in scans))
    entries = table.entries(files)
    left = [f for f in files if f not in entries]
    names.report_ignored("folder", left, f"no row in {table.name}")
    joined = []
    for scan in scans:
        entry = entries.get(scan.path.relative_to(root).as_posix())
        if entry is not None:
            said = {k: v for k in ("subject", "session", "contrast") if (v := getattr(entry, k)) is not None}
            person = {f.name: v for f in fields(entry.person) if (v := getattr(entry.person, f.name)) is not None}
            joined.append(replace(scan, **said, **person))
    return joined


def _report(scans: Sequence[Scan]) -> None:
    subjects = list(dict.fromkeys(s.subject for s in scans))
    log.info("data=folder: %d scans (%s) of %d subjects: %s", len(scans), count(s.contrast for s in scans),
             len(subjects), names.examples(subjects))  # fmt: skip
    unlabelled = [s.path.name for s in scans if s.label is None and s.contrast != MASK]
    images = sum(s.contrast != MASK for s in scans)
    if 0 < len(unlabelled) < images:
        log.warning("data=folder: %d of %d images have no label: %s", len(unlabelled), images,
                    names.examples(unlabelled))  # fmt: skip

"""Any folder of MRI: NIfTI, 2-D NIfTI, DICOM series, PNG, JPEG, TIFF; subjects from names, a pattern or a table."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from mri_synth.data import bids, names, pairs, places
from mri_synth.data.base import MRIDataModule
from mri_synth.data.contrasts import MASK, UNKNOWN, contrast_of_path, count
from mri_synth.data.demographics import add_people
from mri_synth.data.dicom_tree import series_scans
from mri_synth.data.kinds import ADDRESS, Kinds, compiled, matching, sort_files
from mri_synth.data.places import Found
from mri_synth.data.scan import Scan
from mri_synth.data.subjects import Subjects, find_table, read_subjects
from mri_synth.data.views import Images, Pairs
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = """
ROOT/
  sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz   (BIDS; participants.tsv is joined)
  patient07/T1.nii.gz, patient07/T2.nii.gz    (a folder per subject)
  s01_T1.nii.gz, s01_T2.nii.gz                (a name per subject)
  patient07/series1/*.dcm                     (DICOM series)
  glioma/1.jpg, meningioma/2.jpg              (pictures; data.label=folder data.split.by=block)
  T1/001.png, T2/001.png or 001_T1.png, ...   (pictures; of one name but for the contrast: pairs)
  Tr1/TrainT1/Image 10.png, Tr2/TrainT2/...   (two unpaired sets; also trainA, trainB, testA, testB)
"""
FROM_MASK = ("none", "lesion")
"""Classes of slices by a label map."""


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
        pairs: "none": names that agree but for the contrast show different slices; or a table with the columns a and b
            (file names): these and no others show the same. They stay in one split and score validation and test of
            unpaired training, which does not know of them. None goes by the names.
    """

    pattern: str | None = None
    subjects: str | None = None
    contrast_names: dict[str, str] | None = None
    label: Literal["none", "folder", "mask"] = "none"
    pairs: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if found := _two_sayings(vars(self)):
            raise UserError(found)
        if self.label == "mask":
            vars(self)["label_from_mask"] = FROM_MASK  # hides the class's own
        self._paired: list[list[Path]] = []
        self._partners: dict[int, int] | None = None

    @classmethod
    def labelled(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether items may have classes: by folder, by the pattern's group or by the table (not opened here)."""
        pattern = str(arguments.get("pattern") or "")
        return super().labelled(arguments) or "(?P<label>" in pattern or bool(arguments.get("subjects"))

    @classmethod
    def marked(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether slices may have masks: label maps may lie beside the images (not opened here)."""
        return True

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
        contrasts, table = arguments.get("contrasts") or (), arguments.get("pairs")
        if table not in (None, pairs.NONE) and contrasts and len(contrasts) != 2:
            found.append(f"data.pairs={table}: a table of pairs is of two contrasts; it is "
                         f"data.contrasts=[{','.join(contrasts)}]")  # fmt: skip
        return found + ([twice] if (twice := _two_sayings(arguments)) else [])

    @classmethod
    def refuses(cls, view: type[Images], arguments: Mapping[str, Any]) -> str:
        """Why there is no such view under these constructor arguments: nothing pairs where `pairs` is said.

        Args:
            view: one of `mri_synth.data.views`.
            arguments: constructor arguments.

        Returns:
            The reason with the way out; "" when it offers the view.
        """
        said = arguments.get("pairs")
        if said is not None and issubclass(view, Pairs) and arguments.get("source", "contrasts") == "contrasts":
            return (f"needs pairs to train on, and data.pairs={said} keeps them apart, to score what trains without; "
                    "say data.pairs=null: names that agree, or data.subjects, then tell pairs")  # fmt: skip
        return super().refuses(view, arguments)

    def scans(self) -> list[Scan]:
        """Every image and label map of `data.contrasts` (all contrasts when that is empty).

        Returns:
            One scan per file or DICOM series.

        Raises:
            UserError: an unusable root, pattern or table, no image, a scan stored twice, an absent contrast, or no
                label map where those are to say the class.
        """
        root = names.resolve_root("folder", self.root, LAYOUT, ADDRESS)
        pattern = compiled(self.pattern)
        table = find_table(self.subjects, root)
        kinds = sort_files(root, names.list_files(root), LAYOUT)
        if pattern:
            kinds = matching(kinds, pattern, root)
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
        kept = names.guess_contrast("folder", kept, self.contrasts)
        kept = names.keep_contrasts("folder", kept, self.contrasts, hint)
        return self._paired_up(kept, root)

    def _paired_up(self, scans: list[Scan], root: Path) -> list[Scan]:
        """The scans by what `pairs` says of them; those that lack a partner are listed, where names say who has one."""
        wanted = self.contrasts or list(dict.fromkeys(s.contrast for s in scans if s.contrast != MASK))
        if self.pairs is None:
            asked = [wanted[-1], MASK] if self.source == "mask" else wanted if self.source == "contrasts" else []
            hint = ", or the group subject of data.pattern or the table data.subjects says what belongs together"
            pairs.report("folder", scans, asked, needed=self.view_class is Pairs, hint=hint)
            return scans
        scans = pairs.apart(scans, wanted)
        if self.pairs == pairs.NONE:
            return scans
        table = pairs.find_pairs(self.pairs, root)
        scans, self._paired = pairs.joined(scans, pairs.read_pairs(table), root, table.name)
        return scans

    def partners(self) -> Mapping[int, int]:
        """Row of a slice of the first contrast to the row of the second that shows the same, by `pairs`.

        Returns:
            Rows of the store.
        """
        store = self.store
        if self._partners is None:
            two = len(self.contrasts) == 2
            self._partners = pairs.rows_of(store, self._paired, *self.contrasts) if two else {}
        return self._partners

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
        for found in (
            places.of_volumes(volumes, root.name, self.contrasts),
            places.of_pictures(pictures, self.contrasts),
        ):
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
                rule = bids.describe(root, volumes) if found.rule.startswith("BIDS") else found.rule
                log.info("data=folder: subjects are told by %s", "pattern or table" if self._said else rule)
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


def _two_sayings(arguments: Mapping[str, Any]) -> str:
    """The mistake of a class that both the label map and the pattern say; "" when it is not made."""
    if arguments.get("label") != "mask" or "(?P<label>" not in str(arguments.get("pattern") or ""):
        return ""
    return "data.label=mask: data.pattern says the class too, by its group label; take one of the two"


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

"""The files of any tree by kind, and those of them that a pattern chooses; nothing is read but the first bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mri_synth.data import names, places
from mri_synth.data.dicom_tree import dicom_folders
from mri_synth.errors import UserError

TEXTS = (".csv", ".tsv", ".xlsx", ".xls", ".json", ".txt", ".md", ".pdf", ".bval", ".bvec")
GROUPS = ("subject", "session", "contrast", "label", "slice")
ADDRESS = "your own data"


@dataclass(frozen=True)
class Kinds:
    """The files of a tree by kind: volumes, pictures, and folders of DICOM series; posix paths below the root."""

    volumes: list[str]
    pictures: list[str]
    dicom: list[str]


def sort_files(root: Path, files: Sequence[str], layout: str) -> Kinds:
    """Sort a tree's files by kind; what is no image, table or text is reported.

    Args:
        root: the folder.
        files: posix paths relative to it.
        layout: what a folder may look like, for the message.

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
        raise names.no_match("folder", root, files, "*.nii, *.nii.gz, *.dcm, *.png, *.jpg, *.tif", layout, ADDRESS)
    names.refuse_twins("folder", volumes)
    headers = {places.path_stem(f) for f in volumes if f.lower().endswith(".img")}
    strange = [f for f in others if f.rpartition("/")[0] not in dicom and not names.has_suffix(f, TEXTS)
               and places.path_stem(f) not in headers]  # fmt: skip
    names.report_ignored("folder", strange, "not a kind of image that is read")
    return Kinds(volumes, pictures, dicom)


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """The regular expression `data.pattern`.

    Args:
        pattern: with named groups, or None.

    Returns:
        Compiled, None for None.

    Raises:
        UserError: no regular expression, an unknown group, or none.
    """
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


def matching(kinds: Kinds, pattern: re.Pattern[str], root: Path) -> Kinds:
    """The files that match; the others are reported.

    Args:
        kinds: all files.
        pattern: `data.pattern`.
        root: of the files, for the message.

    Returns:
        The kinds of those that match.

    Raises:
        UserError: nothing matches.
    """
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

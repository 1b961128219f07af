"""Subject, visit and contrast of the files of any tree, by the habits people have; nothing is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from mri_synth.data import bids
from mri_synth.data.contrasts import (
    UNKNOWN,
    contrast_of_path,
    is_brain_mask,
    is_contrast_folder,
    is_mask_folder,
    without_contrast,
)
from mri_synth.data.demographics import split_of
from mri_synth.data.names import Place, stem
from mri_synth.data.scan import Split

_WRAPPER = ("anat", "images", "image", "imgs", "imagestr", "imagests", "data", "nifti", "nii", "raw", "scans", "mri")
_OF_IMAGES = ("images", "image", "imgs", "img")  # beside folders of masks
_SESSION_FOLDER = re.compile(
    r"ses(?:sion)?[-_]?[a-z0-9]+|(?:visit|study|tp|time(?:point)?|followup|fu|month|week|year|m|v)[-_]?\d+"
    r"|baseline|followup",
    re.IGNORECASE,
)
_SESSION_WORD = re.compile(
    r"(?:^|[_\-. ])((?:ses|session|visit|study|tp|timepoint|followup)[-_]?\d+|baseline|followup"
    r"|(?:19|20)\d{2}-?\d{2}-?\d{2})(?=$|[_\-. ])",
    re.IGNORECASE,
)
_SLICE = re.compile(r"(.+?)[_-]slice[_-]?(\d+)(?!\d)", re.IGNORECASE)
_DOMAIN = re.compile(r"(train(?:ing)?|val(?:id(?:at(?:e|ion))?)?|test(?:ing)?)[-_]?([AB])", re.IGNORECASE)
"""trainA, trainB, testA, testB: CycleGAN's folders of two unpaired sets."""


@dataclass(frozen=True)
class Found:
    """Places of files, those left out, and the rule by which subjects were told.

    Attributes:
        places: file to place.
        left_out: reason to files.
        rule: in words, for the log.
        patients: False when every file had to be its own subject.
    """

    places: dict[str, Place]
    left_out: dict[str, list[str]]
    rule: str
    patients: bool = True


def path_stem(file: str) -> str:
    """A relative path without the file's suffix."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/{stem(name)}" if folder else stem(name)


def of_volumes(files: Sequence[str], root_name: str, wanted: Sequence[str] = ()) -> Found:
    """Places of NIfTI and other volumes: BIDS names, else a folder per subject, else a file name per subject.

    Args:
        files: posix paths relative to the root.
        root_name: the root's own name: the subject of files called just "T1.nii.gz" in it.
        wanted: contrasts; a folder called like one of them holds it.

    Returns:
        Places; masks of the brain are left out.
    """
    brain = [f for f in files if is_brain_mask(stem(f))]
    rest = [f for f in files if not is_brain_mask(stem(f))]
    if bids.is_tree(rest):
        there, out = bids.places(rest)
        found = Found(there, out, "BIDS names (sub-XX, ses-YY)")
    else:
        found = _by_folder(rest, root_name, wanted) or _by_name(rest, root_name, wanted)
    return Found(found.places, found.left_out | {"masks of the brain, which mark no lesion": brain}, found.rule)


def contrast_of(file: str, wanted: Sequence[str] = ()) -> str:
    """Contrast of a file by its names; by a folder called like a wanted contrast, or trainA, where they say none.

    Args:
        file: posix path relative to the root.
        wanted: contrasts, such as [A, B].

    Returns:
        T1, ..., "mask", a wanted one, "A", "B", or "MRI" when nothing says it.
    """
    found = contrast_of_path(path_stem(file))
    if found != UNKNOWN:
        return found
    for folder in reversed(file.split("/")[:-1]):
        if own := _wanted_folder(folder, wanted):
            return own
        if match := _DOMAIN.fullmatch(folder):
            return match[2].upper()
    return UNKNOWN


def _wanted_folder(folder: str, wanted: Sequence[str]) -> str | None:
    return next((c for c in wanted if c.lower() == folder.lower()), None)


def _folders(file: str, wanted: Sequence[str] = ()) -> tuple[list[str], str]:
    """The folders of a file that can name people, and its session by a folder."""
    kept, session = [], ""
    for folder in file.split("/")[:-1]:
        if _SESSION_FOLDER.fullmatch(folder):
            session = folder
        elif not (
            folder.lower() in _WRAPPER
            or split_of(folder)
            or is_contrast_folder(folder)
            or is_mask_folder(folder)
            or _wanted_folder(folder, wanted)
        ):
            kept.append(folder)
    return kept, session


def _remainder(file: str) -> tuple[str, str]:
    """What a file's name says without contrast and visit, and the visit."""
    rest = without_contrast(stem(file))
    match = _SESSION_WORD.search(rest)
    if match is None:
        return rest, ""
    return (rest[: match.start()] + rest[match.end() :]).strip("_-. "), match[1]


def _by_folder(files: Sequence[str], root_name: str, wanted: Sequence[str]) -> Found | None:
    """One folder per subject; None where folders rather are classes or sites: fewer of them than scans in one.

    In doubt the folder wins: too large a subject wastes data, a subject in two splits spoils every figure.
    """
    places: dict[str, Place] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for file in files:
        folders, session = _folders(file, wanted)
        rest, visit = _remainder(file)
        paths[file] = tuple(folders)
        session = "_".join(filter(None, (session, visit)))
        subject = "/".join(folders) or rest or root_name
        places[file] = Place(subject=subject, session=session, contrast=contrast_of(file, wanted))
    tally = Counter((paths[f], p.session, p.contrast) for f, p in places.items() if paths[f])
    most: dict[tuple[str, ...], int] = {}
    for (path, _, _), n in tally.items():
        most[path] = max(most.get(path, 0), n)
    if not most or len(most) < median(most.values()):
        return None
    above: dict[str, set[tuple[str, ...]]] = {}
    for path in most:
        above.setdefault(path[-1], set()).add(path)
    if all(len(paths_of) == 1 for paths_of in above.values()):  # the last folder alone is unique
        places = {f: replace(p, subject=paths[f][-1]) if paths[f] else p for f, p in places.items()}
    return Found(places, {}, "the folder that holds the scans")


def _by_name(files: Sequence[str], root_name: str, wanted: Sequence[str]) -> Found:
    """One name per subject: what is left of it without contrast and visit."""
    parts = {f: (_folders(f, wanted), _remainder(f)) for f in files}
    where: dict[str, set[str]] = {}
    for (folders, _), (rest, _) in parts.values():
        where.setdefault(rest, set()).add("/".join(folders))
    places = {}
    for file, ((folders, session), (rest, visit)) in parts.items():
        # a name that stands in several folders ("scan.nii.gz", "001.nii.gz") is no person's without its folder
        above = "/".join(folders) if len(where[rest]) > 1 or not rest else ""
        subject = "/".join(filter(None, (above, rest))) or root_name
        session = "_".join(filter(None, (session, visit)))
        places[file] = Place(subject=subject, session=session, contrast=contrast_of(file, wanted))
    return Found(places, {}, "the file name without contrast and visit")


def of_pictures(files: Sequence[str], wanted: Sequence[str] = ()) -> Found:
    """Places of pictures: NAME_slice_12 says subject and slice; other names say no subject, so each is its own.

    Pictures whose paths differ in nothing but the contrast, in the name or in a folder, have one subject: a pair.

    Args:
        files: posix paths relative to the root.
        wanted: contrasts; a folder called like one of them holds it.

    Returns:
        Places; `patients` is False where the names say no subjects.
    """
    matches = {f: m for f in files if (m := _SLICE.match(stem(f)))}
    places = {}
    for file in files:
        contrast = contrast_of(file, wanted)
        *folders, name = path_stem(file).split("/")
        above = "/".join(filter(None, (_common(f, wanted) for f in folders)))
        if len(matches) == len(files):
            before, number = matches[file][1], int(matches[file][2])
            subject = without_contrast(before) or above or before  # p1/T1_slice_3.png is of p1
            places[file] = Place(subject=subject, contrast=contrast, slice=number)
        else:
            subject = "/".join(filter(None, (above, without_contrast(name) or name)))
            places[file] = Place(subject=subject, contrast=contrast)
    if len(matches) == len(files):
        return Found(places, {}, "the names before _slice_")
    return Found(places, {}, "each picture for itself", patients=False)


def _common(folder: str, wanted: Sequence[str]) -> str:
    """What the folders of the contrasts of one picture share: "trainT1" and "trainT2" are "train", "T1" is ""."""
    if is_contrast_folder(folder):
        return without_contrast(folder)
    bare = folder.lower() in _OF_IMAGES or is_mask_folder(folder) or _wanted_folder(folder, wanted)
    return "" if bare else folder


def label_folder(file: str, subject: str) -> str | None:
    """The class of a file: its nearest folder that is not the subject's, a visit's, a contrast's or a split's.

    Args:
        file: posix path relative to the root.
        subject: of the file.

    Returns:
        The folder's name, None for a file without such a folder.
    """
    folders = _folders(file)[0]
    while folders and (subject == folders[-1] or subject.endswith(f"/{folders[-1]}")):
        folders.pop()
    return folders[-1] if folders else None


def split_folder(file: str) -> Split | None:
    """The train, validation or test folder (trainA, testT2) a file lies in, None where it lies in none."""
    for folder in file.split("/")[:-1]:
        match = _DOMAIN.fullmatch(folder)
        word = match[1] if match else without_contrast(folder) if is_contrast_folder(folder) else folder
        if split := split_of(word):
            return split
    return None

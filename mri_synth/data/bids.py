"""BIDS trees: who, which visit and which contrast by the names of the standard (https://bids-specification.readthedocs.io)."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mri_synth.data.contrasts import MASK, contrast_in
from mri_synth.data.names import Place, examples, stem

log = logging.getLogger(__name__)

DESCRIPTION = "dataset_description.json"
ASIDE = ("derivatives", "sourcedata", "code", "stimuli")
"""Folders of a BIDS data set that hold no raw scans; each may be a root of its own."""
_SUBJECT = re.compile(r"(?:^|/)sub-([A-Za-z0-9]+)(?=[_/])")
_SESSION = re.compile(r"(?:^|[/_])ses-([A-Za-z0-9]+)")
_ANAT = re.compile(r"(?:^|/)sub-[A-Za-z0-9]+/(?:ses-[A-Za-z0-9]+/)?anat/")
_TYPES = ("func", "dwi", "fmap", "perf", "pet", "eeg", "meg", "ieeg", "beh", "micr", "nirs", "motion", "mrs")
_MORE = {"angio": "MRA", "UNIT1": "T1", "PDT2": "PD"}  # suffixes whose words do not say the contrast; UNIT1: MP2RAGE
_MAPS = ("dseg", "probseg", "defacemask")


def is_tree(files: Sequence[str]) -> bool:
    """Whether files are called as BIDS wants it: dataset_description.json and sub-XX, sub-XX/anat/, or sub-XX_T1w.

    Args:
        files: posix paths relative to the root.

    Returns:
        Names alone are enough: nobody calls files sub-01_T1w by accident.
    """
    return any(_SUBJECT.search(f) for f in files)


def describe(root: Path, files: Sequence[str]) -> str:
    """By what a tree was told to be BIDS, with what its description says.

    Args:
        root: of the tree.
        files: of its images, posix paths relative to the root.

    Returns:
        In words, for the log.
    """
    if (root / DESCRIPTION).is_file():
        try:
            said = json.loads((root / DESCRIPTION).read_text(encoding="utf-8-sig"))
            about = (str(said.get(k) or "") for k in ("Name", "DatasetType"))
            version = f"BIDS {said['BIDSVersion']}" if said.get("BIDSVersion") else ""
            return f"BIDS names ({DESCRIPTION}: {', '.join(filter(None, (*about, version))) or 'empty'})"
        except (OSError, ValueError, AttributeError) as error:
            log.warning("%s: not readable as JSON (%s); names alone are gone by", root / DESCRIPTION, error)
    folders = "sub-XX/anat" if any(_ANAT.search(f) for f in files) else "sub-XX"
    return f"BIDS names ({folders}; there is no {DESCRIPTION})"


def places(files: Sequence[str]) -> tuple[dict[str, Place], dict[str, list[str]]]:
    """Subject, visit and contrast of the anatomical images and label maps of a BIDS tree.

    Of several runs the first goes with the other contrasts of its visit. Files that differ in another entity (acq, rec,
    desc, space) alone stay together, and a warning says how to choose.

    Args:
        files: posix paths of volumes relative to the root.

    Returns:
        File to place, and reason to the files that were left out.
    """
    found: dict[str, Place] = {}
    out: dict[str, list[str]] = defaultdict(list)
    for file in files:
        place, reason = _place(file)
        if place is None:
            out[reason].append(file)
        else:
            found[file] = place
    _warn_of_variants(found)
    return found, dict(out)


def _place(file: str) -> tuple[Place | None, str]:
    folders, name = file.split("/")[:-1], stem(file)
    subject = _SUBJECT.search(file)
    if folders and folders[0] in ASIDE:
        return None, "derivatives and sourcedata"
    if subject is None:
        return None, "no sub-XX name"
    if folders and folders[-1] in _TYPES:
        return None, "no anatomical contrast"
    suffix = name.rsplit("_", 1)[-1]
    contrast = MASK if suffix in ("mask", "roi") else _MORE.get(suffix) or contrast_in(suffix)
    if suffix in _MAPS or contrast is None:
        return None, "no anatomical contrast"
    if contrast == "T1" and "_ce-" in name:
        contrast = "T1ce"
    session, run = _SESSION.search(file), re.search(r"_run-0*(\d+)", name)
    visit = [session[1]] if session else []
    visit += [f"run-{run[1]}"] if run and run[1] != "1" else []  # run 1 goes with the other contrasts
    return Place(subject=f"sub-{subject[1]}", session="_".join(visit), contrast=contrast), ""


def _warn_of_variants(found: dict[str, Place]) -> None:
    """Say which visits have several scans of one contrast that an entity tells apart."""
    same: dict[Place, list[str]] = defaultdict(list)
    for file, place in found.items():
        same[place].append(stem(file))
    several = {place: names for place, names in same.items() if len(names) > 1 and place.contrast != MASK}
    if not several:
        return
    place, names = next(iter(several.items()))
    words = [set(name.split("_")) for name in names]
    own = sorted(set().union(*words) - words[0].intersection(*words)) or ["WORD"]
    suffix = names[0].rsplit("_", 1)[-1]
    log.warning(
        "data=folder: %d visit(s) have several scans of one contrast, such as %d %s of %s: %s. For pairs choose one, "
        "as by 'data.pattern=\"(?P<subject>sub-[^/_]+).*(%s.*_%s|_OTHERCONTRAST)\"'",
        len(several), len(names), place.contrast, place.subject, examples(names, 3), own[0], suffix,
    )  # fmt: skip

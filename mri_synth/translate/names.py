"""What translated files are called: as BIDS derivatives where the source has a BIDS name, else after the source."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mri_synth import __version__
from mri_synth.data.bids import DESCRIPTION
from mri_synth.data.contrasts import without_contrast
from mri_synth.data.names import PICTURES, has_suffix, stem
from mri_synth.errors import UserError
from mri_synth.through import write_json

SUFFIXES = {"T1": "T1w", "T1ce": "T1w", "T2": "T2w", "PD": "PDw", "FLAIR": "FLAIR", "MRA": "angio"}
"""BIDS suffix of a contrast; others are written as they are called."""
BIDS_VERSION = "1.9.0"
_BIDS = re.compile(r"sub-[A-Za-z0-9]+(_[A-Za-z]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+")
_BEFORE_CE = ("sub", "tpl", "ses", "cohort", "sample", "task", "tracksys", "acq", "nuc", "voi")
"""Entities that go before ce- (BIDS specification, src/schema/rules/entities.yaml); desc- is the last of all."""


def is_bids(folder: Path) -> bool:
    """Whether a folder is the root of a BIDS tree: it has the description, or folders sub-XX."""
    return (folder / DESCRIPTION).is_file() or any(p.is_dir() for p in folder.glob("sub-*"))


def has_bids_name(path: Path) -> bool:
    """Whether a file is called as BIDS wants it: sub-01_ses-1_T1w.nii.gz."""
    return _BIDS.fullmatch(stem(path.name)) is not None


def output_name(path: Path, goal: str, *, clash: bool = False, series: str | None = None) -> str:
    """Name of what is made of a file.

    Args:
        path: of the first source: a file, or the folder of a DICOM series.
        goal: contrast that is made.
        clash: another source would get the same name: the whole of the source's goes into it.
        series: SeriesInstanceUID, which goes into it too where names clash.

    Returns:
        sub-01_desc-synthetic_T2w.nii.gz for sub-01_T1w.nii.gz; s01_synthetic_T2.nii.gz for s01_T1.nii.gz; the ending
        .png for a picture, .nii for .nii.
    """
    name = path.name
    ending = ".png" if has_suffix(name, PICTURES) else ".nii" if name.lower().endswith(".nii") else ".nii.gz"
    whole = stem(name)
    if has_bids_name(path):
        return f"{_bids(whole, goal)}{ending}"
    kept = whole if clash else without_contrast(whole)
    parts = (kept, (series or "") if clash else "", "synthetic", re.sub(r"[^\w.+-]", "-", goal))
    return "_".join(filter(None, parts)) + ending


def _bids(name: str, goal: str) -> str:
    """The name of a derivative: the source's entities without agent and description, desc-synthetic, the suffix."""
    entities = [part for part in name.split("_")[:-1] if part.split("-")[0] not in ("ce", "desc")]
    if goal == "T1ce":
        at = max(k for k, part in enumerate(entities) if part.split("-")[0] in _BEFORE_CE) + 1
        entities.insert(at, "ce-gadolinium")
    suffix = SUFFIXES.get(goal) or re.sub(r"[^A-Za-z0-9]", "", goal) or "MRI"
    return "_".join([*entities, "desc-synthetic", suffix])


def describe_derivatives(output: Path, source: Path, model: str) -> None:
    """Write dataset_description.json of BIDS derivatives; one that is ours already stays.

    Args:
        output: root of the derivatives.
        source: root of the raw data.
        model: that made them.

    Raises:
        UserError: the folder is another BIDS data set.
    """
    path = output / DESCRIPTION
    if path.exists():
        try:
            before = json.loads(path.read_text())
            ours = "mri_synth" in [g.get("Name") for g in before.get("GeneratedBy", [])]
        except (ValueError, AttributeError, TypeError):
            ours = False
        if not ours:
            raise UserError(f"{output}: is another BIDS data set ({DESCRIPTION} is not of mri_synth). Give a folder of "
                            "its own, such as derivatives/mri_synth in the data set.")  # fmt: skip
        return
    write_json(path, {
        "Name": f"Synthetic images by mri_synth, {model}: not measured",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "mri_synth", "Version": __version__, "Description": f"mri-synth translate, {model}"}],
        "DatasetLinks": {"raw": source.resolve().as_uri()},
        "SourceDatasets": [{"URL": source.resolve().as_uri()}],
    })  # fmt: skip


def sources_field(paths: Sequence[Path], root: Path | None) -> list[str]:
    """The BIDS metadata field Sources.

    Args:
        paths: of the sources.
        root: of the raw BIDS data set; None where there is none.

    Returns:
        BIDS URIs such as bids:raw:sub-01/anat/sub-01_T1w.nii.gz; else paths.
    """
    inside = root is not None and all(p.is_relative_to(root) for p in paths)
    return [f"bids:raw:{p.relative_to(root).as_posix()}" if inside and root else str(p.resolve()) for p in paths]

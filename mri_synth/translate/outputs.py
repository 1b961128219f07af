"""Outputs of translation: the units that they are written in, and which are there already."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from mri_synth.data import identity
from mri_synth.data.batch import DataSpec
from mri_synth.data.intensity import Intensity
from mri_synth.data.scan import Scan
from mri_synth.data.volume import Volume
from mri_synth.errors import UserError

SIGNS = {"translate": r"synthetic: mri_synth [^,]+, (?!refine,)\w+, [^\",]+",
         "refine": r"synthetic: mri_synth [^,]+, refine, style transfer"}  # fmt: skip
"""What the files of a verb say of themselves; other verbs sign theirs too."""
ARBITRARY = Intensity(0.0, 1000.0)
"""What -1 and 1 are written as, where the units of the goal's contrast are not known."""


def units(spec: DataSpec, goal: str, volume: Volume) -> tuple[Intensity, str]:
    """What -1 and 1 are written as: what a new subject's scan would hold is not known.

    Args:
        spec: of the model.
        goal: contrast that is made.
        volume: the source.

    Returns:
        The map, and what its numbers mean.
    """
    preparation = spec.preparation
    if preparation["intensity"]["method"] == "fixed":
        low, high = preparation["intensity"]["range"]
        return Intensity(low, high), "the units of the training files (data.intensity.range)"
    if is_picture(volume):
        return Intensity(0.0, float(np.iinfo(volume.dtype).max)), "grey levels, from the darkest to the brightest"
    if goal in (ranges := preparation.get("ranges", {})):
        low, high = ranges[goal]
        return Intensity(low, high), (f"typical of the training files: the median {goal} runs from {low:g} to "
                                      f"{high:g}; the scale of this subject's own is not known")  # fmt: skip
    return ARBITRARY, "arbitrary: the model's darkest is 0 and its brightest 1000"


def is_picture(volume: Volume) -> bool:
    """Whether a volume is a PNG, JPEG or TIFF."""
    return volume.source is not None and volume.source.kind == "picture"


def fingerprint(scan: Scan) -> str:
    """What a scan's files are.

    Args:
        scan: any.

    Returns:
        SHA-256 of the file; of a DICOM series, of the names and hashes of the files in its folder.
    """
    if not scan.path.is_dir():
        return identity.sha256(scan.path)
    files = sorted(p for p in scan.path.iterdir() if p.is_file())
    text = "".join(f"{p.name} {identity.sha256(p)}\n" for p in files)
    return hashlib.sha256(f"{scan.series}\n{text}".encode()).hexdigest()


def done(
    output: Path, sidecar: Path, made_by: Mapping[str, Any], overwrite: bool, verb: str = "translate"
) -> dict[str, Any] | None:
    """What is known of an output that is there, whole and made in the same way.

    Args:
        output: the file.
        sidecar: the JSON beside it.
        made_by: model, options and files that it would be made of now.
        overwrite: write over what was made otherwise.
        verb: that is at work.

    Returns:
        The sidecar's content; None where the output is to be made, or was stopped half-way.

    Raises:
        UserError: it was made otherwise, or by something else.
    """
    if not output.exists():
        return None
    try:
        before = json.loads(sidecar.read_text()) if sidecar.exists() else {}
    except ValueError:
        before = {}
    if before.get("made_by") == made_by and before.get("bytes") == output.stat().st_size:
        return dict(before)
    if overwrite or (not before and _signed(output, verb)):  # stopped between the two files
        return None
    why = f"is there, and not known to be of mri-synth {verb}"
    if theirs := before.get("made_by"):
        why = (
            f"is there, made with other {' and '.join(k for k, v in made_by.items() if theirs.get(k) != v) or 'bytes'}"
        )
    raise UserError(f"{output}: {why}. Give --overwrite, or another output.")


def _signed(output: Path, verb: str) -> bool:
    """Whether a file says of itself that this verb wrote it."""
    try:
        if output.suffix == ".png":
            with Image.open(output) as image:
                said = str(image.info.get("synthetic", ""))
        else:
            header: Any = nib.load(output).header
            said = header["descrip"].item().decode("ascii", "replace")
    except Exception:  # not readable: not ours
        return False
    return re.fullmatch(SIGNS[verb], said) is not None

"""A folder of pictures and volumes as a set of images for `mri-synth evaluate`: intensities, slices, who and what."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mri_synth.data import places
from mri_synth.data.contrasts import MASK, contrast_of_path
from mri_synth.data.intensity import Intensity, fit_intensity
from mri_synth.data.names import PICTURES, VOLUMES, has_suffix
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.settings import IntensitySettings, Plane
from mri_synth.data.subjects import read_subjects
from mri_synth.data.volume import AXES, WAY_OUT, Volume, read, resample_to, same_grid, to_slices
from mri_synth.errors import UserError
from mri_synth.evaluate.images import ImageSet
from mri_synth.refine.files import _once, _tree
from mri_synth.sample import RECORD

log = logging.getLogger(__name__)

Scaling = Literal["auto", "unit", "percentile", "minmax"]
TABLES = ("subjects.csv", "split.csv", "participants.tsv")
"""Of a folder, which say whose image is in which file."""
EMPTY = 0.01
"""Slices of a volume with a smaller share of foreground are left out."""
ALLOWED = ("allowed: a folder of pictures or NIfTI files; data words in quotes, such as 'data=ixi data.root=/my/ixi'; "
           "a prepared store; and as FAKE a checkpoint that samples")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images are read.

    Attributes:
        output: folder of the results; what lies in it is no input.
        size: side in pixels that images are brought to; None leaves them.
        plane: of volumes.
        scaling: of a folder's intensities.
        n: samples of a checkpoint.
        at_most: images of a set that are looked at.
        seed: of every draw.
        batch_size: samples at once.
        device: where a checkpoint samples.
        skip_bad: files that cannot be used are left out and listed.
    """

    output: Path
    size: int | None = None
    plane: Plane = "axial"
    scaling: Scaling = "auto"
    n: int = 1000
    at_most: int = 10_000
    seed: int = 0
    batch_size: int = 32
    device: str = "auto"
    skip_bad: bool = False


def add_folder(out: ImageSet, root: Path, how: Reading) -> None:
    """Put a folder's images into a set.

    Args:
        out: the set.
        root: the folder.
        how: to read it.

    Raises:
        UserError: nothing in it, files that cannot be used (all of them are named), or images of several sizes.
    """
    if how.output.resolve() == root.resolve():
        raise UserError(f"-o {how.output}: is the folder of {out.role} itself; give the results another")
    files = _once(_tree(root, how.output))
    if not files:
        raise UserError(f"{out.role}: {root}: no picture and no volume in this folder; {ALLOWED}")
    out.about |= {"kind": "folder", "sampled": (root / RECORD).is_file()}
    names = [f.relative_to(root).as_posix() for f in files]
    beside = masks_beside(root, names, how.output)
    subject, label = _told(root, names, sampled=bool(out.about["sampled"]))
    if len(files) > how.at_most and not any(has_suffix(n, VOLUMES) for n in names):
        out.about["of"] = len(files)
        kept = np.sort(np.random.default_rng(how.seed).permutation(len(files))[: how.at_most]).tolist()
        files, names = [files[k] for k in kept], [names[k] for k in kept]
    bad: list[str] = []
    rules: dict[str, str] = {}
    empty = 0
    for path, name in zip(files, names, strict=True):
        try:
            volume = read(path, allow_constant=True)
            values, rule = _scaled(volume, how.scaling)
            mask = _mask(beside[name], volume) if name in beside else None
        except UserError as error:
            bad.append(_plain(str(error)))
            continue
        rules.setdefault(rule, name)
        images, masks, spacing, numbers, lost = _slices(volume, values, mask, how.plane)
        empty += lost
        out.add(images, name, spacing, [subject[name]], [label[name]], numbers, masks)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        out.files.append({"path": str(path), "sha256": digest, "images": len(images)})
    if bad and how.skip_bad:
        log.warning("%s: %d of %d files left out, such as %s", out.role, len(bad), len(files), bad[0])
        out.about["left_out"] = bad
    elif bad:
        raise UserError(f"{out.role}: {len(bad)} of {len(files)} files cannot be used; mend or remove them, or leave "
                        "them out by --skip-bad:\n  "
                        + "\n  ".join(bad[:10]) + ("\n  ..." if len(bad) > 10 else ""))  # fmt: skip
    if {"unit", "percentile"} <= set(rules) and how.scaling == "auto":
        raise UserError(f"{out.role}: some volumes lie in [0, 1] ({rules['unit']}) and others do not "
                        f"({rules['percentile']}); say --intensity unit or percentile")  # fmt: skip
    out.about |= {"intensity": sorted(rules), "empty_slices_left_out": empty}


def _plain(message: str) -> str:
    """A reader's message without ways out that are a run's."""
    for said, instead in ((WAY_OUT, ""), (", or leave it out by data.on_bad_file=skip", ""),
                          ("data.intensity.method=", "--intensity ")):  # fmt: skip
        message = message.replace(said, instead)
    return message.strip()


def _scaled(volume: Volume, scaling: Scaling) -> tuple[NDArray[np.float32], str]:
    """Values in [-1, 1], and the rule: pictures by their bit depth, what is in [0, 1] as it is, else percentiles."""
    kind, low, high = volume.dtype.kind, float(volume.array.min()), float(volume.array.max())
    if volume.picture and kind == "u" and scaling in ("auto", "unit"):
        depth = float(np.iinfo(volume.dtype).max)
        return Intensity(0.0, depth).apply(volume.array), f"bit depth [0, {depth:.0f}]"
    rule = scaling
    if scaling == "auto":
        rule = "unit" if kind == "f" and low >= 0 and high <= 1 else "percentile"
    if rule == "unit":
        if low < -1e-3 or high > 1 + 1e-3:
            raise UserError(f"{volume.name}: values from {low:g} to {high:g}; --intensity unit is for [0, 1]")
        return Intensity(0.0, 1.0).apply(volume.array), "unit"
    settings = IntensitySettings(method="minmax" if rule == "minmax" else "percentile")
    return fit_intensity(volume.array, settings, volume.name).apply(volume.array), rule


def masks_beside(root: Path, names: Sequence[str], output: Path) -> dict[str, Path]:
    """The label map of each image that has one, told as data=folder does: of one subject, visit and slice.

    Args:
        root: the folder.
        names: of its images, relative to it.
        output: folder of the results, in which none is looked for.

    Returns:
        Image to label map.
    """
    inside = output.resolve()
    below = inside.is_relative_to(root.resolve())
    maps = [p for p in sorted(root.rglob("*")) if p.is_file() and not (below and p.resolve().is_relative_to(inside))
            and has_suffix(n := p.relative_to(root).as_posix(), (*VOLUMES, *PICTURES))
            and contrast_of_path(places.path_stem(n)) == MASK]  # fmt: skip
    if not maps:
        return {}
    every = [*names, *(p.relative_to(root).as_posix() for p in maps)]
    found: dict[str, Path] = {}
    for some in ([n for n in every if has_suffix(n, VOLUMES)], [n for n in every if not has_suffix(n, VOLUMES)]):
        told = (places.of_volumes(some, root.name) if some and has_suffix(some[0], VOLUMES) else
                places.of_pictures(some)).places  # fmt: skip
        at = {(p.subject, p.session, p.slice): root / n for n, p in told.items() if p.contrast == MASK}
        found |= {n: at[key] for n, p in told.items()
                  if p.contrast != MASK and (key := (p.subject, p.session, p.slice)) in at}  # fmt: skip
    return found


def _mask(path: Path, image: Volume) -> Volume:
    """A label map on the grid of its image."""
    mask = read(path, allow_constant=True)
    if mask.picture and mask.array.shape != image.array.shape:
        raise UserError(f"{path}: a mask of {mask.array.shape[:2]} pixels, its image has {image.array.shape[:2]}")
    return mask if mask.picture or same_grid(mask, image) else resample_to(mask, image, nearest=True)


def _slices(
    volume: Volume, values: NDArray[np.float32], mask: Volume | None, plane: Plane
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, tuple[float, float], list[int], int]:
    """Slices with foreground, those of the mask, spacing of their pixels, their numbers, and how many were left out."""
    thin = [] if volume.picture else [p for p, axis in AXES.items() if volume.array.shape[axis] == 1]
    plane = thin[0] if len(thin) == 1 else plane
    cut = to_slices(Volume(values, volume.affine, volume.dtype, volume.picture, volume.source), plane)
    marks = None if mask is None else to_slices(mask, plane).images
    if len(cut.images) == 1:
        return cut.images, marks, cut.spacing_mm, [], 0
    kept = (cut.images > FOREGROUND).mean((1, 2)) >= EMPTY
    marks = None if marks is None else marks[kept]
    return cut.images[kept], marks, cut.spacing_mm, cut.index[kept].tolist(), int((~kept).sum())


def _told(root: Path, names: Sequence[str], sampled: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Subject and class of each file: a table in the folder, else names and folders; "" where they say none."""
    volumes = [n for n in names if has_suffix(n, VOLUMES)]
    pictures = [n for n in names if n not in set(volumes)]
    subject, known = dict.fromkeys(names, ""), dict.fromkeys(names, "")
    for found in (places.of_volumes(volumes, root.name), places.of_pictures(pictures)):
        for name, place in found.places.items():
            known[name] = place.subject
            subject[name] = place.subject if found.patients and not sampled else ""
    label = {n: places.label_folder(n, known[n]) or "" for n in names}
    for table in (root / t for t in TABLES if (root / t).is_file()):
        rows = read_subjects(table)
        if rows.by_file:
            for name, entry in rows.entries(names).items():
                subject[name] = entry.subject or subject[name]
                label[name] = entry.person.label or label[name]
            break
        for name in names:
            if person := rows.people().get(subject[name]):
                label[name] = person.label or label[name]
    if len({v for v in label.values() if v}) < 2:
        label = dict.fromkeys(names, "")
    return subject, label

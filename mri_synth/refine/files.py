"""What `mri-synth refine` works on: which style goes with which content, where results go, and the table of both."""

from __future__ import annotations

import csv
import glob
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mri_synth.data.contrasts import MASK, contrast_of_path
from mri_synth.data.names import examples
from mri_synth.data.nifti import whole_file
from mri_synth.data.places import path_stem
from mri_synth.data.volume import PICTURE_SUFFIXES
from mri_synth.errors import UserError
from mri_synth.models.style_images import SUFFIXES
from mri_synth.through import stem_of

log = logging.getLogger(__name__)

TABLE = "refined.csv"
FILES = (".nii", ".nii.gz", ".png")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image to restyle.

    Attributes:
        content: file whose content is kept.
        style: file whose style it takes on.
        output: the result's file.
        name: of the content below the folder that was given; what is drawn for it depends on this alone.
        problem: why it cannot be done; "" when it can.
    """

    content: Path
    style: Path
    output: Path
    name: str
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A line of `refined.csv`."""

    content: str
    style: str
    output: str
    state: str = ""
    style_left: str = ""
    correlation: str = ""
    slice_to_slice: str = ""


def find(inputs: Sequence[Path], style: str, output: Path, seed: int) -> list[Pair]:
    """Pairs, and where their results go.

    Args:
        inputs: contents: files, or one folder, whose tree is taken.
        style: file, folder, or pattern such as "real/*T2*.nii.gz".
        output: a file for one result, else a folder.
        seed: of the order in which styles are dealt out; each is dealt once before one is dealt again.

    Returns:
        One for each content, sorted by name.

    Raises:
        UserError: nothing there, or several results for one file.
    """
    contents = _contents(inputs, output)
    styles = _styles(style, output)
    order = np.random.default_rng([seed, 6]).permutation(len(styles))
    pairs = []
    for k, (name, path) in enumerate(contents):
        chosen = styles[order[k % len(styles)]]
        if chosen.resolve() == path.resolve() and len(styles) > 1:  # an image has its own style already
            chosen = styles[order[(k + 1) % len(styles)]]
        pairs.append(Pair(content=path, style=chosen, output=output / _result(name), name=name))
    if output.name.lower().endswith(FILES) and not output.is_dir():
        if len(pairs) > 1:
            there = examples(p.content.name for p in pairs)
            raise UserError(f"-o {output}: one file for {len(pairs)} results (of {there}); give a folder")
        return [replace(pairs[0], output=output)]
    number = Counter(p.output for p in pairs)
    return [replace(p, problem=f"{number[p.output]} contents would be written as {p.output.name}")
            if number[p.output] > 1 else p for p in pairs]  # fmt: skip


def write_pairs(pairs: Sequence[Pair], told: Mapping[Path, Mapping[str, Any]], folder: Path) -> None:
    """Write `refined.csv`: content, style, output, state and figures; lines of other outputs that are there stay.

    Args:
        pairs: of this call.
        told: output to what is known of it: state, style_left, correlation, slice_to_slice.
        folder: of the results.

    Raises:
        UserError: the file is there and is not ours.
    """
    path, names = folder / TABLE, [f.name for f in fields(Row)]
    rows = {}
    if path.exists():
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            if list(table.fieldnames or ()) != names:
                raise UserError(f"{path}: belongs to something else and would be overwritten. Give another folder.")
            rows = {r["output"]: Row(**{n: r[n] or "" for n in names}) for r in table
                    if r["output"] and (folder / r["output"]).exists()}  # fmt: skip
    for p in pairs:
        figures = {k: f"{v:.5g}" if isinstance(v, float) else str(v or "") for k, v in told.get(p.output, {}).items()}
        at = p.output.relative_to(folder).as_posix()
        rows[at] = Row(str(p.content), str(p.style), at, **figures)
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, n) for n in names] for _, row in sorted(rows.items()))


def _contents(inputs: Sequence[Path], output: Path) -> list[tuple[str, Path]]:
    """(name, path), sorted by name."""
    if not inputs:
        raise UserError("nothing to refine: give files, or a folder such as that of mri-synth sample")
    if len(inputs) == 1 and inputs[0].is_dir():
        if inputs[0].resolve() == output.resolve():
            raise UserError(f"{output}: is the input itself. Give the output another folder.")
        found = [(p.relative_to(inputs[0]).as_posix(), p) for p in _tree(inputs[0], output)]
        inner = inputs[0].resolve()
        amid = [n for n, _ in found if (output / n).resolve().is_relative_to(inner)]
        if amid and not output.resolve().is_relative_to(inner):  # above it, and it has a subfolder of its own name
            raise UserError(f"{output}: {output / amid[0]} would be written among the inputs. Give the output another "
                            "folder.")  # fmt: skip
    else:
        if folders := [p for p in inputs if p.is_dir()]:
            raise UserError(f"{folders[0]}: a folder beside other inputs; give one folder, or files")
        if gone := [p for p in inputs if not p.exists()]:
            raise UserError(f"{examples(map(str, gone))}: no such file")
        base = Path(os.path.commonpath([p.parent.absolute() for p in inputs]))
        found = sorted((p.absolute().relative_to(base).as_posix(), p) for p in inputs)
    kept = _once([p for _, p in found])
    if not (found := [(n, p) for n, p in found if p in kept]):
        raise UserError(f"{inputs[0]}: no picture and no volume in this folder; allowed: {', '.join(SUFFIXES)}")
    return found


def _styles(style: str, output: Path) -> list[Path]:
    path = Path(style)
    if path.is_file():
        return [path]
    if path.is_dir() and path.resolve() == output.resolve():
        raise UserError(f"{output}: is the folder of the styles itself. Give the output another folder.")
    found = _tree(path, output) if path.is_dir() else []
    if not path.exists() and glob.has_magic(style):
        every = sorted(glob.glob(style, recursive=True))  # noqa: PTH207  a Path has no pattern of its own root
        found = [Path(p) for p in every if _usable(Path(p))]
    if not found:
        what = "no picture and no volume in this folder" if path.is_dir() else "no such file or folder"
        raise UserError(f"--style={style}: {what}; give a picture, a NIfTI file, a folder of them, or a pattern in "
                        "quotes, such as 'real/*T2*.nii.gz'")  # fmt: skip
    return _once(found)


def _tree(folder: Path, output: Path) -> list[Path]:
    """Images below a folder, but for what lies in an output folder below it, sheets of samples, and label maps."""
    inside = output.resolve()
    below = inside.is_relative_to(folder.resolve())
    found = [p for p in sorted(folder.rglob("*"))
             if _usable(p) and not (below and p.resolve().is_relative_to(inside))]  # fmt: skip
    masks = [p for p in found if contrast_of_path(path_stem(p.relative_to(folder).as_posix())) == MASK]
    if masks:
        log.warning("%s: %d label maps left out: %s", folder, len(masks), examples(p.name for p in masks))
    return [p for p in found if p not in masks]


def _once(paths: Sequence[Path]) -> list[Path]:
    """Without pictures that are there as volumes too: what `mri-synth sample --format both` writes."""
    volumes = {p.parent / stem_of(p) for p in paths if not _is_picture(p.name)}
    twice = [p for p in paths if _is_picture(p.name) and p.parent / stem_of(p) in volumes]
    if twice:
        log.warning("%d pictures left out, which are there as NIfTI too: %s", len(twice),
                    examples(p.name for p in twice))  # fmt: skip
    return [p for p in paths if p not in twice]


def _usable(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(SUFFIXES) and not name.startswith((".", "sheet_")) and path.is_file()


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES)


def _result(name: str) -> str:
    """The content's name with the ending in which the result is written."""
    path = Path(name)
    ending = ".png" if _is_picture(name) else ".nii" if name.lower().endswith(".nii") else ".nii.gz"
    stem = stem_of(path) if path.name.lower().endswith(FILES) else path.stem
    return (path.parent / f"{stem}{ending}").as_posix()

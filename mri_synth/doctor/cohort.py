"""What files tell only beside each other: sizes, orientations, mistaken contrasts, and the split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.scan import SPLITS, Scan
from mri_synth.data.settings import SplitSettings
from mri_synth.data.split import assign, drop_leaks
from mri_synth.doctor.findings import Finding, Severity
from mri_synth.doctor.fingerprint import Fingerprint, unit
from mri_synth.errors import UserError
from mri_synth.metrics.scores import LEAST_SUBJECTS

FEW = 6
"""Files of a contrast below which none is called unusual among them."""
TURNED = 0.08
"""By how much better a file must correlate with the others upside down; true ones do by 0.11 or more the other way."""
BETTER = 0.3
"""Likewise with another contrast; true ones, of T1 and T2 aligned, by 0.17 or more the other way."""


@dataclass
class Seen:
    """What is kept of a file that was read.

    Attributes:
        scan: as the data set says it.
        study: number of the study that it belongs to.
        shape: of the stored voxels.
        spacing_mm: of them.
        axes: where the stored axes run; "" for pictures.
        picture: 2-D.
        levels: 8-bit or not: the stored type.
        print: to tell it again; None where no slice of it is used.
        hashes: of the prepared slices, by slice number; blank ones are left out.
    """

    scan: Scan
    study: int
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    axes: str
    picture: bool
    levels: str
    print: Fingerprint | None = None
    hashes: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.scan.path)


def size_findings(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Shapes, spacings and orientations that differ from those of the other files of a contrast.

    Args:
        seen: all files.

    Yields:
        A note for each file with the rare value; one in all for pictures of many sizes.
    """
    for contrast, files in by_contrast(seen).items():
        pictures = [f for f in files if f.picture]
        sizes = Counter(f.shape for f in pictures)
        if len(sizes) > 1:
            sides = sorted(sizes, key=np.prod)
            usual = _x(sizes.most_common(1)[0][0])
            yield Finding("note", "size", f"{len(pictures)} pictures of {contrast}", f"{len(sizes)} sizes, from "
                          f"{_x(sides[0])} to {_x(sides[-1])}; most often {usual}", "data.fit=contain scales each into "
                          "the frame: heads then differ in scale; resample them to one spacing first")  # fmt: skip
        eight = [f for f in pictures if f.levels == "uint8"]
        if eight:
            yield Finding("note", "grey levels", f"{len(eight)} pictures of {contrast}", "8 bits: at most 256 grey "
                          "levels, and the scanner's units are lost", "take NIfTI or DICOM where it can be "
                          "had")  # fmt: skip
        volumes = [f for f in files if not f.picture]
        yield from _unusual(volumes, "size", [(f.shape, _x(f.shape)) for f in volumes], "voxels")
        rounded = [tuple(float(f"{s:.2g}") for s in f.spacing_mm) for f in volumes]
        yield from _unusual(volumes, "spacing", [(s, _x(s)) for s in rounded], "mm")
        yield from _unusual(volumes, "orientation", [(f.axes, f.axes) for f in volumes], "")


def _unusual(files: Sequence[Seen], check: str, values: Sequence[tuple[Any, str]], unit_: str) -> Iterator[Finding]:
    counts = Counter(key for key, _ in values)
    if len(files) < FEW or len(counts) < 2:
        return
    usual, most = counts.most_common(1)[0]
    text = dict(values)
    if most < 0.7 * len(files):
        return
    fix = ("read by its affine, so that it lies as the others do: look at one in mri-synth describe"
           if check == "orientation" else "resampled into the frame: see that it is the same kind of scan")  # fmt: skip
    for f, (key, said) in zip(files, values, strict=True):
        if key != usual:
            value = f"{said} {unit_}".strip() + f"; {most} of {len(files)} {f.scan.contrast} files have {text[usual]}"
            yield Finding("note", check, f.name, value, fix)


def look_findings(seen: Sequence[Seen]) -> Iterator[Finding]:
    """Files that look like another contrast, upside down, or like none of the others.

    Args:
        seen: all files.

    Yields:
        A warning where another explanation fits a file better than its own; a note of a file far from all others.
    """
    groups = {c: [f for f in files if f.print] for c, files in by_contrast(seen).items()}
    groups = {c: files for c, files in groups.items() if len(files) >= FEW}
    for contrast, files in groups.items():
        stack = np.stack([_thumb(f) for f in files])
        total, own = stack.sum(0), np.zeros(len(files))
        for k, f in enumerate(files):
            others = (total - stack[k]) / (len(files) - 1)
            own[k] = _correlation(stack[k], others)
            fits = _correlation(stack[k], others, inside=True)
            over = np.flip(stack[k], 1)
            turned = _correlation(over, others, inside=True)
            if not f.picture and turned > fits + TURNED and _correlation(over, others) > own[k]:
                yield Finding("warning", "orientation", f.name, f"looks upside down beside the other {len(files) - 1} "
                              f"{contrast} files: inside the head, correlation with their mean {fits:.2f}, turned "
                              f"{turned:.2f}", "look at it in a viewer; its affine may be wrong")  # fmt: skip
                continue
            for other in groups.keys() - {contrast}:
                strangers = [_thumb(g) for g in groups[other] if g.scan.subject != f.scan.subject]
                better = _correlation(stack[k], np.mean(strangers, 0), inside=True) if strangers else -1.0
                if better > max(fits + BETTER, 0.4):
                    yield Finding("warning", "contrast", f.name, f"is called {contrast}, and looks like {other}: "
                                  f"inside the head, correlation with the mean of the other {contrast} {fits:.2f}, "
                                  f"of {other} {better:.2f}", "look at it, and rename it or say what it is by "
                                  "data.contrast_names= (data=folder)")  # fmt: skip
        yield from _strange(files, own)


def _strange(files: Sequence[Seen], own: NDArray[Any]) -> Iterator[Finding]:
    middle = float(np.median(own))
    spread = 1.4826 * float(np.median(np.abs(own - middle)))
    for f, value in zip(files, own.tolist(), strict=True):
        if not f.picture and middle > 0.95 and middle - value > max(6 * spread, 0.04):
            yield Finding("note", "unlike the others", f.name, f"correlation with the mean of the other "
                          f"{f.scan.contrast} files {value:.2f}, of the others usually {middle:.2f}", "look at it: "
                          "motion, noise, another field of view, or another plane")  # fmt: skip


def _thumb(f: Seen) -> NDArray[Any]:
    """(3, 32, 32): the slices that are kept of a volume, or the one there is, three times."""
    assert f.print is not None
    return np.broadcast_to(f.print.thumb, (3, *f.print.thumb.shape[1:]))


def _correlation(a: NDArray[Any], b: NDArray[Any], *, inside: bool = False) -> float:
    """Of two small pictures; inside: only where both show something, so that the outline does not count."""
    shown = (a > FOREGROUND) & (b > FOREGROUND) if inside else np.ones(a.shape, bool)
    if shown.sum() < 20:
        return 0.0
    return float(np.prod(unit(np.stack([a[shown], b[shown]])), axis=0).sum())


def split_of(studies: Sequence[Scan], settings: SplitSettings) -> tuple[list[str], list[Finding]]:
    """The split that a run would make, and what is wrong with it.

    Args:
        studies: the first scan of each study of which something can be used.
        settings: `data.split`.

    Returns:
        Split of each study ("" for none), and findings: it cannot be made, a subject in two, few subjects.
    """
    fix = "see data.split in mri-synth run --help; more subjects, or other data.split.fractions"
    records = [{"subject": s.subject, "label": s.label, "split": s.split, "path": str(s.path)} for s in studies]
    named = f"data.split.by={settings.by}"
    found = []
    try:
        splits = assign(records, settings, fill=False)
        try:
            assign(records, settings, fill=True)
        except UserError as error:
            found.append(Finding("error", "split", named, str(error), fix))
    except UserError as error:
        return [""] * len(studies), [Finding("error", "split", named, str(error), fix)]
    severity: Severity = "error" if settings.on_leak == "error" else "warning"
    names = [str(s.path) for s in studies]
    for i, reason in drop_leaks([[s.subject] for s in studies], list(splits), names, "subject",
                                replace(settings, on_leak="drop")):  # fmt: skip
        found.append(Finding(severity, "split overlap", names[i], reason, "put all of a subject into one split; or "
                             "data.split.on_leak=drop leaves it out of the earlier one"))  # fmt: skip
    subjects = {split: len({s.subject for s, here in zip(studies, splits, strict=True) if here == split})
                for split in SPLITS}  # fmt: skip
    for split in ("train", "val"):
        if not subjects[split] and not found:
            found.append(Finding("error", "split", named, f"nobody is in {split} ({_counts(subjects)})", fix))
    if not found and subjects["test"] < LEAST_SUBJECTS:
        found.append(Finding("note", "split", named, f"{_counts(subjects)}: a test on fewer than {LEAST_SUBJECTS} "
                             "subjects has no interval", fix))  # fmt: skip
    return splits, found


def _counts(subjects: dict[str, int]) -> str:
    return ", ".join(f"{split} {n}" for split, n in subjects.items())


def by_contrast(seen: Sequence[Seen]) -> dict[str, list[Seen]]:
    """Files under their contrast, in order."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for f in seen:
        groups[f.scan.contrast].append(f)
    return groups


def _x(numbers: Sequence[float]) -> str:
    return "x".join(f"{n:g}" for n in numbers)

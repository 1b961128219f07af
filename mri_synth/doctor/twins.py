"""One image in two files, one head under two names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from mri_synth.data.scan import SPLITS
from mri_synth.data.settings import SplitSettings
from mri_synth.data.split import DROPPED
from mri_synth.doctor.cohort import Seen, by_contrast
from mri_synth.doctor.findings import Finding, Severity
from mri_synth.doctor.fingerprint import alike


def twin_findings(seen: Sequence[Seen], splits: Sequence[str], settings: SplitSettings) -> Iterator[Finding]:
    """One image in two files, one head under two names.

    Args:
        seen: all files.
        splits: of each study.
        settings: `data.split`.

    Yields:
        Exact copies of slices; then images that differ by no more than a re-encoding; then files that look like scans
        of one person who goes by several names.
    """
    heads: list[tuple[Seen, Seen, float]] = []
    for files in by_contrast(seen).values():
        told = set()
        for a, b, slices in _copies(files):
            told.add((id(a), id(b)))
            what = "identical pictures" if a.picture else f"{len(slices)} identical slices, such as {slices[0]} of both"
            yield _twins([a, b], splits, what, "duplicate", settings.on_leak == "error", "delete one of the two; or "
                         "data.split.on_leak=drop leaves it out of the earlier split")  # fmt: skip
        for a, b, kind, value in _likenesses(files):
            if (id(a), id(b)) in told:
                continue
            if kind == "image" and (a.scan.subject, a.scan.session) != (b.scan.subject, b.scan.session):
                yield _twins([a, b], splits, f"the same image, encoded or scaled anew (correlation {value:.5f})",
                             "near-duplicate", True, "keep one of the two")  # fmt: skip
            elif kind == "head" and a.scan.subject != b.scan.subject:
                heads.append((a, b, value))
    for group, low, high in _joined(heads):
        likeness = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
        names = len({f.scan.subject for f in group})
        what = f"one head under {names} names by its fine detail (correlation {likeness}; strangers: up to 0.2)"
        yield _twins(group, splits, what, "same person", False, "where it is one person, give the files one "
                     "subject, by data.subjects= or data.pattern= (data=folder); pictures in the order of their "
                     "volumes: data.split.by=block")  # fmt: skip


def _copies(files: Sequence[Seen]) -> Iterator[tuple[Seen, Seen, list[int]]]:
    """Files that share slices, and the numbers of those in the second."""
    owner: dict[int, int] = {}
    same: dict[tuple[int, int], list[int]] = defaultdict(list)
    for k, f in enumerate(files):
        for number, key in f.hashes.items():
            if (first := owner.setdefault(key, k)) != k:
                same[first, k].append(number)
    for (i, j), slices in same.items():
        yield files[i], files[j], slices


def _likenesses(files: Sequence[Seen]) -> Iterator[tuple[Seen, Seen, str, float]]:
    """What `alike` says of files with as many slices."""
    shapes: dict[int, list[Seen]] = defaultdict(list)
    for f in files:
        if f.print is not None:
            shapes[len(f.print.thumb)].append(f)
    for group in shapes.values():
        for i, j, kind, value in alike([f.print for f in group if f.print]):
            yield group[i], group[j], kind, value


def _joined(pairs: Sequence[tuple[Seen, Seen, float]]) -> Iterator[tuple[list[Seen], float, float]]:
    """Files that hang together by pairs, with the least and largest value among them."""
    group_of: dict[int, list[Seen]] = {}
    for a, b, _ in pairs:
        one, two = group_of.setdefault(id(a), [a]), group_of.setdefault(id(b), [b])
        if one is not two:
            one += two
            group_of |= {id(f): one for f in two}
    for group in {id(g): g for g in group_of.values()}.values():
        values = [v for a, _, v in pairs if group_of[id(a)] is group]
        yield group, min(values), max(values)


def _twins(files: Sequence[Seen], splits: Sequence[str], what: str, check: str, grave: bool, fix: str) -> Finding:
    here = sorted({splits[f.study] for f in files} - {DROPPED}, key=[*SPLITS].index)
    severity: Severity = ("error" if grave else "warning") if len(here) > 1 else ("warning" if grave else "note")
    where = f"in {' and '.join(here)}" if len(here) > 1 else f"all in {here[0]}" if here else "in no split"
    return Finding(severity, check, files[0].name, f"{what}, {where}", fix, tuple(f.name for f in files[1:]))

"""Who is in train, val and test: by subject, by block, or as given; and the check that nobody is in two."""

from __future__ import annotations

import csv
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_synth.data.scan import SPLITS
from mri_synth.data.settings import SplitSettings
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

DROPPED = ""
ALONE = (
    " for two of them: one subject ({}) cannot be in both. Several visits of one person can be told apart as subjects, "
    "such as data=folder 'data.pattern=\"(?P<subject>visit\\d)\"'; scores then say nothing of other people"
)


def natural(text: str) -> list[int | str]:
    """Sort key that counts: img2 before img10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def counts_of(n: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers summing to n in the given shares (largest remainder), none empty that has a share, if n allows.

    Args:
        n: how many subjects.
        fractions: shares summing to 1.

    Returns:
        One count per share.
    """
    exact = np.asarray(fractions) * n
    counts = np.floor(exact).astype(int)
    for k in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[k] += 1
    for k in np.flatnonzero((counts == 0) & (np.asarray(fractions) > 0)):
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
            counts[k] = 1
    return [int(c) for c in counts]


def assign(studies: Sequence[Mapping[str, Any]], settings: SplitSettings, *, fill: bool = True) -> list[str]:
    """The split of every study.

    Args:
        studies: records with subject, label, split and path.
        settings: `data.split`.
        fill: refuse a split that leaves train or val empty; who only looks at the data needs neither.

    Returns:
        "train", "val" or "test" per study; "" when a given split does not name it.

    Raises:
        UserError: fractions that are not shares, a manifest that cannot be used or is not asked, or too few subjects.
    """
    shares = settings.fractions
    if wrong := settings.problems(vars(settings)):
        raise UserError("\n".join(wrong))
    if settings.by == "given":
        return _given(studies, settings)
    groups = _groups(studies, settings)
    names = sorted(set(groups), key=natural)
    np.random.default_rng([settings.seed, 1]).shuffle(names)
    counts = counts_of(len(names), shares)
    if fill and (counts[0] == 0 or counts[1] == 0):
        alone = len(names) == 1 and settings.by == "subject"
        raise UserError(
            f"{len(names)} {'blocks' if settings.by == 'block' else 'subjects'} cannot fill train and val with "
            f"data.split.fractions={shares}; add data, or say e.g. data.split.fractions=[0.5,0.5,0]"
            + (" or a smaller data.split.block_size" if settings.by == "block" else "")
            + (ALONE.format(names[0]) if alone else "")
        )
    where = dict(zip(names, np.repeat(SPLITS, counts).tolist(), strict=True))
    return [where[g] for g in groups]


def _groups(studies: Sequence[Mapping[str, Any]], settings: SplitSettings) -> list[str]:
    if settings.by == "subject":
        return [s["subject"] for s in studies]
    order = sorted(range(len(studies)), key=lambda i: (studies[i]["label"] or "", natural(studies[i]["path"])))
    seen: dict[str, int] = defaultdict(int)
    groups = [""] * len(studies)
    for i in order:  # neighbours in natural order within a class stay together
        label = studies[i]["label"] or ""
        groups[i] = f"{label}/block-{seen[label] // settings.block_size:05d}"
        seen[label] += 1
    return groups


def _given(studies: Sequence[Mapping[str, Any]], settings: SplitSettings) -> list[str]:
    if settings.file:
        table = read_manifest(Path(settings.file))
        splits = [table.get(s["subject"], DROPPED) for s in studies]
    else:
        splits = [s["split"] or DROPPED for s in studies]
    if not any(splits):
        what = f"the manifest {settings.file} names none of the subjects" if settings.file else "this data has no split"
        example = studies[0]["subject"] if studies else "none"
        raise UserError(f"data.split.by=given, but {what} (a subject here: {example}); use data.split.by=subject")
    left = list(dict.fromkeys(s["subject"] for s, split in zip(studies, splits, strict=True) if not split))
    if left:
        log.warning("%d of %d subjects are in no split of %s: %s%s", len(left), len({s["subject"] for s in studies}),
                    settings.file or "the data set", ", ".join(left[:5]), ", ..." if len(left) > 5 else "")  # fmt: skip
    return splits


def read_manifest(path: Path) -> dict[str, str]:
    """Subject to split from a CSV with the columns subject and split.

    Args:
        path: such as split.csv of an earlier run.

    Returns:
        The table; rows without a split are left out.

    Raises:
        UserError: no such file, missing columns, an unknown split, or a subject in two splits.
    """
    if not path.is_file():
        raise UserError(f"data.split.file={path}: no such file; give the split.csv of an earlier run")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"subject", "split"} <= rows[0].keys():
        raise UserError(f"data.split.file={path}: needs rows and the columns subject and split")
    table: dict[str, str] = {}
    for row in rows:
        subject, split = row["subject"], row["split"]
        if split == DROPPED:
            continue
        if split not in SPLITS:
            raise UserError(f"data.split.file={path}: split {split!r} of {subject}; allowed: {', '.join(SPLITS)}")
        if table.setdefault(subject, split) != split:
            raise UserError(f"data.split.file={path}: subject {subject} is in {table[subject]} and in {split}")
    return table


def drop_leaks(keys: Sequence[Iterable[Any]], splits: list[str], names: Sequence[str], what: str,
               settings: SplitSettings) -> list[tuple[int, str]]:  # fmt: skip
    """Find items of different splits that share a key (a subject, an image hash).

    Args:
        keys: per item, what must not be in two splits.
        splits: per item; changed in place: "" for the dropped ones.
        names: per item, how to name it in a message.
        what: "subject" or "identical image".
        settings: `on_leak` decides.

    Returns:
        (item, reason) of the dropped ones: the earlier of train, val, test gives way.

    Raises:
        UserError: a leak with `on_leak=error`, listing the first ten.
    """
    last: dict[Any, tuple[int, int]] = {}
    for i, split in enumerate(splits):
        for key in keys[i] if split else ():
            last[key] = max(last.get(key, (-1, -1)), (SPLITS.index(split), -i))
    leaks = []
    for i, split in enumerate(splits):
        if not split:
            continue
        for key in keys[i]:
            rank, other = last[key]
            if rank > SPLITS.index(split):
                leaks.append((i, f"{what} in {split} and {SPLITS[rank]}: {names[i]} and {names[-other]}"))
                break
    if leaks and settings.on_leak == "error":
        shown = "\n".join(f"  {reason}" for _, reason in leaks[:10])
        more = f"\n  and {len(leaks) - 10} more" if len(leaks) > 10 else ""
        raise UserError(
            f"the split leaks: {len(leaks)} item(s) of one split are in another too:\n{shown}{more}\n"
            "Mend the split, or say data.split.on_leak=drop: they are then dropped from the earlier split and listed."
        )
    for i, _ in leaks:
        splits[i] = DROPPED
    return leaks


def write_manifest(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The split as a CSV, one row per file.

    Args:
        path: where to.
        rows: records with the same keys.
    """
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

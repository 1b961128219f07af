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

from mri_synth.data import split_presets
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


def assign(studies: Sequence[Mapping[str, Any]], settings: SplitSettings, *, fill: bool = True,
           domains: Sequence[str] = ()) -> list[str]:  # fmt: skip
    """The split of every study.

    Args:
        studies: records with subject, label, split and path.
        settings: `data.split`.
        fill: refuse a split that leaves train or val empty; who only looks at the data needs neither.
        domains: the one contrast of each study, where none has two (unpaired sets): every split then has its share of
            each. Empty elsewhere.

    Returns:
        "train", "val" or "test" per study; "" when a given split does not name it.

    Raises:
        UserError: fractions that are not shares, a manifest that cannot be used or is not asked, or too few subjects.
    """
    shares = settings.fractions
    if wrong := settings.problems(vars(settings)):
        raise UserError("\n".join(wrong))
    domains = domains or [""] * len(studies)
    if settings.by == "given":
        return _given(studies, settings, domains)
    groups = _groups(studies, settings, domains)
    names = sorted(set(groups), key=natural)
    where = _shared_out(groups, domains, shares, settings.seed)
    counts = [list(where.values()).count(split) for split in SPLITS]
    if fill and (counts[0] == 0 or counts[1] == 0):
        alone = len(names) == 1 and settings.by == "subject"
        raise UserError(
            f"{len(names)} {'blocks' if settings.by == 'block' else 'subjects'} cannot fill train and val with "
            f"data.split.fractions={shares}; add data, or say e.g. data.split.fractions=[0.5,0.5,0]"
            + (" or a smaller data.split.block_size" if settings.by == "block" else "")
            + (ALONE.format(names[0]) if alone else "")
        )
    return [where[g] for g in groups]


def _shared_out(groups: Sequence[str], domains: Sequence[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Group to split: a shuffle of the groups of each domain, cut by the shares.

    Every domain is shuffled alike, so that where two have as many blocks each, the same ones go together.
    """
    has: dict[str, set[str]] = defaultdict(set)
    for group, domain in zip(groups, domains, strict=True):
        has[group].add(domain)
    strata: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for group in sorted(has, key=natural):
        strata[tuple(sorted(has[group]))].append(group)
    where: dict[str, str] = {}
    for names in strata.values():
        np.random.default_rng([seed, 1]).shuffle(names)
        where |= dict(zip(names, np.repeat(SPLITS, counts_of(len(names), shares)).tolist(), strict=True))
    return where


def _groups(studies: Sequence[Mapping[str, Any]], settings: SplitSettings, domains: Sequence[str]) -> list[str]:
    if settings.by == "subject":
        return [s["subject"] for s in studies]
    return _blocks(studies, settings.block_size, domains)


def _blocks(studies: Sequence[Mapping[str, Any]], size: int, domains: Sequence[str]) -> list[str]:
    """Neighbours in natural order within a class stay together, those of each domain by themselves.

    Where subjects are in two domains (as the partners of `data.pairs`), the second follows the first, and what has no
    partner its neighbours.
    """
    order = sorted(range(len(studies)), key=lambda i: (studies[i]["label"] or "", natural(studies[i]["path"])))
    seen: dict[str, int] = defaultdict(int)
    groups = [""] * len(studies)
    of_subject: dict[str, str] = {}
    for domain in dict.fromkeys(domains[i] for i in order):
        own = [i for i in order if domains[i] == domain]
        followers = {i: of_subject[s] for i in own if (s := studies[i]["subject"]) in of_subject} if domain else {}
        last = next(iter(followers.values()), "")
        for i in own:
            label = "/".join(filter(None, (domain, studies[i]["label"])))
            groups[i] = last = followers.get(i, last) if followers else f"{label}/block-{seen[label] // size:05d}"
            seen[label] += 1
        if domain:
            of_subject |= {studies[i]["subject"]: groups[i] for i in own}
    return groups


def _given(studies: Sequence[Mapping[str, Any]], settings: SplitSettings, domains: Sequence[str]) -> list[str]:
    if settings.file:
        table = _table(settings.file, studies)
        splits = [table.get(s["subject"], DROPPED) for s in studies]
    else:
        splits = [s["split"] or DROPPED for s in studies]
        if "train" in splits and "val" not in splits:
            splits = _with_val(studies, splits, settings, domains)
    if not any(splits):
        what = f"the manifest {settings.file} names none of the subjects" if settings.file else "this data has no split"
        example = studies[0]["subject"] if studies else "none"
        raise UserError(f"data.split.by=given, but {what} (a subject here: {example}); use data.split.by=subject")
    left = list(dict.fromkeys(s["subject"] for s, split in zip(studies, splits, strict=True) if not split))
    if left:
        log.warning("%d of %d subjects are in no split of %s: %s%s", len(left), len({s["subject"] for s in studies}),
                    settings.file or "the data set", ", ".join(left[:5]), ", ..." if len(left) > 5 else "")  # fmt: skip
    return splits


def _table(file: str, studies: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Subject to split, by a preset or a manifest."""
    if not file.startswith(split_presets.PREFIX):
        return read_manifest(Path(file))
    if not split_presets.known(file):
        raise UserError(split_presets.unknown(file))
    name = file.removeprefix(split_presets.PREFIX)
    listed = split_presets.manifest(file)
    return read_manifest(listed) if listed else split_presets.RULES[name].apply(name, studies)


def _with_val(studies: Sequence[Mapping[str, Any]], splits: list[str], settings: SplitSettings,
              domains: Sequence[str]) -> list[str]:  # fmt: skip
    """Val out of train where a data set has no val of its own: by subject, or by blocks where each file is its own."""
    train = [i for i, split in enumerate(splits) if split == "train"]
    some, of_some = [studies[i] for i in train], [domains[i] for i in train]
    alone = len({s["subject"] for s in some}) == len(some)
    groups = _blocks(some, settings.block_size, of_some) if alone else [s["subject"] for s in some]
    ours, theirs = settings.fractions[:2]
    if not theirs:
        return splits
    where = _shared_out(groups, of_some, [ours / (ours + theirs), theirs / (ours + theirs), 0], settings.seed)
    for i, group in zip(train, groups, strict=True):
        splits[i] = where[group]
    log.warning("data.split.by=given: the data set has no val, so %d of its %d train files become val, %s in the "
                "shares of data.split.fractions", splits.count("val"), len(train),
                f"{settings.block_size} neighbours at a time" if alone else "by subject")  # fmt: skip
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

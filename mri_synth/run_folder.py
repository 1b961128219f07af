"""A run folder as read: results, curves, split, pictures; what is missing or spoilt is named, never fatal."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

FIRST, LAST = ("ssim", "ssim_foreground", "ssim_10", "loss"), ("lr", "epoch", "images_per_second")
FEW_EPOCHS = 3
MANY_POINTS = 400

Point: TypeAlias = tuple[float, float, float]  # step, epoch (not-a-number where none was written), value
Series: TypeAlias = dict[str, tuple[list[float], list[float]]]


@dataclass
class Run:
    """A run folder as read.

    Attributes:
        folder: where it lies.
        results: `results.json`; empty when it is missing.
        curves: metric name -> (step, epoch, value) rows of `metrics.csv`; epoch is not-a-number where none was written.
        split: rows of `split.csv`.
        config: text of `config.yaml`.
        codebook: (K,) uses of each code, or None.
        warnings: what the run's watches said.
        missing: one sentence for each thing that is not there or cannot be read.
    """

    folder: Path
    results: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    split: list[dict[str, str]] = field(default_factory=list)
    config: str = ""
    codebook: list[float] | None = None
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Reads what there is in a run folder; what is not there or is spoilt goes to `missing`."""
    run = Run(folder)
    run.results = _read(run, "results.json", _json_object) or {}
    run.curves = _read(run, "metrics.csv", lambda p: _curves(p, run.missing)) or {}
    run.split = _read(run, "split.csv", _rows) or []
    run.config = _read(run, "config.yaml", lambda p: p.read_text(encoding="utf-8")) or ""
    if (folder / "codebook.npy").exists():
        run.codebook = _read(run, "codebook.npy", lambda p: [float(v) for v in np.load(p, allow_pickle=False).ravel()])
    run.warnings = [str(w) for w in run.results.get("warnings") or []]
    return run


def _read(run: Run, name: str, reader: Callable[[Path], Any]) -> Any:
    path = run.folder / name
    if not path.exists():
        run.missing.append(f"{name} is missing from the run folder.")
        return None
    try:
        return reader(path)
    except (OSError, EOFError, ValueError, KeyError, csv.Error) as error:
        run.missing.append(f"{name} cannot be read: {type(error).__name__}: {error}")
        return None


def _json_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _curves(path: Path, missing: list[str]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = defaultdict(list)
    rows = _rows(path)
    if rows and not path.read_bytes().endswith(b"\n"):
        rows = rows[:-1]  # a run that was killed left half a line, perhaps half a number
    spoilt = 0
    for row in rows:
        try:
            epoch = float(row["epoch"]) if row.get("epoch") else math.nan
            found[row["name"]].append((float(row["step"] or "nan"), epoch, float(row["value"])))
        except (ValueError, TypeError):
            spoilt += 1
    if spoilt:
        missing.append(f"{spoilt} of {len(rows)} rows of metrics.csv cannot be read.")
    return dict(found)


def curve_groups(curves: Mapping[str, Sequence[Point]]) -> dict[str, tuple[str, Series]]:
    """Curves that belong in one plot: train and val of one quantity.

    Args:
        curves: metric name -> (step, epoch, value) rows.

    Returns:
        Quantity -> (name of the horizontal axis, series name -> (x, y)). x is the epoch, counted from 1 as in the
        pictures (0 is before training), and y the mean over it; with fewer than three epochs x is the step and y the
        mean over neighbouring steps. Test values are left out.
    """
    epochs = {epoch for rows in curves.values() for _, epoch, _ in rows if math.isfinite(epoch)}
    by_epoch = len(epochs) >= FEW_EPOCHS
    groups: dict[str, Series] = defaultdict(dict)
    for name, rows in curves.items():
        prefix, _, rest = name.rpartition("/") if name.count("/") <= 1 else name.partition("/")
        if prefix != "test":
            groups[rest][prefix or "value"] = epoch_means(rows) if by_epoch else step_means(rows)
    rank = {**{n: i - len(FIRST) for i, n in enumerate(FIRST)}, **{n: i + 1 for i, n in enumerate(LAST)}}
    return {n: ("epoch" if by_epoch else "step", groups[n]) for n in sorted(groups, key=lambda n: rank.get(n, 0))}


def epoch_means(rows: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Epochs, counted from 1, and the mean value in each; rows without an epoch are left out."""
    values: dict[float, list[float]] = defaultdict(list)
    for _, epoch, value in rows:
        if math.isfinite(epoch):
            values[epoch].append(value)
    return [e + 1 for e in sorted(values)], [sum(values[e]) / len(values[e]) for e in sorted(values)]


def step_means(rows: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Steps and values, neighbours averaged so that at most `MANY_POINTS` remain."""
    ordered = sorted((step, value) for step, _, value in rows if math.isfinite(step))
    width = max(1, math.ceil(len(ordered) / MANY_POINTS))
    chunks = [ordered[i : i + width] for i in range(0, len(ordered), width)]
    return [c[-1][0] for c in chunks], [sum(v for _, v in c) / len(c) for c in chunks]


def chosen_pictures(folder: Path) -> list[Path]:
    """Of pictures named epoch_NNN_kind.png the first and the last of each kind; every other picture."""
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    for path in sorted(folder.glob("*.png")):
        match = re.fullmatch(r"epoch_(\d+)_?(.*)", path.stem)
        found[match[2] if match else path.stem].append((int(match[1]) if match else 0, path))
    chosen = []
    for pictures in found.values():
        ordered = [path for _, path in sorted(pictures)]
        chosen += ordered[:1] if len(ordered) == 1 else [ordered[0], ordered[-1]]
    return chosen


def split_table(rows: Sequence[Mapping[str, Any]]) -> list[list[object]]:
    """Split, subjects, files and slices, from the rows of a manifest (one per scan); what was dropped comes last."""
    splits = list(dict.fromkeys(["train", "val", "test", *(row.get("split") or "" for row in rows)]))
    table: list[list[object]] = []
    for split in sorted(splits, key=lambda s: s == ""):
        mine = [row for row in rows if (row.get("split") or "") == split]
        if mine:
            slices = sum(slice_count(row.get("slices")) for row in mine if row.get("contrast") != "mask")
            table.append([split or "not used", len({row.get("subject") for row in mine}), len(mine), slices])
    return table


def shared_subjects(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Subjects that a manifest puts into more than one split; there should be none."""
    where: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.get("split"):
            where[str(row.get("subject"))].add(str(row["split"]))
    return sorted(subject for subject, splits in where.items() if len(splits) > 1)


def slice_count(value: object) -> int:
    """Slices of a manifest row: a count, or a list of slice numbers."""
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, list | tuple):
        return len(value)
    numbers = re.findall(r"\d+", str(value or ""))
    return int(numbers[0]) if len(numbers) == 1 and str(value).strip().isdigit() else len(numbers)

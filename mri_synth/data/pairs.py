"""What belongs together: scans without a partner, and `data.pairs`, by which unpaired training is scored."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mri_synth.data.contrasts import MASK
from mri_synth.data.demographics import read_table
from mri_synth.data.names import examples
from mri_synth.data.scan import Scan
from mri_synth.data.store import Store
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

NONE = "none"
PRESET = "preset:"
PRESETS = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Pair:
    """Two files that show the same; as the table writes them, names or paths relative to the root."""

    a: str
    b: str


def report(name: str, scans: Sequence[Scan], wanted: Sequence[str], *, needed: bool, hint: str = "") -> None:
    """Say which scans have no partner: visits (or slices) that lack one of the wanted contrasts, counted and listed.

    Args:
        name: of the data set.
        scans: those of the wanted contrasts, and label maps.
        wanted: contrasts that a pair must have ("mask" for a label map); with fewer than two there is nothing to say.
        needed: whether it is pairs that are asked for, so that none at all is an error.
        hint: further advice for the message.

    Raises:
        UserError: pairs are needed, and no visit has all the contrasts.
    """
    if len(wanted) < 2:
        return
    visits: dict[tuple[str, str, int | None], dict[str, Scan]] = defaultdict(dict)
    for scan in scans:
        if scan.contrast in wanted:
            visits[scan.subject, scan.session, scan.slice].setdefault(scan.contrast, scan)
    alone = [found for found in visits.values() if len(found) < len(wanted)]
    lines = [f"{next(iter(found.values())).path} ({_visit(next(iter(found.values())))}has no "
             f"{' and no '.join(c for c in wanted if c not in found)})" for found in alone]  # fmt: skip
    if visits and len(alone) == len(visits) and needed:
        there = ", ".join(f"{c} {n}" for c, n in Counter(c for found in alone for c in found).items())
        shown = "".join(f"\n    {line}" for line in [*lines[:3], *lines[3:][-2:]])
        raise UserError(
            f"data={name}: pairs of {', '.join(wanted)} are wanted, and not one of {len(alone)} files or visits has "
            f"them all ({there}); such as:{shown}\n  Names of a pair differ in nothing but the contrast{hint}. "
            "Methods that need no pairs: mri-synth list."
        )
    if 0 < len(alone) < len(visits):
        log.log(logging.WARNING if needed else logging.INFO, "data=%s: %d of %d visits or slices have no partner and "
                "are in no pair: %s", name, len(alone), len(visits), examples(lines, 20))  # fmt: skip


def _visit(scan: Scan) -> str:
    number = "" if scan.slice is None else f" slice {scan.slice}"
    return f"{scan.subject}{f' session {scan.session}' if scan.session else ''}{number} "


def find_pairs(said: str, root: Path) -> Path:
    """The table's path: as it stands, relative to the root, or one that is shipped.

    Args:
        said: the key `data.pairs`.
        root: of the data.

    Returns:
        The path.

    Raises:
        UserError: there is no such file; lists those that are shipped.
    """
    if said.startswith(PRESET):
        path = PRESETS / f"{said.removeprefix(PRESET)}.csv"
        if path.is_file():
            return path
        there = ", ".join(PRESET + p.stem for p in sorted(PRESETS.glob("pairs_*.csv")))
        raise UserError(f"data.pairs={said}: there is no such preset; there is {there}")
    for path in (Path(said).expanduser(), root / said):
        if path.is_file():
            return path
    raise UserError(f"data.pairs={said}: no such file, neither here nor in {root}; it is a table with the columns a "
                    f"and b, {PRESET}NAME, or {NONE}")  # fmt: skip


def read_pairs(path: Path) -> list[Pair]:
    """Read the table.

    Args:
        path: .csv, .tsv, .xlsx or .xls with the columns a and b: file names, or paths relative to the root.

    Returns:
        One entry per row.

    Raises:
        UserError: a table that cannot be read, without these columns, with an empty cell, or with a file twice.
    """
    rows = read_table(path)
    column = {name.strip().lower(): name for name in rows[0]}
    if not {"a", "b"} <= column.keys():
        raise UserError(f"data.pairs={path}: needs the columns a and b; its columns: {', '.join(rows[0])}")
    found = [Pair(row.get(column["a"], ""), row.get(column["b"], "")) for row in rows]
    for line, pair in enumerate(found, 2):
        if not (pair.a and pair.b):
            raise UserError(f"data.pairs={path} line {line}: a file is missing; both columns are needed")
    for side in ([p.a for p in found], [p.b for p in found]):
        if twice := sorted({name for name in side if side.count(name) > 1}):
            raise UserError(f"data.pairs={path}: {examples(twice)} more than once in one column; one partner each")
    return found


def apart(scans: Sequence[Scan], contrasts: Sequence[str]) -> list[Scan]:
    """Scans of which names say nothing of pairs: what would be one study becomes one of each contrast.

    Args:
        scans: all of them.
        contrasts: wanted, in order; a label map stays with the first that is there.

    Returns:
        The same scans; those of a further contrast of one subject, session and slice have a session of their own.
    """
    there: dict[tuple[str, str, int | None], set[str]] = defaultdict(set)
    for scan in scans:
        there[scan.subject, scan.session, scan.slice].add(scan.contrast)
    parted = []
    for scan in scans:
        found = there[scan.subject, scan.session, scan.slice]
        first = next((c for c in contrasts if c in found), scan.contrast)
        own = "" if scan.contrast in (first, MASK) else scan.contrast
        parted.append(replace(scan, session="_".join(filter(None, (scan.session, own)))))
    return parted


def joined(scans: Sequence[Scan], table: Sequence[Pair], root: Path, name: str) -> tuple[list[Scan], list[list[Path]]]:
    """Give files that show the same one subject, so that no split parts them; they stay studies of their own.

    Args:
        scans: after `apart`.
        table: of pairs.
        root: of the data.
        name: of the table, for messages.

    Returns:
        The scans, and the two paths of each pair that is there.

    Raises:
        UserError: a file that no scan or several are called, or a pair of one contrast.
    """
    called: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.contrast != MASK:
            for key in {scan.path.name, scan.path.relative_to(root).as_posix()}:
                called[key].append(scan)
    pairs = [(_only(called, p.a, name), _only(called, p.b, name)) for p in table]
    if absent := [f for p, both in zip(table, pairs, strict=True) for f, s in zip((p.a, p.b), both, strict=True)
                  if s is None]:  # fmt: skip
        log.warning("data.pairs=%s: %d file(s) are not among those that are used: %s", name, len(absent),
                    examples(absent))  # fmt: skip
    there = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not there:
        raise UserError(f"data.pairs={name}: not one of its {len(table)} pairs is under {root}; files there: "
                        f"{examples(s.path.relative_to(root).as_posix() for s in scans)}")  # fmt: skip
    if same := [(a, b) for a, b in there if a.contrast == b.contrast]:
        a, b = same[0]
        raise UserError(f"data.pairs={name}: {a.path.name} and {b.path.name} are both {a.contrast}; a pair has two "
                        "contrasts (data.contrast_names= says which file is which)")  # fmt: skip
    subject = {scan.subject: scan.subject for scan in scans}
    for a, b in there:
        old, new = subject[b.subject], subject[a.subject]
        for key in [k for k, v in subject.items() if v == old] if old != new else []:
            subject[key] = new
    renamed = [
        scan if subject[scan.subject] == scan.subject else
        replace(scan, subject=subject[scan.subject], session="_".join(filter(None, (scan.subject, scan.session))))
        for scan in scans
    ]  # fmt: skip
    log.info("data.pairs=%s: %d pairs, which are kept in one split and score validation and test", name, len(there))
    return renamed, [[a.path, b.path] for a, b in there]


def _only(called: dict[str, list[Scan]], file: str, table: str) -> Scan | None:
    hits = called.get(file.removeprefix("./"), [])
    if len(hits) > 1:
        raise UserError(f"data.pairs={table}: {len(hits)} files are called {file} ({hits[0].path}, {hits[1].path}); "
                        "write the path relative to the root")  # fmt: skip
    return hits[0] if hits else None


def rows_of(store: Store, pairs: Sequence[Sequence[Path]], first: str, second: str) -> dict[int, int]:
    """Rows of slices that show the same, by their files.

    Args:
        store: of the data.
        pairs: two paths each, in any order.
        first: contrast of the keys.
        second: contrast of the values.

    Returns:
        Row of a slice of `first` to the row of its partner. Slices of volumes are told by number.

    Raises:
        UserError: two volumes of different shape, whose slices cannot be told by number.
    """
    table = store.table
    study = {s["path"]: i for i, s in enumerate(store.studies)}
    shape = {f["path"]: tuple(f.get("shape", ())) for f in store.files}
    found: dict[int, int] = {}
    for a, b in ([str(p) for p in pair] for pair in pairs):
        if a not in study or b not in study:  # one of them could not be used, which is listed elsewhere
            continue
        for one, other in ((a, b), (b, a)):
            ours, theirs = _rows(store, study[one], first), _rows(store, study[other], second)
            if len(ours) == len(theirs) == 1:
                found[ours[0]] = theirs[0]
            elif ours and theirs and shape[a] != shape[b]:
                raise UserError(f"data.pairs: {a} has {shape[a]} voxels, {b} {shape[b]}: slices of a pair are told by "
                                "number, so both must lie on one grid")  # fmt: skip
            elif ours and theirs:
                number = {int(table["slice"][row]): row for row in theirs}
                found |= {row: number[n] for row in ours if (n := int(table["slice"][row])) in number}
    return found


def _rows(store: Store, study: int, contrast: str) -> list[int]:
    column = store.table.get(f"row_{contrast}")
    if column is None:
        return []
    return [int(row) for row in np.flatnonzero((store.table["study"] == study) & (column >= 0))]

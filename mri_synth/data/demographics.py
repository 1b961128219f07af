"""Tables of people: read from csv, tsv, xlsx or xls, duplicates merged, joined to scans, and reported."""

from __future__ import annotations

import csv
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mri_synth.data.names import examples
from mri_synth.data.scan import Scan, Split
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

Row = Mapping[str, str]
TABLES = (".csv", ".tsv", ".xlsx", ".xls")
_UNKNOWN = ("", "n/a", "na", "nan", "none", "null", ".", "?", "-")
_SEX = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F", "w": "F"}
_SPLIT: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Person:
    """What a table says of one subject (or of one visit); None is "not said".

    Attributes:
        age: years.
        sex: "F" or "M".
        site: hospital or scanner.
        label: diagnosis or class.
        split: the table's own split.
    """

    age: float | None = None
    sex: str | None = None
    site: str | None = None
    label: str | None = None
    split: Split | None = None


def known(text: str | None) -> str | None:
    """The text without blanks, None for an empty cell, "n/a" and the like."""
    text = (text or "").strip()
    return None if text.lower() in _UNKNOWN else text


def age_of(text: str | None) -> float | None:
    """Years from a cell: "34.5", "89+" (89), "045Y" (45); None where empty, zero, negative or not a number."""
    value = known(text)
    try:
        age = float(value.rstrip("+Yy ").replace(",", ".")) if value else 0.0
    except ValueError:
        return None
    return age if 0 < age < 150 else None


def sex_of(text: str | None) -> str | None:
    """F or M from "f", "Female", "M", ...; None where unknown."""
    return _SEX.get((known(text) or "").lower())


def split_of(text: str | None) -> Split | None:
    """One of train, val and test from a word such as "Training" or "validate"; None for any other."""
    return _SPLIT.get((text or "").strip().lower())


def read_table(path: Path) -> list[dict[str, str]]:
    """All rows of a table; the first row names the columns.

    Args:
        path: .csv (comma, semicolon or tab), .tsv, .xlsx (needs openpyxl) or .xls (needs xlrd); of a workbook the
            first sheet.

    Returns:
        One dict per row that is not blank; cells as text without blanks around, whole numbers without ".0".

    Raises:
        UserError: no such file, a kind that cannot be read here, or a file that is not such a table.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such table")
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise UserError(f"{path}: a table must be one of {', '.join(TABLES)}")
    try:
        cells = {".xlsx": _xlsx, ".xls": _xls}.get(kind, _text)(path)
    except ImportError as error:
        raise UserError(
            f"{path}: reading {kind} needs the package {error.name}. "
            f"Say: pip install 'mri-synth[tables]', or save the table as {path.with_suffix('.csv').name} beside it"
        ) from error
    except Exception as error:  # the readers raise whatever their parsers raise
        raise UserError(f"{path}: not a readable {kind} table ({error}); export it again, best as csv") from error
    rows = [[_cell(c) for c in row] for row in cells]
    rows = [row for row in rows if any(row)]
    if len(rows) < 2:
        raise UserError(f"{path}: needs a line of column names and at least one row")
    return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]


def _text(path: Path) -> list[list[str]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    head = text.split("\n", 1)[0]
    return list(csv.reader(text.splitlines(), delimiter=max(",;\t", key=head.count)))


def _xlsx(path: Path) -> list[list[Any]]:
    import openpyxl  # type: ignore[import-untyped,unused-ignore]

    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        return [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    finally:
        book.close()


def _xls(path: Path) -> list[list[Any]]:
    import xlrd  # type: ignore[import-not-found,import-untyped,unused-ignore]

    sheet = xlrd.open_workbook(str(path)).sheet_by_index(0)
    return [sheet.row_values(i) for i in range(sheet.nrows)]


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def column(rows: Sequence[Row], path: Path, *names: str) -> str:
    """The column whose name starts with one of the given names (upper or lower case), an equal one first.

    Args:
        rows: of the table.
        path: of the table, for the message.
        names: wanted, the preferred first.

    Returns:
        Its name as the table writes it.

    Raises:
        UserError: there is none; lists those there are.
    """
    for match in (str.__eq__, str.startswith):
        for name in names:
            for there in rows[0]:
                if match(there.lower(), name.lower()):
                    return there
    raise UserError(f"{path}: no column {' or '.join(names)}; its columns: {', '.join(rows[0])}")


def merge_people(entries: Iterable[tuple[str, Person]], source: str) -> dict[str, Person]:
    """One person per key. Rows of one key are merged; where they contradict, the field becomes unknown.

    Args:
        entries: key and what one row says.
        source: the table's name, for the report.

    Returns:
        Key to person. Duplicates and contradictions are logged with count and examples.
    """
    rows: dict[str, list[Person]] = defaultdict(list)
    for key, person in entries:
        rows[key].append(person)
    people: dict[str, Person] = {}
    clashes: list[str] = []
    for key, persons in rows.items():
        merged: dict[str, Any] = {}
        for f in fields(Person):
            values = list(dict.fromkeys(v for p in persons if (v := getattr(p, f.name)) is not None))
            merged[f.name] = values[0] if len(values) == 1 else None
            if len(values) > 1:
                clashes.append(f"{key} ({f.name} {' or '.join(map(str, values))})")
        people[key] = Person(**merged)
    doubles = [key for key, persons in rows.items() if len(persons) > 1]
    if doubles:
        log.warning("%s: %d key(s) have more than one row: %s", source, len(doubles), examples(doubles))
    if clashes:
        log.warning("%s: %d contradiction(s) between rows, taken as unknown: %s",
                    source, len(clashes), examples(clashes))  # fmt: skip
    return people


def add_people(scans: Sequence[Scan], people: Mapping[str, Person], source: str,
               key: Callable[[Scan], str] = lambda scan: scan.subject) -> list[Scan]:  # fmt: skip
    """Join a table to the scans; what the table does not say stays as it was.

    Args:
        scans: all of them.
        people: key to person.
        source: the table's name, for the report.
        key: of a scan in the table.

    Returns:
        The scans with age, sex, site, label and split. Missing rows, missing ages and rows without a scan are logged
        with count and examples.
    """
    keys = dict.fromkeys(key(scan) for scan in scans)
    missing = [k for k in keys if k not in people]
    ageless = [k for k in keys if k in people and people[k].age is None]
    unused = [k for k in people if k not in keys]
    if missing:
        log.warning("%s: no row for %d of %d: %s", source, len(missing), len(keys), examples(missing))
    if ageless and len(ageless) < len(keys):
        log.warning("%s: no age for %d of %d: %s", source, len(ageless), len(keys), examples(ageless))
    if unused:
        log.info("%s: %d row(s) without a scan here: %s", source, len(unused), examples(unused))
    joined = []
    for scan in scans:
        person = people.get(key(scan), Person())
        said = {f.name: v for f in fields(Person) if (v := getattr(person, f.name)) is not None}
        joined.append(replace(scan, **said))
    return joined

"""The table `data.subjects`: who is in which file, or who a subject is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mri_synth.data.demographics import Person, Row, age_of, known, merge_people, read_table, sex_of, split_of
from mri_synth.data.names import examples
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

COLUMNS = ("file", "subject", "session", "contrast", "age", "sex", "site", "label", "split")
_ALIAS = {"participant_id": "subject", "gender": "sex", "session_id": "session", "path": "file", "filename": "file"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of the table; None is "not said"."""

    subject: str | None = None
    session: str | None = None
    contrast: str | None = None
    person: Person


@dataclass(frozen=True)
class Subjects:
    """The table.

    Attributes:
        name: of its file.
        rows: (file or glob, what is said of it); the first is "" in a table without the column file.
    """

    name: str
    rows: tuple[tuple[str, Entry], ...]

    @property
    def by_file(self) -> bool:
        """Whether rows are about files; else they are about subjects."""
        return any(file for file, _ in self.rows)

    def people(self) -> dict[str, Person]:
        """Subject to person, for a table about subjects; "sub-01" is found as "01" too."""
        merged = merge_people([(e.subject, e.person) for _, e in self.rows if e.subject], self.name)
        return merged | {f"sub-{k}": p for k, p in merged.items() if not k.startswith("sub-")}

    def entries(self, files: Sequence[str]) -> dict[str, Entry]:
        """What the table says of each file: a row with its path goes before one with its name, that before a glob.

        Args:
            files: posix paths relative to the root.

        Returns:
            File to entry; files without a row are missing. Rows without a file are logged.

        Raises:
            UserError: rows that contradict each other about a file.
        """
        exact: dict[str, list[Entry]] = {}
        for file, entry in self.rows:
            exact.setdefault(file.removeprefix("./"), []).append(entry)
        globs = [(file, entry) for file, entry in self.rows if any(c in file for c in "*?[")]
        found: dict[str, Entry] = {}
        used: set[str] = set()
        for file in files:
            name = file.rsplit("/", 1)[-1]
            key = file if file in exact else name
            hits = [(key, e) for e in exact.get(key, [])] or [
                (g, e) for g, e in globs if fnmatchcase(file, g) or fnmatchcase(name, g)
            ]
            used.update(g for g, _ in hits)
            kinds = list(dict.fromkeys(e for _, e in hits))
            if len(kinds) > 1:
                raise UserError(
                    f"data.subjects={self.name}: {len(kinds)} rows contradict each other about {file} "
                    f"({', '.join(f'{g}: {e.subject}' for g, e in hits[:3])}); leave one of them"
                )
            if kinds:
                found[file] = kinds[0]
        unused = [file for file, _ in self.rows if file.removeprefix("./") not in used]
        if unused:
            log.warning("data.subjects=%s: %d row(s) without a file: %s", self.name, len(unused), examples(unused))
        return found


def find_table(said: str | None, root: Path) -> Path | None:
    """The table's path: `data.subjects` as it stands or relative to the root; else participants.tsv in the root.

    Args:
        said: the key `data.subjects`.
        root: of the data.

    Returns:
        The path, None when there is no table.

    Raises:
        UserError: the key names no file.
    """
    if said is None:
        return root / "participants.tsv" if (root / "participants.tsv").is_file() else None
    for path in (Path(said).expanduser(), root / said):
        if path.is_file():
            return path
    raise UserError(f"data.subjects={said}: no such file, neither here nor in {root}")


def read_subjects(path: Path) -> Subjects:
    """Read the table.

    Args:
        path: .csv, .tsv, .xlsx or .xls with a column file (path relative to the root, name or glob) or subject
            (participant_id), and any of session, contrast, age, sex, site, label, split.

    Returns:
        The table.

    Raises:
        UserError: a table that cannot be read, without a column file or subject, or with an unknown split.
    """
    rows = read_table(path)
    there = {name.strip().lower(): name for name in rows[0]}
    columns = {_ALIAS.get(low, low): name for low, name in there.items() if _ALIAS.get(low, low) in COLUMNS}
    if "subject" not in columns:
        raise UserError(
            f"data.subjects={path}: needs a column subject (or participant_id), and file where the names of files do "
            f"not say the subject; found {', '.join(rows[0])}. Columns that are read: {', '.join(COLUMNS)}"
        )
    return Subjects(path.name, tuple(_entry(row, columns, path, i) for i, row in enumerate(rows, 2)))


def _entry(row: Row, columns: dict[str, str], path: Path, line: int) -> tuple[str, Entry]:
    said = {key: known(row.get(name)) for key, name in columns.items()}
    split = split_of(said.get("split"))
    if said.get("split") and split is None:
        raise UserError(f"data.subjects={path} line {line}: split {said['split']}; allowed: train, val, test")
    if not said.get("subject"):
        raise UserError(f"data.subjects={path} line {line}: no subject")
    if "file" in columns and not said.get("file"):
        raise UserError(f"data.subjects={path} line {line}: no file")
    person = Person(age=age_of(said.get("age")), sex=sex_of(said.get("sex")), site=said.get("site"),
                    label=said.get("label"), split=split)  # fmt: skip
    entry = Entry(subject=said["subject"], session=said.get("session"), contrast=said.get("contrast"), person=person)
    return said.get("file") or "", entry

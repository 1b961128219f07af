"""Pretrained weights: which there are, where they are found, and how they are fetched when asked for.

`resolve` looks for a file and never downloads; `get`, which is `mri-synth weights get NAME`, does. Whatever a file's
name, it is used only if its sha256 is the one written here. Adding weights is adding one record to
`known.WEIGHTS`.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import importlib.util
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from mri_synth.errors import UserError
from mri_synth.weights.known import WEIGHTS, Weight

_ABSENT = ("not set", "not installed", "no such file")


@dataclass(frozen=True)
class Found:
    """Where weights are, or why they are in none of the places that were looked at.

    Attributes:
        path: the file; None when no place has it.
        where: "path", "cache" or "package"; "" when no place has it.
        looked: one line for each place that does not have it: the place, and why it will not do.
    """

    path: Path | None
    where: str
    looked: list[str] = field(default_factory=list)


def weight(name: str) -> Weight:
    """The record of that name.

    Args:
        name: key of `WEIGHTS`.

    Returns:
        The record.

    Raises:
        UserError: there is none.
    """
    if name not in WEIGHTS:
        near = difflib.get_close_matches(name.lower().replace("-", "_"), WEIGHTS, 1, 0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"no weights are called {name!r}.{hint} There are: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def folder() -> Path:
    """Where fetched weights are kept: `$MRI_SYNTH_CACHE/weights`, else `~/.cache/mri_synth/weights`."""
    cache = os.environ.get("MRI_SYNTH_CACHE") or Path.home() / ".cache" / "mri_synth"
    return Path(cache).expanduser() / "weights"


def find(name: str, path: str | Path | None = None) -> Found:
    """Look for weights: the path given, then the cache, then an installed package. Nothing is downloaded or imported.

    A path that is given, here or by the record's environment variable, is the only place: it is never passed over.

    Args:
        name: key of `WEIGHTS`.
        path: a file; None for the environment variable `MRI_SYNTH_<NAME>`, and without that the other places.

    Returns:
        The first file whose sha256 is right, and what was wrong before it.

    Raises:
        UserError: there are no weights of that name.
    """
    record = weight(name)
    looked = []
    if given := path or os.environ.get(record.variable):
        places = [("path", Path(given).expanduser(), "" if path else f" (from ${record.variable})")]
    else:
        looked.append(f"${record.variable}: {_ABSENT[0]}")
        places = [("cache", folder() / record.file, "")]
        if installed := _installed(record):
            places.append(("package", installed, f" (of {record.package.partition('==')[0]})"))
    for where, place, of in places:
        wrong = _wrong(place, record)
        if not wrong:
            return Found(place, where, looked)
        looked.append(f"{place}{of}: {wrong}")
    if not given and len(places) == 1:
        looked.append(f"the package {record.package}: {_ABSENT[1]}")
    return Found(None, "", looked)


def resolve(name: str, path: str | Path | None = None) -> Path:
    """The file of these weights, its sha256 checked. Never downloads.

    Args:
        name: key of `WEIGHTS`.
        path: a file; None to look where `find` looks.

    Returns:
        The file.

    Raises:
        UserError: no place has it: lists each, why not, and what to do.
    """
    found = find(name, path)
    if found.path:
        return found.path
    record = weight(name)
    raise UserError(
        "\n".join([
            f"the weights {name!r} ({record.purpose}) are not here. Looked at:",
            *(f"  {line}" for line in found.looked),
            f"Fetch them ({record.megabytes}, {record.licence}): mri-synth weights get {name}",
            record.by_hand,
        ])
    )  # fmt: skip


def get(name: str, progress: bool = True) -> Path:
    """Fetch weights into the cache, unless the cache or an installed package has them; a damaged file is replaced.

    Two processes that ask at once fetch once. A process that is killed leaves no file under the final name.

    Args:
        name: key of `WEIGHTS`.
        progress: show a bar.

    Returns:
        The file.

    Raises:
        UserError: no source has it, or it cannot be written: says which were tried and what is wrong with each.
    """
    from filelock import FileLock

    from mri_synth.weights.fetch import fetch

    record = weight(name)
    target = folder() / record.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            installed = _installed(record)
            for place in [target, *([installed] if installed else [])]:
                if not _wrong(place, record):
                    return place
            fetch(record, target, progress)
    except OSError as error:  # fetch deals with the network's own; what is left is the disk's
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        need = (
            f"; about {math.ceil((record.size + record.archive_size) / 1e6)} MB are needed while fetching"
            if full
            else ""
        )
        raise UserError(
            f"cannot write to {target.parent}: {error.strerror or error}{need}. Nothing was kept. Make room or make it "
            "writable, or choose another folder: MRI_SYNTH_CACHE=/path/with/room"
        ) from None
    return target


def announce(name: str) -> str:
    """What is about to be fetched, under which licence, and from where: to be shown before it is."""
    record = weight(name)
    sources = ([record.official] if record.official else []) + [f"package index: {record.package} ({record.archive})"]
    return "\n".join([f"{name}: {record.purpose}, {record.megabytes}", f"licence: {record.licence}",
                      f"project: {record.source}", f"source:  {', else '.join(sources)}"])  # fmt: skip


def show() -> None:
    """Print a table of all weights and where they are now."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what for", "licence", "size", "where now", title="pretrained weights")
    notes = []
    for name, record in WEIGHTS.items():
        found = find(name)
        table.add_row(name, record.purpose, record.licence, record.megabytes, found.where or "not here")
        if found.path:
            notes.append(f"{name}: {found.path}")
        notes += [f"{name}: {line}" for line in found.looked if not line.endswith(_ABSENT)]
    console = Console(soft_wrap=True)
    console.print(table)
    for note in notes:
        console.print(f"  {note}", highlight=False)
    console.print("Fetch what is not here: mri-synth weights get NAME", highlight=False)


def sha256(path: Path) -> str:
    """Hash of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(place: Path, record: Weight) -> str:
    """Why this file will not do; "" when it will."""
    try:
        if not place.exists():
            return _ABSENT[2]
        if not place.is_file():
            return "is not a file"
        size = place.stat().st_size
        if size != record.size:
            return f"{size} bytes, should be {record.size}: damaged, or another file (sha256 not looked at)"
        if (seen := sha256(place)) != record.sha256:
            return f"sha256 {seen[:12]}..., should be {record.sha256[:12]}...: damaged, or another version; not used"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def _installed(record: Weight) -> Path | None:
    """The file inside an installed package, which is not imported; None when it is not installed."""
    top, _, inside = record.installed.partition("/")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(f) / inside for f in folders if (Path(f) / inside).exists()), None)

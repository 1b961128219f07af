"""What the data sets share when they turn file names into scans: the root, the listing, and the refusals."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mri_synth.data.contrasts import UNKNOWN
from mri_synth.data.scan import Scan
from mri_synth.data.split import natural
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

ENVIRONMENT = "MRI_SYNTH_DATA"
NIFTI = (".nii.gz", ".nii")
VOLUMES = (*NIFTI, ".img", ".img.gz", ".mgz", ".mgh")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_JUNK = ("thumbs.db", "desktop.ini", "__macosx")


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a file's name and folders say of it.

    Attributes:
        subject: who was scanned.
        session: visit, "" when there is one.
        contrast: T1, ..., "mask", or "MRI" when no word says it.
        slice: number of the slice, for pictures named so.
    """

    subject: str
    session: str = ""
    contrast: str
    slice: int | None = None


def root_help(name: str, problem: str, layout: str, address: str) -> UserError:
    """The one message for a root that cannot be used: the problem, the layout, the address, the key to type.

    Args:
        name: of the data set, as in `data=name`.
        problem: what is wrong, without a full stop.
        layout: the folder as a small tree, one entry per line.
        address: where the data are to be had.

    Returns:
        The error, to be raised.
    """
    tree = "\n".join(f"    {line}" for line in layout.strip("\n").splitlines())
    return UserError(
        f"data={name}: {problem}.\n"
        f"  The layout that is read:\n{tree}\n"
        f"  Where to get it: {address}\n"
        f"  Then type: data.root=/path/to/{name}\n"
        f"  or put it at ${ENVIRONMENT}/{name} and export {ENVIRONMENT}=/path/to"
    )


def resolve_root(name: str, root: str | None, layout: str, address: str) -> Path:
    """The folder of a data set: `data.root`, else `$MRI_SYNTH_DATA/<name>`.

    Args:
        name: of the data set, as in `data=name`.
        root: the key `data.root`; "~" is expanded.
        layout: the folder as a small tree, one entry per line.
        address: where the data are to be had.

    Returns:
        An existing folder that is not empty.

    Raises:
        UserError: no root is known, or it is missing, a file, empty or unreadable.
    """
    base = os.environ.get(ENVIRONMENT, "")
    if root is None and not base:
        raise root_help(name, f"no folder is known: neither data.root nor ${ENVIRONMENT} is set", layout, address)
    path = Path(root).expanduser() if root is not None else Path(base).expanduser() / name
    said = f"data.root={path}" if root is not None else f"${ENVIRONMENT}/{name} = {path}"
    if not path.exists():
        raise root_help(name, f"{said} does not exist", layout, address)
    if not path.is_dir():
        way = "unpack it and name the folder" if path.suffix in (".zip", ".gz", ".tar", ".tgz") else "name its folder"
        raise root_help(name, f"{said} is a file, not a folder: {way}", layout, address)
    try:
        empty = not any(path.iterdir())
    except OSError as error:
        raise root_help(name, f"{said} cannot be listed ({error.strerror})", layout, address) from error
    if empty:
        raise root_help(name, f"{said} is empty", layout, address)
    return path


def list_files(root: Path) -> list[str]:
    """Every file below a folder, hidden files and what operating systems leave behind excepted.

    Args:
        root: an existing folder.

    Returns:
        Posix paths relative to `root`, in natural order (img2 before img10). Links are followed, loops are not.

    Raises:
        UserError: a folder inside that may not be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"data.root={root}: {error.filename} cannot be listed ({error.strerror})") from error

    found: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [d for d in folders if not _junk(d)]
        if real in seen:
            continue
        seen.add(real)
        below = Path(folder).relative_to(root).as_posix()
        found += [f if below == "." else f"{below}/{f}" for f in files if not _junk(f)]
    return sorted(found, key=natural)


def _junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    """Whether a name ends in one of the suffixes, upper or lower case."""
    return name.lower().endswith(tuple(suffixes))


def stem(name: str) -> str:
    """A file's name without folder and without .nii.gz, .png, ...: "a/case_1_slice_2.nii.png" is "case_1_slice_2"."""
    name = name.rsplit("/", 1)[-1]
    for suffix in (*PICTURES, *VOLUMES, ".mha", ".hdr"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name.removesuffix(".nii")


def examples(names: Iterable[str], n: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f", and {len(every) - n} more" if len(every) > n else ""
    return ", ".join(every[:n]) + more


def report_ignored(name: str, ignored: Sequence[str], why: str) -> None:
    """Say how many files were left out and why.

    Args:
        name: of the data set.
        ignored: their names; nothing is said when there are none.
        why: such as "match no pattern".
    """
    if ignored:
        log.warning("data=%s: %d file(s) left out (%s): %s", name, len(ignored), why, examples(ignored))


def no_match(name: str, root: Path, files: Sequence[str], pattern: str, layout: str, address: str) -> UserError:
    """The error for a folder in which no file has a name of the data set.

    Args:
        name: of the data set.
        root: the folder.
        files: what was found in it.
        pattern: what a name must look like.
        layout: the folder as a small tree.
        address: where the data are to be had.

    Returns:
        The error, to be raised.
    """
    found = f"{len(files)} file(s), such as {examples(files)}" if files else "no files at all"
    return root_help(name, f"no file under {root} has a name like {pattern}; found {found}", layout, address)


def refuse_twins(name: str, files: Iterable[str]) -> None:
    """Refuse x.nii beside x.nii.gz: one scan would be counted twice.

    Args:
        name: of the data set.
        files: relative paths.

    Raises:
        UserError: naming up to five such pairs.
    """
    every = set(files)
    twins = sorted((f for f in every if f.endswith(".nii") and f"{f}.gz" in every), key=natural)
    if twins:
        pairs = "\n".join(f"    {f}  and  {f}.gz" for f in twins[:5])
        raise UserError(
            f"data={name}: {len(twins)} scan(s) are there twice, plain and compressed:\n{pairs}\n"
            "  Keep one of each: delete the .nii (or the .nii.gz if it is the older one)."
        )


def refuse_duplicates(name: str, scans: Sequence[Scan], way_out: str) -> None:
    """Refuse two files for one contrast of one visit (and one slice) of a subject.

    Args:
        name: of the data set.
        scans: all of them.
        way_out: the advice that ends the message.

    Raises:
        UserError: naming up to five pairs of files.
    """
    seen: dict[tuple[object, ...], Scan] = {}
    doubles: list[str] = []
    for scan in scans:
        first = seen.setdefault((scan.subject, scan.session, scan.contrast, scan.slice), scan)
        if first is not scan:
            visit = f" session {scan.session}" if scan.session else ""
            doubles.append(f"    {scan.contrast} of {scan.subject}{visit}: {first.path}  and  {scan.path}")
    if doubles:
        shown = "\n".join(doubles[:5])
        raise UserError(f"data={name}: {len(doubles)} file(s) stand for a scan that another file is too:\n{shown}\n"
                        f"  {way_out}")  # fmt: skip


def guess_contrast(name: str, scans: Sequence[Scan], wanted: Sequence[str]) -> list[Scan]:
    """Files whose names say no contrast are the one wanted contrast that no name says, where others are named.

    Args:
        name: of the data set.
        scans: all of them; "MRI" is the contrast of those whose names say none.
        wanted: `data.contrasts`.

    Returns:
        The scans; what was guessed is logged.
    """
    found = {scan.contrast for scan in scans}
    absent = [c for c in wanted if c not in found]
    if len(absent) != 1 or len(wanted) < 2 or UNKNOWN not in found or UNKNOWN in wanted:
        return list(scans)
    nameless = [scan.path.name for scan in scans if scan.contrast == UNKNOWN]
    log.warning("data=%s: %d file(s) are taken as %s, since their names say no contrast and no other file is %s: %s. "
                "If not, say which are which: 'data.contrast_names={*t1*: T1}'", name, len(nameless), absent[0],
                absent[0], examples(dict.fromkeys(nameless)))  # fmt: skip
    return [replace(s, contrast=absent[0]) if s.contrast == UNKNOWN else s for s in scans]


def keep_contrasts(name: str, scans: Sequence[Scan], wanted: Sequence[str], hint: str = "") -> list[Scan]:
    """The scans of the wanted contrasts; label maps ("mask") always stay.

    Args:
        name: of the data set.
        scans: all of them.
        wanted: `data.contrasts`; empty means all that were found.
        hint: further advice for the message.

    Returns:
        The kept ones, in order.

    Raises:
        UserError: a wanted contrast of which there is no file, listing those there are.
    """
    found = Counter(scan.contrast for scan in scans if scan.contrast != "mask")
    absent = [c for c in wanted if c not in found]
    if absent:
        there = ", ".join(f"{c} ({n} files)" for c, n in sorted(found.items())) or "none but label maps"
        raise UserError(
            f"data.contrasts=[{','.join(wanted)}]: data={name} has no {' and no '.join(absent)}; found {there}. "
            f"Say for example data.contrasts=[{','.join(sorted(found)) or 'T1'}]{hint}"
        )
    if not found:
        raise UserError(f"data={name}: only label maps were found, no images: {examples(str(s.path) for s in scans)}")
    return [scan for scan in scans if not wanted or scan.contrast in wanted or scan.contrast == "mask"]

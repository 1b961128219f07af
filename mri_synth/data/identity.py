"""What data are: hashes of files and settings, for finding a store and for saying which data a figure is of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from mri_synth.data.volume import Volume

if TYPE_CHECKING:
    from mri_synth.data.prepare import Preparation, Study


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; "" for what is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_series(volume: Volume) -> str:
    """SHA-256 of the SHA-256s (hexadecimal) of a DICOM series' files by name; "" where there are no files."""
    files = volume.source.files if volume.source else ()
    return hashlib.sha256("".join(sha256(f) for f in files).encode()).hexdigest() if files else ""


def store_key(todo: Sequence[Study], settings: Preparation, extra: dict[str, Any], skip_bad: bool) -> str:
    """Hash of everything that decides the store's content.

    Args:
        todo: the studies; a file, and each in the folder of a DICOM series, counts by path, size and modification time.
        settings: how they are prepared.
        extra: the data set's own settings.
        skip_bad: whether unusable files are left out.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(repr((asdict(settings), sorted(extra.items()), skip_bad, "prepare-3")).encode())
    folders: dict[Path, list[Any]] = {}
    for study in todo:
        for contrast, scan in study.scans.items():
            seen = folders.get(scan.path)
            if seen is None:
                seen = _seen(scan.path)
                if scan.series is not None:  # one folder holds several
                    folders[scan.path] = seen
            digest.update(repr((contrast, scan, seen)).encode())
    return digest.hexdigest()[:16]


def _seen(path: Path) -> list[Any]:
    """Size and time of a file, or of each in a folder with its name; nothing for what is not there."""
    try:
        stat = path.stat()
    except OSError:
        return []
    if S_ISDIR(stat.st_mode):
        return [(p.name, *_seen(p)) for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith(".")]
    return [stat.st_size, stat.st_mtime_ns]


def content_hash(files: Sequence[Mapping[str, Any]], label_of: Mapping[str, Any], settings: Preparation,
                 extra: Mapping[str, Any]) -> str:  # fmt: skip
    """Hash of what the data are, wherever they lie and whenever they were written.

    Args:
        files: records of a store's files; those that cannot be used do not count.
        label_of: study's id -> its class, None where it has none, and its slice number.
        settings: how they were prepared.
        extra: what decides the voxels where no file does: the simulator's version and settings.

    Returns:
        16 hexadecimal digits.
    """
    about = sorted(
        repr((f["contrast"], f["subject"], f["session"], label_of.get(f["study"]), f["sha256"]))
        for f in files
        if not f["bad"]
    )
    return hashlib.sha256(repr((asdict(settings), sorted(extra.items()), about)).encode()).hexdigest()[:16]

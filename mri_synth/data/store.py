"""The store: prepared slices of a data set, one array file per contrast, made once and shared by runs, ranks and jobs.

A store is a folder `<cache>/<data set>-<key>`; the key is a hash of the files (path, size, time) and of the settings.
It is written beside its place and renamed when whole, so that a killed preparation leaves nothing that could be
mistaken for a store; a lock lets one process prepare while the others wait. Rows are read with `pread` and not
mapped: the process's memory does not grow with the data set, and a truncated file is an error, not a SIGBUS.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from mri_synth.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1
SCALE = 32767  # int16 of an intensity in [-1, 1]
MASK = "mask"
COLUMNS: dict[str, Any] = {
    "study": np.int32, "slice": np.int32, "position_mm": np.float32, "label": np.int16, "foreground": np.float32,
}  # fmt: skip


@dataclass
class Prepared:
    """One study, ready to be stored.

    Attributes:
        images: contrast -> (N, H, W) float32 in [-1, 1]; key "mask": (N, H, W) in {0, 1}. All have the same N.
        columns: name of COLUMNS (without study) -> (N,) values.
        study: plain values kept with the study (subject, session, age, sex, site, label, split, plane, ...).
        files: one record per file read: path, sha256, shape, spacing, orientation, intensity, reason if unused.
    """

    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    files: list[dict[str, Any]] = field(default_factory=list)


def to_int16(images: NDArray[np.float32]) -> NDArray[np.int16]:
    """Intensities in [-1, 1] as int16 in [-32767, 32767] (error at most 1.6e-5)."""
    return np.rint(np.clip(images, -1, 1) * SCALE).astype(np.int16)


def slice_hash(image: NDArray[Any]) -> int:
    """64-bit hash of one stored slice, for the leak check and for checking a store when it is opened."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest(), "little")


def open_or_build(cache: Path, name: str, size: int, studies: Callable[[], Iterator[Prepared]]) -> Store:
    """The store `cache/name`, prepared from `studies()` when it does not stand yet.

    Args:
        cache: folder of all stores; made when missing.
        name: data set and key.
        size: slices are (size, size).
        studies: called only when the store must be made.

    Returns:
        The store, opened and checked.

    Raises:
        UserError: the cache cannot be written, or the disk is full.
    """
    place = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if (place / "meta.json").exists():
            return Store(place)
        with FileLock(cache / f"{name}.lock"):
            if not (place / "meta.json").exists():
                _build(place, size, studies())
        return Store(place)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST):
            raise
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        why = "it is a file" if error.errno == errno.EEXIST else why
        raise UserError(
            f"cannot write the store of prepared slices in {cache}: {why}; nothing half-written was left. "
            "Give another folder with data.cache=/path or the variable MRI_SYNTH_CACHE."
        ) from error


def _build(place: Path, size: int, studies: Iterator[Prepared]) -> None:
    for stale in place.parent.glob(f"{place.name}.partial-*"):  # we hold the lock: its maker was killed
        shutil.rmtree(stale)
    partial = place.with_name(f"{place.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        _write(partial, size, studies)
        if place.exists():
            shutil.rmtree(place)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(folder: Path, size: int, studies: Iterator[Prepared]) -> None:
    files: dict[str, BinaryIO] = {}
    counts: dict[str, int] = {}
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    rows: dict[str, list[NDArray[np.int32]]] = {}
    hashes: dict[str, list[int]] = {}
    study_records: list[dict[str, Any]] = []
    file_records: list[dict[str, Any]] = []
    total = 0
    try:
        for item in studies:
            file_records += item.files
            if not item.images:
                continue
            n = len(next(iter(item.images.values())))
            for name, images in item.images.items():
                if name not in files:
                    files[name] = (folder / f"{name}.bin").open("wb")  # closed below
                    counts[name], hashes[name] = 0, []
                    rows[name] = [np.full(total, -1, np.int32)]
                stored = images.astype(np.uint8) if name == MASK else to_int16(images)
                assert stored.shape == (n, size, size), (name, stored.shape)
                files[name].write(stored.tobytes())
                hashes[name] += [slice_hash(s) for s in stored]
            for name in files:
                here = name in item.images
                first = counts[name] if here else -1
                rows[name].append(first + np.arange(n, dtype=np.int32) * here)
                counts[name] += n if here else 0
            columns["study"].append(np.full(n, len(study_records)))
            for name in COLUMNS.keys() - {"study"}:
                columns[name].append(np.asarray(item.columns[name]))
            study_records.append(item.study)
            total += n
    finally:
        for file in files.values():
            file.close()
    table = {name: np.concatenate(v).astype(COLUMNS[name]) if v else np.zeros(0) for name, v in columns.items()}
    table |= {f"row_{name}": np.concatenate(v).astype(np.int32) for name, v in rows.items()}
    table |= {f"hash_{name}": np.asarray(v, np.uint64) for name, v in hashes.items()}
    np.savez(folder / "table.npz", allow_pickle=False, **table)
    meta = {"format": FORMAT, "size": size, "rows": total, "counts": counts, "studies": study_records,
            "files": file_records}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))


class Store:
    """Prepared slices on disk. Rows of different contrasts of one slice share a position in `table`.

    Attributes:
        path: its folder.
        size: slices are (size, size) pixels.
        studies: plain records of the studies (subject, session, age, ...).
        files: plain records of every file that was read or refused.
        table: column name -> (N,) array: study, slice, position_mm, label, foreground, and for each contrast c
            `row_c`, the row in its array (-1: this slice has none), and `hash_c`, one hash per row of the array.
    """

    def __init__(self, path: Path) -> None:
        """Open and check a store.

        Args:
            path: its folder.

        Raises:
            UserError: it is damaged or of another version.
        """
        self.path = path
        damaged = UserError(f"the store {path} is damaged; delete it (rm -r {path}) and it will be prepared again")
        try:
            meta = json.loads((path / "meta.json").read_text())
            with np.load(path / "table.npz", allow_pickle=False) as table:
                self.table: dict[str, NDArray[Any]] = {name: table[name] for name in table.files}
            if meta["format"] != FORMAT:
                raise UserError(f"the store {path} has format {meta['format']}, not {FORMAT}; delete it (rm -r {path}) "
                                "and it will be prepared again")  # fmt: skip
            self.size: int = meta["size"]
            self.rows: int = meta["rows"]
            self.counts: dict[str, int] = meta["counts"]
            self.studies: list[dict[str, Any]] = meta["studies"]
            self.files: list[dict[str, Any]] = meta["files"]
            self._handles: dict[str, int] = {}
            intact = self._intact()
        except (ValueError, KeyError, IndexError, EOFError, FileNotFoundError, zipfile.BadZipFile, zlib.error) as error:
            raise damaged from error
        if not intact:
            raise damaged

    def _intact(self) -> bool:
        """Sizes of all arrays, and the hashes of up to 16 slices of each."""
        for name, count in self.counts.items():
            file = self.path / f"{name}.bin"
            if not file.exists() or file.stat().st_size != count * self._row_bytes(name):
                return False
            sample = np.unique(np.linspace(0, count - 1, min(16, count)).astype(int))
            hashes = self.table[f"hash_{name}"][sample]
            if any(slice_hash(s) != h for s, h in zip(self.read(name, sample), hashes, strict=True)):
                return False
        return True

    def _row_bytes(self, name: str) -> int:
        return self.size * self.size * (1 if name == MASK else 2)

    def read(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of one array.

        Args:
            name: contrast, or "mask".
            rows: (B,) row numbers of that array.

        Returns:
            (B, size, size), int16 (intensity times 32767), or uint8 for a mask.

        Raises:
            UserError: the file is shorter than it was when opened.
        """
        if name not in self._handles:
            self._handles[name] = os.open(self.path / f"{name}.bin", os.O_RDONLY)
        out = np.empty((len(rows), self.size, self.size), np.uint8 if name == MASK else np.int16)
        handle, width = self._handles[name], self._row_bytes(name)
        for image, row in zip(out, rows.tolist(), strict=True):
            if os.preadv(handle, [image.data], row * width) != width:
                raise UserError(f"the store {self.path} was truncated while in use; delete it and run again")
        return out

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": {}}  # a worker process opens its own

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)

"""Codes of every slice of a store under a frozen first stage: computed once, kept in the cache, shared by all runs.

A file of codes is an `.npy` with its SHA-256 behind it, which `numpy.load` passes over.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.store import SCALE, Store
from mri_synth.data.views import Images
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

_DIGEST = hashlib.sha256().digest_size


def codes_of(
    store: Store, contrasts: list[str], encode: Callable[[Tensor], Tensor], key: str, batch_size: int = 64
) -> dict[str, NDArray[Any]]:
    """Codes of all slices, read from the cache where they are there.

    Args:
        store: of the prepared slices.
        contrasts: wanted.
        encode: (B, 1, H, W) float32 images in [-1, 1] to (B, h, w) int64 codes.
        key: hash of what encodes.
        batch_size: slices at once.

    Returns:
        Contrast to (N, h, w) whole numbers, one grid for each row of the contrast's array in the store.

    Raises:
        UserError: the cache cannot be written.
    """
    return {c: _codes(store, c, encode, _place(store, c, key), batch_size) for c in contrasts}


def _place(store: Store, contrast: str, key: str) -> Path:
    return store.path.with_name(f"codes-{store.path.name}-{key}-{contrast}.npy")


def _codes(
    store: Store, contrast: str, encode: Callable[[Tensor], Tensor], place: Path, batch_size: int
) -> NDArray[Any]:
    count = store.counts[contrast]
    try:
        kept = _read(place, count)  # without the lock: the cache may be one that can only be read
        if kept is None:
            with FileLock(f"{place}.lock"):
                kept = _read(place, count)
                if kept is None:
                    if place.exists():
                        log.warning("%s is damaged and is made again", place)
                    _write(place, _encoded(store, contrast, encode, batch_size))
                    kept = _read(place, count)
    except OSError as error:
        raise UserError(f"cannot write the codes {place}: {error.strerror}; nothing half-written was left. Give "
                        "another folder with data.cache=/path or the variable MRI_SYNTH_CACHE.") from error  # fmt: skip
    assert kept is not None
    return kept


def _read(place: Path, count: int) -> NDArray[Any] | None:
    """What stands in the cache; None where nothing does, or where it is damaged."""
    if not place.exists():
        return None
    content = place.read_bytes()  # not mapped: it may be made anew meanwhile
    array, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(array).digest() != digest:
        return None
    codes: NDArray[Any] = np.load(io.BytesIO(array), allow_pickle=False)
    return codes if codes.ndim == 3 and len(codes) == count and codes.dtype == np.uint16 else None


@torch.no_grad()
def _encoded(store: Store, contrast: str, encode: Callable[[Tensor], Tensor], batch_size: int) -> NDArray[np.uint16]:
    from tqdm import tqdm

    count = store.counts[contrast]
    log.info("codes of %d slices of %s (once; kept in the cache)", count, contrast)
    grids = []
    for start in tqdm(range(0, count, batch_size), "encoding", unit="batch", leave=False, disable=count < 1000):
        raw = store.read(contrast, np.arange(start, min(start + batch_size, count)))
        grids.append(encode(torch.from_numpy(raw)[:, None].float() / SCALE).cpu().numpy().astype(np.uint16))
    return np.concatenate(grids)


def _write(place: Path, codes: NDArray[np.uint16]) -> None:
    part = place.with_name(f"{place.name}.partial-{os.getpid()}")
    array = io.BytesIO()
    np.save(array, codes, allow_pickle=False)
    try:
        part.write_bytes(array.getvalue() + hashlib.sha256(array.getvalue()).digest())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)


def code_counts(items: Images, size: int) -> NDArray[np.int64]:
    """How often each code is in a view.

    Args:
        items: with codes.
        size: of the codebook.

    Returns:
        (size,) counts.
    """
    counts = np.zeros(size, np.int64)
    for c, name in enumerate(items.contrasts if items.codes is not None else ()):
        assert items.codes is not None
        rows = items.store.table[f"row_{name}"][items.rows[items.contrast == c]]
        counts += np.bincount(items.codes[name][rows].ravel(), minlength=size)
    return counts

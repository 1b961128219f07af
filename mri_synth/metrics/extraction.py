"""Feature vectors of images, computed once per image and network: real ones are kept on disk."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.batch import Batch
from mri_synth.data.nifti import whole_file
from mri_synth.data.views import Images
from mri_synth.errors import UserError
from mri_synth.metrics.features import Features

log = logging.getLogger(__name__)

Array = NDArray[np.float32]


class Items(Protocol):
    """Real images as they are asked for here; `mri_synth.data.views.Images` is one."""

    @property
    def subjects(self) -> NDArray[Any]:
        """(N,) subject names."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of these items."""


@torch.no_grad()
def features_of(
    images: Tensor | Items, features: Features, batch_size: int = 32, items: NDArray[Any] | None = None
) -> Array:
    """Feature vectors of images.

    Args:
        images: (N, C, H, W) in [-1, 1], or a view.
        features: the network.
        batch_size: images at once.
        items: which images, in which order; None for all.

    Returns:
        (N, D) float32.

    Raises:
        UserError: the network gives another shape than it says, or numbers that are not finite.
    """
    chosen = np.arange(len(images)) if items is None else np.asarray(items)
    out = np.empty((len(chosen), features.dim), np.float32)
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size].tolist()
        batch = images[part] if isinstance(images, Tensor) else images.__getitems__(part).image
        vectors = features(batch.float()).detach().float().cpu()
        if vectors.shape != (len(part), features.dim):
            raise UserError(f"features {features.name}: gave {tuple(vectors.shape)} for {len(part)} images, not "
                            f"{(len(part), features.dim)}; its file does not fit this version.")  # fmt: skip
        if not torch.isfinite(vectors).all():
            raise UserError(f"features {features.name}: not finite for some of the images {part[0]} to {part[-1]}. "
                            "Check them, and the weights, for NaN.")  # fmt: skip
        out[start : start + len(part)] = vectors.numpy()
    return out


def stored_features(
    view: Items, features: Features, cache: Path | None, batch_size: int = 32, items: NDArray[Any] | None = None
) -> Array:
    """Feature vectors of real images: from the cache where they are, else computed and put there.

    A file is found by the store's key, the rows and contrasts, and the network's name and hash; it carries a checksum.
    One that is damaged is computed anew, and one that cannot be written is done without: both are said.

    Args:
        view: of the images; only views of a store are kept on disk.
        features: the network.
        cache: folder of the stores; None keeps nothing.
        batch_size: images at once.
        items: which items of the view, in which order; None for all.

    Returns:
        (N, D) float32.
    """
    chosen = np.arange(len(view)) if items is None else np.asarray(items)
    if cache is None or not isinstance(view, Images):
        return features_of(view, features, batch_size, chosen)
    path = cache / "features" / f"{_key(view, features, chosen)}.npz"
    if (found := _load(path, (len(chosen), features.dim))) is not None:
        return found
    made = features_of(view, features, batch_size, chosen)
    try:
        with whole_file(path) as part:
            np.savez(part, features=made, checksum=np.array(_checksum(made)))
    except UserError as error:
        log.warning("features are not kept: %s", error)
    return made


def _key(view: Images, features: Features, items: NDArray[Any]) -> str:
    said = [view.name, view.store.path.name, ",".join(view.contrasts), features.name, features.hash, str(features.dim)]
    digest = hashlib.sha256("\0".join(said).encode())
    for column in (view.rows[items], view.contrast[items]):
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    return f"{view.store.path.name}-{digest.hexdigest()[:20]}"


def _load(path: Path, shape: tuple[int, int]) -> Array | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found: Array = file["features"]
            if found.shape == shape and found.dtype == np.float32 and str(file["checksum"]) == _checksum(found):
                return found
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    log.warning("%s: damaged; the features are computed again", path)
    return None


def _checksum(features: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(features).tobytes()).hexdigest()

"""A data set of smooth noise, written straight into a store: for timing what reads it, in any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_synth.data.base import MRIDataModule
from mri_synth.data.prepare import Preparation
from mri_synth.data.settings import SplitSettings
from mri_synth.data.store import Prepared, Store, open_or_build

PER_SUBJECT = 100


@lru_cache(maxsize=2)
def smooth(subject: int, size: int) -> NDArray[np.float32]:
    """The slices of one subject: (100, size, size) smooth noise in [-1, 1]."""
    noise = np.random.default_rng([7, subject]).standard_normal((PER_SUBJECT, 16, 16), np.float32)
    weights = np.maximum(0, 1 - np.abs(np.linspace(0, 15, size)[:, None] - np.arange(16))).astype(np.float32)
    return np.clip(0.5 * (weights @ noise @ weights.T), -1, 1).astype(np.float32)


@dataclass(kw_only=True, eq=False)
class SmoothNoise(MRIDataModule):
    """A data module over a store of smooth noise; only the preparation of files is left out.

    Attributes:
        items: training slices; validation has one subject more.
    """

    items: int = 2_000

    def _open(self) -> Store:
        if self._store is None:
            assert self.cache is not None
            self._scans, self._classes = [], ()
            self.preparation = Preparation(("T1",), self.plane, self.size, self.fit, None, self.slices, self.intensity)
            self._store = open_or_build(Path(self.cache), f"smooth-{self.size}-{self.items}", self.size, self._subjects)
        return self._store

    def _subjects(self) -> Iterator[Prepared]:
        subjects = -(-self.items // PER_SUBJECT)
        for subject in range(subjects + 1):
            images = smooth(subject, self.size)[: self.items - subject * PER_SUBJECT if subject < subjects else None]
            n = len(images)
            columns: dict[str, NDArray[Any]] = {
                "slice": np.arange(n), "position_mm": np.arange(n), "label": np.full(n, -1), "foreground": np.ones(n),
            }  # fmt: skip
            about = {"subject": f"{subject:05d}", "session": "", "label": None, "age": None, "sex": None, "site": None,
                     "split": "train" if subject < subjects else "val", "path": f"{subject:05d}",
                     "spacing_mm": [1.0, 1.0]}  # fmt: skip
            yield Prepared({"T1": images}, columns, about, [])


def our_data(cache: str, items: int, size: int, batch: int) -> MRIDataModule:
    """The data module, set up as `mri_synth.run` does it."""
    data = SmoothNoise(cache=cache, items=items, size=size, batch_size=batch, split=SplitSettings(by="given"))
    data.prepare_data()
    data.setup()
    return data

"""The view of what learns from captions: slices with the facts that are known of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth import captions
from mri_synth.data.batch import Batch
from mri_synth.data.store import MASK, Store
from mri_synth.data.views import Images, Reading

SEXES = ("F", "M")
_TURNED = 45.0
"""Degrees of rotation beyond which left is no longer left."""


class Captioned(Images):
    """Slices of every wanted contrast, and in `facts` what is known of them, from which captions are made.

    The facts are those of the stored slice: what augmentation does to it must leave left on the left.
    """

    name = "captions"

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        super().__init__(store, rows, contrasts, how)
        self._sites = {name: k for k, name in enumerate(sites(store))}
        self._place = places(store) if self.how.plane else np.full(store.rows, -1)
        self._area = np.asarray([np.prod(s["spacing_mm"]) for s in store.studies], np.float32)

    @staticmethod
    def turns(augment: Mapping[str, Any]) -> str:
        """Why captions would not be true of images augmented so.

        Args:
            augment: `data.augment`.

        Returns:
            The reason with the way out; "" where they are.
        """
        if augment.get("flip"):
            return (f"data.augment.flip={augment['flip']} would put the left side on the right under captions that say "
                    "left; leave it 0 (model.flip swaps the words, too)")  # fmt: skip
        if (turn := augment.get("rotate_deg", 0.0)) > _TURNED:
            return (f"data.augment.rotate_deg={turn:g} would turn the left side away from the left under captions that "
                    f"say left; allowed: at most {_TURNED:g}")  # fmt: skip
        return ""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch with its facts."""
        batch = super().__getitems__(indices)
        return replace(batch, facts=self._facts(batch, np.asarray(indices)))

    def _facts(self, batch: Batch, items: NDArray[Any]) -> Tensor:
        """(B, F) int64, columns as in `captions.FACTS`."""
        rows, count = self.rows[items], len(items)
        facts = torch.full((count, len(captions.FACTS)), -1)
        facts[:, captions.CONTRAST] = torch.from_numpy(self.contrast[items])
        if self.how.plane:
            facts[:, captions.PLANE] = captions.PLANES.index(self.how.plane)
        facts[:, captions.PLACE] = torch.from_numpy(self._place[rows])
        if batch.mask is None:
            facts[:, captions.CLASS] = batch.label if batch.label is not None else -1
        else:
            self._lesions(facts, batch, rows)
        assert batch.age is not None
        facts[:, captions.AGE] = torch.where(batch.age >= 0, (batch.age / 10).floor().clamp(0, 11), -1.0).long()
        facts[:, captions.SEX] = torch.tensor([SEXES.index(sex) if sex in SEXES else -1 for sex in batch.sex])
        facts[:, captions.SITE] = torch.tensor([self._sites.get(site, -1) for site in batch.site])
        return facts

    def _lesions(self, facts: Tensor, batch: Batch, rows: NDArray[Any]) -> None:
        assert batch.mask is not None
        known = torch.from_numpy(self.store.table[f"row_{MASK}"][rows] >= 0)
        facts[:, captions.LESION] = torch.where(known, batch.mask.flatten(1).any(1).long(), -1)
        if self.how.plane in ("axial", "coronal"):
            facts[:, captions.SIDE] = captions.sides(batch.mask, batch.image)
        if self.how.plane:  # the pixels of pictures have no size
            area = torch.from_numpy(self._area[self.store.table["study"][rows]])
            facts[:, captions.SIZE] = captions.sizes(batch.mask, area)


def sites(store: Store) -> tuple[str, ...]:
    """Where the data were measured.

    Args:
        store: all of them.

    Returns:
        Names, sorted.
    """
    return tuple(sorted({s["site"] for s in store.studies if s["site"]}))


def places(store: Store) -> NDArray[np.int64]:
    """In which third of the slices of its study a slice lies, from the inferior, posterior or left end.

    Args:
        store: of volumes.

    Returns:
        (rows,) 0, 1 or 2; -1 where a study has fewer than three places.
    """
    study, at = store.table["study"].astype(np.int64), store.table["position_mm"].astype(np.float64)
    low, high = np.full(len(store.studies), np.inf), np.full(len(store.studies), -np.inf)
    np.minimum.at(low, study, at)
    np.maximum.at(high, study, at)
    extent = (high - low)[study]
    third = np.minimum((3 * (at - low[study]) / np.where(extent > 0, extent, 1)).astype(np.int64), 2)
    slices = np.bincount(study, minlength=len(store.studies))[study]
    return np.where((slices >= 3) & (extent > 0), third, -1)

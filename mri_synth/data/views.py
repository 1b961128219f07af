"""Views: what a method sees of a data set. One small class each; `Needs.view` names one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mri_synth.data.batch import Batch
from mri_synth.data.store import MASK, SCALE, Store

_ROWS_AT_ONCE = 8
_STEP = np.float32(1 / SCALE)


class Images(Dataset[Batch]):
    """Every slice of every wanted contrast is an item of its own, label and mask beside it where there are any.

    Args:
        store: where the slices are.
        rows: positions in the store's table, of the split.
        contrasts: wanted, in order.

    Attributes:
        contrast: (N,) index into `contrasts` of each item.
        codes: contrast to the codes of all its slices under a first stage; None without.
    """

    name: ClassVar[str] = "images"
    least_contrasts: ClassVar[int] = 1

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str]) -> None:
        self.store = store
        self.contrasts = tuple(contrasts)
        self.codes: Mapping[str, NDArray[Any]] | None = None
        chosen = [(row, c) for c, name in enumerate(contrasts) for row in rows[self._has(name, rows)].tolist()]
        chosen = [item for item in sorted(chosen) if self._wanted(item[0])]
        self.rows, self.contrast = np.asarray(chosen, np.int64).reshape(-1, 2).T
        field = [[s[name] for s in store.studies] for name in ("subject", "sex", "site", "age")]
        self._subject, self._sex, self._site = (np.asarray([v or "" for v in f], object) for f in field[:3])
        self._age = np.asarray([np.nan if a is None else a for a in field[3]], np.float32)

    def _has(self, name: str, rows: NDArray[Any]) -> NDArray[np.bool_]:
        column: NDArray[Any] | None = self.store.table.get(f"row_{name}")
        return np.zeros(len(rows), bool) if column is None else column[rows] >= 0

    def _wanted(self, row: int) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def subjects(self) -> NDArray[Any]:
        """(N,) subject names of the items."""
        return self._subject[self.store.table["study"][self.rows]]  # type: ignore[no-any-return]

    def __getitem__(self, index: int) -> Batch:
        """One item as a batch of one; loaders ask for whole batches."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch, read at once.

        Args:
            indices: items of this view.

        Returns:
            Their batch, image (B, C, H, W).
        """
        items = np.asarray(indices)
        rows, contrast = self.rows[items], self.contrast[items]
        table = self.store.table
        study = table["study"][rows]
        mask = self.read(MASK, rows) if f"row_{MASK}" in table else None
        return Batch(
            image=self.image(rows, contrast),
            target=self.target(rows, contrast),
            index=torch.from_numpy(items),
            label=torch.from_numpy(table["label"][rows].astype(np.int64)),
            mask=mask,
            subject=tuple(self._subject[study]),
            contrast=tuple(self.contrasts[c] for c in contrast),
            slice=torch.from_numpy(table["slice"][rows].astype(np.int64)),
            position_mm=torch.from_numpy(table["position_mm"][rows]),
            age=torch.from_numpy(self._age[study]),
            sex=tuple(self._sex[study]),
            site=tuple(self._site[study]),
            codes=None if self.codes is None else self._codes(self.codes, rows, contrast),
        )

    def _codes(self, codes: Mapping[str, NDArray[Any]], rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor:
        """(B, h, w) int64."""
        each = [codes[name][self.store.table[f"row_{name}"][row]] for name, row in zip(
            (self.contrasts[c] for c in contrast), rows, strict=True)]  # fmt: skip
        return torch.from_numpy(np.stack(each).astype(np.int64))

    def image(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor:
        """(B, 1, H, W) float32: each row in the contrast of its item."""
        if len(self.contrasts) == 1:
            return self.read(self.contrasts[0], rows)
        out = torch.empty(len(rows), 1, self.store.size, self.store.size)
        for c in np.unique(contrast):
            here = contrast == c
            out[torch.from_numpy(here)] = self.read(self.contrasts[c], rows[here])
        return out

    def target(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor | None:
        """What the image is to become, where the view offers it."""
        return None

    def read(self, name: str, rows: NDArray[Any]) -> Tensor:
        """(B, 1, H, W) float32 of one contrast in [-1, 1], or of the mask in {0, 1} (0 where there is none)."""
        at = self.store.table[f"row_{name}"][rows]
        if name == MASK:
            raw = torch.from_numpy(self.store.read(name, np.maximum(at, 0)))[:, None]
            return raw.float() * torch.from_numpy(at >= 0)[:, None, None, None]
        images = np.empty((len(rows), self.store.size, self.store.size), np.float32)
        # A few rows at a time stay in the processor's cache from the read to the last multiplication. NumPy and not
        # torch: one thread is fast enough, and starting several costs more than it saves beside a busy neighbour.
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = images[start : start + _ROWS_AT_ONCE]
            np.copyto(part, self.store.read(name, at[start : start + _ROWS_AT_ONCE]))
            np.multiply(part, _STEP, out=part)
        return torch.from_numpy(images)[:, None]


class Labelled(Images):
    """Images whose class is known."""

    name = "labelled"

    def _wanted(self, row: int) -> bool:
        return bool(self.store.table["label"][row] >= 0)


class Pairs(Images):
    """Slices that exist in every wanted contrast: all but the last are the channels of `image`, the last `target`."""

    name = "pairs"
    least_contrasts = 2

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str]) -> None:
        for name in contrasts:
            rows = rows[self._present(store, name)[rows]]
        super().__init__(store, rows, contrasts[:1])
        self.sources, self.goal = tuple(contrasts[:-1]), contrasts[-1]

    @staticmethod
    def _present(store: Store, name: str) -> NDArray[np.bool_]:
        column: NDArray[Any] = store.table.get(f"row_{name}", np.full(store.rows, -1))
        return column >= 0

    def image(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor:
        """(B, sources, H, W) float32."""
        return torch.cat([self.read(name, rows) for name in self.sources], 1)

    def target(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor | None:
        """(B, 1, H, W) float32."""
        return self.read(self.goal, rows)

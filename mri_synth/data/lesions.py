"""The view of lesion transfer: healthy slices, and lesioned ones whose lesions they are to get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from mri_synth.data.batch import Batch
from mri_synth.data.settings import Source
from mri_synth.data.store import MASK, Store
from mri_synth.data.views import Images, Reading
from mri_synth.errors import UserError


class Lesions(Images):
    """Slices without lesion as `image`, and as `target` slices with one, whose mask is `mask`.

    In training an item is a healthy slice, and its target is drawn anew every epoch among lesioned slices that lie
    about as high, of another subject where there is one. In validation and test an item is a lesioned slice, and its
    image the same slice without the lesion, where the data know it, and the batch says so by `paired`; else the
    healthy slice nearest in place, of another subject where there is one. Slices without a mask are left out: whether
    they hold a lesion is not known.
    """

    name = "lesions"
    twins = True
    near: ClassVar[int] = 32
    """Lesioned slices that a training item may meet in an epoch, at least: those nearest to its place."""

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        super().__init__(store, rows, contrasts, how)
        if len(contrasts) != 1:  # only a folder's contrasts are not known before it is read
            wanted = self.misfit(contrasts, "contrasts")
            raise UserError(f"data.contrasts=[{','.join(contrasts)}]: the view '{self.name}' needs {wanted}")
        self.draws_anew, self.all_rows = self.how.training, rows
        marked = _marked(store)[self.rows]
        self.lesioned, self.healthy = self.rows[marked > 0], self.rows[marked == 0]
        if self.how.training and len(self.rows) and not (len(self.lesioned) and len(self.healthy)):
            raise UserError(self._lacks(bool((marked >= 0).any())))
        chosen = self.healthy if self.how.training else self.lesioned
        self.rows = chosen if len(self.lesioned) and len(self.healthy) else chosen[:0]
        self.contrast = np.zeros(len(self.rows), np.int64)
        self._epoch, self._drawn = -1, np.zeros(0, np.int64)

    def _lacks(self, masks: bool) -> str:
        if not masks:
            return (
                "no slice of the training split has a mask of its lesions, and the view 'lesions' needs it: data with "
                "label maps, such as data=phantom or data=brats, or a folder in which they lie beside the images"
            )
        what = "without" if len(self.lesioned) else "with"
        return (
            f"no slice of the training split is {what} lesion, and the view 'lesions' needs both kinds; see "
            "data.train_classes=null, data.slices, data.split, and with data=phantom data.lesions=half"
        )

    @classmethod
    def misfit(cls, contrasts: Sequence[str], source: Source) -> str:
        """One contrast: a lesion looks otherwise in another."""
        return "" if len(contrasts) == 1 else "one contrast, such as data.contrasts=[FLAIR]"

    def every(self) -> Images:
        """All slices as images of their own, each with its own mask."""
        return Images(self.store, self.all_rows, self.contrasts, self.how)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch of items, in training of epoch * len + item."""
        epoch, items = np.divmod(np.asarray(indices), max(len(self), 1))
        batch = super().__getitems__(items.tolist())
        if self.how.training:
            theirs = self.drawn(int(epoch[0]))[items]
            return replace(batch, target=self.read(self.contrasts[0], theirs), mask=self.read(MASK, theirs))
        own = self.rows[items]
        image = self.read(self.contrasts[0], np.asarray([self._nearest(int(row)) for row in own]))
        paired = torch.tensor([int(row) in self.how.healthy for row in own])
        for k in torch.nonzero(paired).flatten().tolist():
            image[k, 0] = torch.from_numpy(self.how.healthy[int(own[k])])
        return replace(batch, image=image, target=batch.image, paired=paired)

    def _nearest(self, row: int) -> int:
        """The healthy slice nearest in place to a lesioned one."""
        place, who = self.store.table["position_mm"], self._subject[self.store.table["study"]]
        others = self.healthy[who[self.healthy] != who[row]]
        others = others if len(others) else self.healthy
        return int(others[np.abs(place[others] - place[row]).argmin()])

    def drawn(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the lesioned slices that all items of an epoch meet.

        Args:
            epoch: of training.

        Returns:
            (N,), a function of seed and epoch alone.
        """
        if epoch == self._epoch:
            return self._drawn
        rng = np.random.default_rng([self.how.seed, epoch, 6])
        place, who = self.store.table["position_mm"], self._subject[self.store.table["study"]]
        order = rng.permutation(self.lesioned)
        order = order[np.argsort(place[order], kind="stable")]  # by place, and by chance among those of one place
        width = min(max(self.near, len(order) // 8), len(order))
        ends = [np.searchsorted(place[order], place[self.rows], side) for side in ("left", "right")]
        first = np.clip((ends[0] + ends[1] - width) // 2, 0, len(order) - width)
        tries = order[first[:, None] + rng.integers(0, width, (len(self.rows), 8))]
        strange = who[tries] != self.subjects[:, None]
        met: NDArray[np.int64] = tries[np.arange(len(tries)), strange.argmax(1)]
        for item in np.flatnonzero(~strange.any(1)):
            others = order[who[order] != self.subjects[item]]
            met[item] = rng.choice(others) if len(others) else met[item]
        self._epoch, self._drawn = epoch, met
        return met


@lru_cache(maxsize=4)
def _marked(store: Store) -> NDArray[np.int8]:
    """(rows,) 1 where a slice's mask marks something, 0 where it is empty, -1 where there is none."""
    at = store.table.get(f"row_{MASK}", np.full(store.rows, -1))
    out = np.full(store.rows, -1, np.int8)
    here = np.flatnonzero(at >= 0)
    for start in range(0, len(here), 256):
        part = here[start : start + 256]
        out[part] = store.read(MASK, at[part]).any((1, 2))
    return out

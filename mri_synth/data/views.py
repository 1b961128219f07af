"""Views: what a method sees of a data set. One small class each; `Needs.view` names one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mri_synth.data import derived
from mri_synth.data.batch import Batch
from mri_synth.data.settings import Source
from mri_synth.data.store import MASK, SCALE, Store

_ROWS_AT_ONCE = 8
_STEP = np.float32(1 / SCALE)


@dataclass(frozen=True)
class Reading:
    """How a data module wants its slices read, beyond which.

    Attributes:
        source: what a target is made of.
        classes: class names by label.
        seed: of what is drawn.
        training: whether the items are trained on.
        partners: `MRIDataModule.partners()`.
        healthy: row of a slice with a lesion to the same without it, (H, W) float32 in [-1, 1], where that is known.
        plane: of the slices; None for pictures.
    """

    source: Source = "contrasts"
    classes: tuple[str, ...] = ()
    seed: int = 0
    training: bool = False
    partners: Mapping[int, int] = field(default_factory=dict)
    healthy: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    plane: str | None = None


class Images(Dataset[Batch]):
    """Every slice of every wanted contrast is an item of its own, label and mask beside it where there are any.

    Args:
        store: where the slices are.
        rows: positions in the store's table, of the split.
        contrasts: wanted, in order.
        how: else.

    Attributes:
        draws_anew: whether items change with the epoch, which is then told with their numbers.
        jobs: whether an item is a job and not an example: val and test then have those of train, and training goes
            through all of them in order.
        rounds: times that an epoch of training goes through the items.
        twins: whether val and test want what slices with a lesion are without it; the view is then of masks.
        sources: what the channels of `image` are, where there is a target.
        goal: contrast of the target.
        contrast: (N,) index into `contrasts` of each item.
        codes: contrast to the codes of all its slices under a first stage; None without.
    """

    name: ClassVar[str] = "images"
    draws_anew: bool = False
    jobs: ClassVar[bool] = False
    rounds: ClassVar[int] = 1
    twins: ClassVar[bool] = False
    sources: tuple[str, ...] = ()
    goal: str | None = None

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        self.store, self.how = store, how or Reading()
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

    @classmethod
    def misfit(cls, contrasts: Sequence[str], source: Source) -> str:
        """What the view needs and does not get.

        Args:
            contrasts: at least one.
            source: what a target is made of.

        Returns:
            In words, with an example; "" where it fits.
        """
        return ""

    @staticmethod
    def remade(batch: Batch, source: Source, classes: tuple[str, ...]) -> Batch:
        """An augmented batch, with what was made of images made of them again.

        Args:
            batch: after augmentation.
            source: what a target is made of.
            classes: names by label.

        Returns:
            The batch.
        """
        return batch

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
    """Slices with what they are made of: `image` holds the sources, `target` the last contrast.

    Sources are the other contrasts, where a slice exists in all of them; or the mask, -1 and 1; or what
    `mri_synth.data.derived` makes of the target.
    """

    name = "pairs"

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        source = Reading().source if how is None else how.source
        self.given = tuple(contrasts[:-1]) if source == "contrasts" else (MASK,) if source == "mask" else ()
        for name in (*self.given, contrasts[-1]):
            rows = rows[self._has_in(store, name)[rows]]
        super().__init__(store, rows, contrasts[:1] if source == "contrasts" else contrasts[-1:], how)
        self.goal = contrasts[-1]
        self.sources = self.given or derived.channels(self.how.classes)

    @classmethod
    def misfit(cls, contrasts: Sequence[str], source: Source) -> str:
        """Sources that are contrasts need one beside the target."""
        if source != "contrasts" or len(contrasts) > 1:
            return ""
        return "two contrasts or more, such as data.contrasts=[T1,T2], or data.source=mask or derived"

    @staticmethod
    def _has_in(store: Store, name: str) -> NDArray[np.bool_]:
        column: NDArray[Any] = store.table.get(f"row_{name}", np.full(store.rows, -1))
        return column >= 0

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch; derived sources are made of its target."""
        batch = super().__getitems__(indices)
        if not self.given:
            return self.remade(batch, "derived", self.how.classes)
        return batch

    @staticmethod
    def remade(batch: Batch, source: Source, classes: tuple[str, ...]) -> Batch:
        """Masks and derived planes stay sharp, and of their few values."""
        if source == "mask":
            assert batch.mask is not None
            return replace(batch, image=2 * batch.mask - 1)
        if source == "derived":
            assert batch.target is not None
            assert batch.label is not None
            return replace(batch, image=derived.derive(batch.target, batch.label, classes))
        return batch

    def image(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor:
        """(B, sources, H, W) float32."""
        if not self.given:
            return torch.empty(len(rows), 0, self.store.size, self.store.size)
        channels = [self.read(name, rows) for name in self.given]
        return torch.cat([2 * c - 1 if name == MASK else c for name, c in zip(self.given, channels, strict=True)], 1)

    def target(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor | None:
        """(B, 1, H, W) float32."""
        assert self.goal is not None
        return self.read(self.goal, rows)


class Unpaired(Images):
    """Slices of the first of two contrasts as `image`, and as `target` slices of the second.

    In training the target is drawn anew every epoch, each slice of the second contrast about equally often, and never
    one of the same subject where there is another. In validation and test it is the same slice where the data have it,
    and the batch says so by `paired`.
    """

    name = "unpaired"

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        super().__init__(store, rows, contrasts[:1], how)
        self.draws_anew = self.how.training
        self.sources, self.goal = (contrasts[0],), contrasts[1]
        self.others = np.sort(rows[self._has(self.goal, rows)])
        self._epoch, self._drawn = -1, np.zeros(0, np.int64)
        if not len(self.others):  # as empty as a split without the first contrast
            self.rows, self.contrast = self.rows[:0], self.contrast[:0]

    @classmethod
    def misfit(cls, contrasts: Sequence[str], source: Source) -> str:
        """From one contrast to another, not from a mask or what is derived."""
        fits = len(contrasts) == 2 and source == "contrasts"
        return "" if fits else "two contrasts, such as data.contrasts=[T1,T2], and data.source=contrasts"

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch of items, in training of epoch * len + item."""
        epoch, items = np.divmod(np.asarray(indices), max(len(self), 1))
        batch = super().__getitems__(items.tolist())
        rows, paired = (self.drawn(int(epoch[0]))[items], None) if self.how.training else self._same(items)
        return replace(batch, target=self.read(str(self.goal), rows), paired=paired)

    def _same(self, items: NDArray[Any]) -> tuple[NDArray[Any], Tensor]:
        """Rows of the targets of validation and test, and whether they show what the items show."""
        own = self.rows[items]
        partner = np.asarray([self.how.partners.get(int(row), -1) for row in own])
        partner = np.where(self._has(str(self.goal), own), own, partner)
        return np.where(partner >= 0, partner, self.others[items % len(self.others)]), torch.from_numpy(partner >= 0)

    def drawn(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the second contrast for all items of an epoch.

        Args:
            epoch: of training.

        Returns:
            (N,), a function of seed and epoch alone.
        """
        if epoch == self._epoch:
            return self._drawn
        rng = np.random.default_rng([self.how.seed, epoch, 3])
        rounds = -(-len(self) // len(self.others))
        order = np.concatenate([rng.permutation(self.others) for _ in range(rounds)])[: len(self)]
        theirs, mine = self._subject[self.store.table["study"]], self.subjects
        for item in np.flatnonzero(theirs[order] == mine):  # they change places with one whom it suits too
            suits = np.flatnonzero((theirs[order] != mine[item]) & (theirs[order[item]] != mine))
            if len(suits):
                other = rng.choice(suits)
                order[[item, other]] = order[[other, item]]
            elif len(strange := self.others[theirs[self.others] != mine[item]]):
                order[item] = rng.choice(strange)
        self._epoch, self._drawn = epoch, order
        return order

"""The view of style transfer: a content image, a style image, and the mask where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.data.store import MASK, Store
from mri_synth.data.views import Images, Reading
from mri_synth.errors import UserError


class StylePairs(Images):
    """Jobs: `image` is a slice of the first contrast, `target` one of the last contrast that lends its style.

    The style is another subject's, the slice nearest in place (with one contrast of one subject there is none); where
    the contents are restricted to their masks, nearest of those with a mask, which is `target_mask`. With more slices
    than `limit`, so many are drawn by seed, spread over the subjects. Val and test have the same jobs.
    """

    name = "style_pairs"
    jobs = True
    limit: ClassVar[int | None] = None
    masked: ClassVar[bool] = False
    styled: ClassVar[bool] = True

    def __init__(self, store: Store, rows: NDArray[Any], contrasts: Sequence[str], how: Reading | None = None) -> None:
        super().__init__(store, rows, contrasts[:1], how)
        self.sources, self.goal = (contrasts[0],), contrasts[-1]
        chosen = np.arange(len(self.rows))
        if self.masked:
            chosen = chosen[self._marked(self.rows)]
            if not len(chosen) and len(self.rows):
                raise UserError("model.region=mask: no slice of the training split has anything in its mask; give data "
                                "with masks, such as data=phantom or brats, or model.region=brain")  # fmt: skip
        if self.limit is not None and len(chosen) > self.limit:
            draw = np.random.default_rng([self.how.seed, 4])
            chosen = np.asarray([draw.choice(part) for part in np.array_split(chosen, self.limit)])
        self.rows, self.contrast = self.rows[chosen], self.contrast[chosen]
        self.styles = self._styles(np.sort(rows[self._has(self.goal, rows)])) if self.styled else None

    def _marked(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Which slices have something in their mask."""
        there = f"row_{MASK}" in self.store.table
        return np.asarray([there and bool(self.read(MASK, rows[k : k + 1]).any()) for k in range(len(rows))], bool)

    def _styles(self, others: NDArray[Any]) -> NDArray[np.int64]:
        """Row of each item's style image."""
        marked = self._marked(others) if self.masked else np.zeros(len(others), bool)
        table, found = self.store.table, []
        subject, place = self._subject[table["study"]], table["position_mm"]
        for item, row in enumerate(self.rows):
            strange = others[subject[others] != subject[row]]
            if (lesioned := marked & (subject[others] != subject[row])).any():  # the style of a lesion, from another
                strange = others[lesioned]
            if not len(strange):
                strange = others if self.goal != self.contrasts[0] else others[others != row]
            if not len(strange):
                raise UserError(f"no slice lends its style: {subject[row]} is the only subject with {self.goal}; give "
                                "data.contrasts=[CONTENT,STYLE], more subjects, or model.style=PICTURE")  # fmt: skip
            away = np.abs(place[strange] - place[row])
            near = strange[away <= away.min() + 1e-3]
            found.append(int(np.random.default_rng([self.how.seed, 5, item]).choice(near)))
        return np.asarray(found, np.int64)

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """A whole batch of jobs."""
        self._asked = np.asarray(indices)
        batch = super().__getitems__(indices)
        if not self.masked or self.styles is None:
            return batch
        return replace(batch, target_mask=self.read(MASK, self.styles[self._asked]))

    def target(self, rows: NDArray[Any], contrast: NDArray[Any]) -> Tensor | None:
        """(B, 1, H, W) float32."""
        if self.styles is None:
            return None
        return self.read(str(self.goal), self.styles[self._asked])


@lru_cache
def style_pairs(limit: int | None, rounds: int, masked: bool = False, styled: bool = True) -> type[StylePairs]:
    """The view under a method's arguments.

    Args:
        limit: jobs at most; None for all slices.
        rounds: times that an epoch goes through them.
        masked: only slices whose mask has something in it.
        styled: the data lend the styles; False where they come from files.

    Returns:
        The same class for the same arguments.
    """
    return type("StylePairs", (StylePairs,), {"limit": limit, "rounds": rounds, "masked": masked, "styled": styled,
                                             "__module__": __name__})  # fmt: skip

"""Real images that samples are compared with: which splits, and in halves that share no subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.metrics.extraction import Array, Items

PROTOCOL = (
    "samples are compared with real images that the model was not trained on (val and test) where these can be parted "
    "into two halves of n images each that share no subject, and else with all real images, train included; a copied "
    "training image then counts as a good sample, which is why the memorisation figures stand beside. n is the same "
    "everywhere in a Fréchet distance, fake against real and real against real"
)
"""Said beside every comparison."""


@dataclass(frozen=True)
class Reals:
    """Real images of one split with their features.

    Attributes:
        view: where the images are.
        items: (N,) which items of the view.
        features: (N, D) float32.
    """

    view: Items
    items: NDArray[np.int64]
    features: Array

    @property
    def subjects(self) -> NDArray[Any]:
        """(N,) subject names."""
        return np.asarray(self.view.subjects)[self.items]

    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, C, H, W) in [-1, 1] of these positions among `items`."""
        return self.view.__getitems__(self.items[list(indices)].tolist()).image


@dataclass(frozen=True)
class Pool:
    """Several splits as one set.

    Attributes:
        splits: names.
        parts: their images, in the order of `splits`.
    """

    splits: tuple[str, ...]
    parts: tuple[Reals, ...]

    @classmethod
    def of(cls, reals: Mapping[str, Reals], splits: Sequence[str]) -> Pool:
        """Those of the splits that have images."""
        kept = tuple(s for s in splits if s in reals and len(reals[s].items))
        return cls(kept, tuple(reals[s] for s in kept))

    def __len__(self) -> int:
        return sum(len(p.items) for p in self.parts)

    @property
    def features(self) -> Array:
        """(N, D) float32."""
        return np.concatenate([p.features for p in self.parts])

    @property
    def subjects(self) -> NDArray[Any]:
        """(N,) subject names; images whose subject is unknown ("") count as subjects of their own."""
        names = np.concatenate([p.subjects.astype(str) for p in self.parts]).astype(object)
        unknown = np.flatnonzero(names == "")
        names[unknown] = [f"\0{i}" for i in unknown]
        return names.astype(str)

    def images(self, indices: Sequence[int]) -> Tensor:
        """(B, C, H, W) in [-1, 1] of these positions in the pool."""
        ends = np.cumsum([len(p.items) for p in self.parts])
        found = []
        for i in indices:
            part = int(np.searchsorted(ends, i, side="right"))
            found.append(self.parts[part].images([i - (int(ends[part - 1]) if part else 0)]))
        return torch.cat(found)


def halves(subjects: NDArray[Any], draws: int, seed: int = 0) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Random halves of a set that share no subject.

    Subjects come in random order, each to the half that has fewer images by then.

    Args:
        subjects: (N,) whose image each is.
        draws: pairs of halves wanted.
        seed: of the order.

    Returns:
        For each draw the images of both halves, in random order; one half is empty if there is one subject.
    """
    _, groups, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(draws):
        side, counts = np.zeros(len(sizes), int), [0, 0]
        for subject in rng.permutation(len(sizes)):
            side[subject] = int(counts[1] < counts[0])
            counts[side[subject]] += int(sizes[subject])
        order = rng.permutation(len(subjects))
        out.append((order[side[groups[order]] == 0], order[side[groups[order]] == 1]))
    return out

"""How well text and slices agree: retrieval both ways, and facts that are guessed by the nearest prompt."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mri_synth.captions import FACTS, SEEN
from mri_synth.losses.contrastive import recall

KS = (1, 5, 10)
_GUESS = (
    "share of slices whose nearest prompt, by the cosine with the mean embedding of all wordings of each value that "
    "occurs in the split, is of the true value; slices of which it is unknown or does not apply are left out"
)
_RECALL = (
    "share of {} for which one that says the same facts is among the {} nearest by cosine, of all in the split; "
    "captions say all that is known"
)
WAYS = {"caption": "slices", "image": "captions"}
"""What is found, and what finds it."""
PROTOCOLS: dict[str, str] = {f"zero_shot_{fact}": _GUESS for fact in FACTS} | {
    f"recall_{k}_{way}": _RECALL.format(who, k) for way, who in WAYS.items() for k in KS
}
NOTES = {
    "baseline/zero_shot_contrast": "here and beside the other zero shots: the commonest value in place of every guess",
    "baseline/recall_1_caption": "here and beside the other recalls: of a random order",
}


def overall(guesses: Mapping[int, Tensor], facts: Tensor) -> Tensor:
    """Mean over what slices show (contrast, plane, place, class, lesion, its side and size) of the balanced accuracy.

    `mean_f mean_v P(guess = v | fact f = v)`, f over the facts that differ between the slices: rare values count as
    much as common ones, so that guessing the commonest is worth one over the number of values

    Args:
        guesses: fact to (N,).
        facts: (N, F) the truth, -1 unknown.

    Returns:
        Scalar in [0, 1]; over age, sex and site where nothing else differs.
    """
    chosen = [f for f in guesses if FACTS[f] in SEEN] or list(guesses)
    each = []
    for f in chosen:
        values = facts[:, f].unique()
        each.append(
            torch.stack([(guesses[f] == v)[facts[:, f] == v].float().mean() for v in values[values >= 0]]).mean()
        )
    return torch.stack(each).mean() if each else facts.new_zeros((), dtype=torch.float32)


def scores(guesses: Mapping[int, Tensor], facts: Tensor) -> dict[str, Tensor]:
    """Whether each fact of each slice is guessed.

    `[argmax_v cos(z_image, mean of the prompts of v) = true value]`

    Args:
        guesses: fact to (N,).
        facts: (N, F) the truth.

    Returns:
        "zero_shot_FACT" to (N,) float32, 0 or 1, NaN where the fact is unknown.
    """
    right = {f: torch.where(facts[:, f] >= 0, (g == facts[:, f]).float(), torch.nan) for f, g in guesses.items()}
    return {f"zero_shot_{FACTS[f]}": values for f, values in right.items()}


def recalls(z_image: Tensor, z_text: Tensor, facts: Tensor, part: int = 1024) -> dict[str, Tensor]:
    """Whether slices find captions that say the same facts as their own, and captions such slices.

    `R@k_i = [a caption with the facts of slice i is among the k nearest to it]`, and the same from captions to slices

    Args:
        z_image: (N, D) of unit length.
        z_text: (N, D) of their captions.
        facts: (N, F) which those say.
        part: queries at a time; bounds the memory.

    Returns:
        "recall_K_caption" and "recall_K_image" to (N,) float32, 0 or 1.
    """
    same = facts.unique(dim=0, return_inverse=True)[1]
    out = {}
    for way, (queries, found) in {"caption": (z_image, z_text), "image": (z_text, z_image)}.items():
        for k in KS:
            out[f"recall_{k}_{way}"] = torch.cat([
                recall(q @ found.T, own[:, None] == same, k)
                for q, own in zip(queries.split(part), same.split(part), strict=True)
            ])  # fmt: skip
    return out


def chance(facts: Tensor) -> dict[str, float]:
    """What is scored without looking.

    Args:
        facts: (N, F) of the test slices.

    Returns:
        "baseline/<score>" of always guessing the commonest value, and of a random order of what may be found.
    """
    known = {name: facts[:, f][facts[:, f] >= 0] for f, name in enumerate(FACTS)}
    counts = {name: values.unique(return_counts=True)[1] for name, values in known.items()}
    out = {f"baseline/zero_shot_{name}": float(c.max() / c.sum()) for name, c in counts.items() if len(c) > 1}
    sizes, n = facts.unique(dim=0, return_counts=True)[1].tolist(), len(facts)
    for k in KS:
        hit = sum(m * (1 - comb(n - m, min(k, n)) / comb(n, min(k, n))) for m in sizes) / n
        out |= {f"baseline/recall_{k}_{way}": hit for way in WAYS}
    return out


EXPLAINED: dict[str, Any] = {
    "zero_shot": overall, **{f"zero_shot_{fact}": scores for fact in FACTS},
    **{f"recall_{k}_{way}": recalls for way in WAYS for k in KS},
}  # fmt: skip
"""Whose docstrings stand under the curves."""


class Seen(Metric):
    """Embeddings and facts of every slice of a split, over all ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("embeddings", "facts", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, z_image: Tensor, facts: Tensor, index: Tensor) -> None:
        """Keep a batch.

        Args:
            z_image: (B, D).
            facts: (B, F).
            index: (B,) positions in the split.
        """
        for state, value in ((self.embeddings, z_image), (self.facts, facts), (self.indices, index)):
            state.append(value.detach())  # type: ignore[union-attr, operator]

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D), (N, F) and (N,) index, in the order of the split."""
        indices = dim_zero_cat(self.indices)  # type: ignore[arg-type]
        order = torch.argsort(indices)
        return dim_zero_cat(self.embeddings)[order], dim_zero_cat(self.facts)[order], indices[order]  # type: ignore[arg-type]

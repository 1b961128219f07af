"""Contrast dropout: one model that makes its goal of whichever sources there are.

In training some sources of an item are taken away. A missing source is a plane of -1, as air is, and beside the sources
stands a plane for each that says whether it is there, 1 or -1: so that a slice without signal is not taken for none.
Constant planes in place of what is missing, and random subsets in training, are those of Sharma & Hamarneh 2019
(arXiv:1904.12200); to tell the network which are there is that of Li et al. 2019 (DiamondGAN, arXiv:1904.12894).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mri_synth.data.batch import Batch
from mri_synth.data.settings import Source
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.metrics.scores import PROTOCOLS, image_scores

if TYPE_CHECKING:
    from mri_synth.models.base import SynthModule

MISSING = -1.0
EVERY_SUBSET = 4
"""Sources up to which every subset is tested; of more, each alone and all but each."""
SCORES = ("ssim", "psnr")


def channels(sources: int, rate: float) -> int:
    """Channels that a generator sees.

    Args:
        sources: number of sources.
        rate: of contrast dropout.

    Returns:
        One for each source, and with dropout one more for each.
    """
    return 2 * sources if rate else sources


def refuses(rate: float, contrasts: Sequence[str], source: Source) -> str:
    """Why there can be no contrast dropout.

    Args:
        rate: that is asked for.
        contrasts: of the data, the last one the goal.
        source: of the data.

    Returns:
        The reason with the way out; "" when there can.
    """
    if not rate or (len(contrasts) != 2 if source == "contrasts" else source == "derived"):
        return ""
    return (
        f"with model.contrast_dropout={rate} needs two sources or more to do without some; "
        "try data.contrasts=[T1,FLAIR,T2], or model.contrast_dropout=0"
    )


def given(model: SynthModule, batch: Batch, draws: int) -> tuple[Tensor, Tensor | None]:
    """What a model's generator gets of a batch; in evaluation all sources, and no dropout.

    Args:
        model: with `contrast_dropout` among its arguments.
        batch: of the view of pairs.
        draws: of the generator's dropout.

    Returns:
        (B, channels, H, W), and (B, draws) uniform numbers, None where none are needed. Both depend on seed, step and
        item alone.
    """
    rate, count = model.hparams["contrast_dropout"], batch.image.shape[1]
    if not model.training or not (rate or draws):
        return told(model, batch.image, None), None
    items = -1 - batch.index.to(batch.image.device)  # augmentation counts them from 0 up
    u = uniform(model.seed, model.global_step, items, count + 1 + draws)
    seen = shown(batch.image, drawn(u[:, : count + 1], rate)) if rate else batch.image
    return seen, u[:, count + 1 :] if draws else None


def told(model: SynthModule, source: Tensor, available: Sequence[str] | None) -> Tensor:
    """What a model's generator gets of sources of which a user says which are there.

    Args:
        model: with `contrast_dropout` among its arguments.
        source: (B, S, H, W) in [-1, 1], the channels of `spec.sources`.
        available: their names; None: all.

    Returns:
        (B, channels, H, W).

    Raises:
        UserError: `available` names no source, or misses one that the model needs.
    """
    rate = model.hparams["contrast_dropout"]
    there = asked(available, model.spec.sources, rate)
    return shown(source, there.to(source.device)) if rate else source


def drawn(u: Tensor, rate: float) -> Tensor:
    """Which sources an item of a training batch has, by uniform numbers.

    Each is missing with probability `rate`; where all would be, one of them, each equally likely, is there.

    Args:
        u: (B, S + 1) in [0, 1), one for each source, and one that says which is kept where all would be missing.
        rate: of contrast dropout, below 1.

    Returns:
        (B, S) bool.
    """
    there, count = u[:, :-1] >= rate, u.shape[1] - 1
    kept = torch.arange(count, device=u.device) == (u[:, -1:] * count).long()
    return torch.where(there.any(1, keepdim=True), there, kept)


def shown(source: Tensor, there: Tensor) -> Tensor:
    """What a generator sees of sources of which some are missing.

    Args:
        source: (B, S, H, W) in [-1, 1]; what stands in the place of a missing one does not matter.
        there: (B, S) bool, or (S,) of all items.

    Returns:
        (B, 2 S, H, W): the sources, planes of -1 where they are missing, and a plane each of 1, or of -1 where missing.
    """
    where = there.expand(len(source), -1)[:, :, None, None]
    planes = torch.where(where, 1.0, -1.0).to(source.dtype).expand_as(source)
    return torch.cat([torch.where(where, source, MISSING), planes], 1)


def asked(available: Sequence[str] | None, names: Sequence[str], rate: float) -> Tensor:
    """Sources that a user says are there.

    Args:
        available: their names; None: all.
        names: of all sources.
        rate: of contrast dropout that the model was trained with.

    Returns:
        (S,) bool.

    Raises:
        UserError: a name that is none of the sources, no name at all, or a missing one without contrast dropout.
    """
    given = list(names) if available is None else list(available)
    known = f"the sources are {', '.join(names)}"
    if unknown := [name for name in given if name not in names]:
        raise UserError(f"available={','.join(given)}: {unknown[0]} is no source of this model; {known}")
    if not given:
        raise UserError(f"available is empty, and of nothing nothing is made; {known}")
    if not rate and (absent := [name for name in names if name not in given]):
        raise UserError(
            f"available={','.join(given)}: this model was trained with all its sources and cannot do without "
            f"{', '.join(absent)}; {known}. Train one with model.contrast_dropout=0.5"
        )
    return torch.tensor([name in given for name in names])


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of sources that a model with contrast dropout is tested on, beside the whole.

    Args:
        names: of all sources.

    Returns:
        Every set that is neither empty nor whole, in order of size; of more than four sources those of one and of all
        but one.
    """
    count, sizes = len(names), range(1, len(names))
    if count > EVERY_SUBSET:
        sizes = range(1, count, count - 2)
    every = (tuple(n for n, here in zip(names, kept, strict=True) if here) for kept in product((1, 0), repeat=count))
    return sorted((s for s in every if len(s) in sizes), key=len)


def score_name(score: str, subset: Sequence[str]) -> str:
    """Name of a subset's score.

    Args:
        score: of `SCORES`.
        subset: names of the sources that are there.

    Returns:
        Such as ssim_T1+FLAIR.
    """
    return f"{score}_{'+'.join(subset)}"


def protocols(names: Sequence[str], rate: float) -> dict[str, str]:
    """How the scores of `subset_scores` are measured.

    Args:
        names: of all sources.
        rate: of contrast dropout.

    Returns:
        Name of a score to protocol; empty without contrast dropout.
    """
    tested = subsets(names) if rate else []
    return {score_name(k, s): f"{PROTOCOLS[k]}; of the named sources alone" for s in tested for k in SCORES}


def subset_scores(model: SynthModule, batch: Batch) -> dict[str, Tensor]:
    """What translations are worth that are made of some sources only.

    Args:
        model: with `contrast_dropout` among its arguments, whose `translate` has the option `available`.
        batch: of the test split.

    Returns:
        ssim_<source>+<source> and psnr_<...> of every subset to (B,); empty without contrast dropout.
    """
    found: dict[str, Tensor] = {}
    if not model.hparams["contrast_dropout"] or batch.target is None:
        return found
    for subset in subsets(model.spec.sources):
        made: Tensor = model.translate(batch.image, available=subset)  # type: ignore[call-arg]
        scores = image_scores(made, batch.target)
        found |= {score_name(k, subset): scores[k] for k in SCORES}
    return found

"""The whole judgement of a set of samples: are they like real images, as varied, and not copies?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.errors import UserError
from mri_synth.metrics import distributions, diversity, frechet, kid, nearest, pool, prdc
from mri_synth.metrics.extraction import Array, Items, features_of, stored_features
from mri_synth.metrics.features import Features
from mri_synth.metrics.pool import Pool, Reals, halves

HELD_OUT = ("val", "test")
SPLITS = ("train", *HELD_OUT)


def judge(
    fakes: Tensor,
    views: Mapping[str, Items],
    features: Features,
    *,
    n: int = 1000,
    draws: int = 5,
    k: int = 5,
    pairs: int = 500,
    at_most: int = 10_000,
    seed: int = 0,
    cache: Path | None = None,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Samples against real images in the space of one feature network.

    Args:
        fakes: (N, C, H, W) in [-1, 1].
        views: real images of "train", "val" and "test"; a split may be missing or empty.
        features: the network.
        n: images on each side of a Fréchet distance; fewer where there are fewer, recorded.
        draws: random choices of n that are averaged.
        k: neighbour that precision, recall, density and coverage reach to.
        pairs: of images, for MS-SSIM.
        at_most: images of a split that are looked at, drawn by seed where it has more.
        seed: of every draw: the same seed gives the same figures.
        cache: folder of the stores, where real features are kept; None keeps nothing.
        batch_size: images at once.

    Returns:
        Plain values: "kid" first, with its interval and the value of real against real; "fid" with that of real
        against real and their ratio; "prdc" and "ms_ssim", each of fakes and of reals; "memorisation" by features and
        by pixels, None without train or held-out images, "pairs" with the items of the views: "train" of train,
        "held_out" of the split "held_out_split"; "distributions", to be drawn; "features", "pool", "n", counts,
        "protocol" and "notes" (what fell short). What cannot be had is None, and a note says why.

    Raises:
        UserError: fewer than two fakes or real images, fakes of another shape than the real images or not finite.
    """
    _check(fakes, views)
    reals = {
        split: _reals(view, features, at_most, seed, cache, batch_size) for split, view in views.items() if len(view)
    }
    fake = features_of(fakes, features, batch_size)
    chosen, parted, count = _choose(reals, min(n, len(fake)), draws, seed)
    rng = np.random.default_rng(seed)
    real, subjects = chosen.features, chosen.subjects
    trials = _trials(fake, real, parted, count, rng)
    with _one_thread():
        figures = {
            "kid": _kid(fake, real, subjects, trials, 4 * n, seed),
            "fid": _fid(trials),
            "prdc": _prdc(trials, k),
            "ms_ssim": _ms_ssim(fakes, chosen, pairs, seed),
            "memorisation": _memorisation(fakes, fake, reals, seed),
            "distributions": distributions.features(real, fake, seed=seed),
        }
    return figures | {
        "features": {"name": features.name, "hash": features.hash, "dim": features.dim},
        "pool": "+".join(chosen.splits),
        "n": count,
        "draws": len(trials),
        "seed": seed,
        "counts": {
            "fake": len(fake),
            **{split: len(r.items) for split, r in reals.items()},
            "pool_subjects": len(np.unique(subjects)),
        },
        "protocol": {
            "pool": pool.PROTOCOL,
            "kid": kid.PROTOCOL,
            "fid": frechet.PROTOCOL,
            "prdc": f"{prdc.PROTOCOL}; k = {k}",
            "ms_ssim": diversity.PROTOCOL,
            "memorisation": nearest.PROTOCOL,
        },
        "notes": _notes(views, reals, chosen, len(fake), n, count, bool(parted)),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread: on matrices of this size two gain little, and beside a busy neighbour lose tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(fakes: Tensor, views: Mapping[str, Items]) -> None:
    if fakes.ndim != 4 or len(fakes) < 2:
        raise UserError(f"{len(fakes)} sample(s) cannot be judged: at least 2 are needed, and 1000 for figures that "
                        "others can be compared with. Make more with -n.")  # fmt: skip
    if bad := int((~torch.isfinite(fakes).flatten(1).all(1)).sum()):
        raise UserError(f"{bad} of {len(fakes)} samples are not finite (NaN or infinite). Train anew, or take an "
                        "earlier checkpoint; samples are judged whole or not at all.")  # fmt: skip
    if unknown := sorted(set(views) - set(SPLITS)):
        raise ValueError(f"views of {unknown}; allowed: {list(SPLITS)}")
    if sum(len(v) for v in views.values()) < 2:
        raise UserError(
            "fewer than 2 real images to judge samples against; see data.split, data.slices and data.contrasts."
        )
    for split, view in views.items():
        if len(view) and (shape := view.__getitems__([0]).image.shape[1:]) != fakes.shape[1:]:
            raise UserError(f"samples are {tuple(fakes.shape[1:])}, real images of {split} {tuple(shape)} "
                            "(channels, height, width): give the data that the model was trained on, "
                            "or data.size as it was.")  # fmt: skip


def _reals(view: Items, features: Features, at_most: int, seed: int, cache: Path | None, batch_size: int) -> Reals:
    items = np.sort(np.random.default_rng(seed).permutation(len(view))[:at_most])
    return Reals(view, items, stored_features(view, features, cache, batch_size, items))


Halves = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _choose(reals: Mapping[str, Reals], wanted: int, draws: int, seed: int) -> tuple[Pool, Halves, int]:
    """The pool, its halves (empty list: it has one subject), and how many images each side of a distance has."""
    for splits in (HELD_OUT, SPLITS):
        chosen = Pool.of(reals, splits)
        parted = halves(chosen.subjects, draws, seed) if len(chosen) else []
        least = min((len(part) for pair in parted for part in pair), default=0)
        if least >= wanted:
            break
    if least < 2:
        return chosen, [], min(wanted, len(chosen))
    return chosen, parted, min(wanted, least)


@dataclass(frozen=True)
class _Trial:
    """One draw: features of n fakes, of n reals, and of n reals of other subjects (None where there is one subject)."""

    fake: Array
    real: Array
    other: Array | None


def _trials(fake: Array, real: Array, parted: Halves, count: int, rng: np.random.Generator) -> list[_Trial]:
    def some(x: Array) -> Array:
        return x[rng.permutation(len(x))[:count]]

    out = [_Trial(some(fake), real[a[:count]], real[b[:count]]) for a, b in parted]
    return out or [_Trial(some(fake), some(real), None)]


def _kid(
    fake: Array, real: Array, subjects: NDArray[Any], trials: list[_Trial], most: int, seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    few_fake, few_real = (np.sort(rng.permutation(len(x))[:most]) for x in (fake, real))  # kernels grow with the square
    k = kid.kernels(fake[few_fake], real[few_real])
    size = min(1000, len(few_fake), len(few_real))
    mean, sd = kid.kid_subsets(k, 100, size, seed)
    between = [kid.kid(kid.kernels(t.other, t.real)) for t in trials if t.other is not None]
    return {
        "value": kid.kid(k),
        "ci": kid.kid_interval(k, subjects[few_real], seed=seed),
        "real_against_real": float(np.mean(between)) if between else None,
        "n_fake": len(few_fake),
        "n_real": len(few_real),
        "subsets": {"mean": mean, "sd": sd, "subsets": 100, "subset_size": size},
    }


def _fid(trials: list[_Trial]) -> dict[str, Any]:
    values = [frechet.frechet_distance(t.fake, t.real) for t in trials]
    between = [frechet.frechet_distance(t.other, t.real) for t in trials if t.other is not None]
    value, reference = float(np.mean(values)), float(np.mean(between)) if between else None
    return {
        "value": value,
        "real_against_real": reference,
        "ratio": value / reference if reference else None,
        "n": len(trials[0].fake),
        "values": values,
        "values_real_against_real": between,
    }


def _prdc(trials: list[_Trial], k: int) -> dict[str, Any]:
    k = min(k, len(trials[0].fake) - 1)
    fake = [prdc.prdc(t.fake, t.real, k) for t in trials]
    real = [prdc.prdc(t.other, t.real, k) for t in trials if t.other is not None]

    def means(found: list[dict[str, float]]) -> dict[str, float] | None:
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]} if found else None

    return {"fake": means(fake), "real_against_real": means(real), "k": k, "n": len(trials[0].fake)}


def _ms_ssim(fakes: Tensor, real: Pool, pairs: int, seed: int) -> dict[str, Any]:
    own = diversity.random_pairs(len(fakes), pairs, seed=seed)
    theirs = diversity.random_pairs(len(real), pairs, real.subjects, seed)
    return {
        "fake": diversity.diversity(lambda indices: fakes[list(indices)], own),
        "real": diversity.diversity(real.images, theirs),
    }


def _memorisation(fakes: Tensor, fake: Array, reals: Mapping[str, Reals], seed: int) -> dict[str, Any] | None:
    train, held_out = Pool.of(reals, ("train",)), Pool.of(reals, HELD_OUT)
    if not len(train) or not len(held_out):
        return None
    subjects = held_out.subjects
    found = {
        "features": nearest.memorisation(fake, train.features, held_out.features, subjects, seed=seed),
        "pixels": nearest.memorisation(_pixels(fakes), _pixels(train), _pixels(held_out), subjects, seed=seed),
    }
    places = [(s, i) for s, part in zip(held_out.splits, held_out.parts, strict=True) for i in part.items.tolist()]
    for pair in (p for space in found.values() for p in space["pairs"]):  # of a large view only some items are here
        pair["train"] = int(reals["train"].items[pair["train"]])
        pair["held_out_split"], pair["held_out"] = places[pair["held_out"]]
    return found


def _pixels(images: Tensor | Pool, batch_size: int = 64) -> Array:
    parts = []
    for start in range(0, len(images), batch_size):
        items = range(start, min(start + batch_size, len(images)))
        parts.append(nearest.pixel_vectors(images[list(items)] if isinstance(images, Tensor) else images.images(items)))
    return np.concatenate(parts)


def _notes(
    views: Mapping[str, Items], reals: Mapping[str, Reals], chosen: Pool, fakes: int, n: int, count: int, parted: bool
) -> list[str]:
    """What fell short of the protocol, one sentence each."""
    out = []
    if count < n:
        out.append(f"n is {count} and not {n}: there are {fakes} samples, and {len(chosen)} real images in "
                   f"{'+'.join(chosen.splits)}")  # fmt: skip
    if not parted:
        out.append("all real images are of one subject: there is no value of real against real")
    if "train" in chosen.splits:
        out.append("the real images include those that the model was trained on: held-out images alone are too few")
    if missing := [
        s for s in ("train", "held-out") if not len(Pool.of(reals, ("train",) if s == "train" else HELD_OUT))
    ]:
        out.append(f"no {' and no '.join(missing)} images: nothing can be said of memorisation")
    for split, r in reals.items():
        if len(r.items) < len(views[split]):
            out.append(f"{len(r.items)} of the {len(views[split])} images of {split} were looked at")
    return out

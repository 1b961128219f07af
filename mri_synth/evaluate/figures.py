"""The figures of `mri-synth evaluate`: two sets of images in a feature space, and side by side without one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_synth.evaluate.images import ImageSet
from mri_synth.metrics import appearance, distributions, diversity, frechet, kid, nearest, prdc
from mri_synth.metrics.extraction import Array
from mri_synth.metrics.features import Features
from mri_synth.metrics.generation import _choose, _fid, _kid, _one_thread, _prdc, _trials
from mri_synth.metrics.pool import Reals, halves
from mri_synth.weights import find

log = logging.getLogger(__name__)

MOST = 4000
"""Images of a set that figures by subject look at, for memory."""
POOL = (
    "all images of REAL; for real against real they are parted, at random and several times, into halves that share no "
    "subject (images whose subject is unknown count as subjects of their own, so that slices of one person may then "
    "fall into both halves and the value be too low); n is the same on every side of a Fréchet distance"
)
BY_SUBJECT = (
    "of each real subject the share of its images that have a fake within the distance of their own k-th nearest real "
    "image (coverage), of each fake subject the share of its images within that distance of some real one (precision), "
    "over all images; of a set of more than 4,000 over so many that are drawn at random by the seed"
)


@dataclass(frozen=True, eq=False)
class Looks:
    """What each image of a set is without a feature network.

    Attributes:
        histogram: (N, 256) shares of intensities.
        power: (N, R) by spatial frequency.
        pixels: (N, D) as `nearest.pixel_vectors`.
        mirrored: (N, D) the same of the images mirrored left to right.
    """

    histogram: NDArray[np.float64]
    power: NDArray[np.float64]
    pixels: NDArray[np.float32]
    mirrored: NDArray[np.float32]


def looks(images: ImageSet, batch_size: int = 64) -> Looks:
    """Read a set once for all that needs no network.

    Args:
        images: the set.
        batch_size: images at once.

    Returns:
        What each image is.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images.images(range(start, min(start + batch_size, len(images))))
        parts.append((appearance.histograms(batch), appearance.radial_power(batch), nearest.pixel_vectors(batch),
                      nearest.pixel_vectors(batch.flip(-1))))  # fmt: skip
    return Looks(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def owners(images: ImageSet) -> NDArray[Any]:
    """(N,) whose image each is; of images whose subject is unknown, its own."""
    names = images.subjects.copy()
    unknown = np.flatnonzero(names == "")
    names[unknown] = [f"\0{i}" for i in unknown]
    return names.astype(str)


def compare(
    fake: ImageSet, real: ImageSet, space: Features, vectors: dict[str, Array], *, n: int, draws: int = 5, k: int = 5,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Two sets in one feature space.

    Args:
        fake: images that were made.
        real: images that were measured.
        space: the network, for its name.
        vectors: "fake" and "real", (N, D) features.
        n: images on each side of a Fréchet distance; fewer where there are fewer, recorded.
        draws: random choices of n that are averaged.
        k: neighbour that precision, recall, density and coverage reach to.
        seed: of every draw.

    Returns:
        Plain values: "kid" first, with interval and the value of real against real; "fid" with that of real against
        real at the same n, their ratio, and of all images ("all", as published figures are made); "prdc"; "shares" and
        "by_subject"; "distributions"; "features", "n", "draws", "counts", "protocol", "notes".
    """
    x, y = vectors["fake"], vectors["real"]
    chosen, parted, count = _choose({"test": Reals(real, np.arange(len(real)), y)}, min(n, len(x)), draws, seed)
    subjects = chosen.subjects
    trials = _trials(x, y, parted, count, np.random.default_rng(seed))
    with _one_thread():
        figures = {
            "kid": _kid(x, y, subjects, trials, 4 * n, seed),
            "fid": _fid(trials)
            | {"all": {"value": frechet.frechet_distance(x, y), "n_fake": len(x), "n_real": len(y)}},
            "prdc": _prdc(trials, k),
            **by_subject(fake, real, vectors, k, MOST, seed),
            "distributions": distributions.features(y, x, seed=seed),
        }
    notes = []
    if count < n:
        notes.append(f"n is {count} and not {n}: there are {len(x)} fake images, and {len(y)} real ones to be parted "
                     "into halves")  # fmt: skip
    if not parted:
        notes.append("all real images are of one subject: there is no value of real against real")
    if not any(real.subjects):
        notes.append("whose the real images are is not known: slices of one person may be in both halves, so that real "
                     "against real is too low; a table subjects.csv (file,subject) in the folder says it")  # fmt: skip
    notes += [f"figures by subject are of {MOST:,} of the {len(v):,} {role} images, drawn at random by the seed"
              for role, v in vectors.items() if role != "train" and len(v) > MOST]  # fmt: skip
    return figures | {
        "features": {"name": space.name, "hash": space.hash, "dim": space.dim},
        "pool": "REAL", "n": count, "draws": len(trials), "seed": seed,
        "counts": {"fake": len(x), "real": len(y), "real_subjects": len(np.unique(subjects))},
        "protocol": {"pool": POOL, "kid": kid.PROTOCOL, "fid": frechet.PROTOCOL, "prdc": f"{prdc.PROTOCOL}; k = {k}",
                     "by_subject": BY_SUBJECT},
        "notes": notes,
    }  # fmt: skip


def by_subject(
    fake: ImageSet, real: ImageSet, vectors: dict[str, Array], k: int, most: int = MOST, seed: int = 0
) -> dict[str, Any]:
    """Whom the fakes miss: coverage of each real subject, and precision of each fake one, where names say whose.

    Args:
        fake: images that were made.
        real: images that were measured.
        vectors: "fake" and "real", (N, D) features.
        k: as in `compare`.
        most: images of a set that are looked at, drawn at random.
        seed: of the draw.

    Returns:
        "shares": over all images "covered" and "precise"; "by_subject": "real" and "fake", rows of subject, images,
        share, the lowest share first, or None where subjects are unknown.
    """
    some = {role: np.sort(np.random.default_rng([seed, 12]).permutation(len(vectors[role]))[:most])
            for role in ("fake", "real")}  # fmt: skip
    x, y = vectors["fake"][some["fake"]], vectors["real"][some["real"]]
    k = min(k, len(y) - 1)
    radius = _radii(y, k)
    covered, inside = np.zeros(len(y), bool), np.zeros(len(x), bool)
    for start in range(0, len(x), 512):
        near = prdc.squared_distances(x[start : start + 512], y) <= radius[None] * (1 + 1e-9)
        covered |= near.any(0)
        inside[start : start + 512] = near.any(1)
    rows = {"real": _shares(real.subjects[some["real"]], covered), "fake": _shares(fake.subjects[some["fake"]], inside)}
    return {"shares": {"covered": float(covered.mean()), "precise": float(inside.mean())}, "by_subject": rows}


def _radii(y: Array, k: int) -> NDArray[np.float64]:
    """(N,) squared distance of each vector to its k-th nearest other, some rows at a time."""
    out = np.empty(len(y))
    for start in range(0, len(y), 512):
        part = prdc.squared_distances(y[start : start + 512], y)
        part[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        out[start : start + 512] = np.partition(part, k - 1, axis=1)[:, k - 1]
    return out


def _shares(subjects: NDArray[Any], hit: NDArray[np.bool_]) -> list[list[Any]] | None:
    names = sorted({str(s) for s in subjects if s})
    rows: list[list[Any]] = [[n, int((subjects == n).sum()), float(hit[subjects == n].mean())] for n in names]
    return sorted(rows, key=lambda row: row[2]) if rows else None


def beside(
    fake: ImageSet, real: ImageSet, seen: dict[str, Looks], *, pairs: int = 500, draws: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Two sets side by side without a feature network: diversity, intensities, spectra.

    Args:
        fake: images that were made.
        real: images that were measured.
        seen: "fake" and "real", of `looks`.
        pairs: of images, for MS-SSIM; a fifth of them for LPIPS.
        draws: pairs of halves of the real images.
        seed: of every draw.

    Returns:
        "ms_ssim" and "lpips" (None without its weights) of fakes and of reals; "histogram" and "spectrum", as
        `appearance.compared`; "intensities" and "power", to be drawn; "protocol"; "notes".
    """
    subjects = owners(real)
    apart = [h for h in halves(subjects, draws, seed) if min(map(len, h))]
    x, y = seen["fake"], seen["real"]
    out: dict[str, Any] = {
        "ms_ssim": {
            "fake": diversity.diversity(fake.images, diversity.random_pairs(len(fake), pairs, seed=seed)),
            "real": diversity.diversity(real.images, diversity.random_pairs(len(real), pairs, subjects, seed)),
        },
        "histogram": appearance.compared(x.histogram, y.histogram, appearance.wasserstein, subjects, apart, seed=seed),
        "spectrum": appearance.compared(x.power, y.power, appearance.spectrum_distance, subjects, apart, seed=seed),
        "intensities": {"edges": np.linspace(0, 1, 65).tolist(), "real": _quartered(y), "fake": _quartered(x)},
        "power": {"real": y.power.mean(0).tolist(), "fake": x.power.mean(0).tolist()},
        "protocol": {"ms_ssim": diversity.PROTOCOL, "appearance": appearance.PROTOCOL},
        "notes": [],
    }  # fmt: skip
    out["lpips"], why = _lpips(fake, real, subjects, max(1, pairs // 5), seed)
    return out | {"notes": [why] if why else []}


def _quartered(seen: Looks) -> list[float]:
    shares: list[float] = seen.histogram.mean(0).reshape(64, 4).sum(1).tolist()
    return shares


@torch.no_grad()
def _lpips(
    fake: ImageSet, real: ImageSet, subjects: NDArray[Any], pairs: int, seed: int
) -> tuple[dict[str, Any] | None, str]:
    """Mean LPIPS between images of one set, with AlexNet; and why there is none."""
    if find("lpips_alexnet").path is None:
        return None, "no LPIPS: its weights are not here; mri-synth weights get lpips_alexnet fetches them"
    if min(fake.shape) < 31:
        return None, f"no LPIPS: AlexNet needs images of at least 31 pixels, these are of {min(fake.shape)}"
    from mri_synth.metrics.lpips import LPIPS, PROTOCOL, lpips

    net, out = LPIPS("alexnet"), {"protocol": PROTOCOL + "; between random pairs of one set; higher is more diverse"}
    found: dict[str, Any] = dict(out)
    for name, one, whose in (("fake", fake, None), ("real", real, subjects)):
        drawn = diversity.random_pairs(len(one), pairs, whose, seed)
        values = [lpips(one.images(part[:, 0].tolist()), one.images(part[:, 1].tolist()), net)
                  for part in np.array_split(drawn, max(1, -(-len(drawn) // 16))) if len(part)]  # fmt: skip
        every = torch.cat(values).double() if values else torch.zeros(0)
        found[name] = {"mean": float(every.mean()) if len(every) else None,
                       "sd": float(every.std()) if len(every) > 1 else None, "pairs": len(every)}  # fmt: skip
    return found, ""

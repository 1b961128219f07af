"""Are fakes copies of training images? What sets share, nearest neighbours, and the pairs to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_synth.evaluate.figures import Looks, owners
from mri_synth.evaluate.images import ImageSet, same_files, shared
from mri_synth.metrics import nearest
from mri_synth.metrics.extraction import Array

SHARE, NEAREST = 0.5, 0.05
"""What is nearer to a training image than half the distance of the nearest 5 % of held-out images is a copy."""
PAIRS = 8

PROTOCOL = (
    "a fake is called a copy if it is a training image in every pixel (16 bits), or lies at most half as far from its "
    "nearest training image, or that image mirrored, as the nearest 5 % of held-out images do, in the features or "
    "pixel by pixel at 32 x 32; held-out images that are themselves in train do not set the limit. How many held-out "
    "images lie below it stands beside: where there are such, the data hold images twice, or slices that all look alike"
)
"""Said beside the list of copies."""


def overlaps(sets: dict[str, ImageSet]) -> list[dict[str, Any]]:
    """What sets have in common that must have nothing in common.

    Args:
        sets: "real", "fake" and perhaps "train".

    Returns:
        For each pair of sets that share something: "sets", "files" and "images" (how many), "subjects" (names that
        real and train share), "examples" and "said", a sentence.
    """
    out = []
    for a, b in (("fake", "real"), ("fake", "train"), ("real", "train")):
        if a not in sets or b not in sets:
            continue
        files, images = same_files(sets[a], sets[b]), shared(sets[a], sets[b])
        people = sorted({str(s) for s in sets[a].subjects if s} & {str(s) for s in sets[b].subjects if s})
        people = people if a == "real" else []  # a translation bears the name of its source's subject
        if not (files or images or people):
            continue
        what = [f"{n} {word}{'s' if n != 1 else ''}" for n, word in
                ((len(files), "file"), (len(images), "image"), (len(people), "subject")) if n]  # fmt: skip
        some = [f"{x} = {y}" for x, y in (images or files)[:3]] or people[:3]
        meant = {"real": "the fakes are judged against themselves", "train": "the fakes hold copies of training images"}
        why = "held-out images were trained on, and no figure of memorisation counts" if a == "real" else meant[b]
        out.append(
            {
                "sets": [a, b],
                "files": len(files),
                "images": len(images),
                "subjects": people,
                "examples": some,
                "said": f"{a.upper()} and {b.upper()} share {', '.join(what)} ({'; '.join(some)}): {why}",
            }
        )
    return out


def repeated(fake: ImageSet) -> int:
    """How many fakes are the very image of another fake before them."""
    return len(fake) - len(np.unique(fake.hashes))


def memorisation(
    sets: dict[str, ImageSet], vectors: dict[str, Array], seen: dict[str, Looks], seed: int = 0
) -> dict[str, Any]:
    """Fakes against training images, measured by how near held-out images come to them.

    Args:
        sets: "fake", "train", and "real", which are held out.
        vectors: features of each.
        seen: `looks` of each.
        seed: of the bootstrap.

    Returns:
        "features" and "pixels" as `nearest.memorisation` gives them, the places of a pair's images beside; "copies",
        the fakes that are called so, "limits", "held_out_below" (how many held-out images would be), "protocol".
    """
    whose = owners(sets["real"])
    pixels = {role: looks.pixels for role, looks in seen.items()}
    found: dict[str, Any] = {
        name: nearest.memorisation(space["fake"], space["train"], space["real"], whose, PAIRS, seed)
        for name, space in (("features", vectors), ("pixels", pixels))
    }
    for space in found.values():
        for pair in space["pairs"]:
            pair["places"] = {r: str(sets[s].places[pair[r]]) for r, s in
                              (("fake", "fake"), ("train", "train"), ("held_out", "real"))}  # fmt: skip
    copied, limits, twins = copies(sets, vectors, seen)
    return found | {
        "copies": copied,
        "limits": limits,
        "held_out_below": twins,
        "protocol": {"copies": PROTOCOL, "neighbours": nearest.PROTOCOL},
    }


def copies(
    sets: dict[str, ImageSet], vectors: dict[str, Array], seen: dict[str, Looks]
) -> tuple[list[dict[str, Any]], dict[str, float], int]:
    """Fakes that are training images, or all but.

    Args:
        sets: "fake", "train", "real".
        vectors: features of each.
        seen: `looks` of each.

    Returns:
        For each copy "fake" and "train" (positions), their "places", "by" (which tests say so), "mirrored", and the
        "distance" in pixels; nearest first. The limit of each test. And how many held-out images lie below one.
    """
    count = len(sets["train"])
    both = np.concatenate([seen["train"].pixels, seen["train"].mirrored])
    spaces = {"pixels": (seen["fake"].pixels, both, seen["real"].pixels),
              "features": (vectors["fake"], vectors["train"], vectors["real"])}  # fmt: skip
    known = np.isin(sets["real"].hashes, sets["train"].hashes)
    twins = known.copy()
    by: dict[int, list[str]] = {}
    limits: dict[str, float] = {}
    at: dict[str, NDArray[np.int64]] = {}
    far: dict[str, NDArray[np.float64]] = {}
    for name, (fake, train, held_out) in spaces.items():
        at[name], far[name] = nearest.nearest(fake, train)
        there = nearest.nearest(held_out, train)[1]
        others = there[~known & (there > 0)]
        limits[name] = SHARE * float(np.quantile(others, NEAREST, method="lower")) if len(others) else 0.0
        twins |= there <= limits[name]
        for i in np.flatnonzero(far[name] <= limits[name]).tolist():
            by.setdefault(i, []).append(name)
    first = {int(h): k for k, h in reversed(list(enumerate(sets["train"].hashes)))}
    same = {i: first[int(h)] for i, h in enumerate(sets["fake"].hashes) if int(h) in first}
    for i in same:
        by.setdefault(i, []).insert(0, "every pixel")
    out, places = [], {role: sets[role].places for role in ("fake", "train")}
    for i, tests in by.items():
        pixels = "every pixel" in tests or "pixels" in tests
        place = same.get(i, int(at["pixels" if pixels else "features"][i]))
        out.append(
            {
                "fake": i,
                "train": place % count,
                "mirrored": place >= count,
                "by": tests,
                "distance": float(far["pixels"][i]),
                "places": {r: str(places[r][k]) for r, k in (("fake", i), ("train", place % count))},
            }
        )
    return sorted(out, key=lambda c: (c["distance"], c["fake"])), limits, int(twins.sum())

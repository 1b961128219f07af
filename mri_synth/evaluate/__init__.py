"""`mri-synth evaluate REAL FAKE`: are these images like real ones, as varied, no copies, and good for something?"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_synth import drawing, html
from mri_synth.data.nifti import whole_file
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.evaluate.copies import PAIRS, memorisation, overlaps, repeated
from mri_synth.evaluate.figures import beside, compare, looks
from mri_synth.evaluate.folder import Reading
from mri_synth.evaluate.images import ImageSet, check
from mri_synth.evaluate.page import build, verdicts
from mri_synth.evaluate.segment import segmentation
from mri_synth.evaluate.sources import open_sets, tables
from mri_synth.evaluate.usefulness import utility
from mri_synth.metrics.extraction import Array, features_of
from mri_synth.metrics.features import Features, load_features
from mri_synth.outputs import _finite, create, environment, forget_peak_memory, peak_memory_bytes, write_text
from mri_synth.weights import find

log = logging.getLogger(__name__)

RECORD, PAGE, FILES = "evaluation.json", "evaluation.html", "files.csv"
PICTURES = ("real", "fake", "nearest_features", "nearest_pixels", "copies")
SHOWN = 24


def evaluate(
    real: str,
    fake: str,
    output: Path,
    *,
    train: str | None = None,
    features: Sequence[str] = ("auto",),
    n: int = 1000,
    size: int | None = None,
    plane: str = "axial",
    intensity: str = "auto",
    at_most: int = 10_000,
    skip_bad: bool = False,
    with_utility: bool = True,
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
) -> dict[str, Any]:
    """Judge a set of images by a set of real ones, and write evaluation.html, evaluation.json and files.csv.

    Args:
        real: folder of images, data words in one string, or a prepared store.
        fake: the same, or a checkpoint that samples.
        output: folder of the results.
        train: what the fakes' model was trained on; None: of data words their training split, else nothing is said of
            memorisation.
        features: feature spaces, the first the criterion: "inception", "inception_bf16" (faster, and a space of its
            own), "pixels", a checkpoint of an encoder, or "auto" for Inception where its weights are, else pixels.
        n: images on each side of a Fréchet distance, and samples of a checkpoint.
        size: side in pixels that all images are brought to; None: they must have one size.
        plane: of volumes.
        intensity: of folders: "unit" ([0, 1]), "percentile" (0.1 to 99.9 of each volume), "minmax", or "auto".
        at_most: images of a set that are looked at.
        skip_bad: files that cannot be used are left out and listed, and no error.
        with_utility: whether classifiers are trained where both sets have classes, and U-Nets where both have masks.
        seed: of every draw.
        batch_size: images at once.
        device: where features and samples are computed.

    Returns:
        What evaluation.json holds.

    Raises:
        UserError: words that mean nothing, images that cannot be used or compared, or a place that cannot be written.
    """
    for word, value, allowed in (("--plane", plane, ("axial", "coronal", "sagittal")),
                                 ("--intensity", intensity, ("auto", "unit", "percentile", "minmax"))):  # fmt: skip
        if value not in allowed:
            raise UserError(f"{word}={value}: allowed: {', '.join(allowed)}")
    for word, number, least in (("-n", n, 2), ("--size", size or 8, 8), ("--at-most", at_most, 2),
                                ("--batch-size", batch_size, 1), ("--seed", seed, 0)):  # fmt: skip
        if number < least:
            raise UserError(f"{word}={number}: allowed: a whole number from {least} on")
    forget_peak_memory()
    began = time.monotonic()
    _check_place(output, (real, fake, train or ""))
    networks, said = _spaces(features, device)
    folder = create(output)
    how = Reading(output=folder, size=size, plane=plane, scaling=intensity, n=n, at_most=at_most, seed=seed,  # type: ignore[arg-type]
                  batch_size=batch_size, device=device, skip_bad=skip_bad)  # fmt: skip
    sets = open_sets(real, fake, train, how)
    check(list(sets.values()))
    common = overlaps(sets)
    seconds = {"reading": time.monotonic() - began, "features": 0.0}
    seen = {role: looks(one) for role, one in sets.items()}
    spaces = []
    for network in networks:
        started = time.monotonic()
        vectors = _vectors(sets, network, batch_size)
        seconds["features"] += time.monotonic() - started
        found = compare(sets["fake"], sets["real"], network, vectors, n=n, seed=seed)
        if len(sets) > 2:
            found["memorisation"] = memorisation(sets, vectors, seen, seed)
        spaces.append(found)
    simulated = any(one.about.get("simulated") for one in sets.values())
    results: dict[str, Any] = {
        "sets": {role: one.record() for role, one in sets.items()},
        "overlaps": common,
        "repeated": repeated(sets["fake"]),
        **spaces[0],
        "beside": spaces[1:],
        "looks": beside(sets["fake"], sets["real"], seen, seed=seed),
        "utility": utility(sets, spaces[0], simulated, seed) if with_utility else {"missing": "not asked for"},
        "segmentation": segmentation(sets, seed) if with_utility else {"missing": "not asked for"},
        "simulated": simulated,
        "settings": {"features": list(features), "n": n, "size": size, "plane": plane, "intensity": intensity,
                     "at_most": at_most, "skip_bad": skip_bad, "seed": seed},
    }  # fmt: skip
    if asked := sets["fake"].about.get("asked_for"):
        said.append(f"fake: samples were asked for {asked}")
    for role, one in sets.items():
        if left := one.about.get("left_out"):
            said.append(f"{role}: {len(left)} files could not be used and were left out, such as {left[0]}")
    results["notes"] = [*said, *results["notes"], *results["looks"].pop("notes")]
    results |= environment()
    results["seconds"] = {k: round(v, 2) for k, v in (seconds | {"all": time.monotonic() - began}).items()}
    results["peak_memory_mib"] = round(peak_memory_bytes() / 2**20)
    results["verdicts"] = verdicts(results)
    _write(folder, sets, results)
    return results


def _check_place(output: Path, words: Sequence[str]) -> None:
    """Refuse a folder whose files would be replaced or deleted and are not of an evaluation."""
    own = (PAGE, FILES, RECORD, *(f"pictures/{name}.png" for name in PICTURES))
    there = [name for name in own if (output / name).exists()]
    try:
        ours = "verdicts" in json.loads((output / RECORD).read_text())
    except (OSError, ValueError, TypeError):
        ours = False
    if there and not ours:
        raise UserError(f"-o {output}: {there[0]} is there and would be replaced, and no {RECORD} says that it is of "
                        "an evaluation; give another folder, or move it away")  # fmt: skip
    if inside := [w for w in words if w and Path(w).expanduser().resolve() == (output / "pictures").resolve()]:
        raise UserError(f"-o {output}: pictures of the results would be written among the images of {inside[0]}; give "
                        "another folder")  # fmt: skip


def _spaces(words: Sequence[str], device: str) -> tuple[list[Features], list[str]]:
    """The feature spaces, and what must be said of the choice."""
    found, said, place = [], [], device_of(device)
    for word in dict.fromkeys(words):
        if word == "auto" and find("inception").path is None:
            said.append("features are pixels, which are blind to sharpness: the weights of Inception are not here; "
                        "mri-synth weights get inception fetches them")  # fmt: skip
            log.warning(said[-1])
            word = "pixels"
        found.append(load_features("inception" if word == "auto" else word, place))
    if not found:
        raise UserError("--features: names none; allowed: inception, inception_bf16, pixels, auto, or the checkpoint "
                        "of an encoder")  # fmt: skip
    return found, said


def _vectors(sets: dict[str, ImageSet], space: Features, batch_size: int) -> dict[str, Array]:
    """Features of all sets, and the way out where the network does not take images of this size."""
    try:
        return {role: features_of(one, space, batch_size) for role, one in sets.items()}
    except UserError as error:
        raise UserError(f"{error} Or bring the images to its size by --size.") from error


def _write(folder: Path, sets: dict[str, ImageSet], results: dict[str, Any]) -> None:
    """Record, pictures, table of files and page: the first says whose folder it is, if the others are cut short."""
    write_text(folder / RECORD, json.dumps(_finite(results), indent=2, default=str) + "\n")
    pictures = folder / "pictures"
    simulated = " · SIMULATED" if results["simulated"] else ""
    for role in ("real", "fake"):
        one = sets[role]
        some = np.unique(np.linspace(0, len(one) - 1, SHOWN).astype(int)).tolist()
        title = f"{role}: {len(some)} of {len(one)} images{simulated}"
        sign = "" if role == "real" and not one.about.get("simulated") else drawing.SIGN
        drawing.save(drawing.grid(one.images(some), title, columns=8), pictures / f"{role}.png", sign)
    for name in PICTURES[2:]:  # of an evaluation before, with another training set
        (pictures / f"{name}.png").unlink(missing_ok=True)
    if found := results.get("memorisation"):
        for space in ("features", "pixels"):
            pairs = [(p["fake"], p["train"], False, f"distance {p['to_train']:.3g}") for p in found[space]["pairs"]]
            _pairs(sets, pairs, f"The fakes nearest to a training image, by {space}{simulated}",
                   pictures / f"nearest_{space}.png")  # fmt: skip
        if found["copies"]:
            pairs = [(c["fake"], c["train"], c["mirrored"], ", ".join(c["by"])) for c in found["copies"][:PAIRS]]
            _pairs(sets, pairs, f"Copies of training images{simulated}", pictures / "copies.png")
    with whole_file(folder / FILES) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "path", "sha256", "images"])
        writer.writerows(tables(list(sets.values())))
    html.write(build(results, folder), folder / PAGE)


def _pairs(sets: dict[str, ImageSet], pairs: list[tuple[int, int, bool, str]], title: str, path: Path) -> None:
    """Fakes over the training images they are nearest to, and what differs."""
    fakes = sets["fake"].images([p[0] for p in pairs]).numpy()
    real = sets["train"].images([p[1] for p in pairs]).numpy()
    for image, pair in zip(real, pairs, strict=True):
        image[:] = image[..., ::-1] if pair[2] else image
    rows: dict[str, Any] = {"fake": fakes, "nearest in train": real, "|difference|": drawing.error(fakes, real)}
    drawing.save(drawing.sheet(rows, title, [p[3] for p in pairs]), path)

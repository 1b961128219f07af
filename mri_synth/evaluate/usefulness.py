"""What fakes are good for: classifiers trained on them and tested on real images, at equal budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mri_synth.data.augment import augment
from mri_synth.data.batch import Batch
from mri_synth.data.settings import AugmentSettings
from mri_synth.draws import uniform
from mri_synth.evaluate.figures import owners
from mri_synth.evaluate.images import ImageSet
from mri_synth.metrics.pool import halves
from mri_synth.metrics.utility import Row, accuracy, rows, table
from mri_synth.networks.classifier import BorderAndHistogram, Classifier
from mri_synth.synthetic_sets import ClassSet

LEAST = 4
"""Images of each class in a training set."""
MOST = 128
SEEDS = 3
STEPS = 300
BATCH = 32
WIDTH, RATE = 16, 3e-3
CHANGES = AugmentSettings(flip=0.5, translate=0.03, gain=0.1)

PROTOCOL = (
    f"train on synthetic, test on real (Esteban et al. 2017): classifiers of four halvings, {SEEDS} of each row with "
    f"other starts and orders, {STEPS} steps of {BATCH} images each, Adam {RATE}, flips, shifts and gain, no choice of "
    "a step; every training set has equally many images of each class; every class counts alike. Real images for "
    "training are TRAIN's where it has the classes, else one half of REAL's subjects, and the other half is tested on; "
    "no image is tested on that is trained on, or whose subject is"
)
"""Said beside the table."""


def utility(sets: dict[str, ImageSet], judged: dict[str, Any], simulated: bool, seed: int = 0) -> dict[str, Any]:
    """Accuracy on real test images of what was trained on real images, on fakes, and on both.

    Args:
        sets: "real", "fake" and perhaps "train".
        judged: of `compare`: its KID stands beside how well fakes are told from real images.
        simulated: whether any image is.
        seed: of every draw.

    Returns:
        "tables", "bars", "notes", "by_seed" as `metrics.utility.table` gives them, with "protocol"; or "missing", why
        there is no utility.
    """
    real, fake, train = sets["real"], sets["fake"], sets.get("train")
    named = [{str(c) for c in one.labels if c} for one in (real, fake)]
    names = sorted(named[0] & named[1])
    if len(names) < 2:
        there = (", ".join(sorted(found)) or "none" for found in named)
        return {"missing": "no utility: REAL and FAKE need two classes or more in common, as folders of those names "
                           "(REAL has {}, FAKE {})".format(*there)}  # fmt: skip
    if train is not None and set(names) <= {str(c) for c in train.labels}:
        source, pool, test = train, np.arange(len(train)), np.arange(len(real))
    else:
        pool, test = halves(owners(real), 1, seed)[0]
        source = real
    test, notes = unseen(real, test, source, pool)
    budget = {f"{c} in {s.role.upper()}": int((s.labels[at] == c).sum())
              for s, at in ((source, pool), (fake, np.arange(len(fake)))) for c in names}  # fmt: skip
    tests = {f"{c} in REAL": int((real.labels[test] == c).sum()) for c in names}
    n = min(MOST, *budget.values())
    if n < LEAST or min(tests.values()) < LEAST:
        few = [f"{name} {word}" for found, word in ((budget, "to train on"), (tests, "to test on"))
               for name, count in found.items() if count < LEAST]  # fmt: skip
        halved = "" if source is not real else ", or training images of these classes by --train"
        return {"missing": f"no utility: at least {LEAST} images of each class are needed to train on and to test on; "
                           f"there are {n} and {min(tests.values())}. Give more of {', '.join(few)}{halved}"
                           + "".join(f". {note}" for note in notes)}  # fmt: skip
    chosen = {"real": _drawn(source, pool, names, n, seed), "fake": _drawn(fake, np.arange(len(fake)), names, n, seed)}
    held = np.setdiff1d(np.arange(len(fake)), chosen["fake"])[: 4 * MOST]
    own = {role: _set(s, chosen[role], names) for role, s in (("real", source), ("fake", fake))}
    told = ClassSet(
        torch.cat([own["real"].image, own["fake"].image]), torch.arange(2).repeat_interleave(len(own["real"]))
    )
    training = {"real": own["real"], "border": own["real"], "fake": own["fake"],
                "real_and_fake": own["real"].with_(own["fake"]), "told_fake": told}  # fmt: skip
    kept = test[np.isin(real.labels[test], names)]
    listed = [r for r in rows(["fake"], styled=False) if not r.told or len(held) >= LEAST]
    by_seed, right = {}, {}
    for row in listed:
        networks = [_trained(row, training[row.name], len(names), seed, k) for k in range(SEEDS)]
        group = torch.tensor([names.index(c) for c in real.labels[kept]])
        logits = _logits(networks, real, kept)
        if row.told:
            fakes = accuracy(_logits(networks, fake, held), torch.ones(len(held), dtype=torch.int64)).mean(1)
            by_seed[row.name] = ((accuracy(logits, torch.zeros_like(group)).mean(1) + fakes) / 2).tolist()
            continue
        counts = torch.bincount(group, minlength=len(names))
        correct = accuracy(logits, group)
        by_seed[row.name] = (correct * (len(group) / (len(names) * counts))[group]).mean(1).tolist()
        right[row.name] = correct.mean(0).double().numpy()
    about = {"n_per_class": n, "style_steps": 0, "style_content": "real", "published": {}, "groups": names,
             "space": judged["features"]["name"], "simulated": simulated}  # fmt: skip
    kids = {"fake": [judged["kid"]["value"], judged["kid"]["ci"]]}
    groups = np.asarray([names.index(c) for c in real.labels[kept]])
    made = table(listed, by_seed, right, groups, owners(real)[kept].tolist(), kids, about)
    return made | {"notes": [*notes, *made["notes"]], "protocol": PROTOCOL, "n_per_class": n, "test_images": len(kept)}


def unseen(
    real: ImageSet, test: NDArray[np.int64], source: ImageSet, pool: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """Those of the test's images that are not trained on, nor another image of their subject.

    Args:
        real: set that is tested on.
        test: images of it.
        source: set that is trained on.
        pool: images of it.

    Returns:
        The images that are left, and a sentence of how many are not; none where all are.
    """
    people = {str(s) for s in source.subjects[pool] if s}
    known = np.isin(real.hashes[test], source.hashes[pool])
    known |= np.array([str(s) in people for s in real.subjects[test]], bool)
    if not known.any():
        return test, []
    whose = "TRAIN" if source is not real else "the half that is trained on"
    return test[~known], [f"{known.sum()} of {len(test)} images of REAL are left out of the test: they, or images of "
                          f"their subjects, are in {whose}."]  # fmt: skip


def _drawn(images: ImageSet, among: NDArray[np.int64], names: list[str], n: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([seed, 11])
    labels = images.labels
    return np.concatenate([rng.permutation(among[labels[among] == c])[:n] for c in names])


def _set(images: ImageSet, at: NDArray[np.int64], names: list[str]) -> ClassSet:
    return ClassSet(images.images(at.tolist()), torch.tensor([names.index(c) for c in images.labels[at]]))


def _trained(row: Row, own: ClassSet, classes: int, seed: int, number: int) -> nn.Module:
    """A classifier of a row; the start depends on seed and number, the order on these and the step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * seed + number)
        count = 2 if row.told else classes
        network: nn.Module = BorderAndHistogram(count) if row.shallow else Classifier(1, count, WIDTH)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    places, stream = torch.arange(BATCH), (seed << 8) + 2 * number
    network.train()
    for step in range(STEPS):
        at = (uniform(stream, step, places, 1)[:, 0] * len(own)).long()
        image = augment(Batch(image=own.image[at], index=places), CHANGES, stream + 1, step).image
        optimizer.zero_grad()
        F.cross_entropy(network(image), own.group[at]).backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def _logits(networks: list[nn.Module], images: ImageSet, at: NDArray[np.int64]) -> Tensor:
    """(networks, N, C)."""
    parts = [images.images(part.tolist()) for part in np.array_split(at, max(1, -(-len(at) // 64)))]
    return torch.stack([torch.cat([network(part) for part in parts]) for network in networks])

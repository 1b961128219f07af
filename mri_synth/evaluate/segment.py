"""What fakes with masks are good for: small U-Nets trained on them, and tested on real images, at equal budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from mri_synth.data.augment import augment
from mri_synth.data.batch import Batch
from mri_synth.data.settings import AugmentSettings
from mri_synth.draws import uniform
from mri_synth.evaluate.figures import owners
from mri_synth.evaluate.images import ImageSet
from mri_synth.evaluate.usefulness import unseen
from mri_synth.losses.overlap import cross_entropy, soft_dice
from mri_synth.metrics import overlap
from mri_synth.metrics.pool import halves
from mri_synth.metrics.scores import summarise
from mri_synth.networks.unet import FACTOR, UNet

LEAST = 4
"""Images with a marked pixel in a training set, and in the test."""
MOST = 128
"""Of them in a training set, and as many without a marked pixel at most."""
SEEDS = 3
STEPS = 300
BATCH = 8
WIDTH, RATE = 16, 3e-3
CHANGES = AugmentSettings(flip=0.5, translate=0.03, gain=0.1)
LEVELS = 64
"""Thresholds that the brightness that stands beside is chosen from."""
ROWS = ("real", "brightness", "fake", "real_and_fake")

PROTOCOL = (
    f"train on synthetic, test on real (Esteban et al. 2017) for segmentation: U-Nets of three resolutions, {SEEDS} of "
    f"each row with other starts and orders, {STEPS} steps of {BATCH} images each, Adam {RATE}, cross-entropy and soft "
    "Dice, flips, shifts and gain, no choice of a step; every training set has equally many images with a mask, and "
    "equally many whose mask is empty (real and fake ones together: as many of each). Real images for training are "
    "TRAIN's where they have masks, else one half of REAL's subjects, and the other half is tested on; no image is "
    "tested on that is trained on, or whose subject is. Brightness: the threshold with the best Dice on the real "
    "training images, without a network. " + overlap.PROTOCOL
)
"""Said beside the table."""


def segmentation(sets: dict[str, ImageSet], seed: int = 0) -> dict[str, Any]:
    """Dice on real test images of U-Nets that were trained on real images, on fakes, and on both.

    Args:
        sets: "real", "fake" and perhaps "train", with masks.
        seed: of every draw.

    Returns:
        "dice" (row to mean, sd, ci by subject), "by_seed" (row to the mean of each network), "false" (row to its share
        of pixels), "gain" (row to the paired difference to real images alone), "n_marked", "n_empty", "test_images",
        "tables", "bars", "notes", "protocol"; or "missing", why there is none.
    """
    real, fake, train = sets["real"], sets["fake"], sets.get("train")
    if without := [s.role.upper() for s in (real, fake) if not (s.marked > 0).any()]:
        return {"missing": f"no segmentation: no image of {' nor of '.join(without)} has a mask with a marked pixel; "
                           "label maps lie beside the images, as data.label=mask has them, or come with data "
                           "words"}  # fmt: skip
    if train is not None and (train.marked > 0).any():
        source, pool, test = train, np.arange(len(train)), np.arange(len(real))
    else:
        pool, test = halves(owners(real), 1, seed)[0]
        source = real
    test, notes = unseen(real, test[real.marked[test] >= 0], source, pool)
    fakes = np.arange(len(fake))
    n = min(MOST, int((source.marked[pool] > 0).sum()), int((fake.marked > 0).sum()))
    tested = int((real.marked[test] > 0).sum())
    if min(n, tested) < LEAST:
        return {"missing": f"no segmentation: at least {LEAST} images with a marked pixel are needed to train on "
                           f"and to test on; there are {n} and {tested}"
                           + "".join(f". {note}" for note in notes)}  # fmt: skip
    empty = min(n, int((source.marked[pool] == 0).sum()), int((fake.marked == 0).sum()))
    own = {name: _drawn(s, among, n, empty, seed) for name, s, among in
           (("real", source, pool), ("fake", fake, fakes))}  # fmt: skip
    own["real_and_fake"] = (torch.cat([own["real"][0], own["fake"][0]]), torch.cat([own["real"][1], own["fake"][1]]))
    mask = np.concatenate([real.masks(p.tolist())[:, 0].numpy() > 0 for p in _parts(test)])
    whose = owners(real)[test].tolist()
    by_subject: dict[str, NDArray[np.float64]] = {}
    by_seed: dict[str, list[float]] = {}
    false: dict[str, float | None] = {}
    names: list[str] = []
    for row in ROWS:
        if row == "brightness":
            found = [_brighter(real, test, _threshold(*own["real"]))]
        else:
            found = [_called(_trained(*own[row], seed, k), real, test) for k in range(SEEDS)]
        each = [overlap.dice_by_subject(f, mask, whose) for f in found]
        names = each[0][0]
        by_subject[row] = np.mean([dice for _, dice in each], 0)
        by_seed[row] = [float(dice.mean()) for _, dice in each]
        shares = [overlap.falsely_marked(f, mask) for f in found]
        false[row] = None if shares[0] is None else float(np.mean(shares))  # type: ignore[arg-type]
    dice = {row: summarise(by_subject[row], names) for row in ROWS}
    gain = {row: summarise(by_subject[row] - by_subject["real"], names) for row in ROWS if row != "real"}
    about = {"n_marked": n, "n_empty": empty, "test_images": len(test), "test_subjects": len(names)}
    return about | {"dice": dice, "by_seed": by_seed, "false": false, "gain": gain, "protocol": PROTOCOL,
                    "notes": [*notes, *_notes(about, len(dice["real"]["ci"] or []) > 0)],
                    **_table(dice, by_seed, false, gain, len(test))}  # fmt: skip


def _notes(about: dict[str, int], interval: bool) -> list[str]:
    said = (f"Every training set has {about['n_marked']} images with a marked pixel and {about['n_empty']} without "
            "(real and fake ones together: of each kind), and every network equally many steps.")  # fmt: skip
    few = f"No interval: {about['test_subjects']} test subjects with a marked pixel are too few to resample."
    return [said] if interval else [said, few]


def _drawn(images: ImageSet, among: NDArray[np.int64], n: int, empty: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images and masks: so many with a marked pixel, and so many with an empty mask."""
    rng, marked = np.random.default_rng([seed, 13]), images.marked[among]
    at = np.concatenate([rng.permutation(among[marked > 0])[:n], rng.permutation(among[marked == 0])[:empty]]).tolist()
    return images.images(at), images.masks(at)


def _trained(images: Tensor, masks: Tensor, seed: int, number: int) -> UNet:
    """A network; the start depends on seed and number, the order on these and the step."""
    images, masks = _squared(images, -1.0), _squared(masks, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2000 * seed + number)
        network = UNet(1, 1, images.shape[-1], WIDTH)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    places, stream = torch.arange(BATCH), (seed << 8) + 2 * number + 128
    network.train()
    for step in range(STEPS):
        at = (uniform(stream, step, places, 1)[:, 0] * len(images)).long()
        batch = augment(Batch(image=images[at], mask=masks[at], index=places), CHANGES, stream + 1, step)
        assert batch.mask is not None
        optimizer.zero_grad()
        logits = network(batch.image)
        (cross_entropy(logits, batch.mask) + soft_dice(logits, batch.mask)).mean().backward()
        optimizer.step()
    return network.eval()


def _squared(images: Tensor, fill: float) -> Tensor:
    """Filled below and to the right until both sides are what a U-Net takes."""
    height, width = images.shape[2:]
    side = -(-max(height, width) // FACTOR) * FACTOR
    return pad(images, (0, side - width, 0, side - height), value=fill)


@torch.no_grad()
def _called(network: UNet, images: ImageSet, at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, H, W) pixels called marked."""
    height, width = images.shape
    found = [network(_squared(images.images(p.tolist()), -1.0))[:, 0, :height, :width] > 0 for p in _parts(at)]
    return torch.cat(found).numpy()


def _threshold(images: Tensor, masks: Tensor) -> float:
    """The brightness above which Dice is highest, all pixels of the images together."""
    levels = torch.linspace(-1, 1, LEVELS)
    both, above = (torch.stack([((images > v) & (masks > m)).sum() for v in levels]) for m in (0.5, -0.5))
    return float(levels[(2 * both / (above + masks.sum())).argmax()])


def _brighter(images: ImageSet, at: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
    return torch.cat([images.images(p.tolist())[:, 0] > threshold for p in _parts(at)]).numpy()


def _parts(at: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [p for p in np.array_split(at, max(1, -(-len(at) // 64))) if len(p)]


def _table(
    dice: dict[str, Any], by_seed: dict[str, list[float]], false: dict[str, float | None], gain: dict[str, Any],
    images: int,
) -> dict[str, Any]:  # fmt: skip
    rows = []
    for row in ROWS:
        sd = f" ± {np.std(by_seed[row], ddof=1):.3f}" if len(by_seed[row]) > 1 else ""
        more = [f"{gain[row]['mean']:+.3f}", _ci(gain[row])] if row in gain else [None, None]
        share = false[row]
        rows.append([row.replace("_", " "), f"{dice[row]['mean']:.3f}{sd}", _ci(dice[row]), *more,
                     None if share is None else 1000 * share])  # fmt: skip
    head = ["trained on", "Dice, mean ± sd of seeds", "95 % CI by subject", "gain over real", "95 % CI of the gain",
            "false, per 1,000 pixels"]  # fmt: skip
    title = f"Marked pixels found in {images} real test images of {dice['real']['n_subjects']} subjects that have some"
    heights = [100 * dice[row]["mean"] for row in ROWS]
    return {"tables": [{"title": title, "head": head, "rows": rows}],
            "bars": [{"title": "Dice on real test images, %", "labels": [r.replace("_", " ") for r in ROWS],
                      "heights": heights}]}  # fmt: skip


def _ci(one: dict[str, Any]) -> str | None:
    return None if one["ci"] is None else f"{one['ci'][0]:.3f} to {one['ci'][1]:.3f}"

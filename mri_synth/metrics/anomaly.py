"""How well a map of scores finds lesions: AUROC, average precision and best Dice of each subject's pixels.

Pixels are those of the brain (`brain`): background would be told from lesions by any map, and flatter all of them.
Equal to scikit-learn (`roc_auc_score`, `average_precision_score`), to which tests hold it, at a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mri_synth.data.prepare import FOREGROUND
from mri_synth.metrics.scores import summarise

Array = NDArray[Any]
CLOSING = 0.025
"""Radius of the closing of the brain mask, as a share of the image's side: 3 pixels of 128."""

PROTOCOLS = {
    "anomaly_auroc": "area under the ROC curve of lesion against other pixels",
    "anomaly_ap": "average precision of lesion pixels, sum over thresholds of precision times the gain in recall",
    "anomaly_dice": "highest Dice over all thresholds; the threshold is chosen with the mask in hand, for each subject "
    "anew, so that this is a bound and not what a fixed threshold reaches",
}
WHERE = (
    "all slices of a subject pooled, pixels of the brain alone (above 10 % of the range, closed, holes filled); mean "
    "over the subjects with a lesion, interval by resampling them"
)


@dataclass(frozen=True)
class Detection:
    """How well one map of scores finds lesions. NaN where there are no pixels of both kinds.

    Attributes:
        auroc: chance that a lesion pixel scores above another one, ties counting half.
        ap: average precision.
        dice: best over all thresholds.
        threshold: pixels that score as high or higher are the lesion of the best Dice.
    """

    auroc: float
    ap: float
    dice: float
    threshold: float


def detection(score: Array, lesion: Array) -> Detection:
    """AUROC, average precision and best Dice of scores; equal scores fall to the same side of every threshold.

    `AUROC = P(s_lesion > s_other) + P(s_lesion = s_other) / 2`, `AP = sum_k (R_k - R_k-1) P_k`,
    `Dice = max_k 2 TP_k / (2 TP_k + FP_k + FN_k)`, k over the distinct scores from the highest down.

    Args:
        score: (N,) higher is more anomalous, finite.
        lesion: (N,) bool or {0, 1}.

    Returns:
        The three, and the threshold of the best Dice.
    """
    order = np.argsort(-score, kind="stable")
    ordered, found = score[order], np.cumsum(lesion[order] > 0, dtype=np.float64)
    if not len(found) or found[-1] in (0, len(found)):
        return Detection(np.nan, np.nan, np.nan, np.nan)
    ends = np.flatnonzero(np.append(np.diff(ordered) != 0, True))  # the last of each run of equal scores
    tp, called = found[ends], ends + 1.0
    fp, positives = called - tp, found[-1]
    recall, fall_out = np.append(0, tp) / positives, np.append(0, fp) / (len(found) - positives)
    dice = 2 * tp / (called + positives)
    best = int(dice.argmax())
    return Detection(
        auroc=float(np.trapezoid(recall, fall_out)),
        ap=float((np.diff(recall) * tp / called).sum()),
        dice=float(dice[best]),
        threshold=float(ordered[ends[best]]),
    )


def brain(images: Array) -> Array:
    """The head or brain of each image, dark parts inside it included: foreground, closed by a disc, holes filled.

    A lesion may be darker than the foreground's threshold, as may CSF; both are inside.

    Args:
        images: (N, H, W) in [-1, 1].

    Returns:
        (N, H, W) bool; False throughout for an image without foreground.
    """
    radius = max(1, round(CLOSING * min(images.shape[1:])))
    reach = np.arange(-radius, radius + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius**2
    out = np.zeros(images.shape, bool)
    for mask, image in zip(out, images, strict=True):
        wide = np.pad(image > FOREGROUND, radius)  # the closing erodes from the image's border otherwise
        mask[:] = ndimage.binary_fill_holes(ndimage.binary_closing(wide, disc))[radius:-radius, radius:-radius]
    return out


def by_subject(score: Array, lesion: Array, region: Array, subjects: Sequence[str]) -> dict[str, Detection]:
    """Detection in each subject's slices together.

    Args:
        score: (N, H, W).
        lesion: (N, H, W) bool or {0, 1}.
        region: (N, H, W) bool, the pixels that count.
        subjects: (N,) whose slice it is.

    Returns:
        Subject to its detection, sorted by name; NaN where the subject has no lesion.
    """
    names = np.asarray(subjects, str)
    rows = {name: np.flatnonzero(names == name) for name in np.unique(names).tolist()}
    return {name: detection(score[at][region[at]], lesion[at][region[at]]) for name, at in rows.items()}


def summary(found: dict[str, Detection]) -> dict[str, dict[str, Any]]:
    """Mean over the subjects with a lesion, their spread, and an interval from resampling them.

    Args:
        found: subject to its detection.

    Returns:
        "anomaly_auroc", "anomaly_ap", "anomaly_dice" to mean, sd, ci, n_subjects (with a lesion),
        n_without_lesion (left out) and protocol.
    """
    out = {}
    for name, text in PROTOCOLS.items():
        values = np.array([getattr(d, name.removeprefix("anomaly_")) for d in found.values()])
        figures = summarise(values, list(found))
        del figures["n_slices"]  # one value is of a subject
        without = int(np.isnan(values).sum())
        out[name] = figures | {"n_without_lesion": without, "protocol": f"{text}; {WHERE}"}
    return out


def gain(found: dict[str, Detection], others: dict[str, dict[str, Detection]]) -> dict[str, Any]:
    """AUROC of a score less that of the best of other maps, subject by subject.

    The best is the one with the highest mean on these very subjects: the hardest to beat, chosen with hindsight that
    no user of it has. The interval is of the difference, so that what makes a subject hard for both counts for neither.

    Args:
        found: subject to the score's detection.
        others: name of the map to the same of it, of the same subjects; at least one.

    Returns:
        mean, sd, ci, n_subjects (with a lesion), n_without_lesion (left out), against (the best's name), protocol; all
        None or 0 where no subject has a lesion.
    """
    aurocs = {name: np.array([d.auroc for d in of.values()]) for name, of in others.items()}
    best = max(aurocs, key=lambda name: float(np.nansum(aurocs[name])))
    differences = np.array([d.auroc for d in found.values()]) - aurocs[best]
    figures = summarise(differences, list(found))
    del figures["n_slices"]
    protocol = (
        f"AUROC less that of '{best}', the best here of the maps that need no model, in each subject; {WHERE}: above 0 "
        "throughout, the score is better than any of them"
    )
    without = int(np.isnan(differences).sum())
    return figures | {"n_without_lesion": without, "against": best, "protocol": protocol}

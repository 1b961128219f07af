"""Accuracy of classifiers, and the table of what synthetic images are good for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.metrics.scores import LEAST_SUBJECTS

STYLED = "_styled"
"""Ending of a row with style transfer."""


@dataclass(frozen=True)
class Row:
    """A training set, and the classifiers that are trained on it.

    Attributes:
        name: such as "real", "dcgan", "real_and_dcgan_styled", "told_dcgan".
        what: in words, for protocol and table.
        told: whether they tell synthetic from real images, and not one group from another.
        shallow: whether they see border and histogram only.
    """

    name: str
    what: str
    told: bool = False
    shallow: bool = False


def rows(generators: Sequence[str], styled: bool) -> list[Row]:
    """Rows of the table.

    Args:
        generators: their names.
        styled: whether there are rows with style transfer.

    Returns:
        Real images alone, border and histogram alone, and of each generator, without and with style transfer: trained
        on synthetic images, on real and synthetic ones, and to tell one from the other.
    """
    border = Row("border", "trained on real images, of which it sees border and histogram only", shallow=True)
    found = [Row("real", "trained on real images alone"), border]
    for name in generators:
        for key in (name, name + STYLED) if styled else (name,):
            what = f"images of {name}{' with style transfer' if key != name else ''}"
            found += [Row(key, f"trained on {what}"), Row(f"real_and_{key}", f"trained on real images and {what}"),
                      Row(f"told_{key}", f"real test images against {what}", told=True)]  # fmt: skip
    return found


def accuracy(logits: Tensor, group: Tensor) -> Tensor:
    """Whether the most likely group is the right one.

    `a = 1 if argmax_c logit_c = g else 0`; its mean over images is the accuracy

    Args:
        logits: (..., B, C).
        group: (B,) int64.

    Returns:
        (..., B) float32, 0 or 1.
    """
    return (logits.argmax(-1) == group).float()


def table(
    rows: Sequence[Row], by_seed: Mapping[str, Sequence[float]], right: Mapping[str, NDArray[np.float64]],
    group: NDArray[np.int64], subjects: Sequence[str], kids: Mapping[str, Any], about: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What came of every training set, for report and results.

    Args:
        rows: of the table.
        by_seed: name to the accuracy of each classifier.
        right: name to (N,) shares of classifiers that told a real test image right, of rows that tell groups apart.
        group: (N,) of the test images.
        subjects: (N,) whose image it is.
        kids: name of a set to its KID and interval.
        about: "n_per_class", "style_steps", "style_content", "published", "groups", "space", "simulated".

    Returns:
        Plain values: "tables", each with title, head and rows; "bars", each with title, labels and heights in percent;
        "notes", sentences.
    """
    fitted = [[r.name.replace("_", " "), _percent(by_seed[r.name]), *_interval(right[r.name], group, subjects),
               *_gain(r.name, right, group, subjects)] for r in rows if not r.told]  # fmt: skip
    head = ["trained on", "accuracy %, mean ± sd of seeds", "95 % CI by subject", "gain over", "gain, points",
            "95 % CI of the gain"]  # fmt: skip
    title = f"Told apart on {len(subjects)} real test images: {' against '.join(about['groups'])}"
    tables: list[dict[str, Any]] = [{"title": title, "head": head, "rows": fitted}]
    names = [r.name for r in rows if f"told_{r.name}" in by_seed]
    if names:
        published: dict[str, float] = {}
        for name, values in about["published"].items():
            published |= dict(zip((name, name + STYLED), values, strict=False))
        tables.append({
            "title": "Synthetic against real, by a fresh classifier (50 % where nothing tells them apart)",
            "head": ["images of", "accuracy %, mean ± sd of seeds", f"KID, {about['space']}", "95 % CI of KID",
                     "published accuracy %, undefined"],
            "rows": [[n.replace("_", " "), _percent(by_seed[f"told_{n}"]), *_kid(kids.get(n)), published.get(n)]
                     for n in names],
        })  # fmt: skip
    bars = [_bars("accuracy on real test images, %", {r.name: by_seed[r.name] for r in rows if not r.told})]
    if names:
        bars.append(_bars("told from real, %", {n: by_seed[f"told_{n}"] for n in names}))
    if about["published"]:
        told = {n + e: [v / 100] for n, values in about["published"].items()
                for e, v in zip(("", STYLED), values, strict=False)}  # fmt: skip
        bars.append(_bars("published accuracy, %: of what is not said", told))
    return {
        "tables": tables,
        "bars": bars,
        "notes": [*_notes(about), *_confounded(right, group, subjects)],
        "by_seed": {k: list(v) for k, v in by_seed.items()},
    }


def _notes(about: Mapping[str, Any]) -> list[str]:
    n, content = about["n_per_class"], about["style_content"]
    notes = [f"Every training set has {n} images of each group (real and synthetic ones together: {n} of each "
             "kind), and every classifier the same steps of the same batch. Intervals resample test subjects; the sd "
             "is over classifiers with other starts and orders, the images being the same."]  # fmt: skip
    if about["style_steps"] and content == "real":
        notes.append(f"With style transfer ({about['style_steps']} evaluations): real training images in the style of "
                     "the synthetic ones, as was published. Their anatomy, and so their label, is that of real images: "
                     "an accuracy near theirs says that the label was not painted over, not that a generator is "
                     "good.")  # fmt: skip
    elif about["style_steps"]:
        notes.append(f"With style transfer ({about['style_steps']} evaluations): synthetic images in the style of real "
                     "training images of the same group.")  # fmt: skip
    notes.append(
        "Border and histogram: a linear classifier that sees no anatomy. Where it comes near the others, "
        "groups differ in how their files were made, and no accuracy here says that disease was seen."
    )
    notes.append("KID is against test images with as many of each group.")
    if about["simulated"]:
        notes.append("All images are simulated.")
    return notes


def _confounded(
    right: Mapping[str, NDArray[np.float64]], group: NDArray[np.int64], subjects: Sequence[str]
) -> list[str]:
    """What to think of the table where border and histogram tell the groups apart better than chance."""
    if "border" not in right:
        return []
    value, interval = balanced(right["border"], group, subjects)
    chance = 1 / len(np.unique(group))
    if interval is None or interval[0] <= chance:
        return []
    return [f"CAUTION: border and histogram alone tell {100 * value:.1f} % of the test images right ({chance:.0%} by "
            "chance): the groups differ in more than anatomy, as they do where class and source of the files go "
            "together. Accuracies up to this one are no sign that a lesion was seen."]  # fmt: skip


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def balanced(
    right: NDArray[np.float64], group: NDArray[np.int64], subjects: Sequence[str], draws: int = 2000
) -> tuple[float, list[float] | None]:
    """Accuracy in which every group counts alike, and an interval from resampling subjects.

    `a = mean_g mean_{i in g} right_i`, the groups' means taken anew in every resample

    Args:
        right: (N,) of each image.
        group: (N,) from 0 on.
        subjects: (N,) whose image it is.
        draws: bootstrap resamples of the subjects.

    Returns:
        The accuracy, and [2.5 %, 97.5 %], None for fewer than LEAST_SUBJECTS subjects.
    """
    names, who = np.unique(np.asarray(subjects, str), return_inverse=True)
    sums = np.zeros((int(group.max()) + 1, len(names)))
    counts = sums.copy()
    np.add.at(sums, (group, who), right)
    np.add.at(counts, (group, who), 1)
    here = counts.sum(1) > 0
    value = float((sums[here].sum(1) / counts[here].sum(1)).mean())
    if len(names) < LEAST_SUBJECTS:
        return value, None
    pick = np.random.default_rng(0).integers(len(names), size=(draws, len(names)))
    totals, seen = sums[here][:, pick].sum(2), counts[here][:, pick].sum(2)
    means = np.where(seen > 0, totals / np.maximum(seen, 1), np.nan)
    return value, [float(q) for q in np.quantile(np.nanmean(means, 0), [0.025, 0.975])]


def _interval(values: NDArray[np.float64], group: NDArray[np.int64], subjects: Sequence[str]) -> list[str | None]:
    ci = balanced(values, group, subjects)[1]
    return [None if ci is None else f"{100 * ci[0]:.1f} to {100 * ci[1]:.1f}"]


def _gain(
    name: str, right: Mapping[str, NDArray[np.float64]], group: NDArray[np.int64], subjects: Sequence[str]
) -> list[str | None]:
    """Against the same without style transfer, or against real images alone; image by image, so that what is hard for
    both counts for neither."""
    other = name.removesuffix(STYLED) if name.endswith(STYLED) else "real"
    if name in ("real", "border"):
        return [None, None, None]
    difference = right[name] - right[other]
    points = balanced(difference, group, subjects)[0]
    return [other.replace("_", " "), f"{100 * points:+.1f}", *_interval(difference, group, subjects)]


def _kid(found: Any) -> list[Any]:
    if not found:
        return [None, None]
    value, ci = found
    return [value, None if ci is None else f"{ci[0]:.4f} to {ci[1]:.4f}"]


def _bars(title: str, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    return {"title": title, "labels": [n.replace("_", " ") for n in values],
            "heights": [100 * float(np.mean(v)) for v in values.values()]}  # fmt: skip

"""Which slice of a store is in which split, what leaked from one into another, and the table that says so."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_synth.data.scan import SPLITS
from mri_synth.data.settings import SplitSettings
from mri_synth.data.split import DROPPED, assign, drop_leaks
from mri_synth.data.store import MASK, SCALE, Store, slice_hash


@dataclass(frozen=True)
class Partition:
    """The splits of a store.

    Attributes:
        store: the prepared slices.
        of_study: split of each study; "" for none.
        of_row: (N,) split of each slice; "" for none.
        leaks: what was dropped, and why.
        leak_of: study number to the reason for which it, or some of its slices, were dropped.
    """

    store: Store
    of_study: list[str]
    of_row: NDArray[Any]
    leaks: list[str]
    leak_of: dict[int, str]

    def rows(self, split: str) -> NDArray[np.intp]:
        """Positions in the store's table of the slices of a split."""
        return np.flatnonzero(self.of_row == split)

    def manifest(self) -> list[dict[str, Any]]:
        """One record per file: split, subject, session, contrast, path, sha256, slices, label, age, sex, site, ...

        `slices` counts those in use, `slices_left_out` those that `data.slices` did not choose, `slices_dropped` those
        that leaked; why is the `reason`.
        """
        store = self.store
        number_of = {s["id"]: i for i, s in enumerate(store.studies)}
        study_of_row, in_use = store.table["study"], self.of_row != DROPPED
        used = np.bincount(study_of_row[in_use], minlength=len(store.studies))
        dropped = np.bincount(study_of_row[~in_use], minlength=len(store.studies))
        rows = []
        for f in store.files:
            number = number_of.get(f["study"], -1)
            study = store.studies[number] if number >= 0 else {}
            prepared = f.get("slices", 0)
            left = 0 if f["bad"] or number < 0 or not prepared else int(used[number])
            given = number >= 0 and self.of_study[number] != DROPPED
            lost = int(dropped[number]) if prepared and number in self.leak_of else 0
            split = self.of_study[number] if given and not f["bad"] and used[number] else DROPPED
            reason = f["reason"]
            if not reason and number in self.leak_of and (lost or not split):
                reason = self.leak_of[number] + (f"; {lost} of {prepared} slices dropped" if left else "")
            elif not reason and not split:
                reason = "not in the split"
            about = {k: study.get(k) for k in ("label", "age", "sex", "site")}
            facts = {k: f.get(k) for k in ("shape", "spacing_mm", "orientation", "dtype", "low", "high")}
            rows.append({"split": split, "subject": f["subject"], "session": f["session"], "contrast": f["contrast"],
                         "path": f["path"], "study": study.get("path", ""), "sha256": f["sha256"], "slices": left,
                         "slices_left_out": f.get("slices_left_out", 0), "slices_dropped": lost,
                         **about, **facts, "reason": reason})  # fmt: skip
        return rows

    def fingerprints(self, split: str) -> list[str]:
        """What a split is made of, to be compared with another's: a short hash of each file, by content.

        Args:
            split: train, val or test.

        Returns:
            12 hexadecimal digits per file, sorted; of simulated scans, by what they are called.
        """
        rows = [r for r in self.manifest() if r["split"] == split and r["contrast"] != MASK]
        names = [r["sha256"] or f"{r['path']} {r['contrast']}" for r in rows]
        return sorted({hashlib.sha256(name.encode()).hexdigest()[:12] for name in names})

    def ranges(self, split: str) -> dict[str, list[float]]:
        """What -1 and 1 typically are in source units: medians over a split's files.

        Args:
            split: train, val or test.

        Returns:
            Contrast to [low, high].
        """
        ends: dict[str, list[list[float]]] = {}
        for row in self.manifest():
            if row["split"] == split and row["low"] is not None:
                ends.setdefault(row["contrast"], []).append([row["low"], row["high"]])
        return {contrast: np.median(values, axis=0).tolist() for contrast, values in ends.items()}


def partition(store: Store, settings: SplitSettings, fill: bool) -> Partition:
    """Part a store's studies, and check that no subject and no image is in two splits.

    Args:
        store: the prepared slices.
        settings: `data.split`.
        fill: train and val must hold something.

    Returns:
        The partition; what leaked is dropped and listed, where the settings say so.

    Raises:
        UserError: the split leaks, or cannot be made.
    """
    splits = assign(store.studies, settings, fill=fill, domains=_domains(store))
    names = [s["path"] for s in store.studies]
    dropped = drop_leaks([[s["subject"]] for s in store.studies], splits, names, "subject", settings)
    leaks, leak_of = [reason for _, reason in dropped], dict(dropped)
    of_row = np.asarray(splits, object)[store.table["study"]]
    rows, keys = _shared_images(store, of_row)
    row_names = [f"{names[store.table['study'][r]]} (slice {store.table['slice'][r]})" for r in rows]
    of_shared = of_row[rows].tolist()
    for k, reason in drop_leaks(keys, of_shared, row_names, "identical image", settings):
        of_row[rows[k]] = of_shared[k]
        leaks.append(reason)
        leak_of.setdefault(int(store.table["study"][rows[k]]), reason)
    return Partition(store, splits, of_row, leaks, leak_of)


def _domains(store: Store) -> list[str]:
    """The one contrast of each study, where there are several contrasts and no study has two; empty elsewhere."""
    contrasts = [name for name in store.counts if name != MASK]
    of_study = [""] * len(store.studies)
    for name in contrasts if len(contrasts) > 1 else []:
        for study in np.unique(store.table["study"][store.table[f"row_{name}"] >= 0]).tolist():
            if of_study[study]:
                return []
            of_study[study] = name
    return of_study


def _shared_images(store: Store, splits: NDArray[Any]) -> tuple[list[int], list[list[int]]]:
    """The rows with an image that another split has too, and the hashes of their images; blank images do not count.

    Rows that share none are passed over here, as arrays: they are nearly all, and a warm start waits for this.
    """
    blank = slice_hash(np.full((store.size, store.size), -SCALE, np.int16))  # such as beyond the field of view
    used = (store.table["foreground"] > 0) & (splits != DROPPED)  # blanks are alike
    places, hashes = [np.zeros(0, np.intp)], [np.zeros(0, np.uint64)]
    for name in store.counts:
        if name != MASK:
            at = store.table[f"row_{name}"]
            places.append(np.flatnonzero(used & (at >= 0)))
            hashes.append(store.table[f"hash_{name}"][at[places[-1]]])
    place, image = np.concatenate(places), np.concatenate(hashes)
    place, image = place[image != blank], image[image != blank]
    _, which = np.unique(image, return_inverse=True)
    number = np.unique(splits.astype(str), return_inverse=True)[1][place]
    least = np.full(which.max(initial=-1) + 1, len(SPLITS) + 1)
    most = np.full(len(least), -1)
    np.minimum.at(least, which, number)
    np.maximum.at(most, which, number)
    keys: dict[int, list[int]] = {}
    for k in np.flatnonzero((least < most)[which]).tolist():
        keys.setdefault(int(place[k]), []).append(int(image[k]))
    rows = sorted(keys)
    return rows, [keys[r] for r in rows]

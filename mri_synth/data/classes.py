"""Training on some classes only: what the others lose in train and val is listed like any other loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mri_synth.data.partition import Partition
from mri_synth.data.split import DROPPED
from mri_synth.errors import UserError


def only_classes(whole: Partition, wanted: Sequence[str], classes: Sequence[str]) -> Partition:
    """Drop the slices of train and val that are of another class, or of none that is known; test keeps all.

    Who is in which split stays as it is: by subject. Where labels are of slices, the wanted slices of a subject stay.

    Args:
        whole: the splits with all classes.
        wanted: names of classes that train and val may hold.
        classes: names in index order.

    Returns:
        The partition with those slices dropped, and the reason at each study that lost some.

    Raises:
        UserError: a wanted class that the data do not have.
    """
    key = f"data.train_classes=[{','.join(wanted)}]"
    if unknown := [c for c in wanted if c not in classes]:
        here = f"classes here: {', '.join(classes)}" if classes else "this data has no classes"
        raise UserError(f"{key}: there is no {' and no '.join(unknown)}; {here}; null is all")
    table = whole.store.table
    right = np.isin(table["label"], [classes.index(c) for c in wanted])
    lost = np.isin(whole.of_row.astype(str), ("train", "val")) & ~right
    if not lost.any():
        return whole
    of_row = np.where(lost, DROPPED, whole.of_row)
    reason = f"not of class {' or '.join(wanted)} (data.train_classes)"
    studies = np.unique(table["study"][lost]).tolist()
    leak_of = whole.leak_of | {s: f"{whole.leak_of[s]}; {reason}" if s in whole.leak_of else reason for s in studies}
    told = f"{int(lost.sum())} slices of {len(studies)} scans in train and val: {reason}"
    return replace(whole, of_row=of_row, leaks=[*whole.leaks, told], leak_of=leak_of)

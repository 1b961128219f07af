"""Healthy twins of slices with a lesion, prepared as those slices were."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mri_synth.data.prepare import Study, prepare
from mri_synth.data.settings import IntensitySettings, SliceSettings
from mri_synth.data.store import MASK

if TYPE_CHECKING:
    from mri_synth.data.stored import StoredData


def healthy_twins(data: StoredData, rows: NDArray[np.intp]) -> dict[int, NDArray[np.float32]]:
    """What slices of the first contrast are without their lesions, on the intensity scale of the lesioned scan.

    Args:
        data: whose store is open; it says what it knows by `healthy_twin`.
        rows: of the store.

    Returns:
        Row to (H, W) float32 in [-1, 1], of those with a mark in their mask whose twin is known.
    """
    store, contrast = data.store, data.contrasts[0]
    out: dict[int, NDArray[np.float32]] = {}
    at = store.table.get(f"row_{MASK}", np.full(store.rows, -1))
    rows = rows[(at[rows] >= 0) & (store.table.get(f"row_{contrast}", at)[rows] >= 0)]
    rows = rows[store.read(MASK, at[rows]).any((1, 2))]
    used = {(f["path"], f["contrast"]): f for f in store.files if f.get("low") is not None}
    every = SliceSettings(unit="index")  # the store has chosen
    for scan in data.found:
        file = used.get((str(scan.path), contrast)) if scan.contrast == contrast else None
        here = (
            [] if file is None else [r for r in rows if store.studies[store.table["study"][r]]["id"] == file["study"]]
        )
        twin = data.healthy_twin(scan) if here else None
        if file is None or twin is None:
            continue
        scale = IntensitySettings(method="fixed", range=[file["low"], file["high"]])
        settings = replace(data.preparation, intensity=scale, slices=every)
        item = prepare(Study({contrast: scan}), settings, lambda _, volume=twin: volume)  # type: ignore[misc]
        places = np.searchsorted(item.columns["slice"], store.table["slice"][here])
        out |= {int(row): item.images[contrast][k] for row, k in zip(here, places, strict=True)}
    return out

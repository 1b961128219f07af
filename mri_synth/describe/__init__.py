"""What a data set is: a data module read into a `Description`, of which `describe.page` makes one HTML page."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_synth import config, html
from mri_synth.describe.page import BINS, SPLITS, Description, Sheet, Views, build, spacing_text
from mri_synth.errors import UserError
from mri_synth.overrides import admit_unknown

if TYPE_CHECKING:
    from mri_synth.data.base import MRIDataModule
    from mri_synth.data.scan import Scan

MOST_IMAGES = 1000  # per split, for the histograms
MOST_SLICES = 24
BLOCKS = (
    "These files name no subjects, so each file counts as one; {} neighbours in natural order stay in one split, "
    "since they may show one patient."
)


def describe_overrides(overrides: Sequence[str], output: Path) -> Path:
    """Writes the page of the data that a command line asks for: what `mri-synth describe data=ixi` does.

    Args:
        overrides: words such as data=ixi, data.size=128; as for a run.
        output: the page.

    Returns:
        The page's path.

    Raises:
        UserError: for every mistake in the words, if the data cannot be used, or the page cannot be written.
    """
    data = data_of(overrides)
    data.on_bad_file = "skip"  # the page lists what cannot be used; refusing to look would hide the rest
    return describe(data, output)


def data_of(overrides: Sequence[str]) -> MRIDataModule:
    """The data module that a command line asks for, to be looked at.

    Args:
        overrides: words such as data=ixi, data.size=128; as for a run.

    Returns:
        The data module; nothing of its data was opened.

    Raises:
        UserError: for every mistake in the words.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        words = admit_unknown(overrides)
        with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
            cfg = compose("run", words)
    except HydraException as error:
        raise UserError(f"{' '.join(overrides)}: {error}") from error
    config.check(cfg)
    data: MRIDataModule = instantiate(cfg.data, _convert_="all")
    return data


def describe(data: MRIDataModule, output: Path) -> Path:
    """Writes the page of a data module's data.

    Args:
        data: a data module; it is prepared and set up here if it is not yet.
        output: the page, such as page.html.

    Returns:
        The page's path.

    Raises:
        UserError: if the data cannot be used or the page cannot be written.
    """
    data.prepare_data()
    data.setup("look")
    return html.write(build(gather(data)), output)


def gather(data: MRIDataModule) -> Description:
    """Everything the page says, from a data module that is set up."""
    found = Description(
        name=type(data).__name__,
        root=str(data.root or ""),
        simulated=data.spec.simulated,
        settings={
            "contrasts": ", ".join(data.spec.contrasts),
            "plane": data.spec.plane or "as in the pictures",
            "image size": f"{data.size} x {data.size} pixels",
            "pixel spacing": spacing_text(data.spec.spacing_mm) or "differs between images",
            "fit": data.fit,
            "slices": _settings(data.slices),
            "intensity": _settings(data.intensity),
            "split": _settings(data.split),
        },
        rows=data.manifest,
        split_note=_split_note(data),
        leaks=list(data.leaks),
    )
    counts: dict[str, dict[str, NDArray[np.int64]]] = defaultdict(dict)
    for split in SPLITS:
        view = data.view(split)
        if not len(view):
            continue
        names = [*data.spec.classes, "unlabelled"]
        labels = Counter(view.store.table["label"][view.rows].tolist())
        found.labels[split] = {names[label]: n for label, n in sorted(labels.items(), key=_known_first)}
        chosen = np.unique(np.linspace(0, len(view) - 1, min(len(view), MOST_IMAGES)).astype(int)).tolist()
        found.counted += len(chosen)
        for start in range(0, len(chosen), 64):
            batch = view.__getitems__(chosen[start : start + 64])
            images = batch.image.numpy()
            for contrast in dict.fromkeys(batch.contrast):
                here = images[[name == contrast for name in batch.contrast]]
                histogram = np.histogram(here, found.edges)[0]
                counts[contrast][split] = counts[contrast].get(split, np.zeros(BINS, np.int64)) + histogram
    found.histograms = {c: {s: v.tolist() for s, v in by.items()} for c, by in counts.items()}
    _gather_views(data, found)
    _gather_sheets(data, found)
    return found


def _split_note(data: MRIDataModule) -> str:
    notes = [BLOCKS.format(data.split.block_size)] if data.split.by == "block" else []
    empty = [split for split in ("train", "val") if not len(data.view(split))]
    notes += [f"Not enough to train on: nothing is in {' and '.join(empty)}."] if empty else []
    return " ".join(notes)


def _known_first(item: tuple[int, int]) -> tuple[bool, int]:
    return item[0] < 0, item[0]


def _settings(value: object) -> str:
    return ", ".join(f"{name} {v}" for name, v in vars(value).items() if v is not None)


def _gather_views(data: MRIDataModule, found: Description) -> None:
    """The first usable volume of each contrast, read from its file."""
    scans: dict[tuple[str, str], Scan] = {(str(s.path), s.contrast): s for s in data.found}
    for contrast in data.spec.contrasts:
        rows = [r for r in found.rows if r["contrast"] == contrast and r["split"]]
        volumes = [r for r in rows if r["orientation"] != "picture"]
        if not volumes:
            found.notes.append(f"No three-plane view of {contrast}: its files are single pictures.")
            continue
        row = volumes[0]
        try:
            volume = data.read(scans[row["path"], contrast])
        except UserError as error:
            found.notes.append(f"No three-plane view of {contrast}: {error}")
            continue
        caption = f"{contrast}: subject {row['subject']}, {Path(row['path']).name}"
        planes = three_planes(volume.array, volume.spacing_mm)
        found.views.append(Views(contrast=contrast, name=caption, planes=planes))


def _gather_sheets(data: MRIDataModule, found: Description) -> None:
    """The slices of the first training subject; where it has but one, one slice of each of many subjects."""
    view = data.view("train")
    for position, contrast in enumerate(view.contrasts):
        items = np.flatnonzero(view.contrast == position)
        if not len(items):
            continue
        subject = view.subjects[items[0]]
        mine = items[view.subjects[items] == subject]
        single = len(mine) == 1 and len(items) > 1
        mine = items if single else mine
        chosen = mine[np.unique(np.linspace(0, len(mine) - 1, min(len(mine), MOST_SLICES)).astype(int))]
        batch = view.__getitems__(chosen.tolist())
        assert batch.slice is not None
        captions = list(batch.subject) if single else [f"slice {number}" for number in batch.slice.tolist()]
        whose = "training images" if single else f"slices of subject {subject}"
        title = f"{contrast}: {len(chosen)} of the {len(mine)} chosen {whose}"
        found.sheets.append(Sheet(title=title, images=batch.image[:, 0].numpy(), captions=captions))


def three_planes(array: NDArray[Any], spacing_mm: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    """Middle slices of a volume as they are looked at: superior or anterior up, the patient's left at the left.

    Args:
        array: (X, Y, Z), axes towards Right, Anterior, Superior, any intensities.
        spacing_mm: voxel spacing along each axis.

    Returns:
        axial (Y, X), coronal (Z, X) and sagittal (Z, Y; anterior at the left), the 0.5 and 99.5 percentiles of the
        volume at -1 and 1, resampled so that pixels are square and as small as the finest spacing.
    """
    low, high = np.percentile(array, [0.5, 99.5])
    high = high if high > low else low + 1
    scaled = np.clip((array.astype(np.float32) - low) / (high - low), 0, 1) * 2 - 1
    x, y, z = (n // 2 for n in array.shape)
    cuts = {
        "axial": (scaled[:, :, z].T[::-1], spacing_mm[1], spacing_mm[0]),
        "coronal": (scaled[:, y, :].T[::-1], spacing_mm[2], spacing_mm[0]),
        "sagittal": (scaled[x, :, :].T[::-1, ::-1], spacing_mm[2], spacing_mm[1]),
    }
    finest = min(spacing_mm)
    planes = {}
    for name, (cut, row, column) in cuts.items():
        size = (max(1, round(cut.shape[1] * column / finest)), max(1, round(cut.shape[0] * row / finest)))
        picture = Image.fromarray(np.ascontiguousarray(cut, dtype=np.float32))
        planes[name] = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return planes

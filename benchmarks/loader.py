"""Our loader against MONAI's CacheDataset and DataLoader: `python -m benchmarks.loader`.

Both deliver the same slices in the same order as float32 (64, 1, 128, 128); what arrives is compared before anything
is timed. MONAI, with its best worker count (0, 1 or 2, found first), is timed in three ways:
- `speedup_plain`: plain tensors (`set_track_meta(False)`, faster than its default) beside what our `Batch` holds
  (index, label, slice, age, subject, contrast, sex, site);
- `speedup_plain_metatensor`: as it comes: the same with MetaTensors that carry the header as `LoadImaged` leaves it;
- `speedup_plain_image_only`: bare images and nothing else, which is one copy of the float32 it keeps in memory.
`speedup_augmented`: left-right flip, affine (rotation, shift, zoom) and intensity (gain, gamma) of the same ranges on
both sides, MONAI's slice by slice in its workers on plain tensors, ours a batch at a time as in
`MRIDataModule.on_after_batch_transfer`.

Then, each in a fresh process: how soon the first batch comes from a store that stands, and how much memory two
data sets take.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, set_track_meta
from monai.data import DataLoader as MonaiLoader
from monai.transforms import (
    Compose,
    LoadImage,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandScaleIntensityd,
    Transform,
)
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import alternate, speedup, store
from benchmarks.noise import PER_SUBJECT, our_data, smooth
from mri_synth.data.augment import augment
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.sampler import EpochBatches
from mri_synth.data.settings import AugmentSettings

AUGMENT = AugmentSettings(flip=0.5, rotate_deg=10.0, translate=0.05, scale=0.1, gain=0.1, gamma=0.2)


class ReadSlice(Transform):
    """MONAI's deterministic part, which its cache keeps: item number to (1, size, size) float32."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, item: int) -> Tensor:
        return torch.from_numpy(smooth(item // PER_SUBJECT, self.size)[item % PER_SUBJECT][None].copy())


class ReadItem(ReadSlice):
    """The same with what our batches tell of an item."""

    def __call__(self, item: int) -> dict[str, Any]:  # type: ignore[override]
        return {"image": super().__call__(item), "index": item, "label": -1, "slice": item % PER_SUBJECT, "age": np.nan,
                "subject": f"{item // PER_SUBJECT:05d}", "contrast": "T1", "sex": "", "site": ""}  # fmt: skip


class ReadWithHeader(ReadItem):
    """The same as `LoadImaged` leaves it: a MetaTensor with the NIfTI header."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slice.nii"
            nib.save(nib.Nifti1Image(smooth(0, size)[0], np.eye(4)), path)  # type: ignore[no-untyped-call]
            self.header = LoadImage()(path).meta

    def __call__(self, item: int) -> dict[str, Any]:
        found = super().__call__(item)
        return found | {"image": MetaTensor(found["image"], meta=dict(self.header))}


def monai_augmentation(size: int) -> list[Any]:
    """MONAI's transforms of the ranges in `AUGMENT`."""
    a = AUGMENT
    return [
        RandFlipd("image", prob=a.flip, spatial_axis=1),
        RandAffined("image", prob=1.0, rotate_range=float(np.deg2rad(a.rotate_deg)), translate_range=a.translate * size,
                    scale_range=a.scale, mode="bilinear", padding_mode="zeros"),
        RandScaleIntensityd("image", factors=a.gain, prob=1.0),
        RandAdjustContrastd("image", prob=1.0, gamma=(1 / (1 + a.gamma), 1 + a.gamma)),
    ]  # fmt: skip


def monai_loader(cached: CacheDataset, batches: Any, workers: int) -> MonaiLoader:
    """MONAI's loader over its cache, in the order of ours."""
    return MonaiLoader(cached, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0)


def run_through(loader: Any) -> Callable[[], None]:
    """One pass over a loader."""

    def once() -> None:
        for _ in loader:
            pass

    return once


def run_through_augmented(data: MRIDataModule, loader: DataLoader[Batch]) -> Callable[[], None]:
    """One pass over our loader, each batch augmented as before a training step."""

    def once() -> None:
        for batch in loader:
            augment(batch, AUGMENT, data.seed, 0)

    return once


def best_workers(cached: CacheDataset, batch: int) -> tuple[int, dict[str, float]]:
    """The fastest of 0, 1 and 2 workers, and images per second with each, over the first 512 items."""
    items = min(512, len(cached))
    loaders = {str(w): monai_loader(cached, EpochBatches(items, batch, shuffle=True), w) for w in (0, 1, 2)}
    seconds = alternate({w: run_through(loader) for w, loader in loaders.items()}, passes=3, warmup=1)
    speed = {w: round(items / min(s)) for w, s in seconds.items()}
    return int(max(speed, key=lambda w: speed[w])), speed


def largest_difference(ours: DataLoader[Batch], peer: MonaiLoader) -> float:
    """Largest difference of two loaders' pixels over a whole pass; their shapes and lengths must agree."""
    largest = 0.0
    for mine, theirs in zip(ours, peer, strict=True):
        assert mine.image.shape == theirs["image"].shape, (mine.image.shape, theirs["image"].shape)
        assert mine.image.dtype == theirs["image"].dtype == torch.float32
        assert torch.equal(mine.index, theirs["index"])
        assert list(mine.subject) == theirs["subject"]
        largest = max(largest, float((mine.image - theirs["image"]).abs().max()))
    return largest


def compare(cache: str, items: int, size: int, batch: int, passes: int) -> dict[str, Any]:
    """Both loaders in alternating passes, plain and augmented."""
    data = our_data(cache, items, size, batch)
    loader = data.train_dataloader()
    set_track_meta(True)
    metatensor = CacheDataset(range(items), ReadWithHeader(size), progress=False)
    set_track_meta(False)
    plain = CacheDataset(range(items), ReadItem(size), progress=False)
    images = CacheDataset(range(items), ReadSlice(size), progress=False)
    augmented = CacheDataset(range(items), Compose([ReadItem(size), *monai_augmentation(size)]), progress=False)
    difference = largest_difference(loader, monai_loader(plain, loader.batch_sampler, 0))
    assert difference <= 0.5 / 32767 + 1e-7, f"the two deliver different pixels: {difference}"
    count = len(loader)
    result: dict[str, Any] = {"batch_size": batch, "size": size, "images_per_pass": count * batch,
                              "largest_difference": difference, "monai_workers": {},
                              "monai_images_per_s_by_workers": {}}  # fmt: skip

    def peer(kind: str, cached: CacheDataset) -> Callable[[], None]:
        workers, speed = best_workers(cached, batch)
        result["monai_workers"][kind], result["monai_images_per_s_by_workers"][kind] = workers, speed
        return run_through(monai_loader(cached, loader.batch_sampler, workers))

    peers = {"monai_plain": peer("plain", plain), "monai_metatensor": peer("metatensor", metatensor),
             "monai_image_only": peer("image_only", images)}  # fmt: skip
    seconds = alternate({"plain": run_through(loader), **peers}, passes, 1)
    augmenting = {"augmented": run_through_augmented(data, loader), "monai_augmented": peer("augmented", augmented)}
    seconds |= alternate(augmenting, passes, 1)
    return result | {
        "speedup_plain": round(speedup(seconds, "plain", "monai_plain"), 2),
        "speedup_plain_metatensor": round(speedup(seconds, "plain", "monai_metatensor"), 2),
        "speedup_plain_image_only": round(speedup(seconds, "plain", "monai_image_only"), 2),
        "speedup_augmented": round(speedup(seconds, "augmented", "monai_augmented"), 2),
        "s_per_pass": {name: round(median(s), 5) for name, s in seconds.items()},
        "images_per_s": {name: round(count * batch / median(s)) for name, s in seconds.items()},
        "ms_per_batch_least_and_most": {
            name: [round(1e3 * f(s) / count, 3) for f in (min, max)] for name, s in seconds.items()
        },
    }


def first_batch(cache: str, items: int, size: int, batch: int) -> float:
    """Seconds from a data module's construction (store opened and checked, split, leaks) to its first batch."""
    start = time.perf_counter()
    next(iter(our_data(cache, items, size, batch).train_dataloader()))
    return time.perf_counter() - start


def memory_growth(what: str, cache: str, items: int, size: int, batch: int) -> float:
    """MiB by which this process's resident memory peaks above its start, over set-up and one pass (Linux)."""

    def use(count: int) -> None:
        if what == "ours":
            run_through(our_data(cache, count, size, batch).train_dataloader())()
        else:
            cached = CacheDataset(range(count), ReadSlice(size), progress=False)
            run_through(MonaiLoader(cached, batch_size=batch, shuffle=True))()

    use(PER_SUBJECT)  # what is loaded and started on first use
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = _memory("VmRSS")
    use(items)
    return _memory("VmHWM") - start


def _memory(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def in_fresh_process(*words: object) -> float:
    """What one of the two functions above returns in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", "--part", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; nothing is stored")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("monai").setLevel(logging.ERROR)
    if arguments.part:
        what, cache, *numbers = arguments.part
        items, size, batch = map(int, numbers)
        part = first_batch(cache, items, size, batch) if what == "first" else (
            memory_growth(what, cache, items, size, batch))  # fmt: skip
        print(json.dumps(part))
        return
    items, sizes, size, batch, passes = (2_048, (2_000, 16_000), 128, 64, 7)
    if arguments.quick:
        items, sizes, size, batch, passes = (200, (100, 300), 32, 16, 3)
    with tempfile.TemporaryDirectory() as cache:
        result = {"peer": "MONAI CacheDataset, DataLoader", **compare(cache, items, size, batch, passes)}
        for n in (PER_SUBJECT, *sizes):
            our_data(cache, n, size, batch)
        result["first_batch_s"] = round(in_fresh_process("first", cache, sizes[-1], size, batch), 3)
        result["memory_growth_mib"] = {
            what: {n: round(in_fresh_process(what, cache, n, size, batch), 1) for n in sizes}
            for what in ("ours", "monai")
        }
    store("loader", result, keep=not arguments.quick)


if __name__ == "__main__":
    main()

"""Our loader against MONAI's CacheDataset and DataLoader: `python -m benchmarks.loader`.

Both deliver the same slices in the same order as float32 (64, 1, 128, 128); what arrives is compared before anything
is timed. MONAI is given its best worker count (0, 1 or 2, found first) and plain tensors, which are faster than its
MetaTensors. Augmented: left-right flip, affine (rotation, shift, zoom) and intensity (gain, gamma) of the same ranges,
MONAI's slice by slice in its workers, ours a batch at a time as in `MRIDataModule.on_after_batch_transfer`.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, set_track_meta
from monai.data import DataLoader as MonaiLoader
from monai.transforms import Compose, RandAdjustContrast, RandAffine, RandFlip, RandScaleIntensity, Transform
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.common import alternate, speedup, store
from mri_synth.data.augment import augment
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.prepare import Preparation
from mri_synth.data.settings import AugmentSettings, SplitSettings
from mri_synth.data.store import Prepared, Store, open_or_build

PER_SUBJECT = 100
AUGMENT = AugmentSettings(flip=0.5, rotate_deg=10.0, translate=0.05, scale=0.1, gain=0.1, gamma=0.2)


@lru_cache(maxsize=2)
def smooth(subject: int, size: int) -> NDArray[np.float32]:
    """The slices of one subject: (100, size, size) smooth noise in [-1, 1]."""
    noise = np.random.default_rng([7, subject]).standard_normal((PER_SUBJECT, 16, 16), np.float32)
    weights = np.maximum(0, 1 - np.abs(np.linspace(0, 15, size)[:, None] - np.arange(16))).astype(np.float32)
    return np.clip(0.5 * (weights @ noise @ weights.T), -1, 1).astype(np.float32)


@dataclass(kw_only=True, eq=False)
class SmoothNoise(MRIDataModule):
    """A data module over a store of smooth noise; only the preparation of files is left out.

    Attributes:
        items: training slices; validation has one subject more.
    """

    items: int = 2_000

    def _open(self) -> Store:
        if self._store is None:
            assert self.cache is not None
            self._scans, self._classes = [], ()
            self._preparation = Preparation(("T1",), self.plane, self.size, self.fit, None, self.slices, self.intensity)
            self._store = open_or_build(Path(self.cache), f"smooth-{self.size}-{self.items}", self.size, self._subjects)
        return self._store

    def _subjects(self) -> Iterator[Prepared]:
        subjects = -(-self.items // PER_SUBJECT)
        for subject in range(subjects + 1):
            images = smooth(subject, self.size)[: self.items - subject * PER_SUBJECT if subject < subjects else None]
            n = len(images)
            columns: dict[str, NDArray[Any]] = {
                "slice": np.arange(n), "position_mm": np.arange(n), "label": np.full(n, -1), "foreground": np.ones(n),
            }  # fmt: skip
            about = {"subject": f"{subject:05d}", "session": "", "label": None, "age": None, "sex": None, "site": None,
                     "split": "train" if subject < subjects else "val", "path": f"{subject:05d}",
                     "spacing_mm": [1.0, 1.0]}  # fmt: skip
            yield Prepared({"T1": images}, columns, about, [])


def our_data(cache: str, items: int, size: int, batch: int) -> MRIDataModule:
    """The data module, set up as `mri_synth.run` does it."""
    data = SmoothNoise(cache=cache, items=items, size=size, batch_size=batch, split=SplitSettings(by="given"))
    data.prepare_data()
    data.setup()
    return data


class ReadSlice(Transform):
    """MONAI's deterministic part, which its cache keeps: item number to (1, size, size) float32."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, item: int) -> Tensor:
        return torch.from_numpy(smooth(item // PER_SUBJECT, self.size)[item % PER_SUBJECT][None].copy())


def monai_augmentation(size: int) -> list[Any]:
    """MONAI's transforms of the ranges in `AUGMENT`."""
    a = AUGMENT
    return [
        RandFlip(prob=a.flip, spatial_axis=1),
        RandAffine(prob=1.0, rotate_range=float(np.deg2rad(a.rotate_deg)), translate_range=a.translate * size,
                   scale_range=a.scale, mode="bilinear", padding_mode="zeros"),
        RandScaleIntensity(factors=a.gain, prob=1.0),
        RandAdjustContrast(prob=1.0, gamma=(1 / (1 + a.gamma), 1 + a.gamma)),
    ]  # fmt: skip


def monai_loader(cached: CacheDataset, order: DataLoader[Batch], workers: int) -> MonaiLoader:
    """MONAI's loader over its cache, in the order of ours."""
    return MonaiLoader(cached, batch_sampler=order.batch_sampler, num_workers=workers, persistent_workers=workers > 0)


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


def best_workers(cached: CacheDataset, order: DataLoader[Batch], choices: Sequence[int]) -> tuple[int, dict[str, float]]:
    """The fastest worker count, and the seconds of a pass with each."""
    loaders = {str(w): monai_loader(cached, order, w) for w in choices}
    seconds = alternate({w: run_through(loader) for w, loader in loaders.items()}, passes=3, warmup=1)
    shortest = {w: min(s) for w, s in seconds.items()}
    return int(min(shortest, key=lambda w: shortest[w])), {w: round(s, 4) for w, s in shortest.items()}


def largest_difference(ours: DataLoader[Batch], peer: MonaiLoader) -> float:
    """Largest difference of two loaders' pixels over a whole pass; their shapes and lengths must agree."""
    largest = 0.0
    for mine, theirs in zip(ours, peer, strict=True):
        assert mine.image.shape == theirs.shape, (mine.image.shape, theirs.shape)
        assert mine.image.dtype == theirs.dtype == torch.float32, (mine.image.dtype, theirs.dtype)
        largest = max(largest, float((mine.image - theirs).abs().max()))
    return largest


def compare(cache: str, items: int, size: int, batch: int, passes: int) -> dict[str, Any]:
    """Both loaders in alternating passes, plain and augmented."""
    data = our_data(cache, items, size, batch)
    loader = data.train_dataloader()
    count, images = len(loader), len(loader) * batch
    result: dict[str, Any] = {"images_per_pass": images, "batch_size": batch, "size": size}
    for kind, random_part in (("plain", []), ("augmented", monai_augmentation(size))):
        cached = CacheDataset(range(items), Compose([ReadSlice(size), *random_part]), progress=False)
        if kind == "plain":
            difference = largest_difference(loader, monai_loader(cached, loader, 0))
            assert difference <= 0.5 / 32767 + 1e-7, f"the two deliver different pixels: {difference}"
            result["largest_difference"] = difference
        workers, tried = best_workers(cached, loader, (0, 1, 2))
        ours = run_through(loader) if kind == "plain" else run_through_augmented(data, loader)
        seconds = alternate({"ours": ours, "monai": run_through(monai_loader(cached, loader, workers))}, passes, 1)
        result |= {
            f"speedup_{kind}": round(speedup(seconds, "ours", "monai"), 2),
            f"ms_per_batch_{kind}": {k: round(1e3 * median(s) / count, 3) for k, s in seconds.items()},
            f"images_per_s_{kind}": {k: round(images / median(s)) for k, s in seconds.items()},
            f"spread_{kind}": {k: [round(1e3 * f(s) / count, 3) for f in (min, max)] for k, s in seconds.items()},
            f"monai_workers_{kind}": workers,
            f"monai_s_per_pass_by_workers_{kind}": tried,
        }
    return result


def first_batch(cache: str, items: int, size: int, batch: int) -> float:
    """Seconds from a data module's construction (store opened and checked, split, leaks) to its first batch."""
    start = time.perf_counter()
    next(iter(our_data(cache, items, size, batch).train_dataloader()))
    return time.perf_counter() - start


def memory_growth(what: str, cache: str, items: int, size: int, batch: int) -> float:
    """MiB by which this process's resident memory peaks above its start, over set-up and one pass (Linux)."""
    if what == "ours":
        our_data(cache, PER_SUBJECT, size, batch)  # the store code, warm
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    start = _memory("VmRSS")
    if what == "ours":
        run_through(our_data(cache, items, size, batch).train_dataloader())()
    else:
        cached = CacheDataset(range(items), Compose([ReadSlice(size)]), progress=False)
        run_through(MonaiLoader(cached, batch_size=batch, shuffle=True))()
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
    set_track_meta(False)
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
        result["first_batch_s"] = round(median(in_fresh_process("first", cache, sizes[-1], size, batch)
                                               for _ in range(3)), 3)  # fmt: skip
        result["memory_growth_mib"] = {
            what: {n: round(in_fresh_process(what, cache, n, size, batch), 1) for n in sizes}
            for what in ("ours", "monai")
        }
    store("loader", result, keep=not arguments.quick)


if __name__ == "__main__":
    main()

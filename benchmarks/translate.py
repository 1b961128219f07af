"""A volume through `mri-synth translate`, and its tiles against MONAI's: `python -m benchmarks.translate`.

A 240 x 240 x 155 volume, file to file, through the U-Net of pix2pix at 256 pixels (54 M weights, untrained): how much
of the time is spent in the network, and how much memory a process of its own takes. Then slices of the same volume
through the same U-Net at 128 pixels in tiles, a quarter in common, in turns with MONAI's SlidingWindowInferer: the same
weights, slices, memory layout, precision, number of tiles at once, and number of tiles, which is counted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import nibabel as nib
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from benchmarks.common import alternate, speedup, store
from mri_synth.data.batch import DataSpec
from mri_synth.data.scan import Scan
from mri_synth.data.settings import IntensitySettings
from mri_synth.models.unet_l1 import UNetL1
from mri_synth.translate import one
from mri_synth.translate.files import Job
from mri_synth.translate.translator import Options, Translator

OVERLAP, BATCH = 0.25, 8


def volume(path: Path, shape: tuple[int, int, int]) -> Path:
    """A noisy blob in int16, compressed."""
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    blob = np.clip(1 - sum(g * g for g in grid), 0, None) * (800 + 80 * noise)
    nib.save(nib.Nifti1Image(blob.astype(np.int16), np.eye(4)), path)
    return path


def checkpoint(path: Path, size: int, width: int) -> Path:
    """An untrained U-Net from T1 to T2 that takes slices as they are, as a run saves it."""
    how = {"plane": "axial", "fit": "crop", "size": size, "spacing_mm": None, "intensity": asdict(IntensitySettings())}
    spec = DataSpec(size=size, contrasts=("T1", "T2"), sources=("T1",), goal="T2", plane="axial", preparation=how)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    model = UNetL1(spec, width=width)
    model.trainer = trainer
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)
    return path


class Timed:
    """A network that counts its seconds and images."""

    def __init__(self, worker: Translator) -> None:
        self.network, self.seconds, self.images, self.cuda = worker.model.translate, 0.0, 0, worker.place.type == "cuda"

    def __call__(self, x: Tensor) -> Tensor:
        """The network's answer."""
        if self.cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        y = self.network(x)
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        self.images += len(x)
        return y


def file_to_file(folder: Path, source: Path, path: Path) -> dict[str, Any]:
    """Share of the wall time that is spent in the network; the model is loaded before."""
    worker = Translator(path, Options(overlap=OVERLAP), BATCH)
    timed = Timed(worker)
    worker.model.translate = timed  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    one(worker, Job(sources={"T1": Scan(path=source, subject="", contrast="T1")}, output=folder / "timed.nii.gz"))
    seconds = time.perf_counter() - start
    return {"network_share": round(timed.seconds / seconds, 3), "volume_s": round(seconds, 2),
            "outside_network_s": round(seconds - timed.seconds, 2), "slices": timed.images}  # fmt: skip


def peak_memory_mib(folder: Path, source: Path, path: Path) -> float:
    """Most resident memory of the verb in a process of its own."""
    words = ["translate", str(path), str(source), "-o", str(folder / "memory.nii.gz")]
    code = "import sys; from mri_synth.cli import main; sys.argv = ['mri-synth', *sys.argv[1:]]; main()"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *words], check=True, capture_output=True)
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10, 1)


def against_monai(source: Path, path: Path, slices: int, passes: int) -> dict[str, Any]:
    """Tiles of ours and of MONAI over the same slices, in turns."""
    worker = Translator(path, Options(overlap=OVERLAP), BATCH)
    timed = Timed(worker)
    worker.model.translate = timed  # type: ignore[method-assign, assignment]
    (ready,) = worker.bring({"T1": Scan(path=source, subject="", contrast="T1")}).values()
    middle = slice((len(ready.images) - slices) // 2, (len(ready.images) + slices) // 2)
    images = ready.images[middle]
    object.__setattr__(ready, "images", images)
    size = worker.how["size"]
    inferer = SlidingWindowInferer((size, size), sw_batch_size=BATCH, overlap=OVERLAP, mode="gaussian")

    @torch.inference_mode()
    def peer() -> np.ndarray[Any, Any]:
        x = torch.from_numpy(images)[:, None].to(worker.place).contiguous(memory_format=torch.channels_last)
        with torch.autocast(worker.place.type, torch.bfloat16, enabled=worker.bf16):
            y = inferer(x, lambda t: timed(t.contiguous(memory_format=torch.channels_last)))
        assert isinstance(y, Tensor)
        out: np.ndarray[Any, Any] = y[:, 0].float().clamp(-1, 1).cpu().numpy()
        return out

    def ours() -> np.ndarray[Any, Any]:
        return worker.through({"T1": ready})

    tiles = {}
    made = {}
    for name, call in (("ours", ours), ("monai", peer)):
        timed.images = 0
        made[name] = call()
        tiles[name] = timed.images
    seconds = alternate({"ours": ours, "monai": peer}, passes, warmup=0)
    return {"speedup_vs_monai": round(speedup(seconds, "ours", "monai"), 3), "tiles_ours": tiles["ours"],
            "tiles_monai": tiles["monai"], "mean_difference": float(np.abs(made["ours"] - made["monai"]).mean()),
            "tiled_slices": slices, "bf16": worker.bf16}  # fmt: skip


def main() -> None:
    """Time, measure, store."""
    quick = "--quick" in sys.argv[1:]  # to see that it runs; nothing is stored
    shape, large, small, width = ((48, 48, 6), 64, 32, 4) if quick else ((240, 240, 155), 256, 128, 64)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = volume(folder / "T1.nii.gz", shape)
        path = checkpoint(folder / "large.ckpt", large, width)
        result = file_to_file(folder, source, path)
        result["peak_memory_mib"] = peak_memory_mib(folder, source, path)
        path = checkpoint(folder / "small.ckpt", small, width)
        result |= against_monai(source, path, *((4, 2) if quick else (24, 5)))
    store("translate", {**result, "shape": list(shape)}, keep=not quick)


if __name__ == "__main__":
    main()

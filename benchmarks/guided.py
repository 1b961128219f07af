"""Text guidance against a plain loop: `python -m benchmarks.guided`.

A VQ-VAE and an mri_clip of the sizes that ship, at 128 x 128, one job, 16 cutouts; weights are random, as fast.

(a) `speedup_vs_plain`: iterations a second of ours (cutouts in one pass, bf16 where the processor computes in it, the
trainer's steps and the average of the latent counted) over those of a plain loop as one writes it: float32, torch's
Adam, each cutout cut, resized, embedded and scored by itself. In turns, so that a busy neighbour slows both.
(b) `speedup_float32`: ours in float32 over the same loop.
(c) `batch_share`: four jobs together against the same jobs one by one.

`--quick`: 32 pixels, 4 cutouts, 3 steps.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import alternate, speedup, store
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.devices import computes_in_bf16
from mri_synth.guides import Guide
from mri_synth.models.canvas import paint
from mri_synth.models.clip_guided import ClipGuided
from mri_synth.models.latent_space import LatentSpace
from mri_synth.models.vqvae import VQVAE

TEXT = "axial T2 slice"
LR = 0.1


def plain(space: LatentSpace, seer: Guide, start: Tensor, target: Tensor, cutouts: int, steps: int) -> Tensor:
    """The loop as one writes it.

    Args:
        space: of the generator.
        seer: the guide.
        start: (1, ...) latent.
        target: (1, D) embedding of the text.
        cutouts: of a step.
        steps: of Adam.

    Returns:
        (1, ...) the latent.
    """
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=LR * space.scale)
    draw = np.random.default_rng(0)
    for _ in range(steps):
        optimizer.zero_grad()
        image = space.decode(z)
        side, losses = image.shape[-1], []
        for _ in range(cutouts):
            size = int(draw.uniform(0.5, 1.0) * side)
            y, x = draw.integers(0, side - size + 1, 2)
            cut = functional.interpolate(image[..., y : y + size, x : x + size], [seer.size] * 2, mode="bilinear")
            embedded = seer.encode_image(cut + 0.1 * draw.uniform() * torch.randn_like(cut))
            losses.append((embedded - target).norm(dim=1).div(2).arcsin().pow(2).mul(2))
        torch.stack(losses).mean().backward()
        optimizer.step()
        with torch.no_grad():
            z.copy_(space.keep(z))
    return z.detach()


def main(quick: bool) -> None:
    """Measure, print, and keep the result unless quick.

    Args:
        quick: small sizes, nothing kept.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    size, cutouts, steps, passes = (32, 4, 3, 1) if quick else (128, 16, 20, 5)
    torch.manual_seed(0)
    spec = DataSpec(size=size, contrasts=("T1", "T2"), plane="axial")
    space, seer = VQVAE(spec).eval().latent_space(), random_guide(spec)
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    space.to(place)
    seer.to(place)
    start, target = space.start(torch.zeros(1, dtype=torch.int64, device=place), size), seer.encode_text([TEXT])

    def ours(jobs: int, precision: Any) -> Tensor:
        model = ClipGuided(spec, "random", [TEXT], jobs=jobs, cutouts=cutouts, steps=steps, lr=LR)
        model.hold(space, spec, seer)
        image = torch.zeros(jobs, 1, size, size)
        return paint(model, Batch(image=image, index=torch.arange(jobs)), precision, str(place))

    best: Any = "bf16-mixed" if computes_in_bf16(place.type == "cuda") else "32-true"
    seconds = alternate({
        "plain": lambda: plain(space, seer, start, target, cutouts, steps),
        "ours": lambda: ours(1, best),
        "float32": lambda: ours(1, "32-true"),
    }, passes, warmup=1)  # fmt: skip
    many = alternate({"batch": lambda: ours(4, best), "singles": lambda: [ours(1, best) for _ in range(4)]},
                     max(1, passes // 2), warmup=0)  # fmt: skip
    store("guided", {
        "size": size, "cutouts": cutouts, "steps": steps, "precision": best,
        **{f"iterations_per_s_{k}": round(steps / float(np.median(v)), 2) for k, v in seconds.items()},
        "speedup_vs_plain": round(speedup(seconds, "ours", "plain"), 3),
        "speedup_float32": round(speedup(seconds, "float32", "plain"), 3),
        "batch_share": round(1 / speedup(many, "batch", "singles"), 3),
    }, keep=not quick)  # fmt: skip


def random_guide(spec: DataSpec, words: str = TEXT) -> Guide:
    """An mri_clip of random weights.

    Args:
        spec: of its data.
        words: that it knows.

    Returns:
        The guide.
    """
    from mri_synth.guides.mri import MRIGuide
    from mri_synth.models.mri_clip import MRICLIP

    model = MRICLIP(spec, vocabulary=words.lower().split())
    model.heard[1:] = 1
    return MRIGuide(model).frozen()


if __name__ == "__main__":
    main("--quick" in sys.argv)

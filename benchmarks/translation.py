"""Our translation steps against the published loop structure: `python -m benchmarks.translation`.

Words are names of methods (`cyclegan`, `pix2pix`; both without), of generators (without: each with `unet`, `cyclegan`
with `resnet9` too), batch sizes (1 and 8 without) and Hydra overrides, such as `trainer.compile=true` on a GPU. 256
pixels, widths as in the methods' configs; steady state: no validation, picture, judgement or checkpoint is counted. On
a CPU `resnet9` is not run at batch 8 unless asked for by name: the six graphs of a published step take about 24 GB.

`<method>_<generator>_<batch>_speedup_vs_published`: the trainer of a run against the loop of the published code
(pytorch-CycleGAN-and-pix2pix, `optimize_parameters`) on copies of the same networks: float32, contiguous, every image
of a step in a pass of its own, real and generated ones too, Adam that is not fused, a pool that is a list from which
images are drawn one by one. The two take turns inside one training. Both do the same work: as many images go through
generators and discriminators, and are differentiated; the published loop of CycleGAN updates the generators first,
ours the discriminators.

FLOPs are counted in a step of the published loop and set against the fastest matrix product that this machine was seen
to make in the precision of ours.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, mse_loss
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import store
from benchmarks.gan import count_passes
from benchmarks.step import TakeTurns, matmul_flops
from mri_synth.config import check, config_dir
from mri_synth.data.batch import Batch
from mri_synth.models.cyclegan import CycleGAN
from mri_synth.models.gan import GANModule
from mri_synth.models.pix2pix import Pix2Pix
from mri_synth.networks.generators import Kind
from mri_synth.run import build

BATCHES = (1, 8)
GENERATORS = {"cyclegan": ("resnet9", "unet"), "pix2pix": ("unet",)}
QUICK = ["data.size=32", "model.width=4", "model.d_width=4", "model.d_layers=1"]


class Published:
    """A training loop as published, on copies of a model's networks.

    Attributes:
        gan: holds the copies.
        passes: forward passes of the copies, by name.
    """

    def __init__(self, model: GANModule, batches: Iterable[Batch], device: torch.device) -> None:
        """A loop over copies of the model's networks.

        Args:
            model: not yet trained.
            batches: the loader.
            device: of the training.
        """
        self.gan: Any = copy.deepcopy(model).to(device).train()
        self.gan.to(memory_format=torch.contiguous_format)
        self.device, self.h = device, self.gan.hparams
        self.batches = (batch for _ in iter(int, 1) for batch in batches)
        self.passes = count_passes(self.gan)
        self.by_g, self.by_d = (
            torch.optim.Adam(chain(*(n.parameters() for n in side)), lr=self.h[lr], betas=tuple(self.h["betas"]))
            for side, lr in ((self.gan.generator_networks(), "lr_g"), (self.gan.discriminator_networks(), "lr_d"))
        )

    def judged(self, verdicts: Tensor, real: bool) -> Tensor:
        """The published GANLoss."""
        goal = torch.full_like(verdicts, float(real))
        return (
            mse_loss(verdicts, goal)
            if self.h["gan_loss"] == "lsgan"
            else binary_cross_entropy_with_logits(verdicts, goal)
        )

    def discriminators_learn(self, learn: bool) -> None:
        """`set_requires_grad`."""
        for network in self.gan.discriminator_networks():
            network.requires_grad_(learn)

    def step(self) -> None:
        """`optimize_parameters` of the next batch."""
        raise NotImplementedError

    def steps(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self.step()


class PublishedCycleGAN(Published):
    """Six generator passes; each discriminator once for the generators, and once each for real and pooled images."""

    def __init__(self, model: GANModule, batches: Iterable[Batch], device: torch.device) -> None:
        """As `Published`, with pools."""
        super().__init__(model, batches, device)
        self.pools: tuple[list[Tensor], list[Tensor]] = [], []
        self.draw = random.Random(0)

    def step(self) -> None:
        """Generators, then discriminators."""
        gan, batch = self.gan, next(self.batches).to(self.device)
        a, b = batch.image, batch.target
        fake_b = gan.g_ab(a)
        back_a = gan.g_ba(fake_b)
        fake_a = gan.g_ba(b)
        back_b = gan.g_ab(fake_a)
        self.discriminators_learn(False)
        self.by_g.zero_grad()
        weight = self.h["lambda_cycle"]
        loss = weight * self.h["lambda_identity"] * (l1_loss(gan.g_ab(b), b) + l1_loss(gan.g_ba(a), a))
        loss = loss + self.judged(gan.d_b(fake_b), True) + self.judged(gan.d_a(fake_a), True)
        loss = loss + weight * (l1_loss(back_a, a) + l1_loss(back_b, b))
        loss.backward()
        self.by_g.step()
        self.discriminators_learn(True)
        self.by_d.zero_grad()
        for network, real, fake, pool in zip((gan.d_a, gan.d_b), (a, b), (fake_a, fake_b), self.pools, strict=True):
            shown = torch.cat([*self.pooled(pool, fake.detach())])
            loss = 0.5 * (self.judged(network(real), True) + self.judged(network(shown), False))
            loss.backward()
        self.by_d.step()

    def pooled(self, pool: list[Tensor], fakes: Tensor) -> Iterator[Tensor]:
        """`ImagePool.query`, image by image."""
        for k in range(len(fakes)):
            new = fakes[k : k + 1]
            if len(pool) < self.h["pool_size"]:
                pool.append(new)
                yield new
            elif pool and self.draw.random() > 0.5:
                place = self.draw.randrange(len(pool))
                old, pool[place] = pool[place].clone(), new
                yield old
            else:
                yield new


class PublishedPix2Pix(Published):
    """One generator pass; the discriminator once each for generated and real pairs, and once for the generator."""

    def step(self) -> None:
        """Discriminator, then generator."""
        gan, batch = self.gan, next(self.batches).to(self.device)
        source, target = batch.image, batch.target
        fake = gan.generator(source)
        self.discriminators_learn(True)
        self.by_d.zero_grad()
        judged = gan.discriminator(torch.cat([source, fake], 1).detach())
        loss = 0.5 * (self.judged(judged, False) + self.judged(gan.discriminator(torch.cat([source, target], 1)), True))
        loss.backward()
        self.by_d.step()
        self.discriminators_learn(False)
        self.by_g.zero_grad()
        loss = self.judged(gan.discriminator(torch.cat([source, fake], 1)), True)
        (loss + self.h["lambda_l1"] * l1_loss(fake, target)).backward()
        self.by_g.step()


LOOPS: dict[str, tuple[type[GANModule], type[Published]]] = {
    "cyclegan": (CycleGAN, PublishedCycleGAN),
    "pix2pix": (Pix2Pix, PublishedPix2Pix),
}


def measure(name: str, generator: str, batch: int, words: list[str], quick: bool = False) -> dict[str, Any]:
    """Figures of one method with one generator at one batch size.

    Args:
        name: of its config.
        generator: of its config.
        batch: images in a batch.
        words: Hydra overrides.
        quick: small sizes, to see that it runs.

    Returns:
        The main figure under `<name>_<generator>_<batch>_speedup_vs_published`, the rest under that without its end.
    """
    every, turns = (1, 2) if quick else (max(1, 2 // batch), 3)
    case = f"{name}_{generator}_{batch}"
    overrides = [f"model={name}", f"model.generator={generator}", "data.size=256", f"data.batch_size={batch}",
                 "data.subjects=[4,2,1]", "logger=csv", "trainer.limit_val_batches=1", "trainer.max_epochs=1000",
                 "trainer.pictures=0", "trainer.judge_every=1000", "trainer.judge_samples=2",
                 "trainer.judge_features=pixels", "trainer.sentinels=off", "trainer.checkpoint_every_steps=100000",
                 f"trainer.log_every_steps={every}"]  # fmt: skip
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("run", [*overrides, *(QUICK if quick else []), *words])
    check(cfg)
    with tempfile.TemporaryDirectory() as folder:
        data, model, trainer = build(cfg, Path(folder))
        assert isinstance(model, LOOPS[name][0])
        device = trainer.strategy.root_device
        loop = LOOPS[name][1](model, data.train_dataloader(), device)
        counted = count_passes(model)
        taken = TakeTurns(loop, every, turns)  # type: ignore[arg-type]
        trainer.callbacks.append(taken)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=data)
        steps = {"ours": trainer.global_step, "published": every * (1 + len(taken.seconds["loop"]))}
        passes = {"ours": dict(counted), "published": dict(loop.passes)}
        with FlopCounterMode(display=False) as flops:
            loop.step()
    per_step = {"ours": median(taken.seconds["ours"]) / every, "published": median(taken.seconds["loop"]) / every}
    ratios = [b / a for a, b in zip(taken.seconds["ours"], taken.seconds["loop"], strict=True)]
    dtype = torch.bfloat16 if trainer.precision == "bf16-mixed" else torch.float32
    peak = matmul_flops(device, dtype, 512 if quick else 8192 if device.type == "cuda" else 2048)
    return {
        f"{case}_speedup_vs_published": round(median(ratios), 3),
        case: {
            "size": data.size,
            "precision": trainer.precision,
            "compile": cfg.trainer.compile,
            "speedup_least_and_most": [round(min(ratios), 3), round(max(ratios), 3)],
            "s_per_step": {who: round(s, 5) for who, s in per_step.items()},
            "passes_per_step": {who: {k: round(n / steps[who], 3) for k, n in p.items()} for who, p in passes.items()},
            "gflop_per_step": round(flops.get_total_flops() / 1e9, 2),
            "gflops_matmul_peak": round(peak / 1e9),
            "share_of_peak": round(flops.get_total_flops() / per_step["ours"] / peak, 4),
            "steps_per_turn": every,
            "turns": len(ratios),
            "overrides": words,
        },
    }


def main() -> None:
    quick, words = "--quick" in sys.argv, [w for w in sys.argv[1:] if w != "--quick"]
    names = [w for w in words if w in LOOPS] or list(LOOPS)
    kinds = [w for w in words if w in get_args(Kind)]
    sizes = [int(w) for w in words if w.isdigit()] or list(BATCHES)
    given = [w for w in words if w not in LOOPS and w not in kinds and not w.isdigit()]
    result: dict[str, Any] = {"peer": "the published loop structure on the same networks"}
    for name in names:
        for generator in kinds or GENERATORS[name]:
            for batch in sizes:
                if kinds or quick or torch.cuda.is_available() or (generator, batch) != ("resnet9", 8):
                    result |= measure(name, generator, batch, given, quick)
    store("translation", result, keep=not quick)


if __name__ == "__main__":
    main()

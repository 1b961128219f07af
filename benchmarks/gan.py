"""Our adversarial training step against a hand-written PyTorch loop: `python -m benchmarks.gan`.

Words are names of methods (`dcgan`, `progan`; both without) and Hydra overrides. 128 pixels, `dcgan` with batch 64,
`progan` with batch 16 and at its last stage from the start; steady state: no validation, picture, judgement or
checkpoint is counted.

(a) `<method>_overhead_vs_loop`: the trainer of a run against a loop by hand over the same loader, networks, losses,
autocast, memory format, fused Adam and averages. The two take turns inside one training.
(b) `<method>_speedup_vs_fp32`: that loop in bf16 and channels_last against float32 and contiguous. FLOPs are counted of
a step without the lazy penalty, and set against the fastest matrix product that this machine was seen to make.

A turn is as long as the period of the lazy penalty, so that each holds one. Passes through generator and discriminator
are counted in both trainings while they are timed, those for penalties too.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from benchmarks.common import alternate, speedup, store
from benchmarks.step import Loop, TakeTurns, flops_per_step, matmul_flops
from mri_synth.config import check, config_dir
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.models.gan import GANModule
from mri_synth.models.turns import frozen
from mri_synth.run import build

METHODS: dict[str, list[str]] = {
    "dcgan": ["data.batch_size=64"],
    # nothing before the last stage; one update per batch
    "progan": ["data.batch_size=16", "model.minibatch=[16]", "model.fade_kimg=[0.0]", "model.steady_kimg=[0.0]"],
}
QUICK: dict[str, list[str]] = {
    "dcgan": ["model.channels_g=8", "model.channels_d=8", "model.r1_every=2"],
    "progan": ["model.fmap_max=8", "model.r1_every=2"],
}


class AdversarialLoop(Loop):
    """Alternating updates written by hand: what a step costs without a framework.

    Attributes:
        passes: forward passes of copies of the networks, by name.
    """

    def __init__(self, model: GANModule, batches: Iterable[Batch], device: torch.device, bf16: bool) -> None:
        """A loop over copies of the model's networks.

        Args:
            model: for its networks and losses; not yet trained.
            batches: the loader.
            device: of the training.
            bf16: autocast to bfloat16 and channels_last, else float32 and contiguous.
        """
        self.gan = counting_steps(model).to(device).train()
        self.gan.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)
        self.device, self.bf16 = device, bf16
        self.batches = (batch for _ in iter(int, 1) for batch in batches)
        self.passes = count_passes(self.gan)
        self.trained: list[Tensor] = [p for network in self.gan.generator_networks() for p in network.parameters()]
        self.averages: list[Tensor] = [] if self.gan.ema is None else [*self.gan.ema.parameters()]
        h = self.gan.hparams
        self.by_d, self.by_g = (
            torch.optim.Adam([p for n in side for p in n.parameters()], lr=h[lr], betas=tuple(h["betas"]), fused=True)
            for side, lr in ((self.gan.discriminator_networks(), "lr_d"), (self.gan.generator_networks(), "lr_g"))
        )

    def step(self) -> None:
        """Discriminator, then generator through it, on the same fakes."""
        batch = next(self.batches).to(self.device)
        with self.autocast():
            fakes: Tensor = self.gan.generate(batch)
            loss = self.gan.discriminator_losses(batch, fakes.detach())["loss"]
        self.by_d.zero_grad()
        loss.backward()
        self.by_d.step()
        with frozen(self.gan.discriminator_networks()):
            with self.autocast():
                loss = self.gan.generator_losses(batch, fakes)["loss"]
            self.by_g.zero_grad()
            loss.backward()
        self.by_g.step()
        if self.gan.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.trained, 1 - self.gan.decay())
                for average, network in zip(self.gan.ema, self.gan.generator_networks(), strict=True):
                    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
                        kept.copy_(buffer)
        self.gan.made = int(self.gan.made) + 1  # type: ignore[assignment,arg-type]


def counting_steps(model: GANModule) -> GANModule:
    """A copy that knows how many steps it made without a trainer: noise, averages and lazy penalties ask for it.

    Args:
        model: any method.

    Returns:
        The copy; its `made` are its `global_step`.
    """
    twin = copy.deepcopy(model)
    cls = type(model)
    twin.__class__ = type(cls.__name__, (cls,), {"global_step": property(lambda self: self.made)})
    twin.made = 0  # type: ignore[assignment]
    return twin


def count_passes(model: GANModule) -> Counter[str]:
    """Count the forward passes of the networks in training, also those that go round `__call__`.

    Args:
        model: whose networks count from now on.

    Returns:
        The growing count, of "generator" and "discriminator", and of the images that went through each of them.
    """
    passes: Counter[str] = Counter()
    for name, side in (("generator", model.generator_networks()), ("discriminator", model.discriminator_networks())):
        for network in side:
            _count(network, name, passes)
    return passes


def _count(network: nn.Module, name: str, passes: Counter[str]) -> None:
    forward = network.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        passes[name] += network.training
        passes[f"{name}_images"] += network.training * len(args[0])
        return forward(*args, **kwargs)

    network.forward = counted


def measure(name: str, words: list[str], quick: bool = False, passes: int = 5) -> dict[str, Any]:
    """Figures of one method.

    Args:
        name: of its config.
        words: Hydra overrides.
        quick: small sizes, to see that it runs.
        passes: turns to time.

    Returns:
        Main figures under `<name>_<figure>`, the rest under `<name>`.
    """
    overrides = [f"model={name}", "data.size=128", "logger=csv", "trainer.limit_val_batches=1",
                 "trainer.max_epochs=1000", "trainer.pictures=0", "trainer.judge_every=1000",
                 "trainer.judge_samples=2", "trainer.judge_features=pixels", "trainer.sentinels=off",
                 "trainer.checkpoint_every_steps=100000", *METHODS[name]]  # fmt: skip
    if quick:
        overrides += ["data.subjects=[8,2,2]", "data.size=32", "data.batch_size=8", *QUICK[name]]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("run", [*overrides, *words])
        every = cfg.model.r1_every * math.ceil((2 if quick else 8) / cfg.model.r1_every)
        cfg.trainer.log_every_steps = every
    check(cfg)
    with tempfile.TemporaryDirectory() as folder:
        data, model, trainer = build(cfg, Path(folder))
        assert isinstance(model, GANModule)
        device = trainer.strategy.root_device
        fresh = copy.deepcopy(model)
        # (a)
        loop = AdversarialLoop(fresh, data.train_dataloader(), device, bf16=trainer.precision == "bf16-mixed")
        counted = count_passes(model)
        turns = TakeTurns(loop, every, passes)
        trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        trainer.fit(model, datamodule=data)
        ratios = [a / b for a, b in zip(turns.seconds["ours"], turns.seconds["loop"], strict=True)]
        cpu = [a / b for a, b in zip(turns.cpu["ours"], turns.cpu["loop"], strict=True)]
        per_step = {who: round(median(s) / every, 5) for who, s in turns.seconds.items()}
        steps = {"ours": trainer.global_step, "loop": int(loop.gan.made)}  # type: ignore[arg-type]
        counts = {"ours": counted, "loop": loop.passes.copy()}
        fast, seconds = against_fp32(data, fresh, device, every, max(2, passes // 2))
        flops = flops_per_step(loop)
        peaks = {who: matmul_flops(device, dtype) for who, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
        least = {who: median(s) / every for who, s in seconds.items()}
    return {
        f"{name}_overhead_vs_loop": round(median(ratios) - 1, 4),
        f"{name}_speedup_vs_fp32": round(fast, 3),
        f"{name}_passes_per_step": _per_step(counts["ours"], steps["ours"]),
        f"{name}_images_through_per_image": _per_step(counts["ours"], data.batch_size * steps["ours"], "_images"),
        name: {
            "size": data.size,
            "batch_size": data.batch_size,
            "precision": trainer.precision,
            "parameters": sum(p.numel() for p in [*fresh.generator_networks()[0].parameters(),
                                                  *fresh.discriminator_networks()[0].parameters()]),
            "overhead_least_and_most": [round(min(ratios) - 1, 4), round(max(ratios) - 1, 4)],
            "overhead_in_cpu_time": round(median(cpu) - 1, 4),
            "passes_per_step_of_loop": _per_step(counts["loop"], steps["loop"]),
            "s_per_step": per_step,
            "overhead_ms_per_step": round(1000 * (per_step["ours"] - per_step["loop"]), 2),
            "s_per_step_of_loop": {who: round(s, 5) for who, s in least.items()},
            "gflop_per_step": round(flops / 1e9, 2),
            "gflops_matmul_peak": {who: round(peak / 1e9) for who, peak in peaks.items()},
            "floor_s_per_step": {who: round(flops / peak, 5) for who, peak in peaks.items()},
            "share_of_peak": {who: round(flops / s / peaks[who], 3) for who, s in least.items()},
            "steps_per_turn": every,
            "turns": len(ratios),
            "overrides": words,
        },
    }  # fmt: skip


def _per_step(passes: Mapping[str, int], steps: int, of: str = "") -> dict[str, float]:
    return {name: round(passes[name + of] / steps, 3) for name in ("generator", "discriminator")}


def against_fp32(
    data: MRIDataModule, model: GANModule, device: torch.device, steps: int, passes: int
) -> tuple[float, dict[str, list[float]]]:
    """Figures of (b).

    Args:
        data: for its loader.
        model: not yet trained.
        device: of the training.
        steps: of a turn.
        passes: turns of each loop.

    Returns:
        The ratio, and the seconds of every turn of "bf16" and "fp32".
    """
    loops = {bf16: AdversarialLoop(model, data.train_dataloader(), device, bf16) for bf16 in (True, False)}
    seconds = alternate(
        {"bf16": lambda: loops[True].steps(steps), "fp32": lambda: loops[False].steps(steps)}, passes, warmup=1
    )
    return speedup(seconds, "bf16", "fp32"), seconds


def main() -> None:
    words = [w for w in sys.argv[1:] if w != "--quick"]
    quick = "--quick" in sys.argv
    names = [w for w in words if w in METHODS] or list(METHODS)
    result: dict[str, Any] = {"peer": "the same networks and losses in a loop by hand"}
    for name in names:
        result |= measure(name, [w for w in words if w not in METHODS], quick, 2 if quick else 5)
    store("gan", result, keep=not quick)


if __name__ == "__main__":
    main()

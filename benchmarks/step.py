"""Our training step against a hand-written PyTorch loop: `python -m benchmarks.step model=vqvae`.

Words are Hydra overrides, as of `mri_synth.run`. Steady state only: no validation, picture or checkpoint is counted.

(a) `overhead_vs_loop`: the trainer of a run (its callbacks, CSV logging, progress bar and data module) against a loop
written by hand over the same loader, losses, autocast, memory format, fused Adam and schedule. The two take turns
inside one training: after every `log_every_steps` steps of ours, one log interval, the loop takes as many.
(b) `speedup_vs_fp32`: that loop in bf16 and channels_last against float32 and contiguous.

FLOPs are counted by `torch.utils.flop_counter` (convolutions and matrix products, forward and backward) and set against
the fastest matrix product that this machine was seen to make: what is left is memory traffic and the rest.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import alternate, speedup, store
from mri_synth.config import check, config_dir
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.models.base import SynthModule
from mri_synth.models.vqvae import WarmupCosine
from mri_synth.run import build


class Loop:
    """Training written by hand: what a step costs without a framework."""

    def __init__(self, model: SynthModule, batches: Iterable[Batch], device: torch.device, bf16: bool) -> None:
        """A loop over copies of the model's networks.

        Args:
            model: for its networks and losses.
            batches: the loader.
            device: of the training.
            bf16: autocast to bfloat16 and channels_last, else float32 and contiguous.
        """
        self.model = copy.deepcopy(model).to(device).train()
        self.model.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)  # type: ignore[call-overload]
        self.device, self.bf16 = device, bf16
        self.batches = _endless(batches)
        h = self.model.hparams
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=h["lr"], betas=tuple(h["betas"]), fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, WarmupCosine(50, 1000, 0.05))

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16, or none."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def step(self) -> None:
        """One step."""
        batch = next(self.batches).to(self.device)
        with self.autocast():
            loss = self.model.losses(batch)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()

    def steps(self, count: int) -> None:
        """So many steps."""
        for _ in range(count):
            self.step()


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


class TakeTurns(pl.Callback):
    """Within a training: time every log interval of it, and let the loop by hand take as many steps after each.

    Attributes:
        seconds: of every counted interval: "ours" and "loop".
        cpu: processor seconds of the same, all threads; neighbours disturb them less.
    """

    def __init__(self, loop: Loop, every: int, passes: int) -> None:
        """Take turns with a loop.

        Args:
            loop: by hand.
            every: steps of a turn.
            passes: turns to time, after which the training stops.
        """
        self.loop, self.every, self.passes = loop, every, passes
        self.seconds: dict[str, list[float]] = {"ours": [], "loop": []}
        self.cpu: dict[str, list[float]] = {"ours": [], "loop": []}
        self._start: tuple[float, float] | None = None
        self._warm = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What an epoch's start costs is no part of a step: a turn begins at the next full interval."""
        self._start = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """The last callback to hear of a step, so that all others are in its time."""
        if trainer.global_step % self.every or trainer.should_stop:
            return
        if self._start is not None:
            self._count("ours", self._start, pl_module.device)
            if not self._warm:
                self.loop.steps(self.every)  # as many as ours had
                self._warm = True
            start = _now(pl_module.device), time.process_time()
            self.loop.steps(self.every)
            self._count("loop", start, pl_module.device)
        if len(self.seconds["ours"]) >= self.passes:
            trainer.should_stop = True
        self._start = _now(pl_module.device), time.process_time()

    def _count(self, name: str, start: tuple[float, float], device: torch.device) -> None:
        self.seconds[name].append(_now(device) - start[0])
        self.cpu[name].append(time.process_time() - start[1])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def overhead(data: MRIDataModule, model: SynthModule, trainer: pl.Trainer, every: int, passes: int) -> dict[str, Any]:
    """Figures of (a)."""
    device = trainer.strategy.root_device
    loop = Loop(model, data.train_dataloader(), device, bf16=trainer.precision == "bf16-mixed")
    turns = TakeTurns(loop, every, passes)
    trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    ratios = [a / b for a, b in zip(turns.seconds["ours"], turns.seconds["loop"], strict=True)]
    batch = data.batch_size
    cpu = [a / b for a, b in zip(turns.cpu["ours"], turns.cpu["loop"], strict=True)]
    return {
        "overhead_vs_loop": round(median(ratios) - 1, 4),
        "overhead_vs_loop_least_and_most": [round(min(ratios) - 1, 4), round(max(ratios) - 1, 4)],
        "overhead_in_cpu_time": round(median(cpu) - 1, 4),
        "precision": trainer.precision,
        "steps_per_pass": every,
        "passes": len(ratios),
        "s_per_step": {name: round(median(s) / every, 5) for name, s in turns.seconds.items()},
        "images_per_s": {name: round(batch * every / median(s), 1) for name, s in turns.seconds.items()},
    }


def against_fp32(data: MRIDataModule, model: SynthModule, steps: int, passes: int) -> dict[str, Any]:
    """Figures of (b)."""
    device = model.device
    loops = {name: Loop(model, data.train_dataloader(), device, bf16=name == "bf16") for name in ("bf16", "fp32")}
    turns = {name: (lambda loop=loop: loop.steps(steps)) for name, loop in loops.items()}
    seconds = alternate(turns, passes, warmup=1)
    flops = flops_per_step(loops["fp32"])
    peaks = {name: matmul_flops(device, dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))}
    per_step = {name: median(s) / steps for name, s in seconds.items()}
    return {
        "speedup_vs_fp32": round(speedup(seconds, "bf16", "fp32"), 3),
        "images_per_s_of_loop": {name: round(data.batch_size / s, 1) for name, s in per_step.items()},
        "gflop_per_step": round(flops / 1e9, 2),
        "gflops_matmul_peak": {name: round(peak / 1e9) for name, peak in peaks.items()},
        "floor_s_per_step": {name: round(flops / peak, 5) for name, peak in peaks.items()},
        "share_of_peak": {name: round(flops / s / peaks[name], 3) for name, s in per_step.items()},
    }


def flops_per_step(loop: Loop) -> int:
    """Floating-point operations of the convolutions and matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        loop.step()
    return counter.get_total_flops()


def matmul_flops(device: torch.device, dtype: torch.dtype, n: int = 2048) -> float:
    """FLOP/s of the fastest of ten (n, n) matrix products."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = min(_seconds(lambda: a @ b, device) for _ in range(10))
    return 2 * n**3 / best


def _seconds(fn: Callable[[], object], device: torch.device) -> float:
    start = _now(device)
    fn()
    return _now(device) - start


def main() -> None:
    words = sys.argv[1:]
    quick = "--quick" in words
    overrides = ["logger=csv", "trainer.limit_val_batches=1", "trainer.max_epochs=1000", "trainer.pictures=0"]
    if quick:
        overrides += ["data.subjects=[8,2,2]", "data.size=32", "data.batch_size=8", "trainer.log_every_steps=2"]
    passes, steps = (2, 2) if quick else (15, 10)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("run", [*overrides, *(w for w in words if w != "--quick")])
    if "codebook_warmup" in cfg.model:
        cfg.model.codebook_warmup = 0  # its steps are cheaper: from the first step on, the codebook is at work
    check(cfg)
    with tempfile.TemporaryDirectory() as folder:
        data, model, trainer = build(cfg, Path(folder))
        fresh = copy.deepcopy(model)
        result = {
            "peer": "the same networks and settings in a loop by hand",
            "model": cfg.model._target_.split(".")[-2],
            "overrides": words,
            "size": data.size,
            "batch_size": data.batch_size,
            "parameters": sum(p.numel() for p in model.parameters()),
            **overhead(data, model, trainer, cfg.trainer.log_every_steps, passes),
            **against_fp32(data, fresh.to(trainer.strategy.root_device), steps, max(2, passes // 2)),
        }
    store("step", result, keep=not quick)


if __name__ == "__main__":
    main()

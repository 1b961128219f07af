"""`task=plan`: one batch each way, then what the run would take. Nothing is trained and no run folder is kept."""

from __future__ import annotations

import time

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table

from mri_synth.data.base import MRIDataModule
from mri_synth.fit import peak_memory
from mri_synth.models.base import SynthModule
from mri_synth.trainer import Layout


def plan(data: MRIDataModule, model: SynthModule, trainer: pl.Trainer) -> dict[str, float | int | str]:
    """Run a few steps, where they cost most, print sizes, parameters, memory, step time and hours.

    Args:
        data: set up.
        model: built.
        trainer: built; used as it would be, but for three training and one validation batch.

    Returns:
        What is printed.
    """
    for attribute in ("limit_train_batches", "limit_val_batches"):
        setattr(trainer, attribute, 3 if "train" in attribute else 1)
    epochs = trainer.max_epochs or 1
    clock = _Clock()
    trainer.callbacks[:] = [*(c for c in trainer.callbacks if isinstance(c, Layout)), clock]  # type: ignore[attr-defined]
    trainer.fit_loop.max_epochs = 1
    where = model.go_to_costliest()
    trainer.fit(model, datamodule=data)
    steps = epochs * -(-len(data.train_dataloader()) // trainer.accumulate_grad_batches)
    steps = min(steps, model.max_steps or steps)
    validations = epochs * len(data.val_dataloader())
    step = min(clock.steps[1:] or clock.steps)
    batch = next(iter(data.train_dataloader()))
    facts: dict[str, float | int | str] = {
        "items train / val / test": " / ".join(str(len(data.view(s))) for s in ("train", "val", "test")),
        "batch": " x ".join(map(str, batch.image.shape)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": str(trainer.strategy.root_device),
        "precision": trainer.precision,
        **({"timed at": where} if where else {}),
        "seconds per batch": round(step, 4),
        "images per second": round(len(batch) / step, 1),
        "seconds per validation batch": round(clock.validation, 4),
        "peak memory MiB": round(peak_memory(model) / 2**20),
        "steps": steps,
        "hours at most" if where else "hours": round(
            (steps * trainer.accumulate_grad_batches * step + validations * clock.validation) / 3600, 3
        ),
    }
    table = Table("plan", "", title=type(model).__name__)
    for name, value in facts.items():
        table.add_row(name, str(value))
    if trainer.is_global_zero:
        Console().print(table)
    return facts


class _Clock(pl.Callback):
    """Times of the steps and of one validation batch, in seconds."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validation = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self._start = _now(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.steps.append(_now(pl_module) - self._start)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self._start = _now(pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.validation = _now(pl_module) - self._start


def _now(module: pl.LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

"""Pictures of a run: the same held-out items before training and after every epoch, as PNG, in W&B, and as a GIF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from mri_synth import drawing
from mri_synth.data.batch import Batch
from mri_synth.models.base import SynthModule


class Pictures(pl.Callback):
    """Draws what `SynthModule.visuals` returns for the same validation items every epoch."""

    def __init__(self, run: Path, count: int) -> None:
        """Into `run/pictures` and `run/training.gif`.

        Args:
            run: the run's folder.
            count: items; 0 draws nothing.
        """
        self.run, self.count = run, count
        self.batch: Batch | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One frame before training."""
        if trainer.global_step == 0:
            self.draw(trainer, pl_module, -1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One frame per epoch, epoch and metric written in."""
        if trainer.state.fn == "fit":
            self.draw(trainer, pl_module, trainer.current_epoch)

    def draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Draw one frame on rank 0.

        Args:
            trainer: of the run.
            pl_module: the method.
            epoch: finished epoch; -1 before training.
        """
        assert isinstance(pl_module, SynthModule)
        if not self.count or not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.batch is None:
            items = data.view("val")
            by_contrast = np.argsort(items.contrast, kind="stable")  # so that each contrast is seen
            strata = np.array_split(by_contrast, min(self.count, len(items)))
            draw = np.random.default_rng(0)  # a stride would show the same slice of every subject
            self.batch = items.__getitems__([int(draw.choice(stratum)) for stratum in strata])
        batch = self.batch.to(pl_module.device)
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            visuals = pl_module.visuals(batch)
        pl_module.train(training)
        if not visuals:
            return
        rows: dict[str, Any] = {}
        for name, images in visuals.items():
            rows[name] = images.float().cpu().numpy()
            truth = "original" if name == "reconstruction" else name.removeprefix("synthetic ")
            if truth != name and truth in visuals:
                rows[f"|{name} - {truth}|"] = drawing.error(rows[name], visuals[truth].float().cpu().numpy())
        metric = pl_module.monitor[0]
        value = trainer.callback_metrics.get(metric)
        written = f" · {metric} {float(value):.4f}" if value is not None and epoch >= 0 else ""
        title = f"{type(pl_module).__name__} · " + (f"epoch {epoch + 1}" if epoch >= 0 else "before training") + written
        if data.spec.simulated:
            title += " · SIMULATED"
        captions = [f"{s} {c} {int(n)}" for s, c, n in zip(batch.subject, batch.contrast, batch.slice, strict=True)]  # type: ignore[arg-type]
        picture = drawing.sheet(rows, title, captions)
        drawing.save(picture, self.run / "pictures" / f"epoch_{epoch + 1:04d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("image/validation", [picture], step=None, caption=[title])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The animation over all frames on disk, those from before a resume too."""
        if trainer.is_global_zero:
            animate(self.run)


def animate(run: Path) -> Path | None:
    """The run's frames as `training.gif`.

    Args:
        run: the run's folder.

    Returns:
        The file; None without frames.
    """
    files = sorted((run / "pictures").glob("epoch_*.png"))
    if not files:
        return None
    return drawing.gif([Image.open(f).convert("RGB") for f in files], run / "training.gif")

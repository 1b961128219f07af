"""Sentinels: what goes wrong in training is noticed, explained, and leaves evidence."""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mri_synth.callbacks.checkpoints import ends_a_step
from mri_synth.callbacks.loggers import alert
from mri_synth.data.batch import Batch
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import rates

log = logging.getLogger(__name__)


class NonFinite(pl.Callback):
    """Stops at a loss that is NaN or infinite, with the offending batch saved.

    The check stays on the device: a tensor remembers the first bad step and is read every log interval and before
    every checkpoint, so that no step waits for it and no checkpoint holds ruined weights.
    """

    def __init__(self, folder: Path, every_steps: int) -> None:
        """Watch a run.

        Args:
            folder: the run's; nonfinite_batch.pt goes there.
            every_steps: between two looks at the flag.
        """
        self.folder, self.every_steps = folder, every_steps
        self.first_bad: Tensor | None = None
        self.seen = 0  # batches; with accumulation several make a step
        self.recent: deque[tuple[int, int, int, Tensor]] = deque()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:  # fmt: skip
        """Remember the batch's items, and whether its loss was finite."""
        loss = (outputs["loss"] if isinstance(outputs, dict) else outputs).detach()
        if self.first_bad is None:
            self.first_bad = torch.full((), -1, dtype=torch.int64, device=loss.device)
        self.seen += 1
        self.recent.append((self.seen, trainer.global_step, trainer.current_epoch, batch.index))
        newly = (self.first_bad < 0) & ~torch.isfinite(loss).all()
        self.first_bad = torch.where(newly, self.seen, self.first_bad)
        if trainer.global_step % self.every_steps == 0 and ends_a_step(trainer, batch_idx):
            self.look(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The interval may be longer than an epoch."""
        self.look(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before an epoch's checkpoint."""
        if trainer.state.fn == "fit":
            self.look(trainer)

    def look(self, trainer: pl.Trainer) -> None:
        """Read the flags of all processes; all must call it.

        Args:
            trainer: of the run.

        Raises:
            UserError: a loss was not finite; names the step, the saved batch and the remedy.
        """
        if self.first_bad is None:
            return
        firsts = [int(self.first_bad)] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(firsts, firsts[0])
        first = min((n for n in firsts if n >= 0), default=-1)
        if first < 0:
            self.recent.clear()  # all finite so far
            return
        unknown = (trainer.global_step, trainer.current_epoch, None)
        step, epoch, index = next(((s, e, i) for n, s, e, i in self.recent if n == first), unknown)
        path = self.folder / "nonfinite_batch.pt"
        saved = ""
        known = index is not None and trainer.datamodule is not None  # type: ignore[attr-defined]
        if index is not None and known and trainer.global_rank == firsts.index(first):  # whose batch it was
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            items: Batch = data.view("train").__getitems__(index.tolist())
            torch.save({"step": step, "epoch": epoch, "index": index.cpu(), "image": items.image,
                        "subject": list(items.subject), "seed": data.seed}, path)  # fmt: skip
        trainer.strategy.barrier("nonfinite")
        if known:
            saved = (
                f" The batch is in {path} (its items, subjects, epoch and seed: augmentation depends on these alone)."
            )
        text = (
            f"the loss was not finite at step {step} (epoch {epoch}).{saved} last.ckpt, if any, is from before it. "
            f"Remedies, in this order: a lower {rates(trainer.lightning_module.hparams)}, trainer.gradient_clip=1, "
            "trainer.precision=32-true, and mri-synth describe for the intensities of these subjects."
        )
        if trainer.is_global_zero:
            alert(trainer.loggers, "the loss was not finite", text)
        raise UserError(text)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Ruined weights never replace a good checkpoint."""
        self.look(trainer)


class Alarms(pl.Callback):
    """What a method or a sentinel said by `SynthModule.alarm` also goes to W&B, and may end the training.

    The alarms are in the checkpoint: a resumed run has them in its report too, and goes on in spite of them.
    """

    def __init__(self, stop: bool) -> None:
        """Listen.

        Args:
            stop: end the training, by way of its checkpoint and test, at the end of the epoch of an alarm.
        """
        self.stop = stop
        self.heard: list[str] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Those from before a resume."""
        assert isinstance(pl_module, SynthModule)
        pl_module.alarms[:] = [*self.heard, *(a for a in pl_module.alarms if a not in self.heard)]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After an epoch's sentinels have looked."""
        assert isinstance(pl_module, SynthModule)
        if trainer.state.fn != "fit":
            return
        new = pl_module.alarms[len(self.heard) :]
        self.heard += new
        for text in new if trainer.is_global_zero else ():
            alert(trainer.loggers, text.partition(":")[0], text)
        if self.stop and trainer.strategy.reduce_boolean_decision(bool(new), all=False):
            trainer.should_stop = True
            if trainer.is_global_zero:
                log.warning("trainer.sentinels=stop: the training ends with this epoch; resume= goes on in spite of it")

    def state_dict(self) -> dict[str, Any]:
        """What was heard."""
        return {"heard": list(self.heard)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Known from before."""
        self.heard = list(state_dict["heard"])

"""Checkpoints that a killed run can trust, exact resume, and a clean stop on Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from mri_synth.errors import UserError


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Checkpoints(pl.Callback):
    """`last.ckpt` every N steps and at the end of every epoch, `best.ckpt` by the model's monitored metric.

    Each is written beside its place and renamed. A checkpoint on an epoch's last batch waits for that epoch's
    validation: Lightning would resume without it.

    Attributes:
        best: best value so far of the monitored metric; None before the first validation.
        best_epoch: when it was reached.
    """

    def __init__(self, folder: Path, monitor: tuple[str, str], every_steps: int, patience: int | None) -> None:
        """Write into a run's folder.

        Args:
            folder: the run's.
            monitor: metric, and "max" or "min".
            every_steps: between two last.ckpt.
            patience: stop after this many validations without a better value; None: never. Validations without any
                value, between two judgements of samples, do not count.
        """
        self.folder, (self.metric, self.mode) = folder, monitor
        self.every_steps, self.patience = every_steps, patience
        self.best: float | None = None
        self.best_epoch = 0
        self.waited = 0
        self._waiting: str | None = None

    def save(self, trainer: pl.Trainer, name: str, wait: bool = False) -> None:
        """Write a checkpoint by rename; all ranks must call it.

        Args:
            trainer: whose state is saved.
            name: file name in the run's folder.
            wait: write it, and leave the rename to `publish`: Lightning logs a batch after its last hook, and a run
                that is killed before that must not go on behind it.

        Raises:
            UserError: the folder cannot be written or the disk is full; the file before stays as it was.
        """
        partial = self.folder / f".{name}.partial"
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            self._waiting = name
            if not wait:
                self.publish(trainer)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            partial.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else f"the disk is full or fails ({error})"
            raise UserError(
                f"cannot write {self.folder / name}: {why}; the checkpoint before it is untouched. "
                f"Free space, then: python -m mri_synth.run resume={self.folder}"
            ) from error
        trainer.strategy.barrier("checkpoint")

    def publish(self, trainer: pl.Trainer) -> None:
        """Give a checkpoint that waits its name.

        Args:
            trainer: of the run.
        """
        name, self._waiting = self._waiting, None
        if name and trainer.is_global_zero:
            (self.folder / f".{name}.partial").replace(self.folder / name)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:  # fmt: skip
        """By now the losses of the batch before are logged."""
        self.publish(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """Every N steps, except on an epoch's last batch."""
        if trainer.global_step % self.every_steps == 0 and ends_a_step(trainer, batch_idx):
            self.save(trainer, "last.ckpt", wait=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After an epoch's validation: last.ckpt, and best.ckpt when the metric is better than ever."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.metric)
        if value is not None and self._better(float(value)):
            self.best, self.best_epoch, self.waited = float(value), trainer.current_epoch, 0
            self.save(trainer, "best.ckpt")
        elif value is not None:
            self.waited += 1
        if self.patience is not None and self.waited > self.patience:
            trainer.should_stop = True
        self.save(trainer, "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch without validation ends with last.ckpt too."""
        if not trainer.fit_loop.epoch_loop._should_check_val_epoch():
            self.save(trainer, "last.ckpt")

    def _better(self, value: float) -> bool:
        if not np.isfinite(value):
            return False
        return self.best is None or (value > self.best if self.mode == "max" else value < self.best)

    def state_dict(self) -> dict[str, Any]:
        """Best value and patience go on after a resume."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best value of before."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.waited = state_dict["waited"]


class ExactResume(pl.Callback):
    """Random state of every rank in the checkpoint; validation draws from a state of its own."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the random state of all ranks."""
        mine = self._before_validation or random_state()
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        else:
            everyone = [mine]
        checkpoint["random_state"] = everyone

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until training starts: what is built before then draws too."""
        self._restored = checkpoint.get("random_state")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on drawing where the checkpoint left off."""
        if self._restored is not None and len(self._restored) == trainer.world_size:
            set_random_state(self._restored[trainer.global_rank])
        self._restored = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validation must not move the training's random state."""
        self._before_validation = random_state()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Back to the training's random state."""
        if self._before_validation is not None:
            set_random_state(self._before_validation)
            self._before_validation = None


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, as tensors and plain values (safe to unpickle)."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (libraries draw from it)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where `random_state` found them.

    Args:
        state: what it returned.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    assert isinstance(keys, Tensor)
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def ends_a_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step has just been made that is not the epoch's last one: gradients that are only
    accumulated are in no checkpoint, and on the last batch the validation is still to come.

    Args:
        trainer: of the run.
        batch_idx: of the batch that was just trained on.

    Returns:
        True between two steps of an epoch.
    """
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch


_SAVE_ONLY = 1
"""In place of a signal's number, and less than those we listen to."""


class StopCleanly(pl.Callback):
    """Ctrl-C, SIGTERM or SIGUSR1: finish the batch, write last.ckpt, raise `Interrupted`. Twice: at once.

    In a job of submitit its own handlers have the last word, after the checkpoint: its preemption signal (SIGUSR2)
    queues the job again, and SIGTERM, which Slurm sends beside it, does not stop the job.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, checkpoints: Checkpoints, agree_every: int) -> None:
        """Stop by way of a checkpoint.

        Args:
            checkpoints: writes it.
            agree_every: with several processes, steps between asking each other whether to stop.
        """
        self.checkpoints, self.agree_every = checkpoints, agree_every
        self.asked: int | None = None
        self.requeue = preemption_signal()
        self._stopping: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from now on (Lightning has set its own handlers by now)."""
        numbers = {*self.signals, *([self.requeue] if self.requeue else [])}
        try:
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        except ValueError:  # not in the main thread (a launcher's worker): its owner stops us
            self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None and not self.requeue:
            raise KeyboardInterrupt
        number = _SAVE_ONLY if self.requeue and number == signal.SIGTERM else number
        self.asked = max(number, self.asked or 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """Save between two steps; on an epoch's last batch its validation does that."""
        if not ends_a_step(trainer, batch_idx):
            return
        asked = self.asked or 0
        if trainer.world_size > 1:
            if trainer.global_step % self.agree_every:
                return
            asked = int(trainer.strategy.reduce(torch.tensor(asked, device=pl_module.device), reduce_op="max"))
        if asked:
            self.checkpoints.save(trainer, "last.ckpt", wait=True)
            self._stopping = asked

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:  # fmt: skip
        """Stop before the next batch: by now the last one's losses are logged."""
        if self._stopping is not None:
            self.checkpoints.publish(trainer)
            number, self._stopping, self.asked = self._stopping, None, None
            self._stop(number)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Asked on an epoch's last batch or during validation: its checkpoint stands already."""
        if trainer.global_step == 0:
            return
        asked = self.asked or 0
        if trainer.world_size > 1:
            asked = int(trainer.strategy.reduce(torch.tensor(asked, device=pl_module.device), reduce_op="max"))
        if asked:
            self.asked = None
            self._stop(asked)

    def _stop(self, number: int) -> None:
        if number == _SAVE_ONLY:
            return
        handler = self._before.get(number)
        if self.requeue and number == self.requeue and callable(handler):
            handler(number, None)  # submitit: queues the job again and leaves with SystemExit
        raise Interrupted(f"stopped by {signal.Signals(number).name}; nothing is lost. Go on with: "
                          f"python -m mri_synth.run resume={self.checkpoints.folder}")  # fmt: skip

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back, unless Lightning has: what it restores was there before its own, which we kept."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._ask:
                signal.signal(number, handler)
        self._before = {}


def preemption_signal() -> int | None:
    """The signal by which submitit asks a job to make room; None outside a job of submitit."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    return int(getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"))

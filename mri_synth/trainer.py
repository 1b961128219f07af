"""The trainer: Lightning's, with the accelerator, precision and callbacks that a run of ours always has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt, Le
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger

from mri_synth.callbacks.checkpoints import Checkpoints, ExactResume, StopCleanly
from mri_synth.callbacks.judging import make_judging
from mri_synth.callbacks.pictures import Pictures
from mri_synth.callbacks.sentinels import NonFinite
from mri_synth.callbacks.unpaired import Unfaithful
from mri_synth.callbacks.watches import make_sentinels
from mri_synth.devices import computes_in_bf16, keep_memory
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]
Share = Annotated[int, Ge(1)] | Annotated[float, Gt(0), Le(1)]


def make_trainer(
    run: Path,
    model: SynthModule,
    loggers: Sequence[Logger],
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto",
    devices: Literal["auto"] | Annotated[int, Ge(1)] = "auto",
    num_nodes: Annotated[int, Ge(1)] = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    precision: Precision = "auto",
    channels_last: bool = True,
    compile: bool = False,
    deterministic: bool = False,
    max_epochs: Annotated[int, Ge(1)] = 20,
    max_steps: Annotated[int, Ge(1)] | None = None,
    max_minutes: Annotated[float, Gt(0)] | None = None,
    gradient_clip: Annotated[float, Gt(0)] | None = None,
    accumulate: Annotated[int, Ge(1)] = 1,
    val_every_epochs: Annotated[int, Ge(1)] = 1,
    patience: Annotated[int, Ge(0)] | None = None,
    log_every_steps: Annotated[int, Ge(1)] = 10,
    checkpoint_every_steps: Annotated[int, Ge(1)] = 200,
    pictures: Annotated[int, Ge(0), Le(64)] = 8,
    judge_every: Annotated[int, Ge(1)] | None = None,
    judge_samples: Annotated[int, Ge(2)] = 128,
    judge_features: str = "auto",
    sentinels: Literal["warn", "stop", "off"] = "warn",
    limit_train_batches: Share = 1.0,
    limit_val_batches: Share = 1.0,
    limit_test_batches: Share = 1.0,
    progress: bool = True,
) -> pl.Trainer:
    """Lightning's trainer for one run.

    Args:
        run: the run's folder.
        model: what is trained; it names the metric that chooses the best checkpoint.
        loggers: where metrics go.
        accelerator: "auto" takes a GPU when there is one.
        devices: how many; "auto" is all GPUs, or one CPU process.
        num_nodes: machines, under Slurm.
        strategy: "auto", or "ddp" for several processes.
        precision: "auto" is bf16-mixed where the hardware computes in it (CUDA from Ampere on, CPUs with AVX512-BF16
            or AMX), else 32-true.
        channels_last: memory layout of the networks; faster on GPUs and on CPUs in bf16.
        compile: torch.compile of the networks.
        deterministic: refuse operations whose result depends on thread timing (GPU).
        max_epochs: length of the training.
        max_steps: stop after this many steps, if that is earlier.
        max_minutes: stop after this time, if that is earlier.
        gradient_clip: largest norm of the gradient.
        accumulate: batches per step.
        val_every_epochs: epochs between validations.
        patience: stop after this many validations without a better monitored metric.
        log_every_steps: steps between logged losses.
        checkpoint_every_steps: steps between two last.ckpt.
        pictures: held-out items drawn every epoch; 0 draws none.
        judge_every: epochs between two judgements of samples (val/kid, val/ms_ssim); None: every epoch for methods
            whose best checkpoint is chosen by them, none for others.
        judge_samples: how many are drawn for it.
        judge_features: in which they are judged: "auto" (Inception where its weights are here, else pixels),
            "inception", "pixels", or the checkpoint of an encoder.
        sentinels: on mode collapse, inverted contrast, made-up structure or a saturated discriminator, "warn", or
            "stop" after the epoch. A loss that is not finite always stops.
        limit_train_batches: share (or number) of the training batches per epoch.
        limit_val_batches: the same of validation.
        limit_test_batches: the same of the test.
        progress: show a progress bar.

    Returns:
        The trainer, callbacks included.
    """
    require_device(accelerator)
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    if precision == "auto":
        precision = "bf16-mixed" if computes_in_bf16(on_gpu) else "32-true"
    if devices == "auto" and not on_gpu:
        devices = 1
    if not on_gpu:
        keep_memory()
    model.log_every_steps = log_every_steps
    model.max_steps = max_steps
    model.gradient_clip, model.accumulate = gradient_clip, accumulate
    manual = not model.automatic_optimization  # Lightning refuses both there, and the method does them
    model.fused = gradient_clip is None and precision != "16-mixed"
    checkpoints = Checkpoints(run, model.monitor, checkpoint_every_steps, patience)
    judging = make_judging(model, judge_every, judge_samples, judge_features, val_every_epochs)
    callbacks = [
        Layout(channels_last, compile),
        NonFinite(run, log_every_steps),
        ExactResume(),
        Throughput(),
        *([judging] if judging else []),
        *([Unfaithful()] if sentinels != "off" and model.goes_back() else []),
        *(make_sentinels(judging, log_every_steps, sentinels == "stop") if sentinels != "off" else []),
        Pictures(run, pictures),
        Limits(max_steps, max_minutes),
        checkpoints,
        StopCleanly(checkpoints, log_every_steps),
    ]
    if progress:
        callbacks.append(Bar(refresh_rate=max(1, log_every_steps)))
    return pl.Trainer(
        accelerator="cpu" if accelerator == "auto" and not on_gpu else accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision=precision,
        max_epochs=max_epochs,
        gradient_clip_val=None if manual else gradient_clip,
        accumulate_grad_batches=1 if manual else accumulate,
        check_val_every_n_epoch=val_every_epochs,
        log_every_n_steps=log_every_steps,  # as the module does; oftener would write its last values again every step
        deterministic=deterministic,
        limit_train_batches=limit_train_batches,
        limit_val_batches=limit_val_batches,
        limit_test_batches=limit_test_batches,
        callbacks=callbacks,
        logger=list(loggers),
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=run,
    )


def require_device(accelerator: str) -> None:
    """Refuse an accelerator that this machine lacks, before data are prepared for it.

    Args:
        accelerator: as in `make_trainer`.

    Raises:
        UserError: there is none.
    """
    missing = (accelerator == "gpu" and not torch.cuda.is_available()) or (
        accelerator == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"trainer.accelerator={accelerator}: torch {torch.__version__} finds no such device here; "
                        "say trainer=cpu, or trainer=auto to take what there is")  # fmt: skip


class Layout(pl.Callback):
    """Memory layout and compilation of the networks, before the optimizers see them."""

    def __init__(self, channels_last: bool, compile: bool) -> None:
        """Apply to the networks of a method.

        Args:
            channels_last: NHWC weights.
            compile: by `Module.compile`, which leaves the names in checkpoints alone.
        """
        self.channels_last, self.compile = channels_last, compile

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Once per stage; both are idempotent."""
        assert isinstance(pl_module, SynthModule)
        if self.channels_last:
            pl_module.to(memory_format=torch.channels_last)
        if self.compile:
            for network in pl_module.networks():
                network.compile()


class Limits(pl.Callback):
    """Stops after a number of steps or minutes. Lightning's own max_steps repeats an epoch's end after a resume."""

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        """Limit a run.

        Args:
            steps: None for no limit.
            minutes: of training and validation in this process; None for no limit.
        """
        self.steps, self.minutes = steps, minutes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The clock starts; a resumed run may have made its steps already."""
        self.start = time.monotonic()
        if self.steps is not None and trainer.global_step >= self.steps:
            trainer.should_stop = True

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """Ask for the stop; the epoch's validation still runs."""
        assert isinstance(pl_module, SynthModule)
        share = 0.0 if self.minutes is None else (time.monotonic() - self.start) / (60 * self.minutes)
        if self.minutes is not None and trainer.world_size > 1:  # clocks differ, and all must stop at one step
            latest: Any = trainer.strategy.reduce(torch.tensor(share, device=pl_module.device), reduce_op="max")
            share = float(latest)
        late, pl_module.time_used = share > 1, share
        if late or (self.steps is not None and trainer.global_step >= self.steps):
            trainer.should_stop = True


class Throughput(pl.Callback):
    """Training images per second of each epoch, validation and pictures not counted.

    Attributes:
        images: trained in this process, all ranks.
        seconds: they took.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._epoch = (0, 0.0)
        self._last: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Over the whole run; None before the first step."""
        return self.images / self.seconds if self.seconds else None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A new epoch."""
        self._epoch, self._last = (self.images, self.seconds), time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """Count."""
        now = time.monotonic()
        if self._last is not None:
            self.seconds += now - self._last
            self.images += len(batch) * trainer.world_size
        self._last = now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch's figure."""
        images, seconds = self.images - self._epoch[0], self.seconds - self._epoch[1]
        if trainer.state.fn == "fit" and seconds:
            figure = {"images_per_second": images / seconds, "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(figure, trainer.global_step - 1)  # the step of the epoch's last losses


class Bar(TQDMProgressBar):
    """One line per epoch with the metric that matters."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Without the version number."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        return items

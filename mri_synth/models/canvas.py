"""Methods that optimise images and train no network: one item is one job, and its image is what is learned."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.devices import device_of, keep_memory
from mri_synth.models.base import SynthModule
from mri_synth.optim.canvas import CanvasAdam, CanvasOptimizer
from mri_synth.optim.lbfgs import CanvasLBFGS
from mri_synth.relaunch import hush

log = logging.getLogger(__name__)

Optimiser = Literal["lbfgs", "adam"]
Precision = Literal["32-true", "bf16-mixed"]
PositiveInt = Annotated[int, Ge(1)]
PositiveFloat = Annotated[float, Gt(0)]
EPOCHS = 20
"""Pictures, validations and checkpoints of a run, where `every` leaves it open; as `trainer.max_epochs` is."""
ADAM_LR = 0.02
"""Step size of Adam where none is given, in units of images in [-1, 1]."""


def rounds(steps: int, every: int | None) -> int:
    """Evaluations of each job in an epoch.

    Args:
        steps: of the whole run.
        every: as given; None: a share of `steps` that makes EPOCHS epochs.

    Returns:
        At least 1.
    """
    return every or max(1, math.ceil(steps / EPOCHS))


class CanvasModule(SynthModule):
    """A method whose state is one image a job, the canvas, and its optimizer. The trainer drives it as any other.

    One training step is one evaluation of the objective and its gradient for the jobs of a batch; what one job becomes
    does not depend on which others are beside it, in the batch or in other processes. An epoch is some evaluations of
    every job, and ends with the losses on the canvases as validation. A method says `begin` and `terms`.

    Args:
        spec: what the data know of themselves.
        steps: evaluations of each job.
        optimizer: "lbfgs" or "adam".
        lr: step size; None: 1 for L-BFGS, ADAM_LR for Adam.
        history: pairs that L-BFGS keeps of each job.

    Attributes:
        canvas: (N, C, H, W) in [-1, 1], one image a job; or (N, ...) latents of images, of methods that `keep` others.
    """

    def __init__(self, spec: DataSpec | dict[str, Any], steps: int, optimizer: Optimiser, lr: float | None,
                 history: int) -> None:  # fmt: skip
        super().__init__(spec)
        self.steps, self.optimizer_name, self.lr, self.history = steps, optimizer, lr, history
        self.canvas = nn.Parameter(torch.zeros(0, self.spec.channels, self.spec.size, self.spec.size))
        self.rounds_of_batches = 1

    # -- what a method says --------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> Tensor:
        """Where the canvases of some jobs start.

        Args:
            batch: jobs.

        Returns:
            (B, C, H, W) in [-1, 1].

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def terms(self, batch: Batch, canvas: Tensor) -> dict[str, Tensor]:
        """The objective of each job, and what it is made of.

        Args:
            batch: jobs.
            canvas: (B, C, H, W), theirs.

        Returns:
            Name to (B,) float32, with key `loss`.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def keep(self, canvas: Tensor) -> Tensor:
        """Canvases brought back to what they may be; after every step.

        Args:
            canvas: (B, ...).

        Returns:
            The same shape; by default clipped to [-1, 1].
        """
        return canvas.clamp(-1, 1)

    def stepped(self, rows: Tensor) -> None:
        """What a method does after a step.

        Args:
            rows: (B,) the canvases that were moved.
        """

    def shown(self, index: Tensor) -> Tensor:
        """Canvases as evaluation sees them.

        Args:
            index: (B,) of jobs.

        Returns:
            (B, ...); by default as they are.
        """
        return self.canvas[index]

    # -- the canvas ------------------------------------------------------------------------------------------------

    def prepare(self, data: MRIDataModule) -> None:
        """A canvas for every job."""
        view = data.view("train")
        size = data.batch_size
        self.start([view.__getitems__(range(k, min(k + size, len(view)))) for k in range(0, len(view), size)])

    def start(self, batches: list[Batch]) -> None:
        """Canvases of these jobs and no others.

        Args:
            batches: all jobs, in order of their index.
        """
        self.canvas = nn.Parameter(torch.cat([self.keep(self.begin(b).float()) for b in batches]))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Means of the terms over the jobs of a batch."""
        terms = self.terms(batch, self.canvas[batch.index] if self.training else self.shown(batch.index))
        if self.training:
            self._tell(batch.index, terms["loss"].detach())
        return {name: value.mean() for name, value in terms.items()}

    def _tell(self, index: Tensor, values: Tensor) -> None:
        """The optimizer must know whose objective was evaluated, by all processes, and what it was."""
        told = torch.zeros(2, len(self.canvas), device=values.device)
        told[0, index], told[1, index] = 1.0, values.float()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(told)
        optimizer: Any = self.trainer.optimizers[0]
        assert isinstance(optimizer, CanvasOptimizer)
        optimizer.tell(told[0] > 0, told[1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum over jobs: the gradient of each is its own, however many share the batch, and over how many processes
        (whose gradients are averaged) or batches a step (likewise) they are spread."""
        mean = super().training_step(batch, batch_idx)
        return mean * len(batch) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_train_start(self) -> None:
        """Say where the run ends before `steps`; a resumed one may be there already."""
        rounds_an_epoch = max(1, self.trainer.num_training_batches // self.rounds_of_batches)
        epochs = self.trainer.max_epochs or 0
        if 0 < epochs * rounds_an_epoch < self.steps:
            log.warning("trainer.max_epochs=%d ends it after %d of model.steps=%d evaluations", epochs,
                        epochs * rounds_an_epoch, self.steps)  # fmt: skip
        self._end()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """The run ends when each job has had its steps; the epoch's validation follows."""
        self._end()

    def _end(self) -> None:
        if self.global_step * self.trainer.accumulate_grad_batches >= self.steps * self.rounds_of_batches:
            self.trainer.should_stop = True
            optimizer: Any = self.trainer.optimizers[0]
            optimizer.settle()

    def configure_optimizers(self) -> Any:
        """L-BFGS or Adam, each job for itself."""
        optimizer: CanvasOptimizer
        if self.optimizer_name == "adam":
            optimizer = CanvasAdam(self.canvas, ADAM_LR if self.lr is None else self.lr)
        else:
            optimizer = CanvasLBFGS(self.canvas, 1.0 if self.lr is None else self.lr, self.history)
        optimizer.keep, optimizer.stepped = self.keep, self.stepped
        return optimizer

    def setup(self, stage: str) -> None:
        """Plain strides: those that channels_last gives one channel, and has given it by now, trip DDP's broadcast."""
        self.canvas.data = self.canvas.data.clone(memory_format=torch.contiguous_format)

    def on_fit_start(self) -> None:
        """Batches that go once through all jobs."""
        loader = getattr(self.trainer.datamodule, "train_dataloader", None)  # type: ignore[attr-defined]
        if loader is not None:
            sampler: Any = loader().batch_sampler
            self.rounds_of_batches = max(1, len(sampler) // sampler.rounds)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """As many canvases as the checkpoint has."""
        there = state_dict.get(f"{prefix}canvas")
        if there is not None and not len(self.canvas):
            self.canvas = nn.Parameter(torch.zeros_like(there))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def paint(
    model: CanvasModule, jobs: Batch, precision: Precision = "32-true", device: str = "auto",
    begin: Tensor | None = None, callbacks: Sequence[pl.Callback] = (),
) -> Tensor:  # fmt: skip
    """Do jobs that are in memory, by the same trainer, without a run folder.

    Args:
        model: of any canvas method; what it had on its canvases is forgotten.
        jobs: index 0, 1, ...; one batch.
        precision: "32-true" or "bf16-mixed".
        device: "auto", "cpu", "cuda", "cuda:1", ...
        begin: (B, C, H, W) in [-1, 1], where the canvases start; None: where the method has them start.
        callbacks: of the trainer.

    Returns:
        (B, C, H, W) float32 in [-1, 1], on the CPU; whatever the method's canvases are.
    """
    hush()
    model.start([jobs])
    if begin is not None:
        model.canvas = nn.Parameter(begin.clone())
    place = device_of(device)
    if place.type == "cpu":
        keep_memory()
    model.log_every_steps = model.steps + 1
    repeated: Any = [jobs] * model.steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loader for validation, few workers, ...: not so here
        trainer = pl.Trainer(
            accelerator="gpu" if place.type == "cuda" else "cpu", precision=precision, max_epochs=1, logger=False,
            devices=[place.index or 0] if place.type == "cuda" else 1, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
            callbacks=list(callbacks),
        )  # fmt: skip
        trainer.fit(model.train(), DataLoader(repeated, batch_size=None))
    return model.canvas.detach().float().cpu()

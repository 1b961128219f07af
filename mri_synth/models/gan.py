"""`GANModule`: how a generator and a discriminator take turns. What they are, and their losses, a method says."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.diffaugment import DiffAugment
from mri_synth.draws import normal
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import LinearDecay, WarmupCosine
from mri_synth.models.turns import average_buffers, average_gradients, detached, follow, forget_others, frozen

_EVALUATION, _FIXED = -1, 0
"""Epoch and seed of the noise of validation and test: an item has the same z whenever it is scored."""


class GANModule(SynthModule):
    """Two sets of networks trained against each other, by manual optimization.

    Of every batch the discriminators learn, and of every n_critic-th the generators too, through the updated
    discriminators. One step is counted per batch (per `trainer.accumulate` of them), whatever is updated within it:
    `global_step`, limits, schedules, checkpoints and curves all count these.

    A method calls `start_ema()` at the end of its constructor, takes `lr_g`, `lr_d` and `betas` among its arguments (or
    configures its optimizers itself: first the discriminators', then the generators'), and says `generate`,
    `discriminator_losses`, `generator_losses`, `generator_networks`, `discriminator_networks` and `sample`.

    Args:
        spec: what the data know of themselves.
        n_critic: batches per update of the generators.
        ema_decay: of the moving average of the generators' weights, which samples; 0: no average is kept.

    Attributes:
        ema: frozen averages of `generator_networks()`, in their order; None without.
        augment: of what the discriminators see in training, by `augmented`; a method may set it. None: nothing is done.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/kid", "min")
    ema: nn.ModuleList | None
    augment: DiffAugment | None

    def __init__(self, spec: DataSpec | dict[str, Any], n_critic: int = 1, ema_decay: float = 0.999) -> None:
        super().__init__(spec)
        self.automatic_optimization = False
        self.n_critic, self.ema_decay = n_critic, ema_decay
        self.ema = self.augment = None
        self._collected: list[Batch] = []

    # -- what a method says ----------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> Any:
        """What the generators make of a batch, from `acting()` and `noise()`: once per step, for both sides.

        Args:
            batch: of training, or of validation and test.

        Returns:
            A tensor, or a dict or tuple of them; the other methods get it, detached or with its graph.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def discriminator_losses(self, batch: Batch, fakes: Any) -> dict[str, Tensor]:
        """Scalars of one batch, with key `loss`, which the discriminators minimise; penalties in training only.

        Args:
            batch: as the view offers it.
            fakes: what `generate` made, detached.

        Returns:
            Name to scalar; logged as d_<name>. `real` and `fake` are the mean logits.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def generator_losses(self, batch: Batch, fakes: Any) -> dict[str, Tensor]:
        """Scalars of one batch, with key `loss`, which the generators minimise.

        Args:
            batch: as the view offers it.
            fakes: what `generate` made, with its graph.

        Returns:
            Name to scalar; logged as g_<name>.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def generator_networks(self) -> Sequence[nn.Module]:
        """Networks of the second optimizer; averaged. By default `self.generator`."""
        return [self.generator]  # type: ignore[list-item]

    def discriminator_networks(self) -> Sequence[nn.Module]:
        """Networks of the first optimizer. By default `self.discriminator`."""
        return [self.discriminator]  # type: ignore[list-item]

    def updates(self, parts: list[Batch]) -> Iterable[list[Batch]]:
        """The updates (of both sides) that one step makes of its batches; by default one.

        Args:
            parts: the batches that were collected, one without accumulation.

        Returns:
            The parts of each update.
        """
        return [parts]

    def discriminates(self) -> bool:
        """Whether the discriminators learn at this step; False in a warm-up of the generators."""
        return True

    def end_step(self) -> None:
        """What else changes at the end of a step, before it is counted; by default nothing."""

    # -- what a method uses ----------------------------------------------------------------------------------------

    def start_ema(self) -> None:
        """Copy the generators, for their averages. To be called at the end of a method's constructor."""
        if self.ema_decay:
            self.ema = nn.ModuleList(copy.deepcopy(network) for network in self.generator_networks())
            self.ema.requires_grad_(False)

    def acting(self, which: int = 0) -> Any:
        """The one of `generator_networks()` that generates: as it is in training, its average in evaluation."""
        return self.generator_networks()[which] if self.training else self.averaged(which)

    def averaged(self, which: int = 0) -> Any:
        """The average of one of `generator_networks()`, which samples; the network itself where none is kept."""
        return self.generator_networks()[which] if self.ema is None else self.ema[which]

    def noise(self, batch: Batch, draws: int) -> Tensor:
        """(B, draws) standard normal numbers of the batch's items: new at every training step, fixed in evaluation."""
        seed, when = (self.seed, self.global_step) if self.training else (_FIXED, _EVALUATION)
        return normal(seed, when, batch.index.to(batch.image.device), draws)

    def augmented(self, images: Tensor, batch: Batch, use: int) -> Tensor:
        """Images (B, C, H, W) as the discriminators see them: in training by `augment`, in evaluation as they are.

        Args:
            images: of the batch's items.
            batch: whose items they are.
            use: 0 for real images, 1 for generated ones in the discriminators' turn, 2 in the generators'.

        Returns:
            Of the same shape.
        """
        if self.augment is None or not self.training:
            return images
        out: Tensor = self.augment(images, self.seed, self.global_step, batch.index, use)
        return out

    def observe(self, real: Tensor) -> None:
        """Note the logits (B, ...) of augmented real images, which an adaptive strength follows."""
        if self.training and self.augment is not None and self.augment.adaptive is not None:
            self.augment.adaptive.observe(real, 0.5 if self.hparams["gan_loss"] == "lsgan" else 0.0)

    def due(self, every: int) -> bool:
        """Whether a lazy penalty is due at this training step; its weight is then multiplied by `every`.

        Args:
            every: steps between two of them (Karras et al. 2020, arXiv:1912.04958, appendix B).

        Returns:
            True of the last of every so many steps, so that it may be one that is logged; False in evaluation.
        """
        return self.training and (self.global_step + 1) % every == 0

    # -- steps -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Lightning refuses accumulation in manual optimization when a fit begins, and counts rightly from then on."""
        if stage == "fit":
            self.trainer.accumulate_grad_batches = self.accumulate

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        """One step, or with accumulation a batch kept for it; logs train/d_<key> and train/g_<key>.

        Args:
            batch: as the view offers it.
            batch_idx: its number in the epoch.

        Returns:
            `loss`, for the watch on what is not finite, and the losses of both sides where a step was made.
        """
        self._collected.append(batch)
        steps = (batch_idx + 1) % self.accumulate == 0 or self.trainer.is_last_batch
        every = self.log_every_steps if steps else 0  # 0: what was logged last is not written again
        self.trainer.log_every_n_steps = every  # type: ignore[attr-defined]
        if not steps:
            return {"loss": torch.zeros((), device=self.device)}
        parts, self._collected = self._collected, []
        losses: dict[str, Tensor] = {}
        for update in self.updates(parts):
            losses |= self._update(update)
        if self.trainer.world_size > 1:
            average_buffers([*self.generator_networks(), *self.discriminator_networks(), *(self.ema or [])])
        if (self.global_step + 1) % self.log_every_steps == 0:
            logged = {f"train/{k}": v for k, v in losses.items()}
            for name, optimizer in zip("dg", self.trainer.optimizers, strict=False):
                logged[f"train/lr_{name}"] = torch.tensor(optimizer.param_groups[0]["lr"])
            forget_others(self.trainer, logged)  # such as a lazy penalty's, which would be written again
            self.log_dict(logged, batch_size=sum(map(len, parts)), sync_dist=True)
        if self.augment is not None and self.augment.adaptive is not None:
            self.augment.adaptive.adjust(self.global_step)
        self.end_step()
        self._count()
        total = sum((losses[k] for k in ("d_loss", "g_loss") if k in losses), torch.zeros((), device=self.device))
        return {"loss": total, **losses}

    def _update(self, parts: list[Batch]) -> dict[str, Tensor]:
        """Discriminators, then generators, on the parts of one update; their mean losses."""
        generates = (self.global_step + 1) % self.n_critic == 0
        keep = generates and len(parts) == 1  # graphs of several would take the memory that parts save
        made = [self.generate(part) for part in parts] if keep else []
        losses: dict[str, Tensor] = {}
        if self.discriminates():
            turn = (self._against(part, made[i] if keep else None) for i, part in enumerate(parts))
            losses |= self._step(0, parts, turn, "d")
        if generates:
            with frozen(self.discriminator_networks()):
                turn = (self.generator_losses(part, made.pop(0) if keep else self.generate(part)) for part in parts)
                losses |= self._step(1, parts, turn, "g")
            self._average()
        return losses

    def _against(self, part: Batch, fakes: Any) -> dict[str, Tensor]:
        if fakes is None:
            with torch.no_grad():
                fakes = self.generate(part)
        return self.discriminator_losses(part, detached(fakes))

    def _step(self, which: int, parts: list[Batch], turn: Iterator[dict[str, Tensor]], name: str) -> dict[str, Tensor]:
        """One step of an optimizer on the losses of all parts, each weighted by its size."""
        optimizer, strategy = self.trainer.optimizers[which], self.trainer.strategy
        optimizer.zero_grad()
        total = sum(map(len, parts))
        mean: dict[str, Tensor] = {}
        for part, losses in zip(parts, turn, strict=True):
            weight = len(part) / total
            with getattr(strategy, "block_backward_sync", nullcontext)():  # one message for all, below
                self.manual_backward(losses["loss"] * weight)
            for key, value in losses.items():
                mean[f"{name}_{key}"] = mean.get(f"{name}_{key}", 0) + value.detach() * weight
        if self.trainer.world_size > 1:
            average_gradients(optimizer)
        strategy.optimizer_step(optimizer, lambda: None)
        return mean

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip one side's gradients, which are unscaled by now."""
        if self.gradient_clip is not None:
            self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def _average(self) -> None:
        """Move the averages after an update of the generators."""
        if self.ema is not None:
            follow([*self.ema], self.generator_networks(), self.decay())

    def decay(self) -> float:
        """Decay of the averages at this step: from 0.1 up to `ema_decay`, so that they forget the start."""
        t = self.global_step // self.n_critic
        return min(self.ema_decay, (1 + t) / (10 + t))

    def _count(self) -> None:
        """One step, and its schedules. Lightning would count every optimizer's, and steps no scheduler."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step" or self.trainer.is_last_batch:
                config.scheduler.step()  # type: ignore[call-arg]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of both sides as evaluation logs them: of the averaged generators on fixed noise, no penalties.

        `L_D and L_G`, which are minimised in turns

        Args:
            batch: as the view offers it.

        Returns:
            d_<name> and g_<name> to scalar.
        """
        fakes = self.generate(batch)
        losses = {f"d_{k}": v for k, v in self.discriminator_losses(batch, detached(fakes)).items()}
        return losses | {f"g_{k}": v for k, v in self.generator_losses(batch, fakes).items()}

    def configure_optimizers(self) -> Any:
        """Adam for each side, with what `warmup_steps`, `lr_final` or `decay_from` ask for, where a method has them."""
        h = self.hparams
        sides = (("lr_d", self.discriminator_networks()), ("lr_g", self.generator_networks()))
        optimizers = [self.adam([p for n in side for p in n.parameters()], h[lr], h["betas"]) for lr, side in sides]
        warmup, final, start = h.get("warmup_steps", 0), h.get("lr_final", 1.0), h.get("decay_from", 1.0)
        if not warmup and final == start == 1:
            return optimizers
        total, straight = self.total_steps, final == 1 and start < 1
        schedule = LinearDecay(total, start) if straight else WarmupCosine(min(warmup, total // 10), total, final)
        schedulers = [torch.optim.lr_scheduler.LambdaLR(o, schedule) for o in optimizers]
        return optimizers, [{"scheduler": s, "interval": "step"} for s in schedulers]

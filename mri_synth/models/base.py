"""`SynthModule`: the contract of every method."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mri_synth import __version__
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.views import Images
from mri_synth.errors import UserError
from mri_synth.metrics.protocols import AT, full_scores, habit_scores
from mri_synth.metrics.scores import ImageScores, ItemScores
from mri_synth.models import conditions
from mri_synth.models.checkpoint import FORMAT
from mri_synth.models.latent_space import LatentSpace, Vectors

if TYPE_CHECKING:
    from mri_synth.data.base import MRIDataModule

log = logging.getLogger(__name__)


class SynthModule(pl.LightningModule):
    """A generative method. A method says what it needs, its losses, and how it samples, translates or reconstructs.

    Args:
        spec: what the data know of themselves, or the dict of a checkpoint.

    Attributes:
        monitor: metric that chooses the best checkpoint, and whether "max" or "min" is better.
        explained: loss name to the function whose docstring explains it in the report.
        protocols: name of a score of `item_scores` to how it is measured, of those that image scores do not have.
        notes: name of a reference value to what it is, of those of `references`.
        no_graph: operation of a release to why it cannot be written as one graph of tensors.
        instead: what a checkpoint is good for of which nothing can be released.
        fused: optimizers in one kernel; this and the next five are set by the trainer's settings.
        log_every_steps: steps between logged losses.
        max_steps: a limit on the steps, for schedules.
        time_used: share of a limit on the time, 0 without one.
        gradient_clip: largest norm of the gradient, of methods that optimize by themselves.
        accumulate: batches per step, of the same.
        seed: of what training draws; the run's.
        alarms: sentences for the log and the report, of what went wrong in training and what helps.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")
    explained: ClassVar[dict[str, Callable[..., Any]]] = {}
    protocols: ClassVar[dict[str, str]] = {}
    notes: ClassVar[dict[str, str]] = {}
    no_graph: ClassVar[dict[str, str]] = {}
    instead: ClassVar[str] = ""

    def __init__(self, spec: DataSpec | dict[str, Any]) -> None:
        super().__init__()
        self.spec = DataSpec.of(spec)
        self.fused = False
        self.log_every_steps = 10
        self.max_steps: int | None = None
        self.time_used = 0.0
        self.gradient_clip: float | None = None
        self.accumulate = 1
        self.seed = 0
        self.alarms: list[str] = []
        self.save_hyperparameters(*_constructor_arguments(type(self)))
        self.hparams["spec"] = self.spec.to_dict()
        self.val_scores, self.test_scores = ImageScores(), ItemScores()

    # -- what a method says --------------------------------------------------------------------------------------

    @staticmethod
    def needs(condition: conditions.Condition = "none") -> type[Images]:
        """The view of the data that the method trains on; may depend on constructor arguments, which it then takes.

        Args:
            condition: what samples can be asked for, of methods that have such an argument.

        Returns:
            One of the classes in `mri_synth.data.views`.
        """
        return conditions.view(condition)

    @staticmethod
    def refuses() -> str:
        """Why the method cannot train on images of these settings; may take constructor arguments of model and data.

        Returns:
            The reason with the way out; "" when it can.
        """
        return ""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch, with key `loss`, which is minimised.

        Args:
            batch: as the view offers it.

        Returns:
            Name to scalar.

        Raises:
            NotImplementedError: a method must say it.
        """
        raise NotImplementedError

    def reconstruct(self, image: Tensor) -> Tensor:
        """The image through the model and back.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            (B, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: the method does not reconstruct.
        """
        raise UserError(f"{type(self).__name__} does not reconstruct images")

    def suspicion(self, image: Tensor) -> Tensor:
        """How likely each pixel is foreign to what was trained on; of methods that do not say it residuals do.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            (B, 1, H, W) float32 in [0, 1].

        Raises:
            UserError: the method has no suspicion of its own.
        """
        raise UserError(f"{type(self).__name__} has no suspicion of its own; see its residuals")

    @classmethod
    def suspects(cls) -> bool:
        """Whether the method has a `suspicion` of its own."""
        return cls.suspicion is not SynthModule.suspicion

    def translate(self, source: Tensor) -> Tensor:
        """Another contrast of the same slices. A method may take further options by keyword; the verb offers them.

        Args:
            source: (B, S, H, W) in [-1, 1], the channels of `spec.sources`.

        Returns:
            (B, 1, H, W) float32 in [-1, 1].

        Raises:
            UserError: the method does not translate.
        """
        raise UserError(f"{type(self).__name__} does not translate images")

    @classmethod
    def translates(cls) -> bool:
        """Whether the method has a `translate` of its own."""
        return cls.translate is not SynthModule.translate

    @classmethod
    def goes_back(cls) -> bool:
        """Whether `translate` can be told, by `to`, the contrast that is wanted, of goal and source."""
        return "to" in inspect.signature(cls.translate).parameters

    def sample(self, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        """New images. A method may take further options by keyword, such as `temperature`; the verb offers them.

        Args:
            seeds: (n,) int64; one seed gives one image, whatever else is in the batch.
            label: (n,) int64 of conditional methods, index into what `conditions` names; -1 or None: any.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: the method does not sample.
        """
        raise UserError(f"{type(self).__name__} does not sample images")

    @classmethod
    def samples(cls) -> bool:
        """Whether the method has a `sample` of its own."""
        return cls.sample is not SynthModule.sample

    def latent(self, seeds: Tensor) -> Tensor:
        """What `sample` makes its images of, for methods in which that is a vector: one may walk through its space.

        Args:
            seeds: (n,) int64.

        Returns:
            (n, D) float32 on the method's device.

        Raises:
            UserError: the method has no latent vector.
        """
        raise UserError(f"{type(self).__name__} has no latent vector to go from one image to another by")

    def from_latent(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Images of latent vectors; of `latent(seeds)` the same as `sample(seeds)`, whose options it takes by keyword.

        Args:
            z: (n, D).
            label: as in `sample`.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: the method has no latent vector.
        """
        raise UserError(f"{type(self).__name__} has no latent vector to go from one image to another by")

    def latent_space(self) -> LatentSpace:
        """Where images of the method can be optimised, its weights frozen; by default that of `from_latent`.

        Returns:
            The space; it shares the method's networks.

        Raises:
            UserError: the method has no latents.
        """
        if type(self).from_latent is SynthModule.from_latent:
            raise UserError(f"{type(self).__name__} has no latents to optimise images by; give a checkpoint of a "
                            "method that has some, such as model=vqgan, vqvae, vae or dcgan")  # fmt: skip
        return Vectors(self)

    @property
    def origin(self) -> str:
        """What samples are drawn from, for report and card, where a method has a choice; else ""."""
        return ""

    def conditions(self) -> tuple[str, ...]:
        """Names of what samples can be conditioned on, in index order, by `condition`; empty without that argument."""
        return conditions.names(self.hparams.get("condition", "none"), self.spec)

    def condition(self, batch: Batch) -> Tensor | None:
        """What the images of a batch are, of what `conditions` names.

        Args:
            batch: as the view offers it.

        Returns:
            (B,) int64, -1 where unknown; None for unconditional methods.
        """
        return conditions.known(self.hparams.get("condition", "none"), self.spec, batch)

    def prompted(self, prompts: Sequence[str]) -> Tensor:
        """Texts as what samples are conditioned on, of methods whose `sample` takes a `prompt`.

        Args:
            prompts: of a user.

        Returns:
            (n, D) float32 on the method's device.

        Raises:
            UserError: the method takes none, or does not know the words.
        """
        raise UserError(f"{type(self).__name__} takes no prompts")

    def prompts(self, batch: Batch) -> list[str]:
        """What one would ask for to get the images of a batch, of methods that take prompts.

        Args:
            batch: as the view offers it.

        Returns:
            One text each; empty of methods, and of models, that take none.
        """
        return []

    def prepare(self, data: MRIDataModule) -> None:
        """What is computed from the data once, before training: the codes of a first stage.

        Args:
            data: set up.
        """

    def references(self, data: MRIDataModule) -> dict[str, float]:
        """Values that the test scores must be read against, where the method knows other ones than images do.

        Args:
            data: set up.

        Returns:
            "kind/score" to its value.
        """
        return {}

    def conclude(self, data: MRIDataModule) -> dict[str, Any]:
        """What a method that compares things has to say after the test, beside scores of images.

        Args:
            data: set up.

        Returns:
            Plain values for the report: "tables", "bars", "notes", as `mri_synth.metrics.utility.table` has them.
        """
        return {}

    def adopted(self, content: dict[str, Any]) -> dict[str, Tensor]:
        """The weights that a run takes from the checkpoint of another (`init_from`).

        Args:
            content: of the checkpoint.

        Returns:
            Name to tensor, for `load_state_dict`; by default all.
        """
        weights: dict[str, Tensor] = content["state_dict"]
        return weights

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """What the callbacks draw, row by row; the method never draws.

        Args:
            batch: the same held-out items every time.

        Returns:
            Row name to (B, 1, H, W) in [-1, 1].
        """
        if self.translates():
            rows = {name: batch.image[:, k : k + 1] for k, name in enumerate(self.spec.sources)}
            rows[f"synthetic {self.spec.goal}"] = self.translate(batch.image)
            if batch.target is not None and (batch.paired is None or batch.paired.all()):
                rows[str(self.spec.goal)] = batch.target
            return rows
        rows = {"original": batch.image}
        if self.reconstructs():
            rows["reconstruction"] = self.reconstruct(batch.image)
        if self.samples():
            rows["sample"] = self.sample(torch.arange(len(batch), device=batch.image.device), self.condition(batch))
        return rows if len(rows) > 1 else {}

    @property
    def grown(self) -> bool:
        """Whether samples are by now what the method is there to make: else no best.ckpt, and no collapse of them."""
        return True

    def go_to_costliest(self) -> str:
        """Go to where a step of the training costs most, for `task=plan`.

        Returns:
            Where that is; "" where all steps cost about the same.
        """
        return ""

    @classmethod
    def reconstructs(cls) -> bool:
        """Whether the method has a `reconstruct` of its own."""
        return cls.reconstruct is not SynthModule.reconstruct

    # -- steps -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of automatic optimization; logs train/<key> every `log_every_steps` steps."""
        losses = self.losses(batch)
        steps = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch
        if steps and (self.global_step + 1) % self.log_every_steps == 0:
            logged = {f"train/{k}": v.detach() for k, v in losses.items()}
            for optimizer in self.trainer.optimizers:
                logged["train/lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
            self.log_dict(logged, batch_size=len(batch), sync_dist=True)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses as val/<key>, and image scores of what reconstructs or translates."""
        self._log_losses(batch, "val", ())
        if (outcome := self.outcome(batch)) is not None:
            self.val_scores.update(*outcome)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses as test/<key>, and the scores of each item."""
        scores = self.item_scores(batch)
        self._log_losses(batch, "test", scores)
        if scores:
            self.test_scores.update(scores, batch.index if batch.paired is None else batch.index[batch.paired])

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Scores of each item of a test batch, from which the report makes mean and interval by subject.

        Args:
            batch: as the view offers it.

        Returns:
            Name to (B,), of the unpaired view to as many as are paired; by default what a reconstruction or a
            translation is worth. What is added needs a line in `protocols`.
        """
        outcome = self.outcome(batch)
        if outcome is None:
            return {}
        made, truth, _ = outcome
        return full_scores(made, truth) | (habit_scores(made, truth) if self.translates() else {})

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """What a method that reconstructs or translates makes of a batch, and what it should be.

        Args:
            batch: as the view offers it.

        Returns:
            Images, true images, and `index` of those whose truth is known, which may be none of a batch; None of
            methods that do neither.
        """
        if self.translates() and batch.target is not None:
            here = torch.ones_like(batch.index, dtype=torch.bool) if batch.paired is None else batch.paired
            made = self.translate(batch.image) if here.any() else batch.target
            return made[here], batch.target[here], batch.index[here]
        return (self.reconstruct(batch.image), batch.image, batch.index) if self.reconstructs() else None

    def _log_losses(self, batch: Batch, split: str, but: Collection[str]) -> None:
        weight: Any = float(len(batch))  # the mean over processes of an integer weight would be cut to an integer
        losses = {f"{split}/{k}": v for k, v in self.losses(batch).items() if k not in but}
        self.log_dict(losses, batch_size=weight, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """val/ssim over all validation slices, and val/ssim_10 on ten of them, drawn once by seed."""
        if self.val_scores.names:
            means = self.val_scores.means()
            for name, value in means.items():
                self.log(f"val/{name}", value, prog_bar=f"val/{name}" == self.monitor[0])
            if means:  # none where no item is paired
                self.log("val/ssim_10", self.val_scores.ten())
            self.val_scores.reset()

    def on_test_epoch_end(self) -> None:
        """test/<score> over all test slices; the scores of each slice stay for the report."""
        if self.test_scores.names:
            self.test_results = self.test_scores.compute()
            self.log_dict({f"test/{k}": v for k, v in self.test_scores.means().items() if AT not in k})
            self.test_scores.reset()

    def alarm(self, text: str) -> None:
        """Say what goes wrong in training, once: in the log, and in the report's warnings.

        Args:
            text: "what: how much. Remedies, in this order: ..."; what comes before the colon is said once.
        """
        kind = text.partition(":")[0]
        if self.trainer.state.fn == "fit" and not any(known.startswith(kind) for known in self.alarms):
            self.alarms.append(text)
            if self.trainer.is_global_zero:
                log.warning(text)

    # -- settings and checkpoints ------------------------------------------------------------------------------------

    def adam(self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
        """Adam, in one fused kernel where the trainer says so.

        Args:
            parameters: of the networks.
            lr: learning rate.
            betas: decay rates of the moments.

        Returns:
            The optimizer.
        """
        return torch.optim.Adam(parameters, lr=lr, betas=(betas[0], betas[1]), fused=self.fused)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training, for schedules."""
        steps = int(self.trainer.estimated_stepping_batches)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def networks(self) -> list[nn.Module]:
        """The child networks, for channels_last and compile."""
        return [m for m in self.children() if any(True for _ in m.parameters())]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint rebuilds its model without a config: class, version, constructor arguments."""
        cls = type(self)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["mri_synth"] = {
            "trained_on": data.partition.fingerprints("train") if data is not None else [],
            "format": FORMAT,
            "version": __version__,
            "target": f"{cls.__module__}.{cls.__name__}",
        }


def _constructor_arguments(cls: type) -> list[str]:
    return [n for n in inspect.signature(cls).parameters if n != "spec"]

"""Sentinels that may be switched off: collapsed modes, inverted contrast, a saturated discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mri_synth.callbacks.judging import Judging, correlation
from mri_synth.callbacks.sentinels import Alarms
from mri_synth.data.batch import Batch
from mri_synth.models.base import SynthModule

COLLAPSED = 0.6
"""Share of the way from real images' MS-SSIM to 1 at which samples' counts as collapsed: 0.8 where real is 0.5."""
INVERTED = -0.2
"""Correlation with real images below which a contrast counts as inverted; 0 is noise, and all there is at first."""
LOOKED_AT = 8
"""Outputs of a process that are compared with their targets in an epoch."""
SATURATED = {"logistic": (4.0, -4.0), "bce": (4.0, -4.0), "hinge": (1.0, -1.0), "lsgan": (0.95, 0.05)}
"""Mean logits of real and generated images beyond which a discriminator is sure: 98 % and 2 %, or a loss of nothing.

By `gan_loss`; that of wgan cannot saturate. Where a method does not say which it has, the first are taken.
"""
REMEDIES = {
    "augment": "model.augment=[translation,cutout]", "beta": "a smaller model.beta", "lr": "a smaller model.lr",
    "channels_d": "a smaller model.channels_d", "lambda_cycle": "a larger model.lambda_cycle",
    "lambda_identity": "a larger model.lambda_identity", "lambda_structure": "a larger model.lambda_structure",
    "lambda_l1": "a larger model.lambda_l1", "lr_d": "a smaller model.lr_d", "lr_g": "a smaller model.lr_g",
    "mirror": "model.mirror=true", "r1_gamma": "a larger model.r1_gamma",
    "structure_rise": "a larger model.structure_rise", "temperature": "a larger model.temperature",
}  # fmt: skip
"""By constructor argument: a method is told of those that it has."""


class Watch(pl.Callback):
    """Raises an alarm when several looks in a row found something wrong. Counts are in the checkpoint.

    Attributes:
        wrong: looks in a row, by what was looked at.
    """

    IN_A_ROW = 3

    def __init__(self) -> None:
        self.wrong: dict[str, int] = {}

    def look(self, model: pl.LightningModule, what: str, wrong: bool, text: str) -> None:
        """One more look, with the same result on all ranks.

        Args:
            model: whose alarm is raised.
            what: was looked at.
            wrong: what was seen.
            text: of the alarm.
        """
        assert isinstance(model, SynthModule)
        self.wrong[what] = self.wrong.get(what, 0) + 1 if wrong else 0
        if self.wrong[what] >= self.IN_A_ROW:
            model.alarm(text)

    def state_dict(self) -> dict[str, Any]:
        """How many so far."""
        return {"wrong": dict(self.wrong)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.wrong = dict(state_dict["wrong"])


class ModeCollapse(Watch):
    """Samples that are far more alike than real images; from a quarter of the training on, since at first all are.

    A method that grows is looked at once it has its full size: MS-SSIM says nothing of images of 4 or 8 pixels, and
    enlarged ones are all alike.
    """

    LEAST_STEPS = 500

    def __init__(self, judging: Judging) -> None:
        """Watch the judgements.

        Args:
            judging: stands before this one among the callbacks.
        """
        super().__init__()
        self.judging = judging

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare pairs of samples with pairs of real images."""
        verdict = self.judging.verdict
        assert isinstance(pl_module, SynthModule)
        early = progress(trainer, pl_module) < 0.25 or trainer.global_step < self.LEAST_STEPS or not pl_module.grown
        if early or verdict is None or verdict.ms_ssim is None or verdict.ms_ssim_real is None:
            return
        fake, real = verdict.ms_ssim, verdict.ms_ssim_real
        self.look(pl_module, "pairs", fake > real + COLLAPSED * (1 - real),
                  f"mode collapse: pairs of samples have an MS-SSIM of {fake:.2f}, pairs of real images of {real:.2f} "
                  f"(epoch {trainer.current_epoch + 1}); the model makes few different images. "
                  + remedies(pl_module, ("augment", "r1_gamma", "lr_g", "beta", "temperature"), "more data",
                             "init_from=best.ckpt of this run"))  # fmt: skip


class ContrastInversion(Watch):
    """Images that are dark where real ones are bright: samples on average, or outputs against their targets."""

    def __init__(self, judging: Judging | None) -> None:
        """Watch.

        Args:
            judging: of samples, before this one among the callbacks; None without.
        """
        super().__init__()
        self.judging = judging
        self._sums: Tensor | None = None

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                                batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        """Correlations of the first batch's outputs."""
        assert isinstance(pl_module, SynthModule)
        if trainer.state.fn != "fit" or batch_idx:
            return
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            outcome = pl_module.outcome(batch.part(slice(LOOKED_AT)))
        pairs = [] if outcome is None else list(zip(*(x.float().cpu().numpy() for x in outcome[:2]), strict=True))
        values = [correlation(a, b) for a, b in pairs]
        self._sums = torch.tensor([sum(values), len(values)], device=pl_module.device)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The means of all processes."""
        if trainer.state.fn != "fit":
            return
        sums = torch.zeros(2, device=pl_module.device) if self._sums is None else self._sums
        total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        self._sums = None
        found = {"outputs and their targets": total / count} if count else {}
        if self.judging is not None and self.judging.verdict is not None:
            found["the mean sample and the mean real image"] = self.judging.verdict.mean_correlation
        for what, value in found.items():
            self.look(pl_module, what, value < INVERTED,
                      f"contrast inversion: {what} correlate by {value:.2f} (epoch {trainer.current_epoch + 1}); what "
                      "is bright in one is dark in the other. "
                      + remedies(pl_module, ("lambda_identity", "lambda_l1", "r1_gamma", "lr_g", "lr"), "another seed",
                                 "mri-synth describe for images that are inverted themselves"))  # fmt: skip


class DiscriminatorSaturation(pl.Callback):
    """A discriminator that has been sure of everything for so long that the generator learns nothing from it."""

    def __init__(self, every_steps: int, stretch: int = 300) -> None:
        """Watch train/d_real and train/d_fake, the mean logits that every adversarial method logs.

        Args:
            every_steps: between two logged losses.
            stretch: steps for which it must have been sure.
        """
        self.every_steps, self.stretch = every_steps, stretch
        self.since: int | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:  # fmt: skip
        """Read them where they have just been logged."""
        if trainer.global_step % self.every_steps or "train/d_real" not in trainer.callback_metrics:
            return
        assert isinstance(pl_module, SynthModule)
        kind = pl_module.hparams.get("gan_loss", "logistic")
        if kind not in SATURATED:
            return
        real, fake = (float(trainer.callback_metrics[f"train/d_{side}"]) for side in ("real", "fake"))
        above, below = SATURATED[kind]
        if not (real > above and fake < below):
            self.since = None
            return
        self.since = trainer.global_step if self.since is None else self.since
        if trainer.global_step - self.since >= self.stretch:
            pl_module.alarm(
                f"discriminator saturation: its mean logits are {real:.1f} for real and {fake:.1f} for generated "
                f"images, and have been beyond {above:g} and {below:g} since step {self.since}. "
                + remedies(pl_module, ("r1_gamma", "augment", "lr_d", "channels_d"), "more data")
            )

    def state_dict(self) -> dict[str, Any]:
        """Since when."""
        return {"since": self.since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.since = state_dict["since"]


def make_sentinels(judging: Judging | None, every_steps: int, stop: bool) -> list[pl.Callback]:
    """Those that may be switched off.

    Args:
        judging: of samples; None without.
        every_steps: between two logged losses.
        stop: an alarm ends the training.

    Returns:
        Callbacks, to stand behind `judging`.
    """
    watches = [ModeCollapse(judging)] if judging else []
    return [*watches, ContrastInversion(judging), DiscriminatorSaturation(every_steps), Alarms(stop)]


def remedies(model: pl.LightningModule, keys: Sequence[str], *always: str) -> str:
    """What helps: of what the method's arguments offer, then what always does.

    Args:
        model: any.
        keys: arguments that help where there are such, the best first; switches that are on are left out.
        always: further remedies.

    Returns:
        A sentence for the end of an alarm.
    """
    offered = [REMEDIES[k] for k in keys if k in model.hparams and model.hparams[k] is not True]
    return f"Remedies, in this order: {', '.join([*offered, *always])}"


def progress(trainer: pl.Trainer, model: SynthModule) -> float:
    """Share of the training that is done, by epochs or by the limits on steps and time, whichever ends it.

    Args:
        trainer: of the run.
        model: that is trained.

    Returns:
        0 to 1.
    """
    epochs = (trainer.current_epoch + 1) / trainer.max_epochs if trainer.max_epochs else 1.0
    return max(epochs, trainer.global_step / model.max_steps if model.max_steps else 0.0, model.time_used)

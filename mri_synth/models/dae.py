"""Denoising autoencoder (Kascenas et al. 2022, PMLR 172): takes off an image what does not belong there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt, MultipleOf
from torch import Tensor
from torch.optim import Optimizer

from mri_synth.corruption import foreign_structures
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.prepare import FOREGROUND
from mri_synth.losses.reconstruction import mse
from mri_synth.losses.region import presence
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.unet import FACTOR, UNet

PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
_EVALUATION, _FIXED = -1, 0
"""Epoch and seed of the structures of validation and test: an item has the same whenever it is scored."""


class DAE(SynthModule):
    """Denoising autoencoder for anomaly maps: draws what lies under foreign structures, and says where they are.

    Minimises mse(x_hat, x) + lambda_where BCE(p, where). Trained on healthy images alone, into which structures were
    put that are not there; a U-Net says what was put in, and how likely something is at each pixel (both as DRAEM of
    Zavrtanik et al. 2021, arXiv:2108.07610, by one network). The reconstruction is the image without it. Where nothing
    is foreign the image comes back as it is, noise and all: SSIM says nothing about how good this model is, and it has
    no codes and no samples.

    Args:
        spec: what the data know of themselves.
        hidden_channels: of the U-Net at half the image's resolution; twice as many below.
        structures: foreign structures put into a training image, at most.
        lambda_where: weight of the cross-entropy of where they are.
        flip: the reconstruction is the mean of those of the image and of its mirror image, where sides are alike.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/where", "min")
    explained: ClassVar[dict[str, Any]] = {"mse": mse, "where": presence}

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        hidden_channels: Annotated[int, Ge(8), MultipleOf(8)] = 32,
        structures: Annotated[int, Ge(1)] = 6,
        lambda_where: PositiveFloat = 0.05,
        flip: bool = True,
        lr: PositiveFloat = 2e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        warmup_steps: Annotated[int, Ge(0)] = 60,
        lr_final: NonNegative = 0.02,
    ) -> None:
        super().__init__(spec)
        self.network = UNet(self.spec.channels, self.spec.channels + 1, self.spec.size, hidden_channels)

    @staticmethod
    def refuses(size: int) -> str:  # type: ignore[override]
        """Why images of a size cannot be taken.

        Args:
            size: image side, pixels.

        Returns:
            The reason with the way out; "" when they can.
        """
        if size % FACTOR == 0:
            return ""
        near = max(round(size / FACTOR), 1) * FACTOR
        return f"halves images down to 1/{FACTOR}, and data.size={size} is no multiple of that; try data.size={near}"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Squared error of the image without what was put into it, and the share of that which is left in it.

        `left = sum (x_hat - x)^2 / sum (x' - x)^2` over a batch, x' the image with foreign structures: 1 when nothing
        is taken off, 0 when all is and nothing else; in evaluation over all items, each with the same structures every
        time.
        """
        x = batch.image
        seed, when = (self.seed, self.global_step) if self.training else (_FIXED, _EVALUATION)
        seen, share = foreign_structures(x, self.hparams["structures"], seed, when, batch.index)
        found, odds = self._found(seen)
        x_hat = seen - found
        put_in = (seen - x).square().sum().clamp(min=1e-6)
        left = (x_hat.detach() - x).square().sum() / put_in
        if not self.training:
            self._left = left, float(put_in)
        inside = (x > FOREGROUND).any(1, keepdim=True)
        error, place = mse(x_hat, x).mean(), presence(odds, share > 0.5, inside).mean()
        return {"loss": error + self.hparams["lambda_where"] * place, "mse": error, "where": place, "left": left}

    def _log_losses(self, batch: Batch, split: str, but: Collection[str]) -> None:
        """A batch counts by what was put into its images, so that `left` is that of all whatever the batches are."""
        super()._log_losses(batch, split, {*but, "left"})
        left, put_in = self._left
        weight: Any = put_in
        self.log(f"{split}/left", left, batch_size=weight, sync_dist=True)

    def reconstruct(self, image: Tensor) -> Tensor:
        """The image without what seems foreign to it."""
        return (image - self._seen_twice(image)[0]).clamp(-1, 1)

    def suspicion(self, image: Tensor) -> Tensor:
        """The chance that a foreign structure is there."""
        return self._seen_twice(image)[1].sigmoid()

    def _found(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What seems foreign in an image, (B, C, H, W), and the log odds that something is, (B, 1, H, W)."""
        out = self.network(image)
        return out[:, :-1], out[:, -1:]

    def _seen_twice(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same, as the mean over the image and its mirror image where that is wanted."""
        found = self._found(image)
        if not self.hparams["flip"]:
            return found
        mirrored = self._found(image.flip(-1))
        return (found[0] + mirrored[0].flip(-1)) / 2, (found[1] + mirrored[1].flip(-1)) / 2

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Originals, with foreign structures, without them again, and where they seem to be."""
        seen, _ = foreign_structures(batch.image, self.hparams["structures"], _FIXED, _EVALUATION, batch.index)
        rows = {"original": batch.image, "foreign structures put in": seen, "taken off": self.reconstruct(seen),
                "chance that something is there": 2 * self.suspicion(seen) - 1}  # fmt: skip
        return {name: images[:, :1] for name, images in rows.items()}

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        optimizer: Optimizer = self.adam(self.network.parameters(), h["lr"], h["betas"])
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

"""DCGAN (Radford et al. 2016, arXiv:1511.06434) with what is known today: R1, augmentation, averaged weights."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.diffaugment import DiffAugment, Policy
from mri_synth.draws import normal
from mri_synth.errors import UserError
from mri_synth.losses import adversarial
from mri_synth.losses.adversarial import GANLoss
from mri_synth.models.conditions import Condition
from mri_synth.models.gan import GANModule
from mri_synth.networks.conditional import some_label
from mri_synth.networks.dcgan import Discriminator, Generator, Norm

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class DCGAN(GANModule):
    """Latent numbers to images by convolutions, against a convolutional discriminator.

    Args:
        spec: what the data know of themselves.
        latent_dim: length of z.
        channels_g: of the generator at half the image's resolution; twice as many at each halving.
        channels_d: the same of the discriminator.
        most_channels: no more than these anywhere.
        norm_g: of the generator.
        norm_d: of the discriminator.
        spectral: spectral norm of the discriminator's layers.
        leak_g: slope of the generator's activations below 0; 0 is ReLU.
        pixel_noise: the generator gets a number per pixel beside z, for the noise of the scanner.
        condition: what a sample can be asked for: "none", the image's "label", its "contrast", or the place of its
            "slice".
        gan_loss: logistic (another name of it: bce), hinge, lsgan or wgan.
        r1_gamma: weight of the R1 penalty; 0: none.
        r1_every: steps between two penalties, each weighted by so much more.
        augment: differentiable augmentation of all that the discriminator sees.
        augment_strength: of its magnitudes, 1 as published.
        augment_adaptive: its probability follows the discriminator, from 0 on; else it is always done.
        n_critic: discriminator updates per update of the generator.
        ema_decay: of the generator's average, which samples; 0: no average.
        lr_g: learning rate of the generator's Adam.
        lr_d: of the discriminator's.
        betas: decay rates of Adam's moments.
        lr_final: both learning rates fall as a cosine to this share at the end of training; 1: constant.
    """

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        latent_dim: PositiveInt = 128,
        channels_g: Annotated[int, Ge(4)] = 32,
        channels_d: Annotated[int, Ge(4)] = 32,
        most_channels: Annotated[int, Ge(4)] = 512,
        norm_g: Norm = "batch",
        norm_d: Norm = "none",
        spectral: bool = False,
        leak_g: Annotated[float, Ge(0), Lt(1)] = 0.0,
        pixel_noise: bool = False,
        condition: Condition = "none",
        gan_loss: GANLoss = "logistic",
        r1_gamma: NonNegative = 0.1,
        r1_every: PositiveInt = 16,
        augment: list[Policy] | None = None,
        augment_strength: Annotated[float, Ge(0), Le(1)] = 1.0,
        augment_adaptive: bool = False,
        n_critic: PositiveInt = 1,
        ema_decay: Decay = 0.999,
        lr_g: PositiveFloat = 1e-3,
        lr_d: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.0, 0.99),
        lr_final: NonNegative = 1.0,
    ) -> None:
        super().__init__(spec, n_critic, ema_decay)
        channels, size, classes = self.spec.channels, self.spec.size, len(self.conditions())
        self.generator = Generator(
            channels, size, latent_dim, channels_g, most_channels, norm_g, classes, pixel_noise, leak_g)  # fmt: skip
        self.discriminator = Discriminator(channels, size, channels_d, most_channels, norm_d, spectral, classes)
        self.augment = DiffAugment(augment or [], augment_strength, augment_adaptive)
        formulas: dict[str, Any] = {"d_loss": adversarial.DISCRIMINATOR[gan_loss], "d_r1": adversarial.r1}
        self.explained = formulas | {"g_loss": adversarial.GENERATOR[gan_loss]}  # type: ignore[misc]
        self.start_ema()

    @staticmethod
    def refuses(size: int) -> str:  # type: ignore[override]
        """Why images of a size cannot be made.

        Args:
            size: image side, pixels.

        Returns:
            The reason with the way out; "" when they can.
        """
        if size >= 8 and size & (size - 1) == 0:
            return ""
        near = min((8, 16, 32, 64, 128, 256, 512), key=lambda s: abs(s - size))
        return f"doubles from 4 pixels on, and data.size={size} is no power of 2 from 8 on; try data.size={near}"

    def generate(self, batch: Batch) -> Tensor:
        """Images (B, C, H, W) of the batch's noise, of its classes."""
        out: Tensor = self.acting()(self.noise(batch, self.generator.draws), self.condition(batch))
        return out

    def discriminator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """Real against generated, and in training R1 every `r1_every` steps.

        `L_D + r1_gamma R1`
        """
        h, label = self.hparams, self.condition(batch)
        images = self._augmented(batch.image, batch, 0)
        real, fake = self._judge(images, self._augmented(fakes, batch, 1), label)
        losses = {"loss": adversarial.DISCRIMINATOR[h["gan_loss"]](real, fake).mean()}
        losses |= {"real": real.mean(), "fake": fake.mean()}
        if self.training and self.augment.adaptive is not None:
            self.augment.adaptive.observe(real, 0.5 if h["gan_loss"] == "lsgan" else 0.0)
        if h["r1_gamma"] and self.due(h["r1_every"]):
            losses["r1"] = adversarial.r1(lambda x: self.discriminator.forward(x, label), images).mean()
            losses["loss"] = losses["loss"] + h["r1_every"] * h["r1_gamma"] * losses["r1"]
        return losses

    def generator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """What the updated discriminator says of the same images.

        `L_G`
        """
        logits = self.discriminator(self._augmented(fakes, batch, 2), self.condition(batch))
        return {"loss": adversarial.GENERATOR[self.hparams["gan_loss"]](logits).mean()}

    def _judge(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of both; in one pass unless a batch norm would mix them."""
        if self.hparams["norm_d"] == "batch":
            return self.discriminator(real, label), self.discriminator(fake, label)
        both = self.discriminator(torch.cat([real, fake]), None if label is None else label.repeat(2))
        return both[: len(real)], both[len(real) :]

    def _augmented(self, images: Tensor, batch: Batch, use: int) -> Tensor:
        """As the discriminator sees them in training; in evaluation as they are."""
        if not self.training:
            return images
        out: Tensor = self.augment(images, self.seed, self.global_step, batch.index, use)
        return out

    def end_step(self) -> None:
        """The adaptive strength follows what the discriminator said."""
        if self.augment.adaptive is not None:
            self.augment.adaptive.adjust(self.global_step)

    def sample(self, seeds: Tensor, label: Tensor | None = None, *, truncation: float = 1.0) -> Tensor:
        """Images of draws from the prior, by the averaged generator.

        Args:
            seeds: (n,) int64; one seed gives one image.
            label: (n,) int64, index into `conditions()`; -1 or None: any.
            truncation: factor on z; below 1 images are more alike and nearer the typical one.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: labels for a model without conditions.
        """
        classes = len(self.conditions())
        seeds = seeds.to(self.device)
        asked = some_label(label, seeds, classes) if classes else label
        return self.from_latent(self.latent(seeds), asked, truncation=truncation)

    def latent(self, seeds: Tensor) -> Tensor:
        """Standard normal numbers of seeds: z, and the pixel noise after it where there is some."""
        return normal(0, 0, seeds.to(self.device), self.generator.draws)

    def from_latent(self, z: Tensor, label: Tensor | None = None, *, truncation: float = 1.0) -> Tensor:
        """Images of latent vectors, by the averaged generator.

        Args:
            z: (n, D) as `latent` makes them.
            label: (n,) int64, index into `conditions()`; -1 or None: between the classes.
            truncation: factor on z, not on the pixel noise.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: labels for a model without conditions.
        """
        if label is not None and not self.conditions():
            raise UserError("this DCGAN was trained without labels (model.condition=none): ask for none")
        length = self.generator.latent_dim
        network: Any = self.generator if self.ema is None else self.ema[0]
        out: Tensor = network(torch.cat([truncation * z[:, :length], z[:, length:]], 1), label)
        return out

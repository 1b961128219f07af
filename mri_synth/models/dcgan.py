"""DCGAN (Radford et al. 2016, arXiv:1511.06434) with what is known today: R1, augmentation, averaged weights."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.diffaugment import DiffAugment, Policy
from mri_synth.losses import adversarial
from mri_synth.losses.adversarial import GANLoss
from mri_synth.losses.grain import black_loss, grain_loss
from mri_synth.models.conditions import Condition
from mri_synth.models.gan import GANModule
from mri_synth.models.latent import FromLatent
from mri_synth.networks.dcgan import Discriminator, Generator, Norm

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class DCGAN(FromLatent, GANModule):
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
        pixel_noise: the generator gets a number per pixel beside z, for the noise of the scanner, whose strength it
            finds.
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
        norm_g: Norm = "group",
        norm_d: Norm = "none",
        spectral: bool = False,
        leak_g: Annotated[float, Ge(0), Lt(1)] = 0.0,
        pixel_noise: bool = True,
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
        self.draws = self.generator.draws
        self.augment = DiffAugment(augment or [], augment_strength, augment_adaptive)
        formulas: dict[str, Any] = {"d_loss": adversarial.DISCRIMINATOR[gan_loss], "d_r1": adversarial.r1}
        self.explained = formulas | {"g_loss": adversarial.GENERATOR[gan_loss]}  # type: ignore[misc]
        self.start_ema()

    @staticmethod
    def problems(arguments: dict[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: penalties that are none, and a critic without bounds."""
        found = []
        if arguments.get("norm_d") == "batch" and arguments.get("r1_gamma", 0.1):
            found.append("model.norm_d=batch: R1 is of each image's own logit, and batch norm makes a logit of all "
                         "images of a batch; give model.r1_gamma=0, or model.norm_d=group")  # fmt: skip
        if arguments.get("gan_loss") == "wgan" and not arguments.get("spectral"):
            found.append("model.gan_loss=wgan: the slope of its critic must be bounded, and DCGAN has no gradient "
                         "penalty; give model.spectral=true, another model.gan_loss, or model=progan, which has "
                         "one")  # fmt: skip
        return found

    def generate(self, batch: Batch) -> Tensor:
        """Images (B, C, H, W) of the batch's noise, of its classes."""
        return self.images(self.acting(), self.noise(batch, self.draws), self.condition(batch))

    def discriminator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """Real against generated, and in training R1 every `r1_every` steps.

        `L_D + r1_gamma R1`, both of what augmentation makes of the images; R1's gradient is at the image before it (as
        in the code of Karras et al. 2020, arXiv:2006.06676)
        """
        h, label = self.hparams, self.condition(batch)
        real, fake = self._judged(self.augmented(batch.image, batch, 0), self.augmented(fakes, batch, 1), label)
        losses = {"loss": adversarial.DISCRIMINATOR[h["gan_loss"]](real, fake).mean()}
        losses |= {"real": real.mean(), "fake": fake.mean()}
        self.observe(real)
        if h["r1_gamma"] and self.due(h["r1_every"]):

            def critic(x: Tensor) -> Tensor:  # not by a call, which may be compiled and then has one derivative only
                return self.discriminator.forward(self.augmented(x, batch, 0), label)

            losses["r1"] = adversarial.r1(critic, batch.image).mean()
            losses["loss"] = losses["loss"] + h["r1_every"] * h["r1_gamma"] * losses["r1"]
        return losses

    def generator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """What the updated discriminator says of the same images; with pixel noise, what its level and depth learn by.

        `L_G`; `noise` and `depth` are s and k of the `Scanner`
        """
        logits = self.discriminator(self.augmented(fakes, batch, 2), self.condition(batch))
        losses = {"loss": adversarial.GENERATOR[self.hparams["gan_loss"]](logits).mean()}
        scanner: Any = self.acting().scanner
        if scanner is not None:
            noise = grain_loss(scanner.log_level, fakes, batch.image) + black_loss(scanner.depth, fakes, batch.image)
            losses["loss"] = losses["loss"] + (noise - noise.detach()).mean()  # their gradients; values mean nothing
            losses |= {"noise": scanner.level.mean(), "depth": scanner.deviations.mean()}
        return losses

    def _judged(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of both; in one pass unless a batch norm would mix them."""
        if self.hparams["norm_d"] == "batch":
            return self.discriminator(real, label), self.discriminator(fake, label)
        both = self.discriminator(torch.cat([real, fake]), None if label is None else label.repeat(2))
        return both[: len(real)], both[len(real) :]

    def images(self, network: Any, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """What a generator makes of latent numbers."""
        out: Tensor = network(z, label, truncation)
        return out

"""pix2pix (Isola et al. 2017, arXiv:1611.07004): one contrast, or several, to another, of the same slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.settings import Source
from mri_synth.data.views import Images, Pairs
from mri_synth.losses.adversarial import DISCRIMINATOR, GENERATOR
from mri_synth.losses.reconstruction import l1
from mri_synth.models import sources
from mri_synth.models.gan import GANModule
from mri_synth.networks import generators, layers, patch

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class Pix2Pix(GANModule):
    """A generator that is near its target and looks real beside its source, to a discriminator of patches.

    Args:
        spec: what the data know of themselves; of the view of pairs.
        generator: "unet" (down to one pixel), "attention_unet", "resnet9" or "local".
        width: channels of its first layer.
        norm: of its layers.
        dropout: share of channels dropped in training, where the published generators have dropout.
        contrast_dropout: probability with which a source is missing in training, never all; 0: none ever is.
        gan_loss: of the adversarial game.
        d_width: channels of the discriminator's first layer.
        d_layers: its layers of stride 2; with 3 a verdict is on 70 x 70 pixels.
        d_norm: of its inner layers.
        lambda_l1: weight of the mean absolute difference, on [-1, 1].
        lr_g: learning rate of the generator's Adam.
        lr_d: of the discriminator's.
        betas: decay rates of Adam's moments.
        decay_from: share of the steps after which both learning rates fall linearly to 0; 1: constant.
        ema_decay: of the average of the generator, which translates; 0: no average.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/ssim", "max")
    explained: ClassVar[dict[str, Any]] = {"g_l1": l1}

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generator: generators.Kind = "unet",
        width: PositiveInt = 64,
        norm: layers.Norm = "instance",
        dropout: Decay = 0.0,
        contrast_dropout: Decay = 0.0,
        gan_loss: Literal["bce", "logistic", "lsgan", "hinge"] = "bce",
        d_width: PositiveInt = 64,
        d_layers: PositiveInt = 3,
        d_norm: patch.Norm = "instance",
        lambda_l1: NonNegative = 100.0,
        lr_g: PositiveFloat = 1e-3,
        lr_d: PositiveFloat = 2e-4,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        decay_from: Annotated[float, Ge(0), Le(1)] = 0.5,
        ema_decay: Decay = 0.0,
    ) -> None:
        super().__init__(spec, ema_decay=ema_decay)
        seen, channels = sources.channels(len(self.spec.sources), contrast_dropout), self.spec.channels
        self.generator = generators.generator(generator, seen, channels, self.spec.size, width, norm, dropout)
        self.discriminator = patch.PatchDiscriminator(seen + channels, d_width, d_layers, d_norm)
        self.protocols = sources.protocols(self.spec.sources, contrast_dropout)  # type: ignore[misc]
        formulas: dict[str, Any] = {"d_loss": DISCRIMINATOR[gan_loss], "g_adversarial": GENERATOR[gan_loss]}
        self.explained = type(self).explained | formulas | {"g_loss": self.generator_losses}  # type: ignore[misc]
        self.start_ema()

    @staticmethod
    def needs() -> type[Images]:  # type: ignore[override]
        """Slices with what they are made of."""
        return Pairs

    @staticmethod
    def refuses(  # type: ignore[override]
        generator: generators.Kind, size: int, d_layers: int, contrast_dropout: float, contrasts: Sequence[str],
        source: Source,
    ) -> str:  # fmt: skip
        """Why images do not fit.

        Args:
            generator: name.
            size: image side, pixels.
            d_layers: of the discriminator.
            contrast_dropout: probability with which a source is missing.
            contrasts: of the data.
            source: of the data.

        Returns:
            The reason with the way out; "" when they do.
        """
        if size < (least := patch.least_size(d_layers)):
            return (
                f"with model.d_layers={d_layers} judges images of at least {least} pixels, and data.size={size}; try "
                "model.d_layers=1"
            )
        return generators.reason(generator, size) or sources.refuses(contrast_dropout, contrasts, source)

    # -- losses ----------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """What the generator sees of the sources, which in training may miss some, and what it makes of it."""
        network = self.acting()
        seen, noise = sources.given(self, batch, network.draws)
        return {"seen": seen, "image": network(seen, noise)}

    def discriminator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Targets against translations, each beside its sources, in one pass.

        `L = L_D / 2`, which makes the discriminator learn more slowly (Isola et al. 2017, section 3.3); of Adam, which
        does not know how large a loss is, that is left to `lr_d`
        """
        assert batch.target is not None
        both = torch.cat([torch.cat([fakes["seen"], image], 1) for image in (batch.target, fakes["image"])])
        real, fake = self.discriminator(both).chunk(2)
        loss = DISCRIMINATOR[self.hparams["gan_loss"]](real, fake).mean() / 2
        return {"loss": loss, "real": real.mean(), "fake": fake.mean()}

    def generator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """To be taken for real beside the sources, and to be near the target.

        `L = L_G + lambda_l1 L_1` (Isola et al. 2017, eq. 4)
        """
        assert batch.target is not None
        verdicts = self.discriminator(torch.cat([fakes["seen"], fakes["image"]], 1))
        adversarial = GENERATOR[self.hparams["gan_loss"]](verdicts).mean()
        near = l1(fakes["image"], batch.target).mean()
        return {"loss": adversarial + self.hparams["lambda_l1"] * near, "adversarial": adversarial, "l1": near}

    # -- images ----------------------------------------------------------------------------------------------------

    def translate(self, source: Tensor, *, available: Sequence[str] | None = None) -> Tensor:
        """The goal's contrast of the same slices.

        Args:
            source: (B, S, H, W) in [-1, 1], the channels of `spec.sources`.
            available: sources that are there, of a model with contrast dropout; the others' channels are not looked
                at. None: all.

        Returns:
            (B, 1, H, W) float32 in [-1, 1].

        Raises:
            UserError: `available` names no source, or misses one that the model needs.
        """
        out: Tensor = self.acting()(sources.told(self, source, available))
        return out.float()

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Scores of the translation, and with contrast dropout of those of fewer sources."""
        return super().item_scores(batch) | sources.subset_scores(self, batch)

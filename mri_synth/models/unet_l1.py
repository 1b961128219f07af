"""Plain regression from one contrast to another: the generator of pix2pix without a discriminator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.optim import Optimizer

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.settings import Source
from mri_synth.data.views import Images, Pairs
from mri_synth.losses.reconstruction import l1
from mri_synth.models import sources
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import LinearDecay
from mri_synth.networks import generators, layers

PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class UNetL1(SynthModule):
    """The mean absolute difference and nothing else: what adversarial translation is to be compared with.

    Args:
        spec: what the data know of themselves; of the view of pairs.
        generator: "unet" (down to one pixel), "attention_unet", "resnet9" or "local".
        width: channels of its first layer.
        norm: of its layers.
        dropout: share of channels dropped in training, where the published generators have dropout.
        contrast_dropout: probability with which a source is missing in training, never all; 0: none ever is.
        lr: learning rate of Adam.
        betas: decay rates of its moments.
        decay_from: share of the steps after which the learning rate falls linearly to 0; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/ssim", "max")
    explained: ClassVar[dict[str, Any]] = {"l1": l1, "loss": l1}

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generator: generators.Kind = "unet",
        width: PositiveInt = 64,
        norm: layers.Norm = "instance",
        dropout: Decay = 0.0,
        contrast_dropout: Decay = 0.0,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        decay_from: Annotated[float, Ge(0), Le(1)] = 0.5,
    ) -> None:
        super().__init__(spec)
        seen = sources.channels(len(self.spec.sources), contrast_dropout)
        self.generator = generators.generator(
            generator, seen, self.spec.channels, self.spec.size, width, norm, dropout)  # fmt: skip
        self.protocols = sources.protocols(self.spec.sources, contrast_dropout)  # type: ignore[misc]

    @staticmethod
    def needs() -> type[Images]:  # type: ignore[override]
        """Slices with what they are made of."""
        return Pairs

    @staticmethod
    def refuses(  # type: ignore[override]
        generator: generators.Kind, size: int, contrast_dropout: float, contrasts: Sequence[str], source: Source
    ) -> str:
        """Why images do not fit.

        Args:
            generator: name.
            size: image side, pixels.
            contrast_dropout: probability with which a source is missing.
            contrasts: of the data.
            source: of the data.

        Returns:
            The reason with the way out; "" when they do.
        """
        return generators.reason(generator, size) or sources.refuses(contrast_dropout, contrasts, source)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute difference of translation and target.

        `L = L_1`
        """
        assert batch.target is not None
        seen, noise = sources.given(self, batch, self.generator.draws)
        error = l1(self.generator(seen, noise), batch.target).mean()
        return {"loss": error, "l1": error}

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
        out: Tensor = self.generator(sources.told(self, source, available))
        return out.float()

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Scores of the translation, and with contrast dropout of those of fewer sources."""
        return super().item_scores(batch) | sources.subset_scores(self, batch)

    def configure_optimizers(self) -> Any:
        """Adam, whose learning rate falls linearly to 0, stepped every batch."""
        h = self.hparams
        optimizer: Optimizer = self.adam(self.generator.parameters(), h["lr"], h["betas"])
        if h["decay_from"] == 1:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, LinearDecay(self.total_steps, h["decay_from"]))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

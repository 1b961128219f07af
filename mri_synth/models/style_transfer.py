"""Style transfer on MRI (Gatys, Ecker and Bethge 2016): the content of one image in the style of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Len
from torch import Tensor
from torch.nn import functional

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.style_pairs import style_pairs
from mri_synth.data.views import Images
from mri_synth.draws import normal
from mri_synth.errors import UserError
from mri_synth.losses.style import content_loss, histogram_loss, style_loss, total_variation
from mri_synth.models import canvas, style_images
from mri_synth.models.canvas import CanvasModule
from mri_synth.models.style_objective import Objective, Targets, feature_dtype
from mri_synth.models.style_region import Region, changeable, correlation, lending
from mri_synth.networks import vgg19

NonNegative = Annotated[float, Ge(0)]
Layers = Annotated[list[vgg19.Layer], Len(1)]
Init = Literal["content", "noise", "image"]


class StyleTransfer(CanvasModule):
    """Style transfer: an image with the features of one image and the feature correlations of another.

    Features are those of VGG-19, trained on ImageNet and frozen; grey images are repeated to three channels. No
    network is trained: each item of the data is a job, a content and a style image, and its canvas is optimised.

    Args:
        spec: what the data know of themselves.
        jobs: so many slices of the training split, drawn over its subjects; None: all.
        style: picture (a painting may be one), volume, or folder of them, such as samples; None: the slice of the
            data's last contrast nearest in place, of another subject.
        region: where the canvas may differ from the content, and whose features make the style: the whole "image", the
            "brain" (what is not background, holes closed), or the "mask" (lesion; the style is then that of the
            style image's own mask, where it has one with something in it, else of its brain).
        content_layers: whose features the canvas keeps.
        style_layers: whose Gram matrices it takes on.
        content_weight: of the content loss, the mean over its layers.
        style_weight: of the style loss, the mean over its layers.
        tv_weight: of the total variation.
        histogram_weight: of the histogram loss over the style layers; 0: none.
        pooling: of VGG-19: "average" or "max".
        init: where a canvas starts: the "content", "noise", or an "image".
        init_image: the file, for init=image.
        steps: evaluations of each job.
        every: evaluations between pictures, validations and checkpoints; None: a twentieth of `steps`.
        optimizer: "lbfgs" or "adam".
        lr: step size; None: 1 for L-BFGS, 0.02 for Adam.
        history: pairs of images that L-BFGS keeps of each job.
        vgg: file of VGG-19's weights, in torchvision's layout or the normalised one; None: the weights `vgg19`.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")
    instead: ClassVar[str] = "Its pictures are the run's; put a style on others with mri-synth refine"
    explained: ClassVar[dict[str, Any]] = {"content": content_loss, "style": style_loss, "tv": total_variation,
                                           "histogram": histogram_loss}  # fmt: skip
    protocols: ClassVar[dict[str, str]] = {
        "style_left": "style loss of the result over that of the content image: 1 when nothing was transferred",
        "correlation": "Pearson's correlation of result and content over the brain",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        jobs: canvas.PositiveInt | None = 8,
        style: str | None = None,
        region: Region = "brain",
        content_layers: Layers = ["conv3_1"],  # noqa: B006
        style_layers: Layers = ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"],  # noqa: B006
        content_weight: NonNegative = 1.0,
        style_weight: NonNegative = 20.0,
        tv_weight: NonNegative = 0.0,
        histogram_weight: NonNegative = 0.0,
        pooling: vgg19.Pooling = "average",
        init: Init = "content",
        init_image: str | None = None,
        steps: canvas.PositiveInt = 100,
        every: canvas.PositiveInt | None = None,
        optimizer: canvas.Optimiser = "lbfgs",
        lr: Annotated[float, Gt(0)] | None = None,
        history: canvas.PositiveInt = 10,
        vgg: str | None = None,
    ) -> None:
        super().__init__(spec, steps, optimizer, lr, history)
        self.objective = Objective(
            content_layers=content_layers, style_layers=style_layers, content_weight=content_weight,
            style_weight=style_weight, tv_weight=tv_weight, histogram_weight=histogram_weight, pooling=pooling, vgg=vgg,
        )  # fmt: skip
        self._targets: dict[tuple[torch.dtype, tuple[int, ...]], Targets] = {}
        self._lent: list[tuple[Tensor, Tensor | None]] = []

    @staticmethod
    def needs(  # type: ignore[override]
        jobs: int | None = 8, steps: int = 100, every: int | None = None, region: Region = "brain",
        style: str | None = None,
    ) -> type[Images]:  # fmt: skip
        """Content and style images.

        Args:
            jobs: at most.
            steps: evaluations of each.
            every: of them in an epoch.
            region: "mask" needs slices with masks.
            style: given where the data need not lend it.

        Returns:
            The view.
        """
        return style_pairs(jobs, canvas.rounds(steps, every), region == "mask", style is None)

    @staticmethod
    def refuses(  # type: ignore[override]
        content_layers: list[str], style_layers: list[str], size: int, augment: Mapping[str, float]
    ) -> str:
        """Why images do not fit.

        Args:
            content_layers: names.
            style_layers: names.
            size: image side, pixels.
            augment: of the data.

        Returns:
            The reason with the way out; "" when they do.
        """
        deepest = max([*content_layers, *style_layers], key=vgg19.LAYERS.index)
        if any(augment.values()):
            return "optimises the images that are given, and data.augment changes them; leave it off"
        if size < 2 * vgg19.least(deepest):
            return (
                f"needs images of {2 * vgg19.least(deepest)} pixels for {deepest}, and data.size={size}; make it more"
            )
        return ""

    problems = staticmethod(style_images.problems)

    # -- before the first step -------------------------------------------------------------------------------------

    def start(self, batches: list[Batch]) -> None:
        """Weights and style files are read before anything is computed."""
        self.objective.network(torch.float32, self.canvas.device)
        self._targets.clear()
        if (style := self.hparams["style"]) is not None:
            paths = style_images.files(Path(style))[: sum(map(len, batches))]
            self.lend([style_images.load(p, self.spec.size, self.spec.plane or "axial") for p in paths])
        super().start(batches)

    def begin(self, batch: Batch) -> Tensor:
        """The content, noise with a standard deviation of 0.3 about -0.3, or an image."""
        if self.hparams["init"] == "noise":
            noise = normal(self.seed, 0, batch.index, batch.image[0].numel()).view_as(batch.image)
            return (0.3 * noise - 0.3).clamp(-1, 1)
        if self.hparams["init"] == "image":
            image = style_images.initial(Path(self.hparams["init_image"]), batch.image.shape[-2:], self.spec.channels)
            return image.to(batch.image.device).expand_as(batch.image)
        return batch.image

    def lend(self, styles: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> None:
        """Give the jobs style images, in place of those of the data.

        Args:
            styles: (1, 1 or 3, H, W) in [-1, 1] each, of any size, for the jobs in turn.
            masks: (1, 1, H, W) in {0, 1} of each, or None where it has none.
        """
        self._lent = list(zip(styles, masks or [None] * len(styles), strict=True))
        self._targets.clear()

    # -- the objective ---------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, canvas: Tensor) -> dict[str, Tensor]:
        """The objective of each job.

        `L = w_c mean_l L_content + w_s mean_l E_style + w_tv TV + w_h mean_l H`, l over the layers of each. Beside it,
        but in training, the share `style_left` of the style loss that the content image has, and the correlation with
        it over the brain.
        """
        dtype = feature_dtype(canvas.device.type)
        with torch.autocast(canvas.device.type, enabled=False):
            network = self.objective.network(dtype, self.canvas.device)
            targets = self._held_against(batch, network, dtype)
            x = torch.where(targets.region, canvas.float(), batch.image.float())
            out = self.objective.terms(network, x, targets)
            if not self.training:
                out["style_left"] = out["style"] / targets.style_before.clamp(min=1e-12)
                out["correlation"] = correlation(x, batch.image.float(), targets.brain)
            return out

    def _held_against(self, batch: Batch, network: vgg19.VGG19, dtype: torch.dtype) -> Targets:
        """The targets of a batch, computed once, as batches are the same in every epoch."""
        key = (dtype, tuple(batch.index.tolist()))
        if key not in self._targets:
            region = self.hparams["region"]
            styles = [(s, lending(s, mask, region)) for s, mask in self.styles(batch)]
            self._targets[key] = self.objective.targets(network, batch.image, changeable(batch, region), styles)
        return self._targets[key]

    def styles(self, batch: Batch) -> list[tuple[Tensor, Tensor | None]]:
        """The style image of each job.

        Args:
            batch: jobs.

        Returns:
            B of (1, 1 or 3, H, W) in [-1, 1], and (1, 1, H, W) its mask, if any; on the batch's device.

        Raises:
            UserError: there is none.
        """
        if self._lent:
            device = batch.image.device
            lent = [self._lent[k % len(self._lent)] for k in batch.index.tolist()]
            return [(s.to(device), None if mask is None else mask.to(device)) for s, mask in lent]
        if batch.target is None:
            raise UserError("style_transfer: the jobs have no style image; give model.style=PICTURE or a second "
                            "contrast")  # fmt: skip
        masks = [None] * len(batch) if batch.target_mask is None else list(batch.target_mask.split(1))
        return list(zip(batch.target.split(1), masks, strict=True))

    # -- what is seen ----------------------------------------------------------------------------------------------

    def results(self, batch: Batch) -> Tensor:
        """The canvases of some jobs, with the content outside the region.

        Args:
            batch: jobs.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        canvas = self.canvas.detach()[batch.index].float()
        return torch.where(changeable(batch, self.hparams["region"]), canvas, batch.image.float())

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Content, style, and what came of them."""
        size = batch.image.shape[-2:]
        styles = [functional.interpolate(s.float().mean(1, keepdim=True), size, mode="bilinear", antialias=True)
                  for s, _ in self.styles(batch)]  # fmt: skip
        return {"content": batch.image[:, :1], "style": torch.cat(styles), "result": self.results(batch)[:, :1]}

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """What each job came to."""
        terms = self.terms(batch, self.canvas[batch.index])
        return {name: terms[name] for name in self.protocols}

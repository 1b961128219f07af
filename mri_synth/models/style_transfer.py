"""Style transfer on MRI (Gatys, Ecker and Bethge 2016): the content of one image in the style of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Len
from torch import Tensor
from torch.nn import functional

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.style_pairs import style_pairs
from mri_synth.data.views import Images
from mri_synth.draws import normal
from mri_synth.errors import UserError
from mri_synth.losses.style import (
    content_loss,
    gram,
    histogram_loss,
    quantiles,
    style_loss,
    total_variation,
)
from mri_synth.models import canvas, style_images
from mri_synth.models.canvas import CanvasModule
from mri_synth.networks import vgg19

NonNegative = Annotated[float, Ge(0)]
Layers = Annotated[list[vgg19.Layer], Len(1)]
Region = Literal["image", "brain", "mask"]
Init = Literal["content", "noise", "image"]
CLOSING = 9
"""Pixels, of a frame of 128, over which holes of a brain's foreground are closed."""


@dataclass
class Targets:
    """What the canvases of a batch are held against.

    Attributes:
        region: (B, 1, H, W) in {0, 1}, where the canvas may differ from the content.
        where: layer to (B, 1, h, w), the region's share of each feature; None where it is the whole image.
        content: layer to the content image's features.
        grams: layer to the style image's Gram matrices (B, C, C).
        quantiles: layer to the style image's quantiles (B, C, K), where histograms count.
        style_before: (B,) style loss of the content image.
    """

    region: Tensor
    where: dict[str, Tensor | None]
    content: dict[str, Tensor]
    grams: dict[str, Tensor]
    quantiles: dict[str, Tensor]
    style_before: Tensor


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
            "brain" (what is not background, holes closed), or the "mask" (lesion; the style is then of the style
            image's brain).
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
    explained: ClassVar[dict[str, Any]] = {
        "content": content_loss, "style": style_loss, "tv": total_variation, "histogram": histogram_loss,
    }  # fmt: skip
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
        self.of_content: list[str] = list(content_layers)
        self.of_style: list[str] = list(style_layers)
        self._networks: dict[torch.dtype, vgg19.VGG19] = {}  # no child: nothing of it is trained or kept in checkpoints
        self._targets: dict[tuple[torch.dtype, tuple[int, ...]], Targets] = {}
        self._styles: list[Tensor] = []
        self._initial: Tensor | None = None

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

    @staticmethod
    def problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: files that are not there, or an init without its image."""
        given: dict[str, Any] = {"init": "content", "init_image": None, "vgg": None, "style": None, **arguments}
        found = [f"model.{key}={given[key]}: no such file" for key in ("vgg", "init_image")
                 if given[key] is not None and not Path(given[key]).is_file()]  # fmt: skip
        if given["style"] is not None:
            try:
                style_images.files(Path(given["style"]))
            except UserError as error:
                found.append(str(error))
        if (given["init"] == "image") != (given["init_image"] is not None):
            found.append(f"model.init={given['init']} and model.init_image={given['init_image'] or 'null'}: an image "
                         "is given with model.init=image, and only then")  # fmt: skip
        return found

    # -- before the first step -------------------------------------------------------------------------------------

    def start(self, batches: list[Batch]) -> None:
        """Weights and style files are read before anything is computed."""
        self.network(torch.float32)
        self._targets.clear()
        h = self.hparams
        if h["style"] is not None:
            plane: Any = self.spec.plane or "axial"
            paths = style_images.files(Path(h["style"]))[: sum(map(len, batches))]
            self._styles = [style_images.load(p, self.spec.size, plane) for p in paths]
        super().start(batches)

    def begin(self, batch: Batch) -> Tensor:
        """The content, noise with a standard deviation of 0.3 about -0.3, or an image."""
        if self.hparams["init"] == "noise":
            pixels = batch.image[0].numel()
            noise = normal(self.seed, 0, batch.index, pixels).view_as(batch.image)
            return (0.3 * noise - 0.3).clamp(-1, 1)
        if self.hparams["init"] == "image":
            if self._initial is None:
                image = style_images.load(Path(self.hparams["init_image"]), self.spec.size)
                image = image.mean(1, keepdim=True) if self.spec.channels == 1 else image.expand(-1, 3, -1, -1)
                self._initial = functional.interpolate(image, [self.spec.size] * 2, mode="bilinear", antialias=True)
            return self._initial.to(batch.image.device).expand_as(batch.image)
        return batch.image

    def network(self, dtype: torch.dtype) -> vgg19.VGG19:
        """VGG-19 up to the deepest layer in use.

        Args:
            dtype: of its weights and features.

        Returns:
            It, on the module's device.
        """
        if dtype not in self._networks:
            h = self.hparams
            deepest: Any = max([*self.of_content, *self.of_style], key=vgg19.LAYERS.index)
            path = None if h["vgg"] is None else Path(h["vgg"])
            whole = self._networks.setdefault(torch.float32, vgg19.pretrained(deepest, h["pooling"], path))
            if dtype != torch.float32:
                twin = vgg19.VGG19(deepest, h["pooling"])
                twin.load_state_dict(whole.state_dict())
                twin.convolutions.to(dtype)  # the preprocessing stays exact
                self._networks[dtype] = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = self._networks[dtype]
        if network.shift.device != self.canvas.device:
            network.to(self.canvas.device)
        return network

    # -- the objective ---------------------------------------------------------------------------------------------

    def terms(self, batch: Batch, canvas: Tensor) -> dict[str, Tensor]:
        """The objective of each job.

        `L = w_c mean_l L_content + w_s mean_l E_style + w_tv TV + w_h mean_l H`, l over the layers of each. Beside it
        the share `style_left` of the style loss that the content image has, and the correlation with it over the brain.
        """
        kind = canvas.device.type
        low = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        dtype = torch.bfloat16 if low else torch.float32
        with torch.autocast(kind, enabled=False):
            targets, h = self.targets(batch, dtype), self.hparams
            x = torch.where(targets.region, canvas.float(), batch.image.float())
            features = self.network(dtype)(x, {*self.of_content, *self.of_style})
            style = _mean([style_loss(gram(features[n], targets.where[n]), targets.grams[n]) for n in self.of_style])
            content = _mean([content_loss(features[n], targets.content[n]) for n in self.of_content])
            out = {"content": content, "style": style, "tv": total_variation(x)}
            loss = h["content_weight"] * content + h["style_weight"] * style + h["tv_weight"] * out["tv"]
            if h["histogram_weight"] > 0:
                out["histogram"] = _mean([histogram_loss(quantiles(features[n], targets.where[n]), q)
                                          for n, q in targets.quantiles.items()])  # fmt: skip
                loss = loss + h["histogram_weight"] * out["histogram"]
            with torch.no_grad():
                out["style_left"] = style / targets.style_before.clamp(min=1e-12)
                out["correlation"] = correlation(x, batch.image.float(), brain(batch.image))
            return {"loss": loss, **out}

    @torch.no_grad()
    def targets(self, batch: Batch, dtype: torch.dtype) -> Targets:
        """What a batch's canvases are held against; computed once, as batches are the same in every epoch.

        Args:
            batch: jobs.
            dtype: of the network.

        Returns:
            The targets.
        """
        key = (dtype, tuple(batch.index.tolist()))
        if key not in self._targets:
            self._targets[key] = self._made(batch, self.network(dtype))
        return self._targets[key]

    def _made(self, batch: Batch, network: vgg19.VGG19) -> Targets:
        whole = self.hparams["region"] == "image"
        region = self.region(batch)
        content = network(batch.image, {*self.of_content, *self.of_style})
        where = {n: None if whole else functional.adaptive_avg_pool2d(region.float(), f.shape[-2:])
                 for n, f in content.items()}  # fmt: skip
        grams: dict[str, list[Tensor]] = {n: [] for n in self.of_style}
        ordered: dict[str, list[Tensor]] = {n: [] for n in self.of_style if self.hparams["histogram_weight"] > 0}
        for style in self.styles(batch):
            features = network(style, self.of_style)
            own = None if whole or style.shape[1] == 3 else brain(style).float()  # a painting has no background
            for n, f in features.items():
                place = None if own is None else functional.adaptive_avg_pool2d(own, f.shape[-2:])
                grams[n].append(gram(f, place))
                if n in ordered:
                    ordered[n].append(quantiles(f, place))
        told = {n: torch.cat(g) for n, g in grams.items()}
        before = _mean([style_loss(gram(content[n], where[n]), told[n]) for n in self.of_style])
        kept = {n: content[n].clone() for n in self.of_content}
        return Targets(region, where, kept, told, {n: torch.cat(q) for n, q in ordered.items()}, before)

    def styles(self, batch: Batch) -> list[Tensor]:
        """The style image of each job.

        Args:
            batch: jobs.

        Returns:
            B of (1, 1 or 3, H, W) in [-1, 1], on the batch's device.

        Raises:
            UserError: there is none.
        """
        if self._styles:
            return [self._styles[k % len(self._styles)].to(batch.image.device) for k in batch.index.tolist()]
        if batch.target is None:
            raise UserError("style_transfer: the jobs have no style image; give model.style=PICTURE or a second "
                            "contrast")  # fmt: skip
        return list(batch.target.split(1))

    def region(self, batch: Batch) -> Tensor:
        """Where the canvases may differ from the contents.

        Args:
            batch: jobs.

        Returns:
            (B, 1, H, W) bool.

        Raises:
            UserError: the region is the mask, and there is none, or it is of another size.
        """
        if self.hparams["region"] == "image":
            return torch.ones_like(batch.image[:, :1], dtype=torch.bool)
        if self.hparams["region"] == "brain":
            return brain(batch.image)
        if batch.mask is None or batch.mask.shape != batch.image[:, :1].shape:
            there = "there is none" if batch.mask is None else f"it is {tuple(batch.mask.shape)}"
            raise UserError(f"model.region=mask: a mask of {tuple(batch.image[:, :1].shape)} is needed, {there}; "
                            "choose model.region=brain or image")  # fmt: skip
        return batch.mask > 0.5

    # -- what is seen ----------------------------------------------------------------------------------------------

    def results(self, batch: Batch) -> Tensor:
        """The canvases of some jobs, with the content outside the region.

        Args:
            batch: jobs.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        canvas = self.canvas.detach()[batch.index].float()
        return torch.where(self.region(batch), canvas, batch.image.float())

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Content, style, and what came of them."""
        size = batch.image.shape[-2:]
        styles = [functional.interpolate(s.float().mean(1, keepdim=True), size, mode="bilinear", antialias=True)
                  for s in self.styles(batch)]  # fmt: skip
        return {"content": batch.image[:, :1], "style": torch.cat(styles), "result": self.results(batch)[:, :1]}

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """What each job came to."""
        terms = self.terms(batch, self.canvas[batch.index])
        return {name: terms[name] for name in self.protocols}


def brain(image: Tensor) -> Tensor:
    """What is not background, with holes closed.

    Args:
        image: (B, C, H, W) in [-1, 1].

    Returns:
        (B, 1, H, W) bool.
    """
    bright = (image > FOREGROUND).any(1, keepdim=True).float()
    side = max(3, round(CLOSING * image.shape[-1] / 128) // 2 * 2 + 1)
    wide = functional.max_pool2d(bright, side, 1, side // 2)
    return -functional.max_pool2d(-wide, side, 1, side // 2) > 0.5


def correlation(x: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """Pearson's correlation of two images over a region.

    `r = sum (x - mean x)(y - mean y) / sqrt(sum (x - mean x)^2 sum (y - mean y)^2)`

    Args:
        x: (B, C, H, W).
        y: (B, C, H, W).
        where: (B, 1, H, W) bool.

    Returns:
        (B,) float32; 0 where one of them is constant.
    """
    m = where.expand_as(x).float().flatten(1)
    n = m.sum(1, keepdim=True).clamp(min=1)
    a, b = ((v.float().flatten(1) - (v.float().flatten(1) * m).sum(1, keepdim=True) / n) * m for v in (x, y))
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt().clamp(min=1e-12)


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)

"""What style transfer makes small: the features of a content image and the Gram matrices of a style image, weighed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mri_synth.losses.style import content_loss, gram, histogram_loss, quantiles, style_loss, total_variation
from mri_synth.models.style_region import brain
from mri_synth.networks import vgg19


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
        brain: (B, 1, H, W) bool of the content image.
    """

    region: Tensor
    where: dict[str, Tensor | None]
    content: dict[str, Tensor]
    grams: dict[str, Tensor]
    quantiles: dict[str, Tensor]
    style_before: Tensor
    brain: Tensor


@dataclass(kw_only=True)
class Objective:
    """The objective, and the networks that it needs, read when they are first asked for.

    Attributes:
        content_layers: whose features the canvas keeps.
        style_layers: whose Gram matrices it takes on.
        content_weight: of the content loss, the mean over its layers.
        style_weight: of the style loss, the mean over its layers.
        tv_weight: of the total variation.
        histogram_weight: of the histogram loss over the style layers; 0: none.
        pooling: of VGG-19.
        vgg: file of its weights; None: the weights `vgg19`.
    """

    content_layers: Sequence[vgg19.Layer]
    style_layers: Sequence[vgg19.Layer]
    content_weight: float
    style_weight: float
    tv_weight: float
    histogram_weight: float
    pooling: vgg19.Pooling
    vgg: str | None

    def __post_init__(self) -> None:
        self._networks: dict[torch.dtype, vgg19.VGG19] = {}

    @property
    def layers(self) -> set[vgg19.Layer]:
        """All that are needed."""
        return {*self.content_layers, *self.style_layers}

    def network(self, dtype: torch.dtype, device: torch.device) -> vgg19.VGG19:
        """VGG-19 up to the deepest layer in use.

        Args:
            dtype: of its weights and features.
            device: where it is wanted.

        Returns:
            It.
        """
        if dtype not in self._networks:
            deepest = max(self.layers, key=vgg19.LAYERS.index)
            if torch.float32 not in self._networks:
                path = None if self.vgg is None else Path(self.vgg)
                self._networks[torch.float32] = vgg19.pretrained(deepest, self.pooling, path)
            if dtype != torch.float32:
                twin = vgg19.VGG19(deepest, self.pooling)
                twin.load_state_dict(self._networks[torch.float32].state_dict())
                twin.convolutions.to(dtype)  # the preprocessing stays exact
                self._networks[dtype] = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network = self._networks[dtype]
        return network if network.shift.device == device else network.to(device)

    @torch.no_grad()
    def targets(
        self, network: vgg19.VGG19, image: Tensor, region: Tensor, styles: Sequence[tuple[Tensor, Tensor | None]]
    ) -> Targets:
        """What canvases are held against.

        Args:
            network: in the type that the canvases will meet.
            image: (B, C, H, W), the contents.
            region: (B, 1, H, W) bool, where the canvases may differ from them.
            styles: B of (1, 1 or 3, H', W') in [-1, 1], and (1, 1, H', W') the part of it that counts; None: all.

        Returns:
            The targets.
        """
        content: dict[Any, Any] = network(image, self.layers)
        whole = bool(region.all())
        where = {n: None if whole else functional.adaptive_avg_pool2d(region.float(), f.shape[-2:])
                 for n, f in content.items()}  # fmt: skip
        grams: dict[str, list[Tensor]] = {n: [] for n in self.style_layers}
        ordered: dict[str, list[Tensor]] = {n: [] for n in self.style_layers if self.histogram_weight > 0}
        for style, own in styles:
            for n, f in network(style, self.style_layers).items():
                place = None if own is None else functional.adaptive_avg_pool2d(own, f.shape[-2:])
                grams[n].append(gram(f, place))
                if n in ordered:
                    ordered[n].append(quantiles(f, place))
        told = {n: torch.cat(g) for n, g in grams.items()}
        before = _mean([style_loss(gram(content[n], where[n]), told[n]) for n in self.style_layers])
        kept: dict[str, Tensor] = {n: content[n].clone() for n in self.content_layers}
        return Targets(region, where, kept, told, {n: torch.cat(q) for n, q in ordered.items()}, before, brain(image))

    def terms(self, network: vgg19.VGG19, x: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The objective of each canvas, and what it is made of.

        Args:
            network: as the targets'.
            x: (B, C, H, W), the canvases, with the contents outside their regions.
            targets: theirs.

        Returns:
            `loss`, `content`, `style`, `tv`, and `histogram` where it counts: (B,) float32 each.
        """
        features: dict[Any, Tensor] = network(x, self.layers)
        style = _mean([style_loss(gram(features[n], targets.where[n]), targets.grams[n]) for n in self.style_layers])
        content = _mean([content_loss(features[n], targets.content[n]) for n in self.content_layers])
        out = {"content": content, "style": style, "tv": total_variation(x)}
        loss = self.content_weight * content + self.style_weight * style + self.tv_weight * out["tv"]
        if self.histogram_weight > 0:
            out["histogram"] = _mean([histogram_loss(quantiles(features[n], targets.where[n]), q)
                                      for n, q in targets.quantiles.items()])  # fmt: skip
            loss = loss + self.histogram_weight * out["histogram"]
        return {"loss": loss, **out}


def feature_dtype(kind: str) -> torch.dtype:
    """The type in which features are to be computed here.

    Args:
        kind: of the device.

    Returns:
        bfloat16 under autocast to it, else float32.
    """
    low = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return torch.bfloat16 if low else torch.float32


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)

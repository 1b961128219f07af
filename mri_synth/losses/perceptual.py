"""How unlike two images look to a frozen network: a loss that sees blur, which pixel losses hardly do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mri_synth import weights
from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.metrics.lpips import LPIPS, lpips

log = logging.getLogger(__name__)

Choice = Literal["auto", "lpips", "encoder", "none"]
Net = Literal["vgg16", "alexnet"]
LEAST: dict[Net, int] = {"vgg16": 16, "alexnet": 31}
"""Smallest image side that a network of LPIPS takes."""


class Perceptual:
    """A frozen network and the loss in its features. No module: nothing of it is trained, or kept in checkpoints.

    The network is loaded when a distance is first asked for: codes and images of a checkpoint do without.

    Args:
        choice: "lpips", "encoder", "none", or "auto", which is one of these by what is here; the log says which.
        net: of LPIPS.
        encoder: checkpoint of a feature encoder.
        spec: of the images.

    Attributes:
        choice: never "auto".
        network: None until it is loaded.
    """

    def __init__(self, choice: Choice, net: Net, encoder: str | None, spec: DataSpec) -> None:
        self.choice, why = resolved(choice, net, spec.size)
        if why:
            log.log(logging.INFO if self.choice != "none" else logging.WARNING, why)
        self.net, self.encoder, self.spec = net, encoder, spec
        self.network: nn.Module | None = None
        self._device = torch.device("cpu")

    def __call__(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """Distances (B,) float32 of x_hat from x, both (B, C, H, W) in [-1, 1], differentiable in x_hat.

        A UserError says so where the weights are not here, or the encoder does not fit the images.
        """
        if self.network is None:
            self.network = LPIPS(self.net) if self.choice == "lpips" else _encoder(Path(str(self.encoder)), self.spec)
            self.network.requires_grad_(False).eval()
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if x.device != self._device:
            self.network, self._device = self.network.to(x.device), x.device
        if isinstance(self.network, LPIPS):
            return lpips(x_hat.float(), x.float(), self.network)
        return feature_distance(x_hat, x, self.network.feature_maps)  # type: ignore[arg-type]

    def same_as(self, there: Choice) -> None:
        """A resumed run keeps its loss, whatever "auto" means by now.

        Args:
            there: the choice that a checkpoint was trained with.

        Raises:
            UserError: it is another one than here.
        """
        if there != self.choice:
            get = f"; its weights: mri-synth weights get lpips_{self.net}" * (there == "lpips")
            raise UserError(f"this run was trained with model.perceptual={there}, and here it would go on with "
                            f"{self.choice}: give model.perceptual={there}{get}")  # fmt: skip


def feature_distance(x_hat: Tensor, x: Tensor, maps: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Squared distance of feature maps of two images, relative to the original's.

    `L_E = mean_k |f_k(x_hat) - f_k(x)|^2 / |f_k(x)|^2`, f_k the maps of depth k of an encoder that was trained here
    (in place of VGG's of Johnson et al. 2016, "Perceptual losses for real-time style transfer", eq. 2)

    Args:
        x_hat: (B, C, H, W) in [-1, 1].
        x: (B, C, H, W) in [-1, 1]; no gradient reaches it.
        maps: images to feature maps (B, C_k, H_k, W_k) of several depths.

    Returns:
        (B,) float32: 0 for equal images, 1 where the maps are lost.
    """
    with torch.autocast(x.device.type, enabled=False):
        with torch.no_grad():
            originals = maps(x.float())
        parts = [
            (f_hat - f).square().sum((1, 2, 3)) / (f.square().sum((1, 2, 3)) + 1e-6)
            for f_hat, f in zip(maps(x_hat.float()), originals, strict=True)
        ]
        return torch.stack(parts).mean(0)


def resolved(choice: Choice, net: Net, size: int) -> tuple[Choice, str]:
    """What "auto" stands for on this machine.

    Args:
        choice: as configured.
        net: of LPIPS.
        size: side of the images.

    Returns:
        "lpips", "encoder" or "none"; and why, a sentence for the log, "" where nothing had to be chosen.
    """
    if choice != "auto":
        return choice, ""
    if size < LEAST[net]:
        return "none", f"model.perceptual=auto: no perceptual loss, as {net} needs images of {LEAST[net]} pixels"
    if weights.find(f"lpips_{net}").path:
        return "lpips", f"model.perceptual=auto: LPIPS with {net}, whose weights are here"
    return "none", (
        f"model.perceptual=auto: no perceptual loss, as the weights of {net} are not here. Reconstructions will be "
        f"less sharp. Fetch them: mri-synth weights get lpips_{net}; or train an encoder on these images: "
        "model.perceptual=encoder"
    )


def problems(choice: Choice, net: Net, encoder: str | None) -> list[str]:
    """Why a perceptual loss cannot be had; the encoder's file is not opened.

    Args:
        choice: value of `model.perceptual`.
        net: value of `model.perceptual_net`.
        encoder: value of `model.perceptual_encoder`.

    Returns:
        One message, or none.
    """
    if choice == "lpips":
        try:
            weights.resolve(f"lpips_{net}")
        except UserError as error:
            return [f"model.perceptual=lpips: {error}"]
    train = "train one with python -m mri_synth.run model=encoder data.batch_size=64, and give its best.ckpt"
    if choice == "encoder" and encoder is None:
        return [f"model.perceptual=encoder: model.perceptual_encoder is missing: its checkpoint; {train}"]
    if choice == "encoder" and not Path(str(encoder)).is_file():
        return [f"model.perceptual_encoder={encoder}: no such file; {train}"]
    if choice != "encoder" and encoder is not None:
        return [f"model.perceptual_encoder={encoder} is for model.perceptual=encoder, and not for {choice}"]
    return []


def _encoder(path: Path, spec: DataSpec) -> nn.Module:
    from mri_synth.models.checkpoint import load_model

    model = load_model(path)
    if not hasattr(model, "feature_maps"):
        raise UserError(f"model.perceptual_encoder={path}: a {type(model).__name__}, which is no feature encoder; give "
                        "a checkpoint of model=encoder")  # fmt: skip
    there, here = ((s.channels, s.size) for s in (model.spec, spec))
    if there != here:
        raise UserError(f"model.perceptual_encoder={path}: trained on images of (channels, pixels) {there}, and these "
                        f"are {here}; train one on these: python -m mri_synth.run model=encoder "
                        f"data.size={spec.size} data.batch_size=64")  # fmt: skip
    return model

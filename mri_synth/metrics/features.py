"""Feature spaces in which images are compared, by the word a user types: Inception, an encoder of ours, or pixels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mri_synth.errors import UserError

BATCH = 32
"""Images at once, however many are given."""
BLOCKS = 16
"""Blocks along each side of an image in the space of pixels."""


class Features(Protocol):
    """A network that turns images into vectors, in whose space sets of images are compared."""

    @property
    def name(self) -> str:
        """What it is called beside every figure."""

    @property
    def dim(self) -> int:
        """D, length of a vector."""

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of its weights' sha256: figures under different hashes are not compared."""

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, D) float32 on the CPU."""


def load_features(word: str, device: torch.device | str = "cpu") -> Features:
    """The feature space that a word names.

    Args:
        word: "inception", "inception_bf16", "pixels", or the checkpoint of an encoder (`model=encoder`).
        device: where the network computes.

    Returns:
        Images to vectors, without gradients.

    Raises:
        UserError: neither a known word nor a checkpoint, a checkpoint of another model, or weights that are not here.
    """
    if word in ("inception", "inception_bf16"):
        return InceptionFeatures(device, bf16=word != "inception")
    if word == "pixels":
        return PixelFeatures()
    if not Path(word).exists():
        raise UserError(f"features={word}: no such file; allowed: inception, inception_bf16, pixels, or the checkpoint "
                        f"of an encoder, such as outputs/<run>/best.ckpt of {_train_one('<data>')}")  # fmt: skip
    return EncoderFeatures(Path(word), device)


class InceptionFeatures:
    """Inception's pool3 features, the space of the published KID and FID.

    Args:
        device: where the network computes.
        bf16: in bfloat16: faster where the device computes in it, and a space of its own.

    Attributes:
        name: "inception", or "inception in bfloat16".
        dim: 2048.
        hash: of the file of its weights, and of the precision where that is not the published one.

    Raises:
        UserError: the weights are not here; says how to get them.
    """

    def __init__(self, device: torch.device | str = "cpu", bf16: bool = False) -> None:
        from mri_synth.networks.inception import Inception
        from mri_synth.weights.known import WEIGHTS

        self.network = Inception(bf16=bf16).to(device)
        self.device = torch.device(device)
        self.name, self.dim = self.network.name + " in bfloat16" * bf16, self.network.dim
        known = WEIGHTS["inception"].sha256
        self.hash = hashlib.sha256(f"{known} bfloat16".encode()).hexdigest()[:16] if bf16 else known[:16]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] to (B, 2048) float32 on the CPU."""
        return _in_parts(self.network, images, self.device, self.dim)


class PixelFeatures:
    """Means of 16 x 16 blocks of the image, channels averaged: always at hand, and blind to anything finer.

    It sees where what is bright lies, and not whether an image is sharp: for tests, for machines without weights, and
    to see a training go wrong.

    Attributes:
        name: "pixels (16 x 16 block means)".
        dim: 256.
        hash: of that definition, since there are no weights.
    """

    def __init__(self) -> None:
        self.name, self.dim = f"pixels ({BLOCKS} x {BLOCKS} block means)", BLOCKS * BLOCKS
        self.hash = hashlib.sha256(self.name.encode()).hexdigest()[:16]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, 256) float32 on the CPU, in [-1, 1]."""
        return adaptive_avg_pool2d(images.float().mean(1), BLOCKS).flatten(1).cpu()


class EncoderFeatures:
    """Features of an encoder that was trained here.

    Args:
        path: checkpoint of a run with model=encoder.
        device: where the network computes.

    Attributes:
        name: "encoder", with the data it was trained on.
        dim: length of a vector.
        hash: of the weights of its network.
        trained_on: fingerprints of its training files, to see whether test images were among them.

    Raises:
        UserError: not a checkpoint, or one of another model.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        from mri_synth.models.checkpoint import load_model, read_checkpoint
        from mri_synth.models.encoder import Encoder

        about = read_checkpoint(path)["mri_synth"]
        target = str(about["target"])
        if target != f"{Encoder.__module__}.{Encoder.__name__}":
            other = target.split(".")[-2]
            raise UserError(f"features={path}: a checkpoint of model={other}, which is no feature encoder; train one: "
                            f"{_train_one('<data>')}")  # fmt: skip
        model = load_model(path)
        assert isinstance(model, Encoder)
        self.network, self.spec = model.network.to(device), model.spec
        self.device = torch.device(device)
        self.path = path
        self.data = str(self.spec.preparation.get("data", "<data>"))
        self.name = f"encoder trained on {self.spec.preparation.get('title', self.data)}"
        self.dim = int(model.hparams["dim"])
        self.hash = hash_of(self.network)
        self.trained_on: list[str] = list(about["trained_on"])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of images like those it was trained on.

        Args:
            images: (B, C, H, W) in [-1, 1].

        Returns:
            (B, D) float32 on the CPU.

        Raises:
            UserError: the images have another size or other channels than those of its training.
        """
        expected = (self.spec.channels, self.spec.size, self.spec.size)
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"features={self.path}: the encoder was trained on images of (channels, height, width) {expected}, and "
                f"these are {tuple(images.shape[1:])}; train one on such images: {_train_one(self.data)}"
                + (f" data.size={images.shape[-1]}" if images.shape[-1] != self.spec.size else "")
            )
        with torch.autocast(self.device.type, enabled=False):
            return _in_parts(self.network, images, self.device, self.dim)


def hash_of(network: nn.Module) -> str:
    """Names, shapes and values of a network's weights as a hash; memory layout and device change nothing.

    Args:
        network: any.

    Returns:
        First 16 hexadecimal digits of a sha256.
    """
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        array = value.detach().cpu().contiguous(memory_format=torch.contiguous_format).numpy()
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _in_parts(network: nn.Module, images: Tensor, device: torch.device, dim: int) -> Tensor:
    out = torch.empty(len(images), dim)
    for start in range(0, len(images), BATCH):
        out[start : start + BATCH] = network(images[start : start + BATCH].to(device).float())
    return out


def _train_one(data: str) -> str:
    return f"python -m mri_synth.run model=encoder data={data} data.batch_size=64"

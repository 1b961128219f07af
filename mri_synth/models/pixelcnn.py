"""Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328) over the codes of a frozen first stage: new images."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from torch import Tensor, nn

from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.codes import code_counts, codes_of
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.code import bits_per_code
from mri_synth.models import first_stage as stage
from mri_synth.models.base import SynthModule
from mri_synth.models.conditions import Condition
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.pixelcnn import GatedPixelCNN
from mri_synth.networks.pixelcnn_sampler import sample_codes

PositiveFloat = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(0)]
Odd = Literal[3, 5, 7, 9]
Decay = Annotated[float, Ge(0), Lt(1)]


class PixelCNN(SynthModule):
    """Prior over the codes of a VQ-VAE: exact bits per code, and samples, one code after the other.

    Args:
        spec: what the data know of themselves.
        first_stage: checkpoint of the method that makes the codes and the images of codes; it stays as it is.
        condition: what a sample can be asked for: "none", the image's "label", its "contrast", or the place of its
            "slice".
        label_dropout: share of training items whose condition is hidden, so that samples can also be asked for "any".
        channels: of both stacks.
        layers: gated layers.
        kernel_size: of all layers but the first.
        first_kernel: of the first layer.
        hidden: channels of the output head.
        position: learn an embedding of the position, for each condition its own; brains lie in one place, textures do
            not.
        dropout: share of the gates' channels that are dropped in training.
        temperature: of samples, where none is asked for: below 1 likelier codes are likelier still.
        top_k: samples take one of the k likeliest codes; None: any.
        noise: samples have the pixel noise that the first stage learned, as real images have.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/bits_per_code", "min")
    notes: ClassVar[dict[str, str]] = {"baseline/bits_per_code": "how often each code is in train, wherever it is"}
    explained: ClassVar[dict[str, Any]] = {"bits_per_code": bits_per_code}
    no_graph: ClassVar[dict[str, str]] = {
        "sample": "codes are drawn one after the other, each from all before: a loop, and no graph of fixed length"
    }
    protocols: ClassVar[dict[str, str]] = {
        "bits_per_code": "exact: -log2 p of all codes of the image over their number, given its model.condition if any"
        "; not comparable between codebooks, nor between conditions",
        "bits_per_pixel": "the same bits over the number of pixels of the image; what the decoder loses is not in it",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        first_stage: str | dict[str, Any] | None = None,
        condition: Condition = "none",
        label_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        channels: Annotated[int, Ge(4), MultipleOf(4)] = 64,
        layers: Annotated[int, Ge(1)] = 7,
        kernel_size: Odd = 5,
        first_kernel: Odd = 7,
        hidden: Annotated[int, Ge(4)] = 128,
        position: bool = True,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        temperature: Annotated[float, Gt(0), Le(10)] = 1.0,
        top_k: Annotated[int, Ge(1)] | None = None,
        noise: bool = True,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        warmup_steps: Count = 0,
        lr_final: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__(spec)
        self.first_stage, self.hparams["first_stage"] = stage.frozen(first_stage)
        stage.same_data(self.first_stage, self.spec, self.hparams["first_stage"]["path"])
        blank = torch.full((1, self.spec.channels, self.spec.size, self.spec.size), -1.0)
        with torch.no_grad():
            _, rows, columns = self.first_stage.encode(blank).shape  # type: ignore[operator]
        self.grid = (rows, columns)
        codes = int(self.first_stage.hparams["codebook_size"])
        if top_k is not None and top_k > codes:
            raise UserError(f"model.top_k={top_k}: allowed: null, or up to {codes}, the codes of the first stage")
        self.network = GatedPixelCNN(
            codes, channels, layers, kernel_size, first_kernel, hidden,
            conditions=len(self.conditions()), dropout=dropout, position=self.grid if position else None,
        )  # fmt: skip

    @staticmethod
    def problems(arguments: dict[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: no first stage.

        Args:
            arguments: by name.

        Returns:
            One message each.
        """
        return stage.problems(arguments.get("first_stage"))

    def prepare(self, data: MRIDataModule) -> None:
        """Codes of all slices, made once.

        Args:
            data: set up.
        """
        key = str(self.hparams["first_stage"]["sha256"])[:16]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def encode(images: Tensor) -> Tensor:
            codes: Tensor = self.first_stage.to(device).encode(images.to(device))  # type: ignore[operator]
            return codes

        data.codes = codes_of(data.store, data.contrasts, encode, key)
        self.first_stage.cpu()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood of the codes, in nats per code (van den Oord et al. 2016).

        `L = -mean_ij log p(c_ij | c_<ij)`
        """
        noise, condition, draws = None, self.condition(batch), self.network.draws
        if self.training and (draws or condition is not None):
            noise = uniform(self.seed, self.global_step, batch.index.to(self.device), draws + 1)
            if condition is not None:
                condition = condition.masked_fill(noise[:, draws] < self.hparams["label_dropout"], -1)
        loss = self.network.nll(self.codes(batch), condition, None if noise is None else noise[:, :draws]).mean()
        return {"loss": loss, "bits_per_code": loss / math.log(2)}

    def codes(self, batch: Batch) -> Tensor:
        """(B, h, w) int64: as they were stored, or made here of images that were changed."""
        if batch.codes is not None:
            return batch.codes
        with torch.no_grad(), torch.autocast(batch.image.device.type, enabled=False):  # as those that are stored
            codes: Tensor = self.first_stage.encode(batch.image)  # type: ignore[operator]
        return codes

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Bits of each image's codes."""
        codes = self.codes(batch)
        bits = self.network.nll(codes, self.condition(batch)) / math.log(2)
        return {"bits_per_code": bits, "bits_per_pixel": bits * codes[0].numel() / batch.image[0, 0].numel()}

    def references(self, data: MRIDataModule) -> dict[str, float]:
        """Bits per code of a model that knows how often codes are, and nothing of their neighbours.

        Args:
            data: after `prepare`.

        Returns:
            "baseline/bits_per_code" on the test split.
        """
        known, seen = (code_counts(data.view(split), self.network.codebook_size) for split in ("train", "test"))
        surprise = -np.log2((known + 1) / (known + 1).sum())
        return {"baseline/bits_per_code": float((seen * surprise).sum() / seen.sum())} if seen.any() else {}

    @torch.no_grad()
    def sample(
        self, seeds: Tensor, label: Tensor | None = None, *, temperature: float | None = None,
        top_k: int | None = None, noise: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """Codes drawn one after the other, and their images.

        Args:
            seeds: (n,) int64; one seed gives one image.
            label: (n,) int64, index into `conditions()`; -1 or None: any.
            temperature: of the distribution of each code; None: the model's.
            top_k: take one of the k likeliest codes; None: the model's.
            noise: with the pixel noise that the first stage learned; None: as the model says.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: labels for a model without conditions or none for one that knows no other, or top_k beyond the
                codebook.
        """
        if label is not None and not self.conditions():
            raise UserError("this PixelCNN was trained without labels (model.condition=none): ask for none")
        if top_k is not None and not 1 <= top_k <= self.network.codebook_size:
            raise UserError(f"top_k={top_k}: allowed: a whole number from 1 to {self.network.codebook_size}, the codes")
        h, device = self.hparams, self.device
        if self.conditions() and not h["label_dropout"] and (label is None or bool((label < 0).any())):
            raise UserError(
                f"this PixelCNN, of model.label_dropout=0, knows no '{h['condition']}' that is not said: "
                f"ask for one of {', '.join(self.conditions())}, by --label"
            )
        noisy = h["noise"] if noise is None else noise
        u = uniform(0, 0, seeds.to(device), self.grid[0] * self.grid[1])
        with torch.autocast(device.type, enabled=False):
            codes = sample_codes(
                self.network, u, self.grid, None if label is None else label.to(device),
                temperature=h["temperature"] if temperature is None else temperature,
                top_k=h["top_k"] if top_k is None else top_k,
                dtype=torch.float64,  # in float32 one code in a million depends on what else is in the batch
            )  # fmt: skip
            image: Tensor = (
                self.first_stage.draw(codes, seeds) if noisy else self.first_stage.decode(codes)  # type: ignore[operator]
            )
        return image

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Originals, what the first stage makes of them (no sample can be sharper), and samples."""
        rows = super().visuals(batch)
        return {"original": rows["original"], "first stage": self.first_stage.reconstruct(batch.image), **rows}

    def train(self, mode: bool = True) -> PixelCNN:
        """The first stage stays in evaluation."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def networks(self) -> list[nn.Module]:
        """What is trained."""
        return [self.network]

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        optimizer = self.adam(self.network.parameters(), h["lr"], h["betas"])
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

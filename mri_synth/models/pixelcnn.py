"""Gated PixelCNN (van den Oord et al. 2016, arXiv:1606.05328) over the codes of a frozen first stage: new images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from torch import Tensor, nn

from mri_synth.captions import Terms
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.captioned import Captioned
from mri_synth.data.codes import code_counts, codes_of
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.code import bits_per_code
from mri_synth.models import first_stage as stage
from mri_synth.models.base import SynthModule
from mri_synth.models.conditions import Worded
from mri_synth.models.prompted import Words
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.pixelcnn import GatedPixelCNN, exchanged, unknown
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
        condition: what a sample can be asked for: "none", the image's "label", its "contrast", the place of its
            "slice", or a "text".
        guide: checkpoint of a model=mri_clip that knows what texts mean, of condition "text"; it stays as it is.
        label_dropout: share of training items whose condition is hidden, so that samples can also be asked for "any".
        channels: of both stacks.
        layers: gated layers.
        kernel_size: of all layers but the first.
        first_kernel: of the first layer.
        hidden: channels of the output head.
        position: learn an embedding of the position, for each condition its own; brains lie in one place, textures do
            not.
        dropout: share of the gates' channels that are dropped in training.
        exchanged: share of the codes that training shows the network exchanged for others of their grid: samples then
            recover from a code that fits nowhere.
        temperature: of samples, where none is asked for: below 1 likelier codes are likelier still.
        top_k: samples take one of the k likeliest codes; None: any.
        guidance: how much further than what is asked for samples go, away from those of any; 1: no further.
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
        "bits_per_code": "exact: -log2 p of all codes of the image over their number, given its model.condition if any,"
        " of text one caption that is true of it; not comparable between codebooks, nor between conditions",
        "bits_per_pixel": "the same bits over the number of pixels of the image; what the decoder loses is not in it",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        first_stage: str | dict[str, Any] | None = None,
        condition: Worded = "none",
        guide: str | dict[str, Any] | None = None,
        label_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        channels: Annotated[int, Ge(4), MultipleOf(4)] = 64,
        layers: Annotated[int, Ge(1)] = 7,
        kernel_size: Odd = 5,
        first_kernel: Odd = 7,
        hidden: Annotated[int, Ge(4)] = 128,
        position: bool = True,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        exchanged: Annotated[float, Ge(0), Lt(1)] = 0.0,
        temperature: Annotated[float, Gt(0), Le(10)] = 1.0,
        top_k: Annotated[int, Ge(1)] | None = None,
        guidance: Annotated[float, Gt(0), Le(20)] = 1.0,
        noise: bool = True,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        warmup_steps: Count = 0,
        lr_final: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__(spec)
        self.first_stage, self.hparams["first_stage"] = stage.frozen(first_stage)
        stage.same_data(self.first_stage, self.spec, self.hparams["first_stage"]["path"])
        self.words: Words | None = None
        if condition == "text":
            guide_model, self.hparams["guide"] = stage.frozen(guide, "guide")
            stage.same_data(guide_model, self.spec, self.hparams["guide"]["path"], "guide")
            self.words = Words(guide_model, Terms.of(self.spec))  # type: ignore[arg-type]
        blank = torch.full((1, self.spec.channels, self.spec.size, self.spec.size), -1.0)
        with torch.no_grad():
            _, rows, columns = self.first_stage.encode(blank).shape  # type: ignore[operator]
        self.grid = (rows, columns)
        codes = int(self.first_stage.hparams["codebook_size"])
        if top_k is not None and top_k > codes:
            raise UserError(f"model.top_k={top_k}: allowed: null, or up to {codes}, the codes of the first stage")
        self.network = GatedPixelCNN(
            codes, channels, layers, kernel_size, first_kernel, hidden,
            conditions=len(self.conditions()), vectors=self.words.dims if self.words else 0, dropout=dropout,
            position=self.grid if position else None,
        )  # fmt: skip

    @staticmethod
    def problems(arguments: dict[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: no first stage, no guide, guidance by what the model does not learn.

        Args:
            arguments: by name.

        Returns:
            One message each.
        """
        found, condition = stage.problems(arguments.get("first_stage")), arguments.get("condition", "none")
        if condition == "text":
            found += stage.problems(arguments.get("guide"), "guide")
        elif arguments.get("guide") is not None:
            found.append(
                f"model.guide is of model.condition=text alone, which is {condition} here; give that, or no guide"
            )
        if arguments.get("guidance", 1.0) != 1 and (condition == "none" or not arguments.get("label_dropout")):
            found.append(f"model.guidance={arguments['guidance']}: it compares what is asked for with any; that takes "
                         "a model.condition and a model.label_dropout above 0; or give 1")  # fmt: skip
        return found

    @staticmethod
    def refuses(augment: Mapping[str, Any], condition: Worded = "none") -> str:  # type: ignore[override]
        """Why captions would not be true of images augmented so.

        Args:
            augment: `data.augment`.
            condition: what samples can be asked for.

        Returns:
            The reason with the way out; "" where they are, or there are none.
        """
        return Captioned.turns(augment) if condition == "text" else ""

    def prepare(self, data: MRIDataModule) -> None:
        """Codes of all slices, made once; and how captions spread.

        Args:
            data: set up.
        """
        if self.words is not None:
            self.words.measure(data.view("train"))
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

        In training some of the codes before each may be others than they are: `exchanged`.
        """
        codes, condition, h = self.codes(batch), self.told(batch), self.hparams
        drops, seen = self.network.draws, codes
        noise = None
        if self.training:
            draws = drops + 1 + (2 * codes[0].numel() if h["exchanged"] else 0)
            noise = uniform(self.seed, self.global_step, batch.index.to(self.device), draws)
            if condition is not None:
                hidden = (noise[:, drops] < h["label_dropout"]).view(-1, *[1] * (condition.dim() - 1))
                condition = torch.where(hidden, unknown(condition), condition)
            if h["exchanged"]:
                seen = exchanged(codes, h["exchanged"], noise[:, drops + 1 :])
            noise = noise[:, :drops]
        loss = self.network.nll(codes, condition, noise, seen).mean()
        return {"loss": loss, "bits_per_code": loss / math.log(2)}

    def told(self, batch: Batch) -> Tensor | None:
        """What the network is conditioned on: (B,) int64 of what the images are, (B, D) of captions, or None."""
        if self.words is None:
            return self.condition(batch)
        told: Tensor = self.words(batch, (self.seed, self.global_step) if self.training else None)
        return told

    def prompts(self, batch: Batch) -> list[str]:
        """A caption of each image, the same every time.

        Args:
            batch: with facts, where the condition is text.

        Returns:
            One each; empty where the condition is another.
        """
        return self.words.same_captions(batch) if self.words else []

    def prompted(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as the guide understands them.

        Args:
            prompts: of a user.

        Returns:
            (n, D) float32.

        Raises:
            UserError: this model was not trained with text, or the guide does not know the words.
        """
        if self.words is None:
            condition = self.hparams["condition"]
            way = f"give --label, one of {', '.join(known)}" if (known := self.conditions()) else "ask for none"
            raise UserError(f"--prompt: this PixelCNN was trained with model.condition={condition} and knows no words; "
                            f"{way}, or train one with model.condition=text model.guide=GUIDE/best.ckpt")  # fmt: skip
        return self.words.heard(prompts)

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
        bits = self.network.nll(codes, self.told(batch)) / math.log(2)
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
        top_k: int | None = None, noise: bool | None = None, prompt: str | Sequence[str] | None = None,
        guidance: float | None = None,
    ) -> Tensor:  # fmt: skip
        """Codes drawn one after the other, and their images.

        Args:
            seeds: (n,) int64; one seed gives one image.
            label: (n,) int64, index into `conditions()`; -1 or None: any.
            temperature: of the distribution of each code; None: the model's.
            top_k: take one of the k likeliest codes; None: the model's.
            noise: with the pixel noise that the first stage learned; None: as the model says.
            prompt: what is asked for in words, of all images or of each, where the condition is text; None: any.
            guidance: how far samples are moved from any to what is asked for; None: the model's; 1: not beyond it.

        Returns:
            (n, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: labels for a model without conditions or none for one that knows no other, a prompt that is not
                understood, or top_k beyond the codebook.
        """
        codes = self.sample_codes(seeds, label, temperature=temperature, top_k=top_k, prompt=prompt, guidance=guidance)
        noisy = self.hparams["noise"] if noise is None else noise
        first: Any = self.first_stage
        with torch.autocast(self.device.type, enabled=False):
            image: Tensor = first.draw(codes, seeds) if noisy else first.decode(codes)
        return image

    @torch.no_grad()
    def sample_codes(
        self, seeds: Tensor, label: Tensor | None = None, *, temperature: float | None = None,
        top_k: int | None = None, prompt: str | Sequence[str] | None = None, guidance: float | None = None,
    ) -> Tensor:  # fmt: skip
        """Codes drawn one after the other.

        Args:
            seeds: as of `sample`, and so the others.
            label: the same.
            temperature: the same.
            top_k: the same.
            prompt: the same.
            guidance: the same.

        Returns:
            (n, h, w) int64 in [0, codebook_size).

        Raises:
            UserError: as `sample`.
        """
        if label is not None and not self.conditions():
            condition = self.hparams["condition"]
            raise UserError(f"this PixelCNN was trained without labels (model.condition={condition}): ask for none")
        if top_k is not None and not 1 <= top_k <= self.network.codebook_size:
            raise UserError(f"top_k={top_k}: allowed: a whole number from 1 to {self.network.codebook_size}, the codes")
        h, device = self.hparams, self.device
        if prompt is not None:
            asked: Tensor | None = self.prompted([prompt] * len(seeds) if isinstance(prompt, str) else prompt)
        else:
            asked = None if label is None else label.to(device)
        unsaid = asked is None or (label is not None and bool((label < 0).any()))
        if not h["label_dropout"] and h["condition"] != "none" and unsaid:
            how = f"one of {', '.join(self.conditions())}, by --label" if self.conditions() else "some, by --prompt"
            raise UserError(
                f"this PixelCNN, of model.label_dropout=0, knows no '{h['condition']}' that is not said: ask for {how}"
            )
        further = h["guidance"] if guidance is None else guidance
        if guidance is not None and guidance != 1 and (asked is None or not h["label_dropout"]):
            why = "nothing is asked for" if asked is None else "this PixelCNN was trained with model.label_dropout=0"
            raise UserError(f"--guidance={guidance} goes from any sample to what is asked for, and {why}; leave it out")
        u = uniform(0, 0, seeds.to(device), self.grid[0] * self.grid[1])
        with torch.autocast(device.type, enabled=False):
            codes: Tensor = sample_codes(
                self.network, u, self.grid, asked,
                temperature=h["temperature"] if temperature is None else temperature,
                top_k=h["top_k"] if top_k is None else top_k,
                guidance=1.0 if asked is None else further,
                dtype=torch.float64,  # in float32 one code in a million depends on what else is in the batch
            )  # fmt: skip
        return codes

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Originals, what the first stage makes of them (no sample can be sharper), and samples."""
        seeds = torch.arange(len(batch), device=batch.image.device)
        sample = self.sample(seeds, self.condition(batch), prompt=self.prompts(batch) or None)
        first = self.first_stage.reconstruct(batch.image)
        return {"original": batch.image, "first stage": first, "sample": sample}

    def train(self, mode: bool = True) -> PixelCNN:
        """The first stage and the guide stay in evaluation."""
        super().train(mode)
        self.first_stage.eval()
        if self.words is not None:
            self.words.eval()
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

"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) with an EMA codebook (Razavi et al. 2019, arXiv:1906.00446)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.optim import Optimizer

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.losses.autoencoder import code_losses, image_losses
from mri_synth.losses.noise import noise_loss
from mri_synth.losses.reconstruction import l1, mse, ssim_loss
from mri_synth.losses.vq import commitment
from mri_synth.models import codebook
from mri_synth.models.base import SynthModule
from mri_synth.models.codebook import WithCodes
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks import vq
from mri_synth.networks.autoencoder import Decoder, Encoder
from mri_synth.networks.quantizer import VectorQuantizer, codebook_usage

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class VQVAE(WithCodes, SynthModule):
    """Encoder, codebook, decoder. Minimises reconstruction + beta * commitment (van den Oord 2017, eq. 3).

    The codebook term of eq. 3 is replaced by moving averages (appendix A.1).

    Args:
        spec: what the data know of themselves.
        hidden_channels: width of encoder and decoder.
        res_blocks: residual blocks on each side, at the resolution of the codes.
        downsample: image side over code side; a power of 2.
        norm: of the residual blocks.
        codebook_size: K, number of codes.
        codebook_dim: D, length of a code.
        decay: of the codebook's moving averages.
        codebook_warmup: steps in which the latents pass unquantised, before the codebook starts; at most 1/10 of all.
        kmeans_init: start the codebook from k-means on the first quantised batch.
        revive_below: a code used less often (moving average of vectors per batch) is put on a random vector; 0: never.
        rate: squared distance that a nat of a code is worth: of codes about equally near the more frequent is taken.
        reconstruction: "l1" or "mse" on [-1, 1].
        lambda_ssim: weight of 1 - SSIM in the reconstruction loss.
        noise: learn the Rician noise that the reconstruction lacks, which stays as it would be without; what is drawn
            from codes then has the noise of real images.
        beta: weight of the commitment loss.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/ssim", "max")
    explained: ClassVar[dict[str, Any]] = {
        "l1": l1, "mse": mse, "ssim_loss": ssim_loss, "commitment": commitment, "noise_loss": noise_loss,
        "codebook_usage": codebook_usage, "perplexity": codebook_usage,
    }  # fmt: skip

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        hidden_channels: Annotated[int, Ge(4)] = 128,
        res_blocks: Annotated[int, Ge(0)] = 2,
        downsample: Literal[2, 4, 8, 16] = 4,
        norm: Literal["none", "group"] = "none",
        codebook_size: Annotated[int, Ge(2)] = 512,
        codebook_dim: PositiveInt = 64,
        decay: Decay = 0.99,
        codebook_warmup: Annotated[int, Ge(0)] = 0,
        kmeans_init: bool = True,
        revive_below: NonNegative = 1.0,
        rate: NonNegative = 0.0,
        reconstruction: Literal["l1", "mse"] = "l1",
        lambda_ssim: NonNegative = 0.0,
        noise: bool = False,
        beta: NonNegative = 0.25,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        warmup_steps: Annotated[int, Ge(0)] = 0,
        lr_final: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__(spec)
        channels = self.spec.channels
        self.encoder = Encoder(channels, hidden_channels, codebook_dim, downsample, res_blocks, norm)
        self.quantizer = VectorQuantizer(
            codebook_size, codebook_dim, decay, kmeans_init=kmeans_init, revive_below=revive_below,
            warmup_steps=codebook_warmup, rate=rate,
        )  # fmt: skip
        self.decoder = Decoder(channels, hidden_channels, codebook_dim, downsample, res_blocks, norm, noise)
        self.register_buffer("code_counts", torch.zeros(codebook_size, dtype=torch.int64), persistent=False)

    @staticmethod
    def refuses(downsample: int, size: int) -> str:  # type: ignore[override]
        """Why images of a size cannot be encoded.

        Args:
            downsample: image side over code side.
            size: image side, pixels.

        Returns:
            The reason with the way out; "" when they can.
        """
        return vq.too_odd(downsample, size)

    def on_fit_start(self) -> None:
        """A short training is not all warm-up."""
        self.quantizer.warmup_steps = min(self.hparams["codebook_warmup"], self.total_steps // 10)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Reconstruction and commitment, weighted (van den Oord 2017, eq. 3; its codebook term is left to averages).

        `L = L_1 + lambda_ssim L_SSIM + beta L_commit`, or L_2 in place of L_1; + L_noise, of the noise's layers alone

        In evaluation the codes are counted too.
        """
        h = self.hparams
        out = vq.autoencode(self, batch.image)
        if not self.training:
            codebook.count(self.code_counts, out.quantized.codes)
        image = image_losses(out.x_hat, batch.image, h["reconstruction"], h["lambda_ssim"])
        code = code_losses(out.x_hat, batch.image, out.quantized.commitment, out.noise, h["beta"])
        return {**image, **code, "loss": image["loss"] + code["loss"]}

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        optimizer: Optimizer = self.adam([*self.encoder.parameters(), *self.decoder.parameters()], h["lr"], h["betas"])
        if not h["warmup_steps"] and h["lr_final"] == 1:
            return optimizer
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

"""VQGAN (Esser et al. 2021, arXiv:2012.09841): a VQ-VAE that is also trained to look real, patch by patch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses import perceptual as look
from mri_synth.losses.adaptive import adaptive_weight, balanced
from mri_synth.losses.adversarial import DISCRIMINATOR, GENERATOR, r1
from mri_synth.losses.autoencoder import code_losses, image_losses
from mri_synth.losses.noise import noise_draws, noise_loss, rician_draw
from mri_synth.losses.reconstruction import l1, mse, ssim_loss
from mri_synth.losses.vq import commitment
from mri_synth.metrics.lpips import lpips
from mri_synth.models import codebook
from mri_synth.models.checkpoint import load_model
from mri_synth.models.codebook import WithCodes
from mri_synth.models.first_stage import same_codes
from mri_synth.models.gan import GANModule
from mri_synth.networks import patch, projected, vq
from mri_synth.networks.autoencoder import Decoder, Encoder, ResBlock
from mri_synth.networks.quantizer import VectorQuantizer, codebook_usage

log = logging.getLogger(__name__)

_SEED = 1 << 40
"""Of the first sample of a prior that a decoder learns from: far from 0, where those begin that are judged."""
NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]


class VQGAN(WithCodes, GANModule):
    """The autoencoder of `vqvae` as generator, against a discriminator of patches.

    In the first steps it is a VQ-VAE with a perceptual loss. Then the discriminator starts, and the adversarial loss
    gets the weight with which it pulls at the decoder's last layer as hard as the reconstruction does.

    Encoder, codebook and decoder are averaged together (`ema_decay`), and the averages reconstruct and make codes. The
    codebook is a moving average already, of the latents of the trained encoder: what the averaged encoder makes would
    lie beside it, as that lags behind. So its vectors are averaged once more, with the weights' decay, and lag as much.

    Args:
        spec: what the data know of themselves.
        hidden_channels: as `VQVAE`'s, and so the next twelve.
        res_blocks: of the autoencoder.
        downsample: the same.
        norm: the same.
        codebook_size: of the codebook.
        codebook_dim: the same.
        decay: the same.
        codebook_warmup: the same.
        kmeans_init: the same.
        revive_below: the same.
        rate: the same.
        reconstruction: of the reconstruction loss.
        lambda_ssim: the same.
        noise: learn the Rician noise that the reconstruction lacks. Discriminator and perceptual loss then see it
            drawn, and can neither tell reconstructions by it, nor ask them to invent it.
        beta: as `VQVAE`'s.
        perceptual: "lpips", "encoder" (features of one trained here), "none"; "auto": LPIPS where its weights are here.
        perceptual_net: of LPIPS.
        perceptual_encoder: checkpoint of the feature encoder.
        lambda_perceptual: weight of the perceptual loss in the reconstruction loss.
        adversarial_start: share of the steps before the discriminator starts; 1: never.
        lambda_adv: factor on the adaptive weight of the adversarial loss.
        trained: "all", or "decoder": encoder and codebook stay as `init_from` brought them, and so do codes and priors.
        discriminator: "patch", on pixels; "projected", on what a frozen AlexNet sees, which learns in far fewer steps.
        prior: checkpoint of a `pixelcnn` over these codes, for trained="decoder"; the discriminator then judges images
            of its samples, too, and the decoder learns to draw codes that no image ever had.
        prior_samples: samples that are drawn of it, once.
        gan_loss: of the adversarial game; wgan is none of them, as nothing bounds the slope of this discriminator.
        d_width: channels of the discriminator's first layer, or of the projected one's heads.
        d_layers: of patches: its layers of stride 2; with 3 a verdict is on 70 x 70 pixels.
        d_norm: of its inner layers.
        r1_gamma: weight of the penalty on the discriminator's gradient at real images; 0: none.
        r1_every: steps between two of these penalties.
        ema_decay: of the moving average of weights and codebook; 0: none is kept.
        lr_g: learning rate of encoder and decoder.
        lr_d: learning rate of the discriminator.
        betas: Adam's, of both.
        warmup_steps: of the rise of both rates, as `VQVAE`'s.
        lr_final: of their fall, as `VQVAE`'s.
    """

    adversarial_weight: Tensor
    monitor: ClassVar[tuple[str, str]] = ("val/ssim", "max")
    explained: ClassVar[dict[str, Any]] = {
        "g_l1": l1, "g_mse": mse, "g_ssim_loss": ssim_loss, "g_commitment": commitment, "g_noise_loss": noise_loss,
        "g_weight": adaptive_weight, "d_r1": r1, "codebook_usage": codebook_usage, "perplexity": codebook_usage,
    }  # fmt: skip

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        hidden_channels: Annotated[int, Ge(4)] = 128,
        res_blocks: Count = 2,
        downsample: Literal[2, 4, 8, 16] = 4,
        norm: Literal["none", "group"] = "none",
        codebook_size: Annotated[int, Ge(2)] = 512,
        codebook_dim: PositiveInt = 16,
        decay: Decay = 0.98,
        codebook_warmup: Count = 0,
        kmeans_init: bool = True,
        revive_below: NonNegative = 1.0,
        rate: NonNegative = 0.0,
        reconstruction: Literal["l1", "mse"] = "l1",
        lambda_ssim: NonNegative = 0.0,
        noise: bool = False,
        beta: NonNegative = 0.25,
        perceptual: look.Choice = "auto",
        perceptual_net: look.Net = "alexnet",
        perceptual_encoder: str | None = None,
        lambda_perceptual: NonNegative = 1.0,
        adversarial_start: Share = 0.3,
        lambda_adv: NonNegative = 0.8,
        trained: Literal["all", "decoder"] = "all",
        discriminator: Literal["patch", "projected"] = "patch",
        prior: str | None = None,
        prior_samples: PositiveInt = 2000,
        gan_loss: Literal["hinge", "logistic", "bce", "lsgan"] = "hinge",
        d_width: PositiveInt = 64,
        d_layers: PositiveInt = 3,
        d_norm: patch.Norm = "none",
        r1_gamma: NonNegative = 0.0,
        r1_every: PositiveInt = 16,
        ema_decay: Decay = 0.999,
        lr_g: PositiveFloat = 1e-3,
        lr_d: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.5, 0.9),
        warmup_steps: Count = 0,
        lr_final: Annotated[float, Ge(0)] = 1.0,
    ) -> None:
        super().__init__(spec, ema_decay=ema_decay)
        self.perceptual = look.Perceptual(perceptual, perceptual_net, perceptual_encoder, self.spec)
        self.hparams["perceptual"] = self.perceptual.choice
        formulas: dict[str, Any] = {
            "d_loss": DISCRIMINATOR[gan_loss], "g_adversarial": GENERATOR[gan_loss], "g_loss": self.generator_losses,
            "g_perceptual": look.feature_distance if perceptual == "encoder" else lpips,
        }  # fmt: skip
        self.explained = type(self).explained | formulas  # type: ignore[misc]
        channels = self.spec.channels
        self.generator = vq.VQAutoencoder(
            Encoder(channels, hidden_channels, codebook_dim, downsample, res_blocks, norm),
            VectorQuantizer(codebook_size, codebook_dim, decay, kmeans_init=kmeans_init, revive_below=revive_below,
                            warmup_steps=codebook_warmup, rate=rate),
            Decoder(channels, hidden_channels, codebook_dim, downsample, res_blocks, norm, noise),
        )  # fmt: skip
        self.discriminator: nn.Module = (
            projected.ProjectedDiscriminator(d_width)
            if discriminator == "projected"
            else patch.PatchDiscriminator(channels, d_width, d_layers, d_norm)
        )
        self.register_buffer("code_counts", torch.zeros(codebook_size, dtype=torch.int64), persistent=False)
        self.register_buffer("adversarial_weight", torch.zeros(()))
        self.drawn: Tensor | None = None
        self.start_ema()
        if trained == "decoder":
            self.generator.encoder.requires_grad_(False)
            self.train()

    @staticmethod
    def refuses(  # type: ignore[override]
        downsample: int, size: int, d_layers: int, perceptual: str, perceptual_net: look.Net, discriminator: str
    ) -> str:
        """Why images of a size do not fit the networks."""
        if discriminator == "projected" and (why := projected.too_small(size)):
            return why
        if discriminator == "patch" and size < (least := patch.least_size(d_layers)):
            return (
                f"with model.d_layers={d_layers} judges images of at least {least} pixels, and data.size={size}; try "
                "model.d_layers=1"
            )
        if perceptual == "lpips" and size < (least := look.LEAST[perceptual_net]):
            return (
                f"with model.perceptual_net={perceptual_net} needs images of at least {least} pixels, and "
                f"data.size={size}; try model.perceptual=none"
            )
        return vq.too_odd(downsample, size)

    @staticmethod
    def problems(arguments: dict[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: no weights for the perceptual loss."""
        given = {"perceptual": "auto", "perceptual_net": "alexnet", "perceptual_encoder": None, **arguments}
        found = look.problems(given["perceptual"], given["perceptual_net"], given["perceptual_encoder"])
        if (prior := arguments.get("prior")) is not None and arguments.get("trained") != "decoder":
            found += [f"model.prior={prior} knows codes as they are, which model.trained=all changes; give "
                      "model.trained=decoder"]  # fmt: skip
        elif prior is not None and not Path(str(prior)).is_file():
            found += [f"model.prior={prior}: no such file; train one with model=pixelcnn model.first_stage=<that of "
                      "init_from>, and give its best.ckpt"]  # fmt: skip
        return found + projected.problems(arguments)

    def train(self, mode: bool = True) -> VQGAN:
        """Encoder and codebook stay in evaluation where the decoder alone is trained: no code moves."""
        super().train(mode)
        if self.hparams["trained"] == "decoder":
            for whole in (self.generator, self.parts):
                whole.encoder.eval()
                whole.quantizer.eval()
        return self

    def on_fit_start(self) -> None:
        """A short training is not all warm-up; and a decoder is trained for the codes that the averages make."""
        if self.hparams["trained"] == "decoder":
            if not int(self.parts.quantizer.num_updates):
                raise UserError("model.trained=decoder: there are no codes to decode yet; give init_from=<best.ckpt of "
                                "a run of model=vqgan>, or train model.trained=all")  # fmt: skip
            self.generator.encoder.load_state_dict(self.parts.encoder.state_dict())
            self.generator.quantizer.load_state_dict(self.parts.quantizer.state_dict())
        if self.hparams["prior"] is not None:
            self.drawn = drawn_codes(self.hparams["prior"], self.hparams["prior_samples"], self.parts).to(self.device)
        self.generator.quantizer.warmup_steps = min(self.hparams["codebook_warmup"], self.total_steps // 10)

    def discriminates(self) -> bool:
        """Whether the adversarial game has started."""
        start: int = round(self.hparams["adversarial_start"] * self.total_steps)
        return self.hparams["adversarial_start"] < 1 and self.global_step >= start

    def updates(self, parts: list[Batch]) -> list[list[Batch]]:
        """One, of all batches joined: codebook and adaptive weight are of all images of a step, and move once."""
        return [[Batch.join(parts)]]

    # -- losses ----------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> dict[str, Any]:
        """Reconstructions, what their codes cost, and the grain with which discriminator and perceptual loss see them.

        In training with a prior, as many images of its samples lie behind them. In evaluation codes are counted too.
        """
        further = None
        if self.drawn is not None and self.training and self.discriminates():
            which = uniform(self.seed, self.global_step, -1 - batch.index.to(self.device), 1)[:, 0] * len(self.drawn)
            further = self.drawn[which.long()]
        out = vq.autoencode(self.acting(), batch.image, further)
        if not self.training:
            codebook.count(self.code_counts, out.quantized.codes)
        made = {"x_hat": out.x_hat, "commitment": out.quantized.commitment, "noise": out.noise, "grain": 0.0}
        if out.noise is not None:
            with torch.no_grad():
                e = self.noise(batch, noise_draws(batch.image.shape[1], batch.image[0, 0].numel()))
                e = e.repeat(len(out.x_hat) // len(e), 1)
                made["grain"] = rician_draw(out.x_hat, *out.noise, e) - out.x_hat
        return made

    def discriminator_losses(self, batch: Batch, fakes: dict[str, Any]) -> dict[str, Tensor]:
        """Real images against their reconstructions, and against images of a prior's samples where there is one.

        `L_D = max(0, 1 - D(x)) + max(0, 1 + D(x_hat))`; + gamma R1
        """
        h = self.hparams
        verdicts = self.discriminator(torch.cat([batch.image, fakes["x_hat"] + fakes["grain"]]))
        real, *made = verdicts.split(len(batch))
        loss = torch.stack([DISCRIMINATOR[h["gan_loss"]](real, fake).mean() for fake in made]).mean()
        terms = {"real": real.mean(), "fake": torch.stack([fake.mean() for fake in made]).mean()}
        if h["r1_gamma"] and self.due(h["r1_every"]):
            terms["r1"] = r1(self.discriminator.forward, batch.image).mean()
            loss = loss + h["r1_every"] * h["r1_gamma"] * terms["r1"]
        return {"loss": loss, **terms}

    def generator_losses(self, batch: Batch, fakes: dict[str, Any]) -> dict[str, Tensor]:
        """Reconstruction, perceptual, commitment and adversarial loss (Esser et al. 2021, eq. 6 and 7).

        `L = L_rec + beta L_commit + lambda_adv lambda L_adv`, `L_rec = L_1 + lambda_ssim L_SSIM + lambda_perceptual
        L_perceptual`, `L_adv = -D(x_hat)`, `lambda = |grad L_rec| / (|grad L_adv| + 1e-6)` at the decoder's last layer

        What images lose and gain is differentiated up to the reconstruction, each once; from there one gradient goes
        on. In evaluation lambda is the training's last one.
        """
        h, x = self.hparams, batch.image
        x_hat, noise, own = fakes["x_hat"], fakes["noise"], slice(len(x))
        seen = x_hat.detach().requires_grad_(self.training)
        looks = seen + fakes["grain"]
        image = image_losses(seen[own], x, h["reconstruction"], h["lambda_ssim"])
        rec = image.pop("loss")
        if h["lambda_perceptual"] and h["perceptual"] != "none":
            image["perceptual"] = self.perceptual(looks[own], x).mean()
            rec = rec + h["lambda_perceptual"] * image["perceptual"]
        noise = None if noise is None else (noise[0][own], noise[1][own], noise[2])
        code = code_losses(x_hat[own], x, fakes["commitment"], noise, h["beta"])
        terms, plays = {**image, **code}, not self.training or self.discriminates()
        if plays:
            terms["adversarial"] = GENERATOR[h["gan_loss"]](self.discriminator(looks)).mean()
        if self.training:
            last: Any = self.generator.decoder.layers[-2].weight  # behind it only a rearrangement and the tanh
            adv = terms.get("adversarial")
            rec, weight = balanced(x_hat, seen, rec, adv, last, h["lambda_adv"], self._over_processes)
            self.adversarial_weight.copy_(weight)
        elif plays:
            rec = rec + h["lambda_adv"] * self.adversarial_weight * terms["adversarial"]
        if plays:
            terms["weight"] = self.adversarial_weight.clone()
        return {**terms, "loss": rec + code["loss"]}

    def _over_processes(self, gradients: Tensor) -> Tensor:
        """The mean of what all processes have."""
        if self.trainer.world_size == 1:
            return gradients
        mean: Any = self.trainer.strategy.reduce(gradients, reduce_op="mean")
        return torch.as_tensor(mean)

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages, the codebook's too, which as a buffer would be copied."""
        kept = self.parts.quantizer.embedding
        before = kept.clone()
        super()._average()
        if self.ema is not None:
            kept.copy_(before.lerp_(kept, 1 - self.decay()))

    @property
    def parts(self) -> vq.Parts:
        """The autoencoder that reconstructs and makes codes: the average, where one is kept."""
        averaged: vq.VQAutoencoder = self.averaged()
        return averaged

    # -- settings and checkpoints ------------------------------------------------------------------------------------

    def networks(self) -> list[nn.Module]:
        """What is trained, for compile; not the decoder's last layer, through which two losses are differentiated."""
        blocks = [m for m in self.generator.decoder.layers if isinstance(m, ResBlock)]
        return [self.generator.encoder, *blocks, self.discriminator]

    def adopted(self, content: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of a run that this one begins with: its autoencoder, and its discriminator if of one kind."""
        there: dict[str, Tensor] = content["state_dict"]
        if content["hyper_parameters"].get("discriminator", "patch") == self.hparams["discriminator"]:
            return there
        own = {k: v for k, v in self.state_dict().items() if k.startswith("discriminator.")}
        return {k: v for k, v in there.items() if not k.startswith("discriminator.")} | own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run keeps its loss."""
        self.perceptual.same_as(checkpoint["hyper_parameters"]["perceptual"])


def drawn_codes(prior: str, count: int, parts: vq.Parts) -> Tensor:
    """Samples of a prior over the codes of an autoencoder, of every condition that it knows equally many.

    Args:
        prior: checkpoint of a `pixelcnn`.
        count: samples; the same ones at every call.
        parts: whose codes these are to be.

    Returns:
        (count, h, w) int64.

    Raises:
        UserError: it is no prior, one of words, or of other codes.
    """
    model: Any = load_model(Path(prior))
    if not hasattr(model, "sample_codes"):
        raise UserError(
            f"model.prior={prior}: a {type(model).__name__}, which draws no codes; give one of model=pixelcnn"
        )
    if not same_codes(parts, model.first_stage.parts):
        raise UserError(f"model.prior={prior}: its codes are not those of init_from; give the prior that was "
                        "trained with model.first_stage=<that checkpoint>, or train one")  # fmt: skip
    log.info("model.prior: drawing codes of %d samples", count)
    seeds, known = _SEED + torch.arange(count), len(model.conditions())
    parts_of = zip(seeds.split(50), (seeds % known if known else seeds).split(50), strict=True)
    return torch.cat([model.sample_codes(s, label if known else None) for s, label in parts_of])

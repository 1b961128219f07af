"""VAE (Kingma & Welling 2014, arXiv:1312.6114): three architectures, likelihoods on 256 levels, a bound in bits."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt, MultipleOf
from torch import Tensor, nn
from torch.optim import Optimizer

from mri_synth.corruption import coarse_noise
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.draws import normal
from mri_synth.latent import slerp
from mri_synth.losses import elbo as terms
from mri_synth.losses.reconstruction import ssim_loss
from mri_synth.models.base import SynthModule
from mri_synth.models.latent_space import Encoded
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.vae import VAEDecoder, VAEEncoder

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
Count = Annotated[int, Ge(0)]
Decay = Annotated[float, Ge(0), Lt(1)]
COLLAPSED, YOUNG = 0.05, 20
"""Share of active latent numbers below which a posterior counts as collapsed, and steps before which none does."""
_FASTER = 10.0
"""Learning rate of the scale over that of the networks: it must follow the error down, or the bound is off balance."""
_ENCODED = 2048
"""Training images at most that the prior is fitted to, spread evenly over all."""
_EVALUATION, _FIXED = -1, 0
"""Epoch and seed of the noise of validation and test: an item has the same z whenever it is scored."""


class VAE(SynthModule):
    """Encoder, normal posterior, decoder. Minimises -log p(x | z) + beta KL per pixel (Higgins et al. 2017 for beta).

    The checkpoint is chosen by the bound itself (beta 1, no free bits), which can be compared between runs of any beta,
    latent size or likelihood here; the loss cannot.

    Args:
        spec: what the data know of themselves.
        architecture: "plain" convolutions, "residual" blocks, or "spatial": blocks and a latent map.
        latent_dim: latent numbers per image; of the map c * h * w together, with h = w = size / downsample.
        hidden_channels: width at the lowest resolution.
        res_blocks: residual blocks at every resolution; `plain` has none.
        downsample: image side over that of the lowest resolution.
        norm: of the residual blocks.
        likelihood: "gaussian", or "l1_ssim": the Laplace distribution (absolute error), and SSIM in the loss beside it.
        scale: standard deviation (mean absolute deviation with l1_ssim) of a pixel on [-1, 1], one for all.
        learn_scale: learn it (Rybkin et al. 2021); `scale` is where it starts.
        lambda_ssim: weight of 1 - SSIM beside nats per pixel; only with l1_ssim.
        prior: what samples are drawn from: "standard" normal numbers, the prior of the bound; or "fitted", the normal
            distribution of the encoded training images (Ghosh et al. 2020, arXiv:1903.12436), fitted at every
            validation and kept in the checkpoint. Training, ELBO and bits/dim are the same with both.
        beta: weight of the divergence.
        kl_warmup: steps in which that weight rises from 0; at most a third of all.
        free_bits: nats of every latent number that cost the same whether they are used or not.
        corruption: strength of coarse noise on what the encoder sees in training, which the decoder learns to leave
            out (Kascenas et al. 2022): for anomaly maps; the bound is that of clean images.
        choose_by: what chooses best.ckpt: "elbo", which can be compared between runs, or "ssim" of the reconstructions,
            where these are what is wanted; with a small beta the bound is best long before.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    activity: Tensor
    count: Tensor
    moments: Tensor
    prior_mean: Tensor
    prior_factor: Tensor
    monitor: ClassVar[tuple[str, str]] = ("val/elbo", "max")
    explained: ClassVar[dict[str, Any]] = {
        "gaussian_log_likelihood": terms.gaussian_log_likelihood, "active_units": terms.active_units,
        "laplace_log_likelihood": terms.laplace_log_likelihood, "kl": terms.kl_gaussian, "elbo": terms.elbo,
        "bits_per_dim": terms.bits_per_dim, "ssim_loss": ssim_loss,
    }  # fmt: skip

    protocols: ClassVar[dict[str, str]] = {
        "elbo": "lower bound on log p(x) under the standard normal prior, whatever samples are drawn from, and the "
        "likelihood on 256 levels, nats per image, one z each: higher is better; comparable between runs on the same "
        "data, size and likelihood",
        "bits_per_dim": "upper bound on -log2 p(x) per pixel: the bound above, in bits; not beside the exact bits of a "
        "PixelCNN",
        "active_units": "latent numbers whose posterior mean has a variance above 0.01 (Burda et al. 2016)",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        architecture: Literal["plain", "residual", "spatial"] = "residual",
        latent_dim: Annotated[int, Ge(1)] = 128,
        hidden_channels: Annotated[int, Ge(4), MultipleOf(4)] = 128,
        res_blocks: Count = 1,
        downsample: Literal[4, 8, 16, 32] = 16,
        norm: Literal["none", "group"] = "none",
        likelihood: Literal["gaussian", "l1_ssim"] = "gaussian",
        scale: PositiveFloat = 0.5,
        learn_scale: bool = True,
        lambda_ssim: NonNegative = 1.0,
        prior: Literal["standard", "fitted"] = "standard",
        beta: NonNegative = 1.0,
        kl_warmup: Count = 0,
        free_bits: NonNegative = 0.0,
        corruption: NonNegative = 0.0,
        choose_by: Literal["elbo", "ssim"] = "elbo",
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        warmup_steps: Count = 0,
        lr_final: NonNegative = 1.0,
    ) -> None:
        super().__init__(spec)
        sizes = (self.spec.channels, self.spec.size, hidden_channels, latent_dim, downsample, res_blocks, norm)
        self.encoder = VAEEncoder(architecture, *sizes)
        self.decoder = VAEDecoder(architecture, *sizes)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)
        self.kl_warmup = kl_warmup
        self.monitor = (f"val/{choose_by}", "max")  # type: ignore[misc]
        self.register_buffer("activity", torch.zeros(latent_dim))
        if prior == "fitted":
            self.register_buffer("prior_mean", torch.zeros(latent_dim))
            self.register_buffer("prior_factor", torch.eye(latent_dim))
        self.register_buffer("count", torch.zeros(()), persistent=False)
        self.register_buffer("moments", torch.zeros(2, latent_dim), persistent=False)

    @staticmethod
    def refuses(architecture: str, latent_dim: int, downsample: int, size: int) -> str:  # type: ignore[override]
        """Why images of a size cannot be encoded into so many numbers.

        Args:
            architecture: plain, residual or spatial.
            latent_dim: latent numbers per image.
            downsample: image side over that of the lowest resolution.
            size: image side, pixels.

        Returns:
            The reason with the way out; "" when they can.
        """
        if size % downsample:
            near = max(round(size / downsample), 1) * downsample
            return (f"halves images down to 1/{downsample}, and data.size={size} is no multiple of that; "
                    f"try data.size={near}")  # fmt: skip
        side = size // downsample
        if architecture != "spatial" or latent_dim % side**2 == 0:
            return ""
        near = max(round(latent_dim / side**2), 1) * side**2
        return (f"with architecture=spatial keeps a map of {side} x {side} places, and model.latent_dim={latent_dim} "
                f"is no multiple of {side**2}; try model.latent_dim={near}, or another model.downsample")  # fmt: skip

    def on_fit_start(self) -> None:
        """A short training is not all warm-up."""
        self.kl_warmup = min(self.hparams["kl_warmup"], self.total_steps // 3)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Negative log-likelihood and weighted divergence, in nats per pixel (D of them).

        `L = (-log p(x | z) + beta sum_j max(free_bits, KL_j)) / D`, + lambda_ssim L_SSIM with l1_ssim: SSIM is no
        likelihood, and ELBO and bits/dim are those of the Laplace distribution alone

        The other values are nats per image. In evaluation z is the same for an item every time, beta has its full
        weight, and posterior means are counted for the active units.
        """
        h, x = self.hparams, batch.image
        seen = coarse_noise(x, h["corruption"], self.seed, self.global_step, batch.index) if self.training else x
        mu, logvar = self.encode(seen)
        seed, when = (self.seed, self.global_step) if self.training else (_FIXED, _EVALUATION)
        noise = normal(seed, when, batch.index.to(x.device), mu.shape[1])
        mean = self.decoder(mu + torch.exp(0.5 * logvar) * noise)
        gaussian = h["likelihood"] == "gaussian"
        likelihood = terms.gaussian_log_likelihood if gaussian else terms.laplace_log_likelihood
        log_likelihood, kl = likelihood(mean, x, self.log_scale), terms.kl_gaussian(mu, logvar)
        bound, pixels = terms.elbo(log_likelihood, kl), x[0].numel()
        weight = h["beta"] * (self.warmup_factor() if self.training else 1.0)
        loss = (weight * terms.free_bits(kl, h["free_bits"]) - log_likelihood).mean() / pixels
        values = {likelihood.__name__: log_likelihood.mean(), "kl": kl.sum(1).mean(), "elbo": bound.mean(),
                  "bits_per_dim": terms.bits_per_dim(bound, pixels).mean(),
                  "scale": self.log_scale.detach().exp()}  # fmt: skip
        if not gaussian and h["lambda_ssim"]:
            values["ssim_loss"] = ssim_loss(mean.clamp(-1, 1), x).mean()
            loss = loss + h["lambda_ssim"] * values["ssim_loss"]
        if not self.training:
            self.count += len(mu)
            self.moments += torch.stack([mu.sum(0), mu.square().sum(0)])
        return {"loss": loss, **values}

    def warmup_factor(self) -> float:
        """Share of beta at this step: from 1 / kl_warmup up to 1."""
        return min((self.global_step + 1) / self.kl_warmup, 1.0) if self.kl_warmup else 1.0

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of images.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            Mean and log variance, (B, latent_dim) float32 each.
        """
        mu, logvar = self.encoder(image)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Images of latent numbers: the location of the likelihood, without its noise.

        Args:
            z: (B, latent_dim).

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        mean: Tensor = self.decoder(z)
        return mean.clamp(-1, 1)

    def reconstruct(self, image: Tensor) -> Tensor:
        """Decode the posterior mean."""
        return self.decode(self.encode(image)[0])

    def sample(self, seeds: Tensor, label: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Decode draws from the prior, standard or fitted; the pixel noise of the likelihood is not added.

        Args:
            seeds: (n,) int64; one seed gives one image.
            label: not used: the method knows no classes.
            temperature: standard deviation of the latent numbers over the prior's.

        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        return self.from_latent(self.latent(seeds), label, temperature=temperature)

    def latent(self, seeds: Tensor) -> Tensor:
        """Standard normal numbers, which `from_latent` turns into draws from the prior.

        Args:
            seeds: (n,) int64.

        Returns:
            (n, latent_dim) float32.
        """
        return normal(0, 0, seeds.to(self.log_scale.device), self.hparams["latent_dim"])

    def from_latent(self, z: Tensor, label: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
        """Decode numbers that are standard normal where images are like those of the prior.

        Args:
            z: (n, latent_dim).
            label: not used.
            temperature: as in `sample`.

        Returns:
            (n, C, H, W) float32 in [-1, 1].
        """
        z = temperature * z
        return self.decode(self.prior_mean + z @ self.prior_factor.T if self._fitted else z)

    def whitened(self, mu: Tensor) -> Tensor:
        """What `from_latent` makes latent numbers of: of a fitted prior `L^-1 (mu - m)`, else the numbers themselves.

        Args:
            mu: (n, latent_dim), such as posterior means.

        Returns:
            (n, latent_dim) float32.
        """
        if not self._fitted:
            return mu
        z: Tensor = torch.linalg.solve_triangular(self.prior_factor, (mu - self.prior_mean).T, upper=False).T
        return z

    @property
    def _fitted(self) -> bool:
        return bool(self.hparams["prior"] == "fitted")

    @property
    def origin(self) -> str:
        """Which prior samples are drawn from, and which one the bound is of."""
        if not self._fitted:
            return "Samples are drawn from the standard normal prior, that of ELBO and bits/dim."
        return ("Samples are drawn from a normal distribution with full covariance that was fitted to the encoded "
                "training images (Ghosh et al. 2020), not from the standard normal prior: ELBO and bits/dim are those "
                "of the standard one, and say nothing of it.")  # fmt: skip

    def on_validation_epoch_start(self) -> None:
        """Fit the prior to training images as they are encoded now, so that checkpoint, pictures and scores have it.

        Every process encodes the same images, so that all have the same prior, however many they are.
        """
        if not self._fitted or self.trainer.state.fn != "fit":
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:  # loaders alone
            return
        items = data.view("train")
        count = min(len(items), _ENCODED)
        chosen = [k * len(items) // count for k in range(count)]
        with self.trainer.precision_plugin.forward_context():
            codes = [self.encode(items.__getitems__(chosen[at : at + 64]).image.to(self.device))
                     for at in range(0, count, 64)]  # fmt: skip
        mu, logvar = (torch.cat(part).cpu() for part in zip(*codes, strict=True))
        if torch.isfinite(mu).all() and torch.isfinite(logvar).all():
            mean, factor = terms.aggregate_normal(mu, logvar)
            self.prior_mean.copy_(mean)
            self.prior_factor.copy_(factor)

    def latent_space(self) -> Encoded:
        """Latent numbers, which images can be encoded to."""
        return Encoded(self)

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Originals, reconstructions, samples; from item 0 to item 1; and item 0 along the most active number.

        That number goes three standard deviations of the prior to either side of the prior's mean.
        """
        rows = super().visuals(batch)
        mu = self.encode(batch.image)[0]
        ways = torch.linspace(0, 1, len(mu), device=mu.device)
        traversal, most = mu[:1].repeat(len(mu), 1), self.activity.argmax()
        traversal[:, most] = 6 * ways - 3
        if self._fitted:
            traversal[:, most] = self.prior_mean[most] + self.prior_factor[most].norm() * traversal[:, most]
        z = self.whitened(mu)
        rows["interpolation"] = self.from_latent(slerp(z[:1], z[1:2] if len(z) > 1 else z[:1], ways[:, None]))
        rows["traversal"] = self.decode(traversal)
        return rows

    def on_validation_epoch_end(self) -> None:
        """Scores, active units, and the alarm of a collapsed posterior."""
        super().on_validation_epoch_end()
        active = self._log_active("val")
        trained = self.global_step >= max(self.kl_warmup, self.total_steps // 3, YOUNG)
        if trained and active < COLLAPSED * len(self.activity):
            self.alarm(
                f"posterior collapse: {active} of {len(self.activity)} latent numbers are active at step "
                f"{self.global_step}; samples will look alike. Remedies, in this order: a longer model.kl_warmup, "
                "model.free_bits=0.05, a lower model.beta, a smaller model.latent_dim"
            )

    def on_test_epoch_end(self) -> None:
        """Scores and active units."""
        super().on_test_epoch_end()
        self._log_active("test")

    def _log_active(self, split: str) -> int:
        """Logs the number of active units over all images of the split; the next epoch counts anew."""
        packed = torch.cat([self.count[None], self.moments.flatten()])
        reduced = self.trainer.strategy.reduce(packed, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        first, second = (reduced[1:] / reduced[0].clamp(min=1)).view(2, -1)
        self.activity.copy_((second - first.square()).clamp(min=0))
        self.count.zero_()
        self.moments.zero_()
        active = terms.active_units(self.activity)
        self.log(f"{split}/active_units", active)
        return int(active)

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        groups = [{"params": [*self.encoder.parameters(), *self.decoder.parameters()]}]
        if h["learn_scale"]:
            groups.append({"params": [self.log_scale], "lr": _FASTER * h["lr"]})
        optimizer: Optimizer = self.adam(groups, h["lr"], h["betas"])
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

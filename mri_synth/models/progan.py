"""Progressive GAN (Karras et al. 2018, arXiv:1710.10196): a generator and a discriminator that grow from 4x4 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.diffaugment import DiffAugment, Policy
from mri_synth.draws import uniform
from mri_synth.losses import adversarial
from mri_synth.losses.adversarial import GANLoss
from mri_synth.models.conditions import Condition
from mri_synth.models.gan import GANModule
from mri_synth.models.growth import Growth, Phase, shares
from mri_synth.models.latent import FromLatent
from mri_synth.networks.progan import FIRST, ProDiscriminator, ProGenerator, enlarged, halved, stages

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
_PENALTY = 1 << 38
"""Seed of where a gradient penalty is taken, away from that of the latents."""
KEPT = 8
"""Seeds whose images are kept at the end of every stage, for the pictures."""


class ProGAN(FromLatent, GANModule):
    """Learns 4x4 pixels first, then twice as many at a time, each stage faded in over the one below.

    Lists have one value for each of the resolutions 4, 8, 16, ..., and the last one given holds for all that follow.
    The growth is a function of the number of images seen alone, which is in the checkpoint. Before the last stage
    samples are enlarged to full size by repeating pixels, and so is what pictures and judgements see; val/kid, by which
    best.ckpt is chosen, and the watch on mode collapse begin with the full size. As in the paper's code, Adam's moments
    start anew when a fade begins and when it ends.

    Args:
        spec: what the data know of themselves.
        latent_dim: length of z.
        fmap_base: a stage of side r has 2 fmap_base / r channels,
        fmap_max: but no more than these.
        condition: what a sample can be asked for, as `DCGAN`'s.
        fade_kimg: thousands of images over which each resolution is faded in; that of 4x4 is not used.
        steady_kimg: thousands of images for which it then stays; that of the full size is not used.
        minibatch: images of one update at each resolution, over all processes. A batch of the loader is shared out
            among as many updates as that makes, and counted as one step; more than it has are not to be had.
        lr_factor: on both learning rates at each resolution.
        group: images whose standard deviation the discriminator sees; 1: it sees none.
        gan_loss: logistic (another name of it: bce), hinge, lsgan, or wgan with its gradient penalty.
        r1_gamma: weight of R1 at full size, of all losses but wgan; at a smaller side less, as its area; 0: none.
        r1_every: updates between two R1 penalties, each weighted by so much more.
        gp_lambda: weight of wgan's gradient penalty.
        eps_drift: weight of wgan's penalty on large values.
        augment: differentiable augmentation, as `DCGAN`'s.
        augment_strength: of the same.
        augment_adaptive: of the same.
        n_critic: steps per update of the generator; at those that are left out all updates are the discriminator's.
        ema_decay: of the generator's average at each update, which samples; less where a stage begins; 0: no average.
        lr_g: Adam's learning rate of the generator, times `lr_factor`.
        lr_d: the same of the discriminator.
        betas: Adam's decay rates.
    """

    explained: ClassVar[dict[str, Any]] = {
        "d_r1": adversarial.r1, "d_gp": adversarial.gradient_penalty, "d_drift": adversarial.drift,
    }  # fmt: skip

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        latent_dim: PositiveInt = 512,
        fmap_base: PositiveInt = 8192,
        fmap_max: PositiveInt = 512,
        condition: Condition = "none",
        fade_kimg: Annotated[list[NonNegative], Len(1)] = [600.0],  # noqa: B006 (never changed; a list in the YAML)
        steady_kimg: Annotated[list[NonNegative], Len(1)] = [600.0],  # noqa: B006
        minibatch: Annotated[list[PositiveInt], Len(1)] = [16],  # noqa: B006
        lr_factor: Annotated[list[PositiveFloat], Len(1)] = [1.0],  # noqa: B006
        group: PositiveInt = 4,
        gan_loss: GANLoss = "logistic",
        r1_gamma: NonNegative = 0.2,
        r1_every: PositiveInt = 16,
        gp_lambda: NonNegative = 10.0,
        eps_drift: NonNegative = 0.001,
        augment: list[Policy] | None = None,
        augment_strength: Annotated[float, Ge(0), Le(1)] = 1.0,
        augment_adaptive: bool = False,
        n_critic: PositiveInt = 1,
        ema_decay: Decay = 0.999,
        lr_g: PositiveFloat = 1e-3,
        lr_d: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.0, 0.99),
    ) -> None:
        super().__init__(spec, n_critic, ema_decay)
        channels, size, classes = self.spec.channels, self.spec.size, len(self.conditions())
        self.growth = Growth.of(stages(size), fade_kimg, steady_kimg, minibatch, lr_factor)
        self.generator = ProGenerator(latent_dim, channels, size, fmap_base, fmap_max, classes)
        self.discriminator = ProDiscriminator(channels, size, fmap_base, fmap_max, group, classes)
        self.draws = latent_dim
        self.augment = DiffAugment(augment or [], augment_strength, augment_adaptive)
        formulas = type(self).explained | {"d_loss": adversarial.DISCRIMINATOR[gan_loss]}
        self.explained = formulas | {"g_loss": adversarial.GENERATOR[gan_loss]}  # type: ignore[misc]
        self.seen = self.made = self.began = 0
        for stage in range(self.growth.last.stage):
            blank = torch.zeros(KEPT, channels, FIRST << stage, FIRST << stage, dtype=torch.uint8)
            self.register_buffer(f"kept_{FIRST << stage}", blank)
        self.start_ema()

    # -- growth --------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the growth stands."""
        return self.growth.phase(self.seen)

    @property
    def grown(self) -> bool:
        """Whether images have their full size, faded in."""
        return self.phase == self.growth.last

    def go_to_costliest(self) -> str:
        """Full size, faded in."""
        self.seen = self.growth.whole
        return f"{self.phase}, the last stage"

    def get_extra_state(self) -> Tensor:
        """Images seen, updates made, and made before this stage: they belong to the weights, which are for a stage."""
        return torch.tensor([self.seen, self.made, self.began])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.seen, self.made, self.began = state.tolist()

    def on_train_start(self) -> None:
        """Says so if the training will end before images have their full size."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data is None:
            return
        step = self.accumulate * data.batch_size * self.trainer.world_size
        images = self.seen + (self.total_steps - self.global_step) * step
        self._short(self.growth.phase(images), images)

    def on_train_end(self) -> None:
        """Says so if it ended before, as limits on time and sentinels can bring about."""
        self._short(self.phase, self.seen)

    def _short(self, end: Phase, images: int) -> None:
        """An alarm where a phase, after so many images, is not the last one."""
        if end != self.growth.last:
            self.alarm(f"the growth ends too soon: at {end}, after {images / 1000:g} kimg; full size takes "
                       f"{self.growth.whole / 1000:g}. Samples are enlarged. Remedies, in this order: a larger "
                       "trainer.max_epochs or trainer.max_minutes, a smaller model.steady_kimg and "
                       "model.fade_kimg")  # fmt: skip

    def updates(self, parts: list[Batch]) -> Iterator[list[Batch]]:
        """The updates that this resolution's minibatch makes of a step's images, each of them at its own fade."""
        whole, most = Batch.join(parts), max(map(len, parts))
        optimizers, lr = self.trainer.optimizers, (self.hparams["lr_d"], self.hparams["lr_g"])
        minibatch, world = self.growth.minibatch[self.phase.stage], self.trainer.world_size
        for here in shares(len(whole), minibatch, world, self.hparams["group"]):
            phase = self.phase
            for optimizer, rate in zip(optimizers, lr, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.growth.lr_factor[phase.stage]
            count = -(-(here.stop - here.start) // most)  # every count-th image, as processes: the whole's groups
            yield [whole.part(slice(here.start + part, here.stop, count)) for part in range(count)]
            self.seen += (here.stop - here.start) * world
            self.made += 1
            if (self.phase.stage, self.phase.fading) != (phase.stage, phase.fading):
                for optimizer in optimizers:
                    optimizer.state.clear()
                if self.generator._compiled_call_impl is not None:  # or its limit on graphs would be reached at 64x64
                    torch.compiler.reset()
            for stage in range(phase.stage, self.phase.stage):
                self._keep(stage)
                self.began = self.made

    def end_step(self) -> None:
        """Logs where the growth stands."""
        if (self.global_step + 1) % self.log_every_steps == 0:
            phase = self.phase
            values = {"kimg": self.seen / 1000, "resolution": float(phase.resolution), "alpha": phase.alpha}
            self.log_dict({f"train/{k}": v for k, v in values.items()})

    @torch.no_grad()
    def _keep(self, stage: int) -> None:
        """The images of the first seeds at the end of a stage."""
        training = self.training
        self.eval()
        z, label = self.opened(self.latent(torch.arange(KEPT)), None)
        images = self.averaged()(z, stage, 1.0, label)
        self.get_buffer(f"kept_{FIRST << stage}").copy_((127.5 * images.clamp(-1, 1) + 127.5).round())
        self.train(training)

    # -- losses --------------------------------------------------------------------------------------------------------

    def real(self, image: Tensor) -> Tensor:
        """Images as this phase's discriminator sees them: reduced by means of pixels, and faded as the fakes are.

        Args:
            image: (B, C, size, size).

        Returns:
            (B, C, side, side) of the stage.
        """
        phase = self.phase
        if factor := image.shape[-1] // phase.resolution - 1:
            image = avg_pool2d(image, factor + 1)
        return torch.lerp(enlarged(halved(image)), image, phase.alpha) if phase.fading else image

    def generate(self, batch: Batch) -> Tensor:
        """Images (B, C, side, side) of this phase, of the batch's noise and classes."""
        phase, z = self.phase, self.noise(batch, self.draws)
        out: Tensor = self.acting()(z, phase.stage, phase.alpha, self.condition(batch))
        return out

    def discriminator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """Real against generated, and in training R1 every `r1_every` updates, or the penalties of WGAN-GP at each.

        `L_D + r1_gamma (side / size)^2 R1`; with wgan `L_D + gp_lambda GP + eps_drift D(x)^2`

        Penalties see what augmentation makes of an image, and their gradient is at the image before it, as `DCGAN`'s.
        """
        h, phase, label, image = self.hparams, self.phase, self.condition(batch), self.real(batch.image)
        real, fake = self._judged(self.augmented(image, batch, 0), self.augmented(fakes, batch, 1), label)
        loss = adversarial.DISCRIMINATOR[h["gan_loss"]](real, fake).mean()
        losses = {"loss": loss, "real": real.mean(), "fake": fake.mean()}
        self.observe(real)
        if not self.training:
            return losses

        def critic(x: Tensor) -> Tensor:  # not by a call, which may be compiled and then has one derivative only
            return self.discriminator.forward(self.augmented(x, batch, 0), phase.stage, phase.alpha, label)

        if h["gan_loss"] == "wgan":
            share = uniform(self.seed + _PENALTY, self.global_step, batch.index.to(image.device), 1)[:, 0]
            losses["gp"] = adversarial.gradient_penalty(critic, image, fakes, share).mean()
            losses["drift"] = adversarial.drift(real).mean()
            losses["loss"] = loss + h["gp_lambda"] * losses["gp"] + h["eps_drift"] * losses["drift"]
        elif h["r1_gamma"] and (self.made + 1) % h["r1_every"] == 0:
            losses["r1"] = adversarial.r1(critic, image).mean()
            gamma = h["r1_gamma"] * (phase.resolution / self.spec.size) ** 2
            losses["loss"] = loss + h["r1_every"] * gamma * losses["r1"]
        return losses

    def generator_losses(self, batch: Batch, fakes: Tensor) -> dict[str, Tensor]:
        """What the updated discriminator says of the same images.

        `L_G`
        """
        phase, seen = self.phase, self.augmented(fakes, batch, 2)
        logits = self.discriminator(seen, phase.stage, phase.alpha, self.condition(batch))
        return {"loss": adversarial.GENERATOR[self.hparams["gan_loss"]](logits).mean()}

    def _judged(self, real: Tensor, fake: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of both; in one pass where that keeps them in groups of their own: they then take turns."""
        phase, group = self.phase, self.hparams["group"]
        if len(real) % group:
            real, fake = (self.discriminator(x, phase.stage, phase.alpha, label) for x in (real, fake))
            return real, fake
        both = torch.stack([real, fake], 1).flatten(0, 1)
        label = None if label is None else label.repeat_interleave(2)
        logits = self.discriminator(both, phase.stage, phase.alpha, label)
        return logits[::2], logits[1::2]

    def decay(self) -> float:
        """Decay of the average at this update: at every stage from 0.1 up to `ema_decay`, or it would hold the random
        start of the new layers for longer than a short stage lasts."""
        t = self.made - self.began
        return min(self.ema_decay, (1 + t) / (10 + t))

    # -- samples -------------------------------------------------------------------------------------------------------

    def images(self, network: Any, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """What a generator makes of latent numbers by now; enlarged where it has not yet grown."""
        phase = self.phase
        image: Tensor = network(z, phase.stage, phase.alpha, label, truncation)
        return enlarged(image, self.spec.size // phase.resolution)

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Originals, samples of their classes, and the same seeds, of any class, at the end of every stage."""
        n, phase = len(batch), self.phase
        sample = self.sample(torch.arange(n, device=self.device), self.condition(batch))
        rows = {"original": batch.image, f"sample ({phase})": sample}
        for stage in range(phase.stage - 1, -1, -1):
            kept = self.get_buffer(f"kept_{FIRST << stage}")[:n] / 127.5 - 1
            blank = kept.new_full((n - len(kept), *kept.shape[1:]), -1)
            rows[f"at the end of {Phase(stage)}"] = torch.cat([kept, blank])
        return rows

"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593): two contrasts of different people, translated into each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.views import Images, Unpaired
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.adversarial import DISCRIMINATOR, GENERATOR
from mri_synth.losses.cycle import cycle_consistency, identity, structure
from mri_synth.metrics.ssim import ssim
from mri_synth.metrics.structure import unexplained
from mri_synth.models.gan import GANModule
from mri_synth.models.replay import ReplayPool
from mri_synth.networks import generators, layers, patch, projected

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]

_MOST_PASSES = 3
"""Images of an item that pass through a generator in a step."""


class CycleGAN(GANModule):
    """A generator each way, a discriminator for each contrast, and the way there and back in place of pairs.

    Args:
        spec: what the data know of themselves; of the unpaired view.
        generator: "unet" (down to one pixel), "attention_unet", "resnet9" or "local".
        width: channels of the generators' first layer.
        norm: of the generators.
        dropout: share of channels dropped in training, where the published generators have dropout.
        discriminator: "patch", on pixels; "projected", on what a frozen AlexNet sees.
        gan_loss: of the adversarial game.
        d_width: channels of the discriminators' first layer, or of the projected ones' heads.
        d_layers: of patches: their layers of stride 2; with 3 a verdict is on 70 x 70 pixels.
        d_norm: of their inner layers.
        lambda_cycle: weight of the cycle loss.
        lambda_identity: weight of the identity loss, as a share of `lambda_cycle`; 0: it is not computed.
        lambda_structure: weight of the structure loss, which keeps anatomy where it is; 0: it is not computed.
        structure_rise: share of the steps over which that weight rises from 0, in a straight line; 0: it is whole.
        mirror: generators see each image mirrored at random, left-right and up-down, in every pass anew, and what they
            make is mirrored back. A shift that one makes and the other takes back is then a fault in half of the
            passes or more, unless it follows the anatomy, which a generator of small sight cannot tell from its mirror.
        pool_size: generated images kept, of which the discriminators see some again; 0: none.
        lr_g: learning rate of the generators' Adam.
        lr_d: of the discriminators'.
        betas: decay rates of Adam's moments.
        decay_from: share of the steps after which both learning rates fall linearly to 0; 1: constant.
        ema_decay: of the average of the generators, which translates; 0: no average.
    """

    explained: ClassVar[dict[str, Any]] = {
        "g_cycle": cycle_consistency, "g_identity": identity, "g_structure": structure, "cycle_ssim": ssim,
        "made_up": unexplained, "made_up_real": unexplained,
    }  # fmt: skip

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generator: generators.Kind = "resnet9",
        width: PositiveInt = 64,
        norm: layers.Norm = "instance",
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        discriminator: Literal["patch", "projected"] = "patch",
        gan_loss: Literal["lsgan", "bce", "logistic", "hinge"] = "lsgan",
        d_width: PositiveInt = 64,
        d_layers: PositiveInt = 3,
        d_norm: patch.Norm = "instance",
        lambda_cycle: NonNegative = 10.0,
        lambda_identity: NonNegative = 0.5,
        lambda_structure: NonNegative = 0.0,
        structure_rise: Share = 0.0,
        mirror: bool = False,
        pool_size: Annotated[int, Ge(0)] = 50,
        lr_g: PositiveFloat = 2e-4,
        lr_d: PositiveFloat = 2e-4,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        decay_from: Share = 0.5,
        ema_decay: Decay = 0.0,
    ) -> None:
        super().__init__(spec, ema_decay=ema_decay)
        channels, size = self.spec.channels, self.spec.size
        self.g_ab, self.g_ba = (
            generators.generator(generator, channels, channels, size, width, norm, dropout) for _ in range(2)
        )
        self.d_a, self.d_b = (
            projected.ProjectedDiscriminator(d_width)
            if discriminator == "projected"
            else patch.PatchDiscriminator(channels, d_width, d_layers, d_norm)
            for _ in range(2)
        )
        self.pool_a, self.pool_b = (ReplayPool(pool_size, channels, size) for _ in range(2))
        formulas: dict[str, Any] = {"d_loss": DISCRIMINATOR[gan_loss], "g_adversarial": GENERATOR[gan_loss]}
        self.explained = type(self).explained | formulas | {"g_loss": self.generator_losses}  # type: ignore[misc]
        self.start_ema()

    @staticmethod
    def needs() -> type[Images]:  # type: ignore[override]
        """Two contrasts, not of the same slices."""
        return Unpaired

    @staticmethod
    def refuses(  # type: ignore[override]
        generator: generators.Kind, size: int, d_layers: int, discriminator: str
    ) -> str:
        """Why images of a size do not fit the networks.

        Args:
            generator: name.
            size: image side, pixels.
            d_layers: of the discriminators.
            discriminator: their kind.

        Returns:
            The reason with the way out; "" when they do.
        """
        if discriminator == "projected" and (why := projected.too_small(size)):
            return why
        if discriminator == "patch" and size < (least := patch.least_size(d_layers)):
            return (
                f"with model.d_layers={d_layers} judges images of at least {least} pixels, and data.size={size}; try "
                "model.d_layers=1"
            )
        return generators.reason(generator, size)

    problems = staticmethod(projected.problems)

    def generator_networks(self) -> list[nn.Module]:
        """From the first contrast to the second, and back."""
        return [self.g_ab, self.g_ba]

    def discriminator_networks(self) -> list[nn.Module]:
        """Of the first contrast, and of the second."""
        return [self.d_a, self.d_b]

    # -- losses ----------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """Translations both ways, and the ways back, in three passes: what one generator makes of several images is
        made in one, and the second of them takes the first's translations along.
        """
        a, b = batch.image, _target(batch)
        same = self.hparams["lambda_identity"] > 0 and self.hparams["lambda_cycle"] > 0
        ab, ba = self._passes(batch, 0), self._passes(batch, 1)
        out: dict[str, Tensor] = {}
        out["fake_b"], *rest = ab([a, b] if same else [a])
        out |= {"same_b": rest[0]} if same else {}
        sources = [b, out["fake_b"], a] if same else [b, out["fake_b"]]
        out["fake_a"], out["back_a"], *rest = ba(sources)
        out |= {"same_a": rest[0]} if same else {}
        (out["back_b"],) = ab([out["fake_a"]], first=2)
        return out

    def _passes(self, batch: Batch, which: int) -> Callable[..., list[Tensor]]:
        """A generator as a function of several batches, which are passed at once unless a batch norm would mix them,
        and of which of a step's passes the first of them is; dropout and mirrors of each pass are of item and step.
        """
        network: Any = self.acting(which)
        dropout, mirror = network.draws, 2 * self.hparams["mirror"]
        numbers: list[Any] = [None] * _MOST_PASSES
        if self.training and dropout + mirror:
            numbers = list(
                uniform(self.seed, self.global_step, _numbers(batch, which), _MOST_PASSES * (dropout + mirror))
                .chunk(_MOST_PASSES, 1)
            )  # fmt: skip
        noise = [n[:, :dropout] if n is not None and dropout else None for n in numbers]
        mirrors = [n[:, dropout:] if n is not None and mirror else None for n in numbers]

        def made(images: list[Tensor], first: int = 0) -> list[Tensor]:
            here = slice(first, first + len(images))
            images = [mirrored(x, m) for x, m in zip(images, mirrors[here], strict=True)]
            if self.hparams["norm"] == "batch":
                out = [network(x, n) for x, n in zip(images, noise[here], strict=True)]
            else:
                drawn = [n for n in noise[here] if n is not None]
                out = network(torch.cat(images), torch.cat(drawn) if drawn else None).chunk(len(images))
            return [mirrored(x, m) for x, m in zip(out, mirrors[here], strict=True)]

        return made

    def discriminator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Real against generated images of both contrasts; in training some of the generated are of earlier steps.

        `L = L_D(b, G_AB(a)) + L_D(a, G_BA(b))`
        """
        loss, reals, judged = {}, [], []
        sides = (("a", self.d_a, self.pool_a, batch.image), ("b", self.d_b, self.pool_b, _target(batch)))
        for which, (name, critic, pool, real) in enumerate(sides):
            fake = fakes[f"fake_{name}"]
            if self.training:
                fake = pool.exchange(fake, self.seed, self.global_step, _numbers(batch, 2 + which))
            verdicts = critic(torch.cat([real, fake])).chunk(2)
            loss[f"loss_{name}"] = DISCRIMINATOR[self.hparams["gan_loss"]](*verdicts).mean()
            reals.append(verdicts[0].mean())
            judged.append(verdicts[1].mean())
        total = loss["loss_a"] + loss["loss_b"]
        return {"loss": total, "real": sum(reals) / 2, "fake": sum(judged) / 2, **loss}

    def generator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """To be taken for real, to come back to where one was, and to leave alone what is there already.

        `L = L_adv + lambda_cycle (L_cyc + lambda_identity L_id) + lambda_structure L_str` (Zhu et al. 2017,
        arXiv:1703.10593, eq. 3 and section 5.2; the last as Yang et al. 2018, arXiv:1809.04536, with local
        correlation), `L_adv = w (L_G(G_AB(a)) + L_G(G_BA(b)))`; w is 2 with lsgan, whose L_G is half of the paper's
        (D - 1)^2
        """
        h, a, b = self.hparams, batch.image, _target(batch)
        verdicts = self.d_b(fakes["fake_b"]), self.d_a(fakes["fake_a"])
        adversarial = sum(GENERATOR[h["gan_loss"]](v).mean() for v in verdicts) * (2 if h["gan_loss"] == "lsgan" else 1)
        terms = {"adversarial": torch.as_tensor(adversarial)}
        terms["cycle"] = cycle_consistency(fakes["back_a"], a, fakes["back_b"], b).mean()
        loss = terms["adversarial"] + h["lambda_cycle"] * terms["cycle"]
        if "same_a" in fakes:
            terms["identity"] = identity(fakes["same_a"], a, fakes["same_b"], b).mean()
            loss = loss + h["lambda_cycle"] * h["lambda_identity"] * terms["identity"]
        if h["lambda_structure"] > 0:
            terms["structure"] = structure(fakes["fake_b"], a, fakes["fake_a"], b).mean()
            loss = loss + self.structure_weight * terms["structure"]
        return {"loss": loss, **terms}

    @property
    def structure_weight(self) -> float:
        """Weight of the structure loss: in training, between a source and its inverse lies a translation that is flat,
        which it would not let pass, so it rises while contrasts are found.
        """
        whole: float = self.hparams["lambda_structure"]
        rise: float = self.hparams["structure_rise"] if self.training else 0.0
        return whole * min(1.0, (self.global_step + 1) / (rise * self.total_steps)) if rise else whole

    # -- images ----------------------------------------------------------------------------------------------------

    def translate(self, source: Tensor, *, to: str | None = None) -> Tensor:
        """The other contrast of the same slices.

        Args:
            source: (B, 1, H, W) in [-1, 1].
            to: contrast that is wanted; None: `spec.goal`. The name of `spec.sources` goes back from the goal to it.

        Returns:
            (B, 1, H, W) float32 in [-1, 1].

        Raises:
            UserError: it was not trained on a contrast of this name.
        """
        known = {self.spec.goal: 0, self.spec.sources[0]: 1}
        if to is not None and to not in known:
            raise UserError(f"to={to}: this CycleGAN translates to {' or '.join(map(str, known))}")
        out: Tensor = self.averaged(known[self.spec.goal if to is None else to])(source)
        return out.float()

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Both directions, and the way there and back; where the second contrast is of other slices, its name says so.

        Args:
            batch: the same held-out items every time.

        Returns:
            Row name to (B, 1, H, W) in [-1, 1].
        """
        (a, b), x, y = (self.spec.sources[0], self.spec.goal), batch.image, _target(batch)
        same = batch.paired is None or bool(batch.paired.all())
        there, back = self.translate(x), self.translate(y, to=a)
        rows = {a: x, f"synthetic {b}": there, str(b) if same else f"{b} of others": y}
        rows |= {f"synthetic {a}" if same else f"synthetic {a} of them": back}
        return rows | {f"{a} there and back": self.translate(there, to=a), f"{b} there and back": self.translate(back)}


def mirrored(x: Tensor, numbers: Tensor | None) -> Tensor:
    """Images mirrored left-right where their first number is below a half, and up-down where their second is.

    Args:
        x: (B, C, H, W).
        numbers: (B, 2) in [0, 1); None: as they are.

    Returns:
        (B, C, H, W); done again with the same numbers, it is undone.
    """
    if numbers is None:
        return x
    for axis, number in zip((3, 2), numbers.unbind(1), strict=True):
        x = torch.where((number < 0.5)[:, None, None, None], x.flip(axis), x)
    return x


def _numbers(batch: Batch, use: int) -> Tensor:
    """(B,) numbers by which something is drawn of each item for one of four uses; augmentation counts from 0 up."""
    return -1 - (4 * batch.index.to(batch.image.device) + use)


def _target(batch: Batch) -> Tensor:
    if batch.target is None:
        raise ValueError("the unpaired view gives a target, the second contrast, with every batch")
    return batch.target

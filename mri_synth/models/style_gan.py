"""Style transfer GAN (seed 004's, in the form of PairedCycleGAN): a lesion is put on by a reference, and taken off."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.lesions import Lesions
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.views import Images
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.adversarial import DISCRIMINATOR, GENERATOR
from mri_synth.losses.reconstruction import l1
from mri_synth.losses.region import dilated, laid, placement, region_l1, region_style, soft_edges
from mri_synth.metrics.protocols import full_scores
from mri_synth.models.gan import GANModule
from mri_synth.networks import generators, patch

NonNegative = Annotated[float, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
PositiveInt = Annotated[int, Ge(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]

MARGIN = 3
"""Pixels around a lesion that neither count as inside nor as outside of it."""


class StyleTransferGAN(GANModule):
    """G(x, y) puts the lesion of a reference y on a healthy image x, F(y) takes it off; each learns to undo the other.

    The two are unlike, as in PairedCycleGAN (Chang et al. 2018), from which the report of seed 004 has them: G is told
    what and where by the reference and its mask, F finds the place itself. Both change a region with soft edges and
    leave all else as it is, exactly: F by a map of its own, which the masks teach it.

    What one makes for the other to undo is given without its graph: else each would learn to hide in the image what
    the other needs (Chu et al. 2017, arXiv:1712.02950).

    Args:
        spec: what the data know of themselves.
        generator: "unet" (down to one pixel), "attention_unet", "resnet9" or "local", of both.
        width: channels of the generators' first layer.
        norm: of the generators.
        edge: sigma of the Gaussian that smooths the edges of a region, pixels; 0: a hard edge.
        jitter: share of the side by which a lesion is moved at most, in training, from where the reference has it.
        gan_loss: of the adversarial game.
        d_width: channels of the discriminators' first layer.
        d_layers: their layers of stride 2.
        d_norm: of their inner layers.
        lambda_cycle: weight of the way there and back.
        lambda_identity: weight of leaving a healthy image as it is.
        lambda_outside: weight of leaving as it is what lies outside of the lesion.
        lambda_place: weight of finding the lesion.
        lambda_style: weight of the reference's grey values within the region.
        lr_g: learning rate of the generators' Adam.
        lr_d: of the discriminators'.
        betas: decay rates of Adam's moments.
        decay_from: share of the steps after which both learning rates fall linearly to 0; 1: constant.
        ema_decay: of the average of the generators, which is used; 0: no average.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/mae_inside", "min")
    explained: ClassVar[dict[str, Any]] = {"g_place": placement, "g_style": region_style}
    protocols: ClassVar[dict[str, str]] = {
        "mae_inside": "mean absolute error on [0, 1] within the lesion mask, of the image with its lesion taken off "
        "against the same slice without lesion; where that is not known, of a healthy slice on which a lesion was laid",
        "mae_before": "the same of the image with its lesion",
        "changed_outside": "mean absolute change on [0, 1] that taking the lesion off makes outside of the lesion mask "
        f"dilated by {MARGIN} pixels, over the whole frame",
        "changed_outside_foreground": "the same over the foreground (original above 10 % of the range) alone",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generator: generators.Kind = "unet",
        width: PositiveInt = 32,
        norm: Literal["instance", "none"] = "instance",
        edge: NonNegative = 1.0,
        jitter: Share = 0.1,
        gan_loss: Literal["lsgan", "bce", "logistic", "hinge"] = "lsgan",
        d_width: PositiveInt = 64,
        d_layers: PositiveInt = 2,
        d_norm: patch.Norm = "instance",
        lambda_cycle: NonNegative = 10.0,
        lambda_identity: NonNegative = 10.0,
        lambda_outside: NonNegative = 20.0,
        lambda_place: NonNegative = 5.0,
        lambda_style: NonNegative = 5.0,
        lr_g: PositiveFloat = 2e-4,
        lr_d: PositiveFloat = 2e-4,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        decay_from: Share = 0.5,
        ema_decay: Decay = 0.99,
    ) -> None:
        super().__init__(spec, ema_decay=ema_decay)
        size = self.spec.size
        self.put_on = generators.generator(generator, 3, 1, size, width, norm)
        self.take_off = generators.generator(generator, 1, 2, size, width, norm)
        self.d_healthy = patch.PatchDiscriminator(1, d_width, d_layers, d_norm)
        self.d_lesioned = patch.PatchDiscriminator(2, d_width, d_layers, d_norm)
        formulas: dict[str, Any] = {"d_loss": DISCRIMINATOR[gan_loss], "g_adversarial": GENERATOR[gan_loss]}
        self.explained = type(self).explained | formulas | {"g_loss": self.generator_losses}  # type: ignore[misc]
        self.start_ema()

    @staticmethod
    def needs() -> type[Images]:  # type: ignore[override]
        """Healthy slices, lesioned ones, and their masks."""
        return Lesions

    @staticmethod
    def refuses(generator: generators.Kind, size: int, d_layers: int) -> str:  # type: ignore[override]
        """Why images of a size do not fit the networks.

        Args:
            generator: name.
            size: image side, pixels.
            d_layers: of the discriminators.

        Returns:
            The reason with the way out; "" when they do.
        """
        if size < (least := patch.least_size(d_layers)):
            return (
                f"with model.d_layers={d_layers} judges images of at least {least} pixels, and data.size={size}; try "
                "model.d_layers=1"
            )
        return generators.reason(generator, size)

    def generator_networks(self) -> list[Any]:
        """What puts a lesion on, and what takes it off."""
        return [self.put_on, self.take_off]

    def discriminator_networks(self) -> list[Any]:
        """Of healthy images, and of lesioned ones with their masks."""
        return [self.d_healthy, self.d_lesioned]

    # -- losses ----------------------------------------------------------------------------------------------------

    def generate(self, batch: Batch) -> dict[str, Tensor]:
        """The lesion put on and taken off again, taken off and put on again, and taken off where there is none."""
        x, y, mask = _parts(batch)
        on, off = self.acting(0), self.acting(1)
        lent, place = self._lent(batch)
        fake_y = self._put(on, x, lent, place)
        made, seen, filled = self._take(off, torch.cat([y, x, fake_y.detach()]))
        fake_x, same_x, back_x = made.chunk(3)
        out = {"fake_y": fake_y, "fake_x": fake_x, "same_x": same_x, "back_x": back_x, "seen": seen}
        out |= {"lent": lent, "place": place}
        return out | {"filled_x": filled.chunk(3)[2], "back_y": self._put(on, fake_x.detach(), y, mask)}

    def _lent(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The reference and its mask as they are put on in training: moved a little, by item and step alone."""
        _, y, mask = _parts(batch)
        if not self.training or not self.hparams["jitter"]:
            return y, mask
        drawn = uniform(self.seed, self.global_step, -1 - batch.index.to(y.device), 2)
        pixels = torch.round((2 * drawn - 1) * self.hparams["jitter"] * self.spec.size)
        theta = torch.eye(2, 3, device=y.device).repeat(len(y), 1, 1)
        theta[:, :, 2] = 2 * pixels / self.spec.size
        grid = affine_grid(theta, list(y.shape), align_corners=False)
        moved = grid_sample(torch.cat([y.float() + 1, mask.float()], 1), grid, "nearest", "zeros", align_corners=False)
        return moved[:, :1] - 1, moved[:, 1:]

    def _put(self, network: Any, x: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        """x with the reference's region laid upon it, and changed there by the network, which makes it fit in."""
        edge, change = self.hparams["edge"], network(torch.cat([x, reference, 2 * mask.to(x.dtype) - 1], 1))
        return laid(x, reference + 2 * change, mask, edge)

    def _take(self, network: Any, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y changed where the network sees a lesion, its chance of one, and y changed everywhere; (B, 1, H, W) each."""
        change, seen = network(y).split(1, 1)
        chance = (seen + 1) / 2
        return y + soft_edges(chance, self.hparams["edge"]) * 2 * change, chance, y + 2 * change

    def discriminator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """Real against generated: healthy images, and lesioned ones beside their masks.

        `L = L_D(x, F(y)) + L_D((y, m), (G(x, y), m))`
        """
        x, y, mask = _parts(batch)
        loss, reals, judged = {}, [], []
        marked, made = torch.cat([y, mask], 1), torch.cat([fakes["fake_y"], fakes["place"]], 1)
        sides = (("healthy", self.d_healthy, x, fakes["fake_x"]), ("lesioned", self.d_lesioned, marked, made))
        for name, critic, real, fake in sides:
            verdicts = critic(torch.cat([real, fake])).chunk(2)
            loss[f"loss_{name}"] = DISCRIMINATOR[self.hparams["gan_loss"]](*verdicts).mean()
            reals.append(verdicts[0].mean())
            judged.append(verdicts[1].mean())
        total = loss["loss_healthy"] + loss["loss_lesioned"]
        return {"loss": total, "real": sum(reals) / 2, "fake": sum(judged) / 2, **loss}

    def generator_losses(self, batch: Batch, fakes: dict[str, Tensor]) -> dict[str, Tensor]:
        """To be taken for real, to undo what the other made, and to leave alone what is no lesion.

        `L = L_adv + lambda_cyc (L_cyc + L_fill) + lambda_id L_id + lambda_out L_out + lambda_place L_place +
        lambda_style L_style` (the asymmetric cycle of Chang et al. 2018, PairedCycleGAN; the weights are ours);
        `L_cyc = |F(G(x, y)) - x| + |G(F(y), y) - y|`, over the image and once more over the lesion; `L_fill` the first
        as if F saw a lesion everywhere, so that it learns what to put there before it finds the place;
        `L_id = |F(x) - x|`; `L_out = |F(y) - y|` outside of the lesion
        """
        h, (x, y, mask) = self.hparams, _parts(batch)
        place = fakes["place"]
        verdicts = self.d_healthy(fakes["fake_x"]), self.d_lesioned(torch.cat([fakes["fake_y"], place], 1))
        marks = torch.cat([mask, torch.zeros_like(mask), place])
        back_x, back_y, filled = fakes["back_x"], fakes["back_y"], fakes["filled_x"]
        terms = {
            "adversarial": GENERATOR[h["gan_loss"]](verdicts[0]).mean() + GENERATOR[h["gan_loss"]](verdicts[1]).mean(),
            "cycle": (l1(back_x, x) + region_l1(back_x, x, place) + l1(back_y, y) + region_l1(back_y, y, mask)).mean(),
            "filled": (l1(filled, x) + region_l1(filled, x, soft_edges(place, h["edge"]))).mean(),
            "identity": l1(fakes["same_x"], x).mean(),
            "outside": region_l1(fakes["fake_x"], y, 1 - dilated(mask, MARGIN)).mean(),
            "place": 3 * placement(fakes["seen"], marks).mean(),
            "style": region_style(fakes["fake_y"], fakes["lent"], place).mean(),
        }
        weights = {"adversarial": 1.0, "filled": h["lambda_cycle"]}
        loss = torch.stack([v * (weights[k] if k in weights else h[f"lambda_{k}"]) for k, v in terms.items()]).sum()
        return {"loss": loss, **terms}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of both sides, and what taking lesions off is worth.

        `L_D and L_G`, which are minimised in turns

        Args:
            batch: as the view offers it.

        Returns:
            d_<name>, g_<name>, and the names of `protocols` to scalar.
        """
        return super().losses(batch) | {k: v.mean() for k, v in self._removal(batch).items()}

    # -- scores ----------------------------------------------------------------------------------------------------

    def _probe(self, batch: Batch) -> Tensor:
        """(B, 1, H, W), lesioned images whose healthy twins are the batch's images."""
        x, y, mask = _parts(batch)
        made = laid(x, y, mask, self.hparams["edge"])
        return made if batch.paired is None else torch.where(batch.paired.view(-1, 1, 1, 1), y, made)

    def _removal(self, batch: Batch) -> dict[str, Tensor]:
        """Name in `protocols` to (B,), on [0, 1]."""
        (x, y, mask), probe = _parts(batch), self._probe(batch)
        made = self.reconstruct(torch.cat([probe, y])).chunk(2)
        outside = 1 - dilated(mask, MARGIN)
        return {"mae_inside": region_l1(made[0], x, mask) / 2, "mae_before": region_l1(probe, x, mask) / 2,
                "changed_outside": region_l1(made[1], y, outside) / 2,
                "changed_outside_foreground": region_l1(made[1], y, outside * (y > FOREGROUND)) / 2}  # fmt: skip

    def outcome(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Lesioned images with their lesions taken off, and their healthy twins.

        Args:
            batch: as the view offers it.

        Returns:
            Images, true images, and `index`.
        """
        return self.reconstruct(self._probe(batch)), batch.image, batch.index

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """Scores of each item of a test batch.

        Args:
            batch: as the view offers it.

        Returns:
            Name to (B,).
        """
        made, truth, _ = self.outcome(batch)
        return self._removal(batch) | full_scores(made, truth)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses as test/<key>, and the scores of each item, of all whether a twin is known or made."""
        scores = self.item_scores(batch)
        self._log_losses(batch, "test", scores)
        self.test_scores.update(scores, batch.index)

    # -- images ----------------------------------------------------------------------------------------------------

    def reconstruct(self, image: Tensor) -> Tensor:
        """F(y), the image without its lesion.

        Args:
            image: (B, 1, H, W) in [-1, 1].

        Returns:
            (B, 1, H, W) float32 in [-1, 1].
        """
        return self._take(self.averaged(1), image)[0].float().clamp(-1, 1)

    def insert(self, image: Tensor, reference: Tensor, mask: Tensor, *, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """G(x, y), the image with the lesion of a reference.

        Args:
            image: (B, 1, H, W) in [-1, 1].
            reference: (B, 1, H, W) in [-1, 1], whose lesion it is.
            mask: (B, 1, H, W) in {0, 1}, where it is in the reference.
            shift: pixels down and to the right by which it moves.

        Returns:
            (B, 1, H, W) float32 in [-1, 1]; the image itself away from the place.

        Raises:
            UserError: the shapes differ, or the place lies outside of the frame.
        """
        if not image.shape == reference.shape == mask.shape:
            shapes = ", ".join(str(tuple(i.shape)) for i in (image, reference, mask))
            raise UserError(f"image, reference and mask must be of one shape, got {shapes}")
        reference, moved = _moved(reference + 1, shift) - 1, _moved(mask, shift)
        if not torch.equal(moved.sum((1, 2, 3)), mask.sum((1, 2, 3))):
            raise UserError(f"shift={list(shift)} moves the lesion out of the frame; try a smaller one")
        return self._put(self.averaged(0), image, reference, moved).float().clamp(-1, 1)

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Lesions taken off, and put on the healthy image of the next item.

        Args:
            batch: the same held-out items every time.

        Returns:
            Row name to (B, 1, H, W) in [-1, 1].
        """
        x, y, mask = _parts(batch)
        known = batch.paired is not None and bool(batch.paired.all())
        made, place, _ = self._take(self.averaged(1), y)
        other = x.roll(1, 0)
        rows = {"with lesion": y, "mask": 2 * mask - 1, "found": 2 * place - 1, "synthetic healthy": made}
        rows["healthy" if known else "healthy of others"] = x
        return rows | {"another": other, "with this lesion": self.insert(other, y, mask)}


def _moved(images: Tensor, shift: tuple[int, int]) -> Tensor:
    """Images moved down and to the right; 0 comes in."""
    (down, right), (height, width) = shift, images.shape[2:]
    out = torch.zeros_like(images)
    if abs(down) < height and abs(right) < width:
        to, at = ([slice(max(s, 0), n + min(s, 0)) for s, n in ((sign * down, height), (sign * right, width))]
                  for sign in (1, -1))  # fmt: skip
        out[:, :, to[0], to[1]] = images[:, :, at[0], at[1]]
    return out


def _parts(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    if batch.target is None or batch.mask is None:
        raise ValueError("the view of lesions gives a target, the lesioned image, and its mask with every batch")
    return batch.image, batch.target, batch.mask

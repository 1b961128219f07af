"""The feature encoder: SimCLR (Chen et al. 2020, arXiv:2002.05709) on the real training images. Not generative.

Its features stand beside Inception's in KID, FID, precision and recall; its maps serve perceptual losses; its
neighbours show copies of training images.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from mri_synth.data.augment import augment
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.settings import AugmentSettings, Share
from mri_synth.draws import uniform
from mri_synth.losses.contrastive import feature_std, nt_xent, retrieved, standardise, top1
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.encoder import FeatureNetwork

Decay = Annotated[float, Ge(0), Lt(1)]
PositiveFloat = Annotated[float, Gt(0)]

COLLAPSED = 0.2
"""`feature_std` below which features say nothing of an image."""
_STREAM = 1 << 32
"""Steps between the seeds of what is drawn here: a run's own seed is smaller, so that no two streams meet."""


class Encoder(SynthModule):
    """Two random views of each image must find each other among all other views of the batch.

    What the views differ in, features learn to ignore: place, size and tilt of the head, gain and gamma, and what a
    black rectangle hides. They differ in neither sharpness nor noise nor side on purpose: a distance between real and
    generated images has to see these.

    Args:
        spec: what the data know of themselves.
        width: channels of the network at half the image's resolution; doubled with each of the next three halvings.
        dim: D, length of a feature vector.
        projection: length of the embedding in which views are compared; used in training alone.
        temperature: tau of the loss; lower looks harder at the most similar other images.
        rotate_deg: a view is turned by up to this many degrees.
        translate: a view is shifted by up to this share of the image's side.
        scale: a view is zoomed by a factor of up to 1 + scale, in or out.
        gain: intensities on [0, 1] are multiplied by a factor from 1 - gain to 1 + gain.
        gamma: intensities on [0, 1] are raised to a power from 1 / (1 + gamma) to 1 + gamma.
        flip: probability that a view is mirrored left to right; 0 lets features tell sides.
        cutout: largest side of the rectangle that is black in a view, as a share of the image's side.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/top1", "max")
    instead: ClassVar[str] = "It judges samples: features=[CHECKPOINT] in a run of another model"
    explained: ClassVar[dict[str, Any]] = {"top1": top1, "feature_std": feature_std}

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        width: Annotated[int, Ge(4)] = 24,
        dim: Annotated[int, Ge(8)] = 256,
        projection: Annotated[int, Ge(2)] = 128,
        temperature: PositiveFloat = 0.2,
        rotate_deg: Annotated[float, Ge(0)] = 5.0,
        translate: Share = 0.03,
        scale: Share = 0.08,
        gain: Share = 0.3,
        gamma: Annotated[float, Ge(0)] = 0.4,
        flip: Share = 0.0,
        cutout: Share = 0.2,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        warmup_steps: Annotated[int, Ge(0)] = 50,
        lr_final: Annotated[float, Ge(0)] = 0.02,
    ) -> None:
        super().__init__(spec)
        self.network = FeatureNetwork(self.spec.channels, width, dim)
        self.projector = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, projection, bias=False))
        self.changes = AugmentSettings(
            flip=flip, rotate_deg=rotate_deg, translate=translate, scale=scale, gain=gain, gamma=gamma
        )
        self.views_seen = Views()

    def features(self, image: Tensor) -> Tensor:
        """What an image is, in `dim` numbers.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            (B, dim) float32, each number of about mean 0 and variance 1 over the training images; what an image gets
            does not depend on the others.
        """
        features: Tensor = self.network(image)
        return features

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """Maps for perceptual losses, from fine to coarse; gradients reach the image.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            Five maps (B, C_k, H / 2^k, W / 2^k), k = 1 to 5, before their activation.
        """
        return self.network.maps(image)

    def view(self, batch: Batch, number: int, step: int) -> Tensor:
        """A random view of each image; what an item gets depends on (seed, step, item, number) alone.

        Args:
            batch: with its items' index.
            number: 1 or 2.
            step: of the training.

        Returns:
            (B, C, H, W) in [-1, 1].
        """
        x = augment(batch, self.changes, self.seed + number * _STREAM, step).image
        cutout = self.hparams["cutout"]
        if not cutout:
            return x
        draw = uniform(self.seed + (number + 2) * _STREAM, step, batch.index.to(x.device), 4)
        inside = [
            ((torch.arange(n, device=x.device) + 0.5) / n - draw[:, [k]]).abs() < cutout / 2 * draw[:, [k + 2]]
            for k, n in enumerate(x.shape[2:])
        ]
        return torch.where(inside[0][:, None, :, None] & inside[1][:, None, None, :], -1.0, x)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """How well two views of an image find each other among the views of the whole step, of all processes.

        `L = -1/(2B) sum_iv log(exp(s(z_i^v, z_i^w) / tau) / sum_k exp(s(z_i^v, z_k) / tau))`, z the projections of the
        features of views v and w of image i, standardised over the batch; s the cosine; k over all other views

        In evaluation the views are the same every time, and only those of this process's batch are compared.
        """
        step = self.global_step if self.training else 0
        views = torch.cat([self.view(batch, 1, step), self.view(batch, 2, step)])
        if self.training:
            pooled = self._of_all_processes(self.network.pooled(views))
            self.network.follow(pooled)
            features = standardise(pooled)
        else:
            features = self.features(views)
            first, second = features.chunk(2)
            self.views_seen.update(first, second, batch.index)
        z_1, z_2 = standardise(self.projector(features)).chunk(2)
        return {"loss": nt_xent(z_1, z_2, self.hparams["temperature"]).mean()}

    def _of_all_processes(self, views: Tensor) -> Tensor:
        """(2 B, D) first, then second views, to (2 B * processes, D) in the same order; gradients go back to each."""
        if self.trainer.world_size == 1:
            return views
        gathered: Any = self.all_gather(views.view(2, -1, views.shape[1]), sync_grads=True)
        whole: Tensor = gathered.transpose(0, 1).reshape(-1, views.shape[1])
        return whole

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Images, two views of each, and the image whose first view lies nearest to the second view."""
        x_1, x_2 = self.view(batch, 1, 0), self.view(batch, 2, 0)
        found = retrieved(self.features(x_1), self.features(x_2))
        rows = {"original": batch.image, "view 1": x_1, "view 2": x_2, "nearest to view 2": batch.image[found]}
        return {name: images[:, :1] for name, images in rows.items()}

    def on_validation_epoch_end(self) -> None:
        """val/top1 and val/feature_std over all validation images, and the alarm of collapsed features."""
        super().on_validation_epoch_end()
        spread = self._log_views("val")
        if spread < COLLAPSED:
            self.alarm(
                f"feature collapse: val/feature_std is {spread:.4f} at step {self.global_step}, so that features of "
                "different images are the same. Remedies, in this order: a larger data.batch_size, a lower model.lr, "
                "model.temperature=0.5, more training images"
            )

    def on_test_epoch_end(self) -> None:
        """The same figures over all test images."""
        super().on_test_epoch_end()
        self._log_views("test")

    def _log_views(self, split: str) -> float:
        first, second = self.views_seen.compute()
        self.views_seen.reset()
        spread = feature_std(first)
        self.log(f"{split}/top1", top1(first, second), prog_bar=split == "val")
        self.log(f"{split}/feature_std", spread)
        return float(spread)

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        optimizer: Optimizer = self.adam(self.parameters(), h["lr"], h["betas"])
        if not h["warmup_steps"] and h["lr_final"] == 1:
            return optimizer
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Views(Metric):
    """Features of two views of every image of a split, over all ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second", "indices"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor, index: Tensor) -> None:
        """Keep a batch.

        Args:
            first: (B, D) features of the first views.
            second: (B, D) of the second views.
            index: (B,) positions in the split.
        """
        for state, value in ((self.first, first), (self.second, second), (self.indices, index)):
            state.append(value.detach())  # type: ignore[union-attr, operator]

    def compute(self) -> tuple[Tensor, Tensor]:
        """Two (N, D) tensors, in the order of the split."""
        order = torch.argsort(dim_zero_cat(self.indices))  # type: ignore[arg-type]
        return dim_zero_cat(self.first)[order], dim_zero_cat(self.second)[order]  # type: ignore[arg-type]

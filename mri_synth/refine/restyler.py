"""Style transfer of slices that are in memory, and of the slices of a volume from its middle outwards."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_synth import config, weights
from mri_synth.data import identity
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.intensity import Array
from mri_synth.devices import device_of, in_bf16
from mri_synth.errors import UserError
from mri_synth.models.canvas import paint
from mri_synth.models.style_region import changeable
from mri_synth.models.style_transfer import StyleTransfer
from mri_synth.networks import vgg19
from mri_synth.overrides import admit_unknown

Lend = Callable[[float | None], Tensor]
"""The style image for a slice at some share of the way through what a volume shows; None: of a single slice."""
FIRST = 4
"""Times `steps` that a volume's first slice is given."""
NOT_HERE = {"style": "is given by --style", "jobs": "are the files that are given", "every": "goes with pictures of "
            "the progress: python -m mri_synth.run model=style_transfer", "_target_": "is style_transfer"}  # fmt: skip


@dataclass(frozen=True)
class Restyled:
    """What came of some slices.

    Attributes:
        images: (N, H, W) float32 in [-1, 1], the contents where nothing was changed.
        region: (N, H, W) bool, where it was.
        scores: name to (M,), of the slices that were restyled.
    """

    images: Array
    region: Array
    scores: dict[str, Array]


class Restyler:
    """Style transfer under the settings of `conf/model/style_transfer.yaml`, but for what is told.

    Args:
        words: further settings, such as "steps=30" or "style_layers=[conv1_1,conv2_1]".
        seed: of the noise, with init=noise.
        batch_size: slices at once.
        neighbours: slices of a volume start with the change that their neighbours went through.
        precision: "bf16", "32", or "auto": bf16 where the device computes in it.
        vgg: file of VGG-19's weights, in place of what the words say.
        device: as `mri_synth.devices.device_of` takes it.

    Attributes:
        settings: of style transfer.
        about: all that decides a result besides content and style.

    Raises:
        UserError: a setting is unknown or not allowed, or the weights of VGG-19 are not here.
    """

    def __init__(self, words: Sequence[str] = (), *, seed: int = 0, batch_size: int = 8, neighbours: bool = True,
                 precision: str = "auto", vgg: str | None = None, device: str = "auto") -> None:  # fmt: skip
        if batch_size < 1:
            raise UserError(f"--batch-size={batch_size}: 1 or more slices at once")
        if precision not in ("auto", "bf16", "32"):
            raise UserError(f"--precision={precision}: allowed: auto, bf16, 32")
        self.settings = settings(words)
        self.settings["vgg"] = vgg or self.settings["vgg"]
        self.place, self.batch_size, self.neighbours = device_of(device), batch_size, neighbours
        self.bf16 = in_bf16(precision, self.place)
        self.model = StyleTransfer(DataSpec(size=1), **self.settings)
        self.model.seed = seed
        self.model.objective.network(torch.float32, torch.device("cpu"))  # whatever is wrong with the weights
        file = self.settings["vgg"] or weights.resolve("vgg19")
        self.about = {
            "settings": {k: v for k, v in self.settings.items() if k not in (*NOT_HERE, "vgg", "init_image")},
            "vgg_sha256": identity.sha256(Path(file)),
            "init_image": None if (image := self.settings["init_image"]) is None else identity.sha256(Path(image)),
            "neighbours": neighbours,
            "precision": "bf16" if self.bf16 else "32",
            "seed": seed if self.settings["init"] == "noise" else None,
        }

    @property
    def least(self) -> int:
        """Side of the smallest image that can be restyled, pixels."""
        return 2 * max(vgg19.least(layer) for layer in self.model.objective.layers)

    def slices(self, images: Sequence[Array], lend: Sequence[Lend], names: Sequence[str]) -> list[Restyled]:
        """Slices of one size that have nothing to do with each other, together.

        Args:
            images: (H, W) each, in [-1, 1].
            lend: style of each.
            names: of each, which decide its noise.

        Returns:
            What came of each.
        """
        x = torch.from_numpy(np.stack(images))[:, None]
        made, scores = self.painted(x, [own(None) for own in lend], [zlib.crc32(n.encode()) for n in names])
        region = self._region(x).numpy()
        return [Restyled(made[k, 0].numpy()[None], region[k, 0][None], {n: v[k : k + 1] for n, v in scores.items()})
                for k in range(len(x))]  # fmt: skip

    def volume(self, images: Array, lend: Lend, name: str) -> Restyled:
        """The slices of a volume: the middle one of those that show something, then outwards both ways.

        With `neighbours` a slice starts from itself with the change that its neighbour went through. The middle one,
        which has no neighbour yet, goes further: each of the others goes on where it ended. Tried on a T1 of 40 slices:
        at equal style loss and correlation with the content (0.76), slice-to-slice gradients of 1.10 times the
        content's in place of 2.12, with a third of the evaluations. From what the neighbour itself became, its anatomy
        is dragged along (0.46).

        Args:
            images: (N, H, W) in [-1, 1].
            lend: its style.
            name: which decides its noise.

        Returns:
            What came of them; slices that show nothing stay as they are.
        """
        x = torch.from_numpy(images)[:, None]
        region = self._region(x)
        shown = region.flatten(1).any(1).nonzero()[:, 0].tolist()
        made, scores = x.clone(), []
        for here in self._groups(len(shown)):
            rows = [shown[k] for k in here]
            styles = [lend(k / max(1, len(shown) - 1)) for k in here]
            begin, times = None, 1
            if self.neighbours and len(shown) // 2 in here:
                times = FIRST
            elif self.neighbours:
                before = [shown[k + 1 if k < len(shown) // 2 else k - 1] for k in here]
                begin = (x[rows] + made[before] - x[before]).clamp(-1, 1)
            seeds = [zlib.crc32(f"{name} {k}".encode()) for k in rows]
            made[rows], found = self.painted(x[rows], styles, seeds, begin, times)
            scores.append(found)
        every = {n: np.concatenate([s[n] for s in scores]) for n in (scores[0] if scores else ())}
        return Restyled(made[:, 0].numpy(), region[:, 0].numpy(), every)

    def _groups(self, count: int) -> list[list[int]]:
        """Slices that go together: any, or the middle one and then pairs at the same distance from it."""
        if not self.neighbours:
            return [list(range(k, min(k + self.batch_size, count))) for k in range(0, count, self.batch_size)]
        middle = count // 2
        pairs = ([k for k in (middle - away, middle + away) if 0 <= k < count] for away in range(1, count))
        return [here for here in ([middle][:count], *pairs) if here]

    def _region(self, images: Tensor) -> Tensor:
        return changeable(Batch(image=images, index=torch.arange(len(images))), self.settings["region"])

    def painted(self, images: Tensor, styles: Sequence[Tensor], seeds: Sequence[int],
                begin: Tensor | None = None, times: int = 1) -> tuple[Tensor, dict[str, Array]]:  # fmt: skip
        """Images that are optimised together.

        Args:
            images: (B, 1, H, W) in [-1, 1], the contents.
            styles: (1, 1 or 3, H', W') in [-1, 1], of each.
            seeds: of each, for its noise.
            begin: (B, 1, H, W), where they start; None: as the settings say.
            times: `steps`, so often.

        Returns:
            (B, 1, H, W) float32 in [-1, 1], and name to (B,) scores.

        Raises:
            UserError: an optimisation diverged.
        """
        self.model.steps = times * self.settings["steps"]
        jobs = Batch(image=images, index=torch.arange(len(images)))
        if begin is None:
            begin = self.model.begin(Batch(image=images, index=torch.tensor(seeds)))
        self.model.lend(styles)
        paint(self.model, jobs, "bf16-mixed" if self.bf16 else "32-true", str(self.place), begin)
        self.model.to(self.place).eval()
        with torch.no_grad(), torch.autocast(self.place.type, torch.bfloat16, enabled=self.bf16):
            there = jobs.to(self.place)
            made, scores = self.model.results(there).cpu(), self.model.item_scores(there)
        if not made.isfinite().all():
            raise UserError("the result is not finite; try --precision 32, or --set lr=0.5")
        return made, {name: values.float().cpu().numpy() for name, values in scores.items()}


def settings(words: Sequence[str]) -> dict[str, Any]:
    """Settings of style transfer.

    Args:
        words: "key=value" each, over `conf/model/style_transfer.yaml`.

    Returns:
        All arguments of the model but `spec`.

    Raises:
        UserError: not of that form, unknown, not allowed, or no setting of files.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    words = [w.removeprefix("model.") for w in words]
    for word in words:
        key, _, value = word.partition("=")
        if key in NOT_HERE:
            raise UserError(f"--set {word}: {key} {NOT_HERE[key]}")
        if key == "region" and value == "mask":
            raise UserError("--set region=mask: files come without masks; allowed: brain, image. With data that have "
                            "masks: python -m mri_synth.run model=style_transfer model.region=mask")  # fmt: skip
    admitted = admit_unknown(["model=style_transfer", *(f"model.{w}" for w in words)])
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        composed = compose("run", admitted)
    config.check(composed)
    found: Any = OmegaConf.to_container(composed["model"], resolve=True)
    return {k: v for k, v in found.items() if k != "_target_"}

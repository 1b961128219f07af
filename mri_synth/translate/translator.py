"""A model that translates, on its device: files in the frame that it knows, through it, whole or tile by tile."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mri_synth.data import identity
from mri_synth.data.contrasts import MASK
from mri_synth.data.intensity import Array
from mri_synth.data.scan import Scan
from mri_synth.data.volume import read
from mri_synth.devices import device_of, in_bf16
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.through import Ready, preparation, ready, warn
from mri_synth.tiles import Tiles, convolutional

log = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "32"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides an output besides model and sources.

    Attributes:
        to: contrast to make; None: the one that the model was trained to make.
        available: sources to use, of those that are there; None: all.
        tiles: slices larger than the model's frame go through it in tiles, if its network knows no place
            (`mri_synth.tiles.convolutional`); else what lies outside the frame is left empty.
        overlap: of neighbouring tiles, share of their side.
        precision: "bf16", "32", or "auto": bf16 where the device computes in it.
    """

    to: str | None = None
    available: tuple[str, ...] | None = None
    tiles: bool = True
    overlap: float = 0.25
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UserError(f"--overlap={self.overlap}: allowed: from 0 to below 1")
        if self.precision not in get_args(Precision):
            raise UserError(f"--precision={self.precision}: allowed: {', '.join(get_args(Precision))}")


class Translator:
    """A model on its device, and how it is asked.

    Args:
        checkpoint: of a run whose model translates.
        options: how.
        batch_size: slices or tiles at once.
        device: as `mri_synth.devices.device_of` takes it.

    Attributes:
        sources: contrasts that it takes, in order.
        goal: contrast that it makes.
        how: how its training files were prepared.
        hash: SHA-256 of the checkpoint.
        bf16: whether it computes in bf16 where that is enough.

    Raises:
        UserError: the model does not translate, or an option is not its own or out of range.
    """

    def __init__(self, checkpoint: Path, options: Options, batch_size: int = 8, device: str = "auto") -> None:
        self.place, self.batch_size, self.options = device_of(device), batch_size, options
        if batch_size < 1:
            raise UserError(f"--batch-size={batch_size}: 1 or more slices at once")
        model = load_model(checkpoint)
        self.name = type(model).__name__
        if not model.translates() or not model.spec.sources or model.spec.goal is None:
            raise UserError(f"{checkpoint}: its model, {self.name}, does not translate images. Give a checkpoint of "
                            "one that does, such as model=pix2pix or model=cyclegan.")  # fmt: skip
        self.how = preparation(model, checkpoint)
        model.to(self.place).to(memory_format=torch.channels_last)
        self.model: SynthModule = model.eval()
        self.checkpoint, self.hash = Path(checkpoint), identity.sha256(checkpoint)
        self.sources, self.goal = ends(model, options.to)
        if "tissue" in self.sources:
            raise UserError(f"{checkpoint}: its model, {self.name}, makes {self.goal} of what was derived from "
                            f"{self.goal} itself ({', '.join(self.sources)}), which no file holds. Give a checkpoint "
                            "of one that was trained with data.source=contrasts.")  # fmt: skip
        self.whole = options.tiles and convolutional(model)
        self.bf16 = in_bf16(options.precision, self.place)
        self.partial = "available" in known_options(model) and bool(model.hparams.get("contrast_dropout"))
        check_available(options.available, self.sources, self.partial, self.name)

    def bring(self, scans: Mapping[str, Scan]) -> dict[str, Ready]:
        """Read sources and bring them to the model.

        Args:
            scans: contrast to scan, in the model's order; the first one's grid is taken.

        Returns:
            Contrast to what the model gets.

        Raises:
            UserError: a file cannot be read or used.
        """
        found: dict[str, Ready] = {}
        first: Ready | None = None
        for contrast, scan in scans.items():
            mask = contrast == MASK
            volume = read(scan.path, scan.series, allow_constant=mask)
            source = ready(volume, self.how, onto=first, whole=self.whole, mask=mask)
            warn(self.model, source)
            if first is not None and source.resampled:
                log.warning("%s: not on the grid of %s; resampled to it by the affines, nothing is registered",
                            volume.name, first.volume.name)  # fmt: skip
            first = first or source
            found[contrast] = source
        return found

    def tiles(self, source: Ready) -> Tiles | None:
        """Tiles over the frame of a source, on the device; None where it is the model's own frame."""
        size: int = self.how["size"]
        if source.frame.size == size:
            return None
        return Tiles.over(source.frame, size, self.options.overlap).to(self.place)

    @torch.inference_mode()
    def through(self, inputs: Mapping[str, Ready]) -> Array:
        """Sources through the model.

        Args:
            inputs: contrast to what the model gets; those that are missing are left out.

        Returns:
            (N, side, side) float32 in [-1, 1], in the frame of the inputs.

        Raises:
            UserError: the model gives another shape.
        """
        first = next(iter(inputs.values()))
        absent = np.broadcast_to(np.float32(-1), first.images.shape)
        channels = [inputs[c].images if c in inputs else absent for c in self.sources]
        network = self._network(tuple(inputs))
        tiles = self.tiles(first)
        made = np.empty(first.images.shape, np.float32)
        with torch.autocast(self.place.type, torch.bfloat16, enabled=self.bf16):
            for start in range(0, len(made), self.batch_size):
                here = slice(start, start + self.batch_size)
                x = torch.from_numpy(np.stack([c[here] for c in channels], 1)).to(self.place)
                y = network(x) if tiles is None else tiles.through(network, x)
                made[here] = y[:, 0].float().clamp(-1, 1).cpu().numpy()
        return made

    def _network(self, there: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        """The model's `translate` with the options that it knows."""
        extra: dict[str, Any] = {"to": self.options.to} if "to" in known_options(self.model) else {}
        extra |= {"available": there} if len(there) < len(self.sources) else {}
        translate: Callable[..., Tensor] = self.model.translate

        def network(x: Tensor) -> Tensor:
            y = translate(x.contiguous(memory_format=torch.channels_last), **extra)
            if y.shape != (len(x), 1, *x.shape[2:]):
                raise UserError(f"{self.name} gave {tuple(y.shape)} for {tuple(x.shape)}: not usable")
            return y

        return network


def known_options(model: SynthModule) -> list[str]:
    """Names of what a model's `translate` takes besides its source."""
    return [n for n, p in inspect.signature(model.translate).parameters.items() if p.kind is p.KEYWORD_ONLY]


def ends(model: SynthModule, to: str | None) -> tuple[tuple[str, ...], str]:
    """What a model takes, and what it makes.

    Args:
        model: translates.
        to: contrast that is wanted; None: the one that it was trained to make.

    Returns:
        Sources and goal; of a model that goes both ways, the source is the other one.

    Raises:
        UserError: it does not make that contrast.
    """
    sources, goal = model.spec.sources, str(model.spec.goal)
    if to in (None, goal):
        return sources, goal
    both = "to" in known_options(model)
    if to not in sources or not both:
        allowed = " or ".join((goal, *(sources if both else ())))
        raise UserError(f"--to={to}: {type(model).__name__} makes {allowed} here")
    return (goal,), str(to)


def check_available(available: Sequence[str] | None, sources: Sequence[str], partial: bool, name: str) -> None:
    """Refuse sources that are none, and fewer than a model needs.

    Args:
        available: that are asked for; None: all.
        sources: of the model.
        partial: whether it does with any of them.
        name: of the model.

    Raises:
        UserError: names the source.
    """
    if available is None:
        return
    asked = f"--available={','.join(available)}"
    if unknown := [c for c in available if c not in sources]:
        raise UserError(f"{asked}: {unknown[0]} is no source of this {name}; allowed: {', '.join(sources)}")
    if not partial and set(available) != set(sources):
        raise UserError(f"{asked}: this {name} was trained with all of {', '.join(sources)} and cannot do without one; "
                        "train with model.contrast_dropout=0.5")  # fmt: skip

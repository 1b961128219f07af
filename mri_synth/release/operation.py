"""What a method offers that is a function of tensors: the operations of a release, and inputs to compare them on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mri_synth.draws import normal, uniform
from mri_synth.models.base import SynthModule
from mri_synth.translate.translator import known_options


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of an operation.

    Attributes:
        name: of the input.
        shape: without the batch.
        dtype: "int64" or "float32".
        meaning: for the card.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    meaning: str


@dataclass(kw_only=True)
class Operation:
    """Something that a method does, and what became of it.

    Attributes:
        name: such as "reconstruct".
        network: that does it; one tensor for each input.
        inputs: of the network.
        makes: what comes out, for the card.
        batch: items that the graph takes; None: any number.
        files: "torch" and "onnx" to the name of the file that was written.
        missing: the same to why there is none.
        difference: the same to the largest absolute difference from the checkpoint's output.
    """

    name: str
    network: nn.Module
    inputs: tuple[Input, ...]
    makes: str
    batch: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """Plain values for release.json."""
        inputs = [{"name": i.name, "shape": ["n", *i.shape], "dtype": i.dtype, "meaning": i.meaning}
                  for i in self.inputs]  # fmt: skip
        files = {kind: self.files.get(kind) for kind in ("torch", "onnx")}
        return {"inputs": inputs, "makes": self.makes, "batch": self.batch, **files, "missing": self.missing,
                "difference": self.difference}  # fmt: skip


class _Of(nn.Module):
    """One method of a model, of one tensor, as a module."""

    def __init__(self, model: SynthModule, name: str, **options: Any) -> None:
        super().__init__()
        self.model, self.name, self.options = model, name, options

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self.model, self.name)(x, **self.options)
        return out


class _WithLabel(_Of):
    """The same of a tensor and labels."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = getattr(self.model, self.name)(x, label)
        return out


def operations(model: SynthModule) -> list[Operation]:
    """What a method offers that takes tensors and gives one.

    Args:
        model: in eval mode.

    Returns:
        "latent" and "from_latent" of what samples by way of a latent vector, else "sample"; "translate", and
        "translate_to_X" of what goes both ways; "reconstruct", and "suspicion" of what has one.
    """
    spec, found = model.spec, []
    image = (spec.channels, spec.size, spec.size)
    pixels = f"images in [-1, 1] of {spec.size} x {spec.size} pixels"
    names = model.conditions()
    labels = (Input(name="label", shape=(), dtype="int64", meaning=f"index of {', '.join(names)}; -1: any"),)
    kind, label = (_WithLabel, labels) if names else (_Of, ())
    seeds = Input(name="seeds", shape=(), dtype="int64", meaning="one for each image")
    if model.samples() and type(model).from_latent is not SynthModule.from_latent:
        length = model.latent(torch.zeros(1, dtype=torch.int64)).shape[1]
        z = Input(name="z", shape=(length,), dtype="float32", meaning="latent vectors; standard normal numbers")
        found += [Operation(name="latent", network=_Of(model, "latent"), inputs=(seeds,), makes="latent vectors"),
                  Operation(name="from_latent", network=kind(model, "from_latent"), inputs=(z, *label),
                            makes=pixels)]  # fmt: skip
    elif model.samples():
        found.append(Operation(name="sample", network=kind(model, "sample"), inputs=(seeds, *label), makes=pixels))
    if model.translates():
        there = (len(spec.sources), spec.size, spec.size)
        x = Input(name="source", shape=there, dtype="float32", meaning=f"{', '.join(spec.sources)} in [-1, 1]")
        found.append(Operation(name="translate", network=_Of(model, "translate"), inputs=(x,), makes=str(spec.goal)))
        if "to" in known_options(model) and spec.goal is not None:
            way_back = Input(name="source", shape=image, dtype="float32", meaning=f"{spec.goal} in [-1, 1]")
            found += [Operation(name=f"translate_to_{c}", network=_Of(model, "translate", to=c), inputs=(way_back,),
                                makes=c) for c in spec.sources]  # fmt: skip
    if model.reconstructs():
        x = Input(name="image", shape=image, dtype="float32", meaning=pixels)
        found.append(Operation(name="reconstruct", network=_Of(model, "reconstruct"), inputs=(x,), makes=pixels))
        if model.suspects():
            found.append(Operation(name="suspicion", network=_Of(model, "suspicion"), inputs=(x,),
                                   makes="chance of each pixel, 0 to 1, that it is foreign"))  # fmt: skip
    return found


def fixed_inputs(operation: Operation, n: int) -> tuple[Tensor, ...]:
    """The inputs on which outputs are compared: the same in every call.

    Args:
        operation: whose.
        n: items.

    Returns:
        Seeds and labels 0, 1, ...; standard normal vectors; smooth pictures with a little noise, in [-1, 1].
    """
    items = torch.arange(n)
    made: list[Tensor] = []
    for wanted in operation.inputs:
        if wanted.dtype == "int64":
            made.append(items % 2 if wanted.name == "label" else items)
        elif len(wanted.shape) == 1:
            made.append(normal(0, 0, items, wanted.shape[0]).contiguous())  # a graph minds the strides
        else:
            coarse = uniform(0, 0, items, wanted.shape[0] * 16).view(n, wanted.shape[0], 4, 4)
            smooth = interpolate(2 * coarse - 1, wanted.shape[1:], mode="bilinear")
            noise = normal(1, 0, items, math.prod(wanted.shape)).view_as(smooth)
            made.append((smooth + 0.05 * noise).clamp(-1, 1).contiguous())
    return tuple(made)

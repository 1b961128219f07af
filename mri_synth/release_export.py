"""What a method offers as graphs: torch.export and ONNX, each compared with the checkpoint's own outputs.

torch.export and not TorchScript: torch calls the latter deprecated, and where torch.export finds a loop that depends on
the data, tracing would record one way through it, which is worse than none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mri_synth.draws import normal, uniform
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.translator import known_options

TOLERANCE = 1e-4
"""Largest difference of an output on [-1, 1] from the checkpoint's."""
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_EXAMPLES = 2
"""Items of the batch that a graph is recorded with; it is checked with others."""


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
        "translate_to_X" of what goes both ways; "reconstruct".
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
            made.append(normal(0, 0, items, wanted.shape[0]))
        else:
            coarse = uniform(0, 0, items, wanted.shape[0] * 16).view(n, wanted.shape[0], 4, 4)
            smooth = interpolate(2 * coarse - 1, wanted.shape[1:], mode="bilinear")
            noise = normal(1, 0, items, math.prod(wanted.shape)).view_as(smooth)
            made.append((smooth + 0.05 * noise).clamp(-1, 1))
    return tuple(made)


@torch.no_grad()
def export(operation: Operation, folder: Path, onnx: bool) -> None:
    """Write an operation's graphs; what cannot be written is noted in the operation.

    Args:
        operation: changed: `files`, `missing`, `batch`.
        folder: to write to.
        onnx: whether to write ONNX too.
    """
    try:
        program, operation.batch = _program(operation)
    except Exception as error:  # whatever the tracer raises
        operation.missing = dict.fromkeys(("torch", "onnx"), f"torch.export: {_first(error)}")
        return
    written = io.BytesIO()  # torch hides a full disk behind an error of its own
    torch.export.save(program, written)
    operation.files["torch"] = f"{operation.name}.pt2"
    (folder / operation.files["torch"]).write_bytes(written.getvalue())
    if onnx:
        path = folder / f"{operation.name}.onnx"
        try:
            with _quiet():
                torch.onnx.export(program, fixed_inputs(operation, operation.batch or _EXAMPLES), path, dynamo=True,
                                  verbose=False, external_data=False,
                                  input_names=[i.name for i in operation.inputs], output_names=["out"])  # fmt: skip
        except OSError:
            raise
        except Exception as error:
            path.unlink(missing_ok=True)
            operation.missing["onnx"] = f"torch.onnx.export: {_first(error)}"
            return
        operation.files["onnx"] = path.name


def _program(operation: Operation) -> tuple[torch.export.ExportedProgram, int | None]:
    """A graph for any number of items, or failing that for one."""
    n = torch.export.Dim("n", min=1, max=4096)
    shapes = tuple({0: n} for _ in operation.inputs)
    with _quiet():
        try:
            inputs = fixed_inputs(operation, _EXAMPLES)
            return torch.export.export(operation.network, inputs, dynamic_shapes=shapes, strict=True), None
        except Exception as error:
            logging.getLogger(__name__).info("%s: no graph for any number of items: %s", operation.name, _first(error))
            return torch.export.export(operation.network, fixed_inputs(operation, 1), strict=True), 1


@torch.no_grad()
def compare(operation: Operation, kind: str, outputs: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
    """Refuse a graph whose outputs are not the checkpoint's.

    Args:
        operation: `difference` is noted in it.
        kind: "torch" or "onnx".
        outputs: of the graph as it was read back, for inputs.

    Raises:
        UserError: they differ by more than `TOLERANCE`, or are not finite.
    """
    largest = 0.0
    for n in (1, 3):
        inputs = fixed_inputs(operation, n)
        expected, got = operation.network(*inputs), outputs(inputs)
        difference = float((got - expected).abs().max()) if got.shape == expected.shape else math.inf
        largest = math.inf if math.isnan(difference) else max(largest, difference)
    if largest > TOLERANCE:
        raise UserError(f"{operation.files[kind]}: its outputs differ by {largest:.3g} from the checkpoint's, and "
                        f"{TOLERANCE:g} is allowed; nothing was written" + (". Leave ONNX out with --no-onnx"
                        if kind == "onnx" else ""))  # fmt: skip
    operation.difference[kind] = largest


def onnx_outputs(path: Path, batch: int | None) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """What onnxruntime makes of an ONNX file.

    Args:
        path: of the file.
        batch: items that it takes; None: any number.

    Returns:
        Inputs to output.
    """
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def outputs(inputs: Sequence[Tensor]) -> Tensor:
        parts = list(zip(*(x.split(batch or len(x)) for x in inputs), strict=True))
        made = [session.run(None, {k: x.numpy() for k, x in zip(names, part, strict=True)})[0] for part in parts]
        return torch.cat([torch.from_numpy(m) for m in made])

    return outputs


def missing_packages() -> list[str]:
    """Packages that ONNX needs and that are not installed."""
    return [name for name in ONNX_PACKAGES if find_spec(name) is None]


def _first(error: BaseException) -> str:
    """The first line of what an exception says, not too long."""
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own talk."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

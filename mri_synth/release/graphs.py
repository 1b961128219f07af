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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_synth.errors import UserError
from mri_synth.release.operation import Operation, fixed_inputs

TOLERANCE = 1e-4
"""Largest difference of an output on [-1, 1] from the checkpoint's."""
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_EXAMPLES = 2
"""Items of the batch that a graph is recorded with; it is checked with others."""


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
    _bare(program)
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


def _bare(program: torch.export.ExportedProgram) -> None:
    """Without weights that the graph never looks at, such as discriminators, and where whose code lay on which disk."""
    used = {spec.target for spec in program.graph_signature.input_specs}
    for name in set(program.state_dict) - used:
        del program.state_dict[name]
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)


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

"""`mri-synth release`: a checkpoint as a folder to hand on: weights, graphs, card, and a hash of each file."""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_synth import __version__, outputs
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model, read_checkpoint
from mri_synth.release import loader as release_loader
from mri_synth.release.graphs import compare, export, missing_packages, onnx_outputs
from mri_synth.release.loader import ABOUT, FORMAT, MANIFEST, Release, ReleaseError, manifest_of
from mri_synth.release.model_card import card
from mri_synth.release.operation import Operation, operations
from mri_synth.run_folder import read_run
from mri_synth.weights.tensors import read_tensors, write_tensors

_STALE_SECONDS = 600.0
WEIGHTS = "weights.safetensors"
LOADER = "loader.py"
CARD = "README.md"
NAMES = ("contrasts", "sources", "goal", "classes", "sites")
"""Of `DataSpec`, what is no path, whatever letters it has."""


def release(
    checkpoint: Path, output: Path, *, licence: str | None = None, use: str | None = None, onnx: bool | None = None
) -> Path:
    """Write a release: whole, with outputs equal to the checkpoint's, or not at all.

    It holds the weights (safetensors) with what rebuilds the model (release.json), a graph of each thing that the
    method does (torch.export, and ONNX), a loader that needs torch alone, a card made from the run beside the
    checkpoint, and SHA-256 of every file.

    Args:
        checkpoint: of a run.
        output: folder to make; it may be there, but must be empty.
        licence: of the data that the model was trained on, for the card.
        use: what the model is meant for, for the card.
        onnx: write ONNX too; None: where its packages are installed.

    Returns:
        The folder.

    Raises:
        UserError: the method has nothing to release, the folder is not empty or cannot be written, ONNX is asked for
            and not installed, or an output differs from the checkpoint's.
    """
    if absent := missing_packages() if onnx is not False else []:
        why = (
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed: pip install 'mri-synth[release]'"
        )
        if onnx:
            raise UserError(f"--onnx: {why}, or leave it out")
    else:
        why = "left out by --no-onnx"
    content, model = read_checkpoint(checkpoint), load_model(checkpoint)
    offered = operations(model)
    if not offered:
        raise UserError(f"{checkpoint}: its model, {type(model).__name__}, makes no image of one or of a seed: there "
                        f"is nothing to release. {model.instead}")  # fmt: skip
    with _whole_folder(output) as part:
        for operation in offered:
            if reason := model.no_graph.get(operation.name):
                operation.missing = dict.fromkeys(("torch", "onnx"), reason)
                continue
            export(operation, part, onnx=onnx is not False and not absent)
            if "onnx" not in operation.files:
                operation.missing.setdefault("onnx", why)
        write_tensors(part / WEIGHTS, model.state_dict(), {"format": "pt"})
        about = _about(content, model, checkpoint, offered)
        (part / ABOUT).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
        (part / LOADER).write_bytes(Path(release_loader.__file__).read_bytes())
        (part / MANIFEST).write_text(manifest_of(part))
        _compare(part, model, offered)
        about["operations"] = {o.name: o.about() for o in offered}  # now with differences
        (part / ABOUT).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n")
        found = read_run(checkpoint.parent)
        (part / CARD).write_text(card(about, found, checkpoint.name, licence=licence, use=use), encoding="utf-8")
        (part / MANIFEST).write_text(manifest_of(part))
        release_loader.verify(part)
    return output


def load_release(folder: Path | str, sha256: str | None = None) -> Release:
    """A released model, every file of it verified first; what `loader.py` in the release does without mri_synth.

    Args:
        folder: of the release.
        sha256: that MANIFEST.sha256 must have, as its author published it; None: any.

    Returns:
        The model, as graphs of tensors.

    Raises:
        UserError: a file is missing or was changed; named.
    """
    try:
        return release_loader.load_release(folder, sha256)
    except ReleaseError as error:
        raise UserError(str(error)) from None


def model_of(folder: Path | str) -> SynthModule:
    """The model of a release as the class of mri_synth that it was trained as, to go on with.

    Args:
        folder: of the release.

    Returns:
        The model, in eval mode.

    Raises:
        UserError: a file is missing or was changed, or the model is of another version of mri_synth.
    """
    about = load_release(folder).about
    model = _rebuilt(about, read_tensors(Path(folder) / WEIGHTS))
    return model.eval()


def _rebuilt(about: Mapping[str, Any], weights: dict[str, Tensor]) -> SynthModule:
    module, _, name = about["target"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        model: SynthModule = cls(spec=about["spec"], **about["hyper_parameters"])
        model.load_state_dict(weights)
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{about['target']} of mri_synth {about['mri_synth']} does not fit this version {__version__}: "
                        f"{why}. Use that version, or load_release") from error  # fmt: skip
    return model


def _about(
    content: Mapping[str, Any], model: SynthModule, checkpoint: Path, offered: list[Operation]
) -> dict[str, Any]:
    """Content of release.json."""
    given = {k: v for k, v in content["hyper_parameters"].items() if k != "spec"}
    return {
        "format": FORMAT, "mri_synth": __version__, "torch": torch.__version__.partition("+")[0],
        "synthetic": f"images that this model makes are synthetic: mri_synth {__version__}; not measured images",
        "simulated": model.spec.simulated, "target": content["mri_synth"]["target"],
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()), "spec": _public(model.spec.to_dict()),
        "origin": model.origin, "conditions": list(model.conditions()), "hyper_parameters": _public(given),
        "operations": {o.name: o.about() for o in offered},
    }  # fmt: skip


def _public(value: Any) -> Any:
    """Plain values without what says where the author's files lie, and which they are; names of classes stay."""
    if isinstance(value, Mapping):
        return {k: v if k in NAMES else _public(v) for k, v in value.items() if k != "trained_on"}
    if isinstance(value, list | tuple):
        return [_public(v) for v in value]
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value


def _compare(part: Path, model: SynthModule, offered: list[Operation]) -> None:
    """What was written, read back: weights and graphs are the checkpoint's."""
    again = load_release(part)
    rebuilt = _rebuilt(again.about, read_tensors(part / WEIGHTS)).state_dict()
    differ = [k for k, v in model.state_dict().items() if not torch.equal(v, rebuilt[k])]
    if differ:
        raise UserError(f"{WEIGHTS}: {differ[0]} is not the checkpoint's after it is read back; nothing was written")
    for operation in offered:
        if "torch" in operation.files:
            compare(operation, "torch", partial(_outputs, again, operation.name))
        if "onnx" in operation.files:
            compare(operation, "onnx", onnx_outputs(part / operation.files["onnx"], operation.batch))


def _outputs(made: Release, name: str, inputs: tuple[Tensor, ...]) -> Tensor:
    return made.run(name, *inputs)


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write to; renamed to it at the end, removed on failure."""
    if output.exists() and not output.is_dir():
        raise UserError(f"-o {output}: a file; give a folder that is not there yet")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"-o {output}: is there and not empty; a release is written whole. Give another folder, or "
                        "delete this one")  # fmt: skip
    output = output.resolve()
    part = output.with_name(f".{output.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        for killed in output.parent.glob(f".{glob.escape(output.name)}.part-*"):
            with suppress(FileNotFoundError):
                if time.time() - killed.stat().st_mtime > _STALE_SECONDS:  # what is younger may be another machine's
                    shutil.rmtree(killed, ignore_errors=True)
        yield part
        if output.is_dir():
            output.rmdir()
        part.rename(output)
    except OSError as error:
        if not outputs.cannot_write(error):
            raise
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise UserError(f"-o {output}: cannot be written ({why}); nothing is left there. Free space, or give another "
                        "folder") from error  # fmt: skip
    finally:
        shutil.rmtree(part, ignore_errors=True)

"""Checkpoints of runs: reading one, the model that it holds, and its weights for another model."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mri_synth import __version__
from mri_synth.config import checkpoint_beside
from mri_synth.errors import UserError

if TYPE_CHECKING:
    from mri_synth.models.base import SynthModule

FORMAT = 1
"""Of checkpoints; raised when an older one can no longer be read."""
ONE = "give one that `python -m mri_synth.run` wrote"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; only plain values and tensors are unpickled.

    Args:
        path: a .ckpt file of a run.

    Returns:
        What Lightning saved.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or of another format.
    """
    if not path.is_file():
        what = "a folder, not a" if path.is_dir() else "no such"
        raise UserError(f"{path}: {what} checkpoint; give a file such as {checkpoint_beside(path)}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: damaged or not a checkpoint of mri_synth; {ONE}") from error
    if not isinstance(content, dict) or "mri_synth" not in content:
        raise UserError(f"{path}: a checkpoint, but not one of mri_synth; {ONE}")
    about = content["mri_synth"]
    if about["format"] != FORMAT:
        raise UserError(f"{path}: checkpoint format {about['format']} of mri_synth {about['version']}; this is "
                        f"mri_synth {__version__}, format {FORMAT}: use that version")  # fmt: skip
    return content


def load_model(path: Path) -> SynthModule:
    """The model of a checkpoint, rebuilt without its config, on the CPU and in eval mode.

    Args:
        path: a .ckpt file of a run.

    Returns:
        The model.

    Raises:
        UserError: the file cannot be used, or its weights do not fit its class.
    """
    content = read_checkpoint(path)
    module, _, name = content["mri_synth"]["target"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        arguments = {n: v for n, v in content["hyper_parameters"].items() if n in inspect.signature(cls).parameters}
        model: SynthModule = cls(**arguments)
        model.load_state_dict(content["state_dict"])
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: made by {module}.{name} of mri_synth {content['mri_synth']['version']}, which does "
                        f"not fit this version {__version__}: {' '.join(str(error).split())[:300]}. Train it again, or "
                        "use the version that made it") from error  # fmt: skip
    return model.eval()


def initialise_from(model: SynthModule, path: Path, key: str = "init_from") -> dict[str, Any]:
    """Weights of another run, for fine-tuning or a test; the optimizer starts anew.

    Args:
        model: to be filled.
        path: a .ckpt file.
        key: of the configuration that names the file, for messages.

    Returns:
        The checkpoint's content.

    Raises:
        UserError: it is of another method, or of other sizes.
    """
    content = read_checkpoint(path)
    mine = f"{type(model).__module__}.{type(model).__name__}"
    if content["mri_synth"]["target"] != mine:
        raise UserError(f"{key}={path}: a checkpoint of {content['mri_synth']['target']}, the model here is {mine}; "
                        "choose model=NAME to match")  # fmt: skip
    try:
        model.load_state_dict(model.adopted(content))
    except RuntimeError as error:
        there = content["hyper_parameters"]
        said = {k: v for k, v in model.hparams.items() if not isinstance(v, dict)}  # neither spec nor first stage
        other = {k: v for k, v in said.items() if k in there and there[k] != v}
        if not other:
            raise UserError(f"{key}={path}: its weights do not fit: {str(error)[:300]}") from error
        what = "; ".join(f"model.{k}={there[k]} there, {v} here" for k, v in other.items())
        give = " ".join(f"model.{k}={there[k]}" for k in other)
        raise UserError(f"{key}={path}: its weights do not fit: {what}. Give the checkpoint's: {give}") from error
    return content

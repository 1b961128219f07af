"""The frozen first stage of a two-stage method: found, checked against the data, kept in the second's checkpoint."""

from __future__ import annotations

import hashlib
import importlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model, read_checkpoint

log = logging.getLogger(__name__)

WAY_OUT = "train one with python -m mri_synth.run model=vqvae, and give model.first_stage=outputs/<run>/best.ckpt"
_SAME = ("plane", "fit", "size", "spacing_mm", "intensity")


def problems(first_stage: Any) -> list[str]:
    """Why there is no such first stage; the file is not opened.

    Args:
        first_stage: value of `model.first_stage`.

    Returns:
        One message, or none.
    """
    if first_stage is None:
        return [f"model.first_stage is missing: the checkpoint whose codes are learned; {WAY_OUT}"]
    if isinstance(first_stage, str) and not Path(first_stage).is_file():
        inside = Path(first_stage) / "best.ckpt"
        hint = f"no such file; {WAY_OUT}; if it was moved, give where it is now"
        if inside.is_file():
            hint = f"a folder; did you mean model.first_stage={inside}?"
        return [f"model.first_stage={first_stage}: {hint}"]
    return []


def frozen(first_stage: str | dict[str, Any] | None) -> tuple[SynthModule, dict[str, Any]]:
    """The first stage, in eval mode and without gradients; from a file, no checkpoint puts other weights into it.

    Args:
        first_stage: path of its checkpoint; or the record of it that the second stage's checkpoint holds, which then
            brings the weights, too.

    Returns:
        The model, and the record: plain values that rebuild it without the file.

    Raises:
        UserError: no such file, damaged, or a method without codes.
    """
    if isinstance(first_stage, dict):
        module, _, name = first_stage["target"].rpartition(".")
        model: SynthModule = getattr(importlib.import_module(module), name)(**first_stage["hyper_parameters"])
        return model.requires_grad_(False).eval(), first_stage
    if found := problems(first_stage):
        raise UserError(found[0])
    path = Path(str(first_stage))
    model = load_model(path)
    if "codebook_size" not in model.hparams:
        raise UserError(f"model.first_stage={path}: a {type(model).__name__}, which has no codebook; {WAY_OUT}")
    content = read_checkpoint(path)
    record = {
        "path": str(path.resolve()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "target": content["mri_synth"]["target"],
        "trained_on": content["mri_synth"]["trained_on"],
        "hyper_parameters": content["hyper_parameters"],
    }
    model.register_load_state_dict_pre_hook(partial(_refuse_another, path))  # type: ignore[no-untyped-call]
    return model.requires_grad_(False).eval(), record


def _refuse_another(path: Path, first: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The codes were made with the file's weights; a prior of other codes would test, go on and sample nonsense."""
    for name, own in first.state_dict().items():
        there = state.get(prefix + name)
        if there is not None and not (there.shape == own.shape and torch.equal(there.to(own.device), own)):
            raise UserError(f"model.first_stage={path}: not the first stage that the checkpoint was trained with (or "
                            "trained on since then), so its codes mean nothing here. Give the file as it was then, or "
                            "train a new prior on this one")  # fmt: skip


def same_data(first: SynthModule, spec: DataSpec, path: str) -> None:
    """Refuse data that the first stage was not trained for.

    Args:
        first: its model.
        spec: of the data here.
        path: of its checkpoint, for messages.

    Raises:
        UserError: the images are of another size, plane, frame or intensity scale, or have other channels.
    """
    there = first.spec
    differ = [
        f"data.{key}={there.preparation.get(key)} there, {spec.preparation.get(key)} here"
        for key in _SAME
        if spec.preparation and there.preparation.get(key) != spec.preparation.get(key)
    ]
    if there.channels != spec.channels:
        differ.append(f"{there.channels} channels there, {spec.channels} here")
    if there.size != spec.size and not any(d.startswith("data.size") for d in differ):
        differ.append(f"data.size={there.size} there, {spec.size} here")
    if differ:
        raise UserError(f"model.first_stage={path}: trained on images prepared otherwise: {'; '.join(differ)}. Give "
                        "the data words of its run, or train a first stage on these data")  # fmt: skip
    if unknown := [c for c in spec.contrasts if c not in there.contrasts]:
        log.warning("model.first_stage=%s has not seen %s, only %s: its codes will be poor there", path,
                    " and ".join(unknown), " and ".join(there.contrasts))  # fmt: skip

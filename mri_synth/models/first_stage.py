"""Frozen parts of a method, its first stage or guide: found, checked against the data, kept in its checkpoint."""

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

WAYS_OUT = {
    "first_stage": "train one with python -m mri_synth.run model=vqvae, and give "
    "model.first_stage=outputs/<run>/best.ckpt",
    "guide": "train one with python -m mri_synth.run model=mri_clip, and give model.guide=outputs/<run>/best.ckpt",
}
_WHAT = {"first_stage": "whose codes are learned", "guide": "that knows what words mean"}
_SAME = {
    "first_stage": ("plane", "fit", "size", "spacing_mm", "intensity"),
    "guide": ("plane", "fit", "intensity"),  # it brings images to its size itself
}


def problems(given: Any, key: str = "first_stage") -> list[str]:
    """Why there is no such first stage or guide; the file is not opened.

    Args:
        given: value of the key.
        key: "first_stage" or "guide".

    Returns:
        One message, or none.
    """
    if given is None:
        return [f"model.{key} is missing: the checkpoint {_WHAT[key]}; {WAYS_OUT[key]}"]
    if isinstance(given, str) and not Path(given).is_file():
        inside = Path(given) / "best.ckpt"
        hint = f"no such file; {WAYS_OUT[key]}; if it was moved, give where it is now"
        if inside.is_file():
            hint = f"a folder; did you mean model.{key}={inside}?"
        return [f"model.{key}={given}: {hint}"]
    return []


def frozen(given: str | dict[str, Any] | None, key: str = "first_stage") -> tuple[SynthModule, dict[str, Any]]:
    """The first stage or guide, in eval mode, without gradients; from a file, no checkpoint puts other weights into it.

    Args:
        given: path of its checkpoint; or the record of it that the method's own checkpoint holds, which then brings the
            weights, too.
        key: "first_stage" or "guide".

    Returns:
        The model, and the record: plain values that rebuild it without the file.

    Raises:
        UserError: no such file, damaged, or a method without what is wanted of it: codes; words.
    """
    if isinstance(given, dict):
        module, _, name = given["target"].rpartition(".")
        model: SynthModule = getattr(importlib.import_module(module), name)(**given["hyper_parameters"])
        return model.requires_grad_(False).eval(), given
    if found := problems(given, key):
        raise UserError(found[0])
    path = Path(str(given))
    model = load_model(path)
    argument, lacks = {"first_stage": ("codebook_size", "has no codebook"), "guide": ("vocabulary", "knows no words")}[
        key
    ]
    if argument not in model.hparams:
        raise UserError(f"model.{key}={path}: a {type(model).__name__}, which {lacks}; {WAYS_OUT[key]}")
    content = read_checkpoint(path)
    record = {
        "path": str(path.resolve()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "target": content["mri_synth"]["target"],
        "trained_on": content["mri_synth"]["trained_on"],
        "hyper_parameters": content["hyper_parameters"],
    }
    model.register_load_state_dict_pre_hook(partial(_refuse_another, path, key))  # type: ignore[no-untyped-call]
    return model.requires_grad_(False).eval(), record


def _refuse_another(path: Path, key: str, first: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Codes and words mean what they mean by the file's weights; under others a prior would sample nonsense."""
    name_here, what = {"first_stage": ("first stage", "codes mean"), "guide": ("guide", "words mean")}[key]
    for name, own in first.state_dict().items():
        there = state.get(prefix + name)
        if there is not None and not (there.shape == own.shape and torch.equal(there.to(own.device), own)):
            raise UserError(f"model.{key}={path}: not the {name_here} that the checkpoint was trained with (or trained "
                            f"on since then), so its {what} nothing here. Give the file as it was then, or train a new "
                            "prior on this one")  # fmt: skip


def same_data(first: SynthModule, spec: DataSpec, path: str, key: str = "first_stage") -> None:
    """Refuse data that the first stage or guide was not trained for.

    Args:
        first: its model.
        spec: of the data here.
        path: of its checkpoint, for messages.
        key: "first_stage" or "guide".

    Raises:
        UserError: the images are of another size, plane, frame or intensity scale, or have other channels.
    """
    there = first.spec
    differ = [
        f"data.{k}={there.preparation.get(k)} there, {spec.preparation.get(k)} here"
        for k in _SAME[key]
        if spec.preparation and there.preparation.get(k) != spec.preparation.get(k)
    ]
    if there.channels != spec.channels:
        differ.append(f"{there.channels} channels there, {spec.channels} here")
    if "size" in _SAME[key] and there.size != spec.size and not any(d.startswith("data.size") for d in differ):
        differ.append(f"data.size={there.size} there, {spec.size} here")
    if differ:
        raise UserError(f"model.{key}={path}: trained on images prepared otherwise: {'; '.join(differ)}. Give "
                        f"the data words of its run, or train a {key.replace('_', ' ')} on these data")  # fmt: skip
    if unknown := [c for c in spec.contrasts if c not in there.contrasts]:
        log.warning("model.%s=%s has not seen %s, only %s: its %s will be poor there", key, path,
                    " and ".join(unknown), " and ".join(there.contrasts),
                    {"first_stage": "codes", "guide": "words"}[key])  # fmt: skip

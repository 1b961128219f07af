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
    """Codes and words mean what they mean by the file's weights; under others a prior would sample nonsense.

    What draws the images of codes may have learned since then (`model.trained=decoder` of vqgan): the file's does it.
    """
    name_here, what = {"first_stage": ("first stage", "codes mean"), "guide": ("guide", "words mean")}[key]
    mine = first.state_dict()
    means = _decides(first) if key == "first_stage" else tuple(mine)
    for name in [k.removeprefix(prefix) for k in state if k.startswith(prefix)]:
        if name not in mine and not name.startswith(means):
            del state[prefix + name]
    for name, own in mine.items():
        there = state.get(prefix + name)
        if not name.startswith(means):
            state[prefix + name] = own
        elif there is not None and not (there.shape == own.shape and torch.equal(there.to(own.device), own)):
            raise UserError(f"model.{key}={path}: not the {name_here} that the checkpoint was trained with (or trained "
                            f"on since then), so its {what} nothing here. Give the file as it was then, or train a new "
                            "prior on this one")  # fmt: skip


def _decides(first: Any) -> tuple[str, ...]:
    """Beginnings of the names of the weights that make codes of images: of encoder and codebook in use."""
    (prefix,) = [name for name, module in first.named_modules() if module is first.parts]
    dot = prefix + "." * bool(prefix)
    return (f"{dot}encoder.", f"{dot}quantizer.")


def same_codes(parts: Any, others: Any) -> bool:
    """Whether two autoencoders make the same codes of an image.

    Args:
        parts: with `encoder` and `quantizer`.
        others: the same.

    Returns:
        True where the weights of both are equal.
    """
    pairs = ((parts.encoder.state_dict(), others.encoder.state_dict()),
             (parts.quantizer.state_dict(), others.quantizer.state_dict()))  # fmt: skip
    return all(a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a) for a, b in pairs)


def redecode(prior: Any, path: Path) -> None:
    """Let the decoder of another checkpoint draw a prior's codes, one that was trained further on the same codes.

    Args:
        prior: a model with a `first_stage`, changed in place.
        path: of the checkpoint.

    Raises:
        UserError: the prior has no first stage, or the codes of the other one are not its own.
    """
    if not hasattr(prior, "first_stage"):
        raise UserError(f"--first-stage={path}: a {type(prior).__name__} has none; leave it out")
    first: Any = load_model(path)
    if not hasattr(first, "parts") or not same_codes(first.parts, prior.first_stage.parts):
        raise UserError(f"--first-stage={path}: its codes are not those that the prior was trained on; give its own "
                        "first stage, or what a run with model.trained=decoder made of it")  # fmt: skip
    prior.first_stage = first.requires_grad_(False)


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

"""What text guidance is given: generators by their checkpoints, and what can be said of its settings beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.guides import WEIGHTS, Kind
from mri_synth.models.checkpoint import load_model
from mri_synth.models.latent_space import LatentSpace
from mri_synth.prompts import schedule


def space_of(generator: str, generator_config: str | None = None) -> tuple[LatentSpace, DataSpec]:
    """The latents of a checkpoint's generator, and what its data knew of themselves.

    Args:
        generator: checkpoint of a run, or of taming-transformers.
        generator_config: the latter's yaml.

    Returns:
        Both, on the CPU.

    Raises:
        UserError: the file cannot be used, or its method has no latents.
    """
    if generator_config is not None:
        from mri_synth import taming

        space = taming.load(Path(generator), Path(generator_config))
        return space, DataSpec(size=space.size, channels=space.channels)
    model = load_model(Path(generator))
    try:
        return model.latent_space(), model.spec
    except UserError as error:
        raise UserError(f"{generator}: {error}") from None


def problems(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with settings of `clip_guided` beyond types and ranges; nothing is loaded.

    Args:
        given: all of them, by name.

    Returns:
        One message each.
    """
    found = [f"model.{key}={given[key]}: no such file" for key in ("generator_config", "init_image")
             if given[key] is not None and not Path(given[key]).is_file()]  # fmt: skip
    if isinstance(given.get("generator"), str) and not Path(given["generator"]).is_file():
        found.append(f"model.generator={given['generator']}: no such checkpoint; train one with python -m "
                     "mri_synth.run model=vqgan, and give outputs/<run>/best.ckpt")  # fmt: skip
    if given["guide"] in get_args(Kind):
        wants = WEIGHTS[given["guide"]]
        if given["guide"] == "mri_clip" and not Path(given["weights"] or "").is_file():
            found.append(f"model.weights={given['weights']}: model.guide=mri_clip needs {wants}")
        elif given["guide"] == "clip" and not given["weights"]:
            found.append(f"model.weights=null: model.guide=clip needs {wants}")
    if (given["init"] == "image") != (given["init_image"] is not None):
        found.append(f"model.init={given['init']} and model.init_image={given['init_image'] or 'null'}: an image "
                     "is given with model.init=image, and only then")  # fmt: skip
    if given["cut_scale"][0] > given["cut_scale"][1]:
        found.append(f"model.cut_scale={list(given['cut_scale'])}: the least side is above the largest")
    for text in given["prompts"]:
        try:
            schedule(text, given["steps"])
        except UserError as error:
            found.append(f"model.prompts: {error}")
    return found

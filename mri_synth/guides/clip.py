"""CLIP (Radford et al. 2021) as a guide: a `transformers.CLIPModel` by hub name or from a folder; extra `clip`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mri_synth.errors import UserError
from mri_synth.guides import Guide, present

log = logging.getLogger(__name__)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's training images, RGB in [0, 1]; used where a model says no other."""
_NEEDS = (("config.json",), ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
          ("tokenizer.json", "vocab.json"))  # fmt: skip
_EXAMPLE = "openai/clip-vit-base-patch32"


class Clip(Guide):
    """Both towers of a CLIPModel with its tokenizer.

    Args:
        model: a `transformers.CLIPModel`.
        tokenizer: its `CLIPTokenizer`.
        mean: of its training images, RGB in [0, 1].
        std: likewise.

    Attributes:
        longest: tokens that a text may have, its beginning and end among them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.size = int(model.config.vision_config.image_size)
        self.dims = int(model.config.projection_dim)
        self.longest = int(model.config.text_config.max_position_embeddings)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as points.

        Args:
            texts: at least one.

        Returns:
            (n, D) float32 of unit length.

        Raises:
            UserError: one is empty or has more tokens than the model has places for.
        """
        texts = present(texts)
        tokens = self.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        for text, ids in zip(texts, tokens, strict=True):
            if len(ids) > self.longest:
                kept = self.tokenizer.decode(ids[: self.longest - 1], skip_special_tokens=True)
                raise UserError(f'"{text[:40]}...": {len(ids)} tokens, its beginning and end counted; this CLIP takes '
                                f'{self.longest}, and it would be cut after "...{kept[-40:]}". Make it shorter, or two '
                                "prompts of it")  # fmt: skip
        padded = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.mean.device)
        pooled = self.model.text_model(**padded).pooler_output
        return functional.normalize(self.model.text_projection(pooled).float(), dim=1)

    def encode_image(self, image: Tensor) -> Tensor:
        """Images as points; gradients reach the image.

        Args:
            image: (B, C, H, W) in [-1, 1], of 1 or 3 channels.

        Returns:
            (B, D) float32 of unit length.
        """
        pooled = self.model.vision_model(pixel_values=self.prepared(image)).pooler_output
        return functional.normalize(self.model.visual_projection(pooled).float(), dim=1)

    def prepared(self, image: Tensor) -> Tensor:
        """What the vision tower sees: as CLIP's own preprocessing, except that pixels are not rounded to 256 levels.

        The shorter side is resized to `size`, bicubic and antialiased; the middle of the longer is kept.

        Args:
            image: (B, C, H, W) in [-1, 1], of 1 or 3 channels; grey is repeated.

        Returns:
            (B, 3, size, size) float32, less the mean, over the standard deviation.

        Raises:
            ValueError: the image has neither 1 nor 3 channels.
        """
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"image {tuple(image.shape)}: (B, 1, H, W) or (B, 3, H, W) is allowed")
        unit = (image.float() + 1) / 2
        height, width = unit.shape[2:]
        if min(height, width) != self.size:
            shape = [int(side * self.size / min(height, width)) for side in (height, width)]
            unit = functional.interpolate(unit, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = ((side - self.size) // 2 for side in unit.shape[2:])
        return (unit[:, :, top : top + self.size, left : left + self.size] - self.mean) / self.std


def load(weights: str | None) -> Clip:
    """CLIP by name or from a folder; what is not on this machine is fetched from the hub, and said to be.

    Args:
        weights: name on the hub, such as "openai/clip-vit-base-patch32", or a folder that `save_pretrained` wrote.

    Returns:
        The guide, on the CPU in float32.

    Raises:
        UserError: transformers is not installed; the folder lacks files or holds another model; or the name is not in
            the hub's cache and cannot be fetched.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError("guide=clip needs transformers: pip install 'mri-synth[clip]'; a guide that needs no package "
                        "and no hub: guide=conse")  # fmt: skip
    name = str(weights or "")
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        _complete(folder)
        return _read(str(folder), local=True)
    return _from_hub(name)


def _complete(folder: Path) -> None:
    """Refuse a folder that is not a saved CLIPModel with its tokenizer."""
    way_out = f"give a hub name ({_EXAMPLE}) or a folder that model.save_pretrained and tokenizer.save_pretrained wrote"
    if not folder.is_dir():
        raise UserError(
            f"weights={folder}: {'a file and no folder' if folder.exists() else 'no such folder'}; {way_out}"
        )
    missing = [" or ".join(names) for names in _NEEDS if not any((folder / n).is_file() for n in names)]
    if missing:
        raise UserError(f"weights={folder}: has no {', no '.join(missing)}; {way_out}")


def _from_hub(name: str) -> Clip:
    constants: Any = importlib.import_module("huggingface_hub.constants")
    try:
        return _read(name, local=True)
    except OSError:  # transformers' for files that are not there
        looked = [f"{Path(name).absolute()}: no such folder",
                  f"{constants.HF_HUB_CACHE} (the hub's cache): no {name}, or not all of its files"]  # fmt: skip
    if constants.HF_HUB_OFFLINE:
        looked.append("huggingface.co: not asked, HF_HUB_OFFLINE is set")
    else:
        log.warning("fetching %s from huggingface.co into %s", name, constants.HF_HUB_CACHE)
        try:
            return _read(name, local=False)
        except (OSError, ValueError) as error:
            looked.append(f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}: {_first(error)}")
    raise UserError("\n".join([
        f"the CLIP model {name!r} is not here. Looked at:", *(f"  {line}" for line in looked),
        f"Where there is a network: hf download {name}; then here weights={name}, or copy the folder that it prints "
        "and give its path. Guides that need no hub: guide=mri_clip, guide=conse"]))  # fmt: skip


def _read(name: str, local: bool) -> Clip:
    """Model, tokenizer and pixel statistics; raises OSError where a file is not there."""
    transformers: Any = importlib.import_module("transformers")
    noise: Any = importlib.import_module("transformers.utils.logging")
    noise.disable_progress_bar()
    content = _config(name, local)
    if content.get("model_type") != "clip":
        raise UserError(f"weights={name}: a model of type {content.get('model_type')!r}, which is not CLIP; give one "
                        f"whose config.json says model_type clip, such as {_EXAMPLE}")  # fmt: skip
    before = noise.get_verbosity()
    noise.set_verbosity_error()  # it would list unused keys
    try:
        model, told = transformers.CLIPModel.from_pretrained(
            name, local_files_only=local, output_loading_info=True, dtype=torch.float32)  # fmt: skip
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name, local_files_only=local)
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever the readers of three formats meet
        raise UserError(
            f"weights={name}: damaged, or no CLIPModel ({_first(error)}); fetch or save it again"
        ) from error
    finally:
        noise.set_verbosity(before)
    if absent := sorted(told["missing_keys"]):
        raise UserError(f"weights={name}: {len(absent)} of its parameters are not in the file, as {absent[0]}: "
                        "damaged, or weights of another model; fetch or save it again")  # fmt: skip
    mean, std = _statistics(name, local)
    return Clip(model, tokenizer, mean, std)


def _config(name: str, local: bool) -> dict[str, Any]:
    transformers: Any = importlib.import_module("transformers")
    try:
        return dict(transformers.CLIPConfig.get_config_dict(name, local_files_only=local)[0])
    except (OSError, ValueError) as error:
        if not Path(name).is_dir():  # not there
            raise
        raise UserError(f"weights={name}: its config.json cannot be read ({_first(error)})") from None


def _statistics(name: str, local: bool) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that the model's preprocessing says; OpenAI's where it says none."""
    hub: Any = importlib.import_module("transformers.utils.hub")
    place = hub.cached_file(name, "preprocessor_config.json", local_files_only=local,
                            _raise_exceptions_for_missing_entries=False)  # fmt: skip
    said = json.loads(Path(place).read_text()) if place else {}
    return said.get("image_mean", MEAN), said.get("image_std", STD)


def _first(error: Exception) -> str:
    """First line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

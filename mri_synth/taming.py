"""Checkpoints of taming-transformers as generators: VQGAN of ImageNet, of WikiArt (Esser et al. 2021), any of its kind.

A .ckpt of Lightning with its yaml. Read are `VQModel`, `EMAVQ` and `GumbelVQ`, alone or as the first stage of a
`Net2NetTransformer`. Nothing in the file is run: what is no tensor becomes an empty place.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.models.latent_space import LatentSpace
from mri_synth.networks.taming import VQGAN, Shape

log = logging.getLogger(__name__)

KINDS = ("VQModel", "EMAVQ", "GumbelVQ")
"""Classes of taming.models.vqgan that are read."""
NAMES = {
    "quantize.embedding.weight": "codebook",  # VQModel, EMAVQ
    "quantize.embed.weight": "codebook",  # GumbelVQ
    "quantize.proj.": "proj.",  # GumbelVQ
}
"""What parameters are called in a checkpoint, and here, where that differs."""
UNUSED = {
    "loss.": "the discriminator and LPIPS, for training",
    "quantize.embedding.cluster_size": "a moving average of EMAVQ, for training",
    "quantize.embedding.embed_avg": "a moving average of EMAVQ, for training",
    "quantize.used": "a choice of codes for a transformer",
    "colorize": "colours of segmentations, for pictures",
}
"""Beginnings of what a checkpoint has and images do not need."""
_FIRST_STAGE = "first_stage_model."
_FIELDS = ("ch", "num_res_blocks", "resolution", "in_channels", "out_ch", "z_channels")
_WAY_OUT = "give the .ckpt and the .yaml of one model of taming-transformers, as its page links them"


class Taming(LatentSpace):
    """Latents of a VQGAN of taming-transformers: (B, embed_dim, h, w), which each decoding quantises anew.

    Args:
        network: encoder, codebook, decoder.
    """

    def __init__(self, network: VQGAN) -> None:
        shape = network.shape
        super().__init__(shape.out_ch, shape.resolution, shape.downsample)
        self.network = network
        self.scale = float(network.codebook.detach().std())
        self.requires_grad_(False).eval()

    def start(self, seeds: Tensor, size: int) -> Tensor:
        """Codes drawn at random, all alike often (as Crowson 2021)."""
        side = size // self.network.shape.downsample
        codes = uniform(0, 0, seeds, side * side).mul(self.network.shape.n_embed).long()
        return self.network.lookup(codes.view(-1, side, side))

    def encode(self, image: Tensor) -> Tensor:
        """What the encoder says; grey images are three equal channels."""
        return self.network.encode(image.float().expand(-1, self.network.shape.in_channels, -1, -1)).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Of the nearest codes; the gradient of a code's vector goes to the latent."""
        images: Tensor = _Clipped.apply(self.network.decode(self.network.quantize(latent)).float())  # type: ignore[no-untyped-call]
        return images

    def keep(self, latent: Tensor) -> Tensor:
        """Within the codebook's range, dimension by dimension (as Crowson 2021): beyond it no code is nearer."""
        low, high = (e[:, None, None] for e in torch.aminmax(self.network.codebook, dim=0))
        return latent.clamp(low, high)


class _Clipped(torch.autograd.Function):
    """To [-1, 1]: this decoder has no tanh. A pixel beyond keeps the gradient that brings it back (Crowson 2021)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradient * (gradient * (x - x.clamp(-1, 1)) >= 0)


def load(checkpoint: Path, config: Path) -> Taming:
    """The generator of a checkpoint.

    Args:
        checkpoint: .ckpt with "state_dict".
        config: its .yaml.

    Returns:
        Its latents, on the CPU in float32.

    Raises:
        UserError: a file is not there, damaged or of another kind, or the two do not belong together.
    """
    shape, prefix = read_config(config)
    found = _state(checkpoint)
    if prefix and not any(k.startswith(prefix) for k in found):
        prefix = ""  # its first stage, saved alone
    values, unused = {}, Counter[str]()
    for key, value in found.items():
        name = key.removeprefix(prefix)
        left_out = next((start for start in UNUSED if name.startswith(start)), "")
        if left_out or not key.startswith(prefix):
            unused[left_out or key.partition(".")[0] + "."] += 1
            continue
        values[renamed(name)] = value
    for start, count in unused.items():
        log.info("%s: %d tensors %s* are left out: %s", checkpoint, count, start,
                 UNUSED.get(start, "not of the first stage"))  # fmt: skip
    with torch.device("meta"):
        network = VQGAN(shape)
    _fit(network, values, checkpoint, config)
    network.load_state_dict({k: v.float().clone() for k, v in values.items()}, assign=True)
    return Taming(network)


def renamed(key: str) -> str:
    """What a parameter of a checkpoint is called here."""
    return next((ours + key.removeprefix(theirs) for theirs, ours in NAMES.items() if key.startswith(theirs)), key)


def read_config(path: Path) -> tuple[Shape, str]:
    """What a yaml says of a model, and what the names of its parameters begin with.

    Args:
        path: with `model.target` and `model.params`.

    Returns:
        Shape, and "" or "first_stage_model.".

    Raises:
        UserError: no such file, or not that of a model that is read.
    """
    from omegaconf import OmegaConf

    if not path.is_file():
        raise UserError(f"{path}: no such file; {_WAY_OUT}")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        model, prefix = content["model"], ""
        if model["target"].endswith(".Net2NetTransformer"):
            model, prefix = model["params"]["first_stage_config"], _FIRST_STAGE
        kind, params = model["target"].rpartition(".")[2], model["params"]
        if kind not in KINDS:
            raise UserError(f"{path}: target {model['target']}: read are {', '.join(KINDS)}, alone or as the first "
                            f"stage of Net2NetTransformer; {_WAY_OUT}")  # fmt: skip
        inner = params["ddconfig"]
        if inner.get("double_z"):
            raise UserError(f"{path}: double_z: true is of a KL autoencoder, which has no codebook; {_WAY_OUT}")
        if not inner.get("resamp_with_conv", True):
            raise UserError(f"{path}: resamp_with_conv: false is not read; {_WAY_OUT}")
        numbers = {k: int(inner[k]) for k in _FIELDS}
        lists = {k: tuple(int(n) for n in inner[k]) for k in ("ch_mult", "attn_resolutions")}
        numbers |= {k: int(params[k]) for k in ("embed_dim", "n_embed")}
        if any(numbers["ch"] * m % 32 for m in lists["ch_mult"]):
            raise UserError(f"{path}: ch and ch_mult: channels come in 32 groups; {_WAY_OUT}")
        shape = Shape(**numbers, **lists, gumbel=kind == "GumbelVQ")  # type: ignore[arg-type]
    except UserError:
        raise
    except Exception as error:  # whatever the yaml's reader and its content bring
        raise UserError(f"{path}: not the yaml of such a model ({type(error).__name__}: "
                        f"{str(error).splitlines()[0][:120]}); {_WAY_OUT}") from None  # fmt: skip
    return shape, prefix


def _state(path: Path) -> Mapping[str, Tensor]:
    """Tensors by name. Lightning's own objects in the file (callbacks, settings) become empty dicts."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_WAY_OUT}")
    small = ("where you trust the file and have what it asks for, save its tensors alone: torch.save({'state_dict': "
             f"torch.load('{path.name}', weights_only=False)['state_dict']}}, 'small.ckpt')")  # fmt: skip
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        places: Any = [(type("Empty", (_Empty,), {}), name) for name in asked]
        with torch.serialization.safe_globals(places):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+) whose module", str(error))
        why = f"it asks for {blocked[1]}, which no weights need" if blocked else "it holds what is not read here"
        raise UserError(f"{path}: refused: {why}; if it is yours, {small}") from None
    except Exception as error:  # whatever a file that is none brings
        first = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"{path}: damaged, of torch before 1.6, or no checkpoint ({first}); {_WAY_OUT}; of an "
                        f"old file, {small}") from None  # fmt: skip
    if asked:
        log.info("%s: left out, unread: %s", path, ", ".join(sorted(asked)))
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    found = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not found:
        raise UserError(f"{path}: holds no state_dict of tensors; {_WAY_OUT}")
    return found


class _Empty:
    """Stands for whatever a file names that is no tensor: made, it is an empty dict, and so it may be filled."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def _fit(network: VQGAN, values: Mapping[str, Tensor], checkpoint: Path, config: Path) -> None:
    """Say what is missing, too much or of another shape, by its name in the checkpoint."""
    own = {name: tuple(p.shape) for name, p in network.state_dict().items()}
    theirs = {ours: key for key, ours in NAMES.items() if network.shape.gumbel == (key != "quantize.embedding.weight")}
    said = {k: next((t + k.removeprefix(o) for o, t in theirs.items() if k.startswith(o)), k) for k in {*own, *values}}
    wrong = [f"{said[k]} {tuple(values[k].shape)} where the yaml makes it {own[k]}" for k in own
             if k in values and tuple(values[k].shape) != own[k]]  # fmt: skip
    wrong += [f"no {said[k]}" for k in own if k not in values] + [f"also {said[k]}" for k in values if k not in own]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{checkpoint} and {config} are not of one model, or the file is damaged: "
                        f"{'; '.join(wrong[:3])}{more}; {_WAY_OUT}")  # fmt: skip

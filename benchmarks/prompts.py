"""Do samples show what is asked for in words? `python -m benchmarks.prompts CHECKPOINT [n=32] [guidance=1,2]`.

CHECKPOINT is of a model=pixelcnn model.condition=text, trained on phantoms. It is asked for every contrast that it
knows, for a lesion on the left and on the right, and for none, `n` samples of each. Two small networks judge, which
share nothing with it or its guide: trained on phantoms of another seed, one tells contrasts, the other says of half a
slice, the right half mirrored, whether a lesion is in it; a sample's side is that of the likelier half. They learn
slices as they are and as the first stage shows them, whose look is not what is judged. How often they are right on
phantoms that they have not seen, as the first stage shows them, stands beside: samples cannot do better.

`contrast_asked`, `side_asked`: share of the samples that are judged as was asked; `contrast_shuffled`, `side_shuffled`:
the same against what was asked of the others. `lesion_asked`, `lesion_of_none`: share in which a lesion is seen, where
one was asked for and where none was. Of each guidance, in its order. The samples lie in benchmarks/results/prompts.png.

`--quick`: a small random network, which means nothing.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import RESULTS, store
from mri_synth import drawing
from mri_synth.captions import LEFT, RIGHT, sides
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.phantom import Phantom
from mri_synth.models.checkpoint import load_model
from mri_synth.models.mri_clip import MRICLIP
from mri_synth.models.pixelcnn import PixelCNN
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.classifier import Classifier

STRANGERS = 9100
"""Seed of the judges' phantoms; those of the data set have another."""
RADIUS_MM = [20.0, 30.0]
"""Of the lesions: such as a slice of 64 pixels, made of 16 x 16 codes, can show. Train with the same."""


def strangers(contrasts: tuple[str, ...], subjects: int, size: int, seed: int) -> Batch:
    """Slices of phantoms with lesions, which most slices do not meet."""
    data = Phantom(preset="custom", phantom_seed=seed, subjects=[subjects, 1, 1], contrasts=list(contrasts), size=size,
                   lesions="all", lesion_radius_mm=RADIUS_MM)  # fmt: skip
    data.prepare_data()
    data.setup()
    view = data.view("train")
    return view.__getitems__(range(len(view)))


@torch.no_grad()
def through(model: Any, batch: Batch) -> Batch:
    """The same slices as the first stage shows them: no sample can be better."""
    parts = [model.first_stage.draw(model.first_stage.encode(x), k)
             for x, k in zip(batch.image.split(64), batch.index.split(64), strict=True)]  # fmt: skip
    return replace(batch, image=torch.cat(parts))


def halves(images: Tensor) -> Tensor:
    """(2N, 1, H, W / 2): the left halves, then the right ones as in a mirror."""
    middle = images.shape[-1] // 2
    return torch.cat([images[..., :middle], images.flip(-1)[..., :middle]])


def trained(images: Tensor, labels: Tensor, classes: int, epochs: int) -> Classifier:
    """A judge."""
    torch.manual_seed(0)
    network = Classifier(1, classes, 8)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(32):
            loss = functional.cross_entropy(network(images[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def lesions(judge: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) whether a lesion is seen, and on which side it is likelier."""
    logits = judge(halves(images))
    found = (logits[:, 1] - logits[:, 0]).view(2, -1)
    return found.amax(0) > 0, torch.where(found[0] > found[1], LEFT, RIGHT)


def sided(contrast: str, real: Batch, test: Batch, epochs: int) -> tuple[Classifier, float, float]:
    """The judge of half slices of a contrast; how often it is right on a lesion's side, and on whether there is one."""
    assert real.mask is not None
    assert test.mask is not None
    seen, unseen = (torch.tensor([c == contrast for c in batch.contrast]) for batch in (real, test))
    there = halves(real.mask[seen]).flatten(1).any(1).long()
    judge = trained(halves(real.image[seen]), there, 2, epochs)
    truth, (found, side) = sides(test.mask[unseen], test.image[unseen]), lesions(judge, test.image[unseen])
    one_side = (truth == LEFT) | (truth == RIGHT)
    right = [float(x.float().mean()) for x in ((side == truth)[one_side], found == (truth >= 0))]
    return judge, right[0], right[1]


def small() -> PixelCNN:
    """A random one, for --quick."""
    spec = DataSpec(size=32, contrasts=("T1", "FLAIR"), plane="axial", classes=("none", "lesion"))
    parts = {"first_stage": VQVAE(spec, hidden_channels=8, codebook_size=8), "guide": MRICLIP(spec, width=4, dim=8)}
    records: Any = {
        key: {"path": key, "sha256": "", "target": f"{type(part).__module__}.{type(part).__name__}",
              "hyper_parameters": dict(part.hparams)}
        for key, part in parts.items()
    }  # fmt: skip
    model = PixelCNN(spec, condition="text", label_dropout=0.1, channels=8, layers=2, hidden=8, **records).eval()
    assert model.words is not None
    model.words.guide.heard[1:] = 1
    return model


def main(checkpoint: Path | None, n: int, guidances: list[float]) -> None:
    """Measure, print, and keep the result.

    Args:
        checkpoint: of the model; None for `--quick`, which keeps nothing.
        n: samples of each prompt.
        guidances: to sample with.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model = small() if checkpoint is None else load_model(checkpoint)
    spec, subjects, epochs = model.spec, 2 if checkpoint is None else 40, 1 if checkpoint is None else 8
    names = spec.contrasts
    train, test = (
        strangers(names, k, spec.size, STRANGERS + s) for s, k in enumerate((subjects, max(2, subjects // 4)))
    )
    real, test = Batch.join([train, through(model, train)]), through(model, test)
    numbers = [torch.tensor([names.index(c) for c in batch.contrast]) for batch in (real, test)]
    by_contrast = trained(real.image, numbers[0], len(names), epochs)
    found = [sided(c, real, test, 3 * epochs) for c in names]
    bright = names[max(range(len(names)), key=lambda k: found[k][1])]  # where lesions are seen best
    by_half, side_right, lesion_right = found[names.index(bright)]
    with torch.no_grad():
        contrast_right = (by_contrast(test.image).argmax(1) == numbers[1]).float().mean()

    texts = [f"{c} slice" for c in names]
    texts += [f"{bright} slice with a lesion on the {s}" for s in ("left", "right")] + [
        f"{bright} slice without lesions"
    ]
    out: dict[str, list[float]] = {}
    rows: dict[str, Tensor] = {}
    began = time.perf_counter()
    for guidance in guidances:
        made = [model.sample(torch.arange(n), prompt=text, guidance=guidance) for text in texts]  # type: ignore[call-arg]
        rows |= {f'"{text}", guidance {guidance:g}': images[:8] for text, images in zip(texts, made, strict=True)}
        with torch.no_grad():
            called = [by_contrast(images).argmax(1) for images in made[: len(names)]]
        judged = [lesions(by_half, images) for images in made[len(names) :]]
        both = torch.stack([torch.stack([(called[a] == b).float().mean() for b in range(len(names))])
                            for a in range(len(names))])  # fmt: skip
        on_side = [(judged[0][1] == LEFT).float().mean(), (judged[1][1] == RIGHT).float().mean()]
        figures = {
            "contrast_asked": both.diagonal().mean(),
            "contrast_shuffled": (both.sum() - both.diagonal().sum()) / max(1, both.numel() - len(names)),
            "side_asked": sum(on_side) / 2, "side_shuffled": 1 - sum(on_side) / 2,
            "lesion_asked": torch.cat([judged[0][0], judged[1][0]]).float().mean(),
            "lesion_of_none": judged[2][0].float().mean(),
        }  # fmt: skip
        for key, value in figures.items():
            out.setdefault(key, []).append(round(float(value), 4))
    seconds = (time.perf_counter() - began) / (len(guidances) * len(texts) * n)
    store("prompts", {
        "contrasts": list(names), "samples": n, "guidance": guidances, "size": spec.size,
        "contrast_accuracy": round(float(contrast_right), 4),
        "lesions_in": bright, "side_accuracy": round(side_right, 4), "lesion_accuracy": round(lesion_right, 4),
        **out, "seconds_a_sample": round(seconds, 3),
    }, keep=checkpoint is not None)  # fmt: skip
    if checkpoint is not None:
        drawing.save(drawing.sheet(rows, "PixelCNN asked in words, SIMULATED"), RESULTS / "prompts.png")


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    given = [w for w in sys.argv[1:] if not w.startswith("--")]
    if not quick and not given:
        sys.exit("give the checkpoint of a model=pixelcnn with model.condition=text")
    settings = dict(w.split("=") for w in given if "=" in w and not Path(w).exists())
    main(None if quick else Path(given[0]), int(settings.get("n", 4 if quick else 32)),
         [float(g) for g in settings.get("guidance", "1,2").split(",")])  # fmt: skip

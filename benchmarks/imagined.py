"""Does text turn a contrast? `python -m benchmarks.imagined GENERATOR MRI_CLIP [n=8] [strangers=9002] [KEY=VALUE ...]`

T1 slices of phantoms that neither has seen start it. Each is drawn, `steps` steps at the generator's size, to every
contrast which generator and guide know, one prompt a job. A classifier of contrasts then judges what came of them: of
another architecture than the guide (batch norm, mean and maximum), trained on phantoms of another seed, so that it
shares no subject with generator or guide; its accuracy on held-out ones stands beside. `strangers` is the seed of the
slices that start: settings are tried on one, and what is said of them is measured on another.

`asked`: share of the pictures that the classifier calls by the contrast that was asked for. `shuffled`: the same held
against the prompts of other jobs, every one of which asked for something else: what the pictures' differences are
worth. `T2_of_T2`: the share of T1 slices that became T2 when asked to, `T2_of_others`: when asked for anything else.
`seconds_one`: of one job alone, 200 steps.
What is left of the anatomy, of those asked for T2: `ssim_real_T2`, with the subject's real T2 slice, beside that of
the start (`ssim_T1_real_T2`) and of the real slice through the generator (`ssim_T2_real_T2`); and `structure`, how far
their edges are from the start's (0 to 1), beside those of the real T2 through the generator (`structure_real_T2`).

KEY=VALUE are of `conf/model/clip_guided.yaml`, over structure_weight=1. The pictures: benchmarks/results/imagined.png.
`--quick`: small random networks, which mean nothing.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import RESULTS, store
from benchmarks.guided import random_guide
from mri_synth import drawing
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.phantom import Phantom
from mri_synth.devices import computes_in_bf16
from mri_synth.guided import space_of
from mri_synth.guides import Guide, guide
from mri_synth.imagine import settings_of
from mri_synth.losses.guidance import structure_loss
from mri_synth.metrics.ssim import ssim
from mri_synth.models.canvas import paint
from mri_synth.models.clip_guided import ClipGuided
from mri_synth.models.latent_space import LatentSpace
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.classifier import Classifier

STRANGERS = 9000
"""Seed of the phantoms of this benchmark; those of the data set have another."""


def slices(contrasts: list[str], subjects: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) of phantoms, and the index (N,) of their contrast."""
    data = Phantom(preset="custom", phantom_seed=seed, subjects=[subjects, 1, 1], contrasts=contrasts, size=size)
    data.prepare_data()
    data.setup()
    view = data.view("train")
    batch = view.__getitems__(range(len(view)))
    return batch.image, torch.tensor([contrasts.index(c) for c in batch.contrast])


def classifier(contrasts: list[str], size: int, subjects: int = 24) -> tuple[Classifier, float]:
    """Of contrasts, and its accuracy on subjects that it has not seen."""
    torch.manual_seed(0)
    image, label = slices(contrasts, subjects, size, STRANGERS)
    network = Classifier(1, len(contrasts), 8)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(6):
        for part in torch.randperm(len(image)).split(16):
            noisy = image[part] + 0.1 * torch.rand(len(part), 1, 1, 1) * torch.randn_like(image[part])
            loss = functional.cross_entropy(network(noisy), label[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    image, label = slices(contrasts, max(1, subjects // 4), size, STRANGERS + 1)
    with torch.no_grad():
        return network.eval(), float((network(image).argmax(1) == label).float().mean())


def prompt(contrast: str, contrasts: list[str]) -> str:
    """To a contrast, away from the others."""
    others = [c for c in contrasts if c != contrast]
    return " | ".join([f"axial {contrast} slice", *(f"axial {c} slice:{-1 / len(others):g}" for c in others)])


def main(generator: str, weights: str, n: int, seed: int, words: list[str], quick: bool) -> None:
    """Measure, print, and keep the result unless quick.

    Args:
        generator: checkpoint.
        weights: of the guide.
        n: slices.
        seed: of their phantoms.
        words: further settings.
        quick: of networks that know nothing.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    space: LatentSpace
    seer: Guide
    if quick:
        spec = DataSpec(size=32, contrasts=("T1", "T2"), plane="axial")
        space, seer = VQVAE(spec, hidden_channels=8).eval().latent_space(), random_guide(spec, "axial T1 T2 slice")
    else:
        (space, spec), seer = space_of(generator), guide("mri_clip", weights)
    contrasts = [c for c in spec.contrasts if c in seer.model.spec.contrasts]  # type: ignore[union-attr, operator]
    judge, accuracy = classifier(contrasts, space.size, 2 if quick else 24)
    image, label = slices(contrasts, n, space.size, seed)
    starts, real = (image[label == contrasts.index(c)][4::10][:n] for c in ("T1", "T2"))  # one place of every subject
    precision: Any = "bf16-mixed" if computes_in_bf16(torch.cuda.is_available()) else "32-true"
    settings = settings_of(["structure_weight=1", *words], {"generator": generator, "weights": weights, "init": "data"})

    def imagined(text: str, batch: Tensor) -> Tensor:
        model = ClipGuided(spec, **{**settings, "prompts": [text] * len(batch)})
        model.hold(space, spec, seer, torch.arange(len(batch)))
        index = torch.arange(len(batch))
        paint(model, Batch(image=batch, index=index), precision)
        return model.results(index).mean(1, keepdim=True)

    made = {c: imagined(prompt(c, contrasts), starts) for c in contrasts}
    began = time.perf_counter()
    imagined(prompt("T2", contrasts), starts[:1])
    seconds = (time.perf_counter() - began) * 200 / settings["steps"]
    with torch.no_grad():
        drawn, best = (space.decode(space.encode(x)) for x in (starts, real))
        before = judge(drawn).argmax(1)
        called = {c: judge(x).argmax(1) for c, x in made.items()}
    asked = torch.cat([called[c] == contrasts.index(c) for c in contrasts]).float().mean()
    shuffled = torch.cat([called[c] == k for c in contrasts for k, other in enumerate(contrasts) if other != c])
    two = contrasts.index("T2")
    others = torch.cat([called[c] == two for c in contrasts if c != "T2"])
    store("imagined", {
        "contrasts": contrasts, "slices": n, "steps": settings["steps"], "cutouts": settings["cutouts"],
        "size": space.size, "classifier_accuracy": round(accuracy, 4),
        "T2_before": round(float((before == two).float().mean()), 4),
        "T2_of_T2": round(float((called["T2"] == two).float().mean()), 4),
        "T2_of_others": round(float(others.float().mean()), 4), "asked": round(float(asked), 4),
        "shuffled": round(float(shuffled.float().mean()), 4), "seconds_one": round(seconds, 1),
        **{name: round(float(ssim((x + 1) / 2, (real + 1) / 2).mean()), 4) for name, x in (
            ("ssim_real_T2", made["T2"]), ("ssim_T1_real_T2", drawn), ("ssim_T2_real_T2", best))},
        **{name: round(float(structure_loss(x, drawn).mean()), 4) for name, x in (
            ("structure", made["T2"]), ("structure_real_T2", best))},
        "strangers": seed, "settings": words,
    }, keep=not quick)  # fmt: skip
    if quick:
        return
    rows = {"T1, the start": starts, **{f'"{c}"': x for c, x in made.items()}, "T2, the real one": real}
    drawing.save(drawing.sheet(rows, "clip_guided with mri_clip, SIMULATED"), RESULTS / "imagined.png")


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    given = [__file__, __file__, "n=2", "steps=3"] if quick else sys.argv[1:]
    if len(given) < 2:
        sys.exit("give the checkpoint of a generator and that of an mri_clip, which know the same contrasts")
    count = next((int(w[2:]) for w in given[2:] if w.startswith("n=")), 8)
    strangers = next((int(w.partition("=")[2]) for w in given[2:] if w.startswith("strangers=")), STRANGERS + 2)
    rest = [w for w in given[2:] if not w.startswith(("n=", "strangers="))]
    main(given[0], given[1], count, strangers, rest, quick)

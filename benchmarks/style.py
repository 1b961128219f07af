"""Style transfer against the published loop: `python -m benchmarks.style`, after `mri-synth weights get vgg19`.

A 256 x 256 pair, 100 evaluations of L-BFGS, content conv4_2, style conv1_1 to conv5_1, weights 1 and 10, the
whole image, from the content; a history of 10.

(a) `speedup`: the plain published loop (torch.optim.LBFGS on one image, float32, contiguous, weights
frozen) against ours (bf16 features where the processor computes in it, channels_last). Each from networks that are
loaded; targets are counted.
(b) `batch_share`: a batch of 8 pairs against the same pairs one by one.
(c) `batch_difference`: the largest difference of a pixel in [-1, 1] of a pair in the batch from the pair alone.

Without the weights they are drawn at random, which is as fast. `--quick`: 64 pixels, 6 evaluations, a batch of 2.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import alternate, speedup, store
from mri_synth import weights
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.devices import computes_in_bf16
from mri_synth.models.canvas import paint
from mri_synth.models.style_transfer import StyleTransfer
from mri_synth.networks import vgg19

STYLE: list[Any] = ["conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"]
CONTENT = "conv4_2"
STYLE_WEIGHT = 10.0


def published(network: vgg19.VGG19, content: Tensor, style: Tensor, evaluations: int) -> Tensor:
    """The loop as it is published (Gatys et al. 2016): one image, float32, torch's L-BFGS.

    Args:
        network: contiguous float32.
        content: (1, 1, H, W) in [-1, 1].
        style: (1, 1, H, W) in [-1, 1].
        evaluations: of the closure.

    Returns:
        (1, 1, H, W).
    """

    def gram(f: Tensor) -> Tensor:
        flat = f.flatten(2)
        return flat @ flat.transpose(1, 2) / flat.shape[2]

    def features(x: Tensor) -> dict[str, Tensor]:
        found, x = {}, network.prepared(x)
        for name, layer in network.convolutions.items():
            if name.endswith("_1") and name != "conv1_1":
                x = functional.avg_pool2d(x, 2)
            x = functional.relu(layer(x))
            found[name] = x
        return found

    with torch.no_grad():
        kept = features(content)[CONTENT]
        grams = {n: gram(f) for n, f in features(style).items() if n in STYLE}
    canvas = content.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([canvas], max_iter=evaluations, max_eval=evaluations, history_size=10,
                                  tolerance_grad=0, tolerance_change=0)  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = features(canvas)
        loss = (found[CONTENT] - kept).square().mean() / 2
        for n in STYLE:
            g = gram(found[n])
            loss = loss + STYLE_WEIGHT * (g - grams[n]).square().sum() / (4 * g.shape[1] ** 2) / len(STYLE)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return canvas.detach().clamp(-1, 1)


def pairs(count: int, size: int) -> Batch:
    """Phantoms' slices: contents T1, styles T2 of other subjects."""
    from mri_synth.data.phantom import Phantom
    from mri_synth.data.style_pairs import style_pairs

    data = Phantom(subjects=[max(4, count), 1, 1], contrasts=["T1", "T2"], size=size, cache=tempfile.mkdtemp())
    data.view_class = style_pairs(count, 1)
    data.prepare_data()
    data.setup()
    return data.view("train").__getitems__(range(count))


def main(quick: bool) -> None:
    """Measure, print, and keep the result unless quick.

    Args:
        quick: small sizes, nothing kept.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    size, evaluations, count, passes = (64, 6, 2, 1) if quick else (256, 100, 8, 1)
    batch = pairs(count, size)
    singles = [batch.part(slice(k, k + 1)) for k in range(count)]
    for single in singles:
        single.index = torch.zeros(1, dtype=torch.int64)
    here = weights.find("vgg19").path
    path = None if here else _random(Path(tempfile.mkdtemp()) / "vgg.pth")
    network = vgg19.pretrained("conv5_1", "average", path).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    precision: Any = "bf16-mixed" if computes_in_bf16(torch.cuda.is_available()) else "32-true"
    model = StyleTransfer(
        DataSpec(size=size), region="image", content_layers=["conv4_2"], style_layers=STYLE, style_weight=STYLE_WEIGHT,
        steps=evaluations, vgg=None if path is None else str(path),
    )  # fmt: skip
    assert batch.target is not None
    results: dict[str, list[Tensor]] = {}

    def kept(name: str, made: Callable[[], list[Tensor]]) -> Callable[[], None]:
        return lambda: results.__setitem__(name, made())

    content, style = batch.image[:1], batch.target[:1]
    first = {
        "published": kept("published", lambda: [published(network, content, style, evaluations)]),
        "ours": kept("ours", lambda: [paint(model, singles[0], precision)]),
    }
    paint(_shortened(model, 2), singles[0], precision)  # networks are loaded, memory is there
    model.steps = evaluations
    one = alternate(first, passes, warmup=0)
    many = alternate({
        "batch": kept("batch", lambda: list(paint(model, batch, precision).split(1))),
        "singles": kept("singles", lambda: [paint(model, s, precision) for s in singles]),
    }, passes, warmup=0)  # fmt: skip
    with torch.no_grad():
        model.eval()
        model.start([singles[0]])
        left = {name: float(model.terms(singles[0], results[name][0])["loss"]) for name in ("published", "ours")}
    store("style", {
        "size": size, "evaluations": evaluations, "precision": precision, "weights": "real" if here else "random",
        "seconds_published": round(float(np.median(one["published"])), 2),
        "seconds_ours": round(float(np.median(one["ours"])), 2),
        "speedup": round(speedup(one, "ours", "published"), 3),
        "loss_published": left["published"], "loss_ours": left["ours"],
        "batch": count, "seconds_batch": round(float(np.median(many["batch"])), 2),
        "seconds_singles": round(float(np.median(many["singles"])), 2),
        "batch_share": round(1 / speedup(many, "batch", "singles"), 3),
        "batch_difference": max(float((a - b).abs().max()) for a, b in
                                zip(results["batch"], results["singles"], strict=True)),
    }, keep=not quick)  # fmt: skip


def _shortened(model: StyleTransfer, steps: int) -> StyleTransfer:
    model.steps = steps
    return model


def _random(path: Path) -> Path:
    """Weights of no meaning in torchvision's layout."""
    network = vgg19.VGG19("conv5_1")
    keys = (f"features.{k}" for k in vgg19._TORCHVISION)
    layers = zip(keys, network.convolutions.values(), strict=False)
    torch.save({f"{k}.{part}": getattr(layer, part).data for k, layer in layers for part in ("weight", "bias")}, path)
    return path


if __name__ == "__main__":
    main("--quick" in sys.argv)

"""Samples of a trained model: drawn, laid out on a sheet, and judged against real images where features are at hand."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mri_synth import drawing
from mri_synth.data.base import MRIDataModule, cache_folder
from mri_synth.data.scan import SPLITS
from mri_synth.errors import UserError
from mri_synth.metrics.features import Features, load_features
from mri_synth.metrics.generation import judge
from mri_synth.models.base import SynthModule
from mri_synth.sample import draw

log = logging.getLogger(__name__)

ON_SHEET = 48
PAIRS = 8


def sampled(
    model: SynthModule, data: MRIDataModule, run: Path, n: int, words: Sequence[str], batch_size: int = 32
) -> dict[str, Any]:
    """Draw samples with the seeds 0, 1, ... and judge them.

    Conditional models are asked for their labels in turn, by how often each is in the training split.

    Args:
        model: samples; on its device.
        data: set up.
        run: the run's folder; sheets go to its pictures.
        n: how many.
        words: feature spaces as `features=` says them; the first is the criterion, the others stand beside it.
        batch_size: samples at once.

    Returns:
        Plain values: "samples", "seconds", and of the first feature space all that `judge` says; "beside", the same of
        the others; "missing", why there is no judgement.
    """
    started = time.monotonic()
    labels = _labels(model, data, n)
    model.eval()
    images = torch.cat([_drawn(model, labels, at, min(at + batch_size, n)) for at in range(0, n, batch_size)])
    seconds = time.monotonic() - started
    names = model.conditions()
    captions = None if labels is None else [names[i] for i in labels[:ON_SHEET].tolist()]
    simulated = " · trained on SIMULATED images" if data.spec.simulated else ""
    title = f"{type(model).__name__} · samples, seeds 0 to {min(n, ON_SHEET) - 1}{simulated}"
    drawing.save(drawing.grid(images[:ON_SHEET], title, captions=captions, columns=8), run / "pictures" / "samples.png")
    out: dict[str, Any] = {"samples": n, "seconds": round(seconds, 2)}
    spaces, missing = _spaces(words, model.device)
    if missing:
        out["missing"] = missing
    if n < 2 or not spaces:
        return out
    judged = [_judged(images, data, space) for space in spaces]
    _copies(images, data, judged[0], run, simulated)
    return out | judged[0] | {"beside": judged[1:]}


def _labels(model: SynthModule, data: MRIDataModule, n: int) -> Tensor | None:
    """(n,) what each sample is asked for: shares as in train, evenly spread; None for unconditional models."""
    names = model.conditions()
    if not names:
        return None
    items = data.view("train")
    known = items.__getitems__(list(range(min(len(items), 10_000))))
    if names == data.spec.contrasts:
        present = torch.tensor([names.index(c) for c in known.contrast])
    else:
        assert known.label is not None
        present = known.label[known.label >= 0]
    ordered = present.sort().values
    return ordered[(torch.arange(n) * len(ordered)) // n]


def _drawn(model: SynthModule, labels: Tensor | None, start: int, stop: int) -> Tensor:
    return draw(model, range(start, stop), None if labels is None else labels[start:stop], {})


def _spaces(words: Sequence[str], device: torch.device) -> tuple[list[Features], str]:
    """Feature spaces that can be had, and why others cannot ("auto" asks for Inception without insisting)."""
    spaces, missing = [], ""
    for word in words:
        try:
            spaces.append(load_features("inception" if word == "auto" else word, device))
        except UserError as error:
            if word != "auto":
                raise
            log.debug("no judgement: %s", error)
            missing = ("samples are not judged: the weights of Inception are not here. mri-synth weights get inception "
                       "fetches them (83 MB); features=outputs/<run>/best.ckpt takes an encoder")  # fmt: skip
    return spaces, missing


def _judged(images: Tensor, data: MRIDataModule, space: Features) -> dict[str, Any]:
    views = {split: data.view(split) for split in SPLITS if len(data.view(split))}
    return judge(images, views, space, cache=cache_folder(data.cache))


def _copies(images: Tensor, data: MRIDataModule, judged: dict[str, Any], run: Path, simulated: str) -> None:
    """The samples that are nearest to a training image, beside it."""
    found = (judged.get("memorisation") or {}).get("features")
    if not found:
        return
    pairs = found["pairs"][:PAIRS]
    fake = images[[p["fake"] for p in pairs]]
    real = data.view("train").__getitems__([p["train"] for p in pairs]).image
    rows: dict[str, Any] = {"sample": fake.numpy(), "nearest in train": real.numpy()}
    rows["|difference|"] = drawing.error(rows["sample"], rows["nearest in train"])
    title = f"The samples nearest to a training image, in the features of {judged['features']['name']}{simulated}"
    drawing.save(drawing.sheet(rows, title, [f"distance {p['to_train']:.3g}" for p in pairs]),
                 run / "pictures" / "nearest.png")  # fmt: skip

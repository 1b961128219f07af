"""Samples of a trained model: drawn, laid out on a sheet, and judged against real images where features are at hand."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mri_synth import drawing
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.scan import SPLITS
from mri_synth.data.stored import cache_folder
from mri_synth.errors import UserError
from mri_synth.metrics import distributions
from mri_synth.metrics.features import Features, load_features
from mri_synth.metrics.generation import HELD_OUT, judge
from mri_synth.models.base import SynthModule
from mri_synth.sample import draw
from mri_synth.weights import find
from mri_synth.weights.known import WEIGHTS

log = logging.getLogger(__name__)

ON_SHEET = 48
PAIRS = 8


def sampled(
    model: SynthModule, data: MRIDataModule, run: Path, n: int, words: Sequence[str], batch_size: int = 32
) -> dict[str, Any]:
    """Draw samples with the seeds 0, 1, ... and judge them.

    Conditional models are asked for their labels in turn, by how often each is in the training split; those that take
    prompts for captions of validation images.

    Args:
        model: samples; on its device.
        data: set up.
        run: the run's folder; sheets go to its pictures.
        n: how many.
        words: feature spaces as `features=` says them; the first is the criterion, the others stand beside it.
        batch_size: samples at once.

    Returns:
        Plain values: "samples", "seconds", "options" of `sample` that the model sets, "origin" of models that say what
        they draw from, "intensities" of samples and of held-out images, and of the first feature space all that `judge`
        says; "beside", the same of the others; "missing", why there is no judgement.

    Raises:
        UserError: a feature space that is asked for by its name is not here.
    """
    networks, missing = spaces(words, model.device)
    started = time.monotonic()
    labels, prompts = labels_in_turn(model, data, n), prompts_in_turn(model, data, n)
    model.eval()
    (run / "pictures" / "nearest.png").unlink(missing_ok=True)  # of the samples before a resume
    images = torch.cat([_drawn(model, labels, prompts, at, min(at + batch_size, n)) for at in range(0, n, batch_size)])
    seconds = time.monotonic() - started
    names = model.conditions()
    captions = None if labels is None else [names[i] if i >= 0 else "any" for i in labels[:ON_SHEET].tolist()]
    captions = captions if prompts is None else prompts[:ON_SHEET]
    simulated = " · trained on SIMULATED images" if data.spec.simulated else ""
    title = f"{type(model).__name__} · samples, seeds 0 to {min(n, ON_SHEET) - 1}{simulated}"
    drawing.save(drawing.grid(images[:ON_SHEET], title, captions=captions, columns=8), run / "pictures" / "samples.png")
    options = [p.name for p in inspect.signature(model.sample).parameters.values() if p.kind is p.KEYWORD_ONLY]
    how = {name: model.hparams[name] for name in options if model.hparams.get(name) is not None}
    out: dict[str, Any] = {"samples": n, "seconds": round(seconds, 2), "options": how}
    if model.origin:
        out["origin"] = model.origin
    if missing:
        out["missing"] = missing
    if n >= 2:
        out["intensities"] = _intensities(images, data)
    if n < 2 or not networks:
        return out
    try:
        judged = [_judged(images, data, space) for space in networks]
    except UserError as error:  # such as samples that are not finite: no reason to lose the results of a training
        log.warning("samples are not judged: %s", error)
        return out | {"missing": f"samples are not judged: {error}"}
    _copies(images, data, judged[0], run, simulated)
    return out | judged[0] | {"beside": judged[1:]}


def labels_in_turn(model: SynthModule, data: MRIDataModule, n: int) -> Tensor | None:
    """(n,) what each sample is asked for: shares as in train, mixed; None for unconditional models, or -1: any.

    The label of a seed does not depend on n: multiples of the golden ratio fall evenly, however many there are.
    """
    if not model.conditions():
        return None
    items = data.view("train")
    label, position = (torch.from_numpy(items.store.table[k][items.rows]) for k in ("label", "position_mm"))
    contrast = tuple(items.contrasts[c] for c in items.contrast)
    bare = Batch(image=torch.empty(0), index=torch.empty(0), label=label, position_mm=position, contrast=contrast)
    asked = model.condition(bare)
    assert asked is not None
    known = asked.cpu().numpy()
    ordered = np.sort(known[known >= 0]).astype(np.int64)
    if not len(ordered):
        return torch.full((n,), -1)
    shares = np.arange(1, n + 1) * ((5**0.5 - 1) / 2) % 1
    return torch.from_numpy(ordered[(shares * len(ordered)).astype(int)])


def prompts_in_turn(model: SynthModule, data: MRIDataModule, n: int) -> list[str] | None:
    """What each sample is asked for in words: captions of validation images; None for models that take no prompts.

    The prompt of a seed does not depend on n, as in `labels_in_turn`.
    """
    if model.hparams.get("condition") != "text":
        return None
    items = data.view("val")
    shares = np.arange(1, n + 1) * ((5**0.5 - 1) / 2) % 1
    chosen = (shares * len(items)).astype(int).tolist()
    return [text for at in range(0, n, 64) for text in model.prompts(items.__getitems__(chosen[at : at + 64]))]


def _drawn(model: SynthModule, labels: Tensor | None, prompts: list[str] | None, start: int, stop: int) -> Tensor:
    options = {} if prompts is None else {"prompt": prompts[start:stop]}
    return draw(model, range(start, stop), None if labels is None else labels[start:stop], options)


def spaces(words: Sequence[str], device: torch.device | str) -> tuple[list[Features], str]:
    """Feature spaces by their words; "auto" asks for Inception without insisting.

    Args:
        words: as `features=` says them.
        device: where the networks compute.

    Returns:
        Those that can be had, and why Inception cannot.

    Raises:
        UserError: one that is asked for by its name is not here.
    """
    found, missing = [], ""
    for word in words:
        try:
            found.append(load_features("inception" if word == "auto" else word, device))
        except UserError:
            if word != "auto":
                raise
            refused = [line for line in find("inception").looked if "damaged" in line]
            missing = ("samples are not judged: the weights of Inception are not here. mri-synth weights get inception "
                       f"fetches them ({WEIGHTS['inception'].megabytes}); features=[outputs/<run>/best.ckpt] takes an "
                       "encoder")  # fmt: skip
            if refused:
                missing += f". What is here will not do: {'; '.join(refused)}"
                log.warning(missing)
    return found, missing


def _judged(images: Tensor, data: MRIDataModule, space: Features) -> dict[str, Any]:
    views = {split: data.view(split) for split in SPLITS if len(data.view(split))}
    return judge(images, views, space, cache=cache_folder(data.cache))


def _intensities(images: Tensor, data: MRIDataModule, batch_size: int = 64) -> dict[str, list[float]]:
    """Histograms of samples and of real images that were not trained on, where there are such."""
    views = [v for v in map(data.view, HELD_OUT) if len(v)] or [data.view("train")]

    def real() -> Iterator[Tensor]:
        for view in views:
            items = np.random.default_rng(0).permutation(len(view))[: distributions.MOST].tolist()
            for at in range(0, len(items), batch_size):
                yield view.__getitems__(items[at : at + batch_size]).image

    return distributions.intensities(real(), images.split(batch_size))


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

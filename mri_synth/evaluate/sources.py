"""What `mri-synth evaluate` may be given: folders of images, data words, prepared stores, checkpoints that sample."""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mri_synth.data.derived import channels as derived_channels
from mri_synth.data.derived import derive
from mri_synth.data.names import examples
from mri_synth.data.store import MASK, Store
from mri_synth.data.views import Images
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.evaluate.folder import ALLOWED, Reading, add_folder
from mri_synth.evaluate.images import ImageSet, text
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.sample import draw

log = logging.getLogger(__name__)


def open_sets(real: str, fake: str, train: str | None, how: Reading) -> dict[str, ImageSet]:
    """The sets that are compared.

    Of data words, real are the held-out splits (val and test), and train is the training split unless said otherwise.

    Args:
        real: as given.
        fake: as given.
        train: as given; None: of data words their training split, else no set.
        how: to read them.

    Returns:
        "real", "fake" and, where there is one, "train".

    Raises:
        UserError: a word that means nothing, or images that cannot be used.
    """
    sets = {"real": open_set("real", real, how)}
    if train is not None or _are_words(real):
        found = open_set("train", train or real, how)
        if train is not None or len(found):
            sets["train"] = found
    return {"real": sets["real"], "fake": open_set("fake", fake, how, sets.get("train")), **sets}


def open_set(role: str, word: str, how: Reading, train: ImageSet | None = None) -> ImageSet:
    """One set.

    Args:
        role: "real", "fake" or "train".
        word: as given.
        how: to read it.
        train: of whose label maps a checkpoint that needs such makes images.

    Returns:
        The set, read.

    Raises:
        UserError: a word that means nothing, or images that cannot be used.
    """
    out = ImageSet(role, word, how.output, how.size)
    path = Path(word).expanduser()
    if _are_words(word):
        _add_words(out, word, how)
    elif (path / "meta.json").is_file() and (path / "table.npz").is_file():
        store = Store(path)
        contrasts = [c for c in store.counts if c != MASK]
        out.about |= {"kind": "store", "contrasts": contrasts}
        _add_view(out, Images(store, np.arange(store.rows), contrasts), [], how, 0)
    elif path.is_dir():
        add_folder(out, path, how)
    elif path.is_file() and path.suffix == ".ckpt":
        if role != "fake":
            raise UserError(f"{role}: {word} is a checkpoint; only FAKE may be drawn from one; {ALLOWED}")
        _add_made(out, path, how, train)
    else:
        raise UserError(f"{role}: {word}: {'one file' if path.exists() else 'no such folder'}; {ALLOWED}")
    out.keep(how.at_most, how.seed)
    return out


def _are_words(word: str) -> bool:
    return "data=" in word and not Path(word).exists()


def _add_words(out: ImageSet, word: str, how: Reading) -> None:
    from mri_synth.describe import data_of

    data = data_of(shlex.split(word))
    data.prepare_data()
    data.setup("look")
    wanted = {"real": ("val", "test"), "train": ("train",), "fake": ("train", "val", "test")}[out.role]
    splits = [s for s in wanted if len(data.view(s))]
    if not splits and out.role == "real":
        splits = ["train"]
        log.warning("real: nothing is in val and test; the training images are taken")
    out.about |= {"kind": "data", "splits": splits, "simulated": data.spec.simulated, "contrasts": list(data.contrasts)}
    for number, split in enumerate(splits):
        _add_view(out, data.view(split), list(data.spec.classes), how, number)
    out.files = [{"path": r["path"], "sha256": r["sha256"], "images": r["slices"]} for r in data.manifest
                 if r["split"] in splits]  # fmt: skip


def _add_view(out: ImageSet, view: Images, classes: Sequence[str], how: Reading, stream: int) -> None:
    items = np.sort(np.random.default_rng([how.seed, stream]).permutation(len(view))[: how.at_most])
    label = view.store.table["label"][view.rows]
    numbers = view.store.table["slice"][view.rows]
    for start in range(0, len(items), 64):
        part = items[start : start + 64].tolist()
        batch = view.__getitems__(part)
        images, subjects = batch.image[:, 0].numpy(), [str(s) for s in view.subjects[part]]
        masks = batch.mask if MASK in view.store.counts else None
        for k, item in enumerate(part):
            name = classes[label[item]] if classes and label[item] >= 0 else ""
            place = f"{subjects[k]} {view.contrasts[view.contrast[item]]}"
            there = masks is not None and view.store.table[f"row_{MASK}"][view.rows[item]] >= 0
            out.add(images[k : k + 1], place, subjects=[subjects[k]], labels=[name], numbers=[int(numbers[item])],
                    masks=masks[k].numpy() if masks is not None and there else None)  # fmt: skip
    if len(items) < len(view):
        out.about["of"] = out.about.get("of", 0) + len(view)


@torch.no_grad()
def _add_made(out: ImageSet, path: Path, how: Reading, train: ImageSet | None) -> None:
    """Samples of a checkpoint; of one that makes images of label maps, those of TRAIN's."""
    model = load_model(path).to(device_of(how.device))
    sources = tuple(model.spec.sources)
    of_maps = model.translates() and sources in ((MASK,), derived_channels(model.spec.classes))
    if model.spec.channels != 1 or not (model.samples() or of_maps):
        raise UserError(f"fake: {path}: its model, {type(model).__name__}, makes no new images of one channel; give "
                        "one that does, or a folder that mri-synth translate or refine wrote")  # fmt: skip
    out.about |= {"kind": "checkpoint", "model": type(model).__name__, "simulated": model.spec.simulated,
                  "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}  # fmt: skip
    if of_maps:
        _add_painted(out, model, path, how, train)
    else:
        _add_samples(out, model, how)
    out.files.append({"path": str(path), "sha256": out.about["sha256"], "images": len(out)})


def _add_painted(out: ImageSet, model: SynthModule, path: Path, how: Reading, train: ImageSet | None) -> None:
    """An image of each of TRAIN's label maps; its mask and class are those that it was made of."""
    items = np.flatnonzero(train.marked >= 0) if train is not None else np.zeros(0, np.int64)
    if train is None or not len(items):
        raise UserError(f"fake: {path}: {type(model).__name__} makes images of label maps; give the images with label "
                        "maps that it was trained on by --train")  # fmt: skip
    if train.shape != (model.spec.size, model.spec.size):
        raise UserError(f"fake: {path}: it takes {model.spec.size} pixels, and TRAIN has {text(train.shape)}; say "
                        f"--size {model.spec.size}")  # fmt: skip
    items = np.sort(np.random.default_rng(how.seed).permutation(items)[: how.n])
    out.about["made_of"] = "label maps of TRAIN"
    names = list(model.spec.classes)
    for start in range(0, len(items), how.batch_size):
        part = items[start : start + how.batch_size].tolist()
        masks, labels = train.masks(part), [str(c) for c in train.labels[part]]
        source = 2 * masks - 1
        if tuple(model.spec.sources) != (MASK,):
            label = torch.tensor([names.index(c) if c in names else -1 for c in labels])
            source = derive(train.images(part), label, names)
        images = model.translate(source.to(model.device)).float().clamp(-1, 1).cpu()[:, 0].numpy()
        for k, place in enumerate(train.places[part]):
            out.add(images[k : k + 1], f"of the map of {place}", labels=[labels[k]], masks=masks[k].numpy())


def _add_samples(out: ImageSet, model: SynthModule, how: Reading) -> None:
    names = model.conditions()
    by_class = bool(names) and set(names) <= set(model.spec.classes)
    out.about |= {"seeds": [0, how.n - 1], "labels": "each in turn" if names else None}
    if model.hparams.get("condition") == "text":
        out.about["asked_for"] = "nothing: it is asked in words, and mri-synth sample --prompt makes a folder that was"
    for start in range(0, how.n, how.batch_size):
        seeds = range(start, min(start + how.batch_size, how.n))
        label = torch.tensor([s % len(names) for s in seeds]) if names else None
        images = draw(model, seeds, label, {})[:, 0].numpy()
        for k, seed in enumerate(seeds):
            out.add(images[k : k + 1], f"seed {seed}", labels=[names[seed % len(names)] if by_class else ""])


def tables(sets: Sequence[ImageSet]) -> list[list[Any]]:
    """Rows of files.csv: set, path, sha256, images."""
    return [[one.role, f["path"], f["sha256"], f["images"]] for one in sets for f in one.files]


def examples_of(pairs: Sequence[tuple[str, str]]) -> str:
    """Some pairs of places for a message."""
    return examples(f"{a} = {b}" for a, b in pairs)

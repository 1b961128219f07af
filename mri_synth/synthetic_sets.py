"""Sets of synthetic images by class: drawn from a generator's checkpoint, and restyled with real images beside them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from mri_synth.data import identity
from mri_synth.data.base import MRIDataModule
from mri_synth.data.derived import channels as derived_channels
from mri_synth.data.nifti import whole_file
from mri_synth.data.settings import Source
from mri_synth.data.store import MASK
from mri_synth.data.stored import cache_folder
from mri_synth.data.views import Images, Pairs, Reading
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.outputs import table_hash
from mri_synth.refine.restyler import Restyler
from mri_synth.sample import draw

log = logging.getLogger(__name__)

Content = Literal["real", "synthetic"]
AT_ONCE = 8
"""Images that are drawn or painted together."""
LAYOUT = 2
"""Of a cached set; raised when what is in one changes."""


@dataclass
class ClassSet:
    """Images with their group.

    Attributes:
        image: (N, C, H, W) float32 in [-1, 1].
        group: (N,) int64.
    """

    image: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.group)

    def with_(self, other: ClassSet) -> ClassSet:
        """Both sets as one."""
        return ClassSet(torch.cat([self.image, other.image]), torch.cat([self.group, other.group]))


def real_items(view: Images, group_of: Tensor, n: int, seed: int, what: str) -> list[int]:
    """Items of a split, as many of each group, spread over its subjects.

    Args:
        view: of the split.
        group_of: (classes,) group of each class, -1 of classes that are in none.
        n: of each group.
        seed: of the draw.
        what: the setting that asks for them, and its split, for messages.

    Returns:
        Items, group after group.

    Raises:
        UserError: a group has fewer.
    """
    group = group_of[torch.from_numpy(view.store.table["label"][view.rows].astype(np.int64))].numpy()
    chosen: list[int] = []
    for g in range(int(group_of.max()) + 1):
        items, rng = np.flatnonzero(group == g), np.random.default_rng([seed, 7, g])
        if len(items) < n:
            raise UserError(f"{what}: {n} images of each group are asked for, and group {g + 1} has {len(items)}; "
                            "lower model.n_per_class, or give more data")  # fmt: skip
        subject, rank = view.subjects[items], np.zeros(len(items), np.int64)
        order = rng.permutation(len(items))
        seen: dict[str, int] = {}
        for k in order:  # the first of every subject, then the second, ...
            rank[k] = seen[subject[k]] = seen.get(subject[k], -1) + 1
        chosen += items[order[np.argsort(rank[order], kind="stable")][:n]].tolist()
    return chosen


class Generator:
    """A checkpoint that makes images of a wanted class.

    A method that samples is asked by label. One that translates makes them of the sources of given real slices, such as
    their label maps, and their class is that of the slices.

    Args:
        name: of the row.
        path: of the checkpoint.
        data: the set that the images are to be like; set up.

    Raises:
        UserError: of another size or contrast, or it cannot be asked for a class.
    """

    def __init__(self, name: str, path: Path, data: MRIDataModule) -> None:
        self.key, self.path, self.data = f"model.generators.{name}={path}", path, data
        self.model: SynthModule = load_model(path).to(device_of("auto"))
        self.sha256 = identity.sha256(path)
        there, here = self.model.spec, data.spec
        made = there.contrasts if there.goal is None else (there.goal,)
        if (there.size, there.channels) != (here.size, here.channels) or not set(here.contrasts) & set(made):
            raise UserError(f"{self.key}: makes {'/'.join(made)} of {there.size} pixels, and the data are "
                            f"{'/'.join(here.contrasts)} of {here.size}; give the data words of its run")  # fmt: skip
        known = self.model.conditions()
        if not self.model.translates() and not (self.model.samples() and set(here.classes) & set(known)):
            raise UserError(f"{self.key}: {type(self.model).__name__} cannot be asked for a class; train it with "
                            "model.condition=label, or give a method that translates")  # fmt: skip
        if self.model.translates():
            self.view = self._sources(there.sources)

    def _sources(self, names: tuple[str, ...]) -> Callable[[str], Pairs]:
        """The view that has a translator's sources, by split."""
        data, goal = self.data, str(self.model.spec.goal)
        derived = names == derived_channels(data.spec.classes)
        source: Source = "mask" if names == (MASK,) else "derived" if derived else "contrasts"
        contrasts = [*names, goal] if source == "contrasts" else [goal]
        if missing := [c for c in contrasts if c not in data.contrasts]:
            raise UserError(f"{self.key}: makes {goal} of {' and '.join(names)}, and these data have no "
                            f"{' and '.join(missing)}; give data.contrasts=[{','.join(contrasts)}]")  # fmt: skip
        how = Reading(source, data.spec.classes)
        return lambda split: Pairs(data._open(), data.split_rows[split], contrasts, how)

    def make(self, split: str, view: Images, items: Sequence[int], names: Sequence[str], seed: int) -> Tensor:
        """As many images as items, of their classes.

        Args:
            split: whose slices a translator begins with.
            view: of that split.
            items: real slices: their classes are asked for.
            names: class of each.
            seed: of the first image.

        Returns:
            (N, C, H, W) float32 in [-1, 1].

        Raises:
            UserError: a class that the checkpoint does not know.
        """
        if self.model.translates():
            sources = self.view(split)
            at = {int(row): k for k, row in enumerate(sources.rows)}
            rows = [at[int(row)] for row in view.rows[list(items)]]
            with torch.no_grad():
                parts = [self.model.translate(sources.__getitems__(rows[k : k + AT_ONCE]).image.to(self.model.device))
                         for k in range(0, len(rows), AT_ONCE)]  # fmt: skip
            return torch.cat(parts).float().clamp(-1, 1).cpu()
        known = self.model.conditions()
        if unknown := set(names) - set(known):
            raise UserError(f"{self.key}: knows {', '.join(known)}, and not {', '.join(sorted(unknown))}")
        label = torch.tensor([known.index(name) for name in names])
        ends = [(k, min(k + AT_ONCE, len(names))) for k in range(0, len(names), AT_ONCE)]
        return torch.cat([draw(self.model, range(seed + a, seed + b), label[a:b], {}) for a, b in ends])


def restyled(worker: Restyler, content: Tensor, style: Tensor) -> Tensor:
    """Each image in the style of its partner.

    Args:
        worker: with its settings.
        content: (N, 1, H, W) in [-1, 1].
        style: the same.

    Returns:
        (N, 1, H, W) float32 in [-1, 1].
    """
    from tqdm import tqdm

    parts = [range(k, min(k + AT_ONCE, len(content))) for k in range(0, len(content), AT_ONCE)]
    return torch.cat([worker.painted(content[at.start : at.stop], style[at.start : at.stop].split(1), at)[0]
                      for at in tqdm(parts, "style transfer", leave=False)])  # fmt: skip


def cached(data: MRIDataModule, about: dict[str, Any], make: Callable[[], Tensor]) -> Tensor:
    """Images that were made before, from the cache; else made and kept. Of several processes one makes them.

    Args:
        data: whose cache it is.
        about: plain values, all that the images depend on.
        make: the images.

    Returns:
        (N, C, H, W) float32.
    """
    about = about | {"layout": LAYOUT, "data": data.data_hash, "subjects": table_hash(data.manifest)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder(data.cache) / "synthetic" / f"{key}.pt"
    if (kept := _read(path)) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if (kept := _read(path)) is None:
                kept = make()
                with whole_file(path) as part:
                    torch.save(kept, part)
    return kept


def _read(path: Path) -> Tensor | None:
    """What is there; None where nothing is, or nothing that can be read."""
    if not path.is_file():
        return None
    try:
        images: Tensor = torch.load(path, weights_only=True)
    except Exception:
        log.warning("%s: damaged; its images are made again", path)
        return None
    return images

"""The data module every data set shares: index -> studies -> store (`stored.py`) -> split -> views -> loaders."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mri_synth.data.augment import augment
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.classes import only_classes
from mri_synth.data.partition import partition
from mri_synth.data.sampler import EpochBatches
from mri_synth.data.scan import SPLITS
from mri_synth.data.stored import StoredData
from mri_synth.data.twins import healthy_twins
from mri_synth.data.views import Images, Reading
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

FEW = 16
"""Places of slices that samples can be asked for."""


@dataclass(kw_only=True, eq=False)
class MRIDataModule(StoredData):
    """Base of all data modules. A data set is a subclass that says which files there are: `scans()`.

    Subclasses are dataclasses too (`@dataclass(kw_only=True, eq=False)`): a field is a config key. Those which all have
    are `StoredData`'s.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seed = 0
        self.view_class: type[Images] = Images
        self.codes: dict[str, NDArray[Any]] | None = None
        self._resume_at = (0, 0)
        self._known: dict[str, dict[int, NDArray[np.float32]]] = {}

    # -- split ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Open the store, split, check for leaks.

        Args:
            stage: Lightning's word; all stages need the same. "look" takes data too few to be trained on.

        Raises:
            UserError: no slice is left, the split leaks, or train or val is empty.
        """
        if hasattr(self, "spec"):
            return
        store = self._open()
        if not store.rows:
            reasons = {re.sub(r"[\d.]+", "", f["reason"]): f["reason"] for f in store.files if f["reason"]}
            counts = Counter(re.sub(r"[\d.]+", "", f["reason"]) for f in store.files if f["reason"])
            shown = "".join(f"\n  {n} file(s), such as: {reasons[kind]}" for kind, n in counts.most_common(3))
            raise UserError(f"no slice of {len(self._scans)} file(s) can be used; the commonest reasons:{shown}\n"
                            "Mend the files, or choose others by data.slices and data.contrasts.")  # fmt: skip
        self.partition = partition(store, self.split, fill=stage != "look")
        if self.train_classes is not None:
            self.partition = only_classes(self.partition, list(self.train_classes), self._classes)
        self.leaks = self.partition.leaks
        for reason in self.leaks:
            log.warning("dropped: %s", reason)
        self.split_rows = {split: self.partition.rows(split) for split in SPLITS}
        for split in ("train", "val"):
            if stage != "look" and not len(self.view(split)):
                raise UserError(f"no item is left in {split}; see data.split, data.slices, data.train_classes and the "
                                f"view '{self.view_class.name}' that the method needs")  # fmt: skip
        pictures = self._plane is None
        spacings = {tuple(s["spacing_mm"]) for s in store.studies}
        self.spec = DataSpec(
            size=self.size,
            contrasts=tuple(self.contrasts),
            sources=(train := self.view("train")).sources,
            goal=train.goal,
            classes=tuple(self._classes),
            spacing_mm=spacings.pop() if len(spacings) == 1 else None,
            slices_mm=() if pictures else places(store.table["position_mm"][self.split_rows["train"]]),
            plane=self._plane,
            sites=tuple(sorted({s["site"] for s in store.studies if s["site"]})),
            simulated=self.simulated,
            preparation=asdict(self.preparation)
            | {"data": type(self).__name__.lower(), "title": self.title}
            | ({"ranges": self.partition.ranges("train")} if train.goal else {}),
        )

    @property
    def _plane(self) -> str | None:
        """Of the slices; None of pictures."""
        used = [f for f in self._open().files if not f["bad"]]
        return None if all(f.get("orientation") == "picture" for f in used) else self.plane

    @property
    def manifest(self) -> list[dict[str, Any]]:
        """One record per file, as `Partition.manifest` says."""
        return self.partition.manifest()

    # -- loaders --------------------------------------------------------------------------------------------------

    def view(self, split: str) -> Images:
        """What the method sees of a split.

        Args:
            split: train, val or test.

        Returns:
            The items, `__getitems__` reads whole batches of them.
        """
        known = self._twins(split) if self.view_class.twins and split != "train" else {}
        how = Reading(self.source, tuple(self._classes), self.seed, split == "train", self.partners(), known,
                      self._plane)  # fmt: skip
        rows = self.split_rows["train" if self.view_class.jobs else split]
        view = self.view_class(self._open(), rows, self.contrasts, how)
        view.codes = self.codes
        return view

    def _twins(self, split: str) -> dict[int, NDArray[np.float32]]:
        if split not in self._known:
            self._known[split] = healthy_twins(self, self.split_rows[split])
        return self._known[split]

    def _loader(self, split: str, shuffle: bool) -> DataLoader[Batch]:
        items = self.view(split)
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        mixed = shuffle and not items.jobs
        batches = EpochBatches(len(items), self.batch_size, seed=self.seed, shuffle=mixed, drop_last=mixed, rank=rank,
                               world=world, tell_epoch=shuffle and items.draws_anew,
                               rounds=items.rounds if shuffle else 1)  # fmt: skip
        if shuffle:
            batches.resume_at = self._resume_at
            batches.epoch = trainer.current_epoch if trainer else 0
        return DataLoader(
            items,
            batch_sampler=batches,
            collate_fn=_whole,
            num_workers=self.workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.workers > 0,
            generator=torch.Generator(),
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew every epoch; starts in mid-epoch when a run is resumed there."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """All validation items in order."""
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """All test items in order."""
        return self._loader("test", shuffle=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches on the device."""
        if self.augment and self.trainer is not None and self.trainer.training:
            batch = augment(batch, self.augment, self.seed, self.trainer.current_epoch)
            return self.view_class.remade(batch, self.source, tuple(self._classes))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the training data stand: the epoch and batch that come next."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epoch, batch = self.trainer.current_epoch, loop.epoch_loop.batch_progress.current.ready
        return {"next": (epoch + 1, 0) if batch >= self.trainer.num_training_batches else (epoch, batch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint left off."""
        epoch, batch = state_dict["next"]
        self._resume_at = (int(epoch), int(batch))


def places(position_mm: NDArray[Any]) -> tuple[float, ...]:
    """Where slices lie: all places where they are at most FEW, else the middles of so many equal parts.

    Args:
        position_mm: (N,) of the slices along their axis.

    Returns:
        Ascending, mm, to a tenth.
    """
    each = np.unique(np.round(position_mm.astype(float), 1))
    if len(each) > FEW:
        edges = np.linspace(each[0], each[-1], FEW + 1)
        each = np.round((edges[1:] + edges[:-1]) / 2, 1)
    return tuple(each.tolist())


def _whole(batch: Any) -> Any:
    return batch

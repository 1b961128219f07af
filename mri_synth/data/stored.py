"""What a data set says of itself, and its prepared slices: settings -> scans -> studies -> store."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import lightning.pytorch as pl
from annotated_types import Ge, Le
from pydantic import TypeAdapter

from mri_synth.data import identity, prepare
from mri_synth.data.prepare import Preparation, Study
from mri_synth.data.register import Registrar
from mri_synth.data.scan import Scan
from mri_synth.data.settings import (
    AugmentSettings,
    Fit,
    IntensitySettings,
    Plane,
    Positive,
    Register,
    SliceSettings,
    Source,
    SplitSettings,
)
from mri_synth.data.store import MASK, Prepared, Store, open_or_build
from mri_synth.data.views import Images
from mri_synth.data.volume import Volume, read
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

_NOT_CONTENT = {"root", "contrasts", "plane", "size", "fit", "spacing_mm", "slices", "intensity", "split",
                "train_classes", "source", "pairs", "register", "download", "augment", "batch_size", "workers", "cache",
                "on_bad_file"}  # fmt: skip


@dataclass(kw_only=True, eq=False)
class StoredData(pl.LightningDataModule):
    """The first half of `MRIDataModule`: what a data set says, and the slices made of it once and for all.

    Attributes:
        root: folder of the data; None for `$MRI_SYNTH_DATA/<data set>`.
        contrasts: which contrasts, in order; with pairs the last one is the target.
        source: what a target is made of, with pairs: the other "contrasts", the lesion "mask", or what is "derived"
            from the target itself (`mri_synth.data.derived`), where there is no pair.
        register: "rigid" turns and shifts each further contrast of a subject onto the first one by mutual information
            (`mri_synth.data.register`); "none" goes by the affines of the files.
        plane: slices are axial, coronal or sagittal (files that are single pictures stay as they are).
        size: slices become (size, size) pixels.
        fit: "contain" scales the whole field of view into the frame, "crop" keeps the pixels, "stretch" fills it.
        spacing_mm: pixel spacing of the frame; None to follow `fit`.
        slices: which slices of a volume.
        intensity: how intensities become [-1, 1].
        split: who is in train, val and test.
        train_classes: classes that train and val may hold, such as [none] to learn what is healthy; None for all. Test
            keeps all. It goes by the label of each item: where that comes from the mask, the healthy slices of a
            subject with lesions count as healthy.
        augment: random changes of the training images.
        batch_size: items per batch and process.
        workers: loader processes; 0 reads in the main process, which is fast enough for all but many GPUs.
        cache: folder of the prepared slices; None for `$MRI_SYNTH_CACHE` or `~/.cache/mri_synth`.
        on_bad_file: files that cannot be used are an "error" or are left out and listed ("skip").
    """

    root: str | None = None
    contrasts: list[str] = field(default_factory=lambda: ["T1"])
    source: Source = "contrasts"
    register: Register = "none"
    plane: Plane = "axial"
    size: Annotated[int, Ge(4), Le(2048)] = 128
    fit: Fit = "contain"
    spacing_mm: Annotated[float, Ge(0.05)] | None = None
    slices: SliceSettings = field(default_factory=SliceSettings)
    intensity: IntensitySettings = field(default_factory=IntensitySettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    train_classes: list[str] | None = None
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    batch_size: Positive = 32
    workers: Annotated[int, Ge(0)] = 0
    cache: str | None = None
    on_bad_file: Literal["error", "skip"] = "error"

    label_from_mask: ClassVar[tuple[str, str] | None] = None
    simulated: ClassVar[bool] = False
    simulator: ClassVar[str] = ""  # version of what makes the voxels, where no file does

    def __post_init__(self) -> None:
        super().__init__()
        for name, kind in (("slices", SliceSettings), ("intensity", IntensitySettings), ("split", SplitSettings),
                           ("augment", AugmentSettings)):  # fmt: skip
            setattr(self, name, TypeAdapter(kind).validate_python(getattr(self, name)))
        self.contrasts = list(self.contrasts)
        self._store: Store | None = None

    # -- what a data set says ------------------------------------------------------------------------------------

    def scans(self) -> list[Scan]:
        """Which files, which subject, which contrast: nothing is read.

        Returns:
            One entry per file or series.

        Raises:
            NotImplementedError: a data set must say it.
        """
        raise NotImplementedError

    def read(self, scan: Scan) -> Volume:
        """The scan's voxels; a data set that simulates overrides this.

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume.
        """
        return read(scan.path, scan.series, allow_constant=scan.contrast == MASK)

    def partners(self) -> Mapping[int, int]:
        """Row of a slice of the first contrast to the row of the second that shows the same, where no row has both.

        Returns:
            Rows of the store; used to score unpaired training, never to train.
        """
        return {}

    def noise_free(self, scan: Scan) -> Volume | None:
        """The same scan without noise; None for data that cannot have it (all that were measured).

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume, on the same grid and in the same units.
        """
        return None

    def healthy_twin(self, scan: Scan) -> Volume | None:
        """The same scan without its lesions; None where it has none, and of data that cannot know (all measured ones).

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume, on the same grid and in the same units: used to score what takes lesions off, never to train.
        """
        return None

    @classmethod
    def marked(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether slices may have masks under these constructor arguments; nothing is opened."""
        return cls.label_from_mask is not None

    @classmethod
    def labelled(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether items have classes under these constructor arguments; nothing is opened."""
        return cls.label_from_mask is not None or arguments.get("label", "none") != "none"

    @classmethod
    def problems(cls, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with these constructor arguments beyond types and ranges; nothing is opened.

        Args:
            arguments: by name; those left out have their default.

        Returns:
            One message each.
        """
        contrasts, wanted = list(arguments.get("contrasts") or ()), arguments.get("train_classes")
        twice = [c for c, n in Counter(contrasts).items() if n > 1]
        found = [f"data.contrasts=[{','.join(contrasts)}]: {' and '.join(twice)} more than once"] if twice else []
        if arguments.get("register", "none") != "none" and len(contrasts) == 1:
            found.append(f"data.register={arguments['register']}: data.contrasts=[{contrasts[0]}] leaves nothing to "
                         "register; name two, such as data.contrasts=[T1,T2], or say data.register=none")  # fmt: skip
        if wanted is None:
            return found
        key = f"data.train_classes=[{','.join(wanted)}]"
        if not wanted:
            found.append(f"{key}: no class is left to train on; null is all")
        elif not cls.labelled(arguments):
            found.append(f"{key}: this data has no classes under these settings; data.train_classes=null takes all")
        elif unknown := [c for c in wanted if c not in (cls.label_from_mask or wanted)]:
            here = ", ".join(cls.label_from_mask or ())
            found.append(f"{key}: there is no {' and no '.join(unknown)}; classes here: {here}")
        return found

    @classmethod
    def refuses(cls, view: type[Images], arguments: Mapping[str, Any]) -> str:
        """Why this data set cannot offer a view under these constructor arguments; nothing is opened.

        Args:
            view: one of `mri_synth.data.views`.
            arguments: constructor arguments.

        Returns:
            The reason with the way out; "" when it offers the view.
        """
        contrasts = list(arguments.get("contrasts") or [])
        if contrasts and (reason := view.misfit(contrasts, arguments.get("source", "contrasts"))):
            return f"needs {view.name}: {reason}; it is data.contrasts=[{','.join(contrasts)}]"
        if view.name == "labelled" and not cls.labelled(arguments):
            return ("needs labelled images, and this data has no classes under these settings; try data=phantom, or "
                    "data=folder data.label=folder")  # fmt: skip
        if view.twins and not cls.marked(arguments):
            return (f"needs {view.name}: slices with and without lesion, and masks; this data has none under these "
                    "settings; try data=phantom data.lesions=half, or data=brats")  # fmt: skip
        wanted = arguments.get("train_classes")
        if view.twins and wanted and cls.label_from_mask and set(wanted) != set(cls.label_from_mask):
            return (
                f"needs {view.name}: slices with and without; it is data.train_classes=[{','.join(wanted)}]; try null"
            )
        return ""

    # -- index, store ---------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Make the store if it does not stand yet (once per node; others wait for the lock)."""
        self._open()

    def _open(self) -> Store:
        if self._store is None:
            scans = self.scans()
            found = list(dict.fromkeys(s.contrast for s in scans if s.contrast != MASK))
            if not self.contrasts:
                self.contrasts = found
            if absent := [c for c in self.contrasts if c not in found]:
                raise UserError(f"data.contrasts={self.contrasts}: no file of {absent}; found: {found}")
            self._scans = scans
            todo = prepare.group(scans, self.contrasts)
            given = sorted({s.label for s in scans if s.label is not None})
            self._classes = self.label_from_mask if self.label_from_mask else tuple(given)
            self.preparation = Preparation(
                tuple(self.contrasts), self.plane, self.size, self.fit, self.spacing_mm, self.slices, self.intensity,
                self.label_from_mask, self._classes,
            )  # fmt: skip
            own = self._own()
            skip = self.on_bad_file == "skip"
            name = type(self).__name__.lower()
            self.store_key = identity.store_key(todo, self.preparation, own, skip)
            self._store = open_or_build(
                cache_folder(self.cache), f"{name}-{self.store_key}", self.size, lambda: self._prepared(todo, skip)
            )
        return self._store

    @property
    def data_hash(self) -> str:
        """Hash of what the data are: files by content, and settings; of simulated data the settings and the simulator.

        Not of where the files lie or when they were written; that is `store_key`, which finds the store.
        """
        store = self._open()
        labels = {s["id"]: (s["label"], s["scan_slice"]) for s in store.studies}
        registered = {"register": self.register} if self.register != "none" else {}
        made = self._own() if self.simulator else registered
        return identity.content_hash(store.files, labels, self.preparation, made)

    def _own(self) -> dict[str, Any]:
        """What decides the slices beside files and preparation; what is off is not named, so that its key is older."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_CONTENT}
        own |= {"simulator": self.simulator} if self.simulator else {}
        return own | ({"register": self.register} if self.register != "none" else {})

    @property
    def title(self) -> str:
        """What the data are called in tables and pictures."""
        return type(self).__name__.lower()

    @property
    def store(self) -> Store:
        """The prepared slices."""
        return self._open()

    @property
    def found(self) -> list[Scan]:
        """What `scans()` said when the store was opened; it is not asked, and does not warn, again."""
        self._open()
        return self._scans

    def _prepared(self, todo: list[Study], skip: bool) -> Iterator[Prepared]:
        from tqdm import tqdm

        threads = min(8, os.cpu_count() or 1)
        log.info("preparing %d studies of %s (once; kept in the cache)", len(todo), type(self).__name__)
        register = Registrar(cache_folder(self.cache)) if self.register == "rigid" else None
        items = prepare.studies(todo, self.preparation, self.read, skip_bad=skip, threads=threads, register=register)
        yield from tqdm(items, "preparing", total=len(todo), unit="study", leave=False, disable=len(todo) < 4)


def cache_folder(cache: str | None) -> Path:
    """Where stores are kept: `data.cache`, else `$MRI_SYNTH_CACHE`, else `~/.cache/mri_synth`."""
    return Path(cache or os.environ.get("MRI_SYNTH_CACHE") or Path.home() / ".cache" / "mri_synth").expanduser()

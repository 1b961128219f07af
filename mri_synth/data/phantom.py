"""Simulated MRI that needs no download: the data set on which every published figure of this package is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Len

from mri_synth.data.anatomy import person
from mri_synth.data.base import MRIDataModule
from mri_synth.data.physics import SEQUENCES
from mri_synth.data.scan import Scan, Split
from mri_synth.data.settings import IntensitySettings, SplitSettings
from mri_synth.data.simulate import BENCH_V1, VERSION, Preset, Simulated, lesion_mask, simulate
from mri_synth.data.store import MASK
from mri_synth.data.template import Grid
from mri_synth.data.volume import Volume
from mri_synth.errors import UserError

_SPLITS: tuple[Split, Split, Split] = ("train", "val", "test")
_FROZEN = {
    "phantom_seed": BENCH_V1.seed,
    "slices_per_subject": BENCH_V1.slices,
    "snr": BENCH_V1.snr,
    "deform_sd_mm": BENCH_V1.deform_sd_mm,
    "bias_percent": BENCH_V1.bias_percent,
    "lesion_radius_mm": list(BENCH_V1.lesion_radius_mm),
    "fit": "contain",
    "spacing_mm": None,
    "intensity": {"method": "percentile", "percentiles": [60.0, 99.5]},
    "slices": {"start": None, "stop": None, "step": 1, "min_foreground": 0.0},
}


@dataclass(kw_only=True, eq=False)
class Phantom(MRIDataModule):
    """MNI152 anatomy under random deformations, with the signal equations of T1, T2, PD and FLAIR at 3 T.

    Brain only (no skull), axial, registered between contrasts. How: `mri_synth.data.anatomy`, `physics`, `simulate`.
    Labels are per slice, from the lesion mask: "none" or "lesion".

    Attributes:
        intensity: black just above the noise of air, as one sets a display window.
        split: as given by `subjects`.
        preset: "bench-v1" is frozen: contrasts, size, lesions, noise and what only touches loading may differ, and
            `subjects` may be smaller. "custom" is free.
        subjects: how many in train, val, test.
        slices_per_subject: axial slices from z = -10 mm to 44 mm (MNI).
        lesions: "half" gives every second subject one to three lesions; "none"; "all".
        snr: white matter signal over the noise's standard deviation, in each contrast.
        deform_sd_mm: standard deviation of the random deformation along each axis.
        bias_percent: range of the bias field: 20 is a factor from 0.9 to 1.1.
        lesion_radius_mm: least and largest semi-axis of a lesion.
        noise: False gives the same images without noise (for the noise ceiling).
        phantom_seed: of the subjects; independent of the experiment's seed, so that runs share their data.
    """

    intensity: IntensitySettings = field(default_factory=lambda: IntensitySettings(percentiles=[60.0, 99.5]))
    split: SplitSettings = field(default_factory=lambda: SplitSettings(by="given"))
    preset: Literal["bench-v1", "custom"] = "bench-v1"
    subjects: Annotated[list[Annotated[int, Ge(0)]], Len(3, 3)] = field(default_factory=lambda: list(BENCH_V1.subjects))
    slices_per_subject: Annotated[int, Ge(1), Le(54)] = BENCH_V1.slices
    lesions: Literal["none", "half", "all"] = "half"
    snr: Annotated[float, Gt(0)] = BENCH_V1.snr
    deform_sd_mm: Annotated[float, Ge(0), Le(6)] = BENCH_V1.deform_sd_mm
    bias_percent: Annotated[float, Ge(0), Le(100)] = BENCH_V1.bias_percent
    lesion_radius_mm: Annotated[list[Annotated[float, Ge(1), Le(30)]], Len(2, 2)] = field(
        default_factory=lambda: list(BENCH_V1.lesion_radius_mm)
    )
    noise: bool = True
    phantom_seed: Annotated[int, Ge(0)] = BENCH_V1.seed

    label_from_mask: ClassVar[tuple[str, str] | None] = ("none", "lesion")
    simulated: ClassVar[bool] = True
    simulator: ClassVar[str] = VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        self.subjects, self.lesion_radius_mm = list(self.subjects), list(self.lesion_radius_mm)
        if found := self.problems(vars(self)):
            raise UserError("\n".join(found))
        if self.lesions == "none":
            vars(self)["label_from_mask"] = None  # no mask, so no label: hides the class's own

    def noise_free(self, scan: Scan) -> Volume | None:
        """The same scan without noise, for the noise ceiling.

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume; None when the scan has no noise anyway.
        """
        return replace(self, noise=False).read(scan) if self.noise else None

    def healthy_twin(self, scan: Scan) -> Volume | None:
        """The same anatomy and noise without lesions.

        Args:
            scan: one of `scans()`.

        Returns:
            Its volume; None when the subject has no lesion anyway.
        """
        number = int(scan.subject.rpartition("-")[2])
        if scan.contrast == MASK or not self.has_lesions(number):
            return None
        array = np.rint(self.simulate(number, scan.contrast, lesion=False).array).astype(np.float32)
        return Volume(array=array, affine=self.grid.affine, dtype=np.dtype(np.int16))

    @classmethod
    def marked(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether slices may have masks under these constructor arguments; nothing is simulated."""
        return cls.labelled(arguments)

    @classmethod
    def labelled(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether items have classes under these constructor arguments; nothing is simulated."""
        return bool(arguments.get("lesions", "half") != "none")

    @classmethod
    def problems(cls, arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong with these constructor arguments beyond types and ranges; nothing is simulated.

        Args:
            arguments: by name; those left out have their default.

        Returns:
            One message each.
        """
        found = super().problems(arguments)
        contrasts = list(arguments.get("contrasts", ["T1"]))
        wrong = [c for c in contrasts if c not in SEQUENCES]
        if wrong or not contrasts:
            what = f"{' and '.join(wrong)} cannot be simulated" if wrong else "at least one is needed"
            found.append(f"data.contrasts=[{','.join(contrasts)}]: {what}; data=phantom has {', '.join(SEQUENCES)}")
        if arguments.get("plane", "axial") != "axial":
            found.append(f"data.plane={arguments['plane']}: data=phantom is axial slices: data.plane=axial")
        radii = list(arguments.get("lesion_radius_mm", BENCH_V1.lesion_radius_mm))
        if len(radii) != 2 or radii[0] > radii[1]:
            found.append(f"data.lesion_radius_mm={radii}: two numbers are wanted, the least and the largest")
        subjects = list(arguments.get("subjects", BENCH_V1.subjects))
        if len(subjects) != len(_SPLITS):
            found.append(f"data.subjects={subjects}: three numbers are wanted, for train, val and test")
        if arguments.get("preset", "bench-v1") != "bench-v1":
            return found
        way_out = "bench-v1 is frozen; use data.preset=custom"
        for key, value, frozen in _frozen(arguments):
            if (list(value) if isinstance(frozen, list) else value) != frozen:
                found.append(f"data.{key}={_shown(value)}: it is {_shown(frozen)} in bench-v1, and {way_out}")
        if len(subjects) == len(_SPLITS) and any(n > most for n, most in zip(subjects, BENCH_V1.subjects, strict=True)):
            most = list(BENCH_V1.subjects)
            found.append(f"data.subjects={subjects}: bench-v1 has {most}, fewer may be taken but not more; {way_out}")
        return found

    @property
    def title(self) -> str:
        """The preset and how these data differ from it, for every table and picture."""
        less = ["subset"] if self.preset == "bench-v1" and tuple(self.subjects) != BENCH_V1.subjects else []
        less += [] if self.noise else ["no noise"]
        less += [] if self.split.by == "given" and not self.split.file else ["other split"]
        less += {"half": [], "none": ["no lesions"], "all": ["all with lesions"]}[self.lesions]
        less += ["trained on healthy slices only"] if self.train_classes == ["none"] else []
        return f"{self.preset} ({', '.join(less)})" if less else self.preset

    @property
    def table(self) -> Preset:
        """The numbers the simulation takes."""
        train, val, test = self.subjects
        low, high = self.lesion_radius_mm
        return Preset(
            seed=self.phantom_seed, subjects=(train, val, test), slices=self.slices_per_subject, snr=self.snr,
            deform_sd_mm=self.deform_sd_mm, bias_percent=self.bias_percent, lesion_radius_mm=(low, high),
        )  # fmt: skip

    @property
    def grid(self) -> Grid:
        """The voxels of every scan."""
        return Grid(size=self.size, slices=self.slices_per_subject)

    def scans(self) -> list[Scan]:
        """Every subject in every contrast, and its lesion mask unless lesions are off; nothing is simulated yet.

        Returns:
            Scans, the first `subjects` of each split. A subject keeps its number in a subset of bench-v1.
        """
        places = BENCH_V1.subjects if self.preset == "bench-v1" else tuple(self.subjects)
        starts = (0, places[0], places[0] + places[1])
        scans = []
        for split, start, count in zip(_SPLITS, starts, self.subjects, strict=True):
            for number in range(start, start + count):
                who = person(self.phantom_seed, number)
                scans += [
                    Scan(
                        path=Path("phantom") / self.preset / f"subject-{number:04d}", subject=f"phantom-{number:04d}",
                        contrast=contrast, split=split, age=who.age, sex=who.sex, site="simulated",
                    )
                    for contrast in (*self.contrasts, *([MASK] if self.lesions != "none" else []))
                ]  # fmt: skip
        return scans

    def simulate(self, subject: int, contrast: str, *, lesion: bool | None = None) -> Simulated:
        """One scan with all that is known of it.

        Args:
            subject: its number, as in `scans()`.
            contrast: "T1", "T2", "PD" or "FLAIR".
            lesion: None for what the subject has; False is its healthy twin.

        Returns:
            The scan.
        """
        lesion = self.has_lesions(subject) if lesion is None else lesion
        return simulate(subject, contrast, lesion=lesion, noise=self.noise, grid=self.grid, preset=self.table)

    def has_lesions(self, subject: int) -> bool:
        """Whether a subject has lesions: by its number, so that subsets agree."""
        return self.lesions == "all" or (self.lesions == "half" and subject % 2 == 1)

    def read(self, scan: Scan) -> Volume:
        """Simulate a scan.

        Args:
            scan: one of `scans()`.

        Returns:
            (size, size, slices) whole numbers, as scanners store them, or the mask in {0, 1}.
        """
        number = int(scan.subject.rpartition("-")[2])
        if scan.contrast != MASK:
            array = np.rint(self.simulate(number, scan.contrast).array).astype(np.float32)
            return Volume(array=array, affine=self.grid.affine, dtype=np.dtype(np.int16))
        mask = np.zeros((self.size, self.size, self.slices_per_subject), np.float32)
        if self.has_lesions(number):
            mask[:] = lesion_mask(number, grid=self.grid, preset=self.table)
        return Volume(array=mask, affine=self.grid.affine, dtype=np.dtype(np.uint8))


def _frozen(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and the value in bench-v1 of all that the preset fixes; nested settings key by key."""
    for key, frozen in _FROZEN.items():
        value = arguments.get(key, frozen)
        if isinstance(frozen, dict):
            value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value or {}
            yield from ((f"{key}.{name}", value.get(name, inner), inner) for name, inner in frozen.items())
        else:
            yield key, value, frozen


def _shown(value: object) -> object:
    return "null" if value is None else value

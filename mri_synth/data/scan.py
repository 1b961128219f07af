"""What a data set says about its files, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SPLITS = ("train", "val", "test")
Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One file (or one DICOM series) of one subject. Plain values only; nothing has been read.

    Attributes:
        path: the file, or the folder of a DICOM series.
        subject: who was scanned; splits never part a subject.
        contrast: T1, T2, PD, FLAIR, T1ce, ...; for a label map the word "mask".
        session: visit of the subject ("" when there is one). Scans of one (subject, session) belong together.
        label: class of the whole scan (class folder, diagnosis); None is "unlabelled", never "none".
        split: the data set's own split, where it has one (used by `split.by=given`).
        slice: position within its volume when the file is one slice of it (PNG slices).
        series: SeriesInstanceUID when `path` is a DICOM folder.
        age: years.
        sex: "F" or "M".
        site: hospital or scanner.
    """

    path: Path
    subject: str
    contrast: str
    session: str = ""
    label: str | None = None
    split: Split | None = None
    slice: int | None = None
    series: str | None = None
    age: float | None = None
    sex: str | None = None
    site: str | None = None

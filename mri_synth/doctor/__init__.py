"""`mri-synth doctor`: what is wrong with data before anything is trained on them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_synth.doctor.findings import Diagnosis, Finding

if TYPE_CHECKING:
    from mri_synth.data.base import MRIDataModule
    from mri_synth.data.prepare import Preparation, Study
    from mri_synth.data.volume import Volume
    from mri_synth.doctor.cohort import Seen


def doctor_overrides(overrides: Sequence[str], output: Path | None = None) -> Diagnosis:
    """Examines the data that a command line asks for: what `mri-synth doctor data=ixi` does.

    Args:
        overrides: words such as data=ixi, data.contrasts=[T1,T2]; as for a run.
        output: JSON file of all findings; None for none.

    Returns:
        The findings.

    Raises:
        UserError: for every mistake in the words, if there are no data, or the file cannot be written.
    """
    from mri_synth.describe import data_of

    diagnosis = examine(data_of(overrides))
    if output is not None:
        diagnosis.write(output)
    return diagnosis


def examine(data: MRIDataModule) -> Diagnosis:
    """Reads every file once, a few at a time, and compares what is kept of them; nothing is written.

    Args:
        data: a data module; it need not be prepared.

    Returns:
        The findings, the worst first.

    Raises:
        UserError: there are no data to be read.
    """
    from tqdm import tqdm

    from mri_synth.doctor import cohort, twins

    started = time.monotonic()
    diagnosis = Diagnosis(data=data.title)
    todo, settings = _plan(data, diagnosis)
    seen: list[Seen] = []
    measured = {0, len(todo) // 2}  # studies of which pairs on different grids are registered: it takes long
    threads = min(8, os.cpu_count() or 1)
    with _Quiet(), ThreadPoolExecutor(threads) as pool:
        for start in tqdm(range(0, len(todo), 2 * threads), "reading", leave=False, disable=None):
            few = list(enumerate(todo[start : start + 2 * threads], start))
            for result in pool.map(lambda item: _look(item[0], item[1], settings, data, item[0] in measured), few):
                seen += result.seen
                diagnosis.add(result.findings)
                diagnosis.compared += result.compared
                diagnosis.files += result.files
    diagnosis.subjects = len({s.first.subject for s in todo})
    with _Quiet():
        usable = sorted({f.study for f in seen if f.print is not None})
        number = {study: k for k, study in enumerate(usable)}
        splits, found = cohort.split_of([todo[k].first for k in usable], data.split)
        diagnosis.add(found)
        kept = [replace(f, study=number[f.study]) for f in seen if f.study in number]
        diagnosis.add(twins.twin_findings(kept, splits, data.split))
        diagnosis.add(cohort.look_findings(kept))
        diagnosis.add(cohort.size_findings(seen))
    diagnosis.seconds = round(time.monotonic() - started, 1)
    return diagnosis


def _plan(data: MRIDataModule, diagnosis: Diagnosis) -> tuple[list[Study], Preparation]:
    """What is to be read, and how; what the data set itself warns of becomes findings."""
    from mri_synth.data.prepare import Preparation, Study, group
    from mri_synth.data.store import MASK
    from mri_synth.doctor.fingerprint import SIDE
    from mri_synth.errors import UserError

    with _Quiet() as said:
        scans = data.scans()
        contrasts = data.contrasts or list(dict.fromkeys(s.contrast for s in scans if s.contrast != MASK))
        try:
            todo = group(scans, contrasts)
        except UserError as error:
            fix = "name the visits, or take one contrast, as it says"
            diagnosis.add([Finding("error", "pairs", f"data.contrasts=[{','.join(contrasts)}]", str(error), fix)])
            todo = [Study({s.contrast: s}) for s in scans if s.contrast in contrasts]
    name = f"data={type(data).__name__.lower()}"
    diagnosis.add(Finding("warning", "files", name, text.removeprefix(f"{name}: "), "see to it first, or leave it so "
                          "knowingly") for text in dict.fromkeys(said.texts))  # fmt: skip
    settings = Preparation(tuple(contrasts), data.plane, SIDE, "contain", None, data.slices, data.intensity)
    return todo, settings


@dataclass
class _Result:
    """What one study told."""

    seen: list[Seen] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    compared: int = 0
    files: int = 0


def _look(number: int, study: Study, settings: Preparation, data: MRIDataModule, measure: bool = False) -> _Result:
    """Reads and checks one study; its voxels are let go of at the end."""
    from mri_synth.data.prepare import prepare
    from mri_synth.data.scan import Scan
    from mri_synth.data.store import MASK, slice_hash, to_int16
    from mri_synth.doctor import files as checks
    from mri_synth.doctor.cohort import Seen
    from mri_synth.doctor.fingerprint import fingerprint
    from mri_synth.doctor.pairs import How, pair_findings

    volumes: dict[str, Volume] = {}

    def read(scan: Scan) -> Volume:
        volumes[scan.contrast] = data.read(scan)
        return volumes[scan.contrast]

    prepared = prepare(study, settings, read)
    result = _Result(files=len(prepared.files))
    usable = []
    for record in prepared.files:
        result.findings += _of_record(record, data.on_bad_file == "skip")
        contrast = record["contrast"]
        if contrast not in volumes or contrast == MASK:
            continue
        volume = volumes[contrast]
        one = Seen(study.scans[contrast], number, tuple(record.get("shape", ())), volume.spacing_mm, volume.source_axes,
                   volume.picture, str(volume.dtype))  # fmt: skip
        result.seen.append(one)
        result.findings += checks.header_findings(volume)
        if record["bad"]:
            continue
        usable.append(contrast)
        result.findings += checks.value_findings(volume)
        result.findings += checks.range_finding(volume, settings.intensity)
        result.findings += checks.slice_findings(volume, settings.plane)
        images = prepared.images.get(contrast)
        if images is not None:
            result.findings += checks.chosen_findings(record["path"], images)
            one.print = fingerprint(images)
            blank = slice_hash(to_int16(np.full(images.shape[1:], -1, np.float32)))
            hashes = zip(prepared.columns["slice"], map(slice_hash, to_int16(images)), strict=True)
            one.hashes = {int(k): h for k, h in hashes if h != blank}
    how: How = "will be" if data.register == "rigid" else "measure" if measure else "look"
    for other in usable[1:]:
        result.compared += 1
        result.findings += pair_findings(volumes[usable[0]], volumes[other], (usable[0], other), settings.plane, how)
    return result


def _of_record(record: Mapping[str, Any], skip: bool) -> Iterator[Finding]:
    """What preparing a file told."""
    if record["bad"]:
        yield Finding("warning" if skip else "error", "unusable", record["path"], record["reason"], "mend, convert or "
                      "remove it; data.on_bad_file=skip leaves it out")  # fmt: skip
    elif record["reason"]:
        yield Finding(
            "warning", "empty slices", record["path"], record["reason"], "see data.slices, or remove the file"
        )
    if record.get("grey_background"):
        yield Finding("warning", "background", record["path"], "its background is not its lowest value, and becomes "
                      "grey", "give the background the lowest value, or choose data.intensity.method=fixed with it as "
                      "the low end of data.intensity.range")  # fmt: skip


class _Quiet(logging.Handler):
    """The package's warnings, kept instead of shown: findings say the same."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())

    def __enter__(self) -> _Quiet:
        self.logger = logging.getLogger("mri_synth")
        self.before = self.logger.propagate
        self.logger.addHandler(self)
        self.logger.propagate = False
        return self

    def __exit__(self, *error: object) -> None:
        self.logger.removeHandler(self)
        self.logger.propagate = self.before

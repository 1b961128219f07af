"""Which files are translated together, and where the result goes: by the folder data set's rules, or as told."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mri_synth.data import places
from mri_synth.data.contrasts import MASK, UNKNOWN, contrast_of_path
from mri_synth.data.folder import Folder
from mri_synth.data.names import PICTURES, examples, has_suffix
from mri_synth.data.scan import Scan
from mri_synth.errors import UserError
from mri_synth.translate.names import has_bids_name, is_bids, output_name

log = logging.getLogger(__name__)

FILES = (".nii", ".nii.gz", ".png")
STRANGE = (".mgz", ".mgh", ".img", ".hdr", ".dcm", ".jpg", ".jpeg", ".tif", ".tiff", ".gz")
Place = tuple[str, str, int | None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to make.

    Attributes:
        sources: contrast to scan, those that are there, in the model's order.
        output: the file.
        target: the real scan of the goal's contrast, to score against.
        root: of the BIDS data set that the sources are in; None outside one.
        problem: why it cannot be done; "" when it can.
    """

    sources: Mapping[str, Scan]
    output: Path
    target: Scan | None = None
    root: Path | None = None
    problem: str = ""

    @property
    def first(self) -> Scan:
        """The source whose grid is taken."""
        return next(iter(self.sources.values()))


def find(
    inputs: Sequence[Path], output: Path, wanted: Sequence[str], goal: str, *, given: Mapping[str, str] | None = None,
    series: str | None = None, target: Path | None = None,
) -> list[Job]:  # fmt: skip
    """What is to be done.

    Args:
        inputs: files, or one folder: of anything, a BIDS tree, or DICOM series; empty where `given` names the sources.
        output: a file for one result, else a folder.
        wanted: the model's sources.
        goal: contrast that is made.
        given: source to path; with a folder, to a glob of the names of its files.
        series: SeriesInstanceUID, where a DICOM folder holds several.
        target: real scan, or folder of them, of the goal's contrast.

    Returns:
        One job per result, sorted as the files are; those with a `problem` cannot be done.

    Raises:
        UserError: no file that is meant, several results for one file, or options that do not go together.
    """
    given = dict(given or {})
    if unknown := [name for name in given if name not in wanted]:
        raise UserError(f"--source {unknown[0]}=...: not a source of this model; allowed: {', '.join(wanted)}")
    if empty := [name for name, path in given.items() if not path]:
        raise UserError(f"--source {empty[0]}: says no file; write --source {empty[0]}=PATH")
    folder = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else None
    if folder is None and inputs and given:
        raise UserError("--source goes with a folder, where it names files by a glob (T1='*mprage*'), or stands alone "
                        "(--source T1=a.nii.gz); leave out the other files.")  # fmt: skip
    if folder is not None:
        if folder.resolve() == output.resolve():
            raise UserError(f"{output}: is the input itself. Give the output another folder.")
        groups = _grouped(_of_folder(folder, output, given, wanted, series), wanted, folder)
    elif given:
        scans = {c: Scan(path=Path(given[c]), subject="", contrast=c, series=series) for c in wanted if c in given}
        groups = [Job(sources=scans, output=output)]
    elif inputs:
        groups = _of_files(inputs, wanted)
    else:
        raise UserError(f"nothing to translate: give files or a folder, or --source {wanted[0]}=PATH")
    if target is not None:
        groups = _with_targets(groups, target, goal, folder is not None)
    return _placed(groups, folder, inputs, output, goal)


def _of_folder(
    folder: Path, output: Path, given: Mapping[str, str], wanted: Sequence[str], series: str | None
) -> list[Scan]:
    """Scans of a tree; what lies in an output folder below it is no source."""
    names = {glob: contrast for contrast, glob in given.items()} or None
    scans = Folder(root=str(folder), contrasts=[], contrast_names=names).scans()
    inside = output.resolve()
    if inside.is_relative_to(folder.resolve()):
        scans = [s for s in scans if not s.path.resolve().is_relative_to(inside)]
    if series is not None:
        there = [s.series for s in scans if s.series]
        scans = [s for s in scans if s.series == series]
        if not scans:
            raise UserError(f"{folder}: no series={series}; there is: {examples(there) or 'no DICOM series'}")
    return scans


def _grouped(scans: Sequence[Scan], wanted: Sequence[str], where: Path) -> list[Job]:
    """Scans of one subject, visit and slice together; with one source each is a job of its own."""
    found = {s.contrast for s in scans}
    if len(wanted) == 1 and wanted[0] not in found and UNKNOWN in found:
        log.warning("%s: names say no contrast; taken as %s", where, wanted[0])
        scans = [replace(s, contrast=wanted[0]) if s.contrast == UNKNOWN else s for s in scans]
        found.add(wanted[0])
    if not found & set(wanted):
        other = ", ".join(sorted(found)) or "nothing"
        raise UserError(f"{where}: no {' and no '.join(wanted)} in it, by the names of files; found: {other}. Say "
                        f"which are which: --source {wanted[0]}='*GLOB*'")  # fmt: skip
    at: dict[Place, dict[str, list[Scan]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        at[scan.subject, scan.session, scan.slice][scan.contrast].append(scan)
    jobs = []
    for here in at.values():
        there = [c for c in wanted if c in here]
        several = [c for c in there if len(here[c]) > 1]
        if len(wanted) == 1:
            jobs += [Job(sources={c: scan}, output=Path()) for c in there for scan in here[c]]
        elif there:
            problem = ""
            if several:
                files = examples(s.path.name for s in here[several[0]])
                problem = (f"several scans of {several[0]} ({files}); which belongs with the others is not known; "
                           "name each by --source")  # fmt: skip
            jobs.append(Job(sources={c: here[c][0] for c in there}, output=Path(), problem=problem))
    return jobs


def _of_files(files: Sequence[Path], wanted: Sequence[str]) -> list[Job]:
    """Files named one by one: of a model of one source all that do not say to be another contrast."""
    root = Path(os.path.commonpath([f.parent.absolute() for f in files]))
    paths = {f.absolute().relative_to(root).as_posix(): f for f in files}
    if len(wanted) > 1:
        volumes = [f for f in paths if not has_suffix(f, PICTURES)]
        told = [places.of_volumes(volumes, root.name), places.of_pictures([f for f in paths if f not in volumes])]
        for found in told:
            for reason, left in found.left_out.items():
                if left:
                    log.warning("%d file(s) left out (%s): %s", len(left), reason, examples(left))
        scans = [Scan(path=paths[f], subject=p.subject, session=p.session, contrast=p.contrast, slice=p.slice)
                 for found in told for f, p in found.places.items()]  # fmt: skip
        return _grouped(scans, wanted, root)
    jobs, others = [], []
    for relative, path in paths.items():
        contrast = contrast_of_path(places.path_stem(relative))
        if len(files) > 1 and contrast not in (wanted[0], UNKNOWN, MASK):
            others.append(relative)
            continue
        if contrast not in (wanted[0], UNKNOWN):
            log.warning("%s: its name says %s, the model takes %s; it is taken as that", path, contrast, wanted[0])
        jobs.append(Job(sources={wanted[0]: Scan(path=path, subject=relative, contrast=wanted[0])}, output=Path()))
    if others:
        log.warning("%d file(s) left out (names say another contrast than %s): %s", len(others), wanted[0],
                    examples(others))  # fmt: skip
    if not jobs:
        raise UserError(f"none of the {len(files)} files is {wanted[0]} by its name: {examples(others)}; give it as "
                        f"--source {wanted[0]}=PATH")  # fmt: skip
    return jobs


def _with_targets(jobs: list[Job], target: Path, goal: str, in_folder: bool) -> list[Job]:
    """A target file for one job, or of a folder the scan of the same subject and visit for each."""
    if not in_folder or not target.is_dir():
        if len(jobs) > 1:
            raise UserError(f"--target={target}: one file for {len(jobs)} results; give the folder of the targets")
        return [replace(jobs[0], target=Scan(path=target, subject="", contrast=goal))]
    at: dict[Place, list[Scan]] = defaultdict(list)
    for scan in Folder(root=str(target), contrasts=[]).scans():
        if scan.contrast == goal:
            at[scan.subject, scan.session, scan.slice].append(scan)
    found = [at.get((j.first.subject, j.first.session, j.first.slice), []) for j in jobs]
    if lacking := [j.first.subject for j, scans in zip(jobs, found, strict=True) if len(scans) != 1]:
        log.warning("--target=%s: not one %s of %d of %d subjects, which are not scored: %s", target, goal,
                    len(lacking), len(jobs), examples(lacking))  # fmt: skip
    return [replace(j, target=scans[0] if len(scans) == 1 else None) for j, scans in zip(jobs, found, strict=True)]


def _placed(jobs: list[Job], folder: Path | None, inputs: Sequence[Path], output: Path, goal: str) -> list[Job]:
    """Where each result goes: into a folder in the layout of the sources, or into the one file."""
    if output.name.lower().endswith(FILES) and not output.is_dir():
        if len(jobs) > 1:
            sources = examples(j.first.path.name for j in jobs)
            raise UserError(
                f"-o {output}: one file for {len(jobs)} results (of {sources}); give a folder, or one source"
            )
        return [replace(jobs[0], output=output)]
    if len(jobs) == 1 and folder is None and output.suffix.lower() in STRANGE and not output.is_dir():
        raise UserError(f"-o {output}: files are written as {', '.join(FILES)}; give one of these, or a folder")
    base = folder
    if base is None and inputs:
        base = Path(os.path.commonpath([p.parent.absolute() for p in inputs]))

    def place(job: Job, clash: bool) -> Path:
        path = job.first.path.absolute()
        below = path.parent.relative_to(base.absolute()) if base and path.is_relative_to(base.absolute()) else Path()
        if base is not None and path == base.absolute():
            below = Path()
        return output / below / output_name(path, goal, clash=clash, series=job.first.series)

    plain = [place(job, False) for job in jobs]
    number = Counter(plain)
    outputs = [place(j, True) if number[p] > 1 else p for j, p in zip(jobs, plain, strict=True)]
    number = Counter(outputs)
    bids = folder if folder is not None and is_bids(folder) else None
    found = []
    for job, path in zip(jobs, outputs, strict=True):
        clash = f"{number[path]} sources would be written as {path.name}" if number[path] > 1 else ""
        root = bids if has_bids_name(job.first.path) else None
        found.append(replace(job, output=path, root=root, problem=job.problem or clash))
    return found

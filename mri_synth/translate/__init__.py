"""`mri-synth translate`: files of one contrast, or several, to files of another at the same place in the patient."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mri_synth import __version__
from mri_synth.data.intensity import Array
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.scan import Scan
from mri_synth.data.volume import check_target, from_slices, read, save_like
from mri_synth.errors import UserError
from mri_synth.metrics.consistency import PROTOCOL, consistency
from mri_synth.metrics.protocols import full_scores
from mri_synth.metrics.scores import PROTOCOLS
from mri_synth.through import Ready, mean_scores, ready, sidecar_of, unwindowed, write_json
from mri_synth.translate.files import Job, find
from mri_synth.translate.names import describe_derivatives, sources_field
from mri_synth.translate.outputs import done, fingerprint, is_picture, units
from mri_synth.translate.translator import Options, Translator

SIGN = f"synthetic: mri_synth {__version__}"
"""How the description of every output begins."""


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        job: what was asked.
        state: "written", "skipped" (it is there already, made by the same model, options and files) or "failed".
        reason: of a failure.
        about: content of the JSON beside the output; empty of a failure.
    """

    job: Job
    state: Literal["written", "skipped", "failed"]
    reason: str = ""
    about: Mapping[str, Any] | None = None


def translate(
    checkpoint: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    given: Mapping[str, str] | None = None,
    series: str | None = None,
    target: Path | None = None,
    options: Options | None = None,
    batch_size: int = 8,
    device: str = "auto",
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Translate files, one after the other: memory does not grow with their number.

    An output has its source's grid, affine, header and shape, as float32 (a picture its own type). Beside it a JSON of
    the same name tells how it was made. Several sources are brought onto the first one's grid by their affines. What is
    there already is not made again, so a call that was stopped is gone on with by giving it again.

    Args:
        checkpoint: of a run whose model translates.
        inputs: files, or one folder: any tree, a BIDS tree, DICOM series. Empty where `given` names the sources.
        output: a file for one result, else a folder.
        given: source to path; with a folder, to a glob of file names.
        series: SeriesInstanceUID, where a DICOM folder holds several.
        target: real scan (with a folder: a folder of them) of the goal's contrast, to score against.
        options: how.
        batch_size: slices or tiles at once.
        device: "auto" (CUDA where there is some), "cpu", "cuda", "cuda:1", ...
        overwrite: write over outputs of other models, options or files.

    Yields:
        What became of each job, as soon as it is known.

    Raises:
        UserError: before anything is written: the model does not translate or lacks an option, no such files; later:
            the only job fails, or the disk is full.
    """
    worker = Translator(checkpoint, options or Options(), batch_size, device)
    inputs, output = [Path(p) for p in inputs], Path(output)
    jobs = find(inputs, output, worker.sources, worker.goal, given=given, series=series, target=target)
    for folder in {j.output.parent for j in jobs}:
        check_writable(folder)
    for root in {j.root for j in jobs if j.root is not None}:
        describe_derivatives(output, root, worker.name)
    for job in jobs:
        try:
            yield one(worker, job, overwrite)
        except (UserError, OSError) as error:
            reason = str(error) if isinstance(error, UserError) else f"{job.first.path}: cannot be read ({error})"
            if len(jobs) == 1 or full(error):
                raise UserError(reason) from error
            yield Outcome(job, "failed", reason)


def one(worker: Translator, job: Job, overwrite: bool = False) -> Outcome:
    """One job.

    Args:
        worker: the model.
        job: what to do.
        overwrite: write over an output of another model, other options or files.

    Returns:
        Written, or skipped.

    Raises:
        UserError: a file cannot be used, a source is missing, or the output is another's.
    """
    started = time.monotonic()
    scans = _there(worker, job)
    made_by = {
        "checkpoint_sha256": worker.hash,
        "options": asdict(worker.options) | {"precision": "bf16" if worker.bf16 else "32"},
        "sources": {c: fingerprint(s) for c, s in scans.items()},
        "target": None if job.target is None else fingerprint(job.target),
    }
    made_by = json.loads(json.dumps(made_by))  # as it will be read: tuples are lists
    sidecar = sidecar_of(job.output)
    if (before := done(job.output, sidecar, made_by, overwrite)) is not None:
        return Outcome(job, "skipped", about=before)
    inputs = worker.bring(scans)
    first = next(iter(inputs.values()))
    check_target(first.volume, job.output)
    truth = None
    if job.target is not None:
        truth = ready(read(job.target.path, job.target.series), worker.how, onto=first)
    at = time.monotonic()
    made = worker.through(inputs)
    seconds = time.monotonic() - at
    unit, meaning = units(worker.model.spec, worker.goal, first.volume)
    slices = first.frame.invert(made, fill=-1)
    array = unit.invert(from_slices(slices, first.volume, worker.how["plane"]))
    save_like(array, unwindowed(first.volume), job.output, f"{SIGN}, {worker.name}, {worker.goal}",
              "source" if is_picture(first.volume) else "float32")  # fmt: skip
    about = {
        "synthetic": f"{worker.goal} made by mri_synth {__version__} from {', '.join(inputs)}; not a measured image",
        "Description": f"Synthetic {worker.goal}, not measured: {worker.name} of mri_synth",
        "Sources": sources_field([s.path for s in scans.values()], job.root),
        "goal": worker.goal,
        "units": {"low": unit.low, "high": unit.high, "meaning": meaning},
        "sources": {c: _described(scans[c], source) for c, source in inputs.items()},
        "missing": [c for c in worker.sources if c not in inputs],
        "checkpoint": str(worker.checkpoint.resolve()),
        "model": f"{type(worker.model).__module__}.{worker.name}",
        "trained_on_simulated_images": worker.model.spec.simulated,
        "preparation": worker.how,
        "versions": {"mri_synth": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "slices": len(made),
        "frame": {
            "size": first.frame.size,
            "spacing_mm": list(first.frame.spacing_mm),
            "tiles": 1 if (tiles := worker.tiles(first)) is None else len(tiles.corners),
        },
        "share_of_view_covered": first.frame.covered,
        "share_of_foreground_outside": first.outside,
        **_judged(made, slices, first, truth),
        "seconds": {"network": round(seconds, 3), "all": round(time.monotonic() - started, 3)},
        "made_by": made_by,
        "bytes": job.output.stat().st_size,
    }
    write_json(sidecar, about)
    return Outcome(job, "written", about=about)


def said(outcome: Outcome) -> str:
    """One line for the terminal.

    Args:
        outcome: of a job.

    Returns:
        The output with what is known of it, or what went wrong.
    """
    if outcome.about is None:
        return f"failed: {outcome.reason}"
    about, words = outcome.about, []
    if outcome.state == "skipped":
        words.append("is there already")
    else:
        words.append(f"{about['slices']} slices in {about['seconds']['all']:.1f} s")
    for name in ("source", "target"):
        ratio = about["slice_consistency"].get(f"against_{name}", {}).get("ratio")
        words += [] if ratio is None else [f"slice-to-slice gradient {ratio:.2f} times the {name}'s"]
    scores = about.get("scores_in_frame", {})
    words += [f"{k} {v:.4g}" for k, v in scores.items() if v is not None]
    return f"{outcome.job.output}: {', '.join(words)}"


def _there(worker: Translator, job: Job) -> dict[str, Scan]:
    """The sources to use, in the model's order."""
    if job.problem:
        raise UserError(f"{job.first.path}: {job.problem}")
    wanted = worker.options.available or worker.sources
    scans = {c: s for c, s in job.sources.items() if c in wanted}
    if missing := [c for c in worker.sources if c in wanted and c not in scans]:
        where = f"{job.first.path}: {' and '.join(missing)} of the same subject and visit not found"
        if not scans:
            raise UserError(f"{where}, so there is nothing to make {worker.goal} of")
        if not worker.partial:
            raise UserError(f"{where}, and the model was trained with all of {', '.join(worker.sources)}. Name it by "
                            f"--source {missing[0]}=PATH, or train with model.contrast_dropout=0.5")  # fmt: skip
    if job.output.exists() and any(s.path.exists() and job.output.samefile(s.path) for s in scans.values()):
        raise UserError(f"{job.output}: is the input itself, and would be overwritten. Give the output another name.")
    return scans


def _judged(made: Array, slices: Array, first: Ready, truth: Ready | None) -> dict[str, Any]:
    """Slice consistency, and scores where the truth is known."""
    against = {"source": first} | ({} if truth is None else {"target": truth})
    found: dict[str, Any] = {
        f"against_{name}": consistency(slices, real.slices, (real.slices > FOREGROUND) & first.frame.shown())
        for name, real in against.items()
    }
    judged: dict[str, Any] = {"slice_consistency": found | {"protocol": PROTOCOL, "units": "of a range of 2"}}
    if truth is not None:
        scores = mean_scores(made, truth.images, full_scores)
        judged |= {"scores_in_frame": scores, "protocols": {name: PROTOCOLS[name] for name in scores}}
    return judged


def _described(scan: Scan, source: Ready) -> dict[str, Any]:
    intensity = source.intensity
    ends = None if intensity is None else {"low": intensity.low, "high": intensity.high, "clipped": source.clipped}
    return {"path": str(scan.path.resolve()), "resampled": source.resampled, "intensity": ends}


def check_writable(folder: Path) -> None:
    """Refuse a folder before a network has run for what could not be kept.

    Args:
        folder: to be written to, made where missing.

    Raises:
        UserError: it is no folder, or read-only.
    """
    here = folder
    while not here.exists():
        here = here.parent
    if not here.is_dir() or not os.access(here, os.W_OK):
        why = "no folder" if here.is_file() else "read-only"
        raise UserError(f"{folder}: cannot be written, {here} is {why}; give another folder by -o")


def full(error: BaseException) -> bool:
    """Whether the disk is full, so that no further file could be written.

    Args:
        error: from writing.

    Returns:
        True where it, or what it came from, says so.
    """
    cause = error.__cause__ if isinstance(error, UserError) else error
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

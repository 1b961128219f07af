"""`mri-synth refine`: style transfer as a last step, on samples, translations, or any pictures and volumes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mri_synth.data import identity
from mri_synth.data.volume import AXES, Volume, check_target, read, to_slices
from mri_synth.errors import UserError
from mri_synth.models.style_images import Style, plane_of, read_style
from mri_synth.refine.files import Pair, find, write_pairs
from mri_synth.refine.outputs import Job, Outcome, figures, written
from mri_synth.refine.restyler import Restyler
from mri_synth.through import Ready, ready, sidecar_of
from mri_synth.translate import check_writable, full
from mri_synth.translate.outputs import done, is_picture

MULTIPLE = 16
"""Frames have sides of so many pixels or a multiple, which pooling halves four times."""


def refine(
    inputs: Sequence[Path],
    output: Path,
    *,
    style: str,
    settings: Sequence[str] = (),
    seed: int = 0,
    size: int | None = None,
    plane: str = "axial",
    neighbours: bool = True,
    batch_size: int = 8,
    precision: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Restyle files: what they show stays, its look becomes that of the style images.

    Real images in the style of synthetic ones, or synthetic ones in the style of real: whichever is given as which. A
    result has its content's grid, affine, header, type and units; outside of the region its very values. Beside it a
    JSON tells how it was made, and `refined.csv` which style went with which content. Slices of a volume are done from
    the middle outwards, each beginning with its neighbour's change, so that they flicker less. What is there already is
    not made again.

    Args:
        inputs: contents: pictures, volumes, or one folder, such as that of `mri-synth sample`.
        output: a file for one result, else a folder.
        style: file, folder, or pattern; a painting may be one. Of a volume it is the slice at the same height.
        settings: of style transfer, "steps=30" and the like, over `conf/model/style_transfer.yaml`.
        seed: decides which style goes with which content; and the noise of init=noise.
        size: longer side at which it is done, pixels; None: of the files themselves.
        plane: in which volumes are cut.
        neighbours: slices of a volume start with their neighbours' changes; False: as `init` says.
        batch_size: pairs at once; of a volume with `neighbours` two slices.
        precision: "bf16", "32", or "auto".
        device: "auto" (CUDA where there is some), "cpu", "cuda", "cuda:1", ...
        overwrite: write over outputs of other settings or files.

    Yields:
        What became of each pair, as soon as it is known.

    Raises:
        UserError: before anything is written: a setting, no such files, no weights; later: the only pair fails, or the
            disk is full.
    """
    if plane not in AXES:
        raise UserError(f"--plane={plane}: allowed: {', '.join(AXES)}")
    inputs, output = [Path(p) for p in inputs], Path(output)
    pairs = find(inputs, style, output, seed)
    worker = Restyler(settings, seed=seed, batch_size=batch_size, neighbours=neighbours, precision=precision,
                      device=device)  # fmt: skip
    if size is not None and size < worker.least:
        raise UserError(f"--size={size}: {worker.least} pixels or more are needed for these layers of VGG-19")
    for folder in {p.output.parent for p in pairs}:
        check_writable(folder)
    alone = len(pairs) == 1 and pairs[0].output == output
    told: dict[Path, Mapping[str, Any]] = {}
    if not alone:
        write_pairs(pairs, told, output)
    try:
        for outcome in _Work(worker, size, plane, overwrite).through(pairs):
            if outcome.state == "failed" and len(pairs) == 1:
                raise UserError(outcome.reason)
            told[outcome.pair.output] = figures(outcome)
            yield outcome
    finally:
        if not alone:
            write_pairs(pairs, told, output)


class _Work:
    """Pairs one after the other; those of one slice wait for others of their size."""

    def __init__(self, worker: Restyler, size: int | None, plane: str, overwrite: bool) -> None:
        self.worker, self.size, self.plane, self.overwrite = worker, size, plane, overwrite
        self.known: dict[Path, Style] = {}

    def through(self, pairs: Sequence[Pair]) -> Iterator[Outcome]:
        waiting: dict[int, list[Job]] = {}
        for pair in pairs:
            try:
                job = self.brought(pair)
            except (UserError, OSError) as error:
                yield _failed(pair, error)
                continue
            if isinstance(job, Outcome):
                yield job
            elif len(job.source.images) > 1:
                yield from self.made([job])
            else:
                together = waiting.setdefault(job.source.frame.size, [])
                together.append(job)
                if len(together) == self.worker.batch_size:
                    yield from self.made(waiting.pop(job.source.frame.size))
        for together in waiting.values():
            yield from self.made(together)

    def brought(self, pair: Pair) -> Job | Outcome:
        """Read a pair; or what is known of a result that is there."""
        started = time.monotonic()
        if pair.problem:
            raise UserError(f"{pair.content}: {pair.problem}")
        for path in (pair.content, pair.style):
            if not path.is_file():
                raise UserError(f"{path}: no such file")
        how = {"size": self.size, "plane": self.plane}
        files = {"content": identity.sha256(pair.content), "style": identity.sha256(pair.style)}
        made_by = json.loads(json.dumps({**files, **self.worker.about, **how}))
        if (before := done(pair.output, sidecar_of(pair.output), made_by, self.overwrite, "refine")) is not None:
            return Outcome(pair, "skipped", about=before)
        volume = read(pair.content)
        check_target(volume, pair.output)
        self.style(pair.style)
        source, how = self.framed(volume)
        return Job(pair, source, how, made_by, started)

    def style(self, path: Path) -> Style:
        """A style file; those of the last pairs are kept."""
        if path not in self.known:
            style = read_style(path, self.plane)
            self.known = {path: style} | dict(list(self.known.items())[: self.worker.batch_size])
        return self.known[path]

    def framed(self, volume: Volume) -> tuple[Ready, dict[str, Any]]:
        """A content in a square frame: at its own resolution, or as much smaller as was asked for."""
        plane = plane_of(volume, self.plane)
        side = max(to_slices(volume, plane).images.shape[1:])
        own = -(-side // MULTIPLE) * MULTIPLE
        if own < self.worker.least:
            raise UserError(f"{volume.name}: {side} pixels at most, {self.worker.least} are needed for these layers of "
                            "VGG-19; give --size, or fewer of the deep layers by --set style_layers=[...]")  # fmt: skip
        levels = {"method": "fixed", "range": [0.0, float(np.iinfo(volume.dtype).max)]} if is_picture(volume) else {}
        how = {"plane": plane, "fit": "crop" if self.size is None else "contain", "size": self.size or own,
               "spacing_mm": None, "intensity": levels}  # fmt: skip
        return ready(volume, how), how

    def made(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Restyle a volume, or single slices of one size, and write them."""
        try:
            lend = [partial(self.lent, job) for job in jobs]
            if len(jobs[0].source.images) > 1:
                restyled = [self.worker.volume(jobs[0].source.images, lend[0], jobs[0].pair.name)]
            else:
                restyled = self.worker.slices([j.source.images[0] for j in jobs], lend, [j.pair.name for j in jobs])
        except UserError as error:
            yield from (_failed(job.pair, error) for job in jobs)
            return
        for job, result in zip(jobs, restyled, strict=True):
            try:
                yield Outcome(job.pair, "written", about=written(job, result, len(jobs)))
            except (UserError, OSError) as error:
                yield _failed(job.pair, error)

    def lent(self, job: Job, share: float | None) -> Tensor:
        """The style image of a slice, at the scale of its frame."""
        frame, volume = job.source.frame, job.source.volume
        spacing = None if volume.picture else frame.spacing_mm
        return self.style(job.pair.style).scaled(0.5 if share is None else share, min(frame.scaled), spacing)


def _failed(pair: Pair, error: BaseException) -> Outcome:
    reason = str(error) if isinstance(error, UserError) else f"{pair.content}: cannot be read ({error})"
    if full(error):
        raise UserError(reason) from error
    return Outcome(pair, "failed", reason)

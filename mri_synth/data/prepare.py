"""From scans to stored slices: group into studies, one grid, chosen slices, intensities to [-1, 1], one frame."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from mri_synth.data import identity
from mri_synth.data.frame import Frame
from mri_synth.data.intensity import Intensity, fit_intensity
from mri_synth.data.register import Registrar
from mri_synth.data.scan import Scan
from mri_synth.data.settings import Fit, IntensitySettings, Plane, SliceSettings
from mri_synth.data.store import MASK, Prepared
from mri_synth.data.volume import WAY_OUT, Slices, Volume, resample_to, same_grid, to_slices
from mri_synth.errors import UserError

log = logging.getLogger(__name__)

FOREGROUND = -0.8
"""Intensities in [-1, 1] above this count as foreground (10 % of the range)."""
Reader = Callable[[Scan], Volume]


@dataclass(frozen=True)
class Study:
    """Scans of one subject and visit that show the same place; at most one per contrast.

    Attributes:
        scans: contrast (or "mask") -> scan.
    """

    scans: dict[str, Scan] = field(default_factory=dict)

    @property
    def first(self) -> Scan:
        """The scan that names the study: its first image."""
        return next(iter(self.scans.values()))


@dataclass(frozen=True)
class Preparation:
    """All that decides how files become slices; part of the store's key.

    Attributes:
        contrasts: wanted, in order; the first one that a study has gives the grid.
        plane: axial, coronal or sagittal.
        size: of the frame, pixels.
        fit: how slices come into the frame.
        spacing_mm: of the frame's pixels, None to follow `fit`.
        slices: which ones.
        intensity: how they become [-1, 1].
        classes_from_mask: names of an empty and of a marked slice, where a mask gives the label.
        classes: label names in index order.
    """

    contrasts: tuple[str, ...]
    plane: Plane
    size: int
    fit: Fit
    spacing_mm: float | None
    slices: SliceSettings
    intensity: IntensitySettings
    classes_from_mask: tuple[str, str] | None = None
    classes: tuple[str, ...] = ()


def group(scans: Sequence[Scan], contrasts: Sequence[str]) -> list[Study]:
    """Scans of one subject, session and slice number become one study.

    Args:
        scans: all scans; contrasts that are not wanted are left out.
        contrasts: wanted contrasts; masks are always kept.

    Returns:
        Studies in the order of the scans. Several scans of one contrast without session or slice number are
        studies of their own when one contrast is wanted.

    Raises:
        UserError: several scans of one contrast where pairs are wanted: which belong together is not known.
    """
    places: dict[tuple[str, str, int | None], dict[str, list[Scan]]] = defaultdict(lambda: defaultdict(list))
    for scan in scans:
        if scan.contrast in contrasts or scan.contrast == MASK:
            places[scan.subject, scan.session, scan.slice][scan.contrast].append(scan)
    studies = []
    alone: list[Scan] = []
    for found in places.values():
        order = [c for c in (*contrasts, MASK) if c in found]
        if order == [MASK]:
            alone += found[MASK]
            continue
        if all(len(found[c]) == 1 for c in order):
            studies.append(Study({c: found[c][0] for c in order}))
        elif len(contrasts) == 1:
            studies += [Study({order[0]: scan}) for scan in found[order[0]]]
            alone += found.get(MASK, [])
        else:
            several = next(c for c in order if len(found[c]) > 1)
            names = ", ".join(str(s.path.name) for s in found[several][:4])
            raise UserError(
                f"subject {found[several][0].subject} has {len(found[several])} scans of {several} ({names}); which "
                "belongs to which is not known. Name the visit (the group 'session' in data.pattern, or a column "
                "session in data.subjects), or take one contrast: data.contrasts=[T1]"
            )
    if alone:
        log.warning("%d label map(s) left out: of which image or visit they are is not known: %s%s", len(alone),
                    ", ".join(s.path.name for s in alone[:5]), ", ..." if len(alone) > 5 else "")  # fmt: skip
    return studies


def studies(todo: Sequence[Study], settings: Preparation, read: Reader, *, skip_bad: bool,
            threads: int, register: Registrar | None = None) -> Iterator[Prepared]:  # fmt: skip
    """Prepare studies in order, several at a time, memory bounded by the number of threads.

    Args:
        todo: what to read.
        settings: how.
        read: scan to volume.
        skip_bad: files that cannot be used are recorded and left out instead of collected into an error.
        threads: how many studies at a time.
        register: what puts further contrasts onto the first; None goes by the affines.

    Yields:
        Prepared studies.

    Raises:
        UserError: files that cannot be used, all of them with their reasons, unless `skip_bad`.
    """
    bad: list[str] = []
    grey: list[str] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(todo), 4 * threads):
            for item in pool.map(lambda s: prepare(s, settings, read, register), todo[start : start + 4 * threads]):
                bad += [f"{f['path']}: {f['reason']}" for f in item.files if f["bad"]]
                grey += [f["path"] for f in item.files if f.get("grey_background")]
                if not bad or skip_bad:
                    yield item
    if grey:
        log.warning("%d file(s) have a background that is not black, such as %s: its one value lies amid the others "
                    "(as 0 in z-scored volumes), and becomes grey. Give it the lowest value in the files, or choose "
                    "data.intensity.method=fixed with the background as data.intensity.range's low end.",
                    len(grey), grey[0])  # fmt: skip
    if bad and not skip_bad:
        shown = "\n".join(f"  {line}" for line in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UserError(
            f"{len(bad)} file(s) cannot be used:\n{shown}{more}\n"
            "Mend or remove them, or say data.on_bad_file=skip: they are then left out and listed."
        )


def prepare(study: Study, settings: Preparation, read: Reader, register: Registrar | None = None) -> Prepared:
    """Read and prepare one study.

    Args:
        study: its scans.
        settings: how.
        read: scan to volume.
        register: what puts further contrasts onto the first; None goes by the affines.

    Returns:
        Its slices, of the contrasts that can be used; the reason in the record of each file that cannot. The first
        contrast that can be used gives the grid. A slice has the mask's class where a marked voxel of it lies in the
        frame, however small; the stored mask is resampled by nearest neighbour, and may be empty then.
    """
    first = study.first
    name = str(first.path) if first.series is None else f"{first.path}#{first.series}"
    out = Prepared(study={
        "id": name,
        "subject": first.subject, "session": first.session, "label": first.label, "split": first.split,
        "age": first.age, "sex": first.sex, "site": first.site, "path": str(first.path), "scan_slice": first.slice,
    })  # fmt: skip
    parts: dict[str, _Part] = {}
    turned: list[tuple[Volume, Volume]] = []  # as read, and as registered
    for contrast, scan in study.scans.items():
        record: dict[str, Any] = {"subject": scan.subject, "session": scan.session, "contrast": contrast}
        record |= {"path": str(scan.path), "sha256": "", "study": name, "bad": False, "reason": ""}
        out.files.append(record)
        try:
            record["sha256"] = identity.sha256(scan.path)
            volume = read(scan)
            record["sha256"] = record["sha256"] or identity.sha256_of_series(volume)
            record |= _facts(volume)
            first_contrast, reference = next(((c, p.volume) for c, p in parts.items()), (contrast, volume))
            if register and parts:
                hashes = (record["sha256"], next(r["sha256"] for r in out.files if r["contrast"] == first_contrast))
                turned.append((volume, _registered(volume, reference, contrast, turned, hashes, register, record)))
                volume = turned[-1][1]
            if contrast != MASK or parts:  # a mask comes last: without an image it is of no use
                parts[contrast] = _part(volume, reference, first_contrast, scan, settings)
        except OSError as error:  # not the cache's fault, as it would seem further up
            record |= {"bad": True, "reason": f"cannot be read ({error.strerror})"}
        except UserError as error:
            record |= {"bad": True, "reason": _reason(error, scan.path)}
    if parts:
        _fill(out, parts, settings)
    elif not out.files[-1]["bad"]:
        out.files[-1]["reason"] = "no image that it belongs to can be used"
    return out


@dataclass(frozen=True)
class _Part:
    """One contrast of a study: as read, its intensities (None for a mask), and its slices on the study's grid."""

    volume: Volume
    intensity: Intensity | None
    cut: Slices


def _registered(volume: Volume, reference: Volume, contrast: str, others: Sequence[tuple[Volume, Volume]],
                hashes: tuple[str, str], register: Registrar, record: dict[str, Any]) -> Volume:  # fmt: skip
    """A scan with the affine that puts it onto the reference; a mask goes with the scan whose grid it shares."""
    if contrast != MASK:
        found = register(volume, reference, hashes)
        record["registration"] = {k: round(v, 4) for k, v in asdict(found).items() if k != "matrix"}
        return found.onto(volume, reference)
    if same_grid(volume, reference):
        return volume
    return next((replace(volume, affine=now.affine) for was, now in others if same_grid(volume, was)), volume)


def _part(volume: Volume, reference: Volume, first: str, scan: Scan, settings: Preparation) -> _Part:
    """Fit intensities and cut slices; an error is this file's, not the reference's."""
    intensity = None if scan.contrast == MASK else fit_intensity(volume.array, settings.intensity, scan.contrast)
    moved = volume
    if not same_grid(volume, reference):
        if volume.picture or reference.picture:
            raise UserError(f"{scan.contrast} has {volume.array.shape[:2]} pixels, {first} "
                            f"{reference.array.shape[:2]}: pictures of a pair must have one size")  # fmt: skip
        moved = resample_to(volume, reference, nearest=scan.contrast == MASK)
    cut = to_slices(moved, settings.plane)
    if scan.slice is not None and len(cut.index) > 1:
        raise UserError(
            f"{len(cut.index)} slices, but its name says that it is slice {scan.slice} of a volume; a volume is cut "
            "into slices here: leave the group 'slice' out of data.pattern (or call it 'session')"
        )
    return _Part(volume, intensity, cut)


def _reason(error: UserError, path: Path) -> str:
    """The message without the path and the advice, which are said once for all files."""
    return str(error).removeprefix(f"{path}: ").removesuffix(WAY_OUT).strip()


def _facts(volume: Volume) -> dict[str, Any]:
    spacing = np.sqrt((volume.affine[:3, :3] ** 2).sum(0))
    return {
        "shape": list(volume.array.shape),
        "spacing_mm": [round(float(s), 4) for s in spacing],
        "orientation": "picture" if volume.picture else "".join(volume.source_axes or aff2axcodes(volume.affine)),
        "dtype": str(volume.dtype),
    }


def _fill(out: Prepared, parts: dict[str, _Part], settings: Preparation) -> None:
    """Fill in images and columns of a study whose files were read; the first part is an image."""
    intensities = {c: part.intensity for c, part in parts.items() if part.intensity is not None}
    base = next(iter(parts))
    slices = parts[base].cut
    shown = intensities[base].apply(slices.images)
    share = (shown > FOREGROUND).mean((1, 2))
    keep = choose(slices, share, settings.slices)
    if not len(keep):
        record = next(r for r in out.files if r["contrast"] == base)
        record["reason"] = (f"no slice left by data.slices ({len(share)} slices, largest foreground share "
                                  f"{share.max():.3f})")  # fmt: skip
        return
    frame = Frame.fit(slices.images.shape[1:], slices.spacing_mm, settings.size, settings.fit, settings.spacing_mm)
    for contrast, part in parts.items():
        if contrast == MASK:
            out.images[MASK] = frame.apply((part.cut.images[keep] > 0).astype(np.float32), fill=0, nearest=True)
        else:
            out.images[contrast] = frame.apply(intensities[contrast].apply(part.cut.images[keep]), fill=-1)
    for record in out.files:
        if record["contrast"] in intensities:
            intensity = intensities[record["contrast"]]
            record |= {"low": intensity.low, "high": intensity.high, "slices": len(keep),
                       "slices_left_out": len(share) - len(keep),
                       "grey_background": _grey(parts[record["contrast"]].volume.array, intensity)}  # fmt: skip
    number = out.study["scan_slice"]
    label = settings.classes.index(out.study["label"]) if out.study["label"] in settings.classes else -1
    labels = np.full(len(keep), label)
    if settings.classes_from_mask:
        labels[:] = -1
        if MASK in parts:
            marked = to_slices(_every_mark(parts[MASK].volume, parts[base].volume), settings.plane).images[keep] > 0
            labels[:] = (marked & frame.shown()).any((1, 2))
    out.columns = {
        "slice": slices.index[keep] if number is None else np.array([number]),
        "position_mm": slices.position_mm[keep],
        "label": labels,
        "foreground": (out.images[base] > FOREGROUND).mean((1, 2)),
    }
    out.study |= {"spacing_mm": list(frame.spacing_mm), "frame_covers": round(frame.covered, 4),
                  "contrasts": sorted(intensities)}  # fmt: skip


def _grey(array: NDArray[Any], intensity: Intensity) -> bool:
    """Whether the value of the first corner fills a fifth of the volume or more, and does not become black."""
    corner = array.reshape(-1)[:1]
    return bool(intensity.apply(corner)[0] > FOREGROUND and (array == corner).mean() > 0.2)


def _every_mark(mask: Volume, reference: Volume) -> Volume:
    """A mask on the reference's grid with every marked voxel in it: one of the grid's is marked if it is, by nearest
    neighbour, or if the centre of a marked voxel lies in it."""
    if same_grid(mask, reference):
        return mask
    moved = resample_to(mask, reference, nearest=True)
    to_reference = np.linalg.inv(reference.affine) @ mask.affine
    at = np.rint(np.argwhere(mask.array > 0) @ to_reference[:3, :3].T + to_reference[:3, 3]).astype(np.intp)
    at = at[((at >= 0) & (at < moved.array.shape)).all(1)]
    array = moved.array.copy()
    array[tuple(at.T)] = 1
    return replace(moved, array=array)


def choose(slices: Slices, share: NDArray[np.floating[Any]], settings: SliceSettings) -> NDArray[np.intp]:
    """Positions of the slices that the settings ask for.

    Args:
        slices: of one volume.
        share: (N,) share of foreground pixels of each.
        settings: `data.slices`.

    Returns:
        Positions in [0, N), ascending.
    """
    where: NDArray[Any] = slices.index
    if settings.unit == "mm":
        where = slices.position_mm
    elif settings.unit == "share":
        extent = np.flatnonzero(share > 0.01)
        if not len(extent):
            return np.zeros(0, np.intp)
        where = (np.arange(len(share)) - extent[0]) / max(extent[-1] - extent[0], 1)
    start = -np.inf if settings.start is None else settings.start
    stop = np.inf if settings.stop is None else settings.stop
    inside = np.flatnonzero((where >= start) & (where <= stop))[:: settings.step]
    return inside[share[inside] >= settings.min_foreground]

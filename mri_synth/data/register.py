"""Rigid registration of a subject's contrasts: one turn and one shift by mutual information, found once, checked.

A scan is not resampled here: what is found goes into its affine, so that bringing it onto the reference's grid
(`volume.resample_to`, linear) stays the only interpolation. Positions are RAS millimetres throughout.
"""

# mypy: untyped-calls-exclude=SimpleITK
from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from scipy import ndimage

from mri_synth.data.nifti import whole_file
from mri_synth.data.volume import Volume, same_grid
from mri_synth.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

log = logging.getLogger(__name__)

Array = NDArray[Any]
VERSION = 1  # of what is found: another one whenever a matrix changes
LEVELS = ((4.0, 10_000, 32), (2.0, 20_000, 32), (0.0, 60_000, 64))
"""Smoothing (sigma, mm), points drawn and bins of each level. The last is not smoothed: smoothing moves the peak
between contrasts whose edges differ (0.2 mm at sigma 2 between T1 and T2 of a simulated head, 0.03 mm without)."""
ITERATIONS, SEED = 150, 1
STEP_MM = (1.0, 0.004)  # of the optimiser: first and last; a quarter of both at the last level
POINTS = 100_000  # at which the result is checked
MOST_DEG, MOST_MM = 30.0, 60.0  # beyond these a result is not believed; mm: of the head's centre
STAY_MM = 0.5  # on one grid, scans of which no point moves further than this (half a voxel) stay as they are
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # SimpleITK's axes run left and backwards


@dataclass(frozen=True)
class Rigid:
    """Where a scan lies against its reference.

    Attributes:
        matrix: (4, 4) a point of the reference -> the point of the scan that shows the same, as nested lists, mm.
        rotation_deg: angle of the turn.
        shift_mm: how far the centre of the reference's head is moved.
        furthest_mm: how far the most moved point of the reference's head is.
        before: mutual information by the affines of the files, nats; 0 where the scans do not overlap.
        after: mutual information as registered.
    """

    matrix: list[list[float]]
    rotation_deg: float
    shift_mm: float
    furthest_mm: float
    before: float
    after: float

    def onto(self, moving: Volume, fixed: Volume) -> Volume:
        """The scan with the affine that puts it onto the reference; as it is where nothing is gained by that.

        Args:
            moving: the scan.
            fixed: its reference.

        Returns:
            The same voxels.

        Raises:
            UserError: the result is not to be believed: by how much.
        """
        small = self.furthest_mm <= STAY_MM
        if small and (same_grid(moving, fixed) or self.after < self.before):
            return moving
        found = f"turned by {self.rotation_deg:.1f} deg and moved by {self.shift_mm:.1f} mm"
        if self.rotation_deg > MOST_DEG or self.shift_mm > MOST_MM:
            raise UserError(f"registration found it {found}; no more than {MOST_DEG:.0f} deg and {MOST_MM:.0f} mm are "
                            f"believed: is it the same subject, and are the affines right? {_AID}")  # fmt: skip
        if self.after < self.before:
            raise UserError(f"registration ({found}) lowered mutual information from {self.before:.3f} to "
                            f"{self.after:.3f} nats. {_AID}")  # fmt: skip
        return replace(moving, affine=np.linalg.inv(np.array(self.matrix)) @ moving.affine)


_AID = "data.register=none goes by the affines alone"


class Registrar:
    """Registers scans to their reference, each pair once: what was found is kept.

    Args:
        cache: folder of all stores; the pairs lie in its folder `registrations`, named by the hashes of both files and
            of the settings. Processes that want one pair at once find it once.
    """

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "registrations"

    def __call__(self, moving: Volume, fixed: Volume, hashes: tuple[str, str]) -> Rigid:
        """Where a scan lies against its reference; found, or read where it was found before.

        Args:
            moving: the scan.
            fixed: its reference.
            hashes: of both files; "" for one that has no file.

        Returns:
            What was found, not yet judged (`Rigid.onto` does).

        Raises:
            UserError: pictures, or scans that do not overlap.
        """
        content = [h or _content(v) for h, v in zip(hashes, (moving, fixed), strict=True)]
        settings = (VERSION, LEVELS, ITERATIONS, SEED, STEP_MM, POINTS)
        place = self.folder / f"{hashlib.sha256(repr((content, settings)).encode()).hexdigest()[:24]}.json"
        if (known := _read(place)) is not None:
            return known
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(place.with_suffix(".lock")):
                if (known := _read(place)) is not None:
                    return known
                found = rigid(moving, fixed)
                with whole_file(place) as part:
                    part.write_text(json.dumps(asdict(found)))
                return found
        except OSError as error:  # the store, in the same folder, says it better
            log.warning("%s: a registration could not be kept there (%s)", self.folder, error.strerror)
            return rigid(moving, fixed)


def rigid(moving: Volume, fixed: Volume) -> Rigid:
    """Turn and shift between two scans of one head: Mattes mutual information from coarse to fine, one fixed seed.

    `argmax_T I(fixed(x); moving(T x))`, T of six parameters, by regular-step gradient descent on points drawn at random
    (Mattes et al., IEEE TMI 22:120, 2003; SimpleITK). Starts from the affines, or with the centres of both heads on
    each other where that has more mutual information. One thread, so that the same pair gives the same numbers.

    Args:
        moving: (X, Y, Z), any grid.
        fixed: the reference.

    Returns:
        What was found, whether good or not.

    Raises:
        UserError: pictures, or scans that do not overlap.
    """
    if moving.picture or fixed.picture:
        raise UserError(f"data.register=rigid needs volumes; {moving.name} is a picture. {_AID}")
    reference, scan = replace(fixed, array=_window(fixed.array)), replace(moving, array=_window(moving.array))
    centre, other = _centre(reference), _centre(scan)
    start = np.eye(4)
    start[:3, 3] = other - centre
    at = _points(reference)
    by_affine, by_centre = (information(reference, scan, m, at[: POINTS // 4]) for m in (np.eye(4), start))
    if max(by_affine, by_centre) <= 0:
        raise UserError(f"does not overlap with {fixed.name}. {_AID}")
    matrix = _optimised(reference, scan, centre, np.zeros(3) if by_affine >= by_centre else other - centre)
    angle = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
    head = at[sampled(reference, at) > reference.array.mean()]
    moved = np.linalg.norm(_map(matrix, np.vstack([centre, head])) - np.vstack([centre, head]), axis=1)
    return Rigid(matrix.tolist(), float(angle), float(moved[0]), float(moved.max()),
                 information(reference, scan, np.eye(4), at), information(reference, scan, matrix, at))  # fmt: skip


def information(fixed: Volume, moving: Volume, matrix: Array, at: Array) -> float:
    """Mutual information of two scans under a transformation, at points off both grids so that neither is favoured.

    `I = sum p(a, b) log(p(a, b) / (p(a) p(b)))` of the joint histogram of 64 x 64 bins, over points that lie in both
    scans; both are interpolated linearly.

    Args:
        fixed: the reference.
        moving: the scan.
        matrix: (4, 4) a point of the reference -> the point of the scan.
        at: (N, 3) points, mm.

    Returns:
        Nats, at least 0; 0 where fewer than a tenth of the points lie in both.
    """
    mapped = _map(matrix, at)
    inside = _inside(fixed, at) & _inside(moving, mapped)
    if inside.mean() < 0.1:
        return 0.0
    joint, _, _ = np.histogram2d(sampled(fixed, at[inside]), sampled(moving, mapped[inside]), 64)
    p = joint / joint.sum()
    apart = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    some = p > 0
    return float((p[some] * np.log(p[some] / apart[some])).sum())


def sampled(volume: Volume, at: Array) -> Array:
    """(N,) values at (N, 3) points, mm, by linear interpolation; the border's beyond it."""
    where = _map(np.linalg.inv(volume.affine), at).T
    values: Array = ndimage.map_coordinates(volume.array, where, order=1, mode="nearest")
    return values


def _optimised(fixed: Volume, moving: Volume, centre: Array, shift: Array) -> Array:
    import SimpleITK as sitk

    transform = sitk.Euler3DTransform()
    transform.SetCenter((_LPS[:3, :3] @ centre).tolist())
    transform.SetTranslation((_LPS[:3, :3] @ shift).tolist())
    images = _image(fixed), _image(moving)
    for sigma_mm, points, bins in LEVELS:
        coarse = [_coarse(image, sigma_mm) for image in images]
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(bins)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(min(1.0, points / coarse[0].GetNumberOfPixels()), SEED)
        method.MetricUseFixedImageGradientFilterOff()  # else slopes are smoothed by the slice thickness: 0.3 mm off
        method.MetricUseMovingImageGradientFilterOff()
        method.SetInterpolator(sitk.sitkLinear)
        first, last = (step if sigma_mm else step / 4 for step in STEP_MM)
        method.SetOptimizerAsRegularStepGradientDescent(first, last, ITERATIONS, 0.5, 1e-10)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(*coarse)
        except RuntimeError as error:  # such as all points outside the scan
            why = str(error).strip().splitlines()[-1].rpartition(": ")[2]
            raise UserError(f"registration to {fixed.name} failed ({why}). {_AID}") from error
    turn, middle = np.array(transform.GetMatrix()).reshape(3, 3), np.array(transform.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = middle + np.array(transform.GetTranslation()) - turn @ middle
    return np.round(_LPS @ matrix @ _LPS, 7)  # sums of SimpleITK differ in their last bit from run to run


def _image(volume: Volume) -> sitk.Image:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    affine, spacing = _LPS @ volume.affine, np.linalg.norm(volume.affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _coarse(image: sitk.Image, sigma_mm: float) -> sitk.Image:
    """Smoothed, and thinned to about one voxel per sigma along each axis."""
    import SimpleITK as sitk

    if not sigma_mm:
        return image
    every = [max(1, int(sigma_mm / spacing)) for spacing in image.GetSpacing()]
    if min(image.GetSize()) >= 4:  # the recursive filter needs four voxels
        image = sitk.SmoothingRecursiveGaussian(image, sigma_mm)
    thinned: sitk.Image = sitk.Shrink(image, every)
    return thinned


def _window(array: Array) -> Array:
    """Clipped where a display would be: a few very bright voxels would take all the bins."""
    low, high = np.percentile(array, [0.1, 99.5])
    return np.clip(array, low, high).astype(np.float32) if high > low else array.astype(np.float32)


def _centre(volume: Volume) -> Array:
    """(3,) centre of what is brighter than the mean, mm."""
    mask = volume.array > volume.array.mean()
    middle: Array = _map(volume.affine, np.array([ndimage.center_of_mass(mask)]))[0]
    return middle


def _points(volume: Volume) -> Array:
    """(POINTS, 3) points of a volume, evenly drawn with one seed, mm."""
    share = np.random.default_rng(SEED).random((POINTS, 3))
    return _map(volume.affine, share * (np.array(volume.array.shape) - 1))


def _inside(volume: Volume, at: Array) -> Array:
    where = _map(np.linalg.inv(volume.affine), at)
    return np.asarray(((where >= 0) & (where <= np.array(volume.array.shape) - 1)).all(1))


def _map(matrix: Array, at: Array) -> Array:
    return np.asarray(at @ matrix[:3, :3].T + matrix[:3, 3])


def _content(volume: Volume) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(volume.array).tobytes())
    digest.update(volume.affine.tobytes())
    return digest.hexdigest()


def _read(place: Path) -> Rigid | None:
    """What was kept; None where there is nothing, or nothing that can be read."""
    try:
        return Rigid(**json.loads(place.read_text()))
    except (OSError, ValueError, TypeError):
        return None

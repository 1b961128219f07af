"""The simulated data set: known limits of its physics, its frozen preset, twins, orientation, and its data module."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from omegaconf import OmegaConf

from mri_synth.data import anatomy, physics, template
from mri_synth.data.phantom import Phantom
from mri_synth.data.physics import LESION, SEQUENCES, TISSUE, Sequence, bias_field, rician, signal
from mri_synth.data.settings import SliceSettings
from mri_synth.data.simulate import BENCH_V1, TEXTURE, Preset, Simulated, simulate
from mri_synth.data.template import FOV_MM, Grid, load_template, smooth_field, stream
from mri_synth.errors import UserError
from mri_synth.metrics.references import references

SMALL = Grid(size=64)
CONTRASTS = list(SEQUENCES)


def scan(subject: int = 1, contrast: str = "T1", lesion: bool = False, noise: bool = False) -> Simulated:
    return simulate(subject, contrast, lesion=lesion, noise=noise, grid=SMALL)


# -- physics -----------------------------------------------------------------------------------------------------------


def test_spin_echo_by_hand() -> None:
    # TR = T1 and TE = T2: 0.8 (1 - 1/e) / e
    got = signal(Sequence(te_ms=50, tr_ms=900), 0.8, 900.0, 50.0)
    assert got == pytest.approx(0.8 * 0.6321205588 * 0.3678794412)


def test_inversion_recovery_by_hand() -> None:
    # without decay (T2 infinite) and TR infinite: 1 - 2 exp(-TI/T1) is -1 at TI = 0 and 0 at TI = T1 ln 2
    assert signal(Sequence(te_ms=0, tr_ms=1e9, ti_ms=0), 1.0, 1000.0, 1e9) == pytest.approx(-1.0)
    assert signal(Sequence(te_ms=0, tr_ms=1e9, ti_ms=1000 * np.log(2)), 1.0, 1000.0, 1e9) == pytest.approx(0.0)


def test_flair_nulls_csf() -> None:
    t = TISSUE["csf"]
    assert abs(float(signal(SEQUENCES["FLAIR"], t.pd, t.t1_ms, t.t2_ms))) < 2e-3


def test_rician_limits() -> None:
    rng = np.random.default_rng(0)
    air = rician(rng, np.zeros(200_000), 3.0)
    assert air.mean() == pytest.approx(3.0 * np.sqrt(np.pi / 2), rel=0.01)
    bright = rician(rng, np.full(200_000, 300.0), 3.0)
    assert bright.std() == pytest.approx(3.0, rel=0.01)
    assert bright.mean() == pytest.approx(300 + 3.0**2 / (2 * 300), abs=0.03)


def test_bias_stays_in_its_range() -> None:
    for seed in range(5):
        field = bias_field(np.random.default_rng(seed), SMALL.axes(), 20.0)
        assert field.min() >= 0.9
        assert field.max() <= 1.1
        assert np.ptp(field) > 0.05
    assert (bias_field(np.random.default_rng(0), SMALL.axes(), 0.0) == 1).all()


def test_random_field_has_its_sd_and_no_grid_of_its_own() -> None:
    fine, coarse = Grid(size=64).axes(), Grid(size=32).axes()
    values = np.array([smooth_field(np.random.default_rng(s), coarse, 10.0, 2.0) for s in range(20)])
    assert values.std() == pytest.approx(2.0, rel=0.05)
    x = (fine[0][::8], fine[1][::8], fine[2])
    part, whole = (smooth_field(np.random.default_rng(0), a, 10.0, 2.0) for a in (x, fine))
    np.testing.assert_allclose(part, whole[::8, ::8])


def test_deformation_sd() -> None:
    axes = Grid(size=16).axes()
    shifts = np.array([anatomy.displacement(stream(0, s, "anatomy"), axes, 3.0) for s in range(60)])
    np.testing.assert_allclose(shifts.std(axis=(0, 2, 3, 4)), 3.0, rtol=0.1)
    assert not anatomy.displacement(stream(0, 0, "anatomy"), axes, 0.0).any()


# -- the subjects ------------------------------------------------------------------------------------------------------


def test_bench_v1_is_frozen() -> None:
    table = (BENCH_V1, TISSUE, LESION, physics.SPREAD, TEXTURE, SEQUENCES, FOV_MM, Grid())
    assert hashlib.sha256(repr(table).encode()).hexdigest()[:16] == "f83c7cf3b1bf0190"
    digest = hashlib.sha256()
    start = sum(BENCH_V1.subjects[:2])
    for subject in range(start, start + BENCH_V1.subjects[2]):
        made = simulate(subject, "T1", lesion=subject % 2 == 1, grid=SMALL)
        digest.update(np.rint(made.array).astype("<i2").tobytes())
        digest.update(made.mask.tobytes())
    assert digest.hexdigest() == "3c8e5a2c42a32dc90427974e050cf912c22a8f55255a50a1505f97c944595865"


@pytest.mark.slow
def test_the_stored_test_array_of_bench_v1_is_frozen() -> None:
    data = phantom(subjects=[0, 0, 40], size=128)
    assert data.store.counts == {"T1": 400, "mask": 400}
    stored = {name: data.store.read(name, np.arange(400)) for name in ("T1", "mask")}
    t1 = hashlib.sha256(stored["T1"].astype("<i2").tobytes()).hexdigest()
    assert t1 == "492e28d5eee5455c5c882cfa9e917f734beb9866b5afe356502620e44735251d"
    mask = hashlib.sha256(stored["mask"].tobytes()).hexdigest()
    assert mask == "b2eebbc80a9b7cb9bff8109f6cd220ab2d33bbb53fb64919928d305a335616d7"


def test_same_numbers_again_and_other_subjects_differ() -> None:
    first, again, other = (simulate(s, "T1", lesion=True, grid=SMALL).array for s in (3, 3, 5))
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 200
    elsewhere = simulate(3, "T1", lesion=True, grid=SMALL, preset=Preset(seed=1)).array
    assert abs(first - elsewhere).max() > 200


def test_brain_fills_75_to_80_percent_of_the_frame() -> None:
    brain = load_template().brain > 0
    largest = brain[:, :, np.argmax(brain.sum((0, 1)))]
    rows = np.flatnonzero(largest.any(0))
    assert 0.75 <= (rows[-1] - rows[0] + 1) / FOV_MM <= 0.80
    heights = []
    for subject in range(8):
        inside = scan(subject).fractions.sum(0) > 0.5
        heights.append(inside.any((0, 2)).sum() / SMALL.size)
    assert 0.75 <= np.mean(heights) <= 0.80


def test_the_same_head_at_any_size() -> None:
    small, large = (simulate(2, "T1", lesion=True, noise=False, grid=Grid(size=n)) for n in (64, 128))
    np.testing.assert_allclose(Grid(size=64).average(np.ones((256, 256, 10))), 1)
    halved = large.fractions.reshape(3, 64, 2, 64, 2, 10).mean((2, 4))
    np.testing.assert_allclose(halved, small.fractions, atol=1e-9)
    assert small.lesions == large.lesions


def test_affine_says_where_the_voxels_are() -> None:
    made = simulate(0, "T1", lesion=False, grid=SMALL, preset=Preset(deform_sd_mm=0.0))
    assert nib.aff2axcodes(made.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.linalg.norm(made.affine[:3, :3], axis=0), [3.75, 3.75, 6.0])
    ijk = np.indices(made.array.shape).reshape(3, -1)
    mm = made.affine[:3, :3] @ ijk + made.affine[:3, 3:]
    i, j, k = np.rint(mm - np.array(load_template().origin_mm)[:, None]).astype(int)
    inside = (np.array([i, j, k]) >= 0).all(0) & (load_template().gm.shape > np.array([i, j, k]).T).all(1)
    expected = np.where(inside, load_template().wm[i * inside, j * inside, k * inside], 0).reshape(made.array.shape)
    there = np.corrcoef(expected.ravel(), made.fractions[0].ravel())[0, 1]
    back_to_front = np.corrcoef(expected[:, ::-1].ravel(), made.fractions[0].ravel())[0, 1]
    assert there > 0.85 > back_to_front + 0.15


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_white_matter_snr(contrast: str) -> None:
    noisy, clean = scan(4, contrast, noise=True), scan(4, contrast)
    white = clean.fractions[0] > 0.95
    assert white.sum() > 500
    snr = clean.array[white].mean() / (noisy.array - clean.array)[white].std()
    assert snr == pytest.approx(30, rel=0.1)
    air = clean.fractions.sum(0) == 0
    assert noisy.array[air].mean() == pytest.approx(noisy.sigma * np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize(
    "contrast, order", [("T1", "csf gm wm"), ("T2", "wm gm csf"), ("PD", "wm gm"), ("FLAIR", "csf wm gm")]
)
def test_contrast_of_tissues(contrast: str, order: str) -> None:
    made = scan(6, contrast)
    mean = {name: made.array[made.fractions[i] > 0.9].mean() for i, name in enumerate(TISSUE)}
    values = [mean[name] for name in order.split()]
    assert values == sorted(values)
    assert values[1] > 1.1 * values[0]
    if contrast == "FLAIR":
        assert mean["csf"] < 0.15 * mean["wm"]


def test_age_widens_the_fluid_spaces() -> None:
    people = [anatomy.person(BENCH_V1.seed, s) for s in range(40)]
    assert {p.sex for p in people} == {"F", "M"}
    assert all(20 <= p.age <= 85 for p in people)
    picked = sorted(range(40), key=lambda s: people[s].age)
    fluid = [(f := scan(s).fractions)[2].sum() / f.sum() for s in (*picked[:4], *picked[-4:])]
    assert np.mean(fluid[4:]) > 1.2 * np.mean(fluid[:4])


# -- lesions and twins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_twin_differs_in_the_lesion_and_nowhere_else(contrast: str) -> None:
    ill, twin = (scan(3, contrast, lesion=lesion, noise=True) for lesion in (True, False))
    inside = ill.mask > 0
    assert inside.any()
    assert not twin.mask.any()
    np.testing.assert_array_equal(ill.array[~inside], twin.array[~inside])
    assert (ill.array[inside] != twin.array[inside]).all()


def test_both_signs_in_every_contrast() -> None:
    signs: dict[tuple[str, str], list[float]] = {}
    for subject in range(1, 16, 2):
        for contrast in CONTRASTS:
            ill, twin = scan(subject, contrast, lesion=True), scan(subject, contrast)
            kinds = {x.kind for x in ill.lesions}
            if len(kinds) == 1:
                change = (ill.array - twin.array)[ill.mask > 0].mean() / twin.array[ill.mask > 0].mean()
                signs.setdefault((contrast, kinds.pop()), []).append(change)
    for contrast in CONTRASTS:
        dark, bright = ("long", "short") if contrast == "T1" else ("short", "long")
        assert max(signs[contrast, dark]) < 0 < min(signs[contrast, bright])


def test_lesions_are_of_the_stated_size_and_side() -> None:
    low, high = BENCH_V1.lesion_radius_mm
    sides = set()
    for subject in range(1, 16, 2):
        made = scan(subject, lesion=True)
        assert 1 <= len(made.lesions) <= 3
        mm = np.argwhere(made.mask) @ made.affine[:3, :3].T + made.affine[:3, 3]
        from_centres = np.array([np.linalg.norm(mm - x.centre_mm, axis=1) for x in made.lesions])
        reach = np.array([max(x.radii_mm) for x in made.lesions])[:, None] + 3.75 * 2**-0.5
        assert (from_centres <= reach).any(0).all()
        for lesion in made.lesions:
            assert low <= min(lesion.radii_mm) <= max(lesion.radii_mm) <= high
            i, j, k = np.rint(np.linalg.inv(made.affine) @ (*lesion.centre_mm, 1))[:3].astype(int)
            assert made.mask[i, j, k] == 1
            middle = (SMALL.size - 1) / 2  # x grows to the subject's right
            assert lesion.side == ("left" if i < middle else "right")
            sides.add(lesion.side)
    assert sides == {"left", "right"}


# -- the data module ---------------------------------------------------------------------------------------------------


def phantom(**changes: Any) -> Phantom:
    return Phantom(**{"subjects": [4, 2, 2], "size": 64} | changes)


def test_yaml_says_the_frozen_numbers() -> None:
    path = Path(__file__).parents[1] / "conf/data/phantom.yaml"
    config = dict(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    assert config.pop("_target_") == "mri_synth.data.phantom.Phantom"
    data = Phantom(**config)
    assert data.table == BENCH_V1
    assert data.title == "bench-v1"
    assert len({s.subject for s in data.scans()}) == 260
    lines = [line for line in path.read_text().splitlines() if not line.startswith(("#", "_target_"))]
    assert [line for line in lines if "#" not in line and not line.endswith(":")] == []  # each key is explained


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"snr": 20.0}, r"data\.snr=20\.0: it is 30\.0 in bench-v1, and bench-v1 is frozen; use data\.preset=custom"),
        ({"phantom_seed": 0}, r"data\.phantom_seed=0: .*frozen"),
        ({"lesion_radius_mm": [5.0, 9.0]}, r"data\.lesion_radius_mm=\[5\.0, 9\.0\]: .*frozen"),
        ({"subjects": [300, 2, 2]}, r"data\.subjects=\[300, 2, 2\]: bench-v1 has \[200, 20, 40\], fewer may be taken"),
        ({"subjects": [3, 2]}, r"data\.subjects=\[3, 2\]: three numbers are wanted"),
        ({"contrasts": ["T1", "T1ce"]}, r"data\.contrasts=\[T1,T1ce\]: T1ce cannot be simulated; data=phantom has T1"),
        (
            {"fit": "crop"},
            r"data\.fit=crop: it is contain in bench-v1, and bench-v1 is frozen; use data\.preset=custom",
        ),
        ({"spacing_mm": 1.0}, r"data\.spacing_mm=1\.0: it is null in bench-v1, and .*frozen"),
        (
            {"intensity": {"percentiles": [0.1, 99.9]}},
            r"intensity\.percentiles=\[0\.1, 99\.9\]: it is \[60\.0, 99\.5\] in",
        ),
        ({"intensity": {"method": "minmax"}}, r"data\.intensity\.method=minmax: it is percentile in bench-v1"),
        ({"slices": {"step": 2}}, r"data\.slices\.step=2: it is 1 in bench-v1, and bench-v1 is frozen"),
        ({"slices": SliceSettings(min_foreground=0.1)}, r"data\.slices\.min_foreground=0\.1: it is 0\.0 in .*frozen"),
        ({"plane": "coronal"}, r"data\.plane=coronal: data=phantom is axial"),
        ({"preset": "custom", "lesion_radius_mm": [9.0, 5.0]}, r"lesion_radius_mm=\[9\.0, 5\.0\]: two numbers"),
    ],
)
def test_refusals_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        phantom(**changes)


def test_custom_is_free() -> None:
    data = phantom(preset="custom", snr=20.0, phantom_seed=5)
    assert (data.title, data.table.snr, data.table.seed) == ("custom", 20.0, 5)
    assert {s.subject for s in data.scans() if s.split == "test"} == {"phantom-0006", "phantom-0007"}


def test_scans_of_a_subset_are_those_of_the_whole() -> None:
    few, all_ = phantom(contrasts=["T1", "T2"]), phantom(contrasts=["T1", "T2"], subjects=[200, 20, 40])
    assert set(few.scans()) < set(all_.scans())
    assert few.title == "bench-v1 (subset)"
    first = next(s for s in few.scans() if s.split == "test")
    assert (first.subject, str(first.path), first.label) == ("phantom-0220", "phantom/bench-v1/subject-0220", None)
    assert first.site == "simulated"
    assert [s.contrast for s in few.scans()[:3]] == ["T1", "T2", "mask"]
    assert {s.contrast for s in phantom(lesions="none").scans()} == {"T1"}
    assert (Phantom.labelled({"lesions": "none"}), Phantom.labelled({})) == (False, True)


def test_read_gives_whole_numbers_and_half_have_lesions() -> None:
    data = phantom()
    scans = {(s.subject, s.contrast): s for s in data.scans()}
    masks = [data.read(scans[f"phantom-{n:04d}", "mask"]).array for n in range(4)]
    assert [bool(m.any()) for m in masks] == [False, True, False, True]
    volume = data.read(scans["phantom-0001", "T1"])
    assert volume.array.dtype == np.float32
    assert volume.array.shape == masks[1].shape == (64, 64, 10)
    np.testing.assert_array_equal(volume.array, np.rint(volume.array))
    assert volume.array.max() < 4096
    np.testing.assert_allclose(volume.affine, SMALL.affine)
    np.testing.assert_array_equal(masks[1], data.simulate(1, "T1").mask)


def test_without_noise_nothing_else_changes() -> None:
    noisy, clean = phantom(), phantom(noise=False)
    assert clean.title == "bench-v1 (subset, no noise)"
    one = noisy.scans()[0]
    difference = noisy.read(one).array - clean.read(one).array
    made = noisy.simulate(0, "T1")
    white = made.fractions[0] > 0.95
    assert abs(difference[white].mean()) < 0.1 * made.sigma
    assert difference[white].std() == pytest.approx(made.sigma, rel=0.1)


def test_the_title_reaches_the_spec() -> None:
    data = phantom(subjects=[2, 1, 1], size=32, lesions="none")
    data.setup()
    assert data.spec.preparation["title"] == data.title == "bench-v1 (subset, no lesions)"
    assert phantom(split={"by": "subject"}, lesions="all").title == "bench-v1 (subset, other split, all with lesions)"


def test_the_data_hash_is_of_settings_and_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashes(**changes: Any) -> tuple[str, str]:
        data = phantom(**{"subjects": [2, 1, 1], "size": 32} | changes)
        return data.data_hash, data.store_key if data.store else ""

    plain = hashes()
    assert hashes(cache=str(tmp_path)) == plain
    assert hashes(noise=False)[0] != plain[0]
    monkeypatch.setattr(Phantom, "simulator", "2")
    again = hashes()
    assert again[0] != plain[0]
    assert again[1] != plain[1]


def test_the_ceiling_takes_the_slices_that_were_chosen() -> None:
    ceilings = {}
    for snr in (3.0, 1e6):  # slices are chosen by noisy intensities, which the clean ones need not follow
        data = phantom(preset="custom", snr=snr, size=32, contrasts=["T1", "T2"], lesions="none",
                       slices=SliceSettings(unit="index", step=2, min_foreground=0.3))  # fmt: skip
        data.setup()
        assert 0 < len(data.view("test")) <= 2 * 2 * 5
        ceilings[snr] = references(data)["ceiling/ssim"]
    assert 0.1 < ceilings[3.0] < 0.9
    assert ceilings[1e6] > 0.9999  # no noise, and slice by slice the same


def test_missing_nilearn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install nilearn"):
        template._load_template.__wrapped__()


def test_unknown_contrast() -> None:
    with pytest.raises(UserError, match="'MRA' cannot be simulated; data=phantom has T1, T2, PD, FLAIR"):
        simulate(0, "MRA", lesion=False, grid=SMALL)

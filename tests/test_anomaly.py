"""Anomaly scores by hand, against scikit-learn, and of a model that is known to fail at lesions only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from layouts import nifti, text, tumour
from PIL import Image
from torch import Tensor

from mri_synth import anomaly
from mri_synth.config import check
from mri_synth.data.batch import DataSpec
from mri_synth.data.folder import Folder
from mri_synth.data.phantom import Phantom
from mri_synth.data.views import Images, Labelled
from mri_synth.errors import ConfigError, UserError
from mri_synth.metrics.anomaly import Detection, brain, by_subject, detection, gain, summary
from mri_synth.models.base import SynthModule
from mri_synth.outputs import table_hash

SMALL = {"subjects": [3, 2, 4], "size": 64, "contrasts": ["FLAIR"]}


def test_by_hand():
    """Scores 4 3 2 1 of lesion, other, lesion, other: three of four pairs are in order; best is the first three."""
    found = detection(np.array([1.0, 4, 3, 2]), np.array([0, 1, 0, 1]))
    assert found == Detection(auroc=0.75, ap=pytest.approx((1 + 2 / 3) / 2), dice=0.8, threshold=2)


def test_ties_by_hand():
    """One threshold takes both of a tie: half a pair, precision 1/2 at once, and Dice 2/3."""
    assert detection(np.ones(2), np.array([1, 0])) == Detection(0.5, 0.5, pytest.approx(2 / 3), 1)


@pytest.mark.parametrize(("score", "expected"), [([0, 0, 1], (1, 1, 1)), ([1, 1, 0], (0, 1 / 3, 0.5))])
def test_best_and_worst(score, expected):
    found = detection(np.array(score, float), np.array([0, 0, 1]))
    assert (found.auroc, found.ap, found.dice) == pytest.approx(expected)


@pytest.mark.parametrize("lesion", [[0, 0], [1, 1], []])
def test_undefined_without_both_kinds(lesion):
    found = detection(np.arange(len(lesion), dtype=float), np.array(lesion))
    assert np.isnan([found.auroc, found.ap, found.dice, found.threshold]).all()


@pytest.mark.parametrize("levels", [5, 10**6])
def test_equal_to_scikit_learn(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(levels)
    for share in (0.01, 0.4):
        lesion = rng.random(2000) < share
        score = rng.integers(levels, size=2000) + levels / 4 * lesion
        found = detection(score, lesion)
        assert found.auroc == pytest.approx(metrics.roc_auc_score(lesion, score), abs=1e-12)
        assert found.ap == pytest.approx(metrics.average_precision_score(lesion, score), abs=1e-12)
        dice = [metrics.f1_score(lesion, score >= t) for t in np.unique(score)[:: max(1, levels // 50)]]
        assert found.dice >= max(dice) - 1e-12
        assert found.dice == pytest.approx(metrics.f1_score(lesion, score >= found.threshold), abs=1e-12)


def test_brain_holds_what_is_dark_inside_it():
    """A disc with a black hole, a black notch 3 wide at its edge, and a speck of noise far away."""
    y, x = np.mgrid[:64, :64] - 31.5
    disc = y**2 + x**2 < 25**2
    image = np.where(disc, 0.5, -1)
    image[30:36, 30:36] = -1
    image[31:34, 50:60] = -1
    mask = brain(image[None])[0]
    assert mask[30:36, 30:36].all()
    assert mask[32, 50:54].all()
    assert (mask & ~disc).sum() == 0
    assert not brain(np.full((2, 16, 16), -1.0)).any()
    full = brain(np.full((1, 16, 16), 0.5))  # a head that fills the frame is not eaten at its border
    assert full.all()


def test_subjects_are_kept_apart():
    """Two lesioned subjects, one found and one missed, and a healthy one, which is counted but not scored."""
    lesion = np.zeros((4, 2, 2), bool)
    lesion[0, 0, 0] = lesion[1, 0, 0] = True
    score = np.zeros((4, 2, 2))
    score[0, 0, 0], score[1, 0, 0], score[2] = 1, -1, 9
    found = by_subject(score, lesion, np.ones_like(lesion), ["b", "a", "c", "a"])
    assert list(found) == ["a", "b", "c"]
    assert (found["b"].auroc, found["a"].auroc) == (1, 0)
    assert np.isnan(found["c"].auroc)
    figures = summary(found)["anomaly_auroc"]
    assert (figures["mean"], figures["sd"], figures["ci"]) == (0.5, pytest.approx(0.5**0.5), None)
    assert (figures["n_subjects"], figures["n_without_lesion"]) == (2, 1)
    assert "pixels of the brain alone" in figures["protocol"]


def test_gain_is_paired_and_over_the_best_of_the_others():
    """Score .9 .8 .7 .6 .5 against one of mean .5 and one lower by .1 in each subject but far apart between them."""
    score, close, far = ([Detection(v, 0, 0, 0) for v in values] for values in (
        [0.9, 0.8, 0.7, 0.6, 0.5, np.nan], [0.8, 0.7, 0.6, 0.5, 0.4, np.nan], [0.5, 0.5, 0.5, 0.5, 0.5, np.nan]
    ))  # fmt: skip
    names = "abcdef"
    of = [dict(zip(names, values, strict=True)) for values in (score, close, far)]
    found = gain(of[0], {"far": of[2], "close": of[1]})
    assert (found["against"], found["n_subjects"], found["n_without_lesion"]) == ("close", 5, 1)
    assert found["mean"] == pytest.approx(0.1)
    assert found["ci"] == pytest.approx([0.1, 0.1])  # unpaired it would be as wide as the subjects lie apart
    assert "AUROC less that of 'close'" in found["protocol"]


def test_pixels_outside_the_region_do_not_count():
    lesion = np.array([[[1, 1, 0, 0]]])
    found = by_subject(np.array([[[1.0, 0, 0, 2]]]), lesion, np.array([[[True, False, True, False]]]), ["a"])
    assert found["a"].auroc == 1


def test_score_of_both_signs_and_of_noise():
    """A blob scores alike whether brighter or darker; outside nothing scores; noise keeps 1 / (2 sigma sqrt pi)."""
    x = np.full((3, 64, 64), -1.0)
    x[:, 8:56, 8:56] = 0
    x_hat = x.copy()
    x[0, 28:36, 28:36] += 0.4
    x[1, 28:36, 28:36] -= 0.4
    x[2, 8:56, 8:56] += np.random.default_rng(0).choice([-0.4, 0.4], (48, 48))
    bright, dark, noise = anomaly.smoothed(x - x_hat, brain(x), (2.0, 2.0))
    np.testing.assert_allclose(bright, dark, atol=1e-6)
    assert np.unravel_index(bright.argmax(), bright.shape)[0] in range(30, 34)
    sigma = anomaly.SIGMA_MM / 2.0  # white noise through a Gaussian of that many pixels
    assert np.sqrt((noise[16:48, 16:48] ** 2).mean()) == pytest.approx(0.4 / (2 * sigma * np.pi**0.5), rel=0.1)
    assert bright[:8].max() == 0
    assert anomaly.score(x, x, (2.0, 2.0)).max() == 0


def test_busy_places_count_less():
    """Where x_hat is flat the divisor is FLOOR; amid stripes of +-0.5, 8 mm apart, it is FLOOR + 0.5."""
    x_hat = np.zeros((1, 64, 96), np.float32)
    x_hat[:, :, 48:] = np.where(np.arange(48) // 2 % 2, 0.5, -0.5)
    residual = np.full_like(x_hat, 0.2)
    score = anomaly.score(x_hat + residual, x_hat, (2.0, 2.0))[0]
    assert score[32, 24] == pytest.approx(0.2 / anomaly.FLOOR, rel=1e-3)
    assert score[32, 68:76].mean() == pytest.approx(0.2 / (anomaly.FLOOR + 0.5), rel=0.05)


def test_smoothing_is_in_mm():
    """The mass of one bright pixel spreads over the same area in mm: half the spacing, a quarter of the height."""
    region, residual = np.ones((1, 65, 65), bool), np.zeros((1, 65, 65))
    residual[0, 32, 32] = 1
    peaks = [anomaly.smoothed(residual, region, (mm, mm)).max() for mm in (2.0, 1.0)]
    assert peaks[0] == pytest.approx(4 / (2 * np.pi * anomaly.SIGMA_MM**2), rel=0.02)
    assert peaks[1] == pytest.approx(peaks[0] / 4, rel=0.02)


def test_spacing_that_is_not_known():
    assert anomaly.pixel_mm(DataSpec(size=120, spacing_mm=None)) == (2, 2)
    assert anomaly.pixel_mm(DataSpec(size=120, spacing_mm=(1.0, 1.5))) == (1, 1.5)


class Oracle(SynthModule):
    """Gives back the healthy twin."""

    def __init__(self, spec: DataSpec, twins: Tensor) -> None:
        super().__init__(spec)
        self.twins, self.at = twins, 0

    def reconstruct(self, image: Tensor) -> Tensor:
        out = self.twins[self.at : self.at + len(image)]
        self.at += len(image)
        return out


class Blank(SynthModule):
    """Reconstructs nothing but black."""

    def reconstruct(self, image: Tensor) -> Tensor:
        return -torch.ones_like(image)


@pytest.fixture(scope="module")
def phantoms() -> Phantom:
    data = Phantom(**SMALL, train_classes=["none"])
    data.prepare_data()
    data.setup()
    return data


def test_results_of_a_perfect_healthy_model(phantoms, tmp_path):
    items = phantoms.view("test")
    batch = items.__getitems__(range(len(items)))
    twins = torch.where(batch.mask > 0, 0.2 * torch.ones(()), batch.image)
    twins = torch.where((batch.mask > 0) & ((batch.image - twins).abs() < 0.3), batch.image - 0.5, twins)
    found = anomaly.anomaly_results(Oracle(phantoms.spec, twins), phantoms, 16, tmp_path / "anomaly.png")
    auroc = found["details"]["test/anomaly_auroc"]
    assert auroc["mean"] == found["metrics"]["test/anomaly_auroc"] > 0.97
    assert (auroc["n_subjects"], auroc["n_without_lesion"], auroc["n_slices"]) == (2, 2, 20)
    assert "sigma 4 and 4 mm" in auroc["protocol"]
    assert {k.split("/")[0] for k in found["references"]} == {*anomaly.BASELINES, "residual alone"}
    gained = found["details"]["test/anomaly_auroc_gain"]
    best = max(found["references"][f"{name}/anomaly_auroc"] for name in anomaly.BASELINES)
    assert gained["mean"] == found["metrics"]["test/anomaly_auroc_gain"] == pytest.approx(auroc["mean"] - best)
    assert (gained["n_subjects"], gained["n_slices"]) == (2, 20)
    assert all(auroc["mean"] > found["references"][f"{name}/anomaly_auroc"] for name in anomaly.BASELINES)
    with Image.open(tmp_path / "anomaly.png") as sheet:
        assert sheet.height > 4 * 128


def test_black_model_is_the_bright_pixel_baseline(phantoms):
    found = anomaly.anomaly_results(Blank(phantoms.spec), phantoms)
    own = found["details"]["test/anomaly_auroc"]["mean"]
    assert found["details"]["test/anomaly_auroc_gain"]["mean"] <= 1e-6
    assert own == pytest.approx(found["references"]["bright pixel/anomaly_auroc"], abs=1e-6)
    assert found["references"]["dark pixel/anomaly_auroc"] == pytest.approx(1 - own, abs=1e-6)


class Seer(Blank):
    """Reconstructs black, and knows where the lesions are, but for one pixel in a hundred."""

    def __init__(self, spec: DataSpec, masks: Tensor) -> None:
        super().__init__(spec)
        self.masks, self.at = masks, 0

    def suspicion(self, image: Tensor) -> Tensor:
        out = self.masks[self.at : self.at + len(image)]
        self.at += len(image)
        return torch.where(torch.arange(out.numel()).view(out.shape) % 100 == 0, 0.5, out)


def test_a_models_own_suspicion_is_its_score(phantoms):
    items = phantoms.view("test")
    masks = (items.__getitems__(range(len(items))).mask > 0).float()
    found = anomaly.anomaly_results(Seer(phantoms.spec, masks), phantoms)
    assert found["metrics"]["test/anomaly_auroc"] > 0.97
    assert "p the model's own chance" in found["details"]["test/anomaly_auroc"]["protocol"]
    bright = found["references"]["bright pixel/anomaly_auroc"]
    assert found["references"]["residual alone/anomaly_auroc"] == pytest.approx(bright, abs=1e-6)
    assert found["notes"]["residual/anomaly"] == anomaly.MEANING


def test_suspicion_stays_within_the_head_and_its_mass_is_kept():
    p, x = np.zeros((1, 65, 65)), np.ones((1, 65, 65))
    p[0, 32, 32] = 1
    x[0, :, 42:] = -1
    score = anomaly.suspected(x, p, (1.0, 1.0))
    assert score.sum() == pytest.approx(1, abs=1e-3)
    assert score.max() == pytest.approx(1 / (2 * np.pi * anomaly.SUSPICION_MM**2), rel=0.02)
    assert anomaly.suspected(x, 1.0 - p, (1.0, 1.0))[0, :, 42:].max() == 0
    assert 0.99 < anomaly.suspected(x, 1.0 - p, (1.0, 1.0)).max() <= 1


def test_no_results_without_masks_or_reconstruction(phantoms):
    assert anomaly.anomaly_results(SynthModule(phantoms.spec), phantoms) == {}
    healthy = Phantom(**SMALL, lesions="none")
    healthy.prepare_data()
    healthy.setup()
    assert anomaly.anomaly_results(Blank(healthy.spec), healthy) == {}


def test_healthy_only_keeps_the_store_and_tells_what_went(phantoms):
    """Train and val lose the slices with a lesion, test none; the split of subjects and the data are the same."""
    whole = Phantom(**SMALL)
    whole.prepare_data()
    whole.setup()
    assert phantoms.title == "bench-v1 (subset, trained on healthy slices only)"
    assert (phantoms.store_key, phantoms.data_hash) == (whole.store_key, whole.data_hash)
    assert table_hash(phantoms.manifest) != table_hash(whole.manifest)
    label = whole.store.table["label"]
    for split in ("train", "val"):
        assert label[whole.split_rows[split]].any()
        expected = [r for r in whole.split_rows[split] if label[r] == 0]
        np.testing.assert_array_equal(phantoms.split_rows[split], expected)
    np.testing.assert_array_equal(phantoms.split_rows["test"], whole.split_rows["test"])
    assert phantoms.partition.of_study == whole.partition.of_study
    pairs = zip(phantoms.manifest, whole.manifest, strict=True)
    for here, there in pairs:
        if here["contrast"] == "FLAIR":
            lost = there["slices"] - here["slices"]
            assert here["slices_dropped"] == lost
            said = f"not of class none (data.train_classes); {lost} of 10 slices dropped"
            assert here["reason"] == (said if lost else "")
    assert len(phantoms.leaks) == 1
    assert "slices of 2 scans in train and val: not of class none (data.train_classes)" in phantoms.leaks[0]


def test_healthy_only_goes_with_labels(phantoms):
    data = Phantom(**SMALL, train_classes=["lesion"])
    data.view_class = Labelled
    data.prepare_data()
    data.setup()
    assert set(data.view("train").__getitems__(range(len(data.view("train")))).label.tolist()) == {1}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.train_classes=[healthy]"],
            r"data.train_classes=\[healthy\]: there is no healthy; classes here: none, les",
        ),
        (["data.train_classes=[]"], r"data.train_classes=\[\]: no class is left to train on"),
        (["data.train_classes=[none]", "data.lesions=none"], r"this data has no classes under these settings"),
        (["data=folder", "data.train_classes=[none]"], r"this data has no classes under these settings"),
        (
            ["data=folder", "data.label=mask", "data.train_classes=[tumour]"],
            r"there is no tumour; classes of data.label=mask: none, lesion",
        ),
        (["data.train_classes=none"], r"data.train_classes=none: allowed"),
    ],
)
def test_healthy_only_is_refused_before_data_are_opened(compose, overrides, message):
    with pytest.raises(ConfigError, match=message):
        check(compose(*overrides))


def lesioned(root: Path) -> Path:
    """Five patients with the label map that marks slices 4 to 7 of 14; a sixth without one."""
    for k in range(6):
        nifti(root / f"p{k}" / "FLAIR.nii.gz", seed=k)
        if k < 5:
            nifti(root / f"p{k}" / "lesion_mask.nii.gz", array=tumour(k))
    return root


def test_folder_takes_classes_from_label_maps(tmp_path):
    """Train and val keep what no label map marks of those who have one; test keeps its lesions, and is scored."""
    table = "subject,split\n" + "".join(f"p{k},{s}\n" for k, s in enumerate(["train"] * 2 + ["val", "test"] * 2))
    split = {"by": "given", "file": str(text(tmp_path / "split.csv", table))}
    data = Folder(root=str(lesioned(tmp_path / "data")), label="mask", size=32, train_classes=["none"], contrasts=[],
                  split=split, slices={"min_foreground": 0.0})  # fmt: skip
    data.view_class = Labelled
    data.setup()
    assert data.spec.classes == ("none", "lesion")
    for name in ("train", "val"):
        items = data.view(name)
        batch = items.__getitems__(range(len(items)))
        assert set(batch.label.tolist()) == {0}
        assert not batch.mask.any()
    data.view_class = Images
    assert [len(data.view(name)) for name in ("train", "val", "test")] == [20, 20, 28]
    found = anomaly.anomaly_results(Blank(data.spec), data)["details"]["test/anomaly_auroc"]
    assert (found["n_subjects"], found["n_without_lesion"]) == (1, 1)


def test_folder_without_label_maps_cannot_take_classes_from_them(tmp_path):
    nifti(tmp_path / "p0" / "FLAIR.nii.gz")
    with pytest.raises(UserError, match=r"data.label=mask: no label map among the 1 files under .*contrast_names"):
        Folder(root=str(tmp_path), label="mask", contrasts=[]).setup()
    with pytest.raises(UserError, match=r"data.label=mask: data.pattern says the class too, by its group label"):
        Folder(root=str(tmp_path), label="mask", pattern="(?P<label>p)")


def test_unknown_class_is_told_when_data_are_opened(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("tumour", "healthy"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(255, size=(16, 16), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    data = Folder(root=str(tmp_path), label="folder", size=16, train_classes=["none"], contrasts=[])
    with pytest.raises(UserError, match=r"there is no none; classes here: healthy, tumour"):
        data.setup()

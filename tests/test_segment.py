"""Segmentation in `mri-synth evaluate`: losses and Dice by hand, masks of every source, fakes that teach or mislead."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mri_synth.errors import UserError
from mri_synth.evaluate import evaluate, segment
from mri_synth.evaluate.folder import Reading, masks_beside
from mri_synth.evaluate.images import ImageSet
from mri_synth.evaluate.segment import segmentation
from mri_synth.evaluate.sources import open_set, open_sets
from mri_synth.losses.overlap import cross_entropy, soft_dice
from mri_synth.metrics.overlap import dice_by_subject, falsely_marked
from mri_synth.run import run

SIDE = 32


def slice_with_blot(seed: int, blot: bool = True) -> tuple[NDArray[Any], NDArray[Any]]:
    """A grey disc with noise on [0, 1], and on it a blot no brighter than its rim where asked; and the blot's mask."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    r = np.hypot(x, y)
    image = 0.5 * (r < 0.8) + 0.9 * ((r > 0.8) & (r < 0.95)) + 0.02 * rng.standard_normal((SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE), bool)
    if blot:
        v, u = rng.integers(8, 18, 2)
        mask[v : v + 5, u : u + 5] = True
    image[mask] = 0.9
    return np.clip(image, 0, 1), mask


def picture(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(path)


def in_memory(role: str, folder: Path, first: int, n: int, swapped: bool = False, whose: str = "p") -> ImageSet:
    """Every third slice without a blot; masks of other slices where swapped."""
    out = ImageSet(role, role, folder)
    made = [slice_with_blot(first + k, blot=k % 3 != 2) for k in range(n)]
    masks = [m for _, m in made]
    masks = [masks[(k + 3) % n] for k in range(n)] if swapped else masks
    for k, (image, _) in enumerate(made):
        out.add(2 * image[None].astype(np.float32) - 1, f"{role} {k}", subjects=[f"{whose}{k // 2:02d}"],
                masks=masks[k][None])  # fmt: skip
    return out


# -- by hand -------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    mask = torch.tensor([[[[1.0, 0], [0, 0]]], [[[0.0, 0], [0, 0]]]])
    sure = 60 * (2 * mask - 1)
    torch.testing.assert_close(soft_dice(sure, mask), torch.zeros(2))
    torch.testing.assert_close(cross_entropy(sure, mask), torch.zeros(2))
    half = torch.zeros(2, 1, 2, 2)  # p = 1/2 everywhere: overlap 1/2, sums 2 and 1
    torch.testing.assert_close(cross_entropy(half, mask), torch.full((2,), math.log(2)))
    torch.testing.assert_close(soft_dice(half, mask), torch.tensor([1 - 2 / 4, 1 - 1 / 3]))


def test_dice_is_of_all_pixels_of_a_subject() -> None:
    """a: 1 of 2 marked and 1 more (2/4); b has an empty mask and does not count; c: all found (1)."""
    mask = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]], bool)
    found = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], bool)
    names, dice = dice_by_subject(found, mask, ["a", "a", "b", "c"])
    assert names == ["a", "c"]
    np.testing.assert_allclose(dice, [0.5, 1.0])
    assert falsely_marked(found, mask) == pytest.approx(1 / 3)
    assert falsely_marked(found[3:], mask[3:]) is None


# -- masks of every source -----------------------------------------------------------------------------------------


def test_a_set_gives_back_its_masks(tmp_path: Path) -> None:
    found = in_memory("real", tmp_path, 0, 6)
    found.add(np.zeros((1, SIDE, SIDE), np.float32), "without")
    expected = [slice_with_blot(k, blot=k % 3 != 2)[1] for k in range(6)]
    np.testing.assert_array_equal(found.masks([4, 0])[:, 0].numpy() > 0, [expected[4], expected[0]])
    assert found.marked.tolist() == [25, 25, 0, 25, 25, 0, -1]
    assert (found.masks([6]).sum(), found.record()["masks"]) == (0, 6)
    found.keep(3, seed=0)
    assert len(found.marked) == 3


def test_label_maps_beside_pictures_and_volumes(tmp_path: Path) -> None:
    """Of one subject and slice by name, in the folder or in one of masks; in whatever orientation it is stored."""
    image, mask = slice_with_blot(0)
    picture(tmp_path / "a/s1_slice_3.png", image)
    picture(tmp_path / "a/s1_mask_slice_3.png", mask)
    picture(tmp_path / "a/s2_slice_3.png", image)
    out = Reading(output=tmp_path / "out")
    (tmp_path / "out").mkdir()
    found = open_set("real", str(tmp_path / "a"), out)
    assert found.places.tolist() == ["s1_slice_3.png", "s2_slice_3.png"]
    assert found.marked.tolist() == [25, -1]
    picture(tmp_path / "b/images/001.png", image)
    picture(tmp_path / "b/masks/001.png", mask)
    assert open_set("real", str(tmp_path / "b"), out).marked.tolist() == [25]

    volume = np.zeros((12, 12, 6), np.float32)
    volume[2:10, 2:10] = np.random.default_rng(0).uniform(0.4, 1, (8, 8, 6))
    marks = np.zeros_like(volume)
    marks[4:6, 4:6, 2:4] = 1
    for name, values, grid in (("FLAIR", volume, 1.0), ("lesion_mask", marks[::-1, ::-1], -1.0)):
        (tmp_path / "c/p1").mkdir(parents=True, exist_ok=True)
        affine = np.diag([grid, grid, 1.0, 1])
        affine[:2, 3] = 0 if grid > 0 else 11
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"c/p1/{name}.nii.gz")
    found = open_set("real", str(tmp_path / "c"), out)
    assert found.marked.tolist() == [0, 0, 4, 4, 0, 0]
    assert (found.images([2])[found.masks([2]) > 0] > -1).all()
    assert masks_beside(tmp_path / "c", ["p1/FLAIR.nii.gz"], tmp_path) == {
        "p1/FLAIR.nii.gz": tmp_path / "c/p1/lesion_mask.nii.gz"
    }


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    image, mask = slice_with_blot(0)
    picture(tmp_path / "a/s1_slice_3.png", image)
    picture(tmp_path / "a/s1_mask_slice_3.png", mask[:16])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"s1_mask_slice_3\.png: a mask of .* pixels, its image has"):
        open_set("real", str(tmp_path / "a"), Reading(output=tmp_path / "out"))


def test_masks_of_data_words_and_of_what_a_checkpoint_makes_of_them(tmp_path: Path, compose: Any) -> None:
    """pix2pix from the lesion mask: an image of each training map, with that map; and not without a training set."""
    data = ["data=phantom", "data.preset=custom", "data.contrasts=[FLAIR]", "data.subjects=[4,2,2]", "data.size=32",
            "data.lesion_radius_mm=[12,20]"]  # fmt: skip
    words = [*data, "data.source=mask", "model=pix2pix", "model.generator=unet", "model.width=4", "model.d_width=4",
             "model.d_layers=1", "logger=csv", "trainer.max_epochs=1", "trainer.progress=false",
             "trainer.pictures=0", "data.batch_size=8"]  # fmt: skip
    run(compose(*words), tmp_path / "run", [])
    how = Reading(output=tmp_path, n=12)
    sets = open_sets(" ".join(data), str(tmp_path / "run/best.ckpt"), None, how)
    train, fake = sets["train"], sets["fake"]
    assert (train.marked > 0).any()
    assert (len(fake), fake.about["made_of"]) == (12, "label maps of TRAIN")
    at = [train.places.tolist().index(str(p).removeprefix("of the map of ")) for p in fake.places]
    np.testing.assert_array_equal(fake.masks(range(12)), train.masks(at))
    with pytest.raises(
        UserError, match=r"Pix2Pix makes images of label maps; give the images with label maps.*--train"
    ):
        open_set("fake", str(tmp_path / "run/best.ckpt"), how)


# -- what fakes teach ----------------------------------------------------------------------------------------------


def test_fakes_with_the_masks_of_others_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "STEPS", 120)
    monkeypatch.setattr(segment, "SEEDS", 1)
    sets = {"real": in_memory("real", tmp_path, 0, 24), "train": in_memory("train", tmp_path, 500, 24, whose="q")}
    right = segmentation(sets | {"fake": in_memory("fake", tmp_path, 1000, 36)})
    wrong = segmentation(sets | {"fake": in_memory("fake", tmp_path, 1000, 36, swapped=True)})
    assert (right["n_marked"], right["n_empty"]) == (16, 8)
    assert (right["test_images"], right["test_subjects"]) == (24, 12)
    assert right["dice"]["fake"]["mean"] > 0.7
    assert right["dice"]["real"]["mean"] > 0.7
    assert wrong["dice"]["fake"]["mean"] < 0.3
    assert wrong["by_seed"]["real"] == right["by_seed"]["real"]
    assert right["dice"]["brightness"]["mean"] < 0.5  # the rim is as bright
    assert wrong["gain"]["fake"]["ci"][1] < -0.3
    assert [row[0] for row in right["tables"][0]["rows"]] == ["real", "brightness", "fake", "real and fake"]


def test_what_is_trained_on_is_not_tested_on_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "STEPS", 1)
    monkeypatch.setattr(segment, "SEEDS", 1)
    real, fake = in_memory("real", tmp_path, 0, 24), in_memory("fake", tmp_path, 1000, 24)
    halved = segmentation({"real": real, "fake": fake})
    assert halved["test_images"] == 12
    assert halved["n_marked"] <= 10  # of the other half
    again = segmentation({"real": real, "fake": fake, "train": in_memory("train", tmp_path, 0, 24)})
    assert again["missing"].endswith("there are 16 and 0. 24 of 24 images of REAL are left out of the test: they, or "
                                     "images of their subjects, are in TRAIN.")  # fmt: skip
    bare = ImageSet("fake", "fake", tmp_path)
    bare.add(np.zeros((4, SIDE, SIDE), np.float32), "x")
    assert "no image of FAKE has a mask with a marked pixel" in segmentation({"real": real, "fake": bare})["missing"]


def test_the_page_has_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "STEPS", 2)
    monkeypatch.setattr(segment, "SEEDS", 1)
    for role, first in (("real", 0), ("fake", 300)):
        for k in range(24):
            image, mask = slice_with_blot(first + k, blot=k % 3 != 2)
            picture(tmp_path / f"{role}/{role}{k // 2:02d}_slice_{k % 2}.png", image)
            picture(tmp_path / f"{role}/{role}{k // 2:02d}_mask_slice_{k % 2}.png", mask)
    found = evaluate(str(tmp_path / "real"), str(tmp_path / "fake"), tmp_path / "out", features=["pixels"])
    assert found["sets"]["fake"]["masks"] == 24
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "Marked pixels found in 12 real test images" in page
    assert "Dice on real test images, %" in page

"""Samples at the end of a run: copies are found and shown, honest samples are not called copies, labels are asked for
as they are in train, and what cannot be had is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mri_synth import judgement
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch
from mri_synth.data.phantom import Phantom
from mri_synth.data.views import Images, Labelled
from mri_synth.errors import UserError
from mri_synth.judgement import labels_in_turn, sampled
from mri_synth.metrics.generation import judge
from mri_synth.models.base import SynthModule
from mri_synth.models.conditions import known

SIDE = 32


class Projections:
    """Sixteen random projections: two images have equal features only if they are equal."""

    name, dim, hash = "projections", 16, "0123"

    def __init__(self) -> None:
        self.matrix = torch.randn(SIDE * SIDE, 16, generator=torch.Generator().manual_seed(0)) / SIDE

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.matrix


class Stand(SynthModule):
    """Gives the images of a table by seed, beginning anew at its end."""

    def __init__(self, data: MRIDataModule, images: Tensor, names: tuple[str, ...] = ()) -> None:
        super().__init__(data.spec)
        self.images, self.names = images, names
        self.asked: list[int] = []
        self.batches: list[int] = []

    def sample(self, seeds: Tensor, label: Tensor | None = None) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(seeds))
        self.asked += [] if label is None else label.tolist()
        return self.images[seeds % len(self.images)]

    def conditions(self) -> tuple[str, ...]:
        return self.names

    def condition(self, batch: Batch) -> Tensor | None:
        return known("label" if self.names == self.spec.classes else "contrast", self.spec, batch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> MRIDataModule:
    return phantom(tmp_path_factory.mktemp("store"))


def phantom(cache: Path, **settings: Any) -> MRIDataModule:
    made = Phantom(**({"subjects": [6, 4, 4], "size": SIDE, "cache": str(cache)} | settings))
    made.setup()
    return made


def real(data: MRIDataModule, split: str) -> Tensor:
    return data.view(split).__getitems__(range(len(data.view(split)))).image


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "load_features", lambda word, device: Projections())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MRI_SYNTH_INCEPTION", str(tmp_path / "nowhere.pt"))  # what is named is the only place


@pytest.mark.usefixtures("features")
def test_copies_are_found_and_shown_beside_their_originals(data: MRIDataModule, tmp_path: Path) -> None:
    model = Stand(data, real(data, "train")[:30])
    found = sampled(model, data, tmp_path, 30, ["inception", "other"], batch_size=8)
    assert (found["samples"], model.batches) == (30, [8, 8, 8, 6])
    assert found["seconds"] >= 0
    assert "missing" not in found
    for space in (found["memorisation"]["features"], found["memorisation"]["pixels"]):
        assert (space["copy_rate"], space["near_duplicates"]) == (1, 1)
        assert all(p["train"] == p["fake"] for p in space["pairs"])
        assert space["closer_to_train"] == 1
    assert [b["features"]["name"] for b in found["beside"]] == ["projections"]
    assert json.loads(json.dumps(found)) == found
    for name in ("samples", "nearest"):
        with Image.open(tmp_path / "pictures" / f"{name}.png") as picture:
            assert picture.width > 8 * SIDE


@pytest.mark.usefixtures("features")
def test_honest_samples_are_not_called_copies(data: MRIDataModule, tmp_path: Path) -> None:
    """Images of subjects that are in no split: what an excellent model would draw."""
    others = phantom(Path(str(data.cache)), subjects=[1, 1, 6], preset="custom", phantom_seed=7)
    images = real(others, "test")
    found = sampled(Stand(data, images), data, tmp_path, len(images), ["inception"])
    copies = found["memorisation"]["features"]
    assert 0.3 < copies["copy_rate"] < 0.7  # 8 subjects held out, 6 drawn
    assert 0.3 < copies["closer_to_train"] < 0.7
    assert copies["near_duplicates"] < 0.1
    assert copies["pairs"][0]["to_train"] > 0
    assert found["fid"]["ratio"] < 3


@pytest.mark.usefixtures("features")
def test_the_nearest_image_that_is_shown_is_the_nearest(
    data: MRIDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where train is larger than what is looked at, positions among these are not those of the view."""
    shown = {}

    def few(*arguments: Any, **options: Any) -> dict[str, Any]:
        return judge(*arguments, **options, at_most=25)

    def look(rows: dict[str, Any], *_: Any) -> Any:
        shown.update(rows)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(judgement, "judge", few)
    monkeypatch.setattr(judgement.drawing, "sheet", look)
    train = real(data, "train")
    found = sampled(Stand(data, train), data, tmp_path, len(train), ["inception"])["memorisation"]
    items = np.sort(np.random.default_rng(0).permutation(len(train))[:25]).tolist()
    assert items != list(range(25))
    for pairs in (found["features"]["pairs"], found["pixels"]["pairs"]):
        assert [p["fake"] for p in pairs] == items[:8]
        assert all(p["train"] == p["fake"] and p["to_train"] == 0 for p in pairs)
        for p in pairs:  # and the nearest held-out image is that of its view, too
            vectors = Projections()(torch.stack([train[p["fake"]], real(data, p["held_out_split"])[p["held_out"]]]))
            if pairs is found["features"]["pairs"]:
                assert (vectors[0] - vectors[1]).norm().item() == pytest.approx(p["to_held_out"], rel=1e-4)
    np.testing.assert_array_equal(shown["sample"], shown["nearest in train"])
    assert np.abs(shown["|difference|"].images).max() == 0


def test_labels_are_asked_in_the_shares_of_train(data: MRIDataModule, tmp_path: Path) -> None:
    data.view_class = Labelled
    try:
        items = data.view("train")
        present = items.store.table["label"][items.rows]
        share = (present == 1).mean()
        assert 0.02 < share < 0.9
        model = Stand(data, real(data, "train")[:1], data.spec.classes)
        for n in (48, 100, 1000):
            labels = labels_in_turn(model, data, n)
            assert labels is not None
            assert labels.dtype == torch.int64
            assert (labels == 1).double().mean().item() == pytest.approx(share, abs=2.5 / n)
            assert torch.equal(labels[:40], labels_in_turn(model, data, 40))  # type: ignore[arg-type]
        sampled(model, data, tmp_path, 7, [], batch_size=4)
        assert model.asked == labels_in_turn(model, data, 7).tolist()  # type: ignore[union-attr]
    finally:
        data.view_class = Images


def test_contrasts_are_asked_for_in_turn(tmp_path: Path) -> None:
    both = phantom(tmp_path, subjects=[2, 1, 1], contrasts=["T2", "T1"])
    labels = labels_in_turn(Stand(both, real(both, "train")[:1], ("T2", "T1")), both, 48)
    assert labels is not None
    assert labels.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(labels[:8].unique()) == 2  # the first line of the sheet has both
    assert labels_in_turn(Stand(both, real(both, "train")[:1]), both, 8) is None


def test_labels_are_read_without_the_images(data: MRIDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stand(data, torch.zeros(1, 1, SIDE, SIDE), data.spec.contrasts)
    monkeypatch.setattr(data.view_class, "read", lambda *_: pytest.fail("an image was read"))
    labels = labels_in_turn(model, data, 5)
    assert labels is not None
    assert labels.tolist() == [0] * 5


@pytest.mark.usefixtures("no_weights")
def test_without_weights_auto_says_what_to_type(data: MRIDataModule, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/nearest.png").write_bytes(b"of other samples, before a resume")
    found = sampled(Stand(data, real(data, "val")), data, tmp_path, 4, ["auto"])
    assert found.keys() == {"samples", "seconds", "options", "intensities", "missing"}
    counts = found["intensities"]
    assert sum(counts["fake"]) == 4 * SIDE**2
    assert sum(counts["real"]) == (len(data.view("val")) + len(data.view("test"))) * SIDE**2
    assert "mri-synth weights get inception fetches them (87 MB)" in found["missing"]
    assert (tmp_path / "pictures/samples.png").exists()
    assert not (tmp_path / "pictures/nearest.png").exists()


@pytest.mark.usefixtures("no_weights")
def test_without_weights_inception_is_an_error_before_the_work(data: MRIDataModule, tmp_path: Path) -> None:
    model = Stand(data, real(data, "val"))
    with pytest.raises(
        UserError, match=r"(?s)inception.*nowhere\.pt .*: no such file.*mri-synth weights get inception"
    ):
        sampled(model, data, tmp_path, 4, ["inception"])
    assert model.batches == []


@pytest.mark.usefixtures("features")
def test_auto_and_an_encoder_stand_beside_each_other(
    data: MRIDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(word: str, device: Any) -> Projections:
        if word == "inception":
            raise UserError("not here")
        return Projections()

    monkeypatch.setattr(judgement, "load_features", load)
    found = sampled(Stand(data, real(data, "val")), data, tmp_path, 10, ["auto", "encoder.ckpt"])
    assert "mri-synth weights get inception" in found["missing"]
    assert found["features"]["name"] == "projections"
    assert found["beside"] == []


@pytest.mark.usefixtures("features")
def test_one_sample_is_drawn_and_not_judged(data: MRIDataModule, tmp_path: Path) -> None:
    found = sampled(Stand(data, real(data, "val")), data, tmp_path, 1, ["inception"])
    assert found.keys() == {"samples", "seconds", "options"}
    assert (tmp_path / "pictures/samples.png").exists()


@pytest.mark.usefixtures("features")
def test_samples_that_are_not_finite_are_said_and_end_nothing(
    data: MRIDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = real(data, "val")[:4].clone()
    images[2, 0, 3, 3] = float("nan")
    with caplog.at_level(logging.WARNING):
        found = sampled(Stand(data, images), data, tmp_path, 4, ["inception"])
    assert found["missing"].startswith("samples are not judged: 1 of 4 samples are not finite")
    assert found["missing"] in caplog.text
    assert "kid" not in found
    assert (tmp_path / "pictures/samples.png").exists()


@pytest.mark.usefixtures("features")
def test_without_held_out_images_there_is_no_word_on_copies(
    data: MRIDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Callable[[str], Any] = data.view
    monkeypatch.setattr(data, "view", lambda split: whole(split) if split == "train" else [])
    found = sampled(Stand(data, real(data, "train")), data, tmp_path, 10, ["inception"])
    assert found["memorisation"] is None
    assert any("no held-out images" in note for note in found["notes"])
    assert not (tmp_path / "pictures/nearest.png").exists()

"""The whole judgement of samples on a small store, features kept on disk, and halves by subject."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from mri_synth.data.store import COLUMNS, Prepared, Store, open_or_build
from mri_synth.data.views import Images
from mri_synth.errors import UserError
from mri_synth.metrics.extraction import features_of, stored_features
from mri_synth.metrics.frechet import frechet_distance
from mri_synth.metrics.generation import judge
from mri_synth.metrics.pool import Pool, Reals, halves

SIDE = 24
Views = dict[str, Images]


class Pooled:
    """Means over 4x4 fields: quick, and images that look alike have features that are alike."""

    name, dim, hash = "pooled", 16, "0123"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return adaptive_avg_pool2d(images, 4).flatten(1)


def pictures(n: int, seed: int) -> Tensor:
    """(n, 1, SIDE, SIDE) in [-1, 1]: smooth noise."""
    noise = torch.rand(n, 1, SIDE + 8, SIDE + 8, generator=torch.Generator().manual_seed(seed))
    return ((avg_pool2d(noise, 9, 1) - 0.5) * 6).clamp(-1, 1)


def store(folder: Path, subjects: int, each: int) -> Store:
    def studies() -> Iterator[Prepared]:
        for s in range(subjects):
            columns: dict[str, Any] = {name: np.zeros(each) for name in COLUMNS.keys() - {"study"}}
            person = {"subject": f"p{s:02}", "sex": "", "site": "", "age": None}
            yield Prepared({"T1": pictures(each, s)[:, 0].numpy()}, columns, person)

    return open_or_build(folder, "toy-0", SIDE, studies)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    kept = store(tmp_path_factory.mktemp("stores"), 30, 6)
    rows = {"train": range(0, 90), "val": range(90, 120), "test": range(120, 180)}
    return {split: Images(kept, np.array(r), ["T1"]) for split, r in rows.items()}


Judge = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def judged(views: Views) -> Judge:
    def call(fakes: Tensor, **options: Any) -> dict[str, Any]:
        return judge(fakes, options.pop("views", views), Pooled(), **({"pairs": 40, "draws": 3} | options))

    return call


def test_samples_like_the_real_ones_are_as_far_as_real_ones_are(judged: Judge) -> None:
    found = judged(pictures(40, 1000), n=40)
    assert next(iter(found)) == "kid"
    assert found["kid"]["ci"][0] < 0 < found["kid"]["ci"][1]
    assert found["kid"]["ci"][0] < found["kid"]["value"] < found["kid"]["ci"][1]
    assert 0.7 < found["fid"]["ratio"] < 1.4
    assert found["fid"]["ratio"] == pytest.approx(found["fid"]["value"] / found["fid"]["real_against_real"])
    assert (found["pool"], found["n"], found["fid"]["n"], found["draws"]) == ("val+test", 40, 40, 3)
    for name, spread in {"precision": 0.2, "recall": 0.2, "density": 0.4, "coverage": 0.2}.items():
        assert found["prdc"]["fake"][name] == pytest.approx(found["prdc"]["real_against_real"][name], abs=spread)
    assert found["ms_ssim"]["fake"]["mean"] == pytest.approx(found["ms_ssim"]["real"]["mean"], abs=0.05)
    for space in ("features", "pixels"):
        assert found["memorisation"][space]["copy_rate"] == pytest.approx(0.5, abs=0.12)
        assert found["memorisation"][space]["n_held_out"] == 90
    assert found["features"] == {"name": "pooled", "hash": "0123", "dim": 16}
    assert found["notes"] == []
    assert found["protocol"].keys() == {"pool", "kid", "fid", "prdc", "ms_ssim", "memorisation"}
    assert json.loads(json.dumps(found)) == found  # plain values, whole


def test_real_against_real_has_no_bias() -> None:
    network, values = Pooled(), []
    for seed in range(20):
        real, fake = network(pictures(90, 50 + seed)).numpy(), network(pictures(40, 5000 + seed)).numpy()
        people = np.arange(90) // 6
        for a, b in halves(people, 2, seed):
            values.append([frechet_distance(fake, real[a[:40]]), frechet_distance(real[b[:40]], real[a[:40]])])
    own, reference = np.mean(values, 0)
    assert own == pytest.approx(reference, rel=0.1)


def test_the_same_seed_gives_the_same_figures(judged: Judge) -> None:
    fakes = pictures(40, 1000)
    assert judged(fakes, n=30, seed=3) == judged(fakes, n=30, seed=3, batch_size=7)
    assert judged(fakes, n=30, seed=3)["fid"] != judged(fakes, n=30, seed=4)["fid"]


def test_copies_of_training_images_are_found(views: Views, judged: Judge) -> None:
    found = judged(views["train"].__getitems__(range(10, 50)).image, n=40)["memorisation"]
    for space in ("features", "pixels"):
        assert (found[space]["copy_rate"], found[space]["near_duplicates"]) == (1.0, 1.0)
        assert [p["train"] for p in found[space]["pairs"]] == [p["fake"] + 10 for p in found[space]["pairs"]]


def test_collapse_and_a_shift_are_seen(judged: Judge) -> None:
    good = judged(pictures(40, 1000), n=40)
    one = judged(pictures(1, 7).expand(40, -1, -1, -1), n=40)
    assert one["ms_ssim"]["fake"]["mean"] > 0.999
    assert one["prdc"]["fake"]["recall"] == 0
    bright = judged((pictures(40, 1000) + 0.5).clamp(-1, 1), n=40)
    for bad in (one, bright):
        assert bad["fid"]["ratio"] > 2 * good["fid"]["ratio"]
        assert bad["kid"]["ci"][0] > 0


def test_too_few_held_out_images_call_in_the_training_set(judged: Judge) -> None:
    found = judged(pictures(80, 1000), n=80)
    assert (found["pool"], found["n"], found["counts"]["pool_subjects"]) == ("train+val+test", 80, 30)
    assert found["notes"] == ["the real images include those that the model was trained on: held-out images alone are "
                              "too few"]  # fmt: skip
    found = judged(pictures(200, 1000), n=1000)
    assert found["n"] == found["prdc"]["n"] == 90
    assert found["notes"][0] == "n is 90 and not 1000: there are 200 samples, and 180 real images in train+val+test"


def test_what_cannot_be_had_is_none_and_a_note_says_why(views: Views, judged: Judge) -> None:
    alone = {"test": Images(views["test"].store, np.arange(120, 126), ["T1"])}
    found = judged(pictures(3, 1000), views=alone)
    assert (found["fid"]["real_against_real"], found["fid"]["ratio"], found["kid"]["ci"]) == (None, None, None)
    assert found["prdc"]["real_against_real"] is None
    assert found["prdc"]["k"] == 2
    assert found["memorisation"] is None
    assert found["notes"][1:] == ["all real images are of one subject: there is no value of real against real",
                                  "no train images: nothing can be said of memorisation"]  # fmt: skip
    few = judged(pictures(40, 1000), n=20, at_most=25)
    assert {k: v for k, v in few["counts"].items() if k != "pool_subjects"} == {
        "fake": 40, "train": 25, "val": 25, "test": 25
    }  # fmt: skip
    assert "25 of the 90 images of train were looked at" in few["notes"]
    least = judged(pictures(2, 1000))
    assert (least["n"], least["prdc"]["k"]) == (2, 1)


@pytest.mark.parametrize(
    "fakes, message",
    [
        (torch.zeros(1, 1, SIDE, SIDE), r"1 sample\(s\) cannot be judged: at least 2 are needed"),
        (torch.full((3, 1, SIDE, SIDE), torch.nan), "3 of 3 samples are not finite"),
        (torch.zeros(3, 1, 32, 32), r"samples are \(1, 32, 32\), real images of train \(1, 24, 24\)"),
    ],
)
def test_samples_that_cannot_be_judged_are_refused(judged: Judge, fakes: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judged(fakes)


def test_without_real_images_nothing_is_judged(views: Views, judged: Judge) -> None:
    empty = Images(views["test"].store, np.arange(0), ["T1"])
    with pytest.raises(UserError, match="fewer than 2 real images"):
        judged(pictures(3, 0), views={"train": empty, "test": empty})


# -- features on disk ---------------------------------------------------------------------------------------------


def test_real_features_are_computed_once(views: Views, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = Pooled()
    first = stored_features(views["val"], network, tmp_path, batch_size=7)
    assert np.array_equal(first, features_of(views["val"], Pooled()))
    assert np.array_equal(stored_features(views["val"], network, tmp_path), first)
    assert network.seen == 30
    some = stored_features(views["val"], network, tmp_path, items=np.array([3, 1]))
    assert np.array_equal(some, first[[3, 1]])
    other = Pooled()
    other.hash = "4567"
    stored_features(views["val"], other, tmp_path)
    stored_features(views["test"], other, tmp_path)
    assert (network.seen, other.seen) == (32, 90)
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 4
    assert all(f.name.startswith("toy-0-") for f in files)
    assert not caplog.records


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
def test_damaged_features_are_computed_again(
    views: Views, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = stored_features(views["val"], Pooled(), tmp_path)
    (path,) = (tmp_path / "features").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 255
    path.write_bytes({"cut": content[:900], "flip": content, "text": b"not a file", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(stored_features(views["val"], Pooled(), tmp_path), first)
    assert "damaged; the features are computed again" in caplog.text
    network = Pooled()
    stored_features(views["val"], network, tmp_path)
    assert network.seen == 0


def test_a_cache_that_cannot_be_written_is_done_without(
    views: Views, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "features").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert stored_features(views["val"], Pooled(), tmp_path).shape == (30, 16)
    assert "features are not kept" in caplog.text


def test_features_must_be_what_they_say(views: Views) -> None:
    wrong = Pooled()
    wrong.dim = 8
    with pytest.raises(UserError, match=r"features pooled: gave \(30, 16\) for 30 images, not \(30, 8\)"):
        features_of(views["val"], wrong)
    with pytest.raises(UserError, match="features pooled: not finite for some of the images 0 to 1"):
        features_of(torch.full((2, 1, 8, 8), torch.inf), Pooled())


# -- pool ---------------------------------------------------------------------------------------------------------


def test_halves_share_no_subject_and_are_of_equal_size() -> None:
    people = np.repeat([f"p{i}" for i in range(20)], np.arange(1, 21))
    drawn = halves(people, 5, seed=1)
    for a, b in drawn:
        assert not set(people[a]) & set(people[b])
        assert sorted([*a, *b]) == list(range(210))
        assert abs(len(a) - len(b)) <= 20
    assert len({tuple(sorted(a)) for a, _ in drawn}) == 5
    assert all((a == c).all() for (a, _), (c, _) in zip(drawn, halves(people, 5, seed=1), strict=True))
    assert [len(side) for side in halves(np.array(["p"] * 4), 1)[0]] == [4, 0]


def test_the_pool_keeps_splits_in_order_and_unknown_subjects_apart(views: Views) -> None:
    def of(split: str, items: list[int]) -> Reals:
        view = views[split]
        return Reals(view, np.array(items), features_of(view, Pooled(), items=np.array(items)))

    pool = Pool.of({"train": of("train", [5, 2]), "test": of("test", [0, 7, 1])}, ("test", "val", "train"))
    assert (pool.splits, len(pool), pool.features.shape) == (("test", "train"), 5, (5, 16))
    assert pool.subjects.tolist() == ["p20", "p21", "p20", "p00", "p00"]
    expected = torch.cat([views["train"].__getitems__([2]).image, views["test"].__getitems__([7, 1]).image])
    assert torch.equal(pool.images([4, 1, 2]), expected)

    class Unknown(Images):
        @property
        def subjects(self) -> Any:
            return np.array([""] * len(self))

    view = Unknown(views["test"].store, np.arange(4), ["T1"])
    unknown = Pool.of({"test": Reals(view, np.arange(4), features_of(view, Pooled()))}, ("test",))
    assert len(set(unknown.subjects)) == 4

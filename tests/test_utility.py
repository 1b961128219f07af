"""What synthetic images are good for: sets, classifiers and the table, where the answer is known."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import layouts
import numpy as np
import pytest
import torch

from mri_synth.errors import UserError
from mri_synth.metrics.utility import Row, accuracy, balanced, table
from mri_synth.models import utility
from mri_synth.networks.classifier import BINS, BorderAndHistogram, Classifier, border_and_histogram
from mri_synth.run import run
from mri_synth.synthetic_sets import ClassSet, cached, real_items

SMALL = ["data.contrasts=[FLAIR]", "data.lesions=all", "data.subjects=[10,3,6]", "data.size=32", "data.batch_size=8",
         "logger=csv", "trainer.progress=false"]  # fmt: skip


FEW = ["model.n_per_class=8", "model.style_steps=0", "model.seeds=1", "model.width=4"]


def test_accuracy_by_hand():
    logits = torch.tensor([[[2.0, 1.0], [0.0, 3.0], [5.0, 4.0]]])
    assert accuracy(logits, torch.tensor([0, 0, 1])).tolist() == [[1.0, 0.0, 0.0]]


def test_border_and_histogram_by_hand():
    """A black frame of one block around a white image: 60 border means of -1, and the two outer grey levels."""
    image = torch.ones(1, 1, 64, 64)
    image[..., :4, :], image[..., -4:, :], image[..., :4], image[..., -4:] = -1, -1, -1, -1
    seen = border_and_histogram(image)[0]
    assert torch.equal(seen[:60], torch.full((60,), -1.0))
    black = 1 - (56 / 64) ** 2
    expected = torch.zeros(BINS)
    expected[0], expected[-1] = black * BINS, (1 - black) * BINS
    torch.testing.assert_close(seen[60:], expected)
    # where the blacks lie, it does not see
    moved = image.clone()
    moved[..., 10, 10] = -1
    again = image.clone()
    again[..., 40, 40] = -1
    assert torch.equal(border_and_histogram(moved), border_and_histogram(again))


def test_one_learns_what_the_other_cannot_see():
    """A blot on the left or on the right: told by the one that sees images; border and histogram are the same."""
    torch.manual_seed(0)
    image, group = torch.full((64, 1, 32, 32), -0.5), torch.arange(64) % 2
    for k in range(64):
        y, x = 8 + k % 12, (8 if group[k] else 20) + k % 3
        image[k, :, y : y + 4, x : x + 4] = 1
    got = {}
    for name, network in (("image", Classifier(1, 2, 8)), ("border", BorderAndHistogram(2))):
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image), group).backward()
            optimizer.step()
        got[name] = float(accuracy(network(image), group).mean())
    assert got["image"] > 0.95
    assert got["border"] == 0.5


def test_the_table_by_hand():
    """Two images of each of five subjects: gains are taken image by image, and published figures stand beside."""
    right = {"real": np.array([1.0] * 8 + [0, 0]), "border": np.array([1.0, 0] * 5), "g": np.array([0.5] * 10),
             "g_styled": np.array([1.0] * 10)}  # fmt: skip
    rows = [Row("real", ""), Row("border", "", shallow=True), Row("g", ""), Row("g_styled", ""),
            Row("told_g", "", told=True)]  # fmt: skip
    by_seed = {"real": [0.9, 0.7], "border": [0.5], "g": [0.4, 0.6], "g_styled": [1.0, 1.0], "told_g": [0.75, 0.85]}
    about = {"n_per_class": 4, "style_steps": 3, "style_content": "real", "published": {"g": [87.5, 95.6]},
             "groups": ["tumour", "none"], "space": "pixels", "simulated": True}  # fmt: skip
    subjects = [s for s in "abcde" for _ in range(2)]
    found = table(rows, by_seed, right, np.zeros(10, np.int64), subjects, {"g": [0.25, [0.2, 0.3]]}, about)
    first, second = found["tables"]
    told = {row[0]: row[1:] for row in first["rows"]}
    assert told["real"][:2] == ["80.0 ± 14.1", "40.0 to 100.0"]
    assert told["g"][2:4] == ["real", "-30.0"]
    assert told["g styled"][2:] == ["g", "+50.0", "50.0 to 50.0"]
    assert second["rows"] == [["g", "80.0 ± 7.1", 0.25, "0.2000 to 0.3000", 87.5]]
    assert [b["heights"] for b in found["bars"]][1:] == [[pytest.approx(80)], [87.5, pytest.approx(95.6)]]
    assert "simulated" in found["notes"][-1]


def test_a_confound_is_said_where_no_anatomy_is_needed():
    group, subjects = np.arange(20) % 2, [f"s{k // 2}" for k in range(20)]
    about = {"n_per_class": 4, "style_steps": 0, "style_content": "real", "published": {},
             "groups": ["tumour", "none"], "space": "pixels", "simulated": False}  # fmt: skip
    told = {}
    for name, border in (("all", np.ones(20)), ("chance", group * 1.0)):
        right = {"real": np.ones(20), "border": border}
        found = table([Row("real", ""), Row("border", "", shallow=True)], {"real": [1.0], "border": [0.5]}, right,
                      group, subjects, {}, about)  # fmt: skip
        told[name] = found["notes"][-1]
    assert told["all"].startswith("CAUTION: border and histogram alone tell 100.0 % of the test images right (50% ")
    assert "CAUTION" not in told["chance"]


def test_groups_count_alike_in_accuracy_and_interval():
    """Six subjects with one image of the rare group and five of the other: told right throughout is 1 and nothing else;
    the rare group always wrong is one half, however rare it is; worked by hand for one wrong image of each."""
    group = np.asarray([0, 1, 1, 1, 1, 1] * 6)
    subjects = [s for s in "abcdef" for _ in range(6)]
    assert balanced(np.ones(36), group, subjects) == (1.0, [1.0, 1.0])
    assert balanced((group == 1).astype(float), group, subjects) == (0.5, [0.5, 0.5])
    right = np.ones(36)
    right[[0, 1]] = 0
    value, interval = balanced(right, group, subjects)
    assert value == pytest.approx((5 / 6 + 29 / 30) / 2)
    assert interval is not None
    assert interval[0] < value < interval[1] <= 1
    assert balanced(right, group, ["a"] * 36)[1] is None


def test_real_items_are_spread_over_subjects():
    label = np.asarray([0, 1] * 6)
    view: Any = SimpleNamespace(rows=np.arange(12), subjects=np.asarray(list("aaaaaabbbccc")),
                                store=SimpleNamespace(table={"label": label}))  # fmt: skip
    chosen = real_items(view, torch.tensor([0, 1]), 3, 0, "n")
    assert [label[k] for k in chosen] == [0, 0, 0, 1, 1, 1]
    for part in (chosen[:3], chosen[3:]):
        assert sorted(view.subjects[part]) == ["a", "b", "c"]
    with pytest.raises(UserError, match="7 images of each group are asked for, and group 1 has 6"):
        real_items(view, torch.tensor([0, 1]), 7, 0, "n")


def test_two_sets_as_one():
    a, b = (ClassSet(torch.full((2, 1, 4, 4), float(k)), torch.tensor([k, k])) for k in (0, 1))
    assert a.with_(b).group.tolist() == [0, 0, 1, 1]
    assert a.with_(b).image[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.fixture(scope="module")
def small_vgg(tmp_path_factory):
    return layouts.vgg19(tmp_path_factory.mktemp("vgg") / "vgg.pth", "conv5_1")


@pytest.fixture(scope="module")
def generators(tmp_path_factory, compose):
    """A class-conditional sampler, an unconditional one, and a translator of label maps, hardly trained."""
    made: dict[str, Path] = {}
    words = {
        "dcgan": ["model=dcgan", "model.condition=label", "model.channels_g=16", "model.channels_d=16"],
        "any": ["model=dcgan", "model.channels_g=16", "model.channels_d=16"],
        "pix2pix": ["model=pix2pix", "data.source=derived", "model.width=16", "model.d_width=8", "model.d_layers=2"],
    }
    for name, own in words.items():
        folder = tmp_path_factory.mktemp(name)
        run(compose(*own, *SMALL, "trainer.max_epochs=1", "samples=0"), folder, [])
        made[name] = folder / "last.ckpt"
    return made


def test_a_whole_table(generators, compose, tmp_path, small_vgg):
    paths = f"{{dcgan: {generators['dcgan']}, pix2pix: {generators['pix2pix']}}}"
    words = ["model=utility", *SMALL, f"+model.generators={paths}",
             "model.n_per_class=8", "model.style_steps=2", f"model.vgg={small_vgg}", "model.seeds=2", "model.width=4",
             "trainer.max_epochs=2", "+model.published={dcgan: [87.5, 95.6]}"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    results = json.loads((tmp_path / "results.json").read_text())
    first, second = results["conclusion"]["tables"]
    names = [row[0] for row in first["rows"]]
    every = [f"{both}{g}{styled}" for g in ("dcgan", "pix2pix") for styled in ("", " styled")
             for both in ("", "real and ")]  # fmt: skip
    assert names == ["real", "border", *every]
    assert [row[0] for row in second["rows"]] == ["dcgan", "dcgan styled", "pix2pix", "pix2pix styled"]
    assert all(len(v) == 2 for v in results["conclusion"]["by_seed"].values())
    page = (tmp_path / "report.html").read_text()
    assert "Synthetic against real" in page
    assert "their label, is that of real images" in page.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+model.generators={g: ANY}"], "cannot be asked for a class; train it with model.condition=label"),
        (["+model.generators={g: DCGAN}", "data.contrasts=[T1]"], "makes FLAIR of 32 pixels, and the data are T1"),
        (["+model.generators={g: nowhere.ckpt}"], "model.generators.g=nowhere.ckpt: no such file"),
        (["+model.generators={real: DCGAN}"], "model.generators.real: not a name of a row"),
        (["model.groups=[[lesion]]"], "two groups or more"),
        (["model.groups=[[lesion],[lesion,none]]"], "a class is in one group only"),
        (["model.groups=[[lesion],[tumour]]"], "the data have no class tumour; they have"),
        (["model.n_per_class=900"], "900 images of each group are asked for, and group"),
    ],
    ids=["unconditional", "contrast", "no_file", "name", "one_group", "twice", "unknown", "too_many"],
)
def test_mistakes_are_said(generators, compose, tmp_path, words, message):
    told = [w.replace("ANY", str(generators["any"])).replace("DCGAN", str(generators["dcgan"])) for w in words]
    with pytest.raises(UserError, match=message):
        run(compose("model=utility", *SMALL, *FEW, *told, "trainer.max_epochs=1"), tmp_path / "run", told)


def test_what_was_made_is_kept(generators, compose, tmp_path, monkeypatch):
    """A second run takes the images from the cache; a damaged file is made again, and said."""
    from mri_synth import synthetic_sets

    words = ["model=utility", *SMALL, f"+model.generators={{dcgan: {generators['dcgan']}}}", "model.n_per_class=8",
             "model.style_steps=0", "model.seeds=1", "model.width=4", "trainer.max_epochs=1",
             f"data.cache={tmp_path}"]  # fmt: skip
    run(compose(*words), tmp_path / "first", words)
    monkeypatch.setattr(synthetic_sets.Generator, "make", lambda *_: pytest.fail("made again"))
    run(compose(*words), tmp_path / "second", words)
    kept = sorted((tmp_path / "synthetic").glob("*.pt"))
    assert len(kept) == 2
    kept[0].write_bytes(b"no tensor")
    monkeypatch.undo()
    run(compose(*words), tmp_path / "third", words)
    assert torch.load(kept[0], weights_only=True).shape[1:] == (1, 32, 32)


def test_the_experiment_has_the_figures_of_the_seed(compose):
    published = compose("experiment=seed_004_table").model.published
    assert published == {"dcgan": [87.5, 95.6], "pix2pix": [89.02, 93.7], "progan": [83.0, 92.8]}


def test_of_two_that_want_a_set_at_once_one_makes_it(tmp_path):
    data: Any = SimpleNamespace(cache=str(tmp_path), data_hash="d", manifest=[])
    made = []

    def make():
        made.append(1)
        time.sleep(0.2)
        return torch.ones(2, 1, 4, 4)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: cached(data, {"of": "it"}, make), range(2)))
    assert made == [1]
    assert all(torch.equal(f, torch.ones(2, 1, 4, 4)) for f in found)
    assert torch.equal(cached(data, {"of": "another"}, lambda: torch.zeros(1)), torch.zeros(1))


def test_a_restyled_set_depends_on_all_of_the_style(generators, compose, tmp_path, small_vgg, monkeypatch):
    """Its place in the cache is another where a default of style_transfer is."""
    from mri_synth import synthetic_sets
    from mri_synth.refine import restyler

    kept, told = synthetic_sets.cached, restyler.settings
    seen = []
    monkeypatch.setattr(utility, "cached", lambda data, about, make: seen.append(about) or kept(data, about, make))
    words = ["model=utility", *SMALL, f"+model.generators={{dcgan: {generators['dcgan']}}}", *FEW[:1], *FEW[2:],
             "model.style_steps=1", f"model.vgg={small_vgg}", "trainer.max_epochs=1",
             f"data.cache={tmp_path}"]  # fmt: skip
    run(compose(*words), tmp_path / "first", words)
    monkeypatch.setattr(restyler, "settings", lambda w: told(w) | {"style_weight": 5.0})
    run(compose(*words), tmp_path / "second", words)
    assert len(list((tmp_path / "synthetic").glob("*.pt"))) == 2 + 2 + 2  # as drawn, and restyled in both ways
    assert {a["style"]["settings"]["style_weight"] for a in seen if "style" in a} == {20.0, 5.0}

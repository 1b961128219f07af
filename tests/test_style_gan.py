"""style_gan: its regions by hand, what lesions meet what healthy slices, twins, what it may change and what not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data import SIZE, built, prepared
from torch import Tensor, nn
from torch.nn import functional

from mri_synth import config
from mri_synth.anomaly import anomaly_results
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.lesions import Lesions
from mri_synth.data.phantom import Phantom
from mri_synth.data.sampler import EpochBatches
from mri_synth.data.store import MASK, Prepared
from mri_synth.data.views import Reading
from mri_synth.errors import ConfigError, UserError
from mri_synth.losses.region import dilated, laid, placement, region_l1, region_style, soft_edges
from mri_synth.metrics.references import references
from mri_synth.models.style_gan import StyleTransferGAN

TINY: dict[str, Any] = {"width": 4, "d_width": 4, "d_layers": 1, "ema_decay": 0.0}
TRAINING = Reading(training=True, seed=4)


def square(side: int, size: int = 16, at: int = 6) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., at : at + side, at : at + side] = 1
    return mask


# -- regions ---------------------------------------------------------------------------------------------------------


def test_edges_fall_off_outside_of_the_mask_and_no_sigma_changes_nothing() -> None:
    half = torch.zeros(1, 1, 32, 32)
    half[..., 16:] = 1
    soft = soft_edges(half, 1.0)[0, 0, 16]
    weights = torch.exp(-0.5 * torch.arange(-2.0, 3.0).square())
    weights = weights / weights.sum()
    expected = torch.tensor([0, *weights.cumsum(0).tolist()])  # the region begins at 15, a pixel earlier
    torch.testing.assert_close(soft[12:18], expected)
    assert soft[:13].max() == 0
    assert soft[17:30].min() > 1 - 1e-6
    assert soft_edges(square(1), 1.0).max() > 0.7, "a lesion of one pixel is covered too"
    assert torch.equal(soft_edges(square(4), 0.0), square(4))


def test_a_region_is_laid_upon_an_image() -> None:
    x, y = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    assert torch.equal(laid(x, y, square(4), 0.0), square(4))
    torch.testing.assert_close(laid(x, y, square(4), 1.5), soft_edges(square(4), 1.5))


def test_a_point_dilated_by_three_pixels_is_the_disc_of_29() -> None:
    disc = dilated(square(1), 3)
    assert int(disc.sum()) == 29
    assert disc[0, 0, 6].tolist() == [0] * 3 + [1] * 7 + [0] * 6
    assert disc[0, 0, 8, 8] == 1  # sqrt 8 away
    assert disc[0, 0, 8, 9] == 0  # sqrt 13
    assert torch.equal(dilated(square(3), 0), square(3))
    assert int(dilated(torch.zeros(1, 1, 8, 8), 3).sum()) == 0


def test_losses_over_a_region_by_hand() -> None:
    mask = square(2)
    x, y = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    y[..., 6, 6] = 3
    assert region_l1(y, x, mask).item() == pytest.approx((3 + 1 + 1 + 1) / 4)
    assert region_l1(y, x, torch.zeros_like(mask)).item() == 0
    # mean 1.5 and sd sqrt(3)/2 of 3 1 1 1, against 0 and 0
    assert region_style(y, x, mask).item() == pytest.approx(1.5 + 3**0.5 / 2, abs=2e-3)
    assert region_style(y, y, mask).item() == 0
    assert placement(torch.full((1, 1, 16, 16), 0.5), mask).item() == pytest.approx(np.log(2), abs=1e-4)
    # of the four marked pixels one is missed, of the 252 others 63 are thought to be marked with p = 1/2
    seen = mask.clone()
    seen[..., 7, 7] = 0
    seen.flatten()[:63] = 0.5
    expected = 0.5 * (-np.log(1e-6) / 4 + np.log(2) / 4)
    assert placement(seen, mask).item() == pytest.approx(expected, rel=1e-3)
    assert placement(mask, mask).item() == pytest.approx(0, abs=1e-4)
    assert placement(0 * mask, 0 * mask).item() == pytest.approx(0, abs=1e-4)


# -- the view --------------------------------------------------------------------------------------------------------


def study(number: int, marks: tuple[int, ...] | None) -> Prepared:
    """One of three slices, those of `marks` with a lesion; None: without masks."""
    one = prepared(number, 3, mask=marks is not None)
    if marks is not None:
        one.images[MASK][:] = 0
        for k in marks:
            one.images[MASK][k, number, k] = 1
    return one


def view(folder: Path, how: Reading, *marks: tuple[int, ...] | None) -> Lesions:
    return Lesions(built(folder, *map(study, range(len(marks)), marks)), np.arange(3 * len(marks)), ["T1"], how)


def test_in_training_a_healthy_slice_meets_a_lesion_of_somebody_else_and_its_mask(tmp_path: Path) -> None:
    items = view(tmp_path, TRAINING, (0, 1), (2,), (), None)
    assert items.rows.tolist() == [2, 3, 4, 6, 7, 8]  # without masks nothing is known of the last subject's slices
    subject = items.store.table["study"]
    orders = [items.drawn(epoch) for epoch in range(60)]
    for order in orders:
        assert set(order.tolist()) <= {0, 1, 5}
        assert (subject[order] != subject[items.rows]).all()
    assert len({tuple(order.tolist()) for order in orders}) > 20
    assert {int(order[3]) for order in orders} == {0, 1, 5}
    assert view(tmp_path, TRAINING, (0, 1), (2,), (), None).drawn(7).tolist() == orders[7].tolist()
    for indices in (batches := EpochBatches(6, 4, seed=1, shuffle=True, tell_epoch=items.draws_anew)):
        batch = items.__getitems__(indices)
        own, theirs = items.rows[batch.index], items.drawn(batches.epoch)[batch.index]
        assert batch.target is not None
        assert batch.mask is not None
        torch.testing.assert_close(batch.image, items.read("T1", own))
        torch.testing.assert_close(batch.target, items.read("T1", theirs))
        torch.testing.assert_close(batch.mask, items.read(MASK, theirs))
        assert (batch.mask.sum((1, 2, 3)) == 1).all()


def test_a_lesion_meets_slices_about_as_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lesions, "near", 2)
    items = view(tmp_path, TRAINING, *[(0, 1, 2)] * 2, *[()] * 4)
    place = items.store.table["position_mm"]
    for epoch in range(20):
        assert (place[items.drawn(epoch)] == place[items.rows]).all()


def test_a_subject_alone_meets_itself(tmp_path: Path) -> None:
    items = view(tmp_path, TRAINING, (1,))
    assert items.rows.tolist() == [0, 2]
    assert items.drawn(3).tolist() == [1, 1]


def test_evaluation_goes_through_lesions_with_their_twins_or_the_nearest_of_others(tmp_path: Path) -> None:
    twin = np.full((SIZE, SIZE), 0.25, np.float32)
    items = view(tmp_path, Reading(healthy={5: twin}), (0, 1), (2,), ())
    assert items.rows.tolist() == [0, 1, 5]
    assert not items.draws_anew
    batch = items.__getitems__([0, 1, 2])
    assert batch.paired is not None
    assert batch.target is not None
    assert batch.paired.tolist() == [False, False, True]
    assert batch.subject == ("s0", "s0", "s1")
    torch.testing.assert_close(batch.target, items.read("T1", items.rows))
    torch.testing.assert_close(batch.image[:2], items.read("T1", np.asarray([3, 4])))
    assert (batch.image[2] == 0.25).all()
    every = items.every()
    assert len(every) == 9
    torch.testing.assert_close(every.__getitems__([5]).image, batch.target[2:])


@pytest.mark.parametrize(
    ("marks", "message"),
    [(None, "no slice of the training split has a mask"), ((), "no slice of the training split is with lesion"),
     ((0, 1, 2), "no slice of the training split is without lesion")],
)  # fmt: skip
def test_what_a_training_split_lacks_is_said(tmp_path: Path, marks: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        view(tmp_path, TRAINING, marks, marks)
    assert len(view(tmp_path, Reading(), marks, marks)) == 0


def test_the_check_refuses_data_without_lesions_before_anything_is_opened(compose: Any) -> None:
    for words, message in [
        (["data.lesions=none"], "needs lesions: slices with and without lesion, and masks"),
        (["data.train_classes=[none]"], r"data.train_classes=\[none\]; try null"),
        (["data.contrasts=[T1,T2]"], r"one contrast, such as data.contrasts=\[FLAIR\]"),
        (["data=oasis", "data.root=."], "needs lesions: slices with and without lesion, and masks"),
        (["data.size=4"], "model.d_layers=2 judges images of at least 12 pixels"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config.check(compose("model=style_gan", *words))
    for words in (["data=phantom"], ["data=phantom", "data.lesions=all"], ["data=brats", "data.root=."]):
        config.check(compose("model=style_gan", *words))


# -- twins -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantoms() -> Phantom:
    data = Phantom(subjects=[4, 2, 2], size=32)
    data.view_class = Lesions
    data.prepare_data()
    data.setup()
    return data


def test_a_phantom_s_twin_is_the_slice_itself_but_for_the_lesion(phantoms: Phantom) -> None:
    items = phantoms.view("test")
    batch = items.__getitems__(list(range(len(items))))
    assert len(batch) > 0
    assert batch.paired is not None
    assert batch.paired.all()
    assert batch.target is not None
    assert batch.mask is not None
    gap = (batch.image - batch.target).abs()
    assert (gap * (1 - batch.mask)).max() < 2e-5  # half a step of the store's int16
    assert (region_l1(batch.image, batch.target, batch.mask) > 0.02).all()
    assert phantoms.view("test").how.healthy is items.how.healthy, "simulated once"


def test_references_are_of_the_healthy_images(phantoms: Phantom) -> None:
    found = references(phantoms)
    assert {"baseline/ssim", "ceiling/ssim"} <= set(found)
    assert "copy/ssim" not in found


# -- the method ------------------------------------------------------------------------------------------------------


def batch_of(count: int = 2, size: int = 16, paired: bool | None = None) -> Batch:
    x, y = (torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(k)) - 0.5 for k in (0, 1))
    here = None if paired is None else torch.full((count,), paired)
    mask = square(4, size).expand(count, -1, -1, -1)
    return Batch(image=x, target=y, mask=mask, index=torch.arange(count), paired=here)


def model(size: int = 16, **settings: Any) -> StyleTransferGAN:
    torch.manual_seed(0)
    return StyleTransferGAN(DataSpec(size=size, contrasts=("T1",)), **{**TINY, **settings}).eval()


class Constant(nn.Module):
    """A generator that says the same everywhere."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.values.expand(len(x), -1, *x.shape[2:])


def test_a_lesion_is_put_where_the_reference_has_it_and_nothing_changes_three_sigma_away() -> None:
    made, batch = model(), batch_of()
    made.put_on = Constant(0.1)  # type: ignore[assignment]
    assert batch.target is not None
    assert batch.mask is not None
    out = made.insert(batch.image, batch.target, batch.mask)
    torch.testing.assert_close(out, laid(batch.image, batch.target + 0.2, batch.mask, 1.0))
    away = dilated(batch.mask, 5) == 0
    assert torch.equal(out[away], batch.image[away])
    moved = made.insert(batch.image, batch.target, batch.mask, shift=(-2, 3))
    there = soft_edges(square(4).roll((-2, 3), (2, 3)), 1.0)
    shifted = functional.pad(batch.target, (3, 0, 0, 2))[..., 2:, :16]
    torch.testing.assert_close(moved, batch.image + there * (shifted + 0.2 - batch.image))
    with pytest.raises(UserError, match=r"shift=\[0, 9\] moves the lesion out of the frame"):
        made.insert(batch.image, batch.target, batch.mask, shift=(0, 9))
    with pytest.raises(UserError, match="must be of one shape"):
        made.insert(batch.image, batch.target, batch.mask[..., :8])


def test_what_is_put_on_depends_on_the_reference() -> None:
    made, batch = model(), batch_of()
    assert batch.target is not None
    assert batch.mask is not None
    one, two = (made.insert(batch.image, y, batch.mask) for y in (batch.target, -batch.target))
    assert (one - two).abs().max() > 1e-4


def test_taking_off_changes_only_where_a_lesion_is_seen() -> None:
    made, batch = model(), batch_of()
    made.take_off = Constant(0.3, -1.0)  # type: ignore[assignment]
    torch.testing.assert_close(made.reconstruct(batch.image), batch.image)
    made.take_off = Constant(-0.1, 1.0)  # type: ignore[assignment]
    change = made.reconstruct(batch.image) - batch.image
    torch.testing.assert_close(change[..., 4:12, 4:12], torch.full((2, 1, 8, 8), -0.2))


def test_scores_by_hand_with_a_twin_and_without() -> None:
    made, size = model(edge=0.0), 16
    made.take_off = Constant(-0.05, 1.0)  # type: ignore[assignment] # all is darker by 0.1, on [0, 1] by 0.05
    x, mask = torch.zeros(1, 1, size, size), square(4)
    y = x + 0.5 * mask
    batch = Batch(image=x, target=y, mask=mask, index=torch.arange(1), paired=torch.tensor([True]))
    with torch.no_grad():
        scores = made._removal(batch)
        assert scores["mae_before"].item() == pytest.approx(0.25)
        assert scores["mae_inside"].item() == pytest.approx(0.2)
        assert scores["changed_outside"].item() == pytest.approx(0.05)
        other = replace(batch, target=y - 0.4 * (1 - mask), paired=torch.tensor([False]))  # another subject's
        torch.testing.assert_close(made._probe(other), y)
        assert made._removal(other)["mae_inside"].item() == pytest.approx(0.2)
        assert torch.equal(made._probe(replace(other, paired=torch.tensor([True]))), other.target)
    assert set(scores) == set(StyleTransferGAN.protocols)


def test_losses_are_the_weighted_sum_and_vanish_where_nothing_is_wrong() -> None:
    made, batch = model(edge=0.0), batch_of()
    made.take_off = Constant(0.0, -1.0)  # type: ignore[assignment]
    made.put_on = Constant(0.0)  # type: ignore[assignment]
    assert batch.target is not None
    assert batch.mask is not None
    with torch.no_grad():
        terms = made.generator_losses(batch, made.generate(batch))
    h = made.hparams
    named = ("cycle", "identity", "outside", "place", "style")
    total = terms["adversarial"] + sum(h[f"lambda_{k}"] * terms[k] for k in named) + h["lambda_cycle"] * terms["filled"]
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    for name in (
        "identity",
        "outside",
        "style",
    ):  # the reference is laid upon the image as it is, and nothing taken off
        assert terms[name].item() == pytest.approx(0, abs=1e-6)
    gap = (batch.target - batch.image).abs() * batch.mask
    once = gap.mean() + gap.sum() / batch.mask.sum()
    assert terms["cycle"].item() == pytest.approx(once.item(), rel=1e-4)
    assert terms["filled"].item() == pytest.approx(once.item(), rel=1e-4)
    assert terms["place"].item() == pytest.approx(2 * 0.5 * -np.log(1e-6), rel=0.01)  # missed in two of three


def test_neither_generator_is_taught_to_help_the_other() -> None:
    """The cycle of one gives no gradient to what the other made for it."""
    made, batch = model(), batch_of()
    made.train()
    fakes = made.generate(batch)
    fakes["back_x"].sum().backward()
    assert all(p.grad is None for p in made.put_on.parameters())
    made.zero_grad()
    fakes = made.generate(batch)
    fakes["back_y"].sum().backward()
    assert all(p.grad is None for p in made.take_off.parameters())
    assert any(p.grad is not None for p in made.put_on.parameters())


def test_the_anomaly_figures_are_of_all_slices(phantoms: Phantom, tmp_path: Path) -> None:
    found = anomaly_results(model(32), phantoms, picture=tmp_path / "anomaly.png")
    assert found["details"]["test/anomaly_auroc"]["n_slices"] == 10
    assert (tmp_path / "anomaly.png").exists()


def test_a_lesion_is_moved_with_its_mask_by_item_and_step_alone_and_in_training_only() -> None:
    made, batch = model(jitter=0.25), batch_of(6)
    assert batch.target is not None
    assert batch.mask is not None
    assert made._lent(batch)[1] is batch.mask
    made.train()
    lent, place = made._lent(batch)
    assert torch.equal(made._lent(batch.part(slice(2, 5)))[0], lent[2:5])
    offsets = set()
    for k in range(6):
        rows, columns = torch.nonzero(place[k, 0], as_tuple=True)
        down, right = int(rows.min()) - 6, int(columns.min()) - 6
        assert int(place[k].sum()) == 16
        torch.testing.assert_close(lent[k][place[k] > 0], batch.target[k][batch.mask[k] > 0])
        assert max(abs(down), abs(right)) <= 4
        offsets.add((down, right))
    assert len(offsets) > 3

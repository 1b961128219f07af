"""Style losses by hand values, and the optimizers of many images: each image for itself, as torch's own do it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mri_synth.losses.style import content_loss, gram, histogram_loss, quantiles, style_loss, total_variation
from mri_synth.optim.canvas import CanvasAdam, CanvasOptimizer
from mri_synth.optim.lbfgs import CanvasLBFGS

F = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 2.0]]]])


def test_gram_by_hand() -> None:
    # 1 + 4 + 9 + 16, 2 + 8, 1 + 4, over four positions
    torch.testing.assert_close(gram(F), torch.tensor([[[7.5, 2.5], [2.5, 1.25]]]))
    where = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]]])
    torch.testing.assert_close(gram(F, where), torch.tensor([[[12.0, 6.0], [6.0, 3.0]]]) / 1.5)
    torch.testing.assert_close(gram(F, torch.ones(1, 1, 2, 2)), gram(F))
    assert gram(F, torch.zeros(1, 1, 2, 2)).abs().max() == 0


def test_a_gram_matrix_knows_no_places_and_no_size() -> None:
    x = torch.rand(2, 5, 4, 6)
    torch.testing.assert_close(gram(x.flip(-1)), gram(x))
    torch.testing.assert_close(gram(x.repeat(1, 1, 2, 3)), gram(x))
    assert gram(x.bfloat16()).dtype == torch.float32


def test_the_gradient_of_a_gram_matrix_is_autograds() -> None:
    f, where = torch.rand(2, 3, 4, 5, requires_grad=True), torch.rand(2, 1, 4, 5)
    weights = torch.rand(2, 3, 3)
    for m in (None, where):
        flat = f.flatten(2)
        plain = (flat if m is None else flat * m.flatten(2)) @ flat.transpose(1, 2)
        plain = plain / (20 if m is None else m.sum((1, 2, 3))[:, None, None])
        (theirs,) = torch.autograd.grad((plain * weights).sum(), f)
        (ours,) = torch.autograd.grad((gram(f, m) * weights).sum(), f)
        torch.testing.assert_close(ours, theirs)


def test_losses_by_hand_one_number_an_item() -> None:
    # (7.5^2 + 2 * 2.5^2 + 1.25^2) / (4 * 2^2)
    torch.testing.assert_close(style_loss(gram(F), torch.zeros(1, 2, 2)), torch.tensor([70.3125 / 16]))
    torch.testing.assert_close(content_loss(F, F - 2), torch.tensor([2.0]))
    # down: 4, 4, 0, 1; across: 1, 1, 1, 4
    torch.testing.assert_close(total_variation(F), torch.tensor([9 / 4 + 7 / 4]))
    two = torch.cat([F, 2 * F])
    assert style_loss(gram(two), gram(F).expand(2, -1, -1))[0] == 0
    assert style_loss(gram(two), gram(F).expand(2, -1, -1))[1] > 0


def test_quantiles_and_histograms_by_hand() -> None:
    torch.testing.assert_close(quantiles(F, count=3), torch.tensor([[[1.0, 2.5, 4.0], [0.0, 0.5, 2.0]]]))
    where = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    torch.testing.assert_close(quantiles(F, where, 3), torch.tensor([[[1.0, 2.5, 4.0], [0.0, 1.0, 2.0]]]))
    q = quantiles(F)
    assert histogram_loss(q, quantiles(F.flip(-1, -2))) == 0
    torch.testing.assert_close(histogram_loss(q + 3, q), torch.tensor([4.5]))


DRAW = torch.Generator().manual_seed(3)
HALF = torch.randn(4, 16, 16, generator=DRAW)
HESSIAN = HALF @ HALF.transpose(1, 2) + 0.1 * torch.eye(16)
LEAST = torch.rand(4, 16, generator=DRAW) * 0.6 - 0.3


def valley(x: Tensor, items: list[int]) -> Tensor:
    """A curved bowl for each item, (B,) from (B, 16); its least value is 0."""
    r = x - LEAST[items]
    return (r * (HESSIAN[items] @ r[..., None])[..., 0]).sum(1) / 2 + 0.3 * (r**4).sum(1)


def run(optimizer: CanvasOptimizer, items: list[int], turns: list[list[int]]) -> list[list[float]]:
    """The objectives of the items (places on the canvas) of each turn."""
    values = []
    for turn in turns:

        def closure(turn: list[int] = turn) -> Tensor:
            optimizer.zero_grad()
            f = valley(optimizer.canvas[turn].flatten(1), [items[k] for k in turn])
            f.sum().backward()
            told = torch.zeros(2, len(optimizer.canvas))
            told[0, turn], told[1, turn] = 1, f.detach()
            optimizer.tell(told[0] > 0, told[1])
            values.append(f.tolist())
            return f.sum()

        optimizer.step(closure)
    return values


def canvas(count: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(count, 1, 4, 4))


def test_one_image_goes_as_with_torch_while_no_step_is_refused() -> None:
    theirs: list[float] = []
    x = torch.zeros(1, 16, requires_grad=True)
    peer = torch.optim.LBFGS([x], max_iter=12, max_eval=12, history_size=5, tolerance_grad=0, tolerance_change=0)

    def closure() -> float:
        peer.zero_grad()
        f = valley(x, [0]).sum()
        f.backward()
        theirs.append(f.item())
        return f.item()

    peer.step(closure)
    ours = [v[0] for v in run(CanvasLBFGS(canvas(1), history=5), [0], [[0]] * 12)]
    rising = next((k for k in range(1, 12) if theirs[k] > theirs[k - 1] * (1 + 1e-3)), 12)
    assert rising > 3
    assert ours[:rising] == pytest.approx(theirs[:rising], rel=1e-4)


@pytest.mark.parametrize("build", [CanvasLBFGS, lambda c: CanvasAdam(c, 0.05)], ids=["lbfgs", "adam"])
def test_an_image_does_not_see_the_others(build: Any) -> None:
    """In one batch, alone, or in batches of changing company: the same steps."""
    together = run(build(canvas(4)), [0, 1, 2, 3], [[0, 1, 2, 3]] * 30)
    alone = [[v[0] for v in run(build(canvas(1)), [k], [[0]] * 30)] for k in range(4)]
    for k in range(4):
        assert [v[k] for v in together] == pytest.approx(alone[k], rel=1e-3, abs=1e-6)
    turns = [[0, 2], [1, 3]] * 15
    apart = run(build(canvas(4)), [0, 1, 2, 3], turns)
    assert [v[1] for v in apart[::2]] == pytest.approx(alone[2][:15], rel=1e-3, abs=1e-6)
    last = [v[-1] for v in alone]
    assert max(last) < (1e-3 if build is CanvasLBFGS else 0.5)


def test_torch_adam_is_adam() -> None:
    x = torch.zeros(1, 16, requires_grad=True)
    peer = torch.optim.Adam([x], 0.05)
    theirs = []
    for _ in range(10):
        peer.zero_grad()
        f = valley(x, [1]).sum()
        f.backward()
        peer.step()
        theirs.append(f.item())
    assert [v[0] for v in run(CanvasAdam(canvas(1), 0.05), [1], [[0]] * 10)] == pytest.approx(theirs, rel=1e-5)


def test_a_step_too_far_is_taken_back() -> None:
    """A learning rate that makes plain steps overshoot: the objective still falls."""
    values = [v[0] for v in run(CanvasLBFGS(canvas(1), lr=20.0), [0], [[0]] * 60)]
    assert max(values[1:]) > values[0]  # some step was too far
    assert values[-1] < 0.02 * values[0]


def test_what_is_not_a_number_is_taken_back_too() -> None:
    optimizer = CanvasLBFGS(canvas(1))
    run(optimizer, [0], [[0]] * 5)
    at = optimizer.state[optimizer.canvas]["x"].clone()
    optimizer.canvas.grad = torch.full_like(optimizer.canvas, float("nan"))
    for _ in range(8):
        optimizer.tell(torch.tensor([True]), torch.tensor([float("nan")]))
        optimizer.step()
    state = optimizer.state[optimizer.canvas]
    assert torch.equal(state["x"], at)
    assert torch.isfinite(optimizer.canvas).all()
    assert [v[0] for v in run(optimizer, [0], [[0]] * 40)][-1] < 1e-3


def test_images_stay_in_their_range_and_go_on_along_its_ends() -> None:
    optimizer = CanvasLBFGS(canvas(1))
    for _ in range(30):
        optimizer.zero_grad()
        x = optimizer.canvas.flatten()
        f = (x[:8] - 3).square().sum() + (x[8:] - 0.5).square().sum() * 10
        f.backward()
        optimizer.tell(torch.tensor([True]), f.detach()[None])
        optimizer.step()
    torch.testing.assert_close(optimizer.canvas.detach().flatten(), torch.tensor([1.0] * 8 + [0.5] * 8))


def test_state_goes_through_a_checkpoint() -> None:
    one = CanvasLBFGS(canvas(2))
    run(one, [0, 1], [[0, 1]] * 8)
    other = CanvasLBFGS(nn.Parameter(one.canvas.detach().clone()))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert run(other, [0, 1], [[0, 1]] * 5) == run(one, [0, 1], [[0, 1]] * 5)


def test_a_run_ends_where_it_was_last_found_good() -> None:
    """`settle` takes back a step that nobody has evaluated, of each image for itself, and no other."""
    optimizer = CanvasLBFGS(canvas(3), lr=20.0)  # steps too far, which are refused now and then
    begun, refused, best = torch.zeros(3, 16), 0, [float("inf")] * 2
    for _ in range(25):
        evaluated = optimizer.canvas.detach().flatten(1).clone()
        (values,) = run(optimizer, [0, 1, 2], [[0, 1]])  # the third is never asked for
        for k in range(2):
            taken = optimizer.state[optimizer.canvas]["tries"][k] == 0
            refused += int(not taken)
            begun[k], best[k] = (evaluated[k], values[k]) if taken else (begun[k], best[k])
        onward = optimizer.canvas.detach().flatten(1).clone()
        assert not torch.equal(onward[0], begun[0])
        optimizer.settle()
        torch.testing.assert_close(optimizer.canvas.detach().flatten(1), begun)
        assert valley(begun[:2], [0, 1]).tolist() == pytest.approx(best)
        optimizer.canvas.data.copy_(onward.view_as(optimizer.canvas))
    assert refused > 3
    untouched = CanvasLBFGS(canvas(1))
    untouched.settle()
    assert not untouched.canvas.detach().any()
    adam = CanvasAdam(canvas(1), 0.05)
    run(adam, [0], [[0]] * 3)
    at = adam.canvas.detach().clone()
    adam.settle()  # its steps are never tried out
    assert torch.equal(adam.canvas.detach(), at)

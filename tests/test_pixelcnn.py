"""The gated PixelCNN: what each part sees, exact likelihood, and incremental sampling against its definition."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mri_synth.losses.code import bits_per_code, linear_nll, nll
from mri_synth.networks.pixelcnn import GatedLayer, GatedPixelCNN, exchanged
from mri_synth.networks.pixelcnn_ops import columns, gate
from mri_synth.networks.pixelcnn_sampler import choose, sample_codes, sample_codes_naive

Cells = set[tuple[int, int]]


def network(codebook_size: int = 7, spread: float = 0.4, **changes: Any) -> GatedPixelCNN:
    """A small one in evaluation mode, its weights large enough that every code counts."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"channels": 8, "layers": 3, "hidden": 16, **changes}
    made = GatedPixelCNN(codebook_size, **settings).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    return made


def seen(output: Tensor, source: Tensor) -> Cells:
    """Where the gradient of an output is not exactly zero, over a source (1, h, w, C)."""
    (grad,) = torch.autograd.grad(
        (output * torch.rand_like(output)).sum(), source, retain_graph=True, allow_unused=True
    )
    if grad is None:
        return set()
    return {(int(p), int(q)) for p, q in grad.abs().sum((0, 3)).nonzero()}


def cells(rows: range, cols: range, size: int = 7) -> Cells:
    """The cells of a square grid within these rows and columns."""
    return {(p, q) for p in rows for q in cols if 0 <= p < size and 0 <= q < size}


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("first", [True, False])
def test_a_gated_layer_sees_exactly_what_it_may(kernel: int, first: bool) -> None:
    torch.manual_seed(0)
    layer, reach = GatedLayer(4, kernel, first=first).double(), kernel // 2
    v, h = torch.randn(2, 1, 7, 7, 4, dtype=torch.float64).requires_grad_().unbind()
    convolved = layer.above(v)
    v_after, h_after, out = layer(v, h)
    for i, j in itertools.product(range(7), repeat=2):
        above = cells(range(i - reach, i if first else i + 1), range(j - reach, j + reach + 1))
        left = cells(range(i, i + 1), range(j - reach, j if first else j + 1))
        assert seen(convolved[:, i, j], v) == above
        assert seen(v_after[:, i, j], v) == above
        assert seen(v_after[:, i, j], h) == set()
        for result in (h_after, out):
            assert seen(result[:, i, j], v) == above
            assert seen(result[:, i, j], h) == left


@pytest.mark.parametrize(
    "changes",
    [{}, {"position": (5, 5)}, {"conditions": 2}, {"position": (5, 5), "conditions": 2, "kernel_size": 5, "layers": 3}],
)
def test_the_network_sees_all_earlier_codes_and_no_other(changes: dict[str, Any]) -> None:
    made = network(**{"layers": 4, **changes}).double()
    embedded: list[Tensor] = []
    made.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    condition = torch.tensor([1]) if made.conditions else None
    logits = made(torch.randint(0, 7, (1, 5, 5)), condition)
    for n in range(25):
        earlier = {divmod(m, 5) for m in range(n)}  # 4 layers reach all of a 5 x 5 grid: no blind spot
        assert seen(logits[:, :, n // 5, n % 5], embedded[0]) == earlier


def test_what_lies_beyond_the_receptive_field_is_not_seen() -> None:
    made = network(layers=2, first_kernel=3).double()
    embedded: list[Tensor] = []
    made.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    logits = made(torch.randint(0, 7, (1, 7, 7)))
    # 1 + 1 to the left; 1 + 1 rows up, the nearer of which is seen 1 + 1 columns wide on either side
    expected = cells(range(3, 4), range(1, 3)) | cells(range(1, 3), range(1, 6))
    assert seen(logits[:, :, 3, 3], embedded[0]) == expected


def test_probabilities_of_all_grids_sum_to_one() -> None:
    for rows, cols, changes in ((2, 2, {}), (3, 2, {"position": (3, 2), "conditions": 2})):
        made = network(2, **changes)
        grids = torch.tensor(list(itertools.product((0, 1), repeat=rows * cols))).view(-1, rows, cols)
        for label in range(-1, made.conditions):
            condition = torch.full((len(grids),), label) if made.conditions else None
            bits = bits_per_code(made(grids, condition), grids).detach()
            assert float((2 ** (-bits.double() * rows * cols)).sum()) == pytest.approx(1, abs=1e-5)
            assert bits.max() > 1.5 * bits.min()  # it is no uniform distribution that sums to 1


def test_bits_of_known_distributions() -> None:
    codes = torch.tensor([[[0, 1], [2, 2]], [[2, 2], [2, 2]]])
    assert bits_per_code(torch.zeros(2, 3, 2, 2), codes).tolist() == pytest.approx([math.log2(3)] * 2)
    p = torch.tensor([0.5, 0.25, 0.25])
    logits = (p.log() + 7).view(1, 3, 1, 1).expand(2, 3, 2, 2)  # 1, 2, 2 bits a code; a constant changes nothing
    assert bits_per_code(logits, codes).tolist() == pytest.approx([(1 + 2 + 2 + 2) / 4, 2])
    assert nll(logits, codes).tolist() == pytest.approx([7 / 4 * math.log(2), 2 * math.log(2)])
    q = torch.tensor([0.2, 0.3, 0.5])  # all codes once: the cross-entropy of uniform data under q
    each = bits_per_code(q.log().view(1, 3, 1, 1).expand(1, 3, 1, 3), torch.tensor([[[0, 1, 2]]]))
    assert float(each) == pytest.approx(-float(q.log2().mean()))


def test_the_lean_likelihood_is_that_of_the_logits() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    codes, scale = torch.randint(0, 6, (3, 2, 4)), torch.tensor([1.0, -2.0, 0.5])
    ours = linear_nll(x, weight, bias, codes)
    plain = nll((x @ weight.t() + bias).permute(0, 3, 1, 2), codes)
    assert torch.allclose(ours, plain)
    grads = torch.autograd.grad((ours * scale).sum(), (x, weight, bias))
    expected = torch.autograd.grad((plain * scale).sum(), (x, weight, bias))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads, expected, strict=True))


def test_gradients_by_hand_are_the_numerical_ones() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, 1, 1, 6, dtype=torch.float64, requires_grad=True)
    f, g = (x + bias).chunk(2, -1)
    assert torch.equal(gate(x, bias), f.tanh() * g.sigmoid())
    assert torch.autograd.gradcheck(gate, (x,))
    ours = torch.autograd.grad(gate(x, bias).square().sum(), (x, bias))  # the bias's gradient is float32
    expected = torch.autograd.grad((f.tanh() * g.sigmoid()).square().sum(), (x, bias))
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(ours, expected, strict=True))
    v, h = torch.randn(2, 2, 3, 4, 2, dtype=torch.float64).requires_grad_().unbind()
    for reach, taps in ((1, 1), (1, 2), (2, 3), (6, 6)):
        assert torch.autograd.gradcheck(lambda v, h, reach=reach, taps=taps: columns(v, h, reach, taps), (v, h))
    assert columns(v, h, 2, 3)[0, 0, 1].flatten().tolist() == [
        *v[0, 0, 1].tolist(), 0, 0, *h[0, 0, 0].tolist(), *h[0, 0, 1].tolist()
    ]  # fmt: skip


def test_bf16_keeps_to_its_rounding() -> None:
    x = torch.linspace(-4, 4, 402).view(1, 1, 1, 402)
    f, g = x.bfloat16().float().chunk(2, -1)
    assert torch.allclose(gate(x.bfloat16()).float(), f.tanh() * g.sigmoid(), atol=1e-3, rtol=2**-7)
    made, codes = network(spread=0.2), torch.randint(0, 7, (4, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made.nll(codes)
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded, made.nll(codes), rtol=0.01)
    assert torch.allclose(made.nll(codes), nll(made(codes), codes), rtol=1e-5)


def test_every_parameter_learns_and_unlabelled_grids_are_a_class_of_their_own() -> None:
    made, codes = network(conditions=3, position=(4, 5), dropout=0.25).train(), torch.randint(0, 7, (4, 4, 5))
    made.nll(codes, torch.tensor([-1, 0, 1, 2])).sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []
    made.eval()
    unknown = made(codes, torch.full((4,), -1))
    assert torch.equal(made(codes), unknown)
    assert not torch.allclose(made(codes, torch.zeros(4, dtype=torch.int64)), unknown)


def test_dropout_follows_the_numbers_given() -> None:
    made, codes = network(dropout=0.3, layers=2).train(), torch.randint(0, 7, (3, 4, 4))
    noise = torch.rand(3, made.draws)
    logits = made(codes, noise=noise)
    assert torch.allclose(made(codes.flip(0), noise=noise.flip(0)).flip(0), logits, atol=1e-5)  # an item's own
    assert not torch.allclose(made(codes, noise=noise.flip(0)), logits)
    kept = made(codes, noise=torch.ones_like(noise) * 0.99)  # nothing falls below 0.3: gates grow by 1 / 0.7
    assert not torch.allclose(kept, logits)
    assert torch.equal(made.eval()(codes, noise=noise), made(codes))
    assert network().draws == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"position": (6, 5), "conditions": 3},
        {"layers": 1},
        {"layers": 2, "kernel_size": 5, "first_kernel": 3},
        {"layers": 4, "kernel_size": 5, "first_kernel": 7, "conditions": 3, "dropout": 0.5},
    ],
)
def test_incremental_sampling_is_the_naive_loop(changes: dict[str, Any]) -> None:
    made = network(**changes)
    torch.manual_seed(1)
    u = torch.rand(8, 30)
    condition = torch.randint(-1, 3, (8,)) if made.conditions else None
    for options in ({}, {"temperature": 0.7, "top_k": 3}):
        naive = sample_codes_naive(made, u, (6, 5), condition, **options)
        assert naive.unique().numel() >= 5
        assert torch.equal(sample_codes(made, u, (6, 5), condition, **options), naive)
        assert torch.equal(sample_codes(made, u, (6, 5), condition, dtype=torch.float64, **options), naive)
        alone = sample_codes(made, u[3:4], (6, 5), None if condition is None else condition[3:4], **options)
        assert torch.equal(alone[0], naive[3])  # whatever else is in the batch


def test_samples_follow_the_likelihood() -> None:
    made = network(2, spread=0.7)
    grids = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(-1, 2, 2)
    p = (-4 * nll(made(grids), grids).detach()).exp()
    torch.manual_seed(0)
    n = 4000
    drawn = sample_codes(made, torch.rand(n, 4), (2, 2)).flatten(1) @ torch.tensor([8, 4, 2, 1])
    counts = drawn.bincount(minlength=16)
    chi_square = float(((counts - n * p).square() / (n * p)).sum())
    assert chi_square < 37.7  # 99.9 % of chi-square with 15 degrees of freedom


def test_temperature_and_top_k() -> None:
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    n = 1000
    u, logits = (torch.arange(n) + 0.5) / n, p.log().expand(n, 4)

    def share(**options: Any) -> list[float]:
        return (choose(logits, u, **options).bincount(minlength=4) / n).tolist()

    assert share() == pytest.approx(p.tolist(), abs=1e-3)
    assert share(temperature=1e-4) == [0, 1, 0, 0]
    assert share(temperature=0.5) == pytest.approx((p**2 / (p**2).sum()).tolist(), abs=2e-3)
    assert share(temperature=1e6) == pytest.approx([0.25] * 4, abs=2e-3)
    assert share(top_k=1) == [0, 1, 0, 0]
    assert share(top_k=2) == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=2e-3)
    assert share(top_k=4) == share()
    never = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(2, 3)
    assert choose(never, torch.tensor([0.0, 1 - 2**-24])).tolist() == [1, 1]  # no code of probability 0 at either end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": math.nan}, "temperature must be a positive number, got nan"),
        ({"top_k": 0}, r"top_k must lie in \[1, 7\], the number of codes, got 0"),
        ({"top_k": 8}, r"top_k must lie in \[1, 7\], the number of codes, got 8"),
        ({"shape": (3, 3)}, r"grid of codes is \(3, 3\), but the network's position is for \(2, 3\)"),
        ({"u": torch.rand(2, 5)}, r"u must be \(B, 6\) for a grid of \(2, 3\), got \(2, 5\)"),
        ({"condition": torch.tensor([0, 2])}, r"condition must be 2 numbers below 2, .* got \[0, 2\]"),
        ({"condition": torch.tensor([0])}, r"condition must be 2 numbers below 2, .* got \[0\]"),
    ],
)
def test_what_cannot_be_drawn_is_named(changes: dict[str, Any], message: str) -> None:
    made = network(position=(2, 3), conditions=2)
    arguments: dict[str, Any] = {"u": torch.rand(2, 6), "shape": (2, 3), **changes}
    for sampler in (sample_codes, sample_codes_naive):
        with pytest.raises(ValueError, match=message):
            sampler(made, **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "must be at least 1"),
        ({"kernel_size": 4}, "must be odd, at least 3, got 4, 5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_a_network_refuses_what_it_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedPixelCNN(7, **changes)
    with pytest.raises(ValueError, match="built with conditions=0"):
        network()(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


def test_it_learns_a_markov_chain_to_its_entropy() -> None:
    torch.manual_seed(0)
    transition = torch.tensor([[0.8, 0.1, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05], [0.3, 0.1, 0.1, 0.5], [0.25] * 4])
    start = torch.linalg.matrix_power(transition, 64)[0]  # the stationary distribution

    def chains(n: int, size: int = 8) -> Tensor:
        """n grids whose rows are independent runs of the chain."""
        codes = torch.multinomial(start, n * size, replacement=True)[:, None]
        for _ in range(size - 1):
            codes = torch.cat([codes, torch.multinomial(transition[codes[:, -1]], 1)], 1)
        return codes.view(n, size, size)

    entropy = -float((start * start.log2()).sum())
    rate = -float((start[:, None] * transition * transition.log2()).sum())
    made = GatedPixelCNN(4, channels=16, layers=2, hidden=32, first_kernel=3, position=(8, 8))
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(150):
        loss = made.nll(chains(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = chains(400)
    with torch.no_grad():
        bits = float(bits_per_code(made.eval()(held_out), held_out).mean())
    assert bits == pytest.approx((entropy + 7 * rate) / 8, rel=0.03)
    drawn = sample_codes(made, torch.rand(300, 64), (8, 8))
    pairs = torch.stack([drawn[..., :-1].flatten(), drawn[..., 1:].flatten()])
    counts = torch.zeros(4, 4).index_put_(tuple(pairs), torch.ones(pairs.shape[1]), accumulate=True)
    assert torch.allclose(counts / counts.sum(1, keepdim=True), transition, atol=0.05)


def test_codes_are_exchanged_for_others_of_their_own_grid() -> None:
    codes = torch.tensor([[[10, 11], [12, 13]], [[20, 21], [22, 23]]])
    which = torch.tensor([[0.1, 0.9, 0.24, 0.25], [0.0, 0.5, 0.5, 0.1]])  # below 0.25: the first and the third, ...
    whence = torch.tensor([[0.75, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.99]])  # quarters of the grid
    by_hand = torch.tensor([[[13, 11], [11, 13]], [[20, 21], [22, 23]]])
    assert torch.equal(exchanged(codes, 0.25, torch.cat([which, whence], 1)), by_hand)
    assert torch.equal(exchanged(codes, 0.0, torch.cat([which, whence], 1)), codes)


def test_the_likelihood_is_of_the_codes_and_not_of_what_is_shown() -> None:
    made, (codes, shown) = network(), torch.randint(7, (2, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    log_p = made(shown).log_softmax(1).gather(1, codes[:, None])[:, 0]
    assert torch.allclose(made.nll(codes, seen=shown), -log_p.mean((1, 2)), rtol=1e-5)
    assert not torch.allclose(made.nll(codes, seen=shown), made.nll(codes), rtol=1e-3)

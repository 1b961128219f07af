"""What our discriminators rely on in torch's spectral norm: autocast, channels_last, penalties, copies, resume."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from mri_synth.networks.conditional import ProjectionHead
from mri_synth.networks.dcgan import Discriminator


def make() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(1, 16, 8, 32, "none", spectral=True)


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def sigmas(network: nn.Module) -> list[float]:
    """Largest singular values of all weights that are used in evaluation."""
    network.eval()
    found = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return [float(torch.linalg.matrix_norm(w.detach().flatten(1).double(), 2)) for w in found]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_largest_singular_values_become_1_in_either_precision(precision: torch.dtype) -> None:
    network = make()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        for _ in range(200):
            network(images())
    assert sigmas(network) == pytest.approx([1.0] * len(sigmas(network)), abs=2e-3)
    assert all(b.dtype == torch.float32 for b in network.buffers())


def test_memory_format_changes_nothing() -> None:
    plain, last = make(), make().to(memory_format=torch.channels_last)
    for _ in range(3):
        a, b = plain(images()), last(images())
    assert torch.allclose(a, b, atol=1e-5)
    for (name, x), y in zip(plain.state_dict().items(), last.state_dict().values(), strict=True):
        assert torch.allclose(x, y, atol=1e-6), name
    convolutions = [m for m in last.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)


def test_several_passes_then_a_penalty_and_one_backward() -> None:
    network, x = make(), images().requires_grad_()
    real, fake = network(x), network(-x.detach())
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    (real.mean() - fake.mean() + slope.square().sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_evaluation_and_frozen_copies_leave_the_vectors_alone() -> None:
    network = make()
    network(images())
    kept = copy.deepcopy(network).requires_grad_(False).eval()
    before = {k: v.clone() for k, v in kept.state_dict().items()}
    network(images())  # the copy shares nothing
    kept(images())
    assert all(torch.equal(v, before[k]) for k, v in kept.state_dict().items())
    assert [n for n, _ in kept.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_resume_is_exact() -> None:
    """The vectors are in the state, and nothing else moves: 4 steps are 2 steps, a checkpoint and 2 steps."""

    def train(network: nn.Module, adam: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.softplus(network(images())).mean()
            loss.backward()
            adam.step()

    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        network = make()
        return network, torch.optim.Adam(network.parameters(), lr=0.01)

    whole, broken, resumed = start(), start(), start()
    train(*whole, 4)
    train(*broken, 2)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in broken], file)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, 2)
    for (name, x), y in zip(whole[0].state_dict().items(), resumed[0].state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_projection_head_may_be_normalised_whole() -> None:
    head = ProjectionHead(8, 3)
    for module in (head.linear, head.embedding):
        assert module is not None
        nn.utils.parametrizations.spectral_norm(module)
    for _ in range(100):
        logits = head(torch.ones(4, 8), torch.tensor([0, 1, 2, -1]))
    assert torch.isfinite(logits).all()
    assert head.embedding is not None
    assert float(torch.linalg.matrix_norm(head.embedding.weight.detach(), 2)) == pytest.approx(1, abs=1e-3)

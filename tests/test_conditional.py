"""Class conditions of generator and discriminator, by hand; spectral norm where our trainings take it."""

from __future__ import annotations

import torch

from mri_synth.draws import normal
from mri_synth.networks.conditional import LatentWithLabel, ProjectionHead, some_label


def test_latent_with_label_by_hand() -> None:
    latent = LatentWithLabel(1, 2, 2)
    assert latent.features == 3
    assert latent.embedding is not None
    latent.embedding.weight.data = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    z = torch.tensor([[0.5], [0.6], [0.7]])
    assert torch.allclose(latent(z, torch.tensor([1, 0, -1])), torch.tensor([[0.5, 3, 6], [0.6, 1, 2], [0.7, 2, 4]]))
    assert torch.allclose(latent(z), torch.tensor([[0.5, 2, 4], [0.6, 2, 4], [0.7, 2, 4]]))
    latent(z, torch.tensor([-1, -1, 1]))[:, 1:].sum().backward()
    assert latent.embedding.weight.grad is not None
    assert latent.embedding.weight.grad.tolist() == [[1, 1], [2, 2]]  # an unknown label's is shared


def test_without_classes_nothing_is_added() -> None:
    z = torch.randn(2, 4)
    latent, head = LatentWithLabel(4, 0), ProjectionHead(4, 0)
    assert latent(z) is z
    assert latent.features == 4
    assert not list(latent.parameters())
    assert torch.equal(head(z), head.linear(z)[:, 0])
    assert len(list(head.parameters())) == 2


def test_projection_by_hand() -> None:
    head = ProjectionHead(2, 2)
    assert head.embedding is not None
    head.linear.weight.data, head.linear.bias.data = torch.tensor([[1.0, -1.0]]), torch.tensor([0.5])
    head.embedding.weight.data = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    h = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    label = torch.tensor([0, 1, -1])
    assert head(h, label).tolist() == [-0.5 + 2, -0.5 + 7, -0.5]
    assert head(h).tolist() == [-0.5] * 3
    head(h, label).sum().backward()
    assert head.embedding.weight.grad is not None
    assert head.embedding.weight.grad.tolist() == [[1, 2], [1, 2]]  # nothing of the unknown one's


def test_projection_is_the_log_ratio_of_classes() -> None:
    """Miyato and Koyama, eq. 2 and 3: log p(y|x) - log q(y|x) is linear in h for two softmax classifiers."""
    torch.manual_seed(0)
    real, fake, h = torch.randn(3, 4), torch.randn(3, 4), torch.randn(5, 4)
    head = ProjectionHead(4, 3)
    assert head.embedding is not None
    head.linear.weight.data.zero_()
    head.linear.bias.data.zero_()
    head.embedding.weight.data = real - fake
    label = torch.tensor([0, 1, 2, 0, 1])
    ratio = (h @ real.T).log_softmax(1) - (h @ fake.T).log_softmax(1)
    partition = (h @ fake.T).logsumexp(1) - (h @ real.T).logsumexp(1)  # what the first part learns
    assert torch.allclose(head(h, label) + partition, ratio.gather(1, label[:, None])[:, 0], atol=1e-5)


def test_logits_are_float32_under_autocast() -> None:
    head, h, label = ProjectionHead(64, 2), torch.randn(4, 64).bfloat16(), torch.tensor([0, 1, -1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(h, label)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(h.float(), label))


def test_labels_of_samples() -> None:
    numbers = normal(0, 0, torch.arange(3000), 1)[:, 0]
    drawn = some_label(None, numbers, 3)
    assert some_label(None, torch.tensor([-9.0, -0.44, -0.42, 0.42, 0.44, 9.0]), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.allclose(torch.bincount(drawn) / 3000, torch.full((3,), 1 / 3), atol=0.03)
    asked = torch.full((3000,), -1)
    asked[::2] = 1
    assert torch.equal(some_label(asked, numbers, 3), torch.where(asked >= 0, asked, drawn))

"""Generators: counts of the papers, how deep and how far they see, norms, gates, dropout by numbers, precision."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn

from mri_synth.networks.generators import Kind, generator, least_size, reason
from mri_synth.networks.layers import ChannelDropout, Head, InstanceNorm, Translator
from mri_synth.networks.patch import PatchDiscriminator
from mri_synth.networks.resnet import ResidualBlock
from mri_synth.networks.unet_translate import AttentionGate, TranslatingUNet, halvings

KINDS = get_args(Kind)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def image(size: int = 32, channels: int = 2, batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- as published ------------------------------------------------------------------------------------------------------


def test_unet_of_256_pixels_has_the_parameters_of_the_published_one() -> None:
    """54,413,955 in the authors' code with 3 channels; ours has biases where it has no norm: first layer, one pixel."""
    with torch.device("meta"):
        network = generator("unet", 3, 3, 256, 64, "batch")
    assert count(network) == 54_413_955 + 64 + 512


def test_resnet9_has_the_parameters_of_the_published_one() -> None:
    """11,378,179 with 3 channels, biases and norms without factors: 11.378 M."""
    with torch.device("meta"):
        plain, normed = (generator("resnet9", 3, 3, 256, 64, norm) for norm in ("none", "instance"))
    assert count(plain) == 11_378_179
    norms = sum(2 * m.weight.numel() for m in normed.modules() if isinstance(m, InstanceNorm))
    biases = norms // 2  # one for each channel behind which there is a norm now
    assert count(normed) == 11_378_179 - biases + norms


def test_conditional_patch_discriminator_has_the_parameters_of_the_published_one() -> None:
    """2,768,705 with 3 + 3 channels and batch norm: 2.769 M; ours has no bias at its end."""
    assert count(PatchDiscriminator(6, 64, 3, "instance")) == 2_768_705 - 1


def test_conditional_patches_are_70_pixels_and_a_map_of_30_at_256() -> None:
    network = PatchDiscriminator(2, 4, 3, "none")
    x = image(256, 2, 1).requires_grad_()
    verdicts = network(x)
    assert verdicts.shape == (1, 1, 30, 30)
    verdicts[0, 0, 15, 15].backward()
    for channel in range(2):  # source and target alike
        seen = x.grad[0, channel].abs() > 0
        assert (seen.any(0).sum(), seen.any(1).sum()) == (70, 70)


def test_local_sees_29_pixels_and_begins_with_the_first_source() -> None:
    torch.manual_seed(0)  # of few channels, ReLUs may all be dead
    network = generator("local", 2, 1, 64, 8, "none")
    x = image(64, 2, 1).requires_grad_()
    network(x)[0, 0, 32, 32].backward()
    for channel in range(2):
        seen = x.grad[0, channel].abs() > 0
        assert (seen.any(0).sum(), seen.any(1).sum()) == (29, 29)
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(network(x), torch.tanh(2 * x[:, :1]))
    assert count(network) == 2 * 49 * 8 + 8 + 4 * 2 * (8 * 8 * 9 + 8) + 49 * 8 + 1


@pytest.mark.parametrize("size, sides", [(64, [32, 16, 8, 4, 2, 1]), (48, [24, 12, 6, 3]), (8, [4, 2, 1])])
def test_unet_goes_down_to_one_pixel_or_as_far_as_the_side_can_be_halved(size: int, sides: list[int]) -> None:
    network, seen = generator("unet", 1, 1, size, 4), []
    for block in network.down:
        block.register_forward_hook(lambda m, i, out: seen.append(out.shape[-1]))
    assert network(image(size, 1, 1)).shape == (1, 1, size, size)
    assert seen == sides
    assert halvings(size) == len(sides)


def test_attention_unet_has_four_encoder_blocks_and_a_gate_on_each_skip() -> None:
    network = generator("attention_unet", 1, 1, 64, 4)
    assert (len(network.down), len(network.gates)) == (4, 3)


# -- what they do ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_become_images(kind: Any, norm: Any) -> None:
    """Any number of sources; one image in training too, where a norm at one pixel would raise; every weight learns."""
    network = generator(kind, 3, 1, 32, 8, norm)
    y = network(image(32, 3, 1))
    assert y.shape == (1, 1, 32, 32)
    assert y.dtype == torch.float32
    assert y.abs().max() <= 1
    assert y.std() > 0
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_translated_alike_beside_others_and_alone(kind: Any) -> None:
    network, x = generator(kind, 2, 1, 32, 8, "instance"), image()
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=0)
    batch = generator(kind, 2, 1, 32, 8, "batch")
    assert (batch(x)[1:2] - batch(x[1:2])).abs().max() > 1e-3, "batch norm is the one that looks at the others"


@pytest.mark.parametrize("kind", ["unet", "attention_unet"])
def test_unets_see_everything_through_the_middle_and_details_through_the_skips(kind: Any) -> None:
    network = generator(kind, 1, 1, 32, 8, "none")
    x = image(32, 1, 1).requires_grad_()
    network(x)[0, 0, 2, 2].backward()
    seen = x.grad[0, 0].abs() > 0
    assert seen[1:4, 1:4].all()
    assert seen[20:].any()


def test_instance_norm_by_hand_in_the_layout_it_came_in() -> None:
    norm = InstanceNorm(2)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])
    x = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])  # means 2 and 1, deviations 1 and 1
    torch.testing.assert_close(norm(x), torch.tensor([[[[-1.0, 1.0]], [[2.0, 8.0]]]]), atol=1e-4, rtol=0)
    wide = image(8, 2).to(memory_format=torch.channels_last)
    y = norm(wide)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, norm(wide.contiguous()))


@pytest.mark.parametrize("bias, let_through", [(50.0, 1.0), (0.0, 0.5), (-50.0, 0.0)])
def test_attention_gate_opens_and_shuts(bias: float, let_through: float) -> None:
    gate, x = AttentionGate(4, 6), image(8, 4)
    nn.init.zeros_(gate.psi.weight)
    nn.init.constant_(gate.psi.bias, bias)
    torch.testing.assert_close(gate(x, image(4, 6)), let_through * x, atol=1e-6, rtol=0)


def test_attention_gate_is_as_in_the_paper_where_one_pixel_says_it_all() -> None:
    """alpha = s(psi relu(W_x x + W_g g)) = s(3 relu(4 * 0.5 - 1)) on a constant skip."""
    gate = AttentionGate(1, 1)
    for weight, value in ((gate.skip.weight, 1), (gate.gating.weight, 1), (gate.psi.weight, 3)):
        nn.init.constant_(weight, value)
    nn.init.zeros_(gate.gating.bias)
    nn.init.zeros_(gate.psi.bias)
    x, g = torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 2, 2), -1.0)
    torch.testing.assert_close(gate(x, g), 0.5 * torch.sigmoid(torch.tensor(3.0)).expand_as(x))


def test_residual_block_without_its_branch_changes_nothing() -> None:
    block, x = ResidualBlock(4, 8, "instance", 0.0), image(8, 4)
    nn.init.zeros_(block.two[1].weight)
    assert torch.equal(block(x, None), x)


# -- dropout -----------------------------------------------------------------------------------------------------------


def test_channel_dropout_by_hand() -> None:
    drop, x = ChannelDropout(4, 0.5), torch.ones(1, 4, 1, 1)
    assert drop(x, torch.tensor([[0.0, 0.49, 0.5, 0.9]])).flatten().tolist() == [0, 0, 2, 2]
    assert torch.equal(drop.eval()(x, torch.zeros(1, 4)), x)


@pytest.mark.parametrize(
    "kind, numbers", [("unet", 64 + 32), ("attention_unet", 32), ("resnet9", 9 * 32), ("local", 4 * 8)]
)
def test_dropout_is_of_the_numbers_given_and_of_nothing_else(kind: Any, numbers: int) -> None:
    """An image's dropout is its own, whatever else is in the batch; there is none in evaluation."""
    network, x = generator(kind, 2, 1, 32, 8, dropout=0.5), image()
    assert network.draws == numbers
    assert generator(kind, 2, 1, 32, 8).draws == 0
    noise = torch.rand(3, numbers)
    assert torch.equal(network(x, noise), network(x, noise))
    assert (network(x, noise) - network(x, noise.flip(0))).abs().max() > 1e-3
    torch.testing.assert_close(network(x, noise)[1:2], network(x[1:2], noise[1:2]), atol=1e-5, rtol=0)
    assert (network(x) - network(x)).abs().max() > 1e-3, "without numbers they are drawn"
    network.eval()
    assert torch.equal(network(x, noise), network(x))


# -- precision, compilation --------------------------------------------------------------------------------------------


def test_last_layer_is_computed_in_fp32() -> None:
    head, x = Head(nn.Conv2d(4, 1, 3, padding=1)), image(16, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = head(x)
    assert torch.equal(y, head(x))
    assert (y.bfloat16().float() - y).abs().max() > 0, "more digits than bf16 has"


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_and_channels_last_make_the_same_image(kind: Any) -> None:
    network, x = generator(kind, 2, 1, 32, 8), image()
    plain = network(x)
    fast = network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = fast(x.to(memory_format=torch.channels_last))
        y.square().mean().backward()
    assert y.dtype == torch.float32
    assert (y - plain).abs().mean() < 0.02 * plain.std() + 0.01
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_one_graph_to_the_compiler(kind: Any) -> None:
    network, x = generator(kind, 2, 1, 32, 4, dropout=0.5), image()
    noise = torch.rand(3, network.draws)
    expected = network(x, noise)
    network.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(network(x, noise), expected)
    assert not any("_orig_mod" in name for name in network.state_dict())


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, size, near", [("unet", 36, 32), ("unet", 4, 8), ("attention_unet", 40, 32),
                                              ("resnet9", 30, 32), ("resnet9", 4, 8), ("local", 4, 8)])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(kind: Any, size: int, near: int) -> None:
    assert f"not data.size={size}; try data.size={near}" in reason(kind, size)
    with pytest.raises(ValueError, match=rf"model.generator={kind} takes images .* not data.size={size}"):
        generator(kind, 1, 1, size, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_all_other_sizes_are_taken(kind: Any) -> None:
    for size in (least_size(kind), 48, 80, 240):
        assert reason(kind, size) == ""
        assert isinstance(generator(kind, 1, 1, size, 1), Translator)
    x = image(least_size(kind), 1, 1)
    assert generator(kind, 1, 1, least_size(kind), 4)(x).shape == x.shape


def test_a_depth_that_the_side_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size must be a multiple of 16, got 40"):
        TranslatingUNet(1, 1, 40, 4, depth=4)

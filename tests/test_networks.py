"""Networks against answers worked by hand, planted structure, and the library they replace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mri_synth.networks.autoencoder import Decoder, Encoder, ResBlock
from mri_synth.networks.clusters import code_costs, kmeans, nearest
from mri_synth.networks.quantizer import VectorQuantizer, codebook_usage


def quantizer(size: int = 8, dim: int = 4, **changes: float) -> VectorQuantizer:
    """One without k-means or revival unless asked for."""
    settings = {"kmeans_init": False, "revive_below": 0.0, **changes}
    torch.manual_seed(0)
    return VectorQuantizer(size, dim, **settings)  # type: ignore[arg-type]


def with_codes(codes: list[list[float]], **changes: float) -> VectorQuantizer:
    q = quantizer(len(codes), len(codes[0]), **changes)
    q.embedding.copy_(torch.tensor(codes))
    q.embedding_sum.copy_(torch.tensor(codes))
    return q


def as_map(vectors: list[list[float]]) -> Tensor:
    """N vectors of length D as z (1, D, 1, N)."""
    return torch.tensor(vectors).t()[None, :, None, :].contiguous()


def test_nearest_code_lookup_and_encode() -> None:
    q = with_codes([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]).eval()
    z = as_map([[1.0, 1.0], [8.0, 1.0], [4.0, 6.0]])
    out = q(z)
    assert out.codes.tolist() == [[[0, 1, 2]]]
    assert torch.equal(out.z_q, as_map([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    assert torch.equal(q.encode(z), out.codes)
    assert torch.equal(q.lookup(out.codes), out.z_q)
    # squared distances 2, 5, 32 over two components of three vectors
    assert out.commitment.tolist() == [pytest.approx((2 + 5 + 32) / 6)]


def test_gradient_is_straight_through_plus_commitment() -> None:
    q = with_codes([[0.0, 0.0], [10.0, 0.0]])
    z = as_map([[1.0, 2.0], [8.0, 1.0]]).requires_grad_()
    out = q(z)
    downstream = torch.arange(4.0).reshape(out.z_q.shape)
    ((out.z_q * downstream).sum() + 0.5 * out.commitment.sum()).backward()
    assert z.grad is not None
    by_hand = downstream + 0.5 * 2 * (z.detach() - out.z_q.detach()) / 4  # d mean (z - e)^2 = 2 (z - e) / 4
    assert torch.allclose(z.grad, by_hand)


def test_commitment_is_per_sample() -> None:
    q = with_codes([[0.0], [10.0]]).eval()
    z = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1)
    assert q(z).commitment.tolist() == [1.0, 4.0]


def test_moving_average_by_hand() -> None:
    q = with_codes([[0.0], [10.0]], decay=0.9, eps=0.0)  # starts with cluster sizes 1, 1
    q(as_map([[1.0], [2.0], [12.0]]))
    sizes = [0.9 * 1 + 0.1 * 2, 0.9 * 1 + 0.1 * 1]
    sums = [0.9 * 0 + 0.1 * 3, 0.9 * 10 + 0.1 * 12]
    assert q.cluster_size.tolist() == pytest.approx(sizes)
    assert q.embedding_sum[:, 0].tolist() == pytest.approx(sums)
    assert q.embedding[:, 0].tolist() == pytest.approx([sums[0] / sizes[0], sums[1] / sizes[1]])
    assert int(q.num_updates) == 1


@pytest.mark.parametrize("decay", [0.0, 0.8, 0.99])
def test_equals_the_library(decay: float) -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    ours = quantizer(32, 8, decay=decay)
    theirs = library.VectorQuantize(
        dim=8, codebook_size=32, decay=decay, accept_image_fmap=True, rotation_trick=False, threshold_ema_dead_code=0
    )
    theirs._codebook.embed.data.copy_(ours.embedding[None])
    theirs._codebook.embed_avg.data.copy_(ours.embedding[None])
    for step in range(10):
        z = torch.randn(4, 8, 6, 6) * (1 + step)
        out, (z_q, codes, loss) = ours(z), theirs(z)
        assert torch.equal(out.codes, codes)
        assert torch.allclose(out.z_q, z_q, atol=1e-5)
        assert torch.allclose(out.commitment.mean(), loss.sum(), rtol=1e-5)
        assert torch.allclose(ours.embedding, theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(ours.cluster_size, theirs._codebook.cluster_size[0], rtol=1e-5)


def test_kmeans_start_finds_planted_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    z = (centres.repeat(64, 1) + 0.1 * torch.randn(256, 2)).reshape(4, 8, 8, 2).permute(0, 3, 1, 2)
    q = VectorQuantizer(16, 2, kmeans_init=True, revive_below=0)
    assert float(q(z).commitment.max()) < 0.1
    assert bool(q.initialised)
    assert float(torch.cdist(centres, q.embedding).min(1).values.max()) < 0.5


def test_nearest_in_pieces_is_nearest() -> None:
    vectors, codes = torch.randn(5000, 3), torch.randn(700, 3)  # 3.5 million products: two pieces on a CPU
    assert torch.equal(nearest(vectors, codes), torch.cdist(vectors.double(), codes.double()).argmin(1))


def test_of_codes_equally_near_the_frequent_one_is_taken() -> None:
    """Costs by hand: p = 3/4 and 1/4; the border moves by rate (log 3) / (2 * distance) towards the rare code."""
    costs = code_costs(torch.tensor([3.0, 1.0]), 2.0)
    assert costs is not None
    assert costs.tolist() == pytest.approx([-2 * math.log(3 / 4), -2 * math.log(1 / 4)])
    assert code_costs(torch.ones(2), 0.0) is None
    codes, border = torch.tensor([[-1.0], [1.0]]), 2.0 * math.log(3) / 4
    vectors = torch.tensor([[0.0], [border - 1e-3], [border + 1e-3]])
    assert nearest(vectors, codes, costs).tolist() == [0, 0, 1]
    assert nearest(vectors, codes).tolist()[1:] == [1, 1]
    assert torch.isfinite(code_costs(torch.tensor([0.0, 5.0]), 1.0)).all()  # type: ignore[arg-type]


def test_with_a_rate_what_only_noise_tells_apart_has_one_code() -> None:
    """Two far groups, and weak noise which is most of all: without a rate it takes a good part of the codes."""
    draw = torch.Generator().manual_seed(0)
    air = 0.3 * torch.randn(4000, 4, generator=draw)
    tissue = torch.cat([4 + torch.randn(500, 4, generator=draw), -4 + torch.randn(500, 4, generator=draw)])
    used = {}
    for rate in (0.0, 0.5):
        made = VectorQuantizer(32, 4, decay=0.9, rate=rate).train()
        for _ in range(60):
            made(torch.cat([air, tissue]).t()[None, :, :, None])
        made.eval()
        used[rate] = [len(made.encode(v.t()[None, :, :, None]).unique()) for v in (air, tissue)]
        assert made.rate == rate
    assert used[0.0][0] > 10
    assert used[0.5][0] == 1
    assert used[0.5][1] > used[0.0][1]


def test_kmeans_means_and_counts_by_hand() -> None:
    vectors = torch.tensor([[0.0], [2.0], [10.0], [12.0], [14.0]])
    means, counts = kmeans(vectors, 2, 10, torch.Generator().manual_seed(0))
    assert sorted(zip(means[:, 0].tolist(), counts.tolist(), strict=True)) == [(1.0, 2.0), (12.0, 3.0)]


def test_kmeans_start_with_fewer_vectors_than_codes() -> None:
    q = VectorQuantizer(64, 3, kmeans_init=True)
    out = q(torch.randn(1, 3, 2, 2))
    assert torch.isfinite(q.embedding).all()
    assert float(out.commitment) < 1e-4  # every vector found a code of its own


def test_warmup_passes_vectors_through_then_starts() -> None:
    q = VectorQuantizer(8, 3, kmeans_init=True, warmup_steps=2)
    z = torch.randn(2, 3, 4, 4)
    for _ in range(2):
        out = q(z)
        assert torch.equal(out.z_q, z)
        assert out.commitment.tolist() == [0.0, 0.0]
        assert not bool(q.initialised)
    out = q(z)
    assert not torch.equal(out.z_q, z)
    assert bool(q.initialised)


def test_dead_codes_become_vectors_of_the_batch() -> None:
    q = with_codes([[0.0, 0.0], [1e3, 1e3]], decay=0.5, revive_below=1.0)
    z = as_map([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    q(z)  # code 1 got nothing: size 0.5, dead
    assert any(torch.equal(q.embedding[1], v) for v in z[0, :, 0].t())
    assert float(q.cluster_size[1]) == 1.0
    assert float(q.cluster_size[0]) == 0.5 + 0.5 * 4


def test_evaluation_leaves_every_buffer_alone() -> None:
    q = VectorQuantizer(8, 4, kmeans_init=True, revive_below=5).eval()
    before = copy.deepcopy(q.state_dict())
    q(torch.randn(2, 4, 4, 4))
    q.train().encode(torch.randn(2, 4, 4, 4))
    assert all(torch.equal(before[k], v) for k, v in q.state_dict().items())


def test_resumes_bit_for_bit_with_revival_and_leaves_the_global_generator_alone() -> None:
    batches = [torch.randn(2, 4, 4, 4) * (i + 1) for i in range(6)]
    whole = VectorQuantizer(32, 4, kmeans_init=True, revive_below=1.0, warmup_steps=1)
    first = copy.deepcopy(whole)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for z in batches:
        whole(z)
    assert torch.equal(torch.get_rng_state(), state)
    for z in batches[:3]:
        first(z)
    second = VectorQuantizer(32, 4, kmeans_init=True, revive_below=1.0, warmup_steps=1)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(99)
    for z in batches[3:]:
        second(z)
    assert all(torch.equal(second.state_dict()[k], v) for k, v in whole.state_dict().items())


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_vectors_get_the_codes_of_float32(autocast: bool) -> None:
    z = torch.randn(2, 4, 8, 8).bfloat16()
    half, full = quantizer(64), quantizer(64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = half(z)
    expected = full(z.float())
    assert out.z_q.dtype == torch.bfloat16
    assert out.commitment.dtype == torch.float32
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.z_q, expected.z_q.bfloat16())
    assert torch.equal(half.embedding, full.embedding)


def test_memory_format_changes_nothing() -> None:
    z = torch.randn(2, 4, 8, 6)
    a, b = quantizer()(z), quantizer()(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.z_q, b.z_q)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_vectors_never_reach_the_codebook(bad: float) -> None:
    with_bad, without = quantizer(revive_below=1.0), quantizer()
    z = torch.randn(1, 4, 1, 9)
    spoilt = z.clone()
    spoilt[0, 2, 0, 4] = bad
    with_bad(spoilt)
    assert torch.isfinite(with_bad.embedding).all()
    with_bad = quantizer()
    with_bad(spoilt)
    without(torch.cat([z[..., :4], z[..., 5:]], -1))
    assert torch.allclose(with_bad.embedding, without.embedding)


def test_usage_and_perplexity() -> None:
    share, perplexity = codebook_usage(torch.tensor([5, 5, 0, 0]))
    assert (float(share), float(perplexity)) == (0.5, pytest.approx(2.0))
    assert float(codebook_usage(torch.ones(512))[1]) == pytest.approx(512, rel=1e-5)
    assert [float(v) for v in codebook_usage(torch.zeros(4))] == [0.0, 1.0]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"codebook_size": 0}, "must be at least 1, got 0, 4"),
        ({"decay": 1.0}, r"decay must lie in \[0, 1\), got 1.0"),
        ({"revive_below": -1.0}, "must not be negative, got -1.0"),
    ],
)
def test_quantizer_refuses(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**{"codebook_size": 8, "codebook_dim": 4, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("downsample", [2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_shapes_there_and_back(downsample: int, channels: int, norm: str) -> None:
    encoder = Encoder(channels, 8, 5, downsample, 1, norm)  # type: ignore[arg-type]
    decoder = Decoder(channels, 8, 5, downsample, 1, norm)  # type: ignore[arg-type]
    x = torch.randn(2, channels, 16, 24)
    z = encoder(x)
    assert z.shape == (2, 5, 16 // downsample, 24 // downsample)
    assert decoder(z).shape == x.shape


def test_encoder_gives_float32_vectors_of_one_length_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        z = Encoder(1, 8, 4)(3 * torch.randn(2, 1, 16, 16))
    assert z.dtype == torch.float32
    assert torch.allclose(z.square().mean(1), torch.ones(2, 4, 4), atol=0.01)


def test_decoder_gives_bounded_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        x_hat = Decoder(1, 8, 4)(100 * torch.randn(1, 4, 4, 4))
    assert x_hat.dtype == torch.float32
    assert float(x_hat.detach().abs().max()) <= 1


def test_every_parameter_gets_a_gradient() -> None:
    encoder, decoder = Encoder(1, 8, 4), Decoder(1, 8, 4)
    decoder(encoder(torch.randn(2, 1, 16, 16))).square().mean().backward()
    for net in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_residual_block_with_a_zero_last_layer_is_the_identity_and_changes_no_input() -> None:
    block = ResBlock(6, 4)
    last = block.body[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    x = torch.randn(1, 6, 5, 5)
    kept = x.clone()
    assert torch.equal(block(x), x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("downsample", [0, 1, 3, 6])
def test_autoencoder_refuses_other_factors(downsample: int) -> None:
    with pytest.raises(ValueError, match=f"downsample must be a power of 2 of at least 2, got {downsample}"):
        Encoder(1, 8, 4, downsample)

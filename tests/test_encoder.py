"""The feature encoder: its loss by hand, what its features may depend on, and the spaces that words name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import UserError
from mri_synth.losses.contrastive import feature_std, nt_xent, retrieved, standardise, top1
from mri_synth.metrics.features import EncoderFeatures, hash_of, load_features
from mri_synth.models.checkpoint import FORMAT
from mri_synth.models.encoder import Encoder
from mri_synth.networks.encoder import FeatureNetwork

SPEC = DataSpec(size=32, preparation={"data": "phantom", "title": "phantom"})


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return Encoder(SPEC, width=8, dim=16, projection=8).eval()


@pytest.fixture(scope="module")
def batch():
    return Batch(
        image=torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1, index=torch.arange(6)
    )


def save(encoder, path, target="mri_synth.models.encoder.Encoder"):
    about = {"format": FORMAT, "version": "0", "target": target, "trained_on": ["abc"]}
    torch.save(
        {"mri_synth": about, "hyper_parameters": dict(encoder.hparams), "state_dict": encoder.state_dict()}, path
    )
    return path


# -- the loss --------------------------------------------------------------------------------------------------------


def test_nt_xent_by_hand():
    z_1, z_2 = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    # each view: cosine 1 with its partner, 0 with the two of the other image; lengths do not matter
    tau = 0.5
    by_hand = -math.log(math.exp(1 / tau) / (math.exp(1 / tau) + 2))
    torch.testing.assert_close(nt_xent(z_1, z_2, tau), torch.full((2,), by_hand))


def test_nt_xent_by_hand_where_the_two_directions_differ():
    z_1, z_2 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    e = math.e
    # views a1=(1,0) a2=(1,0) b1=(-1,0) b2=(0,1), tau 1
    a = -math.log(e / (e + 1 / e + 1))  # the same in both directions: a1 against {a2, b1, b2}, a2 against {a1, b1, b2}
    b_1, b_2 = -math.log(1 / (1 + 2 / e)), -math.log(1 / 3)
    torch.testing.assert_close(nt_xent(z_1, z_2, 1.0), torch.tensor([a, (b_1 + b_2) / 2]))


def test_nt_xent_of_equal_embeddings_is_that_of_a_guess():
    z = torch.ones(5, 3)
    torch.testing.assert_close(nt_xent(z, z, 0.1), torch.full((5,), math.log(9)))


def test_nt_xent_of_orthogonal_pairs_vanishes_with_the_temperature():
    assert nt_xent(torch.eye(4), torch.eye(4), 0.01).max() < 1e-6


def test_nt_xent_does_not_depend_on_the_order_of_the_batch():
    generator = torch.Generator().manual_seed(2)
    z_1, z_2 = torch.randn(2, 7, 5, generator=generator)
    order = torch.randperm(7, generator=generator)
    torch.testing.assert_close(nt_xent(z_1, z_2, 0.3)[order], nt_xent(z_1[order], z_2[order], 0.3))


def test_standardise_by_hand_and_of_equal_embeddings():
    z = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]) / math.sqrt(2 + 1e-4)
    torch.testing.assert_close(standardise(z), expected)


# -- what shows that it learns ---------------------------------------------------------------------------------------


def test_top1_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    second = torch.tensor([[2.0, 0.1], [1.0, 0.5], [-1.0, 0.2]])  # the second one is nearest to image 0
    assert retrieved(first, second).tolist() == [0, 0, 2]
    assert retrieved(first, second, part=1).tolist() == [0, 0, 2]
    assert top1(first, second) == pytest.approx(2 / 3)


def test_collapsed_features_are_at_chance_and_without_spread():
    same = torch.ones(8, 4)
    assert top1(same, same) == pytest.approx(1 / 8)
    assert feature_std(same) == 0
    assert feature_std(torch.tensor([[0.0, 1.0], [2.0, 1.0]])) == pytest.approx(0.5)
    assert feature_std(same[:1]) == 0


def test_collapse_raises_one_alarm_with_its_remedy(encoder, monkeypatch):
    trainer = type("Trainer", (), {"state": type("State", (), {"fn": "fit"}), "is_global_zero": True, "global_step": 7})
    monkeypatch.setattr(Encoder, "trainer", trainer)
    monkeypatch.setattr(encoder, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(encoder, "alarms", [])
    for _ in range(2):
        encoder.views_seen.update(torch.ones(4, 16), torch.ones(4, 16), torch.arange(4))
        encoder.on_validation_epoch_end()
    assert len(encoder.alarms) == 1
    assert "feature collapse" in encoder.alarms[0]
    assert "data.batch_size" in encoder.alarms[0]


# -- views -----------------------------------------------------------------------------------------------------------


def test_views_depend_on_seed_step_item_and_number_alone(encoder, batch):
    x = encoder.view(batch, 1, 5)
    assert x.shape == batch.image.shape
    assert x.abs().max() <= 1
    order = torch.tensor([4, 1])
    part = replace(batch, image=batch.image[order], index=batch.index[order])
    torch.testing.assert_close(encoder.view(part, 1, 5), x[order])
    for other in (encoder.view(batch, 2, 5), encoder.view(batch, 1, 6)):
        assert (other - x).abs().flatten(1).amax(1).min() > 0.1


def test_no_change_at_all_leaves_the_image_as_it_is(batch):
    still = {"rotate_deg": 0.0, "translate": 0.0, "scale": 0.0, "gain": 0.0, "gamma": 0.0, "cutout": 0.0}
    encoder = Encoder(SPEC, width=8, dim=16, **still).eval()
    assert torch.equal(encoder.view(batch, 1, 0), batch.image)
    assert encoder.visuals(batch)["nearest to view 2"].equal(batch.image)  # equal views find each other


def test_cutout_blackens_one_rectangle_of_bounded_sides(batch):
    still = {"rotate_deg": 0.0, "translate": 0.0, "scale": 0.0, "gain": 0.0, "gamma": 0.0}
    encoder = Encoder(SPEC, width=8, dim=16, cutout=0.5, **still)
    white = replace(batch, image=torch.ones(6, 1, 32, 32))
    black = encoder.view(white, 2, 0)[:, 0] == -1
    rows, columns = black.any(2), black.any(1)
    assert torch.equal(black, rows[:, :, None] & columns[:, None, :])
    assert max(rows.sum(1).max(), columns.sum(1).max()) <= 17
    assert black.any()


# -- features --------------------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_the_batch(encoder, batch):
    with torch.no_grad():
        features = encoder.features(batch.image)
        alone = torch.cat([encoder.features(image[None]) for image in batch.image])
    assert features.shape == (6, 16)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, alone, atol=1e-4, rtol=1e-4)
    assert torch.pdist(features).min() > 0.01


def test_features_have_mean_0_and_variance_1_over_what_they_have_followed(batch):
    torch.manual_seed(0)
    network = FeatureNetwork(1, 8, 16)
    with torch.no_grad():
        network.follow(network.pooled(batch.image[:3]) + 7)
        network.mean.zero_()
        network.seen.zero_()
        network.follow(network.pooled(batch.image))  # the first batch is taken whole, whatever stood there
        features = network(batch.image)
    torch.testing.assert_close(features.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    expected = (network.variance / (network.variance + 1e-4)).sqrt()
    torch.testing.assert_close(features.std(0), expected, atol=1e-4, rtol=1e-3)
    before = network.mean.clone()
    for _ in range(40):
        network.follow(torch.full((4, 16), 3.0))
    assert (network.mean - 3).abs().max() < (before - 3).abs().max() * 0.2


def test_maps_halve_and_their_gradient_reaches_the_image():
    network = FeatureNetwork(2, 4, 12)
    image = torch.zeros(1, 2, 31, 20, requires_grad=True)
    maps = network.maps(image)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 16, 10), (8, 8, 5), (16, 4, 3), (32, 2, 2), (12, 1, 1)]
    sum(m.sum() for m in maps).backward()
    assert image.grad.abs().sum() > 0


def test_the_network_refuses_sizes_that_make_no_sense():
    with pytest.raises(ValueError, match="dim 2; got 1, 4, 1"):
        FeatureNetwork(1, 4, 1)


# -- the spaces that words name --------------------------------------------------------------------------------------


def test_an_encoder_checkpoint_is_a_feature_space(encoder, batch, tmp_path):
    space = load_features(str(save(encoder, tmp_path / "best.ckpt")))
    assert isinstance(space, EncoderFeatures)
    assert (space.name, space.dim, space.trained_on) == ("encoder trained on phantom", 16, ["abc"])
    assert space.hash == hash_of(encoder.network)
    assert load_features(str(tmp_path / "best.ckpt")).hash == space.hash
    features = space(batch.image)
    assert not features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(features, encoder.features(batch.image))
    assert space(batch.image[:0]).shape == (0, 16)


def test_the_hash_is_of_the_weights_and_not_of_their_layout():
    torch.manual_seed(0)
    network = FeatureNetwork(1, 4, 8)
    before = hash_of(network)
    assert hash_of(network.to(memory_format=torch.channels_last)) == before
    assert len(before) == 16
    with torch.no_grad():
        network.halvings[0].bias[0] = 1e-6
    assert hash_of(network) != before


def test_other_words_files_and_sizes_are_refused_with_the_way_out(encoder, batch, tmp_path):
    with pytest.raises(
        UserError,
        match=r"features=inceptoin: no such file; allowed: inception, .*, pixels, or .*model=encoder",
    ):
        load_features("inceptoin")
    path = save(encoder, tmp_path / "vq.ckpt", "mri_synth.models.vqvae.VQVAE")
    with pytest.raises(UserError, match=r"a checkpoint of model=vqvae, .* python -m mri_synth.run model=encoder"):
        load_features(str(path))
    (tmp_path / "text.ckpt").write_text("no")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_features(str(tmp_path / "text.ckpt"))
    space = load_features(str(save(encoder, tmp_path / "best.ckpt")))
    with pytest.raises(UserError, match=r"\(1, 32, 32\), and these are \(1, 16, 16\); .* data=phantom .* data.size=16"):
        space(batch.image[:, :, ::2, ::2])


def test_two_processes_at_batch_b_equal_one_at_2b(encoder, batch, monkeypatch):
    """What two processes gather is played by hand: both halves of the projections, in their order."""
    monkeypatch.setattr(encoder, "training", True)
    steps = {"global_step": 3}
    monkeypatch.setattr(Encoder, "global_step", property(lambda self: steps["global_step"]))

    def trainer(world):
        monkeypatch.setattr(Encoder, "trainer", type("Trainer", (), {"world_size": world}))

    def gradient(loss):
        encoder.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in encoder.parameters()])

    trainer(1)
    whole = encoder.losses(batch)["loss"]
    expected = gradient(whole)
    halves = [replace(batch, image=batch.image[k::2], index=batch.index[k::2]) for k in (0, 1)]
    local = []
    trainer(2)
    monkeypatch.setattr(encoder, "all_gather", lambda z, sync_grads: local.append(z) or torch.stack([z, z]))
    for half in halves:
        encoder.losses(half)
    monkeypatch.setattr(encoder, "all_gather", lambda z, sync_grads: torch.stack(local))
    gathered = encoder.losses(halves[0])["loss"]
    torch.testing.assert_close(gathered, whole)
    torch.testing.assert_close(gradient(gathered), expected, atol=1e-4, rtol=1e-3)

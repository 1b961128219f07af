"""What text guidance is made of: distances, cutouts, palettes, latents, and pictures from files."""

from __future__ import annotations

import math
from pathlib import Path

import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mri_synth import initial
from mri_synth.cutouts import CutoutSettings, cutouts, placements
from mri_synth.data.batch import DataSpec
from mri_synth.errors import UserError
from mri_synth.losses.guidance import anchor_loss, guidance_loss, similarity, spherical_distance, structure_loss
from mri_synth.models.dcgan import DCGAN
from mri_synth.models.unet_l1 import UNetL1
from mri_synth.models.vae import VAE
from mri_synth.models.vqvae import VQVAE
from mri_synth.palettes import COLOURS, coloured

X, Y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
PLAIN = DataSpec(size=16)
ALONE = CutoutSettings(count=1, whole=1)


def small_vqvae(size: int = 16) -> VQVAE:
    torch.manual_seed(0)
    model = VQVAE(DataSpec(size=size), hidden_channels=8, res_blocks=0, codebook_size=16, codebook_dim=4)
    return model.eval()


# -- losses ------------------------------------------------------------------------------------------------------------


def test_the_distance_is_half_the_squared_angle() -> None:
    ways = torch.tensor([0.0, 0.3, math.pi / 2, 2.0, math.pi])
    v = torch.stack([torch.cos(ways), torch.sin(ways)], 1)
    torch.testing.assert_close(spherical_distance(X, v), ways.square() / 2)
    inner = v[1:4]
    published = (inner - X).norm(dim=1).div(2).arcsin().pow(2).mul(2)  # Crowson 2021
    torch.testing.assert_close(spherical_distance(X, inner), published)


@pytest.mark.parametrize("end", [1.0, -1.0])
def test_its_gradient_is_finite_at_both_ends(end: float) -> None:
    u = (end * X).requires_grad_()
    spherical_distance(u, X).backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_weights_draw_near_and_drive_away() -> None:
    embedded = torch.stack([X, Y])[None]  # two cutouts: each at 0 from one prompt and at a right angle to the other
    prompts, weights = torch.stack([X, Y])[None], torch.tensor([[1.0, -0.5]])
    mean = (math.pi / 2) ** 2 / 2 / 2
    torch.testing.assert_close(guidance_loss(embedded, prompts, weights), torch.tensor([mean - 0.5 * mean]))
    torch.testing.assert_close(similarity(embedded, prompts, weights), torch.tensor([(0.5 - 0.5 * 0.5) / 1.5]))
    more = torch.cat([prompts, torch.zeros(1, 1, 2)], 1)  # fewer prompts than others: filled up with weight 0
    padded = guidance_loss(embedded, more, torch.tensor([[1.0, -0.5, 0.0]]))
    torch.testing.assert_close(padded, torch.tensor([0.5 * mean]))
    torch.testing.assert_close(anchor_loss(torch.full((1, 3), 3.0), torch.ones(1, 3)), torch.tensor([2.0]))


def test_edges_are_kept_whatever_their_contrast() -> None:
    ramp = torch.linspace(-1, 1, 9).expand(1, 1, 9, 9)  # a quarter from pixel to pixel, along x
    zero = torch.zeros(1)
    for same in (ramp, -ramp, ramp + 0.3):
        torch.testing.assert_close(structure_loss(same, ramp), zero, atol=1e-5, rtol=0)
    e, g = 0.1**2, 0.25**2
    across, flat = ramp.transpose(2, 3), torch.zeros(1, 1, 9, 9)
    torch.testing.assert_close(structure_loss(across, ramp), torch.tensor([1 - e**2 / (g + e) ** 2]))
    torch.testing.assert_close(structure_loss(flat, ramp), torch.tensor([1 - e / (g + e)]))
    torch.testing.assert_close(structure_loss(flat, flat), zero)
    torch.testing.assert_close(
        structure_loss(ramp.expand(1, 3, 9, 9), ramp.expand(1, 3, 9, 9)), zero, atol=1e-5, rtol=0
    )


# -- cutouts -----------------------------------------------------------------------------------------------------------


def ramp(size: int) -> Tensor:
    """x in the first channel, y in the second, at the centres of pixels."""
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    return torch.stack([at[None, :].expand(size, size), at[:, None].expand(size, size)])[None]


def test_the_whole_image_is_the_image() -> None:
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    made = cutouts(image, 16, ALONE, 0, 3, torch.arange(2))
    assert made.shape == (2, 1, 1, 16, 16)
    torch.testing.assert_close(made[:, 0], image, atol=1e-5, rtol=0)
    half = cutouts(image, 8, ALONE, 0, 3, torch.arange(2))  # what is made smaller is averaged, not picked
    torch.testing.assert_close(half[:, 0], torch.nn.functional.avg_pool2d(image, 2), atol=1e-6, rtol=0)


def test_a_cutout_shows_the_place_that_it_is_said_to_show() -> None:
    how = CutoutSettings(count=5, whole=0, scale=(0.3, 0.6), rotate_deg=0)
    u = torch.rand(1, 5, 7)
    theta = placements(u, how)
    h = 0.3 + 0.3 * u[0, :, 0]
    torch.testing.assert_close(theta[0, :, 0, 0], h)
    torch.testing.assert_close(theta[0, :, 0, 2], (1 - h) * (2 * u[0, :, 1] - 1))
    assert (theta[..., 2].abs().squeeze() + h[:, None] <= 1 + 1e-6).all(), "within the image"
    made = cutouts(ramp(64), 8, how, 0, 0, torch.zeros(1, dtype=torch.int64))[0]
    middle, spread = made.mean((2, 3)), made[:, 0, 0, -1] - made[:, 0, 0, 0]
    assert (middle.abs() + spread[:, None] * 8 / 14 <= 1 + 1e-4).all()
    assert ((spread * 8 / 14 >= 0.3 - 0.03) & (spread * 8 / 14 <= 0.6 + 0.03)).all()


def test_turned_mirrored_and_changed() -> None:
    image = ramp(32)
    turned = cutouts(image, 32, CutoutSettings(count=1, whole=1, flip=1.0), 0, 0, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(turned[:, 0], image.flip(3), atol=1e-5, rtol=0)
    theta = placements(torch.ones(1, 1, 7), CutoutSettings(count=1, whole=0, scale=(1, 1), rotate_deg=90))
    torch.testing.assert_close(theta[0, 0], torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]), atol=1e-6, rtol=0)
    flat = torch.zeros(1, 1, 16, 16)
    noisy = cutouts(flat, 16, CutoutSettings(count=32, noise=0.2), 0, 0, torch.zeros(1, dtype=torch.int64))
    levels = noisy.std((2, 3, 4))[0]
    assert 0.15 < levels.max() <= 0.25
    assert levels.min() < 0.05
    gained = cutouts(flat, 16, CutoutSettings(count=32, gain=0.5), 0, 0, torch.zeros(1, dtype=torch.int64))
    values = gained.mean((2, 3, 4))[0]
    assert -0.5 <= values.min() < -0.3
    assert 0.3 < values.max() <= 0.5


def test_every_place_is_seen_and_an_item_is_as_it_is_alone() -> None:
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    how = CutoutSettings(count=6, whole=1, scale=(0.2, 0.5), rotate_deg=20, noise=0.1)
    x = image.clone().requires_grad_()
    made = cutouts(x, 16, how, 7, torch.tensor([0, 5, 9]), torch.tensor([4, 5, 6]))
    made.sum().backward()
    assert x.grad is not None
    assert (x.grad > 0).all()
    alone = cutouts(image[1:2], 16, how, 7, 5, torch.tensor([5]))
    torch.testing.assert_close(made[1:2].detach(), alone, atol=1e-6, rtol=0)
    later = cutouts(image[1:2], 16, how, 7, 6, torch.tensor([5]))
    assert (alone - later).abs().max() > 0.1


# -- palettes ----------------------------------------------------------------------------------------------------------


def test_a_palette_goes_through_its_colours() -> None:
    for name, colours in COLOURS.items():
        points = torch.linspace(-1, 1, len(colours)).view(1, 1, 1, -1)
        made = coloured(points, name)  # type: ignore[arg-type]
        torch.testing.assert_close((made[0, :, 0].T + 1) * 127.5, torch.tensor(colours).float(), atol=1e-3, rtol=0)
    between = coloured(torch.full((1, 1, 1, 1), -0.875).requires_grad_(), "volcano")  # a quarter of the way to the 2nd
    first, second = (torch.tensor(c).float() / 127.5 - 1 for c in COLOURS["volcano"][:2])
    torch.testing.assert_close(between.flatten(), 0.75 * first + 0.25 * second)
    assert between.requires_grad
    grey, rgb = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    assert coloured(grey, "none") is grey
    assert coloured(rgb, "magma") is rgb


# -- latents -----------------------------------------------------------------------------------------------------------


def test_codes_are_requantised_and_their_gradient_goes_straight_through() -> None:
    model = small_vqvae()
    space = model.latent_space().train()  # nothing leaves evaluation mode: the codebook must not follow
    before = model.quantizer.embedding.clone()
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    z = space.encode(image).requires_grad_()
    made = space.decode(z)
    torch.testing.assert_close(made, model.reconstruct(image), atol=1e-6, rtol=0)
    aim = torch.rand_like(made)
    (made * aim).sum().backward()
    z_q = model.quantizer.lookup(model.encode(image)).requires_grad_()
    (model.decoder(z_q).float() * aim).sum().backward()
    assert z.grad is not None
    assert z_q.grad is not None
    torch.testing.assert_close(z.grad, z_q.grad)
    assert z.grad.abs().max() > 0
    assert torch.equal(before, model.quantizer.embedding)
    assert space.multiple == 4
    assert space.allows(24)
    assert not space.allows(18)
    kept = space.keep(torch.full((1, 4, 2, 2), 100.0))
    torch.testing.assert_close(kept[0, :, 0, 0], before.amax(0))


def test_a_start_is_a_seeds_own() -> None:
    space = small_vqvae().latent_space()
    three = space.start(torch.tensor([5, 6, 7]), 24)
    assert three.shape == (3, 4, 6, 6)
    assert torch.equal(three[1:2], space.start(torch.tensor([6]), 24))
    assert not torch.equal(three[0], three[1])
    assert space.decode(three).shape == (3, 1, 24, 24)


def test_vectors_of_gans_and_vaes() -> None:
    seeds = torch.tensor([3, 4])
    gan = DCGAN(PLAIN, latent_dim=4, channels_g=8, channels_d=8).eval()
    vae = VAE(PLAIN, hidden_channels=8, latent_dim=4, downsample=4).eval()
    for model in (gan, vae):
        space = model.latent_space()
        z = space.start(seeds, 16).requires_grad_()
        made = space.decode(z)
        torch.testing.assert_close(made, model.sample(seeds))
        made.square().sum().backward()
        assert z.grad is not None
        assert z.grad.abs().max() > 0
        assert space.allows(16)
        assert not space.allows(32)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    there = vae.latent_space()
    torch.testing.assert_close(there.decode(there.encode(image)), vae.reconstruct(image))
    with pytest.raises(UserError, match="has no encoder, so that no image can be its start"):
        gan.latent_space().encode(image)
    unet = UNetL1(DataSpec(size=32, sources=("T1",), goal="T2"), width=8)
    with pytest.raises(UserError, match="UNetL1 has no latents to optimise images by; give a checkpoint of a method"):
        unet.latent_space()


# -- pictures from files -----------------------------------------------------------------------------------------------


def test_pictures_are_brought_to_size(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "same.png")
    same = initial.load(tmp_path / "same.png", None, 16, 1, PLAIN)
    torch.testing.assert_close(same[0, 0], torch.from_numpy(grey).float() / 127.5 - 1)
    Image.fromarray(np.full((40, 80, 3), (255, 0, 0), np.uint8)).save(tmp_path / "wide.png")
    wide = initial.load(tmp_path / "wide.png", None, 16, 3, PLAIN)
    assert wide.shape == (1, 3, 16, 16)
    assert (wide[0, 0, 4:12] > 1 - 1e-5).all()
    assert (wide[0, :, :4] == -1).all()
    assert (wide[0, :, 12:] == -1).all()
    assert initial.load(tmp_path / "wide.png", None, 16, 1, PLAIN).shape == (1, 1, 16, 16)
    with pytest.raises(UserError, match=r"--slice=3: .*wide\.png is a picture, which has no slices; leave it out"):
        initial.load(tmp_path / "wide.png", 3, 16, 3, PLAIN)
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(UserError, match=r"bad\.png: damaged or not a picture"):
        initial.load(tmp_path / "bad.png", None, 16, 1, PLAIN)
    with pytest.raises(UserError, match=r"no\.png: no such file; give a NIfTI volume or a picture"):
        initial.load(tmp_path / "no.png", None, 16, 1, PLAIN)


def test_a_volume_needs_a_slice(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(100, 20, (20, 24, 6)).astype(np.float32)
    array[..., 2] += 200
    path = layouts.nifti(tmp_path / "brain.nii.gz", array=array)
    with pytest.raises(UserError, match=r"a volume of 6 axial slices, and one is needed: add --slice=K, K from 0 to 5, "
                                        r"such as --slice=3 from its middle"):  # fmt: skip
        initial.load(path, None, 16, 1, PLAIN)
    with pytest.raises(UserError, match=r"--slice=6: .* has 6 axial slices; allowed: 0 to 5"):
        initial.load(path, 6, 16, 1, PLAIN)
    bright, dark = (initial.load(path, k, 16, 1, PLAIN) for k in (2, 3))
    assert bright.shape == (1, 1, 16, 16)
    assert bright[..., 6:10, 6:10].mean() > dark[..., 6:10, 6:10].mean() + 0.5
    sagittal = DataSpec(size=16, preparation={"plane": "sagittal", "fit": "contain", "spacing_mm": None,
                                              "intensity": {"method": "minmax"}})  # fmt: skip
    with pytest.raises(UserError, match="a volume of 20 sagittal slices"):
        initial.load(path, None, 16, 1, sagittal)
    assert initial.load(path, 19, 32, 3, sagittal).shape == (1, 3, 32, 32)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / "four.nii.gz")  # type: ignore[attr-defined, no-untyped-call]
    with pytest.raises(UserError, match=r"four\.nii\.gz"):
        initial.load(tmp_path / "four.nii.gz", 0, 16, 1, PLAIN)

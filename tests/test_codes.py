"""Codes of a first stage: those of its encoder, made once, never of another image; and first stages that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mri_synth.data.codes import codes_of
from mri_synth.data.phantom import Phantom
from mri_synth.errors import ConfigError, UserError
from mri_synth.models.checkpoint import load_model
from mri_synth.run import build, run

DATA = ["logger=csv", "data.subjects=[2,1,1]", "data.size=32", "data.batch_size=4", "trainer.progress=false",
        "trainer.pictures=0", "trainer.max_epochs=1", "samples=0"]  # fmt: skip
VQ = ["model.hidden_channels=16", "model.codebook_size=16", "model.codebook_dim=8", "model.res_blocks=1"]
PIXELS = ["model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16"]


@pytest.fixture(scope="module")
def first(tmp_path_factory, compose):
    folder = tmp_path_factory.mktemp("first")
    run(compose(*DATA, *VQ), folder, [])
    return folder / "best.ckpt"


def test_batches_carry_the_codes_of_their_images(first, tmp_path, compose):
    data, model, _ = build(compose(*DATA, *PIXELS, "data.contrasts=[T1,T2]", f"model.first_stage={first}"), tmp_path)
    view = data.view("train")
    assert len(view) == 40
    batch = view.__getitems__([0, 3, 17, 38])
    assert set(batch.contrast) == {"T1", "T2"}
    with torch.no_grad():
        expected = load_model(first).encode(batch.image)
    assert batch.codes.dtype == torch.int64
    assert torch.equal(batch.codes, expected)
    assert torch.equal(model.codes(batch), expected)


def test_an_augmented_image_does_not_keep_its_old_codes(first, tmp_path, compose):
    from mri_synth.data.augment import augment
    from mri_synth.data.settings import AugmentSettings

    data, model, _ = build(compose(*DATA, *PIXELS, f"model.first_stage={first}"), tmp_path)
    batch = data.view("train").__getitems__([0, 1])
    changed = augment(batch, AugmentSettings(flip=1.0), 0, 0)
    assert changed.codes is None
    assert torch.equal(model.codes(changed), load_model(first).encode(batch.image.flip(-1)))


def test_codes_are_made_once_and_again_when_damaged(tmp_path, caplog):
    data = Phantom(subjects=[1, 1, 0], size=32, cache=str(tmp_path))
    data.prepare_data()
    calls = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return (images[:, 0, ::16, ::16] > 0).long() * 300

    codes = codes_of(data.store, ["T1"], encode, "key")["T1"]
    assert codes.shape == (20, 2, 2)
    assert codes.max() == 300  # more than a byte
    assert sum(calls) == 20
    again = codes_of(data.store, ["T1"], encode, "key")["T1"]
    assert sum(calls) == 20
    np.testing.assert_array_equal(codes, again)
    place = next(tmp_path.glob("codes-*.npy"))
    np.testing.assert_array_equal(np.load(place), again)  # an array as any other, for those who look at it
    whole = place.read_bytes()
    flipped = {at: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 60, 130, len(whole) - 1)}
    for k, damaged in enumerate([b"", whole[:20], whole[:100], whole[:-1], *flipped.values()]):
        caplog.clear()
        place.write_bytes(damaged)
        np.testing.assert_array_equal(codes_of(data.store, ["T1"], encode, "key")["T1"], again)
        assert sum(calls) == 40 + 20 * k
        assert place.read_bytes() == whole
        assert "is damaged and is made again" in caplog.text


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    data = Phantom(subjects=[1, 1, 0], size=32, cache=str(tmp_path))
    data.prepare_data()

    def encode(images: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codes_of(data.store, ["T1"], encode, "key")
    assert not list(tmp_path.glob("codes-*.npy"))


@pytest.mark.parametrize("words, message", [
    ([], "model.first_stage is missing: the checkpoint whose codes are learned; train one with python -m"),
    (["model.first_stage=/absent.ckpt"], "model.first_stage=/absent.ckpt: no such file; train one with python -m"),
])  # fmt: skip
def test_a_missing_first_stage_is_told_before_anything_is_opened(compose, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        run(compose(*DATA, *PIXELS, *words, "task=check"), tmp_path, [])


def test_a_folder_is_answered_with_its_checkpoint(first, compose, tmp_path):
    with pytest.raises(ConfigError, match=rf"a folder; did you mean model.first_stage={first}\?"):
        run(compose(*DATA, *PIXELS, f"model.first_stage={first.parent}"), tmp_path, [])


def test_other_data_than_the_first_stages_are_refused(first, compose, tmp_path):
    words = [*DATA, *PIXELS, f"model.first_stage={first}", "data.size=16"]
    with pytest.raises(UserError, match=r"prepared otherwise: data.size=32 there, 16 here. Give the data words"):
        run(compose(*words), tmp_path, words)
    words = [*DATA, *PIXELS, f"model.first_stage={first}", "data.preset=custom", "data.intensity.method=minmax"]
    with pytest.raises(UserError, match=r"prepared otherwise: data.intensity="):
        run(compose(*words), tmp_path, words)


def test_a_contrast_the_first_stage_has_not_seen_is_said(first, compose, tmp_path, caplog):
    build(compose(*DATA, *PIXELS, f"model.first_stage={first}", "data.contrasts=[T2]"), tmp_path)
    assert "has not seen T2, only T1" in caplog.text


def test_a_checkpoint_without_a_codebook_or_damaged_is_refused(first, compose, tmp_path):
    words = [*DATA, *PIXELS, f"model.first_stage={first}"]
    run(compose(*words), tmp_path / "prior", words)
    with pytest.raises(UserError, match="a PixelCNN, which has no codebook"):
        run(compose(*DATA, *PIXELS, f"model.first_stage={tmp_path / 'prior/best.ckpt'}"), tmp_path / "x", [])
    (tmp_path / "half.ckpt").write_bytes(first.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        run(compose(*DATA, *PIXELS, f"model.first_stage={tmp_path / 'half.ckpt'}"), tmp_path / "y", [])


def test_a_first_stage_that_saw_the_test_data_is_named(first, compose, tmp_path, caplog):
    words = [*DATA, *PIXELS, f"model.first_stage={first}", "data.split.by=subject", "data.split.seed=4",
             "data.split.fractions=[0.4,0.3,0.3]"]  # fmt: skip
    run(compose(*words), tmp_path, words)
    assert "were training files of its first stage" in caplog.text

"""mri_clip: its loss by hand, scores by hand, what may change an embedding, and the guide that it becomes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mri_synth.captions import DRAWS, FACTS, LEFT, RIGHT, SIDE, mirrored
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.errors import UserError
from mri_synth.guides import guide, looked_at
from mri_synth.losses.contrastive import image_text, recall, where_lesion
from mri_synth.metrics.zero_shot import chance, overall, recalls, scores
from mri_synth.models.checkpoint import FORMAT
from mri_synth.models.mri_clip import MRICLIP

SPEC = DataSpec(size=32, contrasts=("T1", "T2"), plane="axial", classes=("none", "lesion"), sites=("Guys",))
SMALL = {"width": 8, "dim": 16, "text_width": 32, "text_layers": 1}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MRICLIP(SPEC, **SMALL).eval()


@pytest.fixture(scope="module")
def batch():
    facts = torch.full((6, len(FACTS)), -1)
    facts[:, 0] = torch.tensor([0, 1, 0, 1, 0, 1])
    facts[:, 4] = torch.tensor([0, 0, 1, 1, 1, 1])
    facts[:, SIDE] = torch.tensor([-1, -1, LEFT, RIGHT, RIGHT, LEFT])
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(6, 1, 32, 32, generator=generator) * 2 - 1
    return Batch(image=image, index=torch.arange(6), facts=facts)


@pytest.fixture
def training(model, monkeypatch):
    """The model at step 3 of a training on one process."""
    monkeypatch.setattr(MRICLIP, "global_step", property(lambda self: 3))
    monkeypatch.setattr(MRICLIP, "trainer", type("Trainer", (), {"world_size": 1}))
    return model.train()


def save(model, path, target="mri_synth.models.mri_clip.MRICLIP"):
    about = {"format": FORMAT, "version": "0", "target": target, "trained_on": []}
    torch.save({"mri_synth": about, "hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, path)
    return path


# -- the loss --------------------------------------------------------------------------------------------------------


def test_with_one_caption_for_each_image_the_loss_is_that_of_clip():
    z_image, z_text = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    unit = [z / z.norm(dim=1, keepdim=True) for z in (z_image, z_text)]
    logits, own = 7.0 * unit[0] @ unit[1].T, torch.arange(5)
    expected = sum(torch.nn.functional.cross_entropy(s, own, reduction="none") for s in (logits, logits.T)) / 2
    torch.testing.assert_close(image_text(z_image, z_text, 7.0, torch.eye(5, dtype=torch.bool)), expected)


def test_image_text_by_hand():
    z_image, z_text = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    by_hand = math.log(1 + math.exp(-2))
    eye = torch.eye(2, dtype=torch.bool)
    torch.testing.assert_close(image_text(z_image, z_text, 2.0, eye), torch.full((2,), by_hand))
    same = torch.ones(4, 3)
    torch.testing.assert_close(
        image_text(same, same, 9.0, torch.eye(4, dtype=torch.bool)), torch.full((4,), math.log(4))
    )


def test_a_caption_that_is_true_of_both_pushes_neither_away():
    z_image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z_text = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    fits = torch.tensor([[True, True], [False, True]])  # caption 1 is true of image 0, too
    loss = image_text(z_image, z_text, 1.0, fits)
    # image 0: nothing else to push; image 1: caption 1 against caption 0. Caption 0: image 0 against 1; caption 1: none
    a = math.log(1 + math.exp(-1))
    torch.testing.assert_close(loss, torch.tensor([a / 2, a / 2]))
    every = image_text(z_image, z_text, 1.0, torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(every, torch.zeros(2))
    every.sum().backward()
    assert torch.equal(z_text.grad, torch.zeros(2, 2))


def test_equal_captions_are_not_pushed_apart(training, batch):
    """Two slices of the same facts: whatever they look like, nothing is to be told apart."""
    same = batch.facts[:1].expand(6, -1)
    assert training.losses(replace(batch, facts=same))["loss"].item() == 0


def test_where_a_lesion_is_by_hand():
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 1, 6] = 1  # in the second of two by two places
    even = torch.zeros(2, 1, 2, 2)
    log_2 = math.log(2)
    torch.testing.assert_close(where_lesion(even, mask, 5.0), torch.tensor([(5 + 3) * log_2 / 4, log_2]))
    sure = torch.full((2, 1, 2, 2), -50.0)
    sure[0, 0, 0, 1] = 50
    torch.testing.assert_close(where_lesion(sure, mask), torch.zeros(2))


def test_masks_tell_where_of_slices_that_have_one_and_are_mirrored_with_them(training, batch):
    mask = torch.zeros(6, 1, 32, 32)
    mask[2:, :, 8:12, 4:8] = 1
    with_masks = replace(batch, mask=mask)
    training.hparams["flip"] = 0.0
    straight = training.losses(with_masks)
    torch.testing.assert_close(straight["loss"], straight["contrast"] + 100 * straight["where"])
    assert "where" not in training.losses(batch)
    training.hparams["flip"] = 1.0
    mirror = replace(batch, image=batch.image.flip(-1), facts=mirrored(batch.facts), mask=mask.flip(-1))
    torch.testing.assert_close(training.losses(mirror)["where"], straight["where"])
    unknown = batch.facts.clone()
    unknown[:, 4] = -1
    assert training.losses(replace(with_masks, facts=unknown))["where"] == 0


def test_two_processes_at_batch_b_equal_one_at_2b(training, batch, monkeypatch):
    """What two processes gather is played by hand: both halves, in their order."""

    def gradient(loss):
        training.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in training.parameters()])

    whole = training.losses(batch)["loss"]
    expected, heard = gradient(whole), training.heard.clone()
    training.heard.zero_()
    halves = [replace(batch, image=batch.image[k::2], index=batch.index[k::2], facts=batch.facts[k::2]) for k in (0, 1)]
    monkeypatch.setattr(MRICLIP, "trainer", type("Trainer", (), {"world_size": 2}))
    local = []
    monkeypatch.setattr(training, "all_gather", lambda z, sync_grads: local.append(z) or torch.stack([z, z]))
    for half in halves:
        training.losses(half)
    pairs = iter(zip(local[:5], local[5:], strict=True))
    monkeypatch.setattr(training, "all_gather", lambda z, sync_grads: torch.stack(next(pairs)))
    gathered = training.losses(halves[0])["loss"]
    torch.testing.assert_close(gathered, whole)
    torch.testing.assert_close(gradient(gathered), expected, atol=1e-5, rtol=1e-3)
    assert torch.equal(training.heard, heard)


def test_a_mirrored_slice_is_called_by_the_other_side(training, batch):
    training.hparams["flip"] = 0.0
    straight = training.losses(batch)["loss"]
    training.hparams["flip"] = 1.0
    mirror = replace(batch, image=batch.image.flip(-1), facts=mirrored(batch.facts))
    torch.testing.assert_close(training.losses(mirror)["loss"], straight)
    assert (training.losses(batch)["loss"] - straight).abs() > 1e-4


# -- scores ----------------------------------------------------------------------------------------------------------


def test_recall_by_hand():
    ranked = torch.tensor([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9], [0.1, 0.9, 0.5]])
    fits = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    torch.testing.assert_close(recall(ranked, fits, 1), torch.tensor([1.0, 0.0, math.nan]), equal_nan=True)
    torch.testing.assert_close(recall(ranked, fits, 2), torch.tensor([1.0, 1.0, math.nan]), equal_nan=True)
    assert recall(ranked, fits, 10)[:2].tolist() == [1, 1]


def test_a_caption_of_the_same_facts_is_a_hit():
    z_image, z_text = torch.eye(3), torch.eye(3)[[1, 0, 2]]  # 0 and 1 find each other's captions
    apart, alike = torch.tensor([[0], [1], [2]]), torch.tensor([[0], [0], [2]])
    assert recalls(z_image, z_text, apart)["recall_1_caption"].tolist() == [0, 0, 1]
    assert recalls(z_image, z_text, alike, part=2)["recall_1_image"].tolist() == [1, 1, 1]


def test_zero_shot_scores_by_hand():
    facts = torch.full((4, len(FACTS)), -1)
    facts[:, 0], facts[:3, SIDE] = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1])
    guesses = {0: torch.tensor([0, 0, 1, 1]), SIDE: torch.tensor([0, 0, 1, 0]), 8: torch.zeros(4, dtype=torch.int64)}
    got = scores(guesses, facts)
    torch.testing.assert_close(got["zero_shot_contrast"], torch.tensor([1.0, 1, 0, 1]))
    torch.testing.assert_close(got["zero_shot_side"], torch.tensor([1.0, 0, 1, math.nan]), equal_nan=True)
    # contrast: (2/3 + 1) / 2, side: (1 + 1/2) / 2; sex is not seen in a slice and does not count
    assert overall(guesses, facts) == pytest.approx((5 / 6 + 3 / 4) / 2)


def test_chance_by_hand():
    facts = torch.full((4, len(FACTS)), -1)
    facts[:, 0] = torch.tensor([0, 0, 0, 1])
    got = chance(facts)
    assert got["baseline/zero_shot_contrast"] == 0.75
    assert "baseline/zero_shot_plane" not in got
    assert got["baseline/recall_1_caption"] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert got["baseline/recall_5_image"] == 1


def test_guesses_are_of_the_nearest_prompts(model, batch):
    with torch.no_grad():
        z = model.ensemble(SIDE, [LEFT, RIGHT])[[0, 0, 1, 1, 0, 1]]
        guesses = model.guesses(z, batch.facts)
    assert sorted(guesses) == [0, 4, SIDE]
    assert guesses[SIDE].tolist() == [LEFT, LEFT, RIGHT, RIGHT, LEFT, RIGHT]


# -- embeddings, words -----------------------------------------------------------------------------------------------


def test_embeddings_do_not_depend_on_the_batch(model, batch):
    texts = ["T2 slice with a lesion on the left", "T1", ""]
    with torch.no_grad():
        z, alone = model.encode_text(texts), torch.cat([model.encode_text([t]) for t in texts])
        x, one = model.encode_image(batch.image), model.encode_image(batch.image[2:3])
    torch.testing.assert_close(z, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(x[2:3], one, atol=1e-5, rtol=0)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    assert x.dtype == torch.float32


def test_the_order_of_words_tells(model):
    with torch.no_grad():
        a, b = model.encode_text(["no lesion left", "left lesion no"])
    assert (a - b).abs().max() > 1e-4


def test_places_beyond_four_by_four_reach_the_embedding(model):
    image = torch.full((1, 1, 32, 32), -1.0)
    image[..., 8:24, 4:10] = 1
    with torch.no_grad():
        assert (model.encode_image(image) - model.encode_image(image.flip(-1))).abs().max() > 1e-3


def test_the_vocabulary_is_in_the_checkpoint(model, tmp_path):
    from mri_synth.models.checkpoint import load_model

    own = MRICLIP(SPEC, vocabulary=["t1", "t2"], **SMALL)
    there = load_model(save(own, tmp_path / "best.ckpt"))
    assert list(there.tokens.numbers) == ["t1", "t2"]
    assert "guys" in model.tokens.numbers
    assert "coronal" not in model.tokens.numbers


def test_words_of_captions_are_heard_in_training_and_no_others(training, batch):
    assert training.unheard("T1 slice") == ["t1", "slice"]
    for step in range(40):
        MRICLIP.global_step = property(lambda self, step=step: step)
        training.losses(batch)
    assert training.unheard("T2 spaceship, lesion on the left from Guys aged 60") == ["spaceship", "from", "guys",
                                                                                       "aged", "60"]  # fmt: skip


def test_data_of_which_there_is_nothing_to_say_are_refused(model, batch):
    class View(list):
        def __getitems__(self, items):
            return replace(batch, facts=batch.facts[:1].expand(len(items), -1))

    class Data:
        title = "these"

        def view(self, split):
            return View(range(10))

    with pytest.raises(UserError, match=r"all captions of these would say the same; give several contrasts"):
        model.prepare(Data())


# -- the guide -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(model, tmp_path):
    for word in ("t1", "t2", "slice", "lesion", "on", "the", "left"):
        model.heard[model.tokens.numbers[word]] = 1
    return guide("mri_clip", str(save(model, tmp_path / "best.ckpt"))), model


def test_a_checkpoint_becomes_a_guide(trained, batch):
    made, model = trained
    assert (made.size, made.dims) == (32, 16)
    assert not made.training
    assert not made.train().model.training
    assert not any(p.requires_grad for p in made.parameters())
    assert sorted(made.words) == ["left", "lesion", "on", "slice", "t1", "t2", "the"]
    with torch.no_grad():
        torch.testing.assert_close(made.encode_image(batch.image), model.encode_image(batch.image))
        torch.testing.assert_close(made.encode_text([" T2 slice "]), model.encode_text(["t2 slice"]))
        colour = made.encode_image(batch.image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(colour, model.encode_image(batch.image))
        larger = torch.nn.functional.interpolate(batch.image, (64, 64), mode="nearest")
        torch.testing.assert_close(made.encode_image(larger).norm(dim=1), torch.ones(6))


def test_gradients_reach_the_image_whatever_its_size_and_channels(trained):
    image = torch.zeros(2, 3, 48, 40, requires_grad=True)
    (trained[0].encode_image(image) @ trained[0].encode_text(["T2"]).T).sum().backward()
    assert image.grad.abs().amax((1, 2, 3)).min() > 0


def test_unknown_words_are_said_and_left_out(trained, caplog):
    made = trained[0]
    z = made.encode_text(["T2 spaceship slice"])
    assert "does not know spaceship, and leaves it out; it knows " in caplog.text
    torch.testing.assert_close(z, made.encode_text(["T2 slice"]))


def test_texts_that_a_guide_cannot_take(trained):
    made = trained[0]
    for texts in ([], [""], ["T2", "  "]):
        with pytest.raises(UserError, match="an empty text says nothing"):
            made.encode_text(texts)
    with pytest.raises(UserError, match=r'"a volcano": model=mri_clip knows none of these words; .* guide=conse'):
        made.encode_text(["a volcano"])
    with pytest.raises(UserError, match=r"knows none of these words"):
        made.encode_text(["on the volcano"])
    with pytest.raises(UserError, match=r'49 words, and model=mri_clip reads 48; it would be cut behind "t2 t2 t2"'):
        made.encode_text([" ".join(["T2"] * 49)])


def test_weights_that_are_none(tmp_path, model):
    with pytest.raises(UserError, match=r"guide=mri_clip needs its weights: the best.ckpt of a run"):
        guide("mri_clip", None)
    with pytest.raises(UserError, match=r"no such checkpoint"):
        guide("mri_clip", str(tmp_path / "none.ckpt"))
    with pytest.raises(UserError, match=r"guide=clop: there is none of this name; allowed: mri_clip, clip, conse"):
        guide("clop", None)
    with pytest.raises(UserError, match=r"guide=conse takes no weights"):
        guide("conse", "x")
    from mri_synth.models.encoder import Encoder

    other = save(Encoder(SPEC, width=8, dim=16, projection=8), tmp_path / "e.ckpt", "mri_synth.models.encoder.Encoder")
    with pytest.raises(UserError, match=r"a checkpoint of model=encoder; give the best.ckpt of a run"):
        guide("mri_clip", str(other))


def test_looked_at_resizes_and_refuses_other_channels():
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(looked_at(image, 8, 1), image.mean(1, keepdim=True))
    assert looked_at(image[:, :1], 16, 3).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8\): \(B, 1, H, W\) or \(B, 3, H, W\)"):
        looked_at(image[:, :2], 8, 1)
    assert DRAWS == 34

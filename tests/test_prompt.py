"""Samples asked for in words: where the words enter, what they may not change, what they decide, and the verb."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mri_synth.captions import DRAWS, FACTS, LESION, PLACE, SIDE, Terms
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.phantom import Phantom
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.judgement import prompts_in_turn
from mri_synth.models.checkpoint import FORMAT, load_model
from mri_synth.models.mri_clip import MRICLIP
from mri_synth.models.prompted import FARTHEST, STREAM, Words, whitening
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.pixelcnn import GatedPixelCNN, unknown
from mri_synth.networks.pixelcnn_sampler import guided, sample_codes, sample_codes_naive
from mri_synth.run import build, run
from mri_synth.sample import RECORD, sample

SPEC = DataSpec(size=32, contrasts=("T1", "T2"), plane="axial", classes=("none", "lesion"), sites=("Guys",))
DATA = ["data.subjects=[4,2,2]", "data.size=32", "data.contrasts=[T1,T2]", "data.batch_size=8", "logger=csv",
        "samples=0", "trainer.progress=false", "trainer.pictures=0", "trainer.max_epochs=1"]  # fmt: skip
CONSTANT = ["model.warmup_steps=0", "model.lr_final=1"]
TEXT = ["model=pixelcnn", "model.channels=8", "model.layers=2", "model.hidden=16", "model.condition=text"]


def network(**changes: Any) -> GatedPixelCNN:
    """A small one that is told vectors of 5 numbers, its weights large enough that all of them count."""
    torch.manual_seed(0)
    made = GatedPixelCNN(7, **{"channels": 8, "layers": 3, "hidden": 16, "vectors": 5, **changes}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def clip(spec: DataSpec = SPEC) -> MRICLIP:
    """One of random weights that has heard all its words."""
    torch.manual_seed(1)
    made = MRICLIP(spec, width=8, dim=16, text_width=32, text_layers=1).eval()
    made.heard[1:] = 1
    return made


def described(n: int) -> Batch:
    """Items of which contrast, lesion and side are known."""
    facts = torch.full((n, len(FACTS)), -1)
    facts[:, 0] = torch.arange(n) % 2
    facts[:, LESION] = torch.arange(n) // 2 % 2
    facts[:, SIDE] = torch.where(facts[:, LESION] > 0, torch.arange(n) % 3, -1)
    return Batch(image=torch.zeros(n, 1, 32, 32), index=torch.arange(n), facts=facts)


def save(model: Any, path: Any) -> Any:
    about = {"format": FORMAT, "version": "0", "trained_on": [],
             "target": f"{type(model).__module__}.{type(model).__name__}"}  # fmt: skip
    torch.save({"mri_synth": about, "hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, path)
    return path


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [None, (5, 5)])
def test_what_is_asked_for_reaches_every_layer_and_nothing_else_changes_what_is_seen(position: Any) -> None:
    made = network(position=position).double()
    embedded: list[Tensor] = []
    made.embedding.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    told = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    biases = made.biases(told, 1)
    assert biases is not None
    for n in range(3):
        (grad,) = torch.autograd.grad(biases[0, n].sum(), told, retain_graph=True)
        assert grad.all()
    logits = made(torch.randint(0, 7, (1, 5, 5)), told)
    for n in range(25):
        i, j = divmod(n, 5)
        by_codes, by_told = torch.autograd.grad(logits[0, :, i, j].sum(), (embedded[0], told), retain_graph=True)
        seen = by_codes[0].abs().sum(-1).flatten() > 0
        assert seen.tolist() == [k < n for k in range(25)]  # all that went before, and no other
        assert by_told.all()


def test_nothing_asked_for_is_the_vector_of_zeros() -> None:
    made, codes = network(position=(4, 5), dropout=0.25), torch.randint(0, 7, (4, 4, 5))
    told = torch.randn(4, 5)
    assert torch.equal(unknown(told), torch.zeros(4, 5))
    assert torch.equal(unknown(torch.tensor([0, 2])), torch.tensor([-1, -1]))
    assert torch.allclose(made(codes), made(codes, unknown(told)), atol=1e-6)
    assert not torch.allclose(made(codes), made(codes, told))
    made.train().nll(codes, told).sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_guidance_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 0.0], [0.0, 1.0], [0.5, 1.0]])  # two told, then the same two untold
    torch.testing.assert_close(guided(logits, 3.0), torch.tensor([[3.0, 4.0], [0.5, -2.0]]))
    assert guided(logits, 1.0) is logits


@pytest.mark.parametrize(
    "changes", [{"position": (6, 5)}, {"layers": 4, "kernel_size": 5}, {"vectors": 0, "conditions": 3}]
)
def test_incremental_sampling_is_the_naive_loop(changes: dict[str, Any]) -> None:
    made = network(**changes)
    torch.manual_seed(1)
    u = torch.rand(6, 30)
    told = torch.randint(-1, 3, (6,)) if made.conditions else torch.randn(6, 5)
    for options in ({}, {"guidance": 2.5}, {"guidance": 0.5, "temperature": 0.7, "top_k": 3}):
        naive = sample_codes_naive(made, u, (6, 5), told, **options)
        assert naive.unique().numel() >= 3
        assert torch.equal(sample_codes(made, u, (6, 5), told, dtype=torch.float64, **options), naive)
        alone = sample_codes(made, u[3:4], (6, 5), told[3:4], dtype=torch.float64, **options)
        assert torch.equal(alone[0], naive[3])  # whatever else is in the batch
    assert not torch.equal(sample_codes(made, u, (6, 5), told), sample_codes(made, u, (6, 5), told, guidance=2.5))


def test_what_the_network_cannot_be_told_is_named() -> None:
    codes = torch.zeros(2, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"conditioned on vectors of 5 numbers, got torch.int64 \(2,\)"):
        network()(codes, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"conditioned on whole numbers, of classes, got torch.float32 \(2, 5\)"):
        network(vectors=0, conditions=2)(codes, torch.randn(2, 5))
    with pytest.raises(ValueError, match="vectors must be at least 0, and 0 beside conditions, got 5 and 2"):
        network(conditions=2)
    with pytest.raises(ValueError, match="guidance=2 needs a condition to guide by"):
        sample_codes(network(), torch.rand(2, 16), (4, 4), guidance=2)


# -- words -----------------------------------------------------------------------------------------------------------


def test_whitened_points_have_no_mean_and_no_spread_of_their_own() -> None:
    torch.manual_seed(0)
    points = torch.randn(4000, 3) @ torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.05]]) + 3
    center, matrix = whitening(points)
    z = (points - center) @ matrix
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T @ z / 4000, torch.eye(3), atol=0.05, rtol=0)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-4, rtol=0)  # turned no further than needed
    center, matrix = whitening(torch.ones(5, 2))
    assert torch.isfinite(matrix).all()


def test_captions_are_an_items_own_and_new_in_every_step() -> None:
    words, batch = Words(clip(), Terms.of(SPEC)), described(12)
    first = words(batch, (7, 3))
    assert first.abs().max() <= FARTHEST
    torch.testing.assert_close(words(batch.part(slice(5, 8)), (7, 3)), first[5:8], atol=1e-5, rtol=0)
    assert not torch.allclose(words(batch, (7, 4)), first)
    assert not torch.allclose(words(batch, (8, 3)), first)
    torch.testing.assert_close(words(batch), words.heard(words.same_captions(batch)), atol=1e-4, rtol=0)


def test_a_guide_is_told_nothing_in_words_that_it_does_not_know() -> None:
    guide = clip()
    guide.heard[guide.tokens.numbers["guys"]] = 0
    batch = described(40)
    assert batch.facts is not None
    batch.facts[:, 1:] = -1
    batch.facts[:, FACTS.index("site")] = 0
    words, numbers = Words(guide, Terms.of(SPEC)), uniform(STREAM, 0, batch.index, DRAWS)
    texts = words.captions(batch, numbers)
    assert not any("Guys" in text or "guys" in text for text in texts)
    assert all(text.strip() for text in texts)
    assert any("Guys" in text for text in Words(clip(), Terms.of(SPEC)).captions(batch, numbers))
    guide.heard[:] = 0
    with pytest.raises(UserError, match=r"model.guide: it has not heard a caption yet; train it longer"):
        _ = Words(guide, Terms.of(SPEC)).known


def test_two_colours_are_learned_from_captions_and_asked_for_in_words() -> None:
    """T1 is dark and T2 is bright; the other words of the captions mean nothing."""
    torch.manual_seed(0)
    words, batch = Words(clip(), Terms.of(SPEC)), described(64)
    assert batch.facts is not None
    batch.facts[:, PLACE] = torch.randint(0, 3, (64,))
    colour = batch.facts[:, 0]
    points = torch.cat(
        [words.guide.encode_text(words.captions(batch, uniform(1, k, batch.index, DRAWS))) for k in range(8)]
    )
    words.center, words.whiten = whitening(points.detach())
    made = GatedPixelCNN(8, channels=16, layers=2, hidden=16, vectors=words.dims, position=(4, 4))
    optimizer = torch.optim.Adam(made.parameters(), 2e-2)
    for step in range(150):
        codes = 4 * colour[:, None, None] + torch.randint(0, 4, (64, 4, 4))
        loss = made.nll(codes, words(batch, (0, step))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for prompt, bright in (("T1 slice", 0.0), ("a bright T2", 1.0), ("T2 slice, lesion on the left", 1.0)):
        drawn = sample_codes(made.eval(), torch.rand(50, 16), (4, 4), words.heard([prompt] * 50), guidance=1.5)
        assert (drawn >= 4).float().mean().item() == pytest.approx(bright, abs=0.06)


# -- runs and the verb -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory: Any) -> Any:
    """A first stage and a guide of the test data, of random weights."""
    folder = tmp_path_factory.mktemp("parts")
    data = Phantom(subjects=[4, 2, 2], size=32, contrasts=["T1", "T2"])
    data.prepare_data()
    data.setup()
    torch.manual_seed(0)
    save(VQVAE(data.spec, hidden_channels=16, codebook_size=16, codebook_dim=8, res_blocks=1), folder / "vqvae.ckpt")
    save(clip(data.spec), folder / "clip.ckpt")
    return folder


@pytest.fixture(scope="module")
def words_of(parts: Any) -> list[str]:
    return [*DATA, *TEXT, f"model.first_stage={parts / 'vqvae.ckpt'}", f"model.guide={parts / 'clip.ckpt'}"]


@pytest.fixture(scope="module")
def ckpt(parts: Any, words_of: list[str], compose: Any, tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("prompted") / "run"
    run(compose(*words_of, *CONSTANT, "trainer.pictures=4", "samples=4", "features=[pixels]", "trainer.judge_every=1",
                "trainer.judge_samples=4", "trainer.judge_features=pixels"), folder, [])  # fmt: skip
    shutil.copytree(folder, folder.with_name("moved"))
    return folder.with_name("moved") / "best.ckpt"


def test_a_run_is_judged_by_captions_of_validation(ckpt: Any, words_of: list[str], compose: Any, tmp_path: Any) -> None:
    lines = (ckpt.parent / "metrics.csv").read_text()
    assert "val/kid" in lines
    assert (ckpt.parent / "pictures/samples.png").exists()
    data, model, _ = build(compose(*words_of), tmp_path)
    prompts = prompts_in_turn(model, data, 30)
    assert prompts is not None
    assert prompts[:7] == prompts_in_turn(model, data, 7)
    assert len(set(prompts)) > 10
    rows = model.eval().visuals(data.view("val").__getitems__([0, 1, 2]))
    assert list(rows) == ["original", "first stage", "sample"]


def test_a_prompt_and_a_seed_give_one_picture(ckpt: Any) -> None:
    model: Any = load_model(ckpt)
    torch.nn.init.normal_(model.network.condition.weight, std=0.5)  # as if it had learned more
    seeds = torch.arange(4)
    one = model.sample(seeds, prompt="T2 slice, lesion on the left", guidance=2.0)
    assert torch.equal(model.sample(seeds, prompt="T2 slice, lesion on the left", guidance=2.0), one)
    alone = model.sample(seeds[2:3], prompt=["T2 slice, lesion on the left"], guidance=2.0)[0]
    torch.testing.assert_close(alone, one[2], atol=1e-5, rtol=0)  # the same codes, decoded in another batch
    assert not torch.equal(model.sample(seeds, prompt="T1"), model.sample(seeds, prompt="T2"))
    each = model.sample(seeds, prompt=["T1", "T2", "T1", "T2"])
    assert torch.equal(each[1], model.sample(seeds, prompt="T2")[1])


def test_the_checkpoint_goes_alone(ckpt: Any, parts: Any, words_of: list[str], compose: Any,
                                                 tmp_path: Any) -> None:  # fmt: skip
    content = torch.load(ckpt, weights_only=True)
    content["hyper_parameters"]["guide"]["path"] = content["hyper_parameters"]["first_stage"]["path"] = "/nowhere"
    torch.save(content, tmp_path / "alone.ckpt")
    model, there = load_model(tmp_path / "alone.ckpt"), load_model(parts / "clip.ckpt")
    state = model.state_dict()
    assert all(torch.equal(value, state[f"words.guide.{name}"]) for name, value in there.state_dict().items())
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith("words."))
    assert state["words.whiten"].abs().max() > 10  # measured, and kept
    other = clip(there.spec)
    torch.nn.init.normal_(other.text.head.weight)  # type: ignore[arg-type]
    save(other, tmp_path / "other.ckpt")
    with pytest.raises(
        UserError, match=r"model.guide=.*other.ckpt: not the guide that the checkpoint was trained with"
    ):
        run(
            compose(*words_of, f"model.guide={tmp_path / 'other.ckpt'}", "task=test", f"ckpt={ckpt}"),
            tmp_path / "t",
            [],
        )


def test_a_run_that_goes_on_says_what_it_would_have_said(
    ckpt: Any, words_of: list[str], compose: Any, tmp_path: Any
) -> None:
    resumed = tmp_path / "run"
    shutil.copytree(ckpt.parent, resumed)
    words = [f"resume={resumed}", "trainer.max_epochs=2", "trainer.judge_every=null", "samples=0"]
    run(compose(*words), resumed, words)
    run(compose(*words_of, *CONSTANT, "trainer.max_epochs=2"), tmp_path / "whole", [])
    whole = load_model(tmp_path / "whole/last.ckpt").state_dict()
    assert all(
        torch.equal(value, whole[name]) for name, value in load_model(resumed / "last.ckpt").state_dict().items()
    )


def test_the_verb_says_what_was_asked_for(ckpt: Any, tmp_path: Any, caplog: Any) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"prompt": "T2 slice with a spaceship", "guidance": 1.5}
    sample(ckpt, 2, out, options=options, batch_size=1)
    assert caplog.text.count("does not know spaceship") == 1
    assert json.loads((out / RECORD).read_text())["options"] == options
    with Image.open(out / "sample_000000.png") as image:
        assert '"T2 slice with a spaceship"' in image.text["Description"]  # type: ignore[attr-defined]
    before = (out / "sample_000001.png").read_bytes()
    sample(ckpt, 3, out, options=options)
    assert (out / "sample_000001.png").read_bytes() == before
    with pytest.raises(UserError, match="holds samples of other settings"):
        sample(ckpt, 3, out, options={"prompt": "T1"})


@pytest.mark.parametrize("options, label, message", [
    ({"prompt": "spaceship"}, None, r'"spaceship": model=mri_clip knows none of these words; it knows .*t2'),
    ({"prompt": " "}, None, "an empty text says nothing"),
    ({"prompt": "T1"}, "T1", "--label=T1 --prompt='T1': a model knows the one or the other; give one"),
    ({}, "T1", "--label=T1: PixelCNN was trained without labels"),
])  # fmt: skip
def test_what_cannot_be_asked_for_is_said(ckpt: Any, tmp_path: Any, options: Any, label: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(ckpt, 1, tmp_path / "x", options=options, label=label)
    assert not (tmp_path / "x").exists()


def test_models_without_words_say_so(ckpt: Any) -> None:
    model: Any = load_model(ckpt)
    with pytest.raises(UserError, match=r"--guidance=2 goes from any sample .* and nothing is asked for; leave it out"):
        model.sample(torch.arange(1), guidance=2)
    model.words, model.hparams["condition"] = None, "contrast"
    with pytest.raises(
        UserError, match=r"trained with model.condition=contrast and knows no words; give --label, one of"
    ):
        model.prompted(["T1"])
    with pytest.raises(UserError, match="VQVAE takes no prompts"):
        VQVAE(SPEC).prompted(["T1"])


@pytest.mark.parametrize("changes, message", [
    (["model.guide=null"], r"model.guide is missing: the checkpoint that knows what words mean; train one"),
    (["model.guide=/nowhere.ckpt"], r"model.guide=/nowhere.ckpt: no such file; train one with"),
    (["model.condition=label"], "model.guide is of model.condition=text alone, which is label here"),
    (["model.guidance=2", "model.label_dropout=0"], r"model.guidance=2: .*label_dropout above 0; or give 1"),
    (["data.augment.flip=0.5"], "data.augment.flip=0.5 would put the left side on the right"),
])  # fmt: skip
def test_what_cannot_be_trained_is_said_before(words_of: list[str], compose: Any, tmp_path: Any, changes: list[str],
                                               message: str) -> None:  # fmt: skip
    with pytest.raises(UserError, match=message):
        run(compose(*words_of, *changes), tmp_path / "x", [])


def test_a_guide_that_is_none_is_refused(parts: Any, words_of: list[str], compose: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"model.guide=.*vqvae.ckpt: a VQVAE, which knows no words; train one with"):
        run(compose(*words_of, f"model.guide={parts / 'vqvae.ckpt'}"), tmp_path / "a", [])
    coronal = load_model(parts / "clip.ckpt").spec
    coronal.preparation["plane"] = "coronal"
    save(clip(coronal), tmp_path / "coronal.ckpt")
    with pytest.raises(UserError, match=r"coronal.ckpt: trained on .* otherwise: data.plane=coronal there, axial here"):
        run(compose(*words_of, f"model.guide={tmp_path / 'coronal.ckpt'}"), tmp_path / "b", [])

"""Checkpoints of taming-transformers: their exact parameters, each piece by what is known of it, and refusals."""

from __future__ import annotations

import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional

from mri_synth import taming
from mri_synth.errors import UserError
from mri_synth.networks import taming as parts

F16 = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "resolution": 256,
       "in_channels": 3, "out_ch": 3, "z_channels": 256, "double_z": False, "dropout": 0.0}  # fmt: skip
"""The ddconfig of the ImageNet models, 1,024 and 16,384 codes, and of WikiArt's."""
SMALL = F16 | {"ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 16,
               "z_channels": 8}  # fmt: skip


def block(prefix: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    keys: dict[str, tuple[int, ...]] = {
        "norm1.weight": (before,), "norm1.bias": (before,),
        "conv1.weight": (after, before, 3, 3), "conv1.bias": (after,),
        "norm2.weight": (after,), "norm2.bias": (after,),
        "conv2.weight": (after, after, 3, 3), "conv2.bias": (after,),
    }  # fmt: skip
    if before != after:
        keys |= {"nin_shortcut.weight": (after, before, 1, 1), "nin_shortcut.bias": (after,)}
    return {f"{prefix}.{k}": v for k, v in keys.items()}


def attention(prefix: str, c: int) -> dict[str, tuple[int, ...]]:
    keys: dict[str, tuple[int, ...]] = {"norm.weight": (c,), "norm.bias": (c,)}
    for part in ("q", "k", "v", "proj_out"):
        keys |= {f"{part}.weight": (c, c, 1, 1), f"{part}.bias": (c,)}
    return {f"{prefix}.{k}": v for k, v in keys.items()}


def conv(prefix: str, before: int, after: int, kernel: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (after, before, kernel, kernel), f"{prefix}.bias": (after,)}


def norm(prefix: str, c: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.weight": (c,), f"{prefix}.bias": (c,)}


def middle(prefix: str, c: int) -> dict[str, tuple[int, ...]]:
    return {**block(f"{prefix}.block_1", c, c), **attention(f"{prefix}.attn_1", c), **block(f"{prefix}.block_2", c, c)}


def keys(d: dict[str, Any], embed: int, n: int) -> dict[str, tuple[int, ...]]:
    """Parameters of VQModel by name, written after its Encoder and Decoder as published, not after ours."""
    ch, mult, z, last = d["ch"], d["ch_mult"], d["z_channels"], len(d["ch_mult"]) - 1
    found = conv("encoder.conv_in", d["in_channels"], ch)
    c, side = ch, d["resolution"]
    for i, m in enumerate(mult):
        for j in range(d["num_res_blocks"]):
            found |= block(f"encoder.down.{i}.block.{j}", c, ch * m)
            c = ch * m
            if side in d["attn_resolutions"]:
                found |= attention(f"encoder.down.{i}.attn.{j}", c)
        if i < last:
            found |= conv(f"encoder.down.{i}.downsample.conv", c, c)
            side //= 2
    found |= {**middle("encoder.mid", c), **norm("encoder.norm_out", c), **conv("encoder.conv_out", c, z)}
    found |= {**conv("decoder.conv_in", z, c), **middle("decoder.mid", c)}
    for i in reversed(range(last + 1)):
        for j in range(d["num_res_blocks"] + 1):
            found |= block(f"decoder.up.{i}.block.{j}", c, ch * mult[i])
            c = ch * mult[i]
            if side in d["attn_resolutions"]:
                found |= attention(f"decoder.up.{i}.attn.{j}", c)
        if i:
            found |= conv(f"decoder.up.{i}.upsample.conv", c, c)
            side *= 2
    found |= {**norm("decoder.norm_out", c), **conv("decoder.conv_out", c, d["out_ch"])}
    return {**found, "quantize.embedding.weight": (n, embed), **conv("quant_conv", z, embed, 1),
            **conv("post_quant_conv", embed, z, 1)}  # fmt: skip


def drawn(d: dict[str, Any] = SMALL, embed: int = 6, n: int = 20) -> dict[str, Tensor]:
    """Random weights under exactly these names, and those of the losses that a published file has, too."""
    torch.manual_seed(0)
    state = {k: torch.randn(s) * (0.5 / max(1, sum(s[1:])) ** 0.5) + k.endswith(("norm1.weight", "norm2.weight"))
             for k, s in keys(d, embed, n).items()}  # fmt: skip
    state["quantize.embedding.weight"] = torch.randn(n, embed)
    return {**state, "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(4, 3, 3, 3),
            "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
            "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}  # fmt: skip


def save(folder: Path, state: Any, kind: str = "VQModel", d: dict[str, Any] = SMALL, embed: int = 6, n: int = 20,
         **more: Any) -> tuple[Path, Path]:  # fmt: skip
    """A checkpoint as Lightning 1.0 wrote it, and its yaml."""
    torch.save({"epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.0.8", "state_dict": state, **more},
               folder / "last.ckpt")  # fmt: skip
    model: Any = {"base_learning_rate": 4.5e-6, "target": f"taming.models.vqgan.{kind}",
                  "params": {"embed_dim": embed, "n_embed": n, "ddconfig": d,
                             "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
                                            "params": {"disc_start": 0}}}}  # fmt: skip
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder / "last.ckpt", folder / "model.yaml"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> taming.Taming:
    return taming.load(*save(tmp_path_factory.mktemp("taming"), drawn()))


# -- names and numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [1024, 16384])
def test_parameters_of_the_imagenet_model_by_name_and_shape(codes: int) -> None:
    expected = {taming.renamed(k): s for k, s in keys(F16, 256, codes).items()}
    shape = parts.Shape(**{k: tuple(v) if isinstance(v, list) else v for k, v in F16.items() if k not in
                           ("double_z", "dropout")}, embed_dim=256, n_embed=codes)  # fmt: skip
    with torch.device("meta"):
        network = parts.VQGAN(shape)
    assert {k: tuple(p.shape) for k, p in network.state_dict().items()} == expected
    assert shape.downsample == 16
    assert [k for k in expected if ".attn." in k and k.endswith("q.weight")] == [
        "encoder.down.4.attn.0.q.weight", "encoder.down.4.attn.1.q.weight", "decoder.up.4.attn.0.q.weight",
        "decoder.up.4.attn.1.q.weight", "decoder.up.4.attn.2.q.weight"]  # fmt: skip
    z = torch.zeros(1, 256, 16, 16, device="meta")
    assert network.decode(z).shape == (1, 3, 256, 256)
    assert network.encode(torch.zeros(1, 3, 256, 384, device="meta")).shape == (1, 256, 16, 24)


def test_what_stands_in_a_file_comes_where_it_belongs(generator: taming.Taming) -> None:
    state = drawn()
    own = generator.network.state_dict()
    assert set(own) == {taming.renamed(k) for k in state if not k.startswith("loss.")}
    for key, value in state.items():
        if not key.startswith("loss."):
            assert torch.equal(own[taming.renamed(key)], value), key
    assert (generator.channels, generator.size, generator.multiple) == (3, 16, 4)
    assert not any(p.requires_grad for p in generator.parameters())
    assert not generator.train().training


# -- each piece ----------------------------------------------------------------------------------------------------


def test_halving_reads_the_pixels_at_and_after_each_and_zeros_beyond_right_and_below() -> None:
    layer = parts.Downsample(1)
    image = torch.arange(1.0, 17).view(1, 1, 4, 4)
    for (dy, dx), expected in {(0, 0): [1, 3, 9, 11], (1, 1): [6, 8, 14, 16], (2, 2): [11, 0, 0, 0],
                               (0, 2): [3, 0, 11, 0]}.items():  # fmt: skip
        layer.conv.weight.data.zero_()[0, 0, dy, dx] = 1
        layer.conv.bias.data.zero_()  # type: ignore[union-attr]
        assert layer(image).flatten().tolist() == expected


def test_doubling_repeats_pixels_before_its_convolution() -> None:
    layer = parts.Upsample(1)
    layer.conv.weight.data.zero_()[0, 0, 1, 0] = 1  # the pixel at the left
    layer.conv.bias.data.zero_()  # type: ignore[union-attr]
    out = layer(torch.tensor([[[[1.0, 2.0]]]]))
    assert out[0, 0].tolist() == [[0, 1, 1, 2], [0, 1, 1, 2]]


def test_a_block_adds_to_its_input_or_to_the_shortcut() -> None:
    x = torch.randn(2, 32, 4, 4)
    same, wider = parts.ResBlock(32, 32), parts.ResBlock(32, 64)
    for part in (same, wider):
        part.conv2.weight.data.zero_()
        part.conv2.bias.data.fill_(0.25)  # type: ignore[union-attr]
    assert same.nin_shortcut is None
    torch.testing.assert_close(same(x), x + 0.25)
    assert wider.nin_shortcut is not None
    torch.testing.assert_close(
        wider(x), functional.conv2d(x, wider.nin_shortcut.weight, wider.nin_shortcut.bias) + 0.25
    )
    # what conv2 sees where conv1 gives its bias b alone, of equal size in each group: norm2 makes 0 of it, swish 0
    same.conv1.weight.data.zero_()
    same.conv1.bias.data.fill_(3.0)  # type: ignore[union-attr]
    same.conv2.weight.data.fill_(7.0)
    torch.testing.assert_close(same(x), x + 0.25)


def test_attention_without_preference_adds_the_mean() -> None:
    x = torch.randn(2, 32, 3, 5)
    layer = parts.Attention(32)
    layer.q.weight.data.zero_()
    layer.q.bias.data.zero_()  # type: ignore[union-attr]
    for part in (layer.v, layer.proj_out):  # the identity
        part.weight.data.copy_(torch.eye(32)[:, :, None, None])
        part.bias.data.zero_()  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), x + layer.norm(x).mean((2, 3), keepdim=True))


def test_attention_is_scaled_by_the_root_of_the_channels() -> None:
    """Two positions: the weight of the first is s(<q, k_1 - k_2> / sqrt(c))."""
    layer = parts.Attention(32)
    layer.norm = torch.nn.Identity()  # type: ignore[assignment]
    for part in (layer.q, layer.k, layer.v, layer.proj_out):
        part.weight.data.copy_(torch.eye(32)[:, :, None, None])
        part.bias.data.zero_()  # type: ignore[union-attr]
    x = torch.randn(1, 32, 1, 2)
    a, b = x[0, :, 0, 0], x[0, :, 0, 1]
    share = torch.sigmoid(a @ (a - b) / 32**0.5)
    torch.testing.assert_close(layer(x)[0, :, 0, 0], a + share * a + (1 - share) * b)


def test_the_nearest_code_is_found_and_its_gradient_goes_straight_through(generator: taming.Taming) -> None:
    network = generator.network
    z = torch.randn(2, 6, 4, 4, requires_grad=True)
    by_hand = (z[:, None] - network.codebook[None, :, :, None, None]).square().sum(2).argmin(1)
    assert torch.equal(network.nearest(z), by_hand)
    z_q = network.quantize(z)
    torch.testing.assert_close(z_q, network.codebook[by_hand].permute(0, 3, 1, 2))
    weight = torch.randn_like(z)
    (z_q * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    codes = torch.arange(16).view(1, 4, 4)
    assert torch.equal(network.nearest(network.lookup(codes)), codes)


def reference(state: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction by the names in the file alone."""

    def c(name: str, x: Tensor, **how: Any) -> Tensor:
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    def n(name: str, x: Tensor) -> Tensor:
        return functional.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def res(name: str, x: Tensor) -> Tensor:
        h = n(f"{name}.norm1", x)
        h = c(f"{name}.conv1", h * h.sigmoid(), padding=1)
        h = n(f"{name}.norm2", h)
        h = c(f"{name}.conv2", h * h.sigmoid(), padding=1)
        return (c(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in state else x) + h

    def attn(name: str, x: Tensor) -> Tensor:
        h = n(f"{name}.norm", x)
        q, k, v = (c(f"{name}.{part}", h).flatten(2) for part in "qkv")
        w = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(2)
        return x + c(f"{name}.proj_out", (v @ w.transpose(1, 2)).view_as(x))

    def mid(name: str, x: Tensor) -> Tensor:
        return res(f"{name}.block_2", attn(f"{name}.attn_1", res(f"{name}.block_1", x)))

    def out(name: str, x: Tensor) -> Tensor:
        h = n(f"{name}.norm_out", x)
        return c(f"{name}.conv_out", h * h.sigmoid(), padding=1)

    x = c("encoder.conv_in", image, padding=1)
    for i, down in enumerate([True, True, False]):
        x = res(f"encoder.down.{i}.block.0", x)
        if i == 2:
            x = attn("encoder.down.2.attn.0", x)
        if down:
            x = c(f"encoder.down.{i}.downsample.conv", functional.pad(x, (0, 1, 0, 1)), stride=2)
    z = c("quant_conv", out("encoder", mid("encoder.mid", x)))
    table = state["quantize.embedding.weight"]
    codes = torch.cdist(z.permute(0, 2, 3, 1).flatten(0, 2), table).argmin(1)
    x = c("post_quant_conv", table[codes].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2))
    x = mid("decoder.mid", c("decoder.conv_in", x, padding=1))
    for i in (2, 1, 0):
        for j in range(2):
            x = res(f"decoder.up.{i}.block.{j}", x)
            if i == 2:
                x = attn(f"decoder.up.2.attn.{j}", x)
        if i:
            x = c(f"decoder.up.{i}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    return z, out("decoder", x)


def test_the_whole_is_the_published_order_of_the_pieces(generator: taming.Taming) -> None:
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    z, x_hat = reference(drawn(), image)
    found = generator.encode(image)
    torch.testing.assert_close(found, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(generator.decode(z), x_hat.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    assert float(x_hat.abs().max()) > 1, "clipping is seen"
    assert found.shape == (2, 6, 4, 6)


# -- as a generator ------------------------------------------------------------------------------------------------


def test_starts_are_codes_of_the_seed_alone(generator: taming.Taming) -> None:
    z = generator.start(torch.tensor([3, 8]), 24)
    assert z.shape == (2, 6, 6, 6)
    assert torch.equal(generator.start(torch.tensor([8]), 24)[0], z[1])
    assert torch.equal(generator.network.quantize(z), z)
    assert torch.equal(generator.keep(z), z)
    assert float(generator.keep(z + 100).amax()) <= float(generator.network.codebook.max())
    assert generator.allows(20)
    assert not generator.allows(18)
    assert generator.scale == pytest.approx(float(generator.network.codebook.std()))


def test_gradients_reach_the_latent_and_bring_clipped_pixels_back(generator: taming.Taming) -> None:
    z = generator.start(torch.tensor([0]), 16).requires_grad_()
    generator.decode(z).mean().backward()
    assert z.grad is not None
    assert float(z.grad.abs().max()) > 0
    x = torch.tensor([0.0, 2.0, 2.0, -2.0, -2.0], requires_grad=True)
    clipped: Tensor = taming._Clipped.apply(x)
    assert clipped.tolist() == [0, 1, 1, -1, -1]
    clipped.backward(torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0]))  # a step goes against the gradient
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0, -1]


def test_grey_images_are_taken_as_three_equal_channels(generator: taming.Taming) -> None:
    grey = torch.rand(1, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(generator.encode(grey), generator.encode(grey.repeat(1, 3, 1, 1)))


# -- kinds of files ------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mri_synth.taming"):
        taming.load(*save(tmp_path, drawn()))
    assert "3 tensors loss.* are left out: the discriminator and LPIPS" in caplog.text


def test_lightnings_own_pickles_stay_unread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lightning 1.0 wrote its callbacks under their classes, whose modules are not here."""
    module = types.ModuleType("lightning_of_2020")
    checkpointing = type("ModelCheckpoint", (), {"__module__": module.__name__})
    settings = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.ModelCheckpoint, module.AttributeDict = checkpointing, settings  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        files = save(tmp_path, drawn(), callbacks={checkpointing: {"best_model_score": torch.tensor(0.5)}},
                     hyper_parameters=settings(lr=1.0), made=checkpointing())  # fmt: skip
    finally:
        del sys.modules[module.__name__]
    with caplog.at_level(logging.INFO, "mri_synth.taming"):
        taming.load(*files)
    assert "left out, unread: lightning_of_2020.AttributeDict" in caplog.text


class Evil:
    """Runs a command when it is unpickled by pickle itself."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    files = save(tmp_path, drawn(), callbacks=Evil(f"touch {tmp_path}/ran"))
    with pytest.raises(UserError, match=r"refused: it asks for (posix|os)\.system.*save its tensors alone"):
        taming.load(*files)
    assert not (tmp_path / "ran").exists()


def test_a_call_that_the_file_asks_for_is_not_made(tmp_path: Path) -> None:
    class Quiet(Evil):
        def __reduce__(self) -> Any:
            return exec, (self.command,)

    taming.load(*save(tmp_path, drawn(), callbacks=Quiet(f"open({str(tmp_path / 'ran')!r}, 'w')")))
    assert not (tmp_path / "ran").exists()


def test_moving_averages_of_emavq_are_left_out(tmp_path: Path) -> None:
    state = drawn() | {
        "quantize.embedding.cluster_size": torch.ones(20),
        "quantize.embedding.embed_avg": torch.ones(20, 6),
    }
    assert torch.equal(
        taming.load(*save(tmp_path, state, "EMAVQ")).network.codebook, state["quantize.embedding.weight"]
    )


def test_gumbel_codes_come_from_a_convolution(tmp_path: Path) -> None:
    state = drawn(embed=8)
    table = state.pop("quantize.embedding.weight")
    state |= {"quantize.embed.weight": table, "quantize.proj.weight": torch.randn(20, 8, 1, 1),
              "quantize.proj.bias": torch.zeros(20)}  # fmt: skip
    made = taming.load(*save(tmp_path, state, "GumbelVQ", embed=8))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    z, _ = reference(drawn(embed=8), image)
    codes = torch.einsum("kd,bdhw->bkhw", state["quantize.proj.weight"][:, :, 0, 0], z).argmax(1)
    assert torch.equal(made.network.nearest(made.encode(image)), codes)
    torch.testing.assert_close(made.encode(image), table[codes].permute(0, 3, 1, 2))


def test_the_first_stage_of_a_transformer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"first_stage_model.{k}": v for k, v in drawn().items()} | {
        "transformer.tok_emb.weight": torch.zeros(2, 2)
    }
    ckpt, config = save(tmp_path, state)
    model = yaml.safe_load(config.read_text())["model"]
    whole = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": {"first_stage_config": model}}
    config.write_text(yaml.safe_dump({"model": whole}))
    with caplog.at_level(logging.INFO, "mri_synth.taming"):
        made = taming.load(ckpt, config)
    assert torch.equal(made.network.codebook, drawn()["quantize.embedding.weight"])
    assert "1 tensors transformer.* are left out: not of the first stage" in caplog.text


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("encoder.mid.attn_1.q.weight"), r"not of one model, .*: no encoder.mid.attn_1.q.weight; give the"),
    (lambda s: s.update({"decoder.up.0.attn.0.q.bias": torch.zeros(32)}), r"also decoder.up.0.attn.0.q.bias"),
    (lambda s: s.update({"quantize.embedding.weight": torch.zeros(30, 6)}),
     r"quantize.embedding.weight \(30, 6\) where the yaml makes it \(20, 6\)"),
    (lambda s: [s.pop(k) for k in list(s) if k.startswith("decoder.up")], "and .* more"),
    (lambda s: s.clear(), "holds no state_dict of tensors"),
])  # fmt: skip
def test_a_file_and_a_yaml_that_do_not_belong_together(tmp_path: Path, change: Any, message: str) -> None:
    state = drawn()
    change(state)
    with pytest.raises(UserError, match=message):
        taming.load(*save(tmp_path, state))


@pytest.mark.parametrize("content, message", [
    (None, "no such file"),
    ("model: {target: ldm.models.autoencoder.AutoencoderKL, params: {}}", "read are VQModel, EMAVQ, GumbelVQ"),
    ("model: [1", "not the yaml of such a model"),
    ("data: {}", "not the yaml of such a model"),
    ("model: {target: taming.models.vqgan.VQModel, params: {ddconfig: {double_z: true}}}", "KL autoencoder"),
    ("model: {target: taming.models.vqgan.VQModel, params: {ddconfig: {ch: 8}}}", "KeyError: 'num_res_blocks'"),
])  # fmt: skip
def test_yamls_that_are_not_read(tmp_path: Path, content: str | None, message: str) -> None:
    ckpt, config = save(tmp_path, drawn())
    config.unlink() if content is None else config.write_text(content)
    with pytest.raises(UserError, match=message):
        taming.load(ckpt, config)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\3\4 and then nothing"])
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    ckpt, config = save(tmp_path, drawn())
    ckpt.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged, of torch before 1\.6, or no checkpoint"):
        taming.load(ckpt, config)
    ckpt.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt: no such file; give the \.ckpt and the \.yaml"):
        taming.load(ckpt, config)

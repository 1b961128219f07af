"""The guide conse: weights of classes and word pieces by hand, small networks; the real weights where they are here."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mri_synth import weights
from mri_synth.errors import UserError
from mri_synth.guides import Kind, conse, guide
from mri_synth.networks import efficientnet_lite, minilm
from mri_synth.weights.tensors import read_tensors

REAL = {name: weights.find(name).path for name in (*conse.NEEDED, "efficientnet_lite0")}
"""Looked for before the tests get a cache of their own."""
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "vol", "##can", "##o", ",", "un", "##a", "cafe", "volcano"]


class Sentences(nn.Module):
    """Two texts point along the axes, all others halfway."""

    def forward(self, texts: Any) -> Tensor:
        axes = {"cat": [1.0, 0.0], "dog": [0.0, 1.0]}
        return functional.normalize(torch.tensor([axes.get(t, [1.0, 1.0]) for t in texts]), dim=1)


class Brightness(nn.Module):
    """Logits of cat and dog are how bright the two halves of an image are."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.split(images.shape[3] // 2, 3)
        return 4 * torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)


# -- the formula ---------------------------------------------------------------------------------------------------


def test_weights_of_classes_by_hand() -> None:
    """Cosines 0.9, 0.8, 0.7 at temperature 0.1 are apart by 1 each; the top two of them weigh 1 / (1 + 1/e)."""
    cosines = torch.tensor([[0.8, 0.7, 0.9]])
    share = 1 / (1 + np.exp(-1))
    torch.testing.assert_close(conse.class_weights(cosines, 2, 0.1), torch.tensor([[1 - share, 0, share]]).float())
    torch.testing.assert_close(conse.class_weights(cosines, 7, 0.1), (cosines / 0.1).softmax(1))
    assert conse.class_weights(cosines, 1, 0.1).tolist() == [[0, 0, 1]]


def test_products_are_correlations_and_softmax_changes_nothing() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 50)
    expected = np.corrcoef(a[0].numpy(), b[0].numpy())[0, 1]
    assert float(conse.centred(a)[0] @ conse.centred(b)[0]) == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(conse.centred(a), conse.centred(a.log_softmax(1)))
    torch.testing.assert_close(conse.centred(a.bfloat16()).norm(dim=1), torch.ones(1))


def test_points_of_two_classes_are_known() -> None:
    """Of two classes less their mean there are two points, and one in between that is neither."""
    made = conse.Conse(Brightness(), 8, Sentences(), ["cat", "dog"])
    image = torch.zeros(2, 1, 8, 8)
    image[0, ..., :4], image[1, ..., 4:] = 0.5, 0.5
    half = 0.5**0.5
    torch.testing.assert_close(made.encode_image(image), torch.tensor([[half, -half], [-half, half]]))
    torch.testing.assert_close(made.encode_text(["cat", "dog"]), torch.tensor([[half, -half], [-half, half]]))
    assert made.encode_text(["neither"]).norm() == 0
    assert made.dims == 2
    with pytest.raises(UserError, match="empty text"):
        made.encode_text([""])


def test_following_the_gradient_makes_the_image_what_was_asked_for() -> None:
    """Also where the class had no probability to begin with."""
    made = conse.Conse(Brightness(), 8, Sentences(), ["cat", "dog", "neither"]).frozen()
    made.classifier = nn.Sequential(Brightness(), nn.ConstantPad1d((0, 1), 0.0))
    image = torch.full((1, 1, 16, 16), -0.5)  # not its size
    image[..., :8] = 0.5
    asked = made.encode_text(["dog"])
    for _ in range(60):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad((made.encode_image(image) @ asked.T).sum(), image)
        image = (image + 20 * gradient).detach().clamp(-1, 1)
    assert float(image[..., 8:].mean() - image[..., :8].mean()) > 0.5
    assert float(made.encode_image(image) @ asked[0]) > 0.9


# -- the two networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, kernel, stride", [(260, 3, 2), (65, 3, 2), (33, 5, 1), (130, 5, 2), (224, 3, 2), (7, 1, 1)]
)
def test_same_padding_gives_the_size_over_the_stride_and_starts_at_tensorflows_pixel(
    n: int, kernel: int, stride: int
) -> None:
    layer = efficientnet_lite.Same(1, 1, kernel, stride)
    layer.weight.data.zero_()[0, 0, kernel // 2, kernel // 2] = 1  # picks the pixel below its middle
    line = torch.arange(float(n)).expand(1, 1, n, n)
    out = layer(line)[0, 0, 0]
    size = -(-n // stride)
    assert len(out) == size
    before = max((size - 1) * stride + kernel - n, 0) // 2  # TensorFlow: the odd pixel goes to the end
    assert out.tolist() == [float(k * stride + kernel // 2 - before) for k in range(size)]


def test_sizes_of_the_lite_networks() -> None:
    """4.65 and 6.09 million parameters (tensorflow/tpu, efficientnet/lite: 4.7M and 6.1M)."""
    for kind, blocks, count in (("lite0", 16, 4652008), ("lite2", 21, 6092072)):
        network = efficientnet_lite.EfficientNetLite(kind)  # type: ignore[arg-type]
        assert len(network.blocks) == blocks
        assert sum(p.numel() for p in network.parameters()) == count
        assert not network.train().training
        assert not any(p.requires_grad for p in network.parameters())
    assert efficientnet_lite.rounded(24 * 1.1) == 24
    assert efficientnet_lite.rounded(11.9) == 16  # 8 would be a third less


@pytest.mark.parametrize("text, pieces", [
    ("a VOLCANO", ["a", "volcano"]),
    ("Café,a", ["cafe", ",", "a"]),
    ("volcan", ["vol", "##can"]),
    ("unavolcano", ["[UNK]"]),  # no "##v" there is: the whole word is unknown
    ("unacano", ["un", "##a", "##can", "##o"]),
    ("una", ["un", "##a"]),
    ("a" * 101, ["[UNK]"]),
    ("\ta\u200b ", ["a"]),
])  # fmt: skip
def test_word_pieces_by_hand(text: str, pieces: list[str]) -> None:
    network = minilm.MiniLM(PIECES)
    assert [PIECES[k] for k in network.tokens(text)] == ["[CLS]", *pieces, "[SEP]"]


def test_marks_and_chinese_characters_stand_alone() -> None:
    assert list(minilm.words("T2-w.\u5317\u4eac $5")) == ["t2", "-", "w", ".", "\u5317", "\u4eac", "$", "5"]


def test_a_text_is_embedded_alike_alone_and_beside_longer_ones() -> None:
    torch.manual_seed(0)
    network = minilm.MiniLM(PIECES)
    texts = ["a volcano", "a, a, a, volcano a una"]
    together = network(texts)
    torch.testing.assert_close(network(texts[:1]), together[:1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    with pytest.raises(UserError, match=r'302 word pieces.*at most 256.*cut after "\.\.\.a a a a a a a volcano"'):
        network(["a " * 253 + "volcano " + "a " * 46])


# -- the file format -----------------------------------------------------------------------------------------------


def safetensors(path: Path, header: Any, body: bytes) -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_tensors_are_read_from_a_file_written_by_hand(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"},
              "b": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]},
              "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
              "none": {"dtype": "BF16", "shape": [0, 3], "data_offsets": [16, 16]}}  # fmt: skip
    found = read_tensors(safetensors(tmp_path / "x", header, struct.pack("<ffq", 1.5, -2.0, 7)))
    assert list(found) == ["b", "a", "none"]
    assert found["a"].tolist() == [[1.5], [-2.0]]
    assert found["b"].item() == 7
    assert found["none"].shape == (0, 3)


@pytest.mark.parametrize("header, body, message", [
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4, "offsets 0 to 8 of 4 bytes"),
    ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8, r"8 bytes for the shape \[3\]"),
    ({"a": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, b"\0" * 8, "offsets"),
    ({"a": {"dtype": "PY", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, "PY"),
    (b"{not json", b"", "safetensors format"),
    ([1], b"", "safetensors format"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, header: Any, body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tensors(safetensors(tmp_path / "x", header, body))


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 8 + b"{}"])
def test_what_has_no_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match="no length of a header"):
        read_tensors(tmp_path / "x")


# -- what is missing, and the real weights -------------------------------------------------------------------------


def test_all_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRI_SYNTH_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_installed", lambda record: None)
    with pytest.raises(UserError, match=r"needs 4 files; 4 are not here \(116 MB\)") as found:
        guide("conse", None)
    for name in conse.NEEDED:
        assert f"  mri-synth weights get {name}\n" in str(found.value)
    assert "pip install 'mri-synth[conse]'" in str(found.value)
    kind: Kind = "conse"
    with pytest.raises(UserError, match="takes no weights"):
        guide(kind, "something")


def test_another_networks_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"_fc.weight": torch.zeros(3)}, tmp_path / "x.pth")
    monkeypatch.setattr(efficientnet_lite, "resolve", lambda name, path: path)
    with pytest.raises(UserError, match="not the weights efficientnet_lite0"):
        efficientnet_lite.pretrained("lite0", tmp_path / "x.pth")


@pytest.fixture(scope="module")
def real() -> conse.Conse:
    for name, path in REAL.items():
        if path is None:
            pytest.skip(f"no weights {name}: mri-synth weights get {name}")
    patch = pytest.MonkeyPatch()
    for name, path in REAL.items():
        patch.setenv(f"MRI_SYNTH_{name.upper()}", str(path))
    made = conse.load()
    patch.undo()
    return made


def pattern(side: int) -> Tensor:
    """A fixed colour image in [-1, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    return torch.stack([(9 * x + 4 * y).sin(), (7 * y).cos(), (x > 0.4) * 1.6 - 0.8])[None]


LOGITS = {
    "lite0": [-0.8993, -1.0969, -0.8328, -0.6345, -0.4863, -1.093, 0.7167, -0.6657, 1.337, -0.3919],
    "lite2": [-0.4657, 0.1678, -1.0103, -1.0383, -0.3311, -1.2987, 0.3261, -0.822, 3.2637, 0.0711],
}
"""Of classes 0, 100, ..., 900 for `pattern`, computed with the packages' own code (efficientnet-lite-pytorch 0.1.0)."""


@pytest.mark.parametrize("kind", ["lite0", "lite2"])
def test_logits_are_those_of_the_packages_own_code(real: conse.Conse, kind: efficientnet_lite.Kind) -> None:
    path = REAL[f"efficientnet_{kind}"]
    assert path is not None
    network = efficientnet_lite.pretrained(kind, path)
    image = pattern(network.side)
    logits = network(image)[0]
    torch.testing.assert_close(logits[::100], torch.tensor(LOGITS[kind]), atol=2e-4, rtol=0)
    if importlib.util.find_spec("efficientnet_lite_pytorch"):
        from efficientnet_lite_pytorch import EfficientNet

        peer = EfficientNet.from_pretrained(f"efficientnet-{kind}", weights_path=str(path)).eval()
        torch.testing.assert_close(logits, peer(efficientnet_lite.standardised(image))[0], atol=1e-4, rtol=0)


def test_sentences_are_embedded_as_by_transformers(real: conse.Conse, tmp_path: Path) -> None:
    """The example of the model's page: mean over tokens of BERT's last layer, of unit length."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6)
    bert = transformers.BertModel(config).eval()
    path, vocabulary = REAL["minilm"], REAL["minilm_vocabulary"]
    assert path is not None
    assert vocabulary is not None
    bert.load_state_dict(read_tensors(path), strict=False)
    texts = [
        "This is an example sentence",
        "Each sentence is converted",
        "Żółw & naïve café—北京! u.s.a. 13C-[brain] $3",
    ]
    tokenizer = transformers.BertTokenizer(str(vocabulary), do_lower_case=True)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    for k, text in enumerate(texts):
        assert real.sentences.tokens(text) == inputs["input_ids"][k][inputs["attention_mask"][k] > 0].tolist()  # type: ignore[operator]
    with torch.no_grad():
        states, there = bert(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    expected = functional.normalize((states * there).sum(1) / there.sum(1), dim=1)
    torch.testing.assert_close(real.sentences(texts), expected, atol=1e-5, rtol=0)


def test_words_find_their_classes(real: conse.Conse) -> None:
    assert real.size == 260
    assert real.dims == 1000
    near = real.encode_text(["a volcano", "a space shuttle", "broccoli"]).argmax(1)
    assert [(int(k), real.names[int(k)]) for k in near] == [(980, "volcano"), (812, "space shuttle"), (937, "broccoli")]


def test_gradients_reach_a_grey_image_of_another_size(real: conse.Conse) -> None:
    image = pattern(64).mean(1, keepdim=True).requires_grad_()
    embedded = real.encode_image(image)
    (embedded @ real.encode_text(["a volcano"]).T).sum().backward()
    assert image.grad is not None
    assert float((image.grad != 0).float().mean()) > 0.99
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(1))

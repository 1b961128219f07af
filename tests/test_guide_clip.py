"""The CLIP guide, on a small CLIPModel of the true architecture in the real format: parity, gradients, refusals."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mri_synth.errors import UserError
from mri_synth.guides import guide
from mri_synth.guides.clip import Clip

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed (extra clip)", allow_module_level=True)

MERGES = ["a x", "i a", "ax ia", "axia l</w>", "t 2</w>"]
"""Enough byte pairs for "axial" to be one token."""


def save(folder: Path, size: int = 32) -> Path:
    """A randomly drawn CLIPModel with tokenizer and preprocessing, as `openai/clip-vit-base-patch32` is laid out."""
    import transformers

    folder.mkdir(parents=True)
    # the 256 bytes in the order of GPT-2's table, alone and at a word's end; then the merges; then the two marks
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*symbols, *(f"{s}</w>" for s in symbols), *(m.replace(" ", "") for m in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1,
            "max_position_embeddings": 77}  # fmt: skip
    vision = {"image_size": size, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # its own initialisation hardly tells images from each other
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    shape = {"height": size, "width": size}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    made = guide("clip", str(folder))
    assert isinstance(made, Clip)
    return made


def picture(height: int, width: int) -> Any:
    """A smooth colour picture with an edge, uint8."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(9 * x + 2 * y), np.cos(7 * y), (x > 0.4) * 1.4 - 0.7], -1)
    return ((waves + 1) * 127.5).astype(np.uint8)


def test_it_is_saved_in_the_real_format(folder: Path) -> None:
    names = {f.name for f in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.json", "merges.txt",
            "preprocessor_config.json"} <= names  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"


@pytest.mark.parametrize("shape, tolerance", [((32, 32), 1e-5), ((80, 80), 5e-3), ((64, 96), 5e-3), ((20, 31), 5e-3)])
def test_images_are_embedded_as_by_transformers(
    clip: Clip, folder: Path, shape: tuple[int, int], tolerance: float
) -> None:
    """Equal to rounding where nothing is resized; else theirs are rounded to 256 levels in between, ours are not."""
    import transformers

    pixels = picture(*shape)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    ours = clip.prepared(image)
    assert ours.shape == theirs.shape == (1, 3, 32, 32)
    level = 1 / 255 / min(clip.std.flatten().tolist())
    assert float((ours - theirs).abs().max()) < (1e-5 if tolerance < 1e-4 else 1.01 * level)
    with torch.no_grad():
        expected = clip.model.get_image_features(pixel_values=theirs).pooler_output
        embedded = clip.encode_image(image)
    torch.testing.assert_close(embedded, functional.normalize(expected, dim=1), atol=tolerance, rtol=0)
    assert embedded.dtype == torch.float32
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(1))


def test_texts_are_embedded_as_by_transformers_whatever_is_beside_them(clip: Clip) -> None:
    texts = ["axial T2 slice", " a volcano at night, seen from the sea "]
    inputs = clip.tokenizer([t.strip() for t in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = functional.normalize(clip.model.get_text_features(**inputs).pooler_output, dim=1)
    together = clip.encode_text(texts)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(clip.encode_text(texts[:1]), together[:1], atol=1e-5, rtol=0)
    assert together.shape == (2, clip.dims)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert not together.requires_grad


def test_tokens_are_known_by_hand(clip: Clip) -> None:
    """Start, "axial" merged to one, "t" and "2" apart (letters and digits never merge), end."""
    ids = clip.tokenizer(["Axial T2"])["input_ids"][0]
    assert clip.tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>",
        "axial</w>",
        "t</w>",
        "2</w>",
        "<|endoftext|>",
    ]


def test_gradients_reach_every_pixel_and_no_weight(clip: Clip) -> None:
    image = (torch.from_numpy(picture(48, 48)).permute(2, 0, 1)[None] / 127.5 - 1).requires_grad_()
    target = clip.encode_text(["a volcano"])
    (clip.encode_image(image) * target).sum().backward()
    assert image.grad is not None
    assert image.grad.shape == image.shape
    assert float((image.grad != 0).float().mean()) > 0.9  # what resizing overshoots is clipped, as in CLIP's own
    assert [p for p in clip.parameters() if p.requires_grad or p.grad is not None] == []


def test_grey_is_three_equal_channels(clip: Clip) -> None:
    grey = torch.rand(2, 1, 40, 40) * 2 - 1
    torch.testing.assert_close(clip.encode_image(grey), clip.encode_image(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match=r"\(2, 2, 40, 40\)"):
        clip.encode_image(torch.zeros(2, 2, 40, 40))


def test_a_text_may_have_77_tokens_and_no_more(clip: Clip) -> None:
    assert clip.longest == 77
    clip.encode_text(["axial " * 75])
    with pytest.raises(UserError, match=r"80 tokens.* takes 77.*cut after \"\.\.\..*axial axial\""):
        clip.encode_text(["a volcano", "axial " * 78])
    with pytest.raises(UserError, match="empty text"):
        clip.encode_text(["  "])


def test_a_name_that_is_nowhere_is_refused_with_the_places(tmp_path: Path) -> None:
    """In a process of its own: the hub reads its environment when it is imported."""
    script = "from mri_synth.guides import guide; guide('clip', 'openai/clip-vit-base-patch32')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env,
                          cwd=Path(__file__).parents[1])  # fmt: skip
    said = done.stderr.partition("UserError: ")[2].splitlines()
    assert said[0] == "the CLIP model 'openai/clip-vit-base-patch32' is not here. Looked at:"
    assert said[1].endswith("openai/clip-vit-base-patch32: no such folder")
    assert said[2].startswith(f"  {tmp_path}/hub (the hub's cache): no openai/clip-vit-base-patch32")
    assert said[3] == "  huggingface.co: not asked, HF_HUB_OFFLINE is set"
    assert "hf download openai/clip-vit-base-patch32" in said[4]


@pytest.mark.parametrize("spoil, message", [
    (lambda f: shutil.rmtree(f), "no such folder; give a hub name"),
    (lambda f: (f / "model.safetensors").unlink(), r"has no model.safetensors or .*; give a hub name"),
    (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "vocab.json")], "has no tokenizer.json or vocab.json"),
    (lambda f: change(f / "config.json", model_type="siglip"), "of type 'siglip', which is not CLIP"),
    (lambda f: change(f / "config.json", projection_dim=8), "damaged, or no CLIPModel"),
    (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 64), "damaged, or no CLIPModel"),
    (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    (lambda f: drop(f / "model.safetensors", "text_projection.weight"), "1 of its parameters .*text_proj"),
])  # fmt: skip
def test_folders_that_will_not_do(folder: Path, tmp_path: Path, spoil: Any, message: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UserError, match=message):
        guide("clip", str(copy))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop(path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    values = load_file(path)
    del values[name]
    save_file(values, path, metadata={"format": "pt"})


def test_without_transformers_it_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else found(name, *rest)
    )
    with pytest.raises(UserError, match=r"pip install 'mri-synth\[clip\]'"):
        guide("clip", "openai/clip-vit-base-patch32")


def test_importing_the_guide_imports_no_transformers() -> None:
    script = "import sys, mri_synth.guides.clip; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False).returncode == 0

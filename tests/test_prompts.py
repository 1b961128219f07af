"""Prompts as they are typed: texts, weights, images, stages, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mri_synth.errors import UserError
from mri_synth.prompts import Prompt, Stage, parse, schedule


def test_texts_with_weights() -> None:
    assert parse("MRI spaceship:1 | blurry:-0.5") == (Prompt("MRI spaceship", 1.0), Prompt("blurry", -0.5))
    assert parse("  axial T2 slice ") == (Prompt("axial T2 slice", 1.0),)
    assert parse("a ratio of 3:4:2e-1") == (Prompt("a ratio of 3:4", 0.2),)
    assert parse("a:0 | b") == (Prompt("b", 1.0),), "what has no weight is left out"


def test_images_with_slices(tmp_path: Path) -> None:
    picture, volume = tmp_path / "aim.PNG", tmp_path / "brain.nii.gz"
    for path in (picture, volume):
        path.touch()
    assert parse(f"{picture}:0.5 | volcano") == (Prompt(str(picture), 0.5, picture), Prompt("volcano"))
    assert parse(f"{volume}@90:-1") == (Prompt(f"{volume}@90", -1.0, volume, 90),)
    assert parse(f"{volume}") == (Prompt(str(volume), 1.0, volume),)
    with pytest.raises(UserError, match=r"nowhere\.png is named as an image is, and there is no such file"):
        parse("nowhere.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty; give words"),
        ("  ", "the prompt is empty; give words"),
        ("a:x", 'prompt "a:x": the weight "x" is no number; give one behind the last colon, such as "a:1", also to a '
                'text that has a colon of its own: "a:x:1"'),
        ("a:", 'the weight "" is no number'),
        ("a:nan", 'the weight "nan" is no number'),
        ("a:inf", 'the weight "inf" is no number'),
        (":1", 'prompt ":1": a part without words'),
        ("a | ", "a part without words"),
        ("a:0 | b:0.0", "all weights are 0, so nothing is asked for"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(text)
    assert message in str(error.value)


def test_stages() -> None:
    assert schedule("a:2") == (Stage(0, (Prompt("a", 2.0),)),)
    found = schedule("a => 100: b | c:-1 => 150: d", 200)
    assert found == (Stage(0, (Prompt("a"),)), Stage(100, (Prompt("b"), Prompt("c", -1.0))),
                     Stage(150, (Prompt("d"),)))  # fmt: skip
    with pytest.raises(UserError, match=r'behind => stands the step .* here "b"'):
        schedule("a => b")
    with pytest.raises(UserError, match=r'here "x: b"'):
        schedule("a => x: b")
    with pytest.raises(UserError, match=r"step 0 must be more than 0$"):
        schedule("a => 0: b")
    with pytest.raises(UserError, match=r"step 90 must be more than 100$"):
        schedule("a => 100: b => 90: c")
    with pytest.raises(UserError, match=r"step 200 must be more than 0 and less than steps=200$"):
        schedule("a => 200: b", 200)
    with pytest.raises(UserError, match="the prompt is empty"):
        schedule("a => 10:")

"""Prompts as they are typed: texts and images with weights, and what is asked for later."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mri_synth.data.volume import PICTURE_SUFFIXES, VOLUME_SUFFIXES
from mri_synth.errors import UserError

EXAMPLE = '"MRI spaceship:1 | blurry:-0.5"'


@dataclass(frozen=True)
class Prompt:
    """One thing that an image is drawn to, or away from.

    Attributes:
        text: words; the file's path of an image prompt.
        weight: above 0 to, below 0 away from it; not 0.
        image: the file; None for words.
        slice: of a volume, from 0 on; None where none was given.
    """

    text: str
    weight: float = 1.0
    image: Path | None = None
    slice: int | None = None


@dataclass(frozen=True)
class Stage:
    """What is asked for from a step on.

    Attributes:
        start: the step, from 0 on.
        prompts: together; at least one.
    """

    start: int
    prompts: tuple[Prompt, ...]


def parse(text: str) -> tuple[Prompt, ...]:
    """The prompts of `"A:WEIGHT | B:WEIGHT"`; without a weight it is 1.

    The weight stands behind the last colon, so a text that has one of its own needs a weight: `"ratio 3:4:1"`. A part
    that ends as a picture's or a volume's name does is an image: `"brain.png:0.5"`, `"brain.nii.gz@90"`, its slice 90.

    Args:
        text: as typed.

    Returns:
        At least one.

    Raises:
        UserError: an empty part, a weight that is no number, or only weights of 0.
    """
    if not text.strip():
        raise UserError(f"the prompt is empty; give words, such as {EXAMPLE}")
    found = [_part(part, text) for part in text.split("|")]
    kept = tuple(p for p in found if p.weight)
    if not kept:
        raise UserError(f'prompt "{text}": all weights are 0, so nothing is asked for; give one that is not, such as '
                        f"{EXAMPLE}")  # fmt: skip
    return kept


def schedule(text: str, steps: int | None = None) -> tuple[Stage, ...]:
    """The stages of `"A => 100: B | C:-1 => 150: D"`: A from the start, from step 100 on B without C, then D.

    Args:
        text: as typed; the parts between arrows as in `parse`.
        steps: of the run; None where not known.

    Returns:
        At least one, the first from step 0 on, in ascending order.

    Raises:
        UserError: an arrow without a step behind it, steps that do not ascend or that the run does not have, or a part
            which `parse` refuses.
    """
    first, *later = text.split("=>")
    stages = [Stage(0, parse(first))]
    for part in later:
        number, colon, rest = part.partition(":")
        if not colon or not number.strip().isdecimal():
            raise UserError(f'prompt "{text}": behind => stands the step from which on it holds, such as '
                            f'"a brain => 100: a volcano"; here "{part.strip()}"')  # fmt: skip
        start = int(number)
        if start <= stages[-1].start or (steps is not None and start >= steps):
            last = "" if steps is None else f" and less than steps={steps}"
            raise UserError(f'prompt "{text}": step {start} must be more than {stages[-1].start}{last}')
        stages.append(Stage(start, parse(rest)))
    return tuple(stages)


def _part(part: str, whole: str) -> Prompt:
    said, colon, number = part.rpartition(":")
    if not colon:
        said, weight = part, 1.0
    else:
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UserError(f'prompt "{whole}": the weight "{number.strip()}" is no number; give one behind the last '
                            f'colon, such as "{said.strip() or "a"}:1", also to a text that has a colon of its '
                            f'own: "{part.strip()}:1"')  # fmt: skip
    said = said.strip()
    if not said:
        raise UserError(f'prompt "{whole}": a part without words; give some, such as {EXAMPLE}')
    name, at, number = said.rpartition("@")
    if not (at and number.strip().isdecimal() and name.lower().endswith(VOLUME_SUFFIXES)):
        name, number = said, ""
    if not name.lower().endswith((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)):
        return Prompt(said, weight)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f'prompt "{whole}": {name} is named as an image is, and there is no such file; give its path, '
                        "or words that do not end so")  # fmt: skip
    return Prompt(said, weight, path, int(number) if number else None)

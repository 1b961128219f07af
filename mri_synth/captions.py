"""What is known of a slice, and sentences that say it: facts as whole numbers, and their wordings.

Left and right are the patient's own. In axial and coronal slices the patient's left is at the image's left
(`mri_synth.data.volume.to_slices`); in sagittal slices and in pictures of unknown plane no side is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from mri_synth.data.batch import DataSpec
from mri_synth.data.prepare import FOREGROUND

FACTS = ("contrast", "plane", "place", "class", "lesion", "side", "size", "age", "sex", "site")
"""Columns of `Batch.facts`; -1 is unknown, or does not apply."""
SEEN = ("contrast", "plane", "place", "class", "lesion", "side", "size")
"""Facts that a slice shows; age, sex and site it hints at."""
CONTRAST, PLANE, PLACE, CLASS, LESION, SIDE, SIZE, AGE, SEX, SITE = range(len(FACTS))
PLANES = ("axial", "coronal", "sagittal")
LEFT, RIGHT, BOTH = range(3)
SIZES_MM = (10.0, 20.0)
"""Diameters of a disc of the lesion's area at which small becomes medium, and medium large."""
BOTH_SIDES = 0.1
"""Least share of the lesion's area on the lesser side for a lesion to be on both."""
DRAWS = 4 + 3 * len(FACTS)
"""Uniform numbers that a caption is drawn with."""

_WEIGHT = (3.0, 1.0, 2.0, 3.0, 3.0, 4.0, 2.0, 0.5, 0.5, 0.5)
"""Of each fact, to be the one that a caption of one fact says."""
_HINTED = 0.3
"""How often age, sex and site are said against what a slice shows: one reads them off it badly, if at all."""
_ALONE = 0.35
"""Share of captions that say one fact alone, as a prompt may."""
_NOUNS = ("slice", "image", "MRI", "scan", "brain MRI", "")


@dataclass(frozen=True)
class Terms:
    """Names of what the columns of facts count.

    Attributes:
        contrasts: of the data.
        plane: of all slices; None for pictures.
        classes: of the labels.
        sites: where the data were measured.
    """

    contrasts: tuple[str, ...]
    plane: str | None = None
    classes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: DataSpec) -> Terms:
        """The terms of a data set."""
        return cls(spec.contrasts, spec.plane, spec.classes, spec.sites)

    def values(self, fact: str) -> tuple[str, ...]:
        """What a fact may be.

        Args:
            fact: one of FACTS.

        Returns:
            Names, in the order that the column counts.
        """
        places = {"axial": ("low", "middle", "high"), "coronal": ("posterior", "middle", "anterior"),
                  "sagittal": ("left side", "middle", "right side")}  # fmt: skip
        return {
            "contrast": self.contrasts,
            "plane": PLANES,
            "place": places.get(self.plane or "", ()),
            "class": self.classes,
            "lesion": ("no lesion", "lesion"),
            "side": ("left", "right", "both sides"),
            "size": ("small", "medium", "large"),
            "age": tuple(f"{10 * k} to {10 * k + 9}" for k in range(12)),
            "sex": ("F", "M"),
            "site": self.sites,
        }[fact]


# -- facts -----------------------------------------------------------------------------------------------------------


def sides(mask: Tensor, image: Tensor) -> Tensor:
    """On which side of the head a lesion lies, in axial and coronal slices.

    `side = left where sum(m, columns < c) / sum(m) > 0.9, right where it is < 0.1`, c the middle of the head's columns:
    halfway between those behind which 2 % of its foreground lie on either side

    Args:
        mask: (B, 1, H, W) in {0, 1}.
        image: (B, 1, H, W) in [-1, 1], patient's left at its left.

    Returns:
        (B,) int64: LEFT, RIGHT, BOTH, or -1 where the mask is empty.
    """
    foreground = (image > FOREGROUND).float().sum((1, 2))
    share = foreground.cumsum(1) / foreground.sum(1, keepdim=True).clamp(min=1)
    first, last = (share > 0.02).float().argmax(1), (share >= 0.98).float().argmax(1)
    width = image.shape[3]
    empty = foreground.sum(1) == 0
    middle = torch.where(empty, (width - 1) / 2, (first + last) / 2)
    columns = torch.arange(width, device=mask.device)
    lesion = mask.float().sum((1, 2))
    total = lesion.sum(1)
    left = (lesion * ((columns < middle[:, None]).float() + (columns == middle[:, None]).float() / 2)).sum(1)
    left = left / total.clamp(min=1)
    side = torch.where(left > 1 - BOTH_SIDES, LEFT, torch.where(left < BOTH_SIDES, RIGHT, BOTH))
    return torch.where(total > 0, side, -1)


def sizes(mask: Tensor, pixel_mm2: Tensor) -> Tensor:
    """How large what the mask shows is, by the diameter of a disc of its area.

    `d = 2 sqrt(A / pi)`, A in mm²; small below 10 mm, large from 20 mm on

    Args:
        mask: (B, 1, H, W) in {0, 1}.
        pixel_mm2: (B,) area of a pixel.

    Returns:
        (B,) int64 index of small, medium, large; -1 where the mask is empty.
    """
    area = mask.float().sum((1, 2, 3)) * pixel_mm2
    size = torch.bucketize(2 * torch.sqrt(area / torch.pi), torch.tensor(SIZES_MM, device=mask.device), right=True)
    return torch.where(area > 0, size, -1)


def mirrored(facts: Tensor) -> Tensor:
    """The facts of the mirror images of axial and coronal slices: left is right and right is left.

    Args:
        facts: (B, F) int64.

    Returns:
        The same shape.
    """
    out = facts.clone()
    side = facts[:, SIDE]
    out[:, SIDE] = torch.where(side == LEFT, RIGHT, torch.where(side == RIGHT, LEFT, side))
    return out


def fits(facts: Tensor, said: Tensor) -> Tensor:
    """Which captions are true of which slices: a short caption is true of many.

    `fits_ij = all_f [said_jf unknown or said_jf = facts_if]`

    Args:
        facts: (N, F) int64 of the slices.
        said: (M, F) int64 of the captions, -1 where they say nothing.

    Returns:
        (N, M) bool.
    """
    return ((said < 0) | (facts[:, None] == said)).all(2)


# -- wordings --------------------------------------------------------------------------------------------------------


def wordings(fact: int, facts: Sequence[int], terms: Terms) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All ways to say a fact: before a noun such as "slice", and behind it.

    Args:
        fact: column; LESION also says side and size, where those are not -1.
        facts: of a slice, or of what is to be said of it.
        terms: names.

    Returns:
        Both, together never empty.
    """
    value = facts[fact]
    if fact == LESION:
        return _lesion(value, facts[SIDE], facts[SIZE])
    name = terms.values(FACTS[fact])[value]
    if fact == CONTRAST:
        return (name, f"{name} weighted"), (f"{name} contrast", f"in {name}")
    if fact == PLANE:
        return (name,), (f"{name} plane",)
    if fact == PLACE:
        behind = {"low": ("low in the head", "near the base of the brain"), "middle": ("in the middle of the head",),
                  "high": ("high in the head", "near the top of the brain"),
                  "posterior": ("at the back of the head",), "anterior": ("at the front of the head",)}  # fmt: skip
        return (() if "side" in name else (name,)), behind.get(name, (f"through the {name} of the head",))
    if fact == CLASS:
        return (name,), (f"class {name}",)
    if fact == AGE:
        return (), (f"aged {name}", f"in the {10 * value}s")
    if fact == SEX:
        words = ("female", "woman") if name == "F" else ("male", "man")
        return words[:1], (f"of a {words[1]}", f"{words[0]} subject")
    return (), (f"from {name}", f"site {name}")


def _lesion(present: int, side: int, size: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if not present:
        return ("lesion free",), ("no lesion", "without a lesion", "without lesions", "no lesions")
    how = ("", "small ", "medium ", "large ")[size + 1]
    if side == BOTH:
        return (), (f"{how}lesions on both sides", f"bilateral {how}lesions", f"{how}lesions left and right")
    if side >= 0:
        where = ("left", "right")[side]
        return (), (f"{how}lesion on the {where}", f"with a {how}lesion in the {where} hemisphere",
                    f"{how}{where} lesion", f"{how}lesion {where}", f"{how}lesion on the {where} side")  # fmt: skip
    return (), (f"{how}lesion", f"with a {how}lesion", f"{how}lesion visible", f"with {how}lesions")


def caption(facts: Sequence[int], terms: Terms, u: Sequence[float], whole: bool = False) -> tuple[str, list[int]]:
    """A sentence that says some of the facts, and which.

    A third of the captions say one fact alone ("T2", "lesion on the left"), the others about as often few as many.
    A lesion's side or size is not said without the lesion.

    Args:
        facts: of the slice, at least one of them known.
        terms: names.
        u: DRAWS uniform numbers in [0, 1): from the same numbers comes the same sentence.
        whole: say all that is known.

    Returns:
        The sentence, and the facts that it says, -1 for the others.
    """
    said = _kept(facts, u, whole)
    count = len(FACTS)
    wording, order = u[4 + count : 4 + 2 * count], u[4 + 2 * count :]
    before, behind = [], []
    for fact in sorted((k for k in range(count) if said[k] >= 0 and k not in (SIDE, SIZE)), key=lambda k: order[k]):
        adjectives, phrases = wordings(fact, said, terms)
        choice = int(wording[fact] * (len(adjectives) + len(phrases)))
        if choice < len(adjectives):
            before.append(adjectives[choice])
        else:
            behind.append(phrases[choice - len(adjectives)])
    noun = _NOUNS[int(u[2] * len(_NOUNS))]
    head = " ".join([*before, noun]).strip()
    return (", " if u[3] < 0.5 else " ").join([*([head] if head else []), *behind]), said


def _kept(facts: Sequence[int], u: Sequence[float], whole: bool) -> list[int]:
    known = [k for k, value in enumerate(facts) if value >= 0]
    if whole:
        kept = set(known)
    elif u[0] < _ALONE:
        at, total = u[1], sum(_WEIGHT[k] for k in known)
        ends = [sum(_WEIGHT[k] for k in known[: n + 1]) / total for n in range(len(known))]
        kept = {known[min(sum(at >= end for end in ends), len(known) - 1)]}
    else:
        level = 0.2 + 0.8 * u[1]
        kept = {k for k in known if u[4 + k] < level * (1.0 if FACTS[k] in SEEN else _HINTED)}
        kept = kept or {min(known, key=lambda k: u[4 + k])}
    if kept & {SIDE, SIZE}:
        kept.add(LESION)
    return [value if k in kept else -1 for k, value in enumerate(facts)]


def prompts(fact: int, value: int, terms: Terms) -> list[str]:
    """Every way to say one fact and nothing else: the ensemble of a zero-shot decision.

    Args:
        fact: column.
        value: in it.
        terms: names.

    Returns:
        Sentences.
    """
    facts = [-1] * len(FACTS)
    facts[fact] = value
    if fact in (SIDE, SIZE):
        facts[LESION] = 1
        fact = LESION
    before, behind = wordings(fact, facts, terms)
    return [f"{words} {noun}".strip() for words in before for noun in ("slice", "")] + list(behind)


def vocabulary(terms: Terms) -> list[str]:
    """All words of all captions of a data set.

    Args:
        terms: names.

    Returns:
        Sorted, each once, in lower case.
    """
    sentences = list(_NOUNS)
    for fact, name in enumerate(FACTS):
        for value in range(len(terms.values(name))):
            if name != "plane" or PLANES[value] == terms.plane:
                sentences += prompts(fact, value, terms)
    return sorted(set(chain.from_iterable(words(s) for s in sentences)))


def words(text: str) -> list[str]:
    """The words of a text.

    Args:
        text: any.

    Returns:
        In lower case: runs of letters and digits; all else parts them.
    """
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()

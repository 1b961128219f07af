"""Which contrast a file name speaks of, by the words the field writes into its file names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

MASK = "mask"
UNKNOWN = "MRI"

_WORDS = {
    "t1": "T1", "t1w": "T1", "t1n": "T1", "mprage": "T1", "mp2rage": "T1",
    "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1ce", "t1post": "T1ce", "t1wce": "T1ce",
    "t2": "T2", "t2w": "T2", "flair": "FLAIR", "t2f": "FLAIR", "t2flair": "FLAIR",
    "pd": "PD", "pdw": "PD", "mra": "MRA", "tof": "MRA",
}  # fmt: skip
_AGENT = {"gd", "gad", "gadolinium", "post", "postcontrast", "contrast", "ce"}
_LABEL = {"seg", "segmentation", "mask", "gt", "label", "labels", "ot", "otmulti", "otmulticlass", "roi"}
_DONE = {"brain", "bet", "n4", "reg", "registered", "stripped", "skullstripped", "masked", "norm", "normalized", "mni"}
_BRAIN = {"brainmask", "headmask"}


@dataclass(frozen=True)
class Word:
    """A word of a file name: `text` (lower case) and where it stood."""

    text: str
    start: int
    stop: int


def words(name: str) -> list[Word]:
    """A name cut at everything that is no letter or digit, and between a lower and an upper case letter.

    "sub-1_TrainT1w" has the words sub, 1, train, t1w.
    """
    pieces = re.finditer(r"[A-Za-z0-9]+?(?=(?<=[a-z])[A-Z]|[^A-Za-z0-9]|$)", name)
    return [Word(m.group().lower(), m.start(), m.end()) for m in pieces]


def is_brain_mask(name: str) -> bool:
    """Whether a name is that of a mask of the brain or head, which says nothing of lesions."""
    texts = [w.text for w in words(name)]
    pairs = set(itertools.pairwise(texts))
    return bool(_BRAIN & set(texts)) or ("brain", "mask") in pairs or ("head", "mask") in pairs


def is_mask(name: str) -> bool:
    """Whether a name (without folders) is that of a label map: seg, mask, gt, label, lesion, GOLD_STANDARD, ..."""
    texts = [w.text for w in words(name)]
    if _LABEL & set(texts) or ("gold", "standard") in itertools.pairwise(texts):
        return True
    # "lesion" alone may also describe the patient ("lesion_12_T1"), so there it needs a name without a contrast
    return bool({"lesion", "lesions"} & set(texts)) and _contrast_words(name) == (None, [])


def contrast_in(name: str) -> str | None:
    """T1, T1ce, T2, FLAIR, PD or MRA by the first such word of a name, None where there is none.

    "T1_post", "T1-Gd" and "ce-gadolinium_T1w" are T1ce; "T2_FLAIR" is FLAIR; "regtoFLAIR" says nothing.
    """
    return _contrast_words(name)[0]


def without_contrast(name: str) -> str:
    """What is left without the words for contrast, label map and processing: "s01_T1_brain" leaves "s01"."""
    gone = set(_contrast_words(name)[1]) | {w for w in words(name) if w.text in _LABEL or w.text in _DONE}
    for word in sorted(gone, key=lambda w: -w.start):
        head = name[: word.start].rstrip("_-. ")
        tail = name[word.stop :]
        name = head + tail
    return name.strip("_-. ")


def _contrast_words(name: str) -> tuple[str | None, list[Word]]:
    every = words(name)
    for i, word in enumerate(every):
        if word.text not in _WORDS or (i and every[i - 1].text.endswith("to")):  # regtoFLAIR: a target, no contrast
            continue
        contrast, used = _WORDS[word.text], [word]
        if contrast == "T2" and i + 1 < len(every) and every[i + 1].text == "flair":
            contrast, used = "FLAIR", [word, every[i + 1]]
        agent = [w for w in every if w.text in _AGENT]
        if contrast == "T1" and agent and not {"pre", "precontrast", "non"} & {w.text for w in every}:
            contrast, used = "T1ce", [word, *agent]
        return contrast, used
    return None, []


def contrast_of_path(path: str) -> str:
    """Contrast of a file by its name, else by its folders from the nearest on, else "MRI"; "mask" for label maps.

    Args:
        path: posix path relative to the root, without suffix.

    Returns:
        T1, T1ce, T2, FLAIR, PD, MRA, "mask" or "MRI".
    """
    *folders, name = path.split("/")
    if is_mask(name) or any(is_mask_folder(f) for f in folders):
        return MASK
    found = contrast_in(name)
    for folder in reversed(folders):
        # a folder "PD" may hold Parkinson's disease
        found = found or (contrast_in(folder) if folder.lower() != "pd" else None)
    return found or UNKNOWN


def is_mask_folder(name: str) -> bool:
    """Whether a folder holds label maps by its name: labels, labelsTr, masks, seg, segmentations."""
    return name.lower() in ("labels", "labelstr", "labelsts", "masks", "mask", "seg", "segs", "segmentations")


def is_contrast_folder(name: str) -> bool:
    """Whether a folder's name says a contrast and nothing else of use: T1, IXI-T2, TrainT1."""
    return name.lower() != "pd" and contrast_in(name) is not None and not re.search(r"\d", without_contrast(name))


def count(contrasts: Iterable[str]) -> str:
    """Contrasts with their numbers, for a log line: "T1 24, mask 3"."""
    tally: dict[str, int] = {}
    for c in contrasts:
        tally[c] = tally.get(c, 0) + 1
    return ", ".join(f"{c} {n}" for c, n in sorted(tally.items()))

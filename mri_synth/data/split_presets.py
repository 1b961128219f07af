"""Splits of the literature that are a rule: who is in train, val and test follows from who is there.

`data.split.by=given data.split.file=preset:NAME`. A split that is a list of names is a file `presets/NAME.csv` with the
columns subject and split, as any manifest. A rule is better where a list would have to be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mri_synth.data.scan import SPLITS
from mri_synth.errors import UserError

PREFIX = "preset:"
FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class FirstSubjects:
    """The first subjects in order of id that have every contrast asked for; the others are in no split.

    Attributes:
        counts: how many go to train, the next to val, the next to test.
        source: who used it.
    """

    counts: tuple[int, int, int]
    source: str

    def apply(self, name: str, studies: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Subject to split.

        Args:
            name: of the preset, for the message.
            studies: records with subject and, where known, contrasts.

        Returns:
            The chosen subjects.

        Raises:
            UserError: there are too few.
        """
        wanted = {c for s in studies for c in s.get("contrasts", ())}
        have: dict[str, set[str]] = {}
        for s in studies:
            have.setdefault(s["subject"], set()).update(s.get("contrasts", ()))
        whole = sorted((subject for subject, has in have.items() if has == wanted), key=_natural)
        if len(whole) < sum(self.counts):
            raise UserError(
                f"data.split.file={PREFIX}{name} needs {sum(self.counts)} subjects with {', '.join(sorted(wanted))}; "
                f"there are {len(whole)} of {len(have)}. Use data.split.by=subject, or add data"
            )
        return dict(zip(whole, np.repeat(SPLITS, self.counts).tolist(), strict=False))


RULES = {
    "ixi40": FirstSubjects(
        (25, 5, 10),
        "IXI, T1, T2 and PD: 25, 5 and 10 subjects (SynDiff: Ozbey et al. 2023; the "
        "papers do not list them: here the first 40)",
    ),
}


def names() -> list[str]:
    """All presets of splits."""
    listed = [p.stem for p in FOLDER.glob("*.csv") if "subject" in p.open().readline().strip().split(",")]
    return sorted([*RULES, *listed])


def known(file: str) -> bool:
    """Whether "preset:NAME" is there."""
    return file.removeprefix(PREFIX) in names()


def unknown(file: str) -> str:
    """The message for one that is not."""
    return f"data.split.file={file}: there is no such preset; there is {', '.join(PREFIX + n for n in names())}"


def manifest(file: str) -> Path | None:
    """The file of a preset that is a list; None for a rule."""
    name = file.removeprefix(PREFIX)
    return None if name in RULES else FOLDER / f"{name}.csv"


def _natural(text: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]

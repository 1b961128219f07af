"""The view of a classification task: slices whose class is in one of some groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from mri_synth.data.views import Labelled


class Grouped(Labelled):
    """Labelled slices, of the classes that a task tells apart."""

    wanted: ClassVar[frozenset[str] | None] = None

    def _wanted(self, row: int) -> bool:
        label = int(self.store.table["label"][row])
        return label >= 0 and (self.wanted is None or self.how.classes[label] in self.wanted)


def grouped(groups: Sequence[Sequence[str]] | None) -> type[Grouped]:
    """The view under a task.

    Args:
        groups: class names that count as one, for each group; None: every class is one.

    Returns:
        The same class for the same task.
    """
    return Grouped if groups is None else _of(frozenset(name for group in groups for name in group))


@lru_cache
def _of(wanted: frozenset[str]) -> type[Grouped]:
    return type("Grouped", (Grouped,), {"wanted": wanted, "__module__": __name__})

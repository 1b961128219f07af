"""The part of a report that shows the test's images under published rescaling habits, one table for each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from mri_synth import html
from mri_synth.html import Html

AT = "@"
INTRO = (
    "Papers rescale images before they score them, each in its own way, and a habit that divides a gain error away "
    "lifts every number. These are the same test images under those habits, each to be read beside a paper that has "
    "the same one: they compare neither with the table above nor with each other."
)
HEAD = ["metric", "mean", "sd of subjects", "95 % CI", "subjects", "slices"]


def habits(results: Mapping[str, Any]) -> list[Html]:
    """A table per habit.

    Args:
        results: content of `results.json`.

    Returns:
        The section's parts; none where nothing was scored so.
    """
    each: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for name, detail in (results.get("habits") or {}).items():
        score, _, habit = name.partition(AT)
        each[habit][score] = detail
    parts = [html.paragraph(INTRO, "soft")] if each else []
    for habit, scores in each.items():
        protocol = next(iter(scores.values())).get("protocol", "")
        rows = [_row(f"{score.upper()} {AT} {habit}", detail) for score, detail in scores.items()]
        parts.append(html.card(habit.replace("_", " "), html.table(HEAD, rows), html.paragraph(protocol, "soft")))
    return parts


def _row(name: str, detail: Mapping[str, Any]) -> list[object]:
    mean, ci = detail.get("mean"), detail.get("ci")
    digits = 2 if isinstance(mean, int | float) and abs(mean) >= 10 else 4
    interval = f"{html.number(ci[0], digits)} to {html.number(ci[1], digits)}" if ci is not None else None
    return [
        name,
        mean,
        html.number(detail.get("sd"), digits),
        interval,
        detail.get("n_subjects"),
        detail.get("n_slices"),
    ]

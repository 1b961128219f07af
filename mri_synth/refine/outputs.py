"""What `mri-synth refine` writes and says: results on their contents' grids, a JSON beside each, lines of a table."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mri_synth import __version__
from mri_synth.data.intensity import Array
from mri_synth.data.prepare import FOREGROUND
from mri_synth.data.volume import from_slices, save_like
from mri_synth.metrics.consistency import PROTOCOL, consistency
from mri_synth.models.style_transfer import StyleTransfer
from mri_synth.refine.files import Pair
from mri_synth.refine.restyler import Restyled
from mri_synth.through import Ready, sidecar_of, write_json
from mri_synth.translate import SIGN


@dataclass(frozen=True)
class Outcome:
    """What became of one pair.

    Attributes:
        pair: what was asked.
        state: "written", "skipped" (it is there already, made of the same files in the same way) or "failed".
        reason: of a failure.
        about: content of the JSON beside the output; empty of a failure.
    """

    pair: Pair
    state: Literal["written", "skipped", "failed"]
    reason: str = ""
    about: Mapping[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Job:
    """A pair that has been read.

    Attributes:
        pair: what was asked.
        source: the content in its frame.
        how: its preparation.
        made_by: all that decides the result.
        started: when, by the clock that only goes forward.
    """

    pair: Pair
    source: Ready
    how: dict[str, Any]
    made_by: dict[str, Any]
    started: float


def written(job: Job, result: Restyled, together: int) -> dict[str, Any]:
    """Write a result and the JSON beside it.

    Args:
        job: what was asked.
        result: in the frame.
        together: pairs that shared the time.

    Returns:
        Content of the JSON.
    """
    source, pair, volume = job.source, job.pair, job.source.volume
    assert source.intensity is not None
    region = source.frame.invert(result.region.astype(np.float32), fill=0, nearest=True) > 0.5
    slices = np.where(region, source.frame.invert(result.images, fill=-1), source.slices)
    inside = from_slices(region, volume, job.how["plane"])
    array = np.where(inside, source.intensity.invert(from_slices(slices, volume, job.how["plane"])), volume.array)
    save_like(array, volume, pair.output, f"{SIGN}, refine, style transfer")
    about = {
        "synthetic": f"restyled by mri_synth {__version__}: content and style transferred; not a measured image",
        "content": str(pair.content.resolve()),
        "style": str(pair.style.resolve()),
        "method": f"{StyleTransfer.__module__}.{StyleTransfer.__name__}",
        "frame": {"size": source.frame.size, "spacing_mm": list(source.frame.spacing_mm), "plane": job.how["plane"]},
        "units": {"low": source.intensity.low, "high": source.intensity.high, "meaning": "-1 and 1 in the content's"},
        "slices": len(slices),
        "restyled": len(next(iter(result.scores.values()), ())),
        "changed": float(region.mean()),
        "scores": {name: float(v.mean()) for name, v in result.scores.items()},
        "protocols": StyleTransfer.protocols,
        **_judged(slices, source),
        "seconds": round((time.monotonic() - job.started) / together, 3),
        "versions": {"mri_synth": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "made_by": job.made_by,
        "bytes": pair.output.stat().st_size,
    }
    write_json(sidecar_of(pair.output), about)
    return about


def _judged(slices: Array, source: Ready) -> dict[str, Any]:
    """Slice consistency of a volume."""
    if len(slices) < 2:
        return {}
    found = consistency(slices, source.slices, source.slices > FOREGROUND)
    return {"slice_consistency": {"against_source": found, "protocol": PROTOCOL, "units": "of a range of 2"}}


def figures(outcome: Outcome) -> dict[str, Any]:
    """What `refined.csv` says of an outcome.

    Args:
        outcome: of a pair.

    Returns:
        State, scores, and the slice-to-slice ratio of a volume.
    """
    about = outcome.about or {}
    ratio = about.get("slice_consistency", {}).get("against_source", {}).get("ratio")
    return {"state": outcome.state, **about.get("scores", {}), "slice_to_slice": ratio}


def said(outcome: Outcome) -> str:
    """One line for the terminal.

    Args:
        outcome: of a pair.

    Returns:
        The output with what is known of it, or what went wrong.
    """
    if outcome.about is None:
        return f"failed: {outcome.reason}"
    known = figures(outcome)
    words = [f"style of {outcome.pair.style.name}"]
    words += ["is there already"] if outcome.state == "skipped" else []
    words += [f"{100 * known['style_left']:.3g} % of the style loss left"] if "style_left" in known else []
    words += [f"correlation with the content {known['correlation']:.3f}"] if "correlation" in known else []
    if known["slice_to_slice"] is not None:
        words.append(f"slice-to-slice gradient {known['slice_to_slice']:.2f} times the content's")
    return f"{outcome.pair.output}: {', '.join(words)}"

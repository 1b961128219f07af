"""The report's section on samples: the sheet, the judgement, the nearest training images; and the first stage's run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mri_synth import html, plots
from mri_synth.html import Html
from mri_synth.run_folder import Run

OWN = ("samples", "nearest")
"""Pictures that stand in this section."""


def samples(run: Run) -> list[Html]:
    """What there is to say of samples; empty for methods that do not sample.

    Args:
        run: as read.

    Returns:
        Parts of the section.
    """
    found = run.results.get("generation") or {}
    if not found:
        return []
    how = "".join(f", {name} {value}" for name, value in (found.get("options") or {}).items())
    parts = [_picture(run.folder / "pictures" / "samples.png", f"{found.get('samples')} samples were drawn in "
                      f"{html.duration(float(found.get('seconds') or 0))}{how}; the seeds are 0, 1, ...")]  # fmt: skip
    if found.get("origin"):
        parts.append(html.paragraph(found["origin"]))
    if found.get("missing"):
        parts.append(html.notice(found["missing"]))
    parts += _intensities(found.get("intensities"))
    for judged in [found, *(found.get("beside") or [])]:
        if "kid" in judged:
            parts += _judged(judged) + _distributions(judged.get("distributions"), str(judged["features"]["name"]))
    if (run.folder / "pictures" / "nearest.png").exists():
        caption = "are samples copies? those nearest to a training image, beside it"
        parts.append(_picture(run.folder / "pictures" / "nearest.png", caption))
    return parts


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """The two figures of the headline.

    Args:
        results: of the run.

    Returns:
        Label to text; empty without a judgement.
    """
    found = results.get("generation") or {}
    if "kid" not in found:
        return {}
    out = {"KID of samples": html.number(found["kid"]["value"], 4)}
    if (ratio := found["fid"].get("ratio")) is not None:
        out["FID over real against real"] = html.number(ratio, 2)
    return out


def verdict(results: Mapping[str, Any]) -> str:
    """How far samples are from real images, in a sentence.

    Args:
        results: of the run.

    Returns:
        Plain text; "" without a judgement.
    """
    found = results.get("generation") or {}
    if not (kid := found.get("kid")):
        return ""
    text = f"KID of {found['samples']} samples is {html.number(kid['value'])}"
    if ci := kid.get("ci"):
        text += f" (95 % confidence interval {html.number(ci[0])} to {html.number(ci[1])})"
    text += f", in features of {found['features']['name']}"
    if (beside := kid.get("real_against_real")) is not None:
        text += f"; of real images against others of them it is {html.number(beside)}"
    return f"{text}."


def first_stage(run: Run) -> list[Html]:
    """The run that made the first stage, where its folder still stands: result, last picture, link.

    Args:
        run: as read.

    Returns:
        Parts of the section; empty for methods of one stage.
    """
    path = ((run.results.get("config") or {}).get("model") or {}).get("first_stage")
    if not isinstance(path, str):
        return []
    from mri_synth.report import verdict
    from mri_synth.run_folder import chosen_pictures, read_run

    folder = Path(path).parent
    if not (folder / "results.json").exists():
        return [html.paragraph(f"Trained before, in {path}; its run folder is not there any more.")]
    stage = read_run(folder)
    name = f"{stage.results.get('model')} on {stage.results.get('data_title') or stage.results.get('data')}"
    parts = [html.paragraph(f"{name}, {html.duration(float(stage.results.get('seconds') or 0))} in {folder}"),
             html.paragraph(verdict(stage.results), "verdict")]  # fmt: skip
    pictures = [p for p in chosen_pictures(folder / "pictures") if p.stem.startswith("epoch_")]
    parts += [_picture(p, f"first stage: {p.stem.replace('_', ' ')}") for p in pictures[-1:]]
    if (folder / "report.html").exists():
        link = quote(os.path.relpath(folder / "report.html", run.folder))
        parts.append(html.paragraph(Html(f'<a href="{html.escape(link)}">its own report</a>')))
    return parts


def _judged(judged: Mapping[str, Any]) -> list[Html]:
    kid, fid, near = judged["kid"], judged["fid"], judged["prdc"]
    ms, copies = judged["ms_ssim"], (judged.get("memorisation") or {}).get("features") or {}
    interval = f"{html.number(kid['ci'][0])} to {html.number(kid['ci'][1])}" if kid.get("ci") else None
    reals = near.get("real_against_real") or {}
    rows: list[list[object]] = [
        ["KID", kid["value"], interval, kid.get("real_against_real")],
        ["FID", fid["value"], None, fid.get("real_against_real")],
        *([name, value, None, reals.get(name)] for name, value in (near.get("fake") or {}).items()),
        ["MS-SSIM of pairs", _mean(ms["fake"]), None, _mean(ms["real"])],
    ]
    if copies:
        ci = copies.get("copy_rate_ci")
        rows.append(["copy rate (0.5: no copying)", copies["copy_rate"],
                     f"{html.number(ci[0])} to {html.number(ci[1])}" if ci else None, 0.5])  # fmt: skip
        rows.append(["near duplicates of train", copies["near_duplicates"], None, copies["near_duplicates_held_out"]])
    features = judged["features"]
    said = (f"Features of {features['name']} ({features['hash']}), {judged['n']} images a side, {judged['draws']} "
            f"draws, real images of {judged['pool']}.")  # fmt: skip
    notes = [html.paragraph(note, "soft") for note in judged.get("notes") or []]
    protocol = html.facts(dict(judged["protocol"]))
    return [html.table(["samples against real images", "value", "95 % CI", "real against real"], rows),
            html.paragraph(said, "soft"), *notes, html.details("How these are measured", protocol)]  # fmt: skip


def _intensities(found: Mapping[str, Any] | None) -> list[Html]:
    """How often each intensity is, real and generated over one another."""
    if not found:
        return []
    counts = {"real": found["real"], "generated": found["fake"]}
    drawn = [plots.histogram(found["edges"], counts, f"intensities, {scale}", "intensity, 0 to 1", log)
             for scale, log in (("linear", False), ("logarithmic", True))]  # fmt: skip
    said = "Share of all pixels; the real images are held out. What scanners add, noise above all, shows here first."
    return [html.card("Intensities of real and generated images", html.side_by_side(*drawn), html.paragraph(said))]


def _distributions(found: Mapping[str, Any] | None, space: str) -> list[Html]:
    """Where generated images lie among the real ones in feature space."""
    if not found:
        return []
    plane, far = found["components"], found["distances"]
    shares = [f"{100 * share:.0f} %" for share in plane["explained"]]
    drawn = [
        plots.scatter({"real": plane["real"], "generated": plane["fake"]}, "two main directions of the real images",
                      f"first component ({shares[0]} of the variance); upwards the second ({shares[1]})"),
        plots.histogram(far["edges"], {"real": far["real"], "generated": far["fake"]},
                        "distance from the real images' mean", "Euclidean distance, all directions"),
    ]  # fmt: skip
    said = ("Every point is an image. Samples in a smaller cloud than the real images are less varied; those in "
            "another place, or farther out, are of another kind.")  # fmt: skip
    return [
        html.card(f"Features of real and generated images: {space}", html.side_by_side(*drawn), html.paragraph(said))
    ]


def _mean(found: Any) -> Any:
    return found.get("mean") if isinstance(found, Mapping) else found


def _picture(path: Path, caption: str) -> Html:
    try:
        return html.figure(path, caption)
    except OSError as error:
        return html.notice(f"{path.name} cannot be shown: {error}", "warn")

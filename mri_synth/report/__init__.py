"""`report.html`: what a run did and what came of it, in one file, from the run folder alone.

Whatever is missing from the folder is named on the page; nothing that is missing or spoilt stops the page.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from mri_synth import drawing, html, plots
from mri_synth.errors import UserError
from mri_synth.html import SIMULATED, Html
from mri_synth.report import habits as report_habits
from mri_synth.report import samples as report_samples
from mri_synth.report.explanations import KNOWN, UNEXPLAINED
from mri_synth.run_folder import Run, chosen_pictures, curve_groups, read_run, shared_subjects, split_table

MAIN = "test/ssim"
REFERENCES = {"ceiling": "noise ceiling", "baseline": "trivial baseline", "copy": "source as it is"}
MOST_GIF_BYTES = 8 * 2**20


def write_report(run: Path) -> Path:
    """Builds `run/report.html` from the run folder.

    Args:
        run: a run folder, whole or not.

    Returns:
        The page's path.

    Raises:
        UserError: if there is no such folder or the page cannot be written.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder. Name a folder that a run has written, such as outputs/<run>.")
    return html.write(render(read_run(run)), run / "report.html")


def render(run: Run) -> str:
    """The page of a run, as text."""
    results = run.results
    name = f"{results.get('model', 'unknown model')} on {results.get('data', 'unknown data')}"
    if (title := results.get("data_title")) and title != results.get("data"):
        name += f" · {title}"
    simulated = bool(results.get("simulated"))
    drawn, stage = report_samples.samples(run), report_samples.first_stage(run)
    others = report_habits.habits(results)
    return html.page(
        f"{name} · {run.folder.name}",
        _headline(run, name, simulated),
        html.section("Warnings", *(html.notice(w, "warn") for w in run.warnings)) if run.warnings else Html(""),
        html.section("Result on the test split", *_results(results, simulated)),
        html.section("The same by published habits", *others) if others else Html(""),
        html.section("Comparison", *_conclusion(results["conclusion"])) if results.get("conclusion") else Html(""),
        html.section("Samples", *drawn) if drawn else Html(""),
        html.section("Pictures", *_pictures(run)),
        html.section("Curves", *_all_curves(run)),
        html.section("First stage", *stage) if stage else Html(""),
        html.section("Codebook usage", *_codebook(run.codebook)) if run.codebook else Html(""),
        html.section("Data and split", *_data(run)),
        html.section("How to reproduce this run", *_reproduce(run)),
    )


def _headline(run: Run, name: str, simulated: bool) -> Html:
    results = run.results
    status = str(results.get("status", "status unknown"))
    done = status == "finished"
    badges = [html.badge("started, not finished" if status == "started" else status, "good" if done else "warn")]
    if results.get("task"):
        badges.append(html.badge(f"task {results['task']}"))
    if simulated:
        badges.append(html.badge(SIMULATED, "warn"))
    parts = [Html(f"<h1>{html.escape(name)}</h1>"), html.paragraph(Html("".join(badges)))]
    parts.append(html.paragraph(verdict(results), "verdict"))
    if simulated:
        parts.append(
            html.notice("No scanner was involved: every image and figure here is of simulated anatomy. ", "warn")
        )
    parts += [html.notice(sentence, "warn") for sentence in run.missing]
    metrics = results.get("metrics") or {}
    shown = {MAIN: "test SSIM", "test/ssim_foreground": "test SSIM, foreground", "val/ssim": "validation SSIM"}
    figures = {word: html.number(metrics[n]) for n, word in shown.items() if n in metrics}
    figures |= report_samples.figures(results)
    if (seconds := results.get("seconds")) is not None:
        figures["run time"] = html.duration(float(seconds))
    if (speed := results.get("images_per_second")) is not None:
        figures["images per second"] = html.number(float(speed), 1)
    if (memory := results.get("peak_memory_bytes")) is not None:
        figures["peak memory"] = html.size(float(memory))
    return Html(f"<header>{html.join(parts)}{html.tiles(figures) if figures else ''}</header>")


def verdict(results: Mapping[str, Any]) -> str:
    """The main result in one or two sentences: metric, interval, numbers of subjects and slices, references.

    Of a method whose test items have no scores of their own, as a GAN's: how far its samples are from real images.

    Args:
        results: content of `results.json`.

    Returns:
        Plain text; says so when no test metric was recorded.
    """
    metrics, details = results.get("metrics") or {}, results.get("details") or {}
    if not details and (found := report_samples.verdict(results)):
        return found
    tested = [n for n in (MAIN, *details, *metrics) if n.startswith("test/") and metrics.get(n) is not None]
    if not tested:
        return "No test metric was recorded: the run has not been scored on its test split."
    main = tested[0]
    value, detail = float(metrics[main]), details.get(main) or {}
    text = f"{_title(main)} on the test split is {html.number(value)}"
    if (ci := detail.get("ci")) is not None:
        text += f" (95 % confidence interval {html.number(ci[0])} to {html.number(ci[1])})"
    counted = [
        f"{html.number(detail[k])} {w}" for k, w in (("n_subjects", "subjects"), ("n_slices", "slices")) if k in detail
    ]
    text += f", over {' and '.join(counted)}" if counted else ""
    references = results.get("references") or {}
    against = []
    for kind, word in REFERENCES.items():
        reference = references.get(f"{kind}/{_suffix(main)}")
        if isinstance(reference, int | float):
            side = "above" if value >= reference else "below"
            against.append(f"{html.number(abs(value - reference))} {side} the {word} ({html.number(reference)})")
    return text + (
        "; " + " and ".join(against) + "." if against else ". No ceiling or baseline was recorded beside it."
    )


def _suffix(name: str) -> str:
    return name.split("/", 1)[-1]


def _title(name: str) -> str:
    """test/ssim_foreground -> SSIM foreground; train/reconstruction -> reconstruction."""
    words = _suffix(name).split("_")
    short = {"ssim", "psnr", "mae", "nmse", "lpips", "kid", "fid", "mse", "lr", "auroc", "ap", "elbo", "nll", "kl"}
    return " ".join(word.upper() if word in short else word for word in words)


def _results(results: Mapping[str, Any], simulated: bool) -> list[Html]:
    metrics, details, references = (results.get(k) or {} for k in ("metrics", "details", "references"))
    tested = [name for name in metrics if name.startswith("test/")]
    names = list(details) or tested
    if not names:
        return [html.notice("No test metric was recorded.")]
    others = {_title(name): html.number(metrics[name]) for name in tested if name not in names}
    kinds = list(dict.fromkeys(key.split("/")[0] for key in references if key != "notes" and "/" in key))
    rows = []
    for name in names:
        detail = details.get(name) or {}
        ci, mean = detail.get("ci"), detail.get("mean", metrics.get(name))
        digits = 2 if isinstance(mean, int | float) and abs(mean) >= 10 else 4
        rows.append([
            _title(name),
            mean,
            html.number(detail.get("sd"), digits),
            f"{html.number(ci[0], digits)} to {html.number(ci[1], digits)}" if ci is not None else None,
            detail.get("n_subjects"),
            detail.get("n_slices"),
            *(references.get(f"{kind}/{_suffix(name)}") for kind in kinds),
        ])  # fmt: skip
    head = ["metric", "mean", "sd of subjects", "95 % CI", "subjects", "slices", *(REFERENCES.get(k, k) for k in kinds)]
    parts = [html.table(head, rows)]
    protocols: dict[str, list[str]] = defaultdict(list)
    for name in names:
        protocols[str((details.get(name) or {}).get("protocol") or "")].append(_title(name))
    for protocol, whose in protocols.items():
        said = f"protocol: {protocol}" if protocol else "no protocol recorded."
        parts.append(html.paragraph(f"{', '.join(whose)} {html.MISSING} {said}", "soft"))
    notes = references.get("notes") or results.get("notes") or {}
    for key, sentence in notes.items() if isinstance(notes, dict) else {"references": notes}.items():
        kind, _, rest = str(key).partition("/")
        if kind in REFERENCES and kind not in kinds:
            continue
        label = f"{REFERENCES.get(kind, kind)} {_title(rest)}".strip()
        parts.append(html.paragraph(f"{label[:1].upper()}{label[1:]}: {sentence}", "soft"))
    if simulated:
        parts.append(html.paragraph("All of these are measured on simulated images.", "soft"))
    if others:
        parts.append(html.details("Losses on the test split", html.facts(others)))
    return parts


def _conclusion(said: Mapping[str, Any]) -> list[Html]:
    """Tables, bars and notes of a method that compares things."""
    parts = [html.card(t["title"], html.table(t["head"], t["rows"])) for t in said.get("tables", ())]
    parts += [plots.bars(b["heights"], b["title"], "", "%", b["labels"]) for b in said.get("bars", ())]
    return [*parts, *(html.paragraph(note, "soft") for note in said.get("notes", ()))]


def _all_curves(run: Run) -> list[Html]:
    groups = curve_groups(run.curves)
    if not groups:
        return [html.notice("No curves: metrics.csv has no values.")]
    explanations = run.results.get("explanations") or {}
    intro = "Training values are means over an epoch, from three epochs on. The number beside a name is the last value."
    parts = [html.paragraph(intro, "soft")]
    for name, (x_label, series) in groups.items():
        text = next(
            (explanations[k] for k in (f"train/{name}", f"val/{name}", name, f"test/{name}") if k in explanations), ""
        )
        sentence, _, formula = str(text or KNOWN.get(name, UNEXPLAINED)).partition("\n")
        drawn = [plots.curve(series, scale, x_label, log=scale == "logarithmic") for scale in ("linear", "logarithmic")]
        said = [html.paragraph(sentence), html.paragraph(formula.strip(), "formula") if formula.strip() else Html("")]
        parts.append(html.card(_title(name), html.side_by_side(*drawn), *said))
    return parts


def _pictures(run: Run) -> list[Html]:
    parts: list[Html] = []
    for path in chosen_pictures(run.folder / "pictures"):
        if path.stem in report_samples.OWN:
            continue
        match = re.fullmatch(r"epoch_(\d+)_?(.*)", path.stem)
        words = (match[2] if match else path.stem).replace("_", " ")
        when = ("before training" if int(match[1]) == 0 else f"epoch {int(match[1])}") if match else ""
        parts.append(_file_figure(path, ", ".join(part for part in (words, when) if part)))
    if not parts:
        parts.append(html.notice("No pictures: the folder pictures/ has no PNG."))
    animation = run.folder / "training.gif"
    if animation.exists():
        parts.append(_animation(animation))
    else:
        parts.append(html.notice("No animation: training.gif is missing from the run folder."))
    return parts


def _animation(path: Path) -> Html:
    """The animation; of a long one every second, third, ... frame, so that the page stays light."""
    caption = "the same images through training, one frame before it and one per epoch"
    step = math.ceil(path.stat().st_size / MOST_GIF_BYTES)
    if step <= 1:
        return _file_figure(path, caption)
    try:
        with Image.open(path) as opened:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
    except OSError as error:
        return html.notice(f"{path.name} cannot be shown: {error}", "warn")
    kept = [*range(0, len(frames) - 1, step), len(frames) - 1]
    with tempfile.TemporaryDirectory() as folder:
        thinned = drawing.gif([frames[i] for i in kept], Path(folder) / path.name)
        return _file_figure(thinned, f"{caption}; {len(kept)} of {len(frames)} frames, all are in {path.name}")


def _file_figure(path: Path, caption: str) -> Html:
    try:
        return html.figure(path, caption)
    except OSError as error:
        return html.notice(f"{path.name} cannot be shown: {error}", "warn")


def _codebook(counts: Sequence[float]) -> list[Html]:
    total, used = sum(counts), sum(count > 0 for count in counts)
    if total <= 0:
        return [html.notice("No code was used: all counts are 0.", "warn")]
    shares = sorted((count / total for count in counts), reverse=True)
    perplexity = math.exp(-sum(share * math.log(share) for share in shares if share > 0))
    text = (
        f"{used:,} of {len(counts):,} codes are used ({100 * used / len(counts):.1f} %), perplexity "
        f"{html.number(perplexity, 1)} (so many codes, all used alike, would carry as much)."
    )
    ranked = (list(range(1, len(shares) + 1)), [100 * share for share in shares])
    return [
        html.paragraph(text),
        html.side_by_side(
            plots.bars(ranked[1], "% of all uses, codes by rank", "rank", "% of all uses"),
            plots.curve({"used codes": ranked}, "the same, logarithmic", "rank", log=True, legend=False),
        ),
    ]


def _data(run: Run) -> list[Html]:
    parts = []
    if run.split:
        parts.append(html.table(["split", "subjects", "files", "slices"], split_table(run.split)))
        if shared := shared_subjects(run.split):
            parts.append(
                html.notice(f"{len(shared)} subject(s) in more than one split: {', '.join(shared[:10])}", "warn")
            )
        else:
            parts.append(html.paragraph("No subject is in two splits; who is where stands in split.csv.", "soft"))
    else:
        parts.append(html.notice("No split table: split.csv is missing or empty."))
    hashes = {"split hash": run.results.get("split_hash"), "data hash": run.results.get("data_hash")}
    parts.append(html.facts({name: html.mono(value) if value else "not recorded" for name, value in hashes.items()}))
    return parts


def _reproduce(run: Run) -> list[Html]:
    results = run.results
    command = results.get("command")
    parts = [html.code(command) if command else html.notice("The command was not recorded.")]
    git = results.get("git") or {}
    parameters = results.get("parameters")
    facts: dict[str, object] = {
        "parameters": html.number(parameters) if parameters is not None else None,
        "device": results.get("device"),
        "precision": results.get("precision"),
        "run folder": run.folder.name,
    }
    machine = results.get("machine") or {}
    facts |= machine if isinstance(machine, dict) else {"machine": machine}
    facts |= {f"git {key}": value for key, value in (git.items() if isinstance(git, dict) else [("commit", git)])}
    parts.append(html.facts(facts))
    versions = results.get("versions") or {}
    if versions:
        parts.append(html.details("Versions", html.facts(versions)))
    else:
        parts.append(html.notice("No versions were recorded."))
    if run.config:
        parts.append(html.details("The whole resolved configuration (config.yaml)", html.code(run.config)))
    return parts

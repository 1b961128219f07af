"""The page that describes a data set: a pure function of a `Description`, which is plain values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mri_synth import drawing, html, plots
from mri_synth.html import SIMULATED, Html
from mri_synth.outputs import table_hash
from mri_synth.run_folder import shared_subjects

SPLITS = ("train", "val", "test")
BINS = 64
MOST_ROWS = 15
MOST_FILES = 200
MASK = "mask"


@dataclass(kw_only=True)
class Views:
    """The middle slices of one volume, square pixels.

    Attributes:
        contrast: its contrast.
        name: subject and file, for the caption.
        planes: "axial", "coronal", "sagittal" -> (H, W) in [-1, 1], pixels of one size in mm.
    """

    contrast: str
    name: str
    planes: dict[str, NDArray[np.float32]]


@dataclass(kw_only=True)
class Sheet:
    """Chosen slices of one contrast: of one subject, or of several where each has but one.

    Attributes:
        title: contrast, whose they are, and how many there are.
        images: (N, H, W) prepared images in [-1, 1].
        captions: N slice numbers or subjects.
    """

    title: str
    images: NDArray[np.float32]
    captions: list[str]


@dataclass(kw_only=True)
class Description:
    """All that the page says, as plain values.

    Attributes:
        name: the data set.
        root: its folder, or "".
        simulated: True when no scanner was involved.
        settings: name -> value of what decides the images (plane, size, slices, ...).
        rows: one record per file: split, subject, session, contrast, path, sha256, slices, label, age, sex, site,
            shape, spacing_mm, orientation, dtype, reason (why dropped, "" if used).
        labels: split -> class name -> number of images; class "unlabelled" where it is not known.
        edges: (B + 1,) edges of the histograms' bins on [-1, 1].
        histograms: contrast -> split -> (B,) pixel counts of prepared images.
        counted: images in the histograms; a sample where the data are many.
        views: three planes of one volume per contrast.
        sheets: the chosen slices of one subject per contrast.
        split_note: how the split was made, where that needs a word.
        leaks: what the leak check dropped.
        notes: what could not be shown, and why.
    """

    name: str
    root: str = ""
    simulated: bool = False
    settings: dict[str, object] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    edges: list[float] = field(default_factory=lambda: np.linspace(-1, 1, BINS + 1).tolist())
    histograms: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    counted: int = 0
    views: list[Views] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    split_note: str = ""
    leaks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(d: Description) -> str:
    """The page, as text."""
    badge = html.paragraph(html.badge(SIMULATED, "warn")) if d.simulated else Html("")
    used = [row for row in d.rows if row.get("split")]
    images = sum(int(row.get("slices") or 0) for row in used if row.get("contrast") != MASK)
    tiles = {
        "subjects": html.number(len({row["subject"] for row in used})),
        "files in use": html.number(len(used)),
        "images": html.number(images),
        "contrasts": html.number(len({row["contrast"] for row in used} - {MASK})),
        "files left out": html.number(len(d.rows) - len(used)),
    }
    simulated = html.notice("No scanner was involved: these data are simulated.", "warn") if d.simulated else Html("")
    shared = shared_subjects(d.rows)
    leak = html.notice(f"Subjects in more than one split: {', '.join(shared[:10])}", "warn") if shared else Html("")
    head = [Html(f"<h1>{html.escape(d.name)}</h1>"), badge, html.paragraph(f"Data in {d.root}") if d.root else Html("")]
    return html.page(
        f"{d.name}: the data",
        Html(f"<header>{html.join([*head, simulated, leak, html.tiles(tiles)])}</header>"),
        html.section("Splits", *_splits(d)),
        html.section("How images are made", html.facts(d.settings)),
        html.section("The source files", *_sources(d.rows)),
        html.section("One volume per contrast", *_three_plane_figures(d)),
        html.section("The chosen slices", *_sheets(d)),
        html.section("Intensities", *_intensities(d)),
        html.section("People", *_people(used)),
        html.section("Classes", *_classes(d)),
        html.section("Left out", *_left_out(d)),
    )


def _splits(d: Description) -> list[Html]:
    rows: list[list[object]] = []
    contrasts = [c for c in dict.fromkeys(row["contrast"] for row in d.rows) if c != MASK]
    masked = any(row["contrast"] == MASK for row in d.rows)
    for split in SPLITS:
        mine = [row for row in d.rows if row.get("split") == split]
        images = Counter({c: sum(int(r.get("slices") or 0) for r in mine if r["contrast"] == c) for c in contrasts})
        rows.append([split, len({r["subject"] for r in mine}), len(mine), *(images[c] for c in contrasts)])
        if masked:
            rows[-1].append(sum(r["contrast"] == MASK for r in mine))
    said = d.split_note or ("No subject is in two splits." if not shared_subjects(d.rows) else "")
    names = [f"{c} slices" for c in contrasts] + (["mask files"] if masked else [])
    code = Html(f"Hash of who is in which split, as in a run's results.json: {html.mono(table_hash(d.rows))}")
    return [
        html.table(["split", "subjects", "files", *names], rows),
        html.paragraph(said),
        html.paragraph(code, "soft"),
    ]


def distinct(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str, int]]:
    """Distinct (contrast, size, spacing, orientation, stored type) of the files that could be read, commonest first."""
    found = Counter(
        (
            str(row["contrast"]),
            " x ".join(map(str, row["shape"])),
            spacing_text((row.get("spacing_mm") or [])[: len(row["shape"])]),
            str(row.get("orientation") or ""),
            str(row.get("dtype") or ""),
        )
        for row in rows
        if row.get("shape")
    )
    return [(*key, count) for key, count in found.most_common()]


def _sources(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    found = distinct(rows)
    if not found:
        return [html.notice("No file could be read.", "warn")]
    head = ["contrast", "size (R, A, S)", "spacing", "stored axes", "stored type", "files"]
    parts = [html.table(head, found[:MOST_ROWS])]
    if len(found) > MOST_ROWS:
        rest = html.table(head, found[MOST_ROWS:MOST_FILES])
        parts.append(html.details(f"{len(found) - MOST_ROWS} more kinds of files", rest))
    note = (
        "Sizes are after turning to right, anterior, superior (pictures: rows, columns); stored axes say how the file "
        "itself runs. A picture that does not say its spacing counts as 1 mm."
    )
    return [*parts, html.paragraph(note, "soft")]


def _three_plane_figures(d: Description) -> list[Html]:
    parts: list[Html] = [html.figure(_three_plane_picture(view), alt=view.name) for view in d.views]
    parts += [html.notice(note) for note in d.notes]
    if d.views:
        parts.append(html.paragraph("Middle slices; the patient's left is at the image's left, anterior at the left of "
                                    "sagittal slices. Pixels are square in mm.", "soft"))  # fmt: skip
    return parts


def _three_plane_picture(view: Views) -> Image.Image:
    """The three planes side by side at one scale, about 1100 pixels wide, names above."""
    planes = view.planes
    total = sum(image.shape[1] for image in planes.values())
    factor = min(4.0, (drawing.PAGE_WIDTH - 2 * drawing.MARGIN - 16) / total)
    sizes = [(max(1, round(i.shape[1] * factor)), max(1, round(i.shape[0] * factor))) for i in planes.values()]
    edge = {"axial": ("L", "R"), "coronal": ("L", "R"), "sagittal": ("A", "P")}
    width = sum(w for w, _ in sizes) + 8 * (len(sizes) - 1) + 2 * drawing.MARGIN
    lines = drawing.wrap(view.name, width - 2 * drawing.MARGIN, drawing.font(18))
    top = drawing.MARGIN + 25 * len(lines) + 24
    canvas = Image.new("RGB", (width, top + max(h for _, h in sizes) + drawing.MARGIN), drawing.GROUND)
    pen = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        pen.text((drawing.MARGIN, drawing.MARGIN + 25 * i), line, font=drawing.font(18), fill=drawing.INK)
    x = drawing.MARGIN
    for (name, image), size in zip(planes.items(), sizes, strict=True):
        pixels = Image.fromarray(drawing.grey(image[None])).resize(size, Image.Resampling.BICUBIC)
        canvas.paste(pixels, (x, top))
        pen.text((x, top - 22), name, font=drawing.font(15), fill=drawing.SOFT)
        for letter, at in zip(edge.get(name, ("", "")), (x + 6, x + size[0] - 18), strict=True):
            pen.text((at, top + size[1] // 2 - 8), letter, font=drawing.font(15), fill=(120, 190, 255))
        x += size[0] + 8
    return canvas


def _sheets(d: Description) -> list[Html]:
    parts = []
    for sheet in d.sheets:
        parts.append(html.figure(drawing.grid(sheet.images, sheet.title, captions=sheet.captions), alt=sheet.title))
    return parts or [html.notice("No slice is in the training split.", "warn")]


def _intensities(d: Description) -> list[Html]:
    if not d.histograms:
        return [html.notice("No images.", "warn")]
    plotted = [
        plots.histogram(d.edges, by, contrast, "prepared intensity, -1 to 1", log=True)
        for contrast, by in d.histograms.items()
    ]
    text = (
        f"Share of pixels per bin of prepared images, logarithmic, so that the background at -1 does not hide the "
        f"rest; {d.counted:,} images, evenly taken from each split."
    )
    return [html.paragraph(text, "soft"), html.side_by_side(*plotted)]


def _people(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    subjects: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in rows:
        subjects.setdefault((str(row["split"]), str(row["subject"])), row)
    ages = {s: [float(r["age"]) for (k, _), r in subjects.items() if k == s and _known(r.get("age"))] for s in SPLITS}
    if not any(_known(r.get("age")) or r.get("sex") or r.get("site") for r in subjects.values()):
        return [html.notice("Neither age nor sex nor site is known of anyone.")]
    parts = []
    head = ["split", "subjects", "female", "male", "sex unknown", "age known", "mean age", "sd", "youngest", "oldest"]
    table: list[list[object]] = []
    for split in SPLITS:
        sex = Counter(str(r.get("sex") or "") for (k, _), r in subjects.items() if k == split)
        a = ages[split]
        spread = np.std(a, ddof=1) if len(a) > 1 else None
        numbers = (
            [f"{v:.1f}" if v is not None else None for v in (np.mean(a), spread, min(a), max(a))] if a else [None] * 4
        )
        unknown = sum(sex.values()) - sex["F"] - sex["M"]
        table.append([split, sum(sex.values()), sex["F"], sex["M"], unknown, len(a), *numbers])
    parts.append(html.table(head, table))
    if any(ages.values()):
        everyone = [age for a in ages.values() for age in a]
        first, last = math.floor(min(everyone) / 5) * 5, math.floor(max(everyone) / 5) * 5 + 5
        edges = list(range(first, last + 1, 5))
        counts = {s: np.histogram(a, edges)[0].tolist() for s, a in ages.items() if a}
        sexes = Counter(str(r.get("sex") or "unknown") for r in subjects.values())
        drawn = [plots.histogram(edges, counts, "age, share of each split in bins of 5 years", "years")]
        drawn.append(plots.bars(list(sexes.values()), "subjects by sex", "sex", "subjects", list(sexes)))
        parts.append(html.side_by_side(*drawn))
    else:
        parts.append(html.notice("No age is known."))
    sites = Counter((str(r.get("site") or "unknown"), split) for (split, _), r in subjects.items())
    if names := sorted({site for site, _ in sites} - {"unknown"}):
        by_site = [[n, *(sites[n, s] for s in SPLITS)] for n in [*names, "unknown"] if any(sites[n, s] for s in SPLITS)]
        parts.append(html.card("Subjects by site", html.table(["site", *SPLITS], by_site)))
    return parts


def _known(age: object) -> bool:
    return isinstance(age, int | float) and math.isfinite(age)


def _classes(d: Description) -> list[Html]:
    names = list(dict.fromkeys(name for by in d.labels.values() for name in by))
    if not names or names == ["unlabelled"]:
        return [html.notice("The images are unlabelled.")]
    rows = [[split, *(by.get(name, 0) for name in names)] for split, by in d.labels.items()]
    totals = [sum(by.get(name, 0) for by in d.labels.values()) for name in names]
    return [
        html.table(["split", *names], rows),
        html.side_by_side(plots.bars(totals, "images by class", "class", "images", names)),
    ]


def _left_out(d: Description) -> list[Html]:
    out = [row for row in d.rows if not row.get("split")]
    parts: list[Html] = []
    if d.leaks:
        parts.append(html.notice(f"Dropped, since they were in two splits: {len(d.leaks)} items.", "warn"))
        more = f" (the first {MOST_FILES})" if len(d.leaks) > MOST_FILES else ""
        listed = html.table(["dropped"], [[leak] for leak in d.leaks[:MOST_FILES]])
        parts.append(html.details(f"The leaks{more}", listed))
    if not out:
        return [*parts, html.paragraph("Every file is in use.")]
    reasons = Counter(str(row.get("reason") or "no reason recorded") for row in out)
    parts.append(html.table(["reason", "files"], reasons.most_common(MOST_ROWS)))
    files = [[row["path"], row["contrast"], row["subject"], row.get("reason") or ""] for row in out[:MOST_FILES]]
    more = f" (the first {MOST_FILES})" if len(out) > MOST_FILES else ""
    parts.append(
        html.details(f"The files left out{more}", html.table(["file", "contrast", "subject", "reason"], files))
    )
    return parts


def spacing_text(value: Sequence[float] | None) -> str:
    """Spacing as "1 x 0.9 mm"; "" where it is not known."""
    return " x ".join(f"{float(v):.4g}" for v in value) + " mm" if value else ""

"""A page in one file: small functions that return markup, and nothing that a page would fetch.

Every function escapes the plain strings it is given; what has been built already is `Html` and passes as it is.
"""

from __future__ import annotations

import base64
import html as standard
import io
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image

from mri_synth.errors import UserError

Tone = Literal["good", "warn", "plain"]
MIME = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
MISSING = "\N{EN DASH}"
SIMULATED = "SIMULATED DATA"  # stands on every page of data that no scanner made


class Html(str):
    """Markup: finished, escaped where needed, to be put into a page as it is."""

    __slots__ = ()


def escape(value: object) -> Html:
    """The value as text that is safe between tags and in attributes; `Html` comes back unchanged."""
    return value if isinstance(value, Html) else Html(standard.escape(str(value)))


def join(parts: Iterable[object]) -> Html:
    """The parts one after another, each escaped unless it is `Html`."""
    return Html("\n".join(escape(part) for part in parts))


def number(value: object, digits: int = 4) -> str:
    """A number for reading: whole numbers with thousands parted, others with a fixed number of decimals.

    Args:
        value: a number; None gives a dash; whatever is no number comes back as text.
        digits: decimals between 0.001 and 10 (at most 2 up to 1000, none up to 1e9), significant digits outside.

    Returns:
        Text such as "12,345", "0.9312", "29.31", "3.1e-05", "nan".
    """
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.{digits if abs(value) < 10 else min(digits, 2)}f}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Seconds as "48 s", "3 min 20 s" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes as "512 B", "3.4 MiB", "1.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def paragraph(text: object, kind: str = "") -> Html:
    """A paragraph, with a CSS class where `kind` names one."""
    return Html(f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>")


def code(text: object) -> Html:
    """A block of code or plain output; long lines wrap."""
    return Html(f"<pre>{escape(text)}</pre>")


def mono(text: object) -> Html:
    """A hash or a name in letters of one width."""
    return Html(f"<code>{escape(text)}</code>")


def badge(text: object, tone: Tone = "plain") -> Html:
    """A small label; `tone` "warn" is the loud one."""
    return Html(f'<span class="badge {tone}">{escape(text)}</span>')


def notice(text: object, tone: Tone = "plain") -> Html:
    """A remark set off from the text: what is missing, what to mind."""
    return Html(f'<div class="notice {tone}">{escape(text)}</div>')


def details(summary: object, *parts: object) -> Html:
    """Parts that are folded away under a line."""
    return Html(f"<details><summary>{escape(summary)}</summary>{join(parts)}</details>")


def section(title: str, *parts: object) -> Html:
    """A titled part of the page."""
    return Html(f"<section><h2>{escape(title)}</h2>{join(parts)}</section>")


def side_by_side(*parts: object) -> Html:
    """Parts in columns, one below the other where the screen is narrow."""
    return Html('<div class="columns">' + join(Html(f"<div>{escape(part)}</div>") for part in parts) + "</div>")


def card(title: object, *parts: object) -> Html:
    """A framed block with its own small heading."""
    return Html(f'<div class="card"><h3>{escape(title)}</h3>{join(parts)}</div>')


def facts(values: Mapping[str, object]) -> Html:
    """Names and values as a definition list; empty and None values are left out."""
    words = {name: ("yes" if v else "no") if isinstance(v, bool) else v for name, v in values.items()}
    kept = [(name, value) for name, value in words.items() if value not in (None, "")]
    rows = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in kept]
    return Html('<dl class="facts">' + "".join(rows) + "</dl>")


def tiles(values: Mapping[str, object]) -> Html:
    """A row of large figures with a small name each."""
    cells = [f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values.items()]
    return Html('<div class="tiles">' + "".join(cells) + "</div>")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table; on a narrow screen each row becomes a small card that repeats the column names.

    Args:
        head: column names.
        rows: cells, as many as there are columns; numbers are aligned right and written by `number`.

    Returns:
        The table's markup.

    Raises:
        ValueError: if a row has another length than the head.
    """
    body = []
    for row in rows:
        cells = []
        for name, cell in zip(head, row, strict=True):
            numeric = cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
            kind = ' class="number"' if numeric else ""
            text = number(cell) if numeric else cell
            cells.append(f'<td{kind} data-label="{escape(name)}"><span>{escape(text)}</span></td>')
        body.append("<tr>" + "".join(cells) + "</tr>")
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return Html(f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def figure(source: Image.Image | Path, caption: object = "", alt: str = "") -> Html:
    """A picture, written into the page itself.

    Args:
        source: an image, or a PNG, GIF or JPEG file.
        caption: text under it.
        alt: what a screen reader says; the caption's or file's name where empty.

    Returns:
        The figure's markup, the picture in base64.

    Raises:
        UserError: if the file has an ending that is no picture's.
    """
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        source.save(buffer, format="PNG", optimize=True)
        mime, data, width, name = "image/png", buffer.getvalue(), source.width, "picture"
    else:
        if source.suffix.lower() not in MIME:
            raise UserError(f"{source}: not a picture for a page; allowed are {', '.join(MIME)}.")
        with Image.open(source) as opened:
            width = opened.width
        mime, data, name = MIME[source.suffix.lower()], source.read_bytes(), source.name
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    encoded = base64.b64encode(data).decode("ascii")
    label = escape(alt or (caption if not isinstance(caption, Html) else "") or name)
    # The width is a wish: the style lets no picture grow beyond its own pixels or beyond the page.
    image = f'<img alt="{label}" width="{width}" src="data:{mime};base64,{encoded}">'
    return Html(f'<figure class="dark">{image}{text}</figure>')


def page(title: str, *parts: object) -> str:
    """A whole page with its style; it refers to nothing outside itself."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{join(parts)}\n"
        f"</main>\n</body>\n</html>\n"
    )


def write(text: str, path: Path) -> Path:
    """Writes a page by rename, so that a reader never meets half of one.

    Args:
        text: the page.
        path: where; its folder is made.

    Returns:
        The path.

    Raises:
        UserError: if the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}). Name another place for it.") from error
    return path


STYLE = """
:root { --ink: #16202b; --soft: #5b6875; --line: #dde3e9; --ground: #f5f7f9; --dark: #0d1117; --link: #1d4ed8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 0 0 .8rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: 0 0 .7rem; max-width: 78ch; }
section { margin-top: 28px; background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 24px; }
.soft, figcaption { color: var(--soft); font-size: .9rem; max-width: 110ch; }
.verdict { font-size: 1.15rem; line-height: 1.5; }
.formula { font: .9rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: var(--ground); border-left: 3px solid #b9c4cf; padding: 6px 12px; }
pre { font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 0 0 .7rem;
  background: var(--ground); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  white-space: pre-wrap; }
code { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 11px; margin-right: 6px; font-size: .8rem;
  font-weight: 600; letter-spacing: .02em; background: #e8edf2; color: #33414e; }
.badge.good { background: #d9f2e3; color: #12613a; }
.badge.warn, .notice.warn { background: #fdecc8; color: #7a4a00; }
.notice { background: #eef2f6; border-radius: 8px; padding: 10px 14px; margin: 0 0 .7rem; font-size: .94rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 20px;
  align-items: start; }
.columns > div { min-width: 0; }
.card { border-top: 1px solid var(--line); padding: 18px 0 14px; }
h2 + .card, p.soft + .card { border-top: 0; padding-top: 4px; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 0; }
.tiles div { flex: 1 1 auto; min-width: 124px;
  background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.tiles b { display: block; white-space: nowrap; font-size: 1.35rem; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
.facts { margin: 0 0 .7rem; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 8px 24px; }
.facts dt { color: var(--soft); font-size: .84rem; }
.facts dd { margin: 0; }
table { border-collapse: collapse; width: 100%; margin: 0 0 .8rem; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .84rem; vertical-align: bottom; }
td, th { overflow-wrap: normal; }
td a { overflow-wrap: anywhere; }
th, td { padding: 7px 10px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
td.number { white-space: nowrap; }
figure { margin: 0 0 16px; }
figure.dark { background: var(--dark); border-radius: 10px; overflow: hidden; }
figure.dark figcaption { color: #aab6c2; padding: 0 16px 12px; }
section > :last-child { margin-bottom: 0; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
svg { display: block; width: 100%; height: auto; font-family: inherit; }
.plot { max-width: 640px; }
.plot .head { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: .88rem; align-items: baseline; }
.plot .head span { font-weight: 600; font-variant-numeric: tabular-nums; }
.plot .head .soft { font-weight: 400; }
details { border-top: 1px solid var(--line); padding: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: .6rem; }
@media (max-width: 640px) {
  main { padding: 24px 12px 40px; }
  h1 { font-size: 1.55rem; }
  section { padding: 16px 14px; }
  thead { display: none; }
  tr { display: block; border-bottom: 1px solid var(--line); padding: 8px 0; }
  td { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 2px 0; }
  td > span { text-align: right; min-width: 0; }
  td::before { content: attr(data-label); color: var(--soft); flex: none; max-width: 45%; }
  td.number { white-space: normal; }
  td:first-child > span { font-weight: 600; }
}
@media print { body { background: #fff; } section, .card, figure { break-inside: avoid; } }
"""

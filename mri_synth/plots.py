"""Curves, bars and histograms as inline SVG: sharp at any size, values on hover, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mri_synth.html import Html, escape

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 40
# Told apart with every common colour blindness (Okabe and Ito); the three splits always have the same three.
COLOURS = {"train": "#0072b2", "val": "#d55e00", "test": "#009e73"}
OTHERS = ("#7b3fa0", "#b58900", "#56b4e9", "#c2407f", "#444444")
MOST_MARKS = 120
WIDEST_BAR = 60
DASHES = ("", "7 3", "2 2")  # so that equal outlines, one upon the other, are all seen


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from values to positions, with its ticks.

    Attributes:
        low: value at `start`.
        high: value at `stop`.
        start: position of `low` in SVG units.
        stop: position of `high` in SVG units.
        ticks: values that are written.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Position of a value, held inside the axis."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(max(value, self.low)) if self.log else value
        return self.start + min(max((at - low) / (high - low), 0.0), 1.0) * (self.stop - self.start)


def linear_axis(low: float, high: float, start: float, stop: float, count: int = 5) -> Axis:
    """An axis with about `count` ticks at 1, 2 or 5 times a power of ten, widened to its outer ticks."""
    if high - low < 1e-12 * max(abs(high), abs(low), 1e-300):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(k * step for k in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, stop, ticks)


def log_axis(low: float, high: float, start: float, stop: float) -> Axis:
    """A logarithmic axis over positive values: decades where there are two or more, else 1-2-5 or even steps."""
    if high / low < 1.5:
        # Nearly constant: a wider axis shows it as such, and has room for its ticks.
        low, high = low / 1.25, high * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        marks = [f * 10.0**d for d in decades for f in factors]
        inside = tuple(m for m in marks if low * 0.999 <= m <= high * 1.001)
        if 3 <= len(inside) <= 7:
            return Axis(low * 0.97, high / 0.97, start, stop, inside, True)
        if len(inside) > 7:
            return Axis(low * 0.97, high / 0.97, start, stop, inside[:: math.ceil(len(inside) / 6)], True)
    even = linear_axis(low, high, start, stop, 4).ticks
    inside = tuple(t for t in even if low * 0.97 <= t <= high / 0.97)
    return Axis(low * 0.97, high / 0.97, start, stop, inside or (low, high), True)


def tick(value: float) -> str:
    """A tick's label, short: 0.25, 1k, 1e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def colour(name: str, position: int) -> str:
    """A line's colour: fixed for train, val and test, by position for others."""
    return COLOURS.get(name, OTHERS[position % len(OTHERS)])


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    x_label: str,
    log: bool = False,
    legend: bool = True,
) -> Html:
    """Lines over a common axis.

    Args:
        series: name -> (x, y), equally long. Values that are not finite are left out; on a logarithmic axis also those
            that are zero or less, and their number is written.
        title: above the plot.
        x_label: under the axis.
        log: whether y is logarithmic.
        legend: whether names and last values are written.

    Returns:
        An SVG; a plain remark where nothing can be drawn.
    """
    finite = {
        n: [(float(a), float(b)) for a, b in zip(x, y, strict=True) if math.isfinite(b)] for n, (x, y) in series.items()
    }
    lines = {n: [(a, b) for a, b in points if b > 0 or not log] for n, points in finite.items()}
    skipped = sum(map(len, finite.values())) - sum(map(len, lines.values()))
    lines = {n: points for n, points in lines.items() if points}
    if not lines:
        why = "no positive value to draw on a logarithmic axis" if log and skipped else "no finite value to draw"
        return Html(f'<p class="soft">{escape(title)}: {why}.</p>')
    xs = [a for points in lines.values() for a, _ in points]
    ys = [b for points in lines.values() for _, b in points]
    across = _whole_axis(min(xs), max(xs))
    up = (log_axis if log else linear_axis)(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = [_frame(across, up, x_label)]
    names = []
    for i, (name, points) in enumerate(lines.items()):
        ink = colour(name, i)
        path = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.8" stroke-linejoin="round"/>'
        )
        marks = points[:: math.ceil(len(points) / MOST_MARKS)]
        for a, b in marks:
            at = f'cx="{across(a):.1f}" cy="{up(b):.1f}"'
            dot = f'<circle {at} r="2.4" fill="{ink}"/>' if len(marks) <= 40 else ""
            parts.append(
                f'<g>{dot}<circle {at} r="7" fill="transparent"/>'
                f"<title>{escape(name)}, {escape(x_label)} {a:g}: {b:.6g}</title></g>"
            )
        names.append((name, f"{points[-1][1]:.4g}", ink))
    remark = f"{skipped} value{'s' if skipped > 1 else ''} not above 0 left out" if skipped else ""
    return _plot(title, remark, parts, names if legend else [])


def bars(heights: Sequence[float], title: str, x_label: str, y_label: str, labels: Sequence[str] | None = None) -> Html:
    """Bars side by side.

    Args:
        heights: 0 or more, one per bar.
        title: above the plot.
        x_label: under the axis.
        y_label: what the heights are, written into the hover text.
        labels: one per bar, written under it; without them the axis counts bars from 1.

    Returns:
        An SVG; a plain remark where there are no bars.
    """
    if not heights:
        return Html(f'<p class="soft">{escape(title)}: nothing to draw.</p>')
    up = linear_axis(0, max(heights) or 1, HEIGHT - BOTTOM, TOP)
    across = Axis(0, len(heights), LEFT, WIDTH - RIGHT, ())
    step = (across.stop - across.start) / len(heights)
    gap = max(min(4.0, step * 0.2), step - WIDEST_BAR) if step > 3 else 0.0
    parts = [_frame(across, up, x_label)]
    for i, value in enumerate(heights):
        name = labels[i] if labels else f"{i + 1}"
        x, y = LEFT + i * step + gap / 2, up(value)
        parts.append(
            f'<rect x="{x:.2f}" y="{y:.1f}" width="{step - gap:.2f}" height="{HEIGHT - BOTTOM - y:.1f}" '
            f'fill="{COLOURS["train"]}"><title>{escape(name)}: {value:g} {escape(y_label)}</title></rect>'
        )
    if labels:
        every = math.ceil(len(heights) * (max(map(len, labels)) * 7 + 10) / (WIDTH - LEFT - RIGHT))
        written = [(i, labels[i]) for i in range(0, len(heights), every)]
    else:
        round_ones = linear_axis(1, len(heights) + 1, 0, 1).ticks
        written = [(int(t) - 1, f"{t:g}") for t in round_ones if t == int(t) and 1 <= t <= len(heights)]
    for i, name in written:
        parts.append(_text(LEFT + (i + 0.5) * step, HEIGHT - BOTTOM + 16, name, "middle"))
    return _plot(title, "", parts, [])


def histogram(
    edges: Sequence[float], counts: Mapping[str, Sequence[float]], title: str, x_label: str, log: bool = False
) -> Html:
    """Outlines of histograms over common bins, each as a share of its own total.

    Args:
        edges: (B + 1,) bin edges, rising.
        counts: name -> (B,) counts; a name without counts above zero is left out.
        title: above the plot.
        x_label: under the axis.
        log: whether the share is logarithmic; empty bins then lie on the floor.

    Returns:
        An SVG; a plain remark where all is empty.
    """
    shares = {n: [c / sum(values) for c in values] for n, values in counts.items() if sum(values) > 0}
    if not shares:
        return Html(f'<p class="soft">{escape(title)}: no values.</p>')
    flat = [s for values in shares.values() for s in values if s > 0]
    bottom, ceiling = HEIGHT - BOTTOM, max(flat)
    up = log_axis(min(flat), ceiling, bottom, TOP) if log else linear_axis(0, ceiling, bottom, TOP)
    even = linear_axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    inside = tuple(t for t in even.ticks if edges[0] <= t <= edges[-1])
    across = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT, inside)
    parts = [_frame(across, up, x_label)]
    legend = []
    for i, (name, values) in enumerate(shares.items()):
        ink = colour(name, i)
        corners = [
            f"{across(edges[j + k]):.1f},{up(v) if v > 0 or not log else bottom:.1f}"
            for j, v in enumerate(values)
            for k in (0, 1)
        ]
        parts.append(
            f'<polyline points="{" ".join(corners)}" fill="none" stroke="{ink}" stroke-width="1.6" '
            f'stroke-dasharray="{DASHES[i % len(DASHES)]}">'
            f"<title>{escape(name)}</title></polyline>"
        )
        legend.append((name, "", ink))
    return _plot(title, "", parts, legend)


def scatter(points: Mapping[str, Sequence[Sequence[float]]], title: str, x_label: str) -> Html:
    """Points of several sets over one another, with one scale for both directions' ticks each.

    Args:
        points: name -> (x, y) pairs; those that are not finite are left out.
        title: above the plot.
        x_label: under the axis.

    Returns:
        An SVG; a plain remark where there are no points.
    """
    kept = {n: [(float(x), float(y)) for x, y in p if math.isfinite(x) and math.isfinite(y)] for n, p in points.items()}
    kept = {n: p for n, p in kept.items() if p}
    if not kept:
        return Html(f'<p class="soft">{escape(title)}: no values.</p>')
    xs, ys = ([point[k] for p in kept.values() for point in p] for k in (0, 1))
    across = linear_axis(min(xs), max(xs), LEFT + 6, WIDTH - RIGHT - 8)
    up = linear_axis(min(ys), max(ys), HEIGHT - BOTTOM - 4, TOP)
    parts = [_frame(across, up, x_label)]
    drawn = [(i, name, point) for i, (name, p) in enumerate(kept.items()) for point in p]
    every = len(drawn)
    for k in range(every):  # in an order that mixes the sets, so that none hides the other
        i, name, (x, y) = drawn[k * _coprime(every) % every]
        shape = (f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{colour(name, i)}" fill-opacity=".65"/>'
                 if i == 0 else f'<path d="M{across(x) - 3:.1f} {up(y) - 3:.1f}l6 6m0 -6l-6 6" '
                 f'stroke="{colour(name, i)}" stroke-width="1.4" stroke-opacity=".8"/>')  # fmt: skip
        parts.append(shape)
    return _plot(title, "", parts, [(name, "", colour(name, i)) for i, name in enumerate(kept)])


def _coprime(count: int) -> int:
    """A step of about 0.6 count that visits all of 0 to count - 1."""
    step = max(1, int(0.618 * count))
    while math.gcd(step, count) != 1:
        step += 1
    return step


def _whole_axis(low: float, high: float) -> Axis:
    """An axis of epochs or steps: from the first to the last, ticks on whole numbers."""
    if high <= low:
        return Axis(low - 0.5, high + 0.5, LEFT, WIDTH - RIGHT, (low,))
    ticks = linear_axis(low, high, 0, 1, 6).ticks
    inside = tuple(t for t in ticks if low <= t <= high and (t == int(t) or high - low < 2))
    return Axis(low, high, LEFT + 6, WIDTH - RIGHT - 8, inside)


def _text(x: float, y: float, text: object, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11.5" fill="#5b6875">{escape(text)}</text>'


def _frame(across: Axis, up: Axis, x_label: str) -> str:
    """Grid lines, ticks, and the name of the horizontal axis."""
    parts = []
    for value in up.ticks:
        y = up(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6ebf0"/>')
        parts.append(_text(LEFT - 7, y + 4, tick(value), "end"))
    floor = HEIGHT - BOTTOM
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}" stroke="#9aa6b2"/>')
    for value in across.ticks:
        x = across(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}" stroke="#9aa6b2"/>')
        parts.append(_text(x, floor + 16, tick(value), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    return "".join(parts)


def _plot(title: str, remark: str, parts: Sequence[str], legend: Sequence[tuple[str, str, str]]) -> Html:
    """Name, legend (names and last values) and drawing; the letters above keep their size on a narrow screen."""
    names = "".join(
        f'<span style="color:{ink}">{escape(f"{name} {last}".strip())}</span>' for name, last, ink in legend
    )
    soft = f'<span class="soft">{escape(remark)}</span>' if remark else ""
    return Html(
        f'<div class="plot"><div class="head"><b>{escape(title)}</b>{soft}{names}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></div>'
    )

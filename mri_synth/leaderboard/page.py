"""`mri-synth leaderboard`: the boards on the terminal, as CSV and as one HTML page."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from mri_synth import html, outputs
from mri_synth.errors import UserError
from mri_synth.leaderboard import BESIDE, RANKED, Board, Entry, boards, mark, read_runs
from mri_synth.table import read_sweep

log = logging.getLogger(__name__)

COST = ("time", "images/s", "peak memory", "parameters", "precision", "device")
TOP = 20
WIDTH = 200
"""Characters, where there is no terminal to say."""


class AfterSweep(Callback):
    """Hydra's callback: a sweep ends with leaderboard.html in its folder, and its groups on the terminal."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Rank the sweep's jobs, those among them that were done before it."""
        folder = Path(config.hydra.sweep.dir)
        jobs = read_sweep(folder) if folder.is_dir() else []
        entries, left_out = read_runs(folder, [folder / j.name for j in jobs if j.results])
        if entries:
            found = boards(entries)
            html.write(page(folder, folder, found, left_out), folder / "leaderboard.html")
            show(found, left_out, TOP)
            log.info("leaderboard: %s", folder / "leaderboard.html")


def leaderboard(place: Path, output: Path | None = None, by: Sequence[str] = (), top: int = TOP) -> list[Board]:
    """Rank all runs below a folder, each group whose figures compare by itself; say it, and write it.

    Args:
        place: such as outputs/.
        output: a page (.html) or a table (.csv) to write.
        by: metrics to rank by; none for the usual ones.
        top: rows of each group on the terminal.

    Returns:
        The boards.

    Raises:
        UserError: no run there, no run has such a metric, or another ending than .html and .csv.
    """
    if output is not None and output.suffix not in (".html", ".csv"):
        raise UserError(f"--output {output}: allowed: a name that ends in .html or .csv")
    entries, left_out = read_runs(place)
    found = boards(entries, by or tuple(RANKED))
    if by and not found:
        names = sorted({n for e in entries for n in e.results.get("metrics") or {} if n.startswith("test/")})
        raise UserError(f"--by {', '.join(by)}: no finished run has it; there is: generation/kid, {', '.join(names)}")
    if output is not None and output.suffix == ".csv":
        output.parent.mkdir(parents=True, exist_ok=True)
        outputs.write_text(output, to_csv(entries, found))
    elif output is not None:
        html.write(page(place, output.parent, found, left_out), output)
    show(found, left_out, top)
    return found


def columns(board: Board) -> list[str]:
    """Further metrics of a board's runs which compare in all of them."""
    kept = []
    for name in BESIDE:
        having = [e for e in board.entries if e.value(name)[0] is not None]
        if name != board.metric and having and len({tuple(mark(e, name).values()) for e in having}) == 1:
            kept.append(name)
    return kept


def head(board: Board, beside: Sequence[str], varied: Sequence[str]) -> list[str]:
    """Names of a board's columns."""
    return ["rank", "run", "model", *varied, board.metric, *beside, *COST]


def row(board: Board, rank: int, entry: Entry, beside: Sequence[str], varied: Sequence[str]) -> list[str]:
    """One run of a board, as text."""
    values = [_shown(entry.config[k]) if k in entry.config else "" for k in varied]
    metrics = [_with_interval(entry, name) for name in (board.metric, *beside)]
    return [str(rank), entry.name, str(entry.results.get("model")), *values, *metrics, *cost(entry.results)]


def cost(results: Mapping[str, Any]) -> list[str]:
    """What a run took, and on what: in the order of COST."""
    memory, world = results.get("peak_memory_bytes"), int(results.get("world_size") or 1)
    device = str(results.get("device") or "")
    part = "> " if results.get("resumed") else ""  # what came before the resume is not in it
    return [part + html.duration(float(results.get("seconds") or 0)), html.number(results.get("images_per_second"), 1),
            html.size(memory) if memory else html.MISSING, html.number(results.get("parameters")),
            str(results.get("precision") or ""), f"{world} x {device}" if world > 1 else device]  # fmt: skip


def _with_interval(entry: Entry, name: str) -> str:
    value, interval = entry.value(name)
    between = f" [{html.number(interval[0])}, {html.number(interval[1])}]" if interval else ""
    return html.number(value) + between


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def title(board: Board) -> str:
    """Metric, direction, and how many runs of which data."""
    count = len(board.entries)
    return (f"{board.metric} ({'lower' if board.lower else 'higher'} is better): {count} run{'s' * (count > 1)} of "
            f"{board.mark['data']}, split {board.mark['split']}")  # fmt: skip


def show(found: Sequence[Board], left_out: Mapping[str, str], top: int) -> None:
    """The boards on the terminal; further metrics are on the page and in the CSV.

    Args:
        found: in order.
        left_out: runs that are not ranked, and why.
        top: rows of each.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for board in found:
        table = Table(title=Text(title(board)), title_justify="left")
        for name in ("rank", "run", "model", *(["differs in"] if board.varied else []), board.metric, *COST):
            table.add_column(name, overflow="fold")
        for i, entry in enumerate(board.entries[:top], 1):
            differs = " ".join(f"{k.removeprefix('model.')}={_shown(entry.config[k])}"
                               for k in board.varied if k in entry.config)  # fmt: skip
            cells = row(board, i, entry, (), ())
            cells[3:3] = [differs] if board.varied else []
            table.add_row(*map(Text, cells))
        console.print(table)
        if len(board.entries) > top:
            console.print(f"and {len(board.entries) - top} more", markup=False)
        for line in filter(None, (board.why, board.mark["task"], board.mark["items"])):
            console.print(line, markup=False, highlight=False)
    if left_out:
        console.print(f"{len(left_out)} run(s) not finished and not ranked", highlight=False)


def to_csv(entries: Sequence[Entry], found: Sequence[Board]) -> str:
    """Every run a row, values unrounded: its group and rank by each metric, all its metrics, cost and configuration.

    Args:
        entries: finished runs.
        found: the boards.

    Returns:
        Text of the table.
    """
    records = {e.name: _record(e) for e in entries}
    numbers: dict[str, int] = {}
    for board in found:
        numbers[board.metric] = numbers.get(board.metric, 0) + 1
        for rank, entry in enumerate(board.entries, 1):
            value, interval = entry.value(board.metric)
            low, high = interval or (None, None)
            records[entry.name] |= {
                f"{board.metric} group": numbers[board.metric], f"{board.metric} rank": rank, board.metric: value,
                f"{board.metric} low": low, f"{board.metric} high": high,
                f"{board.metric} protocol": board.mark["protocol"],
            }  # fmt: skip
    configs = {k: None for e in entries for k in e.config}
    varied = [k for k in configs if len({repr(e.config.get(k)) for e in entries}) > 1]
    for entry in entries:
        records[entry.name] |= {k: _shown(entry.config[k]) for k in varied if k in entry.config}
    names = dict.fromkeys(k for record in records.values() for k in record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records.values())
    return text.getvalue()


def _record(entry: Entry) -> dict[str, Any]:
    r = entry.results
    kept = ("model", "data", "simulated", "data_hash", "split_hash", "seconds", "resumed", "images_per_second",
            "peak_memory_bytes", "parameters", "precision", "device", "world_size")  # fmt: skip
    metrics = {k: v for k, v in (r.get("metrics") or {}).items() if k.startswith(("test/", "best/"))}
    return {"run": entry.name, **{k: r.get(k) for k in kept}, **metrics}


def page(place: Path, folder: Path, found: Sequence[Board], left_out: Mapping[str, str]) -> str:
    """The boards as one HTML page.

    Args:
        place: that was looked through.
        folder: of the page, for its links to the reports.
        found: the boards.
        left_out: runs that are not ranked, and why.

    Returns:
        The page.
    """
    way = os.path.relpath(place.resolve(), folder.resolve())
    sections = []
    for board in found:
        beside, varied = columns(board), board.varied
        rows: list[list[object]] = []
        for i, entry in enumerate(board.entries, 1):
            cells: list[object] = list(row(board, i, entry, beside, varied))
            cells[1] = html.Html(f'<a href="{html.escape(way)}/{html.escape(entry.name)}/report.html">'
                                 f"{html.escape(entry.name)}</a>")  # fmt: skip
            rows.append(cells)
        simulated = any(e.results.get("simulated") for e in board.entries)
        same = {"protocol": board.mark["protocol"], "what is scored": board.mark["task"],
                "test images": board.mark["items"] or "all" if board.mark["task"] else None}  # fmt: skip
        sections.append(html.section(
            title(board),
            html.notice(html.SIMULATED, "warn") if simulated else html.Html(""),
            html.notice(board.why, "warn") if board.why else html.Html(""),
            html.Html(f'<div style="overflow-x: auto">{html.table(head(board, beside, varied), rows)}</div>'),
            html.facts(same),
        ))  # fmt: skip
    ended = html.details(f"{len(left_out)} runs are not ranked", html.facts(left_out)) if left_out else html.Html("")
    return html.page(
        f"leaderboard of {place}",
        html.Html(f"<h1>Leaderboard of {html.escape(place)}</h1>"),
        html.paragraph("Runs are ranked within a group only: the same data and split, the same protocol and, of scores "
                       "of images, the same task. Of the configuration those keys are shown that differ. In brackets: "
                       "95 % confidence intervals; where they overlap, the order may be chance.", "soft"),
        *sections,
        ended,
    )  # fmt: skip

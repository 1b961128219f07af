"""The table of a sweep: one row per job, what was swept, and what came of it. Torch is not imported."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)

METRICS = ("test/elbo", "test/bits_per_dim", "test/active_units", "test/ssim", "generation/kid")
COSTS = ("parameters", "epochs", "seconds", "images_per_second")
FAILED, ELSEWHERE = "failed.jsonl", "elsewhere.jsonl"
_LOG_WIDTH = 200
"""Characters, where there is no terminal to say."""
MUST_AGREE = {"split_hash": "split", "data_hash": "data", "protocol": "protocol of the scores"}


@dataclass
class Job:
    """One job of a sweep.

    Attributes:
        name: of its folder, as seen from the sweep's, or its number where it left none.
        overrides: key to value, as given for this job.
        results: of `results.json`; empty when it failed before it wrote one.
        error: why it did not finish; "" when it did.
        number: in the sweep.
    """

    name: str
    overrides: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    number: int = 10**9


class SweepTable(Callback):
    """Hydra's callback: after a sweep, table.csv and table.html in its folder, and the table on the terminal.

    Args:
        metrics: columns, those that no job has left out: names of `metrics` in results.json, or generation/<name>.
    """

    def __init__(self, metrics: Sequence[str] = METRICS) -> None:
        self.metrics = tuple(metrics)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget what failed in the folder before: such a job is tried again now, or is no job of this sweep."""
        if "task=check" not in config.hydra.overrides.task:  # which leaves all as it is
            (Path(config.hydra.sweep.dir) / FAILED).unlink(missing_ok=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the table, if any job left something to tell."""
        folder = Path(config.hydra.sweep.dir)
        jobs = read_sweep(folder) if folder.is_dir() else []
        if jobs:
            write_table(folder, jobs, self.metrics)


def read_sweep(folder: Path) -> list[Job]:
    """The jobs of a sweep, in their order; those that failed come with the reason.

    Args:
        folder: of the sweep.

    Returns:
        One entry per job that left results or a reason.
    """
    found = {run: _read_job(run) for run in folder.iterdir() if (run / "results.json").is_file()}
    for entry in _lines(folder / ELSEWHERE):
        run = Path(entry["folder"])
        run = folder / run.name if run.parent.resolve() == folder.resolve() else run
        if run in found or (run / "results.json").is_file():
            job = found.setdefault(run, _read_job(run))
            job.name, job.number = os.path.relpath(run, folder), int(entry["job"])
            job.overrides = _overrides(entry["overrides"])
    jobs = list(found.values())
    for entry in _lines(folder / FAILED):
        number, overrides = int(entry["job"]), _overrides(entry["overrides"])
        known = next((j for j in jobs if _own(j.overrides) == _own(overrides)), None)  # numbers are each sweep's own
        if known is None:
            jobs.append(Job(str(number), overrides, error=entry["error"], number=number))
        elif known.error:
            known.error = entry["error"]
    return sorted(jobs, key=lambda j: (j.number, j.name))


def note_failed(sweep: Path, number: int, words: Sequence[str], error: str) -> None:
    """A failed job leaves a line, since its folder may hold nothing and go.

    Args:
        sweep: its folder.
        number: of the job.
        words: that compose it.
        error: why.
    """
    _append(sweep / FAILED, {"job": number, "overrides": list(words), "error": error})


def note_elsewhere(sweep: Path, number: int, words: Sequence[str], run: Path) -> None:
    """A job whose run began before leaves a line, since its folder may be another sweep's.

    Args:
        sweep: its folder.
        number: of the job.
        words: that compose it.
        run: the run's folder.
    """
    _append(sweep / ELSEWHERE, {"job": number, "overrides": list(words), "folder": str(run.resolve())})


def _append(path: Path, line: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:  # one short write, whole even from several jobs
        file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _number(name: str) -> int:
    digits = name.partition("_")[0]
    return int(digits) if digits.isdigit() else 10**9


def _read_job(run: Path) -> Job:
    words = run / ".hydra/overrides.yaml"
    job = Job(
        run.name,
        number=_number(run.name),
        overrides=_overrides(OmegaConf.to_container(OmegaConf.load(words)) if words.is_file() else []),
    )
    try:
        job.results = json.loads((run / "results.json").read_text())
        status = job.results.get("status")
        job.error = "" if status == "finished" else f"{status}, not finished"
    except (OSError, ValueError) as error:
        job.error = f"results.json cannot be read: {error}"
    return job


def _overrides(words: Any) -> dict[str, str]:
    pairs = (str(word).lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in pairs}


def _own(overrides: Mapping[str, str]) -> dict[str, str]:
    """Those that are not Hydra's, which a run's folder does not name."""
    return {k: v for k, v in overrides.items() if not k.startswith(("hydra.", "hydra/"))}


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys whose values are not the same in all jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [k for k in keys if len({job.overrides.get(k) for job in jobs}) > 1]


def metric(results: Mapping[str, Any], name: str) -> tuple[float | None, tuple[float, float] | None]:
    """A value of results.json and its interval.

    Args:
        results: content of results.json.
        name: of a metric, such as test/ssim, or of a section's value, such as generation/kid.

    Returns:
        Value and 95 % interval, None where there is none.
    """
    group, _, rest = name.partition("/")
    value: Any = (results.get("metrics") or {}).get(name)
    interval = ((results.get("details") or {}).get(name) or {}).get("ci")
    section = results.get(group)
    if value is None and isinstance(section, Mapping):
        value = section.get(rest)
    if isinstance(value, Mapping):
        value, interval = value.get("value"), value.get("ci")
    number = float(value) if isinstance(value, int | float) else None
    return number, (float(interval[0]), float(interval[1])) if interval else None


def disagreements(jobs: Iterable[Job]) -> list[str]:
    """What differs between jobs that must be the same for their figures to be compared.

    Args:
        jobs: of the sweep; those without results are passed over.

    Returns:
        One sentence for each.
    """
    rows = [job for job in jobs if job.results]
    found = []
    for key, word in MUST_AGREE.items():
        values = {json.dumps(job.results.get(key), sort_keys=True) for job in rows}
        if len(values) > 1:
            found.append(f"the {word} is not the same in all jobs: their figures do not compare")
    return found


def write_table(folder: Path, jobs: Sequence[Job], metrics: Sequence[str] = METRICS) -> Path:
    """table.csv and table.html into the sweep's folder, and the table on the terminal.

    Args:
        folder: of the sweep.
        jobs: as `read_sweep` found them.
        metrics: columns; those that no job has are left out.

    Returns:
        Path of the page.
    """
    from mri_synth import html, outputs

    swept = swept_keys(jobs)
    columns = [n for n in metrics if any(metric(job.results, n)[0] is not None for job in jobs)]
    best = dict.fromkeys(n for job in jobs for n in job.results.get("metrics") or {} if n.startswith("best/"))
    columns += [n for n in best if f"test/{n.rpartition('/')[2]}" not in columns]
    outputs.write_text(folder / "table.csv", _csv(jobs, swept, columns))
    done = [job for job in jobs if not job.error]
    head = [*(swept or ["job"]), *columns, "parameters", "epochs", "time", "images/s"]
    rows = [[*map(_short, _swept(job, swept)), *(_cell(job, n) for n in columns),
             html.number(job.results.get("parameters")), html.number(job.results.get("epochs")),
             html.duration(float(job.results.get("seconds") or 0)),
             html.number(job.results.get("images_per_second"), 1)] for job in done]  # fmt: skip
    failures = [f"job {j.name} ({' '.join(_swept(j, swept))}) failed: {j.error}" for j in jobs if j.error]
    remarks = [*disagreements(jobs), *failures]
    page = html.write(_page(folder, jobs, done, head, rows, remarks), folder / "table.html")
    _show(head, rows, disagreements(jobs), page)  # failures are named when the sweep has ended
    return page


def _swept(job: Job, swept: Sequence[str]) -> list[str]:
    return [job.overrides.get(k, "") for k in swept] if swept else [job.name]


def _short(word: str) -> str:
    """A number that a sweeper drew, in four digits; the rest of it is in table.csv."""
    try:
        return word if len(word) <= 8 or word.lstrip("+-").isdigit() else f"{float(word):.4g}"
    except ValueError:
        return word


def _cell(job: Job, name: str) -> str:
    from mri_synth import html

    value, interval = metric(job.results, name)
    if interval is None:
        return html.number(value)
    return f"{html.number(value)} [{html.number(interval[0])}, {html.number(interval[1])}]"


def _csv(jobs: Sequence[Job], swept: Sequence[str], columns: Sequence[str]) -> str:
    """Every job a row, values unrounded; a value's interval in two columns of its own."""
    records = []
    for job in jobs:
        record: dict[str, Any] = {"job": job.name} | {k: job.overrides.get(k, "") for k in swept}
        for name in columns:
            value, interval = metric(job.results, name)
            record[name], (record[f"{name}_low"], record[f"{name}_high"]) = value, interval or (None, None)
        record |= {k: job.results.get(k) for k in (*COSTS, "split_hash", "data_hash")} | {"error": job.error}
        records.append(record)
    kept = [k for k in records[0] if not k.endswith(("_low", "_high")) or any(r[k] is not None for r in records)]
    text = io.StringIO()
    writer = csv.DictWriter(text, kept, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _page(folder: Path, jobs: Sequence[Job], done: Sequence[Job], head: Sequence[str], rows: Sequence[Sequence[str]],
          remarks: Sequence[str]) -> str:  # fmt: skip
    from mri_synth import html

    simulated = any(job.results.get("simulated") for job in jobs)
    titles = dict.fromkeys(f"{j.results.get('model')} on {j.results.get('data')}" for j in jobs if j.results)
    links = [html.Html(f'<a href="{html.escape(j.name)}/report.html">{html.escape(j.name)}</a>') for j in done]
    fixed = {k: v for k, v in jobs[0].overrides.items() if k not in swept_keys(jobs)}
    protocols: Mapping[str, str] = next(
        (j.results["protocol"] for j in done if isinstance(j.results.get("protocol"), Mapping)), {}
    )
    shown = {f"test/{k}": v for k, v in protocols.items() if f"test/{k}" in head}
    return html.page(
        f"sweep {folder.name}",
        html.Html(f"<h1>{html.escape(', '.join(titles) or 'sweep')}</h1>"),
        html.notice(html.SIMULATED, "warn") if simulated else html.Html(""),
        *(html.notice(remark, "warn") for remark in remarks),
        html.section(
            f"{len(done)} of {len(jobs)} jobs finished",
            html.table([*head, "report"], [[*row, link] for row, link in zip(rows, links, strict=True)]),
            html.paragraph("In brackets: 95 % confidence intervals, as each report explains.", "soft"),
            *(html.paragraph(f"{name}: {text}", "soft") for name, text in shown.items()),
        ),
        html.section("The same in all jobs", html.facts(fixed)) if fixed else html.Html(""),
    )


def _show(head: Sequence[str], rows: Sequence[Sequence[str]], remarks: Sequence[str], page: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    console.print(table)
    for remark in remarks:
        log.warning(remark)
    log.info("table: %s", page)

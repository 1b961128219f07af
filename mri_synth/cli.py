"""`mri-synth VERB`: one function per verb; each verb's work is in its own module, imported when it is called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mri_synth.errors import UserError

app = typer.Typer(help="Train, compare and use generative models of MRI.", no_args_is_help=True,
                  epilog="A first run, on simulated brains: mri-synth run. Groups, keys, examples: add --help.",
                  pretty_exceptions_enable=False, add_completion=False,
                  context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def run(context: typer.Context) -> None:
    """Train and test: the same as python -m mri_synth.run."""
    from mri_synth.run import main as run_main

    sys.argv = ["mri-synth run", *context.args]
    run_main()


@app.command("list")
def list_() -> None:
    """Models and data sets, and which goes with which."""
    from mri_synth.matrix import show

    show()


@app.command()
def describe(
    overrides: Annotated[list[str], typer.Argument(help="as for run, such as data=ixi data.root=/my/ixi")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the HTML page")] = Path("describe.html"),
) -> None:
    """Look at a data set before training: one HTML page."""
    from mri_synth.describe import describe_overrides

    typer.echo(describe_overrides(overrides, output))


@app.command()
def reconstruct(
    checkpoint: Annotated[Path, typer.Argument(help="outputs/<run>/best.ckpt")],
    source: Annotated[Path, typer.Argument(help="NIfTI file, DICOM series folder, or picture")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where the folder holds several")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="slices at a time")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """A volume through a model and back: every slice, in the source's grid, shape, type and units."""
    from mri_synth.reconstruct import reconstruct as work

    typer.echo(work(checkpoint, source, output, series=series, batch_size=batch_size, device=device))


def main() -> None:
    """Entry point. A user's mistake ends with its message and status 2, without a traceback."""
    try:
        app()
    except UserError as error:
        typer.echo(f"\n{error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        typer.echo("\nstopped", err=True)
        raise SystemExit(130) from None

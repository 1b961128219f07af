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
def doctor(
    overrides: Annotated[list[str], typer.Argument(help="as for run, such as data=ixi data.contrasts=[T1,T2]")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON of all findings")] = None,
) -> None:
    """What is wrong with a data set, before training on it; exit status 1 when there is an error."""
    from mri_synth.doctor import doctor_overrides

    diagnosis = doctor_overrides(overrides, output)
    typer.echo(diagnosis.text())
    raise typer.Exit(0 if diagnosis.healthy else 1)


@app.command()
def reconstruct(
    checkpoint: Annotated[Path, typer.Argument(help="outputs/<run>/best.ckpt")],
    source: Annotated[Path, typer.Argument(help="NIfTI file, DICOM series folder, or picture")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file to write")],
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where the folder holds several")] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="OUTPUT_residual and OUTPUT_score: anomaly maps")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="slices at a time")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """A volume through a model and back: every slice, in the source's grid, shape, type and units."""
    from mri_synth.reconstruct import reconstruct as work

    typer.echo(work(checkpoint, source, output, series=series, residual=residual, batch_size=batch_size, device=device))


@app.command()
def translate(
    checkpoint: Annotated[Path, typer.Argument(help="outputs/<run>/best.ckpt of what translates")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file of one result, else a folder")],
    inputs: Annotated[
        list[Path] | None, typer.Argument(help="NIfTI files, or a folder: any tree, BIDS, DICOM series")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="T1=PATH, once for each source; with a folder T1='*mprage*'")
    ] = None,
    target: Annotated[Path | None, typer.Option(help="real scan, or folder of them, to score against")] = None,
    to: Annotated[str | None, typer.Option(help="contrast to make, of models that go both ways")] = None,
    available: Annotated[str | None, typer.Option(help="sources to use, such as T1,FLAIR: contrast dropout")] = None,
    series: Annotated[str | None, typer.Option(help="SeriesInstanceUID, where a folder holds several")] = None,
    tiles: Annotated[bool, typer.Option(help="slices larger than the model's frame in overlapping tiles")] = True,
    overlap: Annotated[float, typer.Option(help="of neighbouring tiles, share of their side")] = 0.25,
    precision: Annotated[str, typer.Option(help="bf16, 32, or auto: bf16 where the device computes in it")] = "auto",
    batch_size: Annotated[int, typer.Option(help="slices or tiles at a time")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="outputs of other models, options or files")] = False,
) -> None:
    """One contrast from others: whole volumes, in the source's grid and header, going on where it was stopped."""
    from mri_synth.translate import said
    from mri_synth.translate import translate as work
    from mri_synth.translator import Options

    given = dict(word.partition("=")[::2] for word in source or ())
    if len(given) < len(source or ()):
        raise UserError(f"--source: one contrast named twice ({', '.join(source or ())}); name each once")
    names = None if available is None else tuple(available.split(","))
    options = Options(to=to, available=names, tiles=tiles, overlap=overlap, precision=precision)
    states = []
    for outcome in work(checkpoint, inputs or [], output, given=given, series=series, target=target, options=options,
                        batch_size=batch_size, device=device, overwrite=overwrite):  # fmt: skip
        typer.echo(said(outcome), err=outcome.state == "failed")
        states.append(outcome.state)
    if len(states) > 1:
        typer.echo(", ".join(f"{states.count(s)} {s}" for s in ("written", "skipped", "failed") if s in states))
    if "failed" in states:
        raise typer.Exit(1)


@app.command()
def sample(
    checkpoint: Annotated[Path, typer.Argument(help="outputs/<run>/best.ckpt")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    n: Annotated[int | None, typer.Option("-n", help="how many; 64, or none beside a sheet or walk")] = None,
    seed: Annotated[int, typer.Option(help="of the first image; the next has the next seed")] = 0,
    label: Annotated[str | None, typer.Option(help="class or contrast, of conditional models")] = None,
    interpolate: Annotated[
        int | None, typer.Option(help="a sheet of ways from seed to seed, so many images each")
    ] = None,
    truncate: Annotated[str | None, typer.Option(help="a sheet of truncations, such as 0.3,0.5,0.7,1")] = None,
    walk: Annotated[int | None, typer.Option(help="GIF and MP4 of so many frames through latent space")] = None,
    truncation: Annotated[float | None, typer.Option(help="of what a GAN draws; below 1 nearer the typical")] = None,
    temperature: Annotated[float | None, typer.Option(help="of what is drawn; the model's own without")] = None,
    top_k: Annotated[int | None, typer.Option(help="one of the k likeliest codes")] = None,
    noise: Annotated[
        bool | None, typer.Option(help="with the pixel noise of real images; the model's own choice without")
    ] = None,
    format: Annotated[str, typer.Option(help="png, nifti or both")] = "png",
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """New images, a file and a seed each; going on where a stopped call ended. Or a look at the latent space."""
    from mri_synth.sample import sample as work

    options = {"temperature": temperature, "top_k": top_k, "noise": noise, "truncation": truncation}
    if interpolate is not None or truncate is not None or walk is not None:
        from mri_synth.walk import explore

        for path in explore(checkpoint, output, interpolate=interpolate, truncate=truncate, walk=walk, seed=seed,
                            label=label, options=options, batch_size=batch_size, device=device):  # fmt: skip
            typer.echo(path)
        if n is None:
            return
    typer.echo(work(checkpoint, 64 if n is None else n, output, seed=seed, label=label, options=options, format=format,
                    batch_size=batch_size, device=device))  # fmt: skip


weights_app = typer.Typer(help="Pretrained weights: which there are, where they are, and fetching them.",
                          no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip
app.add_typer(weights_app, name="weights")


@weights_app.command("list")
def weights_list() -> None:
    """What there is: what for, licence, size, and where it is now."""
    from mri_synth.weights import show

    show()


@weights_app.command("get")
def weights_get(name: Annotated[str, typer.Argument(help="as in mri-synth weights list")]) -> None:
    """Fetch weights into the cache, checked; says licence and source first."""
    from mri_synth.weights import announce, get

    typer.echo(announce(name), err=True)
    typer.echo(get(name))


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

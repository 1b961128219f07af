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
def leaderboard(
    place: Annotated[Path, typer.Argument(help="folder of run folders and sweeps")] = Path("outputs"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="page.html or table.csv to write")] = None,
    by: Annotated[list[str] | None, typer.Option(help="metric to rank by, such as test/psnr; again for more")] = None,
    top: Annotated[int, typer.Option(min=1, help="rows of each group on the terminal")] = 20,
) -> None:
    """All runs, ranked where data, split and protocol are the same, with differences, intervals and cost."""
    from mri_synth.leaderboard.page import leaderboard as work

    work(place, output, by or (), top)
    if output is not None:
        typer.echo(output)


@app.command()
def evaluate(
    real: Annotated[str, typer.Argument(help="folder of images; 'data=ixi data.root=/my/ixi' in quotes; or a store")],
    fake: Annotated[str, typer.Argument(help="the same, or outputs/<run>/best.ckpt of what samples")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of page, JSON and pictures")] = Path(
        "evaluation"
    ),
    train: Annotated[str | None, typer.Option(help="what the fakes' model was trained on: memorisation test")] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="inception, inception_bf16, pixels, or an encoder's checkpoint")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="images a side of an FID, and samples of a checkpoint")] = 1000,
    size: Annotated[int | None, typer.Option(help="side in pixels to bring all images to, where sizes differ")] = None,
    plane: Annotated[str, typer.Option(help="of volumes: axial, coronal, sagittal")] = "axial",
    intensity: Annotated[str, typer.Option(help="of folders: auto, unit ([0, 1]), percentile, minmax")] = "auto",
    at_most: Annotated[int, typer.Option(help="images of a set that are looked at, drawn by seed")] = 10_000,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="files that cannot be used are left out")] = False,
    utility: Annotated[bool, typer.Option(help="networks trained on fakes, where there are classes or masks")] = True,
    seed: Annotated[int, typer.Option(help="of every draw")] = 0,
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """Generated images against real ones: KID, FID, diversity, copies, utility, with intervals; HTML and JSON."""
    from mri_synth.evaluate import PAGE
    from mri_synth.evaluate import evaluate as work

    found = work(real, fake, output, train=train, features=features or ("auto",), n=n, size=size, plane=plane,
                 intensity=intensity, at_most=at_most, skip_bad=skip_bad, with_utility=utility, seed=seed,
                 batch_size=batch_size, device=device)  # fmt: skip
    for line in found["verdicts"]:
        typer.echo(line)
    typer.echo(output / PAGE)


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
    from mri_synth.translate.translator import Options

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
    prompt: Annotated[
        str | None, typer.Option(help='such as "T2 slice, lesion on the left", of models of model.condition=text')
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="how far to go to what is asked for; above 1 beyond it; the model's own without"),
    ] = None,
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
    first_stage: Annotated[
        Path | None, typer.Option(help="of a prior: whose decoder draws, trained further by model.trained=decoder")
    ] = None,
    format: Annotated[str, typer.Option(help="png, nifti or both")] = "png",
    batch_size: Annotated[int, typer.Option(help="images at a time")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """New images, a file and a seed each; going on where a stopped call ended. Or a look at the latent space."""
    from mri_synth.sample import sample as work

    options = {"temperature": temperature, "top_k": top_k, "noise": noise, "truncation": truncation, "prompt": prompt,
               "guidance": guidance}  # fmt: skip
    if interpolate is not None or truncate is not None or walk is not None:
        from mri_synth.walk import explore

        for path in explore(checkpoint, output, interpolate=interpolate, truncate=truncate, walk=walk, seed=seed,
                            label=label, options=options, batch_size=batch_size, device=device):  # fmt: skip
            typer.echo(path)
        if n is None:
            return
    typer.echo(work(checkpoint, 64 if n is None else n, output, seed=seed, label=label, options=options, format=format,
                    batch_size=batch_size, device=device, first_stage=first_stage))  # fmt: skip


@app.command()
def refine(
    inputs: Annotated[list[Path], typer.Argument(help="whose content stays: pictures, volumes, or a folder of them")],
    output: Annotated[Path, typer.Option("--output", "-o", help="file of one result, else a folder")],
    style: Annotated[str, typer.Option(help="whose style comes: file, folder, or 'pattern*'; paintings are allowed")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="of conf/model/style_transfer.yaml, such as steps=30; repeatable")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="which style goes with which content")] = 0,
    size: Annotated[int | None, typer.Option(help="longer side at which it is done, pixels; the files' own")] = None,
    plane: Annotated[str, typer.Option(help="of volumes: axial, coronal, sagittal")] = "axial",
    neighbours: Annotated[bool, typer.Option(help="slices start with their neighbours' changes: less flicker")] = True,
    batch_size: Annotated[int, typer.Option(help="pictures at a time")] = 8,
    precision: Annotated[str, typer.Option(help="bf16, 32, or auto: bf16 where the device computes in it")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="outputs of other settings or files")] = False,
) -> None:
    """Style transfer as a last step: samples in the style of real images, or real ones in that of samples."""
    from mri_synth.refine import refine as work
    from mri_synth.refine.outputs import said

    states = []
    for outcome in work(inputs, output, style=style, settings=set_ or (), seed=seed, size=size, plane=plane,
                        neighbours=neighbours, batch_size=batch_size, precision=precision, device=device,
                        overwrite=overwrite):  # fmt: skip
        typer.echo(said(outcome), err=outcome.state == "failed")
        states.append(outcome.state)
    if len(states) > 1:
        typer.echo(", ".join(f"{states.count(s)} {s}" for s in ("written", "skipped", "failed") if s in states))
    if "failed" in states:
        raise typer.Exit(1)


@app.command()
def imagine(
    checkpoint: Annotated[str, typer.Argument(help="outputs/<run>/best.ckpt of what has latents: vqgan, vqvae, ...")],
    prompts: Annotated[list[str], typer.Argument(help='such as "MRI spaceship:1 | blurry:-0.5"; a picture for each')],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    guide: Annotated[str, typer.Option(help="mri_clip:CHECKPOINT, clip:NAME_OR_FOLDER, or conse")] = "mri_clip",
    init: Annotated[Path | None, typer.Option(help="NIfTI or picture to start from; random without")] = None,
    slice_: Annotated[int | None, typer.Option("--slice", help="of a volume, from 0 on")] = None,
    init_weight: Annotated[float | None, typer.Option(help="of the distance from the start")] = None,
    steps: Annotated[int | None, typer.Option(help="of the optimisation; 200")] = None,
    size: Annotated[int | None, typer.Option(help="side in pixels; the generator's own")] = None,
    palette: Annotated[str | None, typer.Option(help="colours: copper, forest, magma, space, volcano")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="of conf/model/clip_guided.yaml, such as cutouts=32; repeatable")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="a further checkpoint, beside the first on one sheet; repeatable")
    ] = None,
    generator_config: Annotated[
        str | None, typer.Option(help="yaml of a checkpoint of taming-transformers; of one for each, with commas")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="pictures of each prompt, a seed each")] = 1,
    seed: Annotated[int, typer.Option(help="of the first; the next has the next seed")] = 0,
    every: Annotated[int | None, typer.Option(help="steps from still to still; so many that there are 40")] = None,
    batch_size: Annotated[int, typer.Option(help="pictures at a time")] = 4,
    precision: Annotated[str, typer.Option(help="bf16, 32, or auto: bf16 where the device computes in it")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """Pictures drawn to texts, from one's own models: stills, GIF and MP4; going on where a stopped call ended."""
    from mri_synth.imagine import imagine as work

    given = {"init_weight": init_weight, "steps": steps, "size": size, "palette": palette}
    words = [*(f"{k}={v}" for k, v in given.items() if v is not None), *(set_ or ())]
    typer.echo(work([checkpoint, *(also or ())], prompts, output, guide=guide, generator_config=generator_config,
                    init=init, slice=slice_, n=n, seed=seed, every=every, settings=words, batch_size=batch_size,
                    precision=precision, device=device))  # fmt: skip


@app.command()
def release(
    checkpoint: Annotated[Path, typer.Argument(help="outputs/<run>/best.ckpt")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to make")],
    licence: Annotated[str | None, typer.Option(help="of the training data, for the card")] = None,
    use: Annotated[str | None, typer.Option(help="what the model is meant for, for the card")] = None,
    onnx: Annotated[
        bool | None, typer.Option("--onnx/--no-onnx", help="ONNX too; without, where its packages are installed")
    ] = None,
) -> None:
    """A checkpoint as a folder to hand on: weights, graphs that need torch alone, model card, a hash of each file."""
    import hashlib

    from mri_synth.release import release as work
    from mri_synth.release.loader import MANIFEST

    typer.echo(work(checkpoint, output, licence=licence, use=use, onnx=onnx))
    typer.echo(f"SHA-256 of {MANIFEST}: {hashlib.sha256((output / MANIFEST).read_bytes()).hexdigest()}")


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


if __name__ == "__main__":
    main()

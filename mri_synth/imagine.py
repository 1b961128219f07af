"""`mri-synth imagine`: pictures drawn to texts, with how they came about: stills, GIF, MP4 and the losses."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mri_synth import __version__, config, drawing, plots
from mri_synth.data import identity
from mri_synth.data.batch import Batch
from mri_synth.data.nifti import whole_file
from mri_synth.devices import device_of, in_bf16
from mri_synth.errors import UserError
from mri_synth.guided import space_of
from mri_synth.guides import guide as load_guide
from mri_synth.models.canvas import paint
from mri_synth.models.clip_guided import ClipGuided
from mri_synth.overrides import admit_unknown
from mri_synth.sample import LAST_SEED
from mri_synth.walk import mp4

log = logging.getLogger(__name__)

RECORD = "imagine.json"
FRAMES = 40
"""Stills of a job where their number is left open, and so frames of its animations."""
FPS = 10
ELSEWHERE = {"prompts": "are the arguments", "generator": "is the checkpoint", "jobs": "is -n", "init": "is --init",
             "init_image": "is --init", "init_slice": "is --slice", "guide": "is --guide", "weights": "is --guide",
             "every": "is --every", "_target_": "is clip_guided"}  # fmt: skip


class Stills(pl.Callback):
    """Keeps what the jobs look like on the way, and the objective of every step.

    Attributes:
        frames: (step, (B, C, H, W) float32 on the CPU), from step 0 to the last.
        losses: (B,) of each step.
    """

    def __init__(self, every: int, steps: int) -> None:
        """Look at the first, the last, and every so many steps.

        Args:
            every: steps from one to the next.
            steps: of the jobs.
        """
        self.every, self.steps = every, steps
        self.frames: list[tuple[int, Tensor]] = []
        self.losses: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Where they start."""
        self._look(pl_module, 0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        """After each step."""
        optimizer: Any = trainer.optimizers[0]
        self.losses.append(optimizer.values.tolist())
        step = batch_idx + 1
        if step % self.every == 0 or step == self.steps:
            self._look(pl_module, step)

    def _look(self, model: Any, step: int) -> None:
        index = torch.arange(len(model.canvas), device=model.canvas.device)
        self.frames.append((step, model.results(index).cpu()))


def imagine(
    generators: Sequence[str],
    prompts: Sequence[str],
    output: Path,
    *,
    guide: str = "mri_clip",
    generator_config: str | None = None,
    init: Path | None = None,
    slice: int | None = None,
    n: int = 1,
    seed: int = 0,
    every: int | None = None,
    settings: Sequence[str] = (),
    batch_size: int = 4,
    precision: str = "auto",
    device: str = "auto",
) -> Path:
    """Draw pictures to texts, each prompt set with the seeds seed, seed + 1, ..., under each generator.

    A job's folder holds final.png, start.png, stills, evolution.gif and .mp4, loss.svg and loss.csv; sheet.png
    shows all of them, a row for each generator and seed. What is there already is not made again, so a call that was
    stopped is gone on with by giving it again, and a larger `n` adds.

    Args:
        generators: checkpoints.
        prompts: a set each, as `mri_synth.prompts.schedule` reads them.
        output: folder; made where missing.
        guide: "mri_clip:CHECKPOINT", "clip:NAME" or "conse".
        generator_config: yaml of generators that are checkpoints of taming-transformers; of several with commas
            between, in their order, and nothing where a generator is none of them.
        init: volume or picture from which all start; None: from random latents.
        slice: of the volume.
        n: seeds.
        seed: the first.
        every: steps from one still to the next; None: so many that there are 40.
        settings: "key=value" of `conf/model/clip_guided.yaml`.
        batch_size: jobs at once.
        precision: "bf16", "32", or "auto": bf16 where the device computes in it.
        device: "auto" (CUDA where there is some), "cpu", "cuda", ...

    Returns:
        The folder.

    Raises:
        UserError: a prompt, a setting, a file or a number is not usable, or the folder holds other jobs' results.
    """
    for name, value, least in (("n", n, 1), ("batch-size", batch_size, 1), ("seed", seed, 0), ("every", every, 1)):
        if value is not None and value < least:
            raise UserError(f"--{name}={value}: allowed: a whole number from {least} on")
    if seed + n > LAST_SEED or not generators or not prompts:
        raise UserError("nothing to do: give a checkpoint and a prompt, and a seed that is not beyond all numbers")
    if precision not in ("auto", "bf16", "32"):
        raise UserError(f"--precision={precision}: allowed: auto, bf16, 32")
    place = device_of(device)
    kind, _, weights = guide.partition(":")
    given = {"prompts": list(prompts), "guide": kind, "weights": weights or None,
             "init": "random" if init is None else "image", "init_image": None if init is None else str(init),
             "init_slice": slice}  # fmt: skip
    configs = [c or None for c in (generator_config or "").split(",")]
    if len(configs) not in (1, len(generators)):
        raise UserError(f"--generator-config={generator_config}: {len(configs)} for {len(generators)} generators; "
                        "give one for all, or one for each with commas between")  # fmt: skip
    of = dict(zip(generators, configs * (len(generators) if len(configs) == 1 else 1), strict=True))
    told = {g: settings_of(settings, {**given, "generator": g, "generator_config": of[g]}) for g in generators}
    if slice is not None and init is None:
        raise UserError(f"--slice={slice}: of what? give --init VOLUME with it")
    exact = "bf16-mixed" if in_bf16(precision, place) else "32-true"
    first = told[generators[0]]
    every = every or max(1, math.ceil(first["steps"] / FRAMES))
    record = {
        "synthetic": f"imagined by mri_synth {__version__}; not measured images",
        "generators_sha256": [identity.sha256(Path(g)) for g in generators],
        "generator_configs_sha256": [c and _content(c) for c in of.values()] if any(configs) else None,
        "guide": kind, "weights": _content(weights),
        "init_sha256": None if init is None else identity.sha256(init),
        "settings": {k: v for k, v in first.items() if k not in ("generator", "generator_config", "weights",
                                                                   "init_image", "prompts")},
        "prompts": list(prompts), "precision": exact,
    }  # fmt: skip
    _same_settings(output, record)
    seer = load_guide(first["guide"], first["weights"])
    names = names_of(generators)
    rows: dict[str, list[Path]] = {}
    simulated = False
    for generator, name in zip(generators, names, strict=True):
        space, spec = space_of(generator, of[generator])
        simulated = simulated or spec.simulated
        within = output / name if len(generators) > 1 else output
        jobs = [(s, p) for s in range(seed, seed + n) for p in range(len(prompts))]
        folders = [within / f"{_stem(prompts[p], p)}_s{s}" for s, p in jobs]
        for start in range(0, len(jobs), batch_size):
            at = range(start, min(start + batch_size, len(jobs)))
            if all((folders[k] / "final.png").exists() for k in at):
                continue
            model = ClipGuided(spec, **{**told[generator], "prompts": [prompts[jobs[k][1]] for k in at]})
            model.hold(space, spec, seer, torch.tensor([jobs[k][0] for k in at]))
            stills = Stills(every, model.steps)
            index = torch.arange(len(at))
            images = torch.zeros(len(at), spec.channels, spec.size, spec.size)
            paint(model, Batch(image=images, index=index), exact, device, callbacks=[stills])  # type: ignore[arg-type]
            _write_record(output, record, generators, seed, n)  # whatever is wrong is known by now
            for k, i in zip(at, index.tolist(), strict=True):
                if (folders[k] / "final.png").exists():
                    continue
                about = f"{prompts[jobs[k][1]]} · {name} · seed {jobs[k][0]}"
                about += " · trained on SIMULATED images" if spec.simulated else ""
                _write(folders[k], about, [(step, x[i].numpy()) for step, x in stills.frames],
                       [row[i] for row in stills.losses])  # fmt: skip
                log.info("%s", folders[k])
        for number, s in enumerate(range(seed, seed + n)):
            here = folders[number * len(prompts) : (number + 1) * len(prompts)]
            rows[f"{name}, seed {s}"] = here
    title = f"synthetic: mri_synth {__version__} · {guide.partition(':')[0]}"
    title += " · trained on SIMULATED images" if simulated else ""
    shown = {row: np.stack([_read(f / "final.png") for f in here]) for row, here in rows.items()}
    if init is not None:
        begun = np.stack([_read(f / "start.png") for f in next(iter(rows.values()))])
        shown = {f"start: {init.name} through {names[0]}": begun, **shown}
    drawing.save(drawing.sheet(shown, title, list(prompts)), output / "sheet.png")
    return output


def names_of(generators: Sequence[str]) -> list[str]:
    """Short names of checkpoints that differ.

    Args:
        generators: paths.

    Returns:
        The folder's name where the file is best.ckpt or last.ckpt, else the file's; numbered where two are the same.
    """
    found = [Path(g).resolve().parent.name if Path(g).stem in ("best", "last") else Path(g).stem for g in generators]
    return [f"{name}_{k}" if found.count(name) > 1 else name for k, name in enumerate(found)]


def settings_of(words: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model.

    Args:
        words: "key=value" each, over `conf/model/clip_guided.yaml`.
        given: further ones by name.

    Returns:
        All arguments of `ClipGuided` but `spec` and `jobs`.

    Raises:
        UserError: unknown, not allowed, or said elsewhere.
    """
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    words = [w.removeprefix("model.") for w in words]
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals:
            raise UserError(f"--set {word}: give KEY=VALUE, a key of conf/model/clip_guided.yaml, such as steps=100")
        if key in ELSEWHERE:
            raise UserError(f"--set {word}: {key} {ELSEWHERE[key]}")
    admitted = admit_unknown(["model=clip_guided", *(f"model.{w}" for w in words)])
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        composed = compose("run", admitted)
    for key, value in given.items():
        OmegaConf.update(composed, f"model.{key}", value, force_add=True)
    config.check(composed)
    found: Any = OmegaConf.to_container(composed["model"], resolve=True)
    return {k: v for k, v in found.items() if k not in ("_target_", "jobs")}


def _content(weights: str) -> str:
    """What weights are: a file by its content, else as they were named."""
    return identity.sha256(Path(weights)) if Path(weights).is_file() else weights


def _same_settings(output: Path, record: Mapping[str, Any]) -> None:
    """Results of other settings are never mixed with these."""
    path = output / RECORD
    if not output.is_dir() or not any(output.rglob("final.png")):
        return
    if not path.exists():
        raise UserError(f"{output}: holds results without their {RECORD}; give another folder")
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: not readable; delete it, or give another folder") from None
    now = json.loads(json.dumps(record))
    differ = [k for k, v in now.items() if k != "synthetic" and before.get(k) != v]
    if differ:
        said = "; ".join(f"{k}: {str(before.get(k))[:120]} there, {str(now[k])[:120]} here" for k in differ)
        raise UserError(f"{output}: holds results of other settings ({said}); give another folder")


def _write_record(output: Path, record: Mapping[str, Any], generators: Sequence[str], seed: int, n: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with whole_file(output / RECORD) as part:
        part.write_text(json.dumps({**record, "generators": [str(Path(g).resolve()) for g in generators],
                                    "seeds": [seed, seed + n - 1]}, indent=2) + "\n")  # fmt: skip


def _stem(prompt: str, number: int) -> str:
    """A prompt as part of a folder's name."""
    kept = "".join(c if c.isalnum() else "_" for c in prompt.partition(":")[0].strip())
    return f"{number:02d}_{'_'.join(filter(None, kept.split('_')))[:40] or 'prompt'}"


def _write(folder: Path, about: str, frames: Sequence[tuple[int, NDArray[Any]]], losses: Sequence[float]) -> None:
    """One job's files; final.png comes last, so that it says that all are there."""
    first, last = frames[0][1], frames[-1][1]
    for step, image in frames:
        _save(image, folder / "stills" / f"step_{step:05d}.png", about)
    _save(first, folder / "start.png", about)
    drawn = [drawing.grid(x[None], f"{about} · step {step}", columns=1, cell=384) for step, x in frames]
    drawing.gif(drawn, folder / "evolution.gif", round(1000 / FPS))
    with_pause = [*drawn, *itertools.repeat(drawn[-1], FPS)]
    try:
        mp4(with_pause, folder / "evolution.mp4", FPS, f"synthetic: mri_synth {__version__}: {about}")
    except UserError as error:  # without PyAV there is the GIF
        log.warning("%s", error)
    with whole_file(folder / "loss.csv") as part, part.open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss"), *((k + 1, f"{v:.6g}") for k, v in enumerate(losses))])
    curve = plots.curve({"loss": (range(1, len(losses) + 1), losses)}, about, "step")
    with whole_file(folder / "loss.svg") as part:
        part.write_text(str(curve).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    _save(last, folder / "final.png", about)


def _save(image: NDArray[Any], path: Path, about: str) -> None:
    """Grey in 16 bits, colour in 8, (C, H, W) in [-1, 1]."""
    text = PngInfo()
    text.add_itxt("Description", f"synthetic: mri_synth {__version__}: {about}")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (image.clip(-1, 1) + 1) / 2
    grey = len(values) == 1
    pixels = np.rint(values[0] * 65535).astype(np.uint16) if grey else (
        np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0))  # fmt: skip
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, format="PNG", pnginfo=text)


def _read(path: Path) -> NDArray[np.float32]:
    """(3, H, W) in [-1, 1]."""
    with Image.open(path) as opened:
        values = np.asarray(opened, np.float32)
    if values.ndim == 2:
        return np.repeat(values[None] / 32767.5 - 1, 3, 0)
    return values.transpose(2, 0, 1) / 127.5 - 1

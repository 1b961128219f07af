"""Pictures of a latent space: from one image to the next, nearer to the typical image, and walks as GIF and MP4."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mri_synth import __version__, drawing
from mri_synth.data.nifti import whole_file
from mri_synth.devices import device_of
from mri_synth.errors import UserError
from mri_synth.latent import line, loop
from mri_synth.models.base import SynthModule
from mri_synth.models.checkpoint import load_model
from mri_synth.sample import check_options, draw, label_index

ROWS = 6
COLUMNS = 8
STRIDE = 24
"""Frames of a walk from one seed to the next: two seconds."""
FPS = 12
RECORD = "latent.json"


def explore(
    checkpoint: Path,
    output: Path,
    *,
    interpolate: int | None = None,
    truncate: str | None = None,
    walk: int | None = None,
    seed: int = 0,
    label: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    device: str = "auto",
) -> list[Path]:
    """Draw what is asked for of a model's latent space.

    Args:
        checkpoint: of a run whose model samples.
        output: folder of the files; made where missing.
        interpolate: images of a row of interpolation.png, from one seed to the next, both among them.
        truncate: values such as "0.3,0.5,1", a row of truncation.png each: of the option `truncation` of the method's
            `sample`, or of its `temperature`.
        walk: frames of walk.gif and walk.mp4, round through several seeds and back.
        seed: of the first image.
        label: what is asked for, of conditional models.
        options: further ones of the method's `sample`; None values are left out.
        batch_size: images at once.
        device: "auto" (CUDA where there is some), "cpu", "cuda", ...

    Returns:
        The files.

    Raises:
        UserError: the method has no latent vector or no such option, a number is out of range, or a library is missing.
    """
    for name, value, least in (("interpolate", interpolate, 2), ("walk", walk, 2), ("seed", seed, 0),
                               ("batch-size", batch_size, 1)):  # fmt: skip
        if value is not None and value < least:
            raise UserError(f"--{name}={value}: allowed: a whole number from {least} on")
    place = device_of(device)
    model = load_model(checkpoint).to(place)
    if not model.samples():
        raise UserError(f"{checkpoint}: its model, {type(model).__name__}, makes no new images")
    chosen = {k: v for k, v in (options or {}).items() if v is not None}
    check_options(model, chosen)
    if label is None and (known := model.conditions()):
        label = known[seed % len(known)]  # between classes a generator has learned nothing: one is taken, and said
    wanted = label_index(model, label)
    values = [] if truncate is None else numbers("truncate", truncate)
    option = truncation_option(model) if values else ""
    if interpolate or walk:
        latent_of(model, [seed])  # a method without one says so before anything is drawn
    made = []
    about = f"{type(model).__name__} · synthetic" + (f" · {label}" if label else "")
    about += " · trained on SIMULATED images" if model.spec.simulated else ""

    def images(z: Tensor) -> Tensor:
        return _decoded(model, z, wanted, chosen, batch_size)

    if interpolate:
        seeds = range(seed, seed + ROWS + 1)
        ways = line(latent_of(model, seeds), interpolate)
        rows = {f"seed {s} to seed {s + 1}": images(way) for s, way in zip(seeds, ways, strict=False)}
        made.append(drawing.save(drawing.sheet(rows, f"{about} · from seed to seed"), output / "interpolation.png"))
    if values:
        seeds = range(seed, seed + COLUMNS)
        labels = None if wanted is None else torch.full((COLUMNS,), wanted)
        rows = {f"{option} {v:g}": draw(model, seeds, labels, {**chosen, option: v}) for v in values}
        picture = drawing.sheet(rows, f"{about} · {option}", [f"seed {s}" for s in seeds])
        made.append(drawing.save(picture, output / "truncation.png"))
    with whole_file(output / RECORD) as part:
        part.write_text(json.dumps({
            "synthetic": f"sampled by mri_synth {__version__}; not measured images", "checkpoint": str(checkpoint),
            "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(), "seed": seed, "label": label,
            "options": chosen, "interpolate": interpolate, "truncate": values, "walk": walk,
        }, indent=2) + "\n")  # fmt: skip
    if walk:
        seeds = range(seed, seed + max(2, round(walk / STRIDE)))
        found = images(loop(latent_of(model, seeds), walk))
        title = f"{about} · seeds {seeds[0]} to {seeds[-1]}"
        frames = [drawing.grid(image[None], title, columns=1, cell=320) for image in found]
        made.append(drawing.gif(frames, output / "walk.gif", round(1000 / FPS), round(1000 / FPS)))
        made.append(mp4(frames, output / "walk.mp4", FPS, f"synthetic: mri_synth {__version__}"))
    return made


def latent_of(model: SynthModule, seeds: Sequence[int]) -> Tensor:
    """Latent vectors of seeds.

    Args:
        model: any.
        seeds: one per vector.

    Returns:
        (n, D).
    """
    return model.latent(torch.tensor(list(seeds), dtype=torch.int64, device=model.device))


def truncation_option(model: SynthModule) -> str:
    """The option of a method's `sample` that brings images nearer to the typical one.

    Args:
        model: samples.

    Returns:
        "truncation" or "temperature".

    Raises:
        UserError: it has neither.
    """
    known = inspect.signature(model.sample).parameters
    if found := [name for name in ("truncation", "temperature") if name in known]:
        return found[0]
    raise UserError(f"--truncate: {type(model).__name__} has neither truncation nor temperature")


def numbers(name: str, text: str) -> list[float]:
    """Numbers above 0 from a list as it is typed.

    Args:
        name: of the option, for the message.
        text: such as "0.3,0.5,1".

    Returns:
        At least one.

    Raises:
        UserError: a word that is none.
    """
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(0 < value < float("inf") for value in found):
        raise UserError(f"--{name}={text}: allowed: numbers above 0 with commas between, such as 0.3,0.5,0.7,1")
    return found


def mp4(frames: Sequence[Image.Image], path: Path, fps: int, comment: str = "") -> Path:
    """Writes a film (H.264) by rename, as every browser and slide program plays it.

    Args:
        frames: pictures of one size; an odd side loses its last line.
        path: the file; its folder is made.
        fps: frames per second.
        comment: goes into the file.

    Returns:
        The path.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        av: Any = import_module("av")
    except ImportError:
        raise UserError(
            f"{path}: MP4 needs PyAV, which is not installed: pip install av. walk.gif is written"
        ) from None
    with whole_file(path) as part, av.open(str(part), "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height = (side // 2 * 2 for side in frames[0].size)  # colours are of 2 x 2 pixels
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            cut = frame.convert("RGB").crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(cut)))
        container.mux(stream.encode())
    return path


@torch.no_grad()
def _decoded(model: SynthModule, z: Tensor, label: int | None, options: Mapping[str, Any], batch_size: int) -> Tensor:
    """(n, C, H, W) on the CPU."""
    decode: Callable[..., Tensor] = model.from_latent
    parts = []
    with torch.autocast(model.device.type, enabled=False):
        for part in z.split(batch_size):
            labels = None if label is None else torch.full((len(part),), label, device=model.device)
            parts.append(decode(part, labels, **options).float().clamp(-1, 1).cpu())
    return torch.cat(parts)

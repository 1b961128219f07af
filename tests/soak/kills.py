"""Commands that are killed at a random moment and given again: they finish, and leave what they leave without a kill.

A kind is one command; it is played once without interruption, which says how long it takes and what it leaves.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import layouts

from soak import commands, pairs, small
from soak.whole import half_written, left_over, other_files, other_run

TRIES = 6
TWICE = 0.25
"""Share of the kills that are followed by another one, of what was given again."""
LONG = ["trainer.max_epochs=6", "trainer.checkpoint_every_steps=2", "trainer.val_every_epochs=2"]
FILES = (".png", ".nii", ".nii.gz", ".gif", ".bin", ".npz")


@dataclass(frozen=True)
class Kind:
    """A command that is killed.

    Attributes:
        words: of it, from the folder that it is given in (a relative path is below that).
        again: what is typed after the kill, from the same folder.
        differs: what is not the same in two such folders.
    """

    words: list[str]
    again: Callable[[Path], list[str]]
    differs: Callable[[Path, Path], list[str]]


@dataclass(frozen=True)
class Known:
    """A kind that was played to its end: where, and in how many seconds."""

    folder: Path
    seconds: float


# (model, data set, whether it is a job of a sweep)
TRAINED = {
    "train vqvae": ("vqvae", "oasis", False),
    "train vae": ("vae", "oasis", True),
    "train pixelcnn": ("pixelcnn", "oasis", False),
    "train dcgan": ("dcgan", "ixi", True),
    "train pix2pix": ("pix2pix", "ixi", False),
    "train cyclegan": ("cyclegan", "ixi", True),
    "train vqgan": ("vqgan", "folder", True),
    "train progan": ("progan", "ixi", False),
    "train mri_clip": ("mri_clip", "ixi", False),
    "train style_transfer": ("style_transfer", "ixi", False),
    "train dae": ("dae", "brats", True),
    "train encoder": ("encoder", "oasis", False),
}
ORDER = [
    "train vqvae", "prepare ixi", "sample vae", "translate pix2pix", "train dcgan", "prepare brats", "train pixelcnn",
    "reconstruct vqvae", "train style_transfer", "sample pixelcnn", "train vae", "refine", "train pix2pix",
    "prepare oasis", "imagine", "train cyclegan", "sample dcgan", "prepare folder", "train vqgan", "translate cyclegan",
    "train progan", "prepare phantom", "train mri_clip", "evaluate", "train dae", "release vae", "train encoder",
]  # fmt: skip


class Kills:
    """Kills below a folder.

    Args:
        base: empty; all is written there.
        root: data sets.
        seed: of the moments.
    """

    def __init__(self, base: Path, root: Path, seed: int) -> None:
        self.base, self.root = base, root
        self.draw = random.Random(seed)
        self.known: dict[str, Known] = {}

    def kind(self, name: str) -> Kind:
        """The command of a name."""
        verb, _, what = name.partition(" ")
        if verb == "train":
            return self._training(name)
        if verb == "prepare":
            place = [] if what == "phantom" else [f"data.root={self.root / what}"]
            split = small.DATA[what]
            return _files(["describe", f"data={what}", *place, *split, "data.size=32", "-o", "out/page.html"])
        made = lambda model: str(run_in(self.reference(f"train {model}").folder) / "best.ckpt")  # noqa: E731
        if verb == "sample":
            return _files(["sample", made(what), "-n", "120", "--batch-size", "4", "--format", "both", "-o", "out"])
        if verb == "translate":
            options = ["--batch-size", "1", "--device", "cpu", "--precision", "32"]
            return _files(["translate", made(what), str(self._volumes()), "-o", "out", *options])
        if verb == "reconstruct":
            source = str(self._volumes() / "s00_T1.nii.gz")
            return _files(
                ["reconstruct", made(what), source, "-o", "out/rec.nii.gz", "--residual", "--batch-size", "1"]
            )
        if verb == "refine":
            words = [w for s in (f"vgg={self.root / 'vgg.pth'}", "steps=8", *small.STYLE) for w in ("--set", s)]
            style = str(self.root / "ixi/IXI-T2/*")
            return _files(["refine", str(self._volumes()), "-o", "out", "--style", style, "--precision", "32", *words])
        if verb == "evaluate":
            real, options = str(self.root / "oasis/keras_png_slices_train"), ["--features", "pixels", "--no-utility"]
            return _files(["evaluate", real, made("vae"), "-o", "out", "--size", "32", "-n", "40", *options])
        if verb == "release":
            words = ["release", made(what), "-o", "out", "--no-onnx"]
            # where it stands it is whole, and no second one is written over it
            return Kind(
                words, lambda cwd: ["--help"] if (cwd / "out").exists() else words, lambda a, b: _other_names(a, b)
            )
        assert verb == "imagine", name
        guide = ["--guide", f"mri_clip:{made('mri_clip')}", "--set", "cutouts=2", "--precision", "32"]
        prompts = ["axial T2 slice", "axial T1 slice"]
        return _files(
            ["imagine", made("vqvae"), *prompts, "-o", "out", "--steps", "12", "--every", "3", "-n", "3", *guide]
        )

    def _training(self, name: str) -> Kind:
        model, data, sweep = TRAINED[name]
        needed = small.NEEDS.get(model, {}).values()
        checkpoints = {m: run_in(self.reference(f"train {m}").folder) / "best.ckpt" for m in needed}
        words = [*pairs.words(model, data, checkpoints, self.root), *LONG]
        if sweep:  # the same command goes on where it was
            words = ["run", "-m", *words[1:], "seed=3", "hydra.sweep.dir=out"]
            return Kind(words, lambda cwd: words, lambda a, b: other_run(run_in(a), run_in(b)))
        words = [*words, "seed=3", "hydra.run.dir=out/run"]

        def again(cwd: Path) -> list[str]:
            there = all((cwd / "out/run" / n).is_file() for n in ("last.ckpt", "config.yaml"))
            return ["run", "resume=out/run"] if there else words

        return Kind(words, again, lambda a, b: other_run(run_in(a), run_in(b)))

    def reference(self, name: str) -> Known:
        """The kind, played without interruption, once."""
        if name not in self.known:
            words, cwd = self.kind(name).words, self.base / name.replace(" ", "_")
            log = cwd.with_suffix(".log")
            status, seconds = commands.play(words, cwd, log)
            if status != 0:
                raise RuntimeError(f"{name}: status {status} without any kill\n{commands.tail(log)}")
            self.known[name] = Known(cwd, seconds)
        return self.known[name]

    def kill(self, number: int, name: str) -> tuple[str, str]:
        """Kill a command and give it again: the line, and what is wrong ("": nothing)."""
        kind, known = self.kind(name), self.reference(name)
        cwd, log, after, state = self._killed(number, name, kind, known)
        line = f"{name}: killed after {after:.2f} s of {known.seconds:.1f} ({state})"
        if state == "it had ended":
            return line, f"it ended {TRIES} times before it could be killed"
        wrong = self._after_a_kill(cwd)
        if self.draw.random() < TWICE:
            process, once_more = commands.start(kind.again(cwd), cwd, log), self.draw.random() * known.seconds
            process.join(once_more)
            if process.exitcode is None:
                process.kill()
                process.join()
                line += f", again after {once_more:.2f} s ({stage(cwd)})"
                wrong += self._after_a_kill(cwd)
        status, seconds = commands.play(kind.again(cwd), cwd, log)
        line += f", finished in {seconds:.1f} s"
        if status != 0:
            return line, "\n".join([*wrong, f"status {status} when it was given again", commands.tail(log)])
        wrong += [f"half-written at the end: {x}" for x in half_written(cwd)]
        wrong += [f"left behind: {x}" for x in left_over(cwd)]
        wrong += [f"not as without the kill: {x}" for x in kind.differs(known.folder, cwd)]
        return line + ("" if wrong else ", the same"), "\n".join(wrong[:8])

    def _killed(self, number: int, name: str, kind: Kind, known: Known) -> tuple[Path, Path, float, str]:
        """Start it and kill it; sooner and in a new folder, where it ended before."""
        share = self.draw.random()
        for attempt in range(TRIES):
            cwd = self.base / f"kill_{number:02d}_{attempt}"
            log, after = cwd.with_suffix(".log"), share * 0.7**attempt * known.seconds
            process = commands.start(kind.words, cwd, log)
            time.sleep(after)
            process.kill()
            process.join()
            if process.exitcode and process.exitcode < 0:
                return cwd, log, after, stage(cwd)
        return cwd, log, after, "it had ended"

    def _after_a_kill(self, cwd: Path) -> list[str]:
        """What is not whole; what was being written is made to look old."""
        for part in left_over(cwd):  # as if it were given again the next day: what is young might be another machine's
            os.utime(cwd / part, (0, 0))
        return [f"half-written after the kill: {x}" for x in half_written(cwd)]

    def _volumes(self) -> Path:
        """A folder of T1 volumes, made once."""
        folder = self.base / "volumes"
        for n in range(6 if not folder.exists() else 0):
            layouts.nifti(folder / f"s{n:02d}_T1.nii.gz", 50 + n)
        return folder


def _files(words: list[str]) -> Kind:
    """A command that is given again as it is, and leaves files in its folder and its cache."""
    return Kind(words, lambda cwd: words, lambda a, b: other_files(a, b, FILES))


def _other_names(a: Path, b: Path) -> list[str]:
    """Files that are in one of two folders only."""
    return sorted({p.name for p in (a / "out").iterdir()} ^ {p.name for p in (b / "out").iterdir()})


def run_in(cwd: Path) -> Path:
    """The only run folder below out/."""
    (folder,) = {p.parent for p in (cwd / "out").glob("*/identity.json")}
    return folder


def stage(cwd: Path) -> str:
    """Where a command was, by what it has left."""
    rows = list(cwd.glob("out/*/metrics.csv"))
    if any(cwd.glob("out/*/report.html")):
        return "in the report"
    if rows and (lines := rows[0].read_text().splitlines()[1:]):
        return f"at step {lines[-1].partition(',')[0]}"
    if any(cwd.glob("cache/*.partial-*")):
        return "in mid-preparation"
    written = [p for p in cwd.glob("out/**/*") if p.is_file() and not p.name.startswith(".")]
    return f"{len(written)} files there" if written else "nothing there yet"

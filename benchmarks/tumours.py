"""GANs on few slices of many kinds: `python -m benchmarks.tumours ROOT [METHOD ...] [KEY=VALUE ...]`

ROOT holds the slices of a published report, a folder per class (920 with a tumour, 300 without; axial, coronal and
sagittal, of several contrasts and scanners). They name no patient, so blocks of 20 neighbours are split, and images
that are there twice are dropped. 128 pixels, differentiable augmentation, minutes of training as `METHODS` says, for
which `progan`'s stages are laid out: full size comes at their end on one thread of a busy machine.

`<method>_kid` with its interval is of 120 samples against all held-out images (val and test), and so what follows; none
of it is promised. Beside: real against real, diversity, copies, time. Runs and sheets stay in `output=FOLDER`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from PIL import Image

from benchmarks.common import RESULTS, store
from mri_synth.config import config_dir
from mri_synth.run import run

DATA = ["data=folder", "data.label=folder", "data.size=128", "data.fit=contain", "data.slices.min_foreground=0",
        "data.slices.start=null", "data.slices.stop=null", "data.intensity.method=fixed",
        "data.intensity.range=[0,255]", "data.split.by=block", "data.split.block_size=20", "data.split.on_leak=drop",
        "data.on_bad_file=skip", "data.augment.flip=0.5", "data.batch_size=32"]  # fmt: skip
METHODS: dict[str, tuple[float, list[str]]] = {
    "dcgan": (13, ["model.channels_g=16", "model.channels_d=16", "model.most_channels=256"]),
    "progan": (
        17,
        [
            "model.fmap_base=512",
            "model.fade_kimg=[0,1.92,2.88,3.84,3.84,5.12]",
            "model.steady_kimg=[3.84,1.92,2.88,3.84,3.84]",
            "trainer.judge_every=20",
        ],
    ),
}
"""Minutes of training, and settings."""
TRAINING = ["model.augment=[translation,cutout]", "trainer.max_epochs=2000", "trainer.val_every_epochs=20",
            "trainer.judge_every=40", "trainer.checkpoint_every_steps=1000", "trainer.progress=false",
            "logger=csv"]  # fmt: skip
QUICK = ["data.size=16", "trainer.max_epochs=1", "trainer.judge_features=pixels", "trainer.judge_samples=4",
         "trainer.pictures=0"]  # fmt: skip
HELD_OUT = 120


def measure(name: str, root: str, output: Path, words: list[str], quick: bool) -> dict[str, Any]:
    """Train one method, then judge its best checkpoint against held-out images alone.

    Args:
        name: of its config.
        root: folder of the slices.
        output: of the runs.
        words: Hydra overrides.
        quick: small sizes, to see that it runs.

    Returns:
        Main figures under `<name>_<figure>`, the rest under `<name>`.
    """
    minutes, settings = METHODS[name]
    shared = [f"model={name}", *DATA, f"data.root={root}", *TRAINING, *settings, *(QUICK if quick else []), *words]
    features = ["features=[pixels]"] if quick else []
    fit = [*shared, f"trainer.max_minutes={minutes}", f"samples={8 if quick else 240}", *features]
    trained = _run(fit, output / name)
    test = [*shared, "task=test", f"ckpt={trained['checkpoint']}", f"samples={4 if quick else HELD_OUT}", *features]
    judged = _run(test, output / f"{name}_held_out")["generation"]
    copies = (judged["memorisation"] or {}).get("features") or {}
    return {
        f"{name}_kid": judged["kid"]["value"],
        f"{name}_kid_interval": judged["kid"]["ci"],
        f"{name}_fid_ratio": judged["fid"]["ratio"],
        f"{name}_ms_ssim_fake_and_real": [judged["ms_ssim"][side]["mean"] for side in ("fake", "real")],
        name: {
            "kid_real_against_real": judged["kid"]["real_against_real"],
            "kid_of_240_against_train_too": trained["generation"]["kid"]["value"],
            "pool": judged["pool"],
            "features": judged["features"]["name"],
            **{key: judged["prdc"]["fake"][key] for key in ("precision", "recall", "density", "coverage")},
            **{key: copies.get(key) for key in ("copy_rate", "near_duplicates", "near_duplicates_held_out")},
            "best_val_kid": trained["metrics"].get("best/val/kid"),
            "grown": not any("the growth ends" in warning for warning in trained["warnings"]),
            "minutes": round(trained["seconds"] / 60, 1),
            "images_per_second": round(trained["images_per_second"], 1),
            "epochs": trained["epochs"],
            "steps": trained["steps"],
            "overrides": [*settings, *words],
        },
    }


def _run(words: list[str], folder: Path) -> dict[str, Any]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("run", words)
    run(cfg, folder, words)
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def _pictures(folder: Path) -> str:
    """Noise in two classes."""
    rng = np.random.default_rng(0)
    for name in ("tumour", "none"):
        (folder / name).mkdir(parents=True)
        for k in range(100):
            Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(folder / name / f"{k}.png")
    return str(folder)


def main() -> None:
    quick = "--quick" in sys.argv
    given = [w for w in sys.argv[1:] if w != "--quick"]
    output = Path(next((w.partition("=")[2] for w in given if w.startswith("output=")), "outputs/tumours"))
    root = next((w for w in given if "=" not in w and w not in METHODS), None)
    if quick:
        output = Path(tempfile.mkdtemp())
        root = root or _pictures(output / "pictures")
    if root is None:
        sys.exit("which folder? python -m benchmarks.tumours ROOT [METHOD ...] [KEY=VALUE ...]")
    words = [w for w in given if "=" in w and not w.startswith("output=")]
    stored = RESULTS / "tumours.json"
    result: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() and not quick else {}
    for name in [w for w in given if w in METHODS] or list(METHODS):
        result |= measure(name, root, output, words, quick)
    store("tumours", {k: v for k, v in result.items() if k not in ("benchmark", "machine")}, keep=not quick)


if __name__ == "__main__":
    main()

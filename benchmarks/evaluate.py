"""Judging generated images: `python -m benchmarks.evaluate`. 2 x 5,000 slices of 128 x 128, files to figures.

`mri-synth evaluate` against the plain code path of pytorch-fid (mean, covariance and scipy's matrix root of all
features) and torch-fidelity (KID of 100 subsets of 1,000, precision and recall from whole distance tables), written
down here from their sources since neither is installed. Both read the same files and use the same feature network, each
in a process of its own, in turns. Ours does more in its time: intervals, real against real, diversity, intensities,
spectra, shared files, pictures and the page; the plain path FID, KID, precision and recall. With inception_bf16 it is
also measured how far its figures stand from those of float32, on the first 300 images of each set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import store

SIDE = 128
PARITY = 300
"""Images of each set on which two precisions are compared."""
Array = NDArray[np.float64]


def write(folder: Path, count: int, first: int, bright: float) -> None:
    """Soft ellipses with noise, one PNG each, two to a subject."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for k in range(count):
        rng = np.random.default_rng(first + k)
        (a, b), (u, v) = rng.uniform(0.5, 0.9, 2), rng.uniform(-0.2, 0.2, 2)
        r = ((x - u) / a) ** 2 + ((y - v) / b) ** 2
        image = bright * (r < 1) * (0.5 + 0.2 * np.cos(rng.uniform(3, 9) * r + rng.uniform(0, 6)))
        image = np.clip(image + 0.02 * rng.standard_normal((SIDE, SIDE)), 0, 1)
        Image.fromarray(np.rint(255 * image).astype(np.uint8)).save(folder / f"s{k // 2:05d}_slice_{k % 2}.png")


def plain(real: Path, fake: Path, word: str) -> dict[str, float]:
    """FID as pytorch-fid 0.3, KID, precision and recall as torch-fidelity 0.3 compute them."""
    from scipy import linalg

    from mri_synth.metrics.features import load_features

    network = load_features(word)
    began = time.perf_counter()
    x, y = (_features(folder, network) for folder in (fake, real))
    features = time.perf_counter() - began
    root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
    fid = float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x, rowvar=False))
                + np.trace(np.cov(y, rowvar=False)) - 2 * np.trace(root.real))  # fmt: skip
    rng, size = np.random.RandomState(2020), min(1000, len(x), len(y))
    kids = [_mmd(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)])
            for _ in range(100)]  # fmt: skip
    a, b = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    radius = [torch.cdist(one, one).kthvalue(4, dim=1).values for one in (a, b)]
    between = torch.cdist(a, b)
    return {"fid": fid, "kid": float(np.mean(kids)), "seconds_features": features,
            "precision": float((between <= radius[1][None]).any(1).float().mean()),
            "recall": float((between <= radius[0][:, None]).any(0).float().mean())}  # fmt: skip


def _features(folder: Path, network: Any, most: int | None = None) -> Array:
    files = sorted(folder.glob("*.png"))[:most]
    out = np.empty((len(files), network.dim))
    for start in range(0, len(files), 50):
        batch = [np.asarray(Image.open(f).convert("RGB")) for f in files[start : start + 50]]
        images = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1
        out[start : start + len(batch)] = network(images).numpy()
    return out


def _mmd(x: Array, y: Array) -> float:
    """Unbiased, as torch-fidelity's polynomial_mmd."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    m = len(x)
    return float(((xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))) / (m * (m - 1)) - 2 * xy.sum() / (m * m))


def ours(real: Path, fake: Path, word: str, output: Path) -> dict[str, float]:
    """What `mri-synth evaluate` says of the same."""
    from mri_synth.evaluate import evaluate

    found = evaluate(str(real), str(fake), output, features=[word], with_utility=False, device="cpu")
    return {
        "fid": found["fid"]["all"]["value"],
        "kid": found["kid"]["subsets"]["mean"],
        "seconds_features": found["seconds"]["features"],
    }


def parity(real: Path, fake: Path, count: int = PARITY) -> dict[str, float]:
    """Inception in bfloat16 against float32: mean relative error of a feature vector, and both figures in both."""
    from mri_synth.metrics.features import load_features
    from mri_synth.metrics.frechet import frechet_distance
    from mri_synth.metrics.kid import kernels, kid

    exact, fast = ([_features(f, load_features(word), count) for f in (fake, real)]
                   for word in ("inception", "inception_bf16"))  # fmt: skip
    error = np.linalg.norm(fast[1] - exact[1], axis=1) / np.linalg.norm(exact[1], axis=1)
    fids, kids = ([f(*pair) for pair in (exact, fast)] for f in (frechet_distance, lambda x, y: kid(kernels(x, y))))
    return {"bf16_feature_error": float(error.mean()), "bf16_fid_difference": fids[1] / fids[0] - 1,
            "bf16_kid_difference": kids[1] / kids[0] - 1, "parity_images": len(exact[1])}  # fmt: skip


def process(path: str, place: Path, word: str) -> dict[str, Any]:
    """One path in a process of its own: its figures, seconds from start to end, and its peak memory."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "benchmarks.evaluate", "--path", path, "--place", str(place), "--features", word]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"status {done.returncode}\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": time.perf_counter() - began} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 x 40 images, block means as features, nothing stored")
    parser.add_argument(
        "--count",
        type=int,
        default=5000,
        help="images of each set; fewer than 5,000 are not stored",
    )
    parser.add_argument("--features", default="inception")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--path", choices=("ours", "plain", "parity"), help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.path:
        real, fake = given.place / "real", given.place / "fake"
        if given.path == "parity":
            found = parity(real, fake)
        elif given.path == "ours":
            found = ours(real, fake, given.features, given.place / "out")
        else:
            found = plain(real, fake, given.features)
        from mri_synth.outputs import peak_memory_bytes

        print(json.dumps(found | {"peak_memory_mib": round(peak_memory_bytes() / 2**20)}))
        return
    count, word = (40, "pixels") if given.quick else (given.count, given.features)
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        write(place / "real", count, 0, 1.0)
        write(place / "fake", count, 1_000_000, 0.95)
        for _ in range(given.passes):
            for path, every in runs.items():
                every.append(process(path, place, word))
        known = process("parity", place, word) if word == "inception_bf16" else {}
    middle = {p: {k: median(r[k] for r in every) for k in every[0]} for p, every in runs.items()}
    a, b = middle["ours"], middle["plain"]
    store(
        "evaluate" if given.quick or word == "inception" else f"evaluate_{word}",
        {
            "images": 2 * count,
            "features": word,
            "minutes_ours": round(a["seconds"] / 60, 2),
            "minutes_plain": round(b["seconds"] / 60, 2),
            "speedup": round(b["seconds"] / a["seconds"], 2),
            "seconds_features_ours": round(a["seconds_features"], 1),
            "seconds_features_plain": round(b["seconds_features"], 1),
            "seconds_else_ours": round(a["seconds"] - a["seconds_features"], 1),
            "seconds_else_plain": round(b["seconds"] - b["seconds_features"], 1),
            "peak_memory_mib_ours": a["peak_memory_mib"],
            "peak_memory_mib_plain": b["peak_memory_mib"],
            "fid_difference": float(f"{abs(a['fid'] - b['fid']) / max(b['fid'], 1e-9):.2g}"),
            "kid_ours": round(a["kid"], 5),
            "kid_plain": round(b["kid"], 5),
            **{k: float(f"{v:.3g}") for k, v in known.items() if k.startswith(("bf16", "parity"))},
            "load_average": round(os.getloadavg()[0], 1),
        },
        keep=count >= 5000,
    )


if __name__ == "__main__":
    main()

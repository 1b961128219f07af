"""Whether the guide `conse` draws what it was asked for, by a judge it never saw: `python -m benchmarks.conse`.

From one slice of the MNI152 template, "a volcano", "a space shuttle" and "broccoli" are drawn with 3 seeds each under
the guide `conse` (EfficientNet-Lite2 and MiniLM). EfficientNet-Lite0, other weights of a smaller network, ranks the
1,000 classes of ImageNet in each result. The control are shuffled prompts: the rank of the same class in what was drawn
with the same seed to the other two prompts.

A job counts as `improved` where the class of its prompt ranks better than in the start and better than in the mean
(geometric) of its controls; a prompt counts where all its seeds do.

Words: `generator=outputs/<run>/best.ckpt` (a grey vqvae or vqgan; without, a small one is trained on phantoms first),
`output=FOLDER` for the pictures, and settings of conf/model/clip_guided.yaml, such as `steps=100`. `--quick`: an
untrained generator of 32 pixels, 2 steps, and random weights where the real ones are not here.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import store
from mri_synth import imagine, weights
from mri_synth.guides import Guide, conse, looked_at
from mri_synth.networks import efficientnet_lite

PROMPTS = {"a volcano": 980, "a space shuttle": 812, "broccoli": 937}
"""And their classes of ImageNet."""
SEEDS = 3
SLICE = 90
"""Of the template, axial, through the ventricles."""
TRAINED = ["model=vqvae", "model.hidden_channels=64", "model.downsample=8", "data=phantom", "data.contrasts=[T1]",
           "trainer.max_steps=600", "logger=csv"]  # fmt: skip
QUICK = ["model.hidden_channels=8", "model.downsample=4", "model.codebook_size=16", "model.res_blocks=1",
         "model.kmeans_init=false", "data.subjects=[4,2,2]", "data.size=32", "trainer=smoke"]  # fmt: skip


def trained(folder: Path, quick: bool) -> Path:
    """A VQ-VAE of phantoms.

    Args:
        folder: of its run.
        quick: hardly trained.

    Returns:
        Its checkpoint.
    """
    from hydra import compose, initialize_config_dir

    from mri_synth import config
    from mri_synth.run import run

    words = [*TRAINED[:1], *TRAINED[3:5], *QUICK, "logger=csv"] if quick else TRAINED
    with initialize_config_dir(str(config.config_dir()), version_base="1.3"):
        composed = compose("run", words)
    run(composed, folder, words)
    return folder / "best.ckpt"


class Random(nn.Module):
    """Stands for MiniLM where its weights are not here: a point of each text's own."""

    def forward(self, texts: Any) -> Tensor:
        """(n, 384) of unit length."""
        points = [torch.randn(384, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        return nn.functional.normalize(torch.stack(points), dim=1)


def networks(quick: bool) -> tuple[Guide, efficientnet_lite.EfficientNetLite, bool]:
    """The guide, its judge, and whether they are the real ones."""
    needed = (*conse.NEEDED, "efficientnet_lite0")
    if not quick or all(weights.find(name).path for name in needed):
        return conse.load().frozen(), efficientnet_lite.pretrained("lite0"), True
    lite = efficientnet_lite.EfficientNetLite("lite2")
    return (conse.Conse(lite, 64, Random(), [str(k) for k in range(1000)]).frozen(),
            efficientnet_lite.EfficientNetLite("lite0"), False)  # fmt: skip


def brain() -> Path:
    """T1 of the MNI152 template, in nilearn's wheel."""
    found = importlib.util.find_spec("nilearn")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@torch.no_grad()
def ranks(judge: efficientnet_lite.EfficientNetLite, picture: Path) -> dict[str, int]:
    """Place of each prompt's class among the 1,000, from 1 on, in a picture as it is drawn."""
    logits = judge(looked_at(torch.from_numpy(imagine._read(picture))[None], judge.side, 3))[0]
    return {prompt: int((logits > logits[k]).sum()) + 1 for prompt, k in PROMPTS.items()}


def judged(folder: Path, judge: efficientnet_lite.EfficientNetLite) -> dict[str, Any]:
    """What the judge says of all jobs in a folder of `mri-synth imagine`.

    Args:
        folder: with a folder of each job.
        judge: of them.

    Returns:
        The figures; ranks by prompt, one a seed.
    """
    final = {(p, s): ranks(judge, folder / f"{imagine._stem(p, k)}_s{s}" / "final.png")
             for k, p in enumerate(PROMPTS) for s in range(SEEDS)}  # fmt: skip
    start = ranks(judge, next(folder.glob("*/start.png")))
    after = {p: [final[p, s][p] for s in range(SEEDS)] for p in PROMPTS}
    shuffled = {p: [math.prod(final[o, s][p] for o in PROMPTS if o != p) ** (1 / (len(PROMPTS) - 1))
                    for s in range(SEEDS)] for p in PROMPTS}  # fmt: skip
    better = {p: [a < start[p] and a < b for a, b in zip(after[p], shuffled[p], strict=True)] for p in PROMPTS}
    return {
        "improved": sum(map(sum, better.values())), "of": len(final),
        "prompts_improved": sum(all(b) for b in better.values()), "rank_start": start, "rank": after,
        "rank_shuffled": {p: [round(b, 1) for b in v] for p, v in shuffled.items()},
    }  # fmt: skip


def main(words: list[str]) -> None:
    """Draw, judge, print, and keep the result unless quick.

    Args:
        words: of the command line.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    quick = "--quick" in words
    given = dict(word.split("=", 1) for word in words if "=" in word)
    guide, judge, real = networks(quick)
    imagine.load_guide = lambda kind, of: guide  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as temporary:
        generator = Path(given.pop("generator", "") or trained(Path(temporary) / "generator", quick))
        output = Path(given.pop("output", "") or Path(temporary) / "drawn")
        settings = ["steps=2", "cutouts=2"] if quick else [f"{k}={v}" for k, v in given.items()]
        imagine.imagine([str(generator)], list(PROMPTS), output, guide="conse", init=brain(), slice=SLICE, n=SEEDS,
                        settings=settings, batch_size=len(PROMPTS) * (SEEDS if quick else 1))  # fmt: skip
        result = judged(output, judge)
    store("conse", {**result, "weights": "real" if real else "random", "settings": settings}, keep=not quick)


if __name__ == "__main__":
    main(sys.argv[1:])

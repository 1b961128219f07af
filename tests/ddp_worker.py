"""What one process of a pair does for tests/test_ddp.py: `python ddp_worker.py FOLDER`, with torchrun's variables set.

The cases are played here by two processes at batch b, and by the test itself in one process at batch 2b.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import layouts
import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir

from mri_synth import sample
from mri_synth.callbacks import judging
from mri_synth.data.batch import Batch
from mri_synth.errors import UserError
from mri_synth.models.base import SynthModule
from mri_synth.models.vqvae import VQVAE
from mri_synth.networks.quantizer import VectorQuantizer
from mri_synth.run import build

BATCH = 4
# 9 slices a subject: 36 train (4 steps at 8), 27 val (3 x 8 + 3: 2 and 1), 9 test (8 + 1: nothing is left for one)
SMALL = [
    "data.preset=custom", "data.subjects=[4,3,1]", "data.size=32", "data.slices.stop=8", "logger=csv", "trainer=cpu",
    "trainer.precision=32-true", "trainer.max_epochs=2", "trainer.log_every_steps=1", "trainer.pictures=0",
    "trainer.progress=false",
]  # fmt: skip
VQVAE_SMALL = [
    "model.hidden_channels=16", "model.res_blocks=1", "model.codebook_size=16", "model.codebook_dim=8",
    "model.warmup_steps=2", "model.lambda_ssim=0",
]  # fmt: skip
STILL = ["model.kmeans_init=false", "model.revive_below=0"]
AUGMENT = "data.augment={flip:0.5,rotate_deg:10,translate:0.05,scale:0.1,gain:0.1,gamma:0.1}"
PIXELS = ["trainer.judge_features=pixels", "trainer.judge_samples=6"]
STYLE = ["model=style_transfer", "model.jobs=16", "model.steps=6", "model.every=3", "model.content_layers=[conv2_1]",
         "model.style_layers=[conv1_1,conv2_1]", "model.style_weight=300"]  # fmt: skip
CASES: dict[str, list[str]] = {
    # 48 channels make groups of 3: before a group of 1 a bias has no effect, and Adam steps by its rounding errors
    "plain": [*VQVAE_SMALL, *STILL, "model.norm=group", "model.hidden_channels=48", "model.lambda_ssim=0.5"],
    "augmented": [*VQVAE_SMALL, *STILL, AUGMENT, "trainer.gradient_clip=0.1", "trainer.channels_last=false"],
    "accumulated": [*VQVAE_SMALL, *STILL, "trainer.accumulate=2", "model.reconstruction=mse"],
    "moving": [*VQVAE_SMALL, "model.revive_below=1"],
    "killed": [*VQVAE_SMALL, AUGMENT, "trainer.checkpoint_every_steps=6"],  # in the middle of the second epoch
    "unbroken": [*VQVAE_SMALL, AUGMENT],
    "vae": ["model=vae", AUGMENT, "model.hidden_channels=16", "model.latent_dim=8", "model.downsample=8",
            "model.warmup_steps=2"],
    "pixelcnn": ["model=pixelcnn", "model.channels=8", "model.layers=3", "model.hidden=16", "model.dropout=0.2",
                 "model.exchanged=0.1", "model.condition=label", "model.warmup_steps=2"],
    "encoder": ["model=encoder", "model.width=8", "model.dim=64"],
    # no batch norm, whose statistics are those of one process; no beta1 of 0, with which Adam steps by rounding errors
    "dcgan": ["model=dcgan", "model.channels_g=16", "model.channels_d=8", "model.latent_dim=8", "model.norm_g=group",
              "model.r1_every=2", "model.betas=[0.5,0.9]", "model.augment=[translation,intensity]",
              "model.augment_adaptive=true", "trainer.max_epochs=3", *PIXELS],
    "critic": ["model=dcgan", "model.channels_g=8", "model.channels_d=8", "model.latent_dim=8", "model.norm_g=none",
               "model.n_critic=2", "model.spectral=true", "model.gan_loss=hinge", "model.betas=[0.5,0.9]",
               "model.lr_final=0.1", "trainer.accumulate=2", "trainer.gradient_clip=0.5", "trainer.max_epochs=3",
               *PIXELS],
    # each process has its own batches' statistics, and all must end with the same averages of them
    "batchnorm": ["model=dcgan", "model.channels_g=8", "model.channels_d=8", "model.latent_dim=8",
                  "model.norm_g=batch", "trainer.max_epochs=2", *PIXELS],
    # a hinge leaves biases without a gradient while all verdicts lie within its margins
    "vqgan": ["model=vqgan", *VQVAE_SMALL, *STILL, "model.codebook_warmup=0", "model.d_width=8", "model.d_layers=2",
              "model.perceptual=none", "model.adversarial_start=0.25", "model.gan_loss=logistic",
              "model.ema_decay=0.9", "trainer.max_epochs=3"],
    # a pool that is full in mid-step. No norms: behind instance norm the air of a slice, thousands of equal pixels, may
    # lie on the kink of a ReLU all at once
    "cyclegan": ["model=cyclegan", "model.generator=unet", "model.norm=none", "model.width=8", "model.dropout=0.2",
                 "model.d_width=8", "model.d_layers=1", "model.d_norm=none", "model.lr_g=5e-5", "model.pool_size=12",
                 "model.ema_decay=0.9", "trainer.accumulate=2", *PIXELS],
    # three fades in 12 steps, which at 16x16 become two updates; groups that do not reach beyond one process
    "progan": ["model=progan", "model.fmap_base=128", "model.fmap_max=16", "model.latent_dim=8", "model.group=2",
               "model.minibatch=[8,8,4]", "model.fade_kimg=[0.016]", "model.steady_kimg=[0.016]", "model.r1_every=2",
               "model.betas=[0.5,0.9]", "trainer.max_epochs=3", *PIXELS],
    "pix2pix": ["model=pix2pix", "data.contrasts=[T1,PD,T2]", "model.contrast_dropout=0.4", "model.dropout=0.3",
                "model.width=8", "model.d_width=8", "model.d_layers=2", "model.ema_decay=0.9",
                "trainer.gradient_clip=1.0"],
    "style_gan": ["model=style_gan", "data.lesions=all", "data.contrasts=[FLAIR]", "model.norm=none", "model.width=8",
                  "model.d_width=8", "model.d_layers=1", "model.d_norm=none", "model.lr_g=5e-5", "model.ema_decay=0.9",
                  "trainer.accumulate=2", "trainer.max_epochs=4"],
    "mri_clip": ["model=mri_clip", "data.contrasts=[T1,T2]", "data.augment={rotate_deg:10,gain:0.1}", "model.width=8",
                 "model.dim=16", "model.text_width=32", "model.warmup_steps=2"],
    "unet_l1": ["model=unet_l1", "data.contrasts=[T1,PD,T2]", "model.contrast_dropout=0.4", "model.dropout=0.3",
                "model.width=8", "model.generator=attention_unet", "model.norm=none", "trainer.accumulate=2"],
    # canvases and the states of their optimizers by job, 16 of them: two batches at 8
    "style_transfer": [*STYLE, "model.optimizer=adam"],
    "style_lbfgs": [*STYLE, "model.optimizer=lbfgs"],
    "dae": ["model=dae", "model.hidden_channels=16", "model.warmup_steps=2"],
    "clip_guided": ["model=clip_guided", "model.prompts=['axial T2 slice','T1 | T2:-1']", "model.jobs=16",
                    "model.steps=6", "model.every=3", "model.cutouts=3"],
    # batch norm again; its sets are made once, by the process that comes first, and are the same on both
    "utility": ["model=utility", "data.contrasts=[FLAIR]", "data.lesions=half", "model.width=4",
                "model.n_per_class=4", "model.seeds=1"],
}  # fmt: skip


def start_biases(model: SynthModule) -> None:
    """Biases of N(0, 0.02), as large as weights often are, where they would start at 0.

    A bias that started at 0 is nothing but the sum of Adam's few steps, each the quotient of a gradient and its size:
    it is only as exact as a gradient that nearly cancels over all pixels. A weight's step is no more so.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and not parameter.any():
            with torch.no_grad():
                parameter.normal_(0, 0.02, generator=generator)
    if getattr(model, "ema", None) is not None:
        for mean, network in zip(model.ema, model.generator_networks(), strict=True):  # type: ignore[operator, arg-type]
            mean.load_state_dict(network.state_dict())


class Kill(pl.Callback):
    """Ends a run after so many steps, before the next one, as a power cut would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise TimeoutError


def play(case: str, folder: Path, world: int, kill_at: int | None = None, resume: bool = False,
         first_stage: Path | None = None) -> dict[str, Any]:  # fmt: skip
    """Train and test one case; what came out, as plain values and tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    batch = [f"data.batch_size={BATCH * 2 // world}", f"trainer.devices={world}"]
    batch += ["trainer.strategy=ddp"] if world > 1 else []
    batch += [f"model.first_stage={first_stage}"] if case == "pixelcnn" else []
    if case == "clip_guided" and first_stage is not None:
        batch += [f"model.generator={first_stage}", f"model.weights={first_stage.parents[1] / 'mri_clip/best.ckpt'}"]
    if case in ("style_transfer", "style_lbfgs"):
        vgg = layouts.vgg19(folder / f"vgg.{os.environ.get('LOCAL_RANK', 'alone')}.pth", "conv2_1")
        batch += [f"model.vgg={vgg}"]
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        cfg = compose("run", [*SMALL, *CASES[case], *batch])
    data, model, trainer = build(cfg, folder)
    if case != "progan":  # its weights are N(0, 1), beside which these would be nothing; its biases hold from 0 on
        start_biases(model)
    if kill_at:
        trainer.callbacks.append(Kill(kill_at))  # type: ignore[attr-defined]
    checkpoint = folder / "last.ckpt" if resume else None
    drawn: list[int] = []

    def draw(model: SynthModule, seeds: range, *rest: Any) -> torch.Tensor:
        drawn.extend(seeds)
        return sample.draw(model, seeds, *rest)

    try:  # so few at once that each process has samples to draw
        with patch.object(judging, "BATCH", 4), patch.object(judging, "draw", draw):
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if resume else None)
    except TimeoutError:
        assert trainer.global_step == kill_at
        return {}
    out: dict[str, Any] = {"weights": {k: v.clone() for k, v in model.state_dict().items()}, "drawn": drawn}
    if hasattr(model, "codebook_histogram"):
        out["usage"] = model.codebook_histogram.clone()
    out["val"] = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    trainer.test(model, datamodule=data, verbose=False)
    out["test"] = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
    if model.reconstructs():
        out["items"] = torch.from_numpy(model.test_results["index"])
        out["scores"] = torch.from_numpy(model.test_results["ssim"])
    return out


def spoil(folder: Path) -> dict[str, Any]:
    """A run whose loss is not a number, in the second process alone: what both say, and what is saved."""
    losses, rank = VQVAE.losses, torch.distributed.get_rank()

    def spoiled(self: VQVAE, batch: Batch) -> dict[str, torch.Tensor]:
        factor = float("nan") if rank and self.training and self.global_step == 2 else 1.0
        return {k: v * factor for k, v in losses(self, batch).items()}

    VQVAE.losses = spoiled  # type: ignore[method-assign]
    try:
        play("plain", folder, 2)
    except UserError as error:
        return {"message": str(error), "batch": torch.load(folder / "nonfinite_batch.pt", weights_only=True)}
    finally:
        VQVAE.losses = losses  # type: ignore[method-assign]
    return {}


def vectors(rank: int) -> torch.Tensor:
    """(1, 4, 8, 8), the 64 vectors that this process gives to a quantiser: far from the other's."""
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(rank)) + 100 * rank


def quantise(kmeans: bool, revive_below: float, decay: float) -> dict[str, torch.Tensor]:
    """One training step of a quantiser of its own on this process's vectors."""
    torch.manual_seed(5)
    quantizer = VectorQuantizer(64, 4, decay=decay, kmeans_init=kmeans, revive_below=revive_below)
    quantizer(vectors(torch.distributed.get_rank()))
    return {k: v.clone() for k, v in quantizer.state_dict().items()}


def main(folder: Path) -> None:
    """All cases; results as FOLDER/CASE.RANK.pt."""

    def keep(name: str, result: Any) -> None:
        torch.save(result, folder / f"{name}.{os.environ['LOCAL_RANK']}.pt")

    for case in ("plain", "augmented", "accumulated", "moving", "unbroken"):
        keep(case, play(case, folder / case, 2))
    for case in ("vae", "pixelcnn", "encoder", "dcgan", "critic", "batchnorm", "vqgan", "progan", "cyclegan", "pix2pix",
                 "style_gan", "unet_l1", "mri_clip", "style_transfer", "style_lbfgs", "dae", "clip_guided",
                 "utility"):  # fmt: skip
        keep(case, play(case, folder / case, 2, first_stage=folder / "plain/best.ckpt"))
    play("killed", folder / "killed", 2, kill_at=6)
    keep("resumed", play("killed", folder / "killed", 2, resume=True))
    keep("spoiled", spoil(folder / "spoiled"))
    keep("kmeans", quantise(kmeans=True, revive_below=0, decay=0.99))
    keep("revived", quantise(kmeans=False, revive_below=2.5, decay=0.0))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

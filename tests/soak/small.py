"""Words that make every model and data set small, and the files that they need."""

from __future__ import annotations

from pathlib import Path

import layouts

RUN = ["logger=csv", "trainer.progress=false", "trainer.log_every_steps=1", "trainer.pictures=2",
       "trainer.precision=32-true", "trainer.judge_features=pixels", "trainer.judge_samples=8", "features=[pixels]",
       "samples=8", "data.size=32", "data.batch_size=4"]  # fmt: skip
CODES = ["model.hidden_channels=8", "model.res_blocks=1", "model.codebook_size=32", "model.codebook_dim=8",
         "model.codebook_warmup=0"]  # fmt: skip
STYLE = ["content_layers=[conv2_1]", "style_layers=[conv1_1,conv2_1]", "style_weight=300"]
MODELS = {
    "clip_guided": ["model.prompts=['axial T2 slice']", "model.jobs=4", "model.steps=8", "model.every=4",
                    "model.cutouts=2"],
    "cyclegan": ["model.generator=unet", "model.width=4", "model.d_width=4", "model.d_layers=1", "model.pool_size=6"],
    "dae": ["model.hidden_channels=8"],
    "dcgan": ["model.channels_g=8", "model.channels_d=8", "model.latent_dim=8"],
    "encoder": ["model.width=8", "model.dim=32"],
    "mri_clip": ["model.width=8", "model.dim=16", "model.text_width=32"],
    "pix2pix": ["model.generator=unet", "model.width=4", "model.d_width=4", "model.d_layers=1"],
    "pixelcnn": ["model.channels=8", "model.layers=1", "model.hidden=8"],
    "progan": ["model.fmap_base=64", "model.latent_dim=8", "model.fade_kimg=[0.001]", "model.steady_kimg=[0.001]"],
    "style_gan": ["model.width=4", "model.d_width=4", "model.d_layers=1", "data.contrasts=[FLAIR]"],
    "style_transfer": ["model.jobs=4", "model.steps=8", "model.every=4", *(f"model.{w}" for w in STYLE)],
    "unet_l1": ["model.width=4"],
    "utility": ["model.n_per_class=4", "model.seeds=1", "model.width=4", "data.contrasts=[FLAIR]"],
    "vae": ["model.hidden_channels=8", "model.latent_dim=8"],
    "vqgan": [*CODES, "model.d_width=8", "model.perceptual=none"],
    "vqvae": CODES,
}  # fmt: skip
NEEDS = {"pixelcnn": {"first_stage": "vqvae"}, "clip_guided": {"generator": "vqvae", "weights": "mri_clip"}}
"""Model to argument to the model whose best.ckpt it is."""
_SPLIT = "data.split.fractions=[0.6,0.2,0.2]"
DATA = {
    "brats": [_SPLIT],
    "folder": [_SPLIT, "data.label=mask"],
    "ixi": [_SPLIT],
    "oasis": [],
    "phantom": ["data.preset=custom", "data.subjects=[4,2,2]", "data.slices_per_subject=5",
                "data.lesion_radius_mm=[12,20]"],
}  # fmt: skip
ELSEWHERE = {
    ("mri_clip", "oasis"): ("oasis_volumes", [_SPLIT, "data.split.by=subject", "data.intensity.method=percentile"]),
}
"""Pairs that go with another layout of the data alone: captions of OASIS are of its table."""


def data_sets(root: Path) -> Path:
    """Every data set but the simulated one, in its published layout, as $MRI_SYNTH_DATA; and a short VGG-19."""
    layouts.oasis_png(root / "oasis", {"train": [1, 2, 3, 4], "validate": [402, 403], "test": [441, 442]}, slices=5)
    people = [f"{n:04d}_MR1" for n in range(1, 9)]
    rows = "".join(f"OAS1_{p},{'FM'[n % 2]},R,{20 + 9 * n},,,,,1400,0.8,1.2,N/A\n" for n, p in enumerate(people))
    layouts.oasis_volumes(root / "oasis_volumes", people, layouts.OASIS_TABLE.splitlines(keepends=True)[0] + rows)
    layouts.ixi(root / "ixi", [f"IXI{n:03d}-Guys-{700 + n:04d}" for n in range(1, 9)], table=None)
    layouts.brats(root / "brats", cases=range(1, 9))
    for n in range(1, 9):
        for k, contrast in enumerate(("T1", "T2", "FLAIR")):
            layouts.nifti(root / f"folder/p{n:02d}/{contrast}.nii.gz", 10 * n + k)
        layouts.nifti(root / f"folder/p{n:02d}/lesion_mask.nii.gz", array=layouts.tumour(n))
    layouts.vgg19(root / "vgg.pth", "conv2_1")
    return root

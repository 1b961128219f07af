"""The benchmarks run and print what they promise; training steps do not wait for the device between log intervals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Compose

KEYS = {
    "loader": {"speedup_plain", "speedup_plain_metatensor", "speedup_plain_image_only", "speedup_augmented",
               "first_batch_s", "memory_growth_mib"},
    "step": {"overhead_vs_loop", "speedup_vs_fp32", "gflop_per_step", "share_of_peak"},
    "quantizer": {"speedup", "speedup_with_backward", "codes_equal"},
    "gan": {f"{method}_{figure}" for method in ("dcgan", "progan")
            for figure in ("overhead_vs_loop", "speedup_vs_fp32", "passes_per_step")},
    "translate": {"network_share", "peak_memory_mib", "speedup_vs_monai", "tiles_ours", "tiles_monai"},
    "translation": {f"{case}_{batch}{figure}" for case in ("cyclegan_resnet9", "cyclegan_unet", "pix2pix_unet")
                    for batch in (1, 8) for figure in ("", "_speedup_vs_published")},
    "style": {"speedup", "batch_share", "batch_difference", "loss_published", "loss_ours"},
    "leaderboard": {"seconds_leaderboard", "seconds_finished_sweep", "jobs_passed_over"},
    "evaluate": {"minutes_ours", "minutes_plain", "peak_memory_mib_ours", "peak_memory_mib_plain", "fid_difference"},
    "conse": {"improved", "of", "prompts_improved", "rank_start", "rank", "rank_shuffled"},
    "guided": {"speedup_vs_plain", "speedup_float32", "batch_share"},
    "imagined": {"classifier_accuracy", "T2_of_T2", "T2_of_others", "asked", "shuffled", "seconds_one"},
    "pixelcnn": {"speedup", "codes_per_s", "codes_equal", "floor_s", "share_of_floor", "training_images_per_s"},
    "tumours": {f"{method}_{figure}" for method in ("dcgan", "progan")
                for figure in ("kid", "kid_interval", "fid_ratio", "ms_ssim_fake_and_real")},
    "prompts": {"contrast_accuracy", "side_accuracy", "contrast_asked", "contrast_shuffled", "side_asked",
                "lesion_asked", "lesion_of_none"},
}  # fmt: skip
SMALL = [
    "model.codebook_warmup=0",
    "model.kmeans_init=false",
    "model.hidden_channels=16",
    "model.codebook_size=32",
    "model.res_blocks=1",
]
WORDS = {"step": SMALL}
TINY = ["data.subjects=[4,2,2]", "data.size=32", "data.batch_size=4", "logger=csv", "trainer=cpu", *SMALL]


def benchmarks() -> list[str]:
    """Modules that are run by name."""
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    return [f.stem for f in files if "__main__" in f.read_text() and f.stem != "__main__"]


def test_every_benchmark_is_listed_here_and_described() -> None:
    assert set(benchmarks()) == set(KEYS)
    text = (ROOT / "benchmarks/README.md").read_text()
    for name in benchmarks():
        assert f"python -m benchmarks.{name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KEYS))
def test_a_benchmark_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    kept = {f: f.read_bytes() for f in (ROOT / "benchmarks/results").glob("*.json")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"benchmarks.{name}", "--quick", *WORDS.get(name, [])],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == name
    assert result["machine"]["cores"] == os.cpu_count()
    assert KEYS[name] <= set(result)
    assert kept == {f: f.read_bytes() for f in (ROOT / "benchmarks/results").glob("*.json")}  # nothing is stored


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dcgan", "progan"])
def test_the_adversarial_loop_by_hand_does_what_ours_does(compose: Compose, tmp_path: Path, method: str) -> None:
    """A loop that did less would make ours look slow, one that did more would flatter it: both end at equal weights."""
    from benchmarks.gan import METHODS, QUICK, AdversarialLoop, count_passes
    from mri_synth.models.gan import GANModule
    from mri_synth.run import build

    words = [*METHODS[method], *QUICK[method], "data.subjects=[4,2,2]", "data.size=32", "data.batch_size=8",
             "logger=csv", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "trainer.pictures=0",
             "trainer.judge_samples=2", "trainer.judge_features=pixels"]  # fmt: skip
    data, model, trainer = build(compose(f"model={method}", *words), tmp_path)
    assert isinstance(model, GANModule)
    loop = AdversarialLoop(model, data.train_dataloader(), torch.device("cpu"), bf16=False)
    loop.gan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    passes = count_passes(model)
    trainer.fit(model, datamodule=data)
    loop.steps(trainer.global_step)
    assert trainer.global_step == 5
    by_hand = dict(loop.gan.named_parameters()) | dict(loop.gan.named_buffers())
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, by_hand[name]), name
    assert passes == loop.passes
    assert passes["generator"] == 5  # fakes are made once, for both sides
    assert passes["discriminator_images"] == 8 * (5 * 3 + 2)  # real, fake, fake again; two penalties of real


@pytest.mark.slow
@pytest.mark.parametrize("method, passes, images", [
    ("cyclegan", {"ours": (3, 4), "published": (6, 6)}, (6, 6)),
    ("pix2pix", {"ours": (1, 2), "published": (1, 3)}, (1, 3)),
])  # fmt: skip
def test_the_published_loop_passes_as_many_images_in_more_passes(method: str, passes: Any, images: Any) -> None:
    """Of generators and of discriminators, in a step of two images."""
    from benchmarks.translation import measure

    counts = measure(method, "unet", 2, [], quick=True)[f"{method}_unet_2"]["passes_per_step"]
    for who, (generator, discriminator) in passes.items():
        assert (counts[who]["generator"], counts[who]["discriminator"]) == (generator, discriminator)
        assert (counts[who]["generator_images"], counts[who]["discriminator_images"]) == tuple(2 * n for n in images)


def test_the_table_holds_every_stored_result() -> None:
    from benchmarks.__main__ import table

    text = table(ROOT / "benchmarks/results")
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        assert path.stem in text


class Reads:
    """Counts the calls that make a step wait for the device, by training step."""

    names = ("item", "cpu", "numpy", "tolist", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step = -1
        self.counted: Counter[tuple[int, str]] = Counter()
        for name in self.names:
            monkeypatch.setattr(torch.Tensor, name, self.counting(name, getattr(torch.Tensor, name)))

    def counting(self, name: str, original: Any) -> Any:
        """The original method, counted inside training steps."""

        def method(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.step >= 0:
                import traceback

                frames = traceback.extract_stack(limit=8)[:-1]
                where = next((f for f in reversed(frames) if "mri_synth" in f.filename), frames[-1])
                self.counted[self.step, f"{name} in {Path(where.filename).name}:{where.lineno}"] += 1
            return original(tensor, *args, **kwargs)

        return method


@pytest.mark.slow
def test_no_step_waits_for_the_device_between_log_intervals(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning.pytorch as pl

    from mri_synth.run import build

    every = 4
    augment = "data.augment={flip:0.5,rotate_deg:10,translate:0.05,scale:0.1,gain:0.1,gamma:0.1}"
    cfg = compose(*TINY, augment, f"trainer.log_every_steps={every}", "trainer.max_epochs=2", "trainer.pictures=0",
                  "trainer.limit_val_batches=1", "trainer.progress=true")  # fmt: skip
    data, model, trainer = build(cfg, tmp_path)
    reads = Reads(monkeypatch)

    class Steps(pl.Callback):
        """A step lasts from its start to the start of the next: loading and logging included, an epoch's end not."""

        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            reads.step = trainer.global_step + 1

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.is_last_batch:
                reads.step = -1

    trainer.callbacks.append(Steps())  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    between = {f"step {step}: {what}" for step, what in reads.counted if step % every}
    assert not between, between
    assert any(step % every == 0 for step, _ in reads.counted)  # the flag and the losses are read then
    assert trainer.global_step == 2 * 10
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    logged = [int(step) for step, _, name, _ in rows if name == "train/loss"]
    assert logged == [3, 7, 11, 15, 19]  # once each, and nothing again in the steps after

"""Samples are judged while a method trains: KID and diversity of the same seeds, by which best.ckpt is chosen."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_synth.callbacks.checkpoints import Checkpoints, random_state, set_random_state
from mri_synth.config import FEATURES
from mri_synth.data.stored import cache_folder
from mri_synth.data.views import Images
from mri_synth.errors import UserError
from mri_synth.judgement import labels_in_turn, prompts_in_turn
from mri_synth.metrics import diversity, kid
from mri_synth.metrics.extraction import features_of, stored_features
from mri_synth.metrics.features import Features, load_features
from mri_synth.metrics.pool import Pool, Reals
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import rates
from mri_synth.sample import draw

log = logging.getLogger(__name__)

MOST_REAL = 2000
PAIRS = 200
BATCH = 32


@dataclass(frozen=True)
class Verdict:
    """What one set of samples is worth.

    Attributes:
        kid: kernel distance of their features to those of validation images (`mri_synth.metrics.kid`).
        ms_ssim: mean MS-SSIM of pairs of samples; None where there is no pair.
        ms_ssim_real: the same of validation images of different subjects.
        mean_correlation: correlation over pixels of the mean sample with the mean validation image.
    """

    kid: float
    ms_ssim: float | None
    ms_ssim_real: float | None
    mean_correlation: float


class Judging(pl.Callback):
    """Every few epochs val/kid and val/ms_ssim of samples of the model as it is, beside val/ms_ssim_real, once.

    The seeds are 0, 1, ... every time, the real images validation images, whose features are computed once and kept in
    the cache. Samples are drawn in the same parts however many processes there are, each by one of them; the first
    process compares, and tells the others. The random state is put back, so that training does not notice. Of a method
    that translates both ways val/kid is the mean of both, the rest is of the way to the goal.

    Attributes:
        verdict: of this epoch; None in one without judgement.
        said: feature space and numbers of images, for the report; "" before a training.
    """

    METRICS = ("val/kid", "val/ms_ssim")

    def __init__(self, every: int, samples: int, word: str = "auto", val_every: int = 1) -> None:
        """Judge in training.

        Args:
            every: epochs between judgements; the last epoch is judged too.
            samples: how many are drawn.
            word: feature space as `load_features` knows it, or "auto": Inception where its weights are here, else
                pixels.
            val_every: epochs between validations, which judgements are part of.
        """
        self.every, self.samples, self.word, self.val_every = every, samples, word, val_every
        self.verdict: Verdict | None = None
        self.said = ""
        self.space: Features | None = None
        self._before: str | None = None  # the feature space before a resume
        self._real: dict[str | None, tuple[Pool, float | None, NDArray[np.float64]]] = {}
        self._real_logged, self._timed = False, False

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch's validation judges.

        Args:
            trainer: of the run.

        Returns:
            True where `every` epochs are full since the last validation, and in the last epoch.
        """
        done = trainer.current_epoch + 1
        last = trainer.should_stop or done == trainer.max_epochs
        return last or done // self.every > (done - self.val_every) // self.every

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """What cannot be had ends the run before its training."""
        if stage != "fit":
            return
        count = min(len(real_images(trainer)), MOST_REAL)
        if count < 2:
            raise UserError("samples are judged against validation images, and there is 1; give more by data.split, or "
                            "another model: this one's best.ckpt is chosen by val/kid, or trainer.judge_every asks for "
                            "it")  # fmt: skip
        self.space = space_of(self.word, trainer.strategy.root_device)
        assert isinstance(pl_module, SynthModule)
        made = "translations" if pl_module.translates() else "samples"
        made += " each way" if pl_module.goes_back() else ""
        self.said = f"{self.samples} {made} against {count} validation images, in {self._mark}"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Values in two feature spaces are not compared: a resume in another one chooses the best anew."""
        if self._before is not None and self._before != self._mark:
            log.warning("samples were judged in %s before, and are in %s from now on: the best val/kid so far counts "
                        "no more", self._before, self._mark)  # fmt: skip
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Checkpoints) and callback.metric == "val/kid":
                    callback.best, callback.waited = None, 0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning keeps the last value of a metric for ever; an epoch without judgement has none."""
        self.verdict = None
        for name in self.METRICS:
            trainer.callback_metrics.pop(name, None)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge, where it is due, and log."""
        assert isinstance(pl_module, SynthModule)
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.due(trainer):
            return
        started, before = time.monotonic(), random_state()
        try:
            self.verdict = self._judge(trainer, pl_module)
        finally:
            set_random_state(before)
        if not self._timed:
            self._timed = True
            log.info("val/kid: %s; the first took %.1f s", self.said, time.monotonic() - started)
        if self.verdict is None:
            pl_module.alarm("samples are not finite: no val/kid could be had of some epoch. Remedies, in this order: "
                            f"trainer.precision=32-true, a lower {rates(pl_module.hparams)}")  # fmt: skip
            return
        values = {f"val/{k}": v for k, v in asdict(self.verdict).items() if v is not None and k != "mean_correlation"}
        if self._real_logged:
            values.pop("val/ms_ssim_real", None)
        if not pl_module.grown:  # what is coarse can be nearer to real images than the first that is not
            values.pop("val/kid")
        self._real_logged = True
        for name, value in values.items():
            pl_module.log(name, value, prog_bar=name == pl_module.monitor[0])

    def _judge(self, trainer: pl.Trainer, model: SynthModule) -> Verdict | None:
        """The verdict, the same on all ranks; None where samples are not finite."""
        verdicts: list[Verdict] = []
        for to in (None, model.spec.sources[0]) if model.goes_back() else (None,):
            images, vectors = self._draw(trainer, model, to)
            found: dict[str, Any] | None = None
            if trainer.is_global_zero and torch.isfinite(images).all():
                found = asdict(self._compare(trainer, images, vectors, to))
            found = trainer.strategy.broadcast(found)
            if found is None:
                return None
            verdicts.append(Verdict(**found))
        return replace(verdicts[0], kid=sum(v.kid for v in verdicts) / len(verdicts))

    def _draw(
        self, trainer: pl.Trainer, model: SynthModule, to: str | None = None
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """All samples and their features: whole on the first rank, drawn in parts by all.

        `to` is the contrast to translate to, None the goal.
        """
        assert self.space is not None
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        labels = labels_in_turn(model, data, self.samples) if model.samples() else None
        prompts = prompts_in_turn(model, data, self.samples) if model.samples() else None
        sources = data.view("val") if model.translates() else None
        items = np.random.default_rng(0).permutation(len(sources or ()))[: self.samples].tolist()
        count = self.samples if sources is None else len(items)
        mine: dict[int, tuple[Tensor, NDArray[np.float32]]] = {}
        for part in range(trainer.global_rank * BATCH, count, trainer.world_size * BATCH):
            seeds = range(part, min(part + BATCH, count))
            if sources is None:
                options = {} if prompts is None else {"prompt": prompts[seeds.start : seeds.stop]}
                images = draw(model, seeds, None if labels is None else labels[seeds.start : seeds.stop], options)
            else:
                batch = sources.__getitems__(items[seeds.start : seeds.stop])
                source = batch.image if to is None else batch.target
                assert source is not None
                extra = {} if to is None else {"to": to}
                images = model.translate(source.to(model.device), **extra).float().clamp(-1, 1).cpu()
            finite = bool(torch.isfinite(images).all())
            empty = np.zeros((len(images), self.space.dim), np.float32)
            mine[part] = (images, features_of(images, self.space, BATCH) if finite else empty)
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        parts = [drawn for _, drawn in sorted((k, v) for one in everyone for k, v in one.items())]
        return torch.cat([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _compare(
        self, trainer: pl.Trainer, images: Tensor, vectors: NDArray[np.float32], to: str | None = None
    ) -> Verdict:
        if to not in self._real:
            self._real[to] = self._reals(trainer, to)
        pool, ms_ssim_real, mean_real = self._real[to]
        pairs = diversity.random_pairs(len(images), PAIRS)
        own = diversity.diversity(lambda indices: images[list(indices)], pairs)["mean"]
        distance = kid.kid(kid.kernels(vectors, pool.features))
        return Verdict(distance, own, ms_ssim_real, correlation(images.double().mean(0).numpy(), mean_real))

    def _reals(self, trainer: pl.Trainer, to: str | None) -> tuple[Pool, float | None, NDArray[np.float64]]:
        """Validation images with their features, the MS-SSIM of their pairs, and their mean."""
        assert self.space is not None
        data, view = trainer.datamodule, real_images(trainer, to)  # type: ignore[attr-defined]
        items = np.sort(np.random.default_rng(0).permutation(len(view))[:MOST_REAL])
        features = stored_features(view, self.space, cache_folder(data.cache), BATCH, items)
        pool = Pool(("val",), (Reals(view, items, features),))
        pairs = diversity.random_pairs(len(pool), PAIRS, pool.subjects)
        sums = [pool.parts[0].images(range(at, min(at + BATCH, len(items)))).double().sum(0)
                for at in range(0, len(items), BATCH)]  # fmt: skip
        return pool, diversity.diversity(pool.images, pairs)["mean"], (torch.stack(sums).sum(0) / len(items)).numpy()

    @property
    def _mark(self) -> str:
        assert self.space is not None
        return f"{self.space.name} ({self.space.hash})"

    def state_dict(self) -> dict[str, Any]:
        """The feature space, and whether the real images' value was logged."""
        return {"space": self._mark if self.space else self._before, "real_logged": self._real_logged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self._before, self._real_logged = state_dict["space"], state_dict["real_logged"]


def real_images(trainer: pl.Trainer, to: str | None = None) -> Images:
    """Validation images that what is made must look like: of the goal's contrast where one is made of another.

    Args:
        trainer: with its data module.
        to: the contrast that is made, where it is not the goal.

    Returns:
        Their view.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    view: Images = data.view("val")
    return view if view.goal is None else Images(data.store, data.split_rows["val"], [to or view.goal])


def make_judging(model: SynthModule, every: int | None, samples: int, word: str, val_every: int) -> Judging | None:
    """Judgement of samples in training, where it is asked for or chooses the best checkpoint.

    Args:
        model: what is trained.
        every: epochs between judgements; None: 1 where the model's monitored metric is one of them, else never.
        samples: how many are drawn.
        word: of the feature space.
        val_every: epochs between validations.

    Returns:
        The callback; None where nothing is judged.

    Raises:
        UserError: judgement of a method that makes no samples is asked for, or there is no such feature space.
    """
    if every is None and model.monitor[0] not in Judging.METRICS:
        return None
    if not model.samples() and not model.translates():
        raise UserError(
            f"trainer.judge_every={every}: {type(model).__name__} makes no new images to judge; leave it null"
        )
    if word not in FEATURES and not Path(word).is_file():
        raise UserError(f"trainer.judge_features={word}: no such file; allowed: {', '.join(FEATURES)}, or the "
                        "checkpoint of a run with model=encoder")  # fmt: skip
    return Judging(every or 1, samples, word, val_every)


def space_of(word: str, device: torch.device | str) -> Features:
    """The feature space of a word, "auto" among them.

    Args:
        word: "auto", or as `load_features` knows it.
        device: where the network computes.

    Returns:
        The space.

    Raises:
        UserError: one that is asked for by its name is not here.
    """
    try:
        return load_features("inception" if word == "auto" else word, device)
    except UserError as error:
        if word != "auto":
            raise UserError(f"trainer.judge_features: {error}") from None
        log.info("val/kid is of pixels, since Inception's weights are not here: mri-synth weights get inception")
        return load_features("pixels", device)


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson's correlation of two arrays, element by element.

    `r = mean (a - mean a)(b - mean b) / (sd a sd b)`

    Args:
        a: any shape.
        b: the same shape.

    Returns:
        -1 to 1; 0 where one is constant.
    """
    x, y = (v.astype(np.float64) - v.mean() for v in (a, b))
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm > 1e-12 else 0.0

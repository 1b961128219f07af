"""The sentinel of training without pairs: what translations make up, and tissues in the wrong order.

A way back that restores the source proves nothing of the way there: generators hide it in what they make (Chu et al.
2017, arXiv:1712.02950), and a discriminator that has seen tumours asks for tumours (Cohen et al. 2018,
arXiv:1805.08841).
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from mri_synth.callbacks.watches import INVERTED, Watch, progress, remedies
from mri_synth.data.batch import Batch
from mri_synth.draws import uniform
from mri_synth.metrics.ssim import ssim
from mri_synth.metrics.structure import BINS, tissue_order, tissues, unexplained
from mri_synth.models.base import SynthModule

LOOKED_AT = 16
"""Validation items that are looked at in an epoch, about so many and the same every time."""
RESTORED = 0.8
"""SSIM of sources with what comes back of them from which on the cycle is good."""
MADE_UP = 0.5
"""With pairs: how far from the real pairs' unexplained structure (0) to that of strangers (1) is too far."""
STRANGE = 0.85
"""Without: the share of strangers' unexplained structure from which on outputs are strangers to their sources."""
CORE = 0.9
"""Share of the sources that have foreground at a place whose tissues count."""
ITEMS, CYCLE, OWN, OTHERS, PAIRS, NEAR, COPIED, REAL = range(8)
"""Places of sums: items, SSIM of the way back, structure that the own and another's source do not have; and of paired
items: how many, SSIM of output and of source with the target, the target's structure that the source does not have."""


class Unfaithful(Watch):
    """Watches methods that translate back as well (`translate(source, to=...)`), with val/cycle_ssim and val/made_up.

    `hallucination`: the cycle is good while outputs are farther from their targets than the untouched sources are; or
    outputs have structure that their sources do not have, far more than real pairs (where there are any) or nearly as
    much as strangers. These are means: a lesion or two that no source has move neither, and are for the eye.
    `contrast inversion`: tissues, by the source's intensity, are in another order from dark to bright than in real
    images, of the same slices, or of others at the same places of the frame.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, ...]] = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch,
                                batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        """Translate some items there and back."""
        assert isinstance(pl_module, SynthModule)
        if trainer.state.fn != "fit" or batch.target is None:
            return
        count = len(trainer.datamodule.view("val"))  # type: ignore[attr-defined]
        here = uniform(0, 0, batch.index, 1)[:, 0] < LOOKED_AT / count  # a stride would meet one slice of every subject
        if not here.any():
            return
        source, target = batch.image[here], batch.target[here]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            output = pl_module.translate(source)
            back = pl_module.translate(output, to=pl_module.spec.sources[0])  # type: ignore[call-arg]
        paired = torch.ones_like(batch.index, dtype=torch.bool) if batch.paired is None else batch.paired
        self.seen.append((source, output, back, target, paired[here]))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, and judge from a quarter of the training on, what all processes saw."""
        assert isinstance(pl_module, SynthModule)
        if trainer.state.fn != "fit":
            return
        sums, parts = torch.zeros(8 + 3 * BINS, device=pl_module.device), self.seen
        self.seen = []
        if parts:
            sums += measured(*(torch.cat(kind) for kind in zip(*parts, strict=True))).to(sums.device)
        sums = torch.as_tensor(trainer.strategy.reduce(sums, reduce_op="sum")).cpu()
        if not sums[ITEMS]:
            return
        pl_module.log("val/cycle_ssim", float(sums[CYCLE] / sums[ITEMS]))
        pl_module.log("val/made_up", float(sums[OWN] / sums[ITEMS]))
        if sums[PAIRS]:
            pl_module.log("val/made_up_real", float(sums[REAL] / sums[PAIRS]))
        if progress(trainer, pl_module) >= 0.25:
            self.judge(pl_module, sums, f"(epoch {trainer.current_epoch + 1})")

    def judge(self, model: SynthModule, sums: Tensor, when: str) -> None:
        """Raise the alarms that have a reason.

        Args:
            model: that translates.
            sums: of `measured`, over all processes.
            when: for the sentences.
        """
        items, pairs = float(sums[ITEMS]), float(sums[PAIRS])
        cycle, own, others = (float(sums[k]) / items for k in (CYCLE, OWN, OTHERS))
        near, copied, real = (float(sums[k]) / max(pairs, 1) for k in (NEAR, COPIED, REAL))
        goal = model.spec.goal
        helps = remedies(model, ("mirror", "lambda_structure", "lambda_identity", "lambda_cycle"),
                         "as many people with a disease in one contrast as in the other (mri-synth describe)",
                         "another seed")  # fmt: skip
        self.look(model, "cycle and pairs", bool(pairs) and cycle > RESTORED and near < copied,
                  f"hallucination: the way there and back restores sources (SSIM {cycle:.2f}), but translations are "
                  f"farther from the real {goal} (SSIM {near:.2f}) than the untouched sources are ({copied:.2f}) "
                  f"{when}; what they show need not be there. {helps}")  # fmt: skip
        beside = f"of real pairs {real:.0%}, " if pairs else ""
        most = real + MADE_UP * max(others - real, 0) if pairs else STRANGE * others
        self.look(model, "structure", own > most,
                  f"hallucination: {own:.0%} of the structure in translations is not in their sources, {beside}of "
                  f"strangers {others:.0%} {when}; what they show need not be there. {helps}")  # fmt: skip
        order = tissue_order(*sums[8:].split(BINS))
        rising = ("structure_rise",) if model.hparams.get("lambda_structure") else ()
        what = "in the same slices" if pairs else "at the same places"
        self.look(model, "tissues", order < INVERTED,
                  f"contrast inversion: tissues in translations and {what} of real {goal} images correlate by "
                  f"{order:.2f} {when}; what is bright in one is dark in the other. "
                  + remedies(model, (*rising, "lambda_identity", "lr_g"), "another seed",
                             "mri-synth describe for images that are inverted themselves"))  # fmt: skip


def measured(source: Tensor, output: Tensor, back: Tensor, target: Tensor, paired: Tensor) -> Tensor:
    """What is to be known of some items, as sums that processes can add up.

    Args:
        source: (B, 1, H, W) in [-1, 1].
        output: their translations.
        back: what came back of these.
        target: real images of the goal.
        paired: (B,) bool, those that show the same slices.

    Returns:
        (8 + 3 * BINS,) float32: by the names above; then of each tissue the intensity of outputs, that of targets, and
        its pixels; of paired items, or without any of all at the places in the frame where it is. Only of places where
        nearly all sources have foreground: around it tissue is less than a pixel, dark with the air whatever it is.
    """
    sums, pairs = torch.zeros(8), int(paired.sum())
    sums[ITEMS], sums[PAIRS], sums[CYCLE] = len(source), pairs, _ssim(back, source)
    sums[OWN], sums[OTHERS] = unexplained(output, source).sum(), len(source)
    if len(source) > 1:
        sums[OTHERS] = unexplained(output, source.roll(len(source) // 2, 0)).sum()
    core = (tissues(source).sum(1, keepdim=True).mean(0, keepdim=True) >= CORE).float()
    if pairs:
        here = (source[paired], output[paired], target[paired])
        sums[NEAR], sums[COPIED] = _ssim(here[1], here[2]), _ssim(here[0], here[2])
        sums[REAL] = unexplained(here[2], here[0]).sum()
        where, made, true = core * tissues(here[0]), here[1], here[2]
    else:
        where, made, true = (x.mean(0, keepdim=True) for x in (core * tissues(source), output, target))
    kinds = ((where * x).sum((0, 2, 3)) for x in (made.float(), true.float(), torch.ones_like(made[:1, :1]).float()))
    return torch.cat([sums, *(k.cpu() for k in kinds)])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    return ssim((x.float() + 1) / 2, (y.float() + 1) / 2).sum()

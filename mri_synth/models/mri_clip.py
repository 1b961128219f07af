"""A small CLIP (Radford et al. 2021, arXiv:2103.00020) that learns MRI from captions which the data themselves give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt, MultipleOf
from torch import Tensor, nn
from torch.optim import Optimizer

from mri_synth import captions
from mri_synth.captions import LESION, Terms, caption, fits, mirrored, prompts, vocabulary
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.captioned import Captioned
from mri_synth.data.settings import Share
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.losses.contrastive import image_text, where_lesion
from mri_synth.metrics import zero_shot
from mri_synth.models.base import SynthModule
from mri_synth.models.schedule import WarmupCosine
from mri_synth.networks.clip import ImageTower, TextTower, Tokens

if TYPE_CHECKING:
    from mri_synth.data.base import MRIDataModule

Decay = Annotated[float, Ge(0), Lt(1)]
PositiveFloat = Annotated[float, Gt(0)]

HOTTEST = 100.0
"""Largest scale of the cosines, one over the temperature (2021: the same)."""
LOOKED_AT = 512
"""Training slices whose facts are looked at before training."""
_STREAM = 5 << 32
"""Between the run's seed and that of the wordings: a run's own seed is smaller, so that no two streams meet."""


class MRICLIP(SynthModule):
    """Slices and their captions must find each other among all others of the batch: text that knows MRI, offline.

    Captions are made of what the data know of a slice (contrast, plane, place, lesion with side and size, age, sex,
    site), in other words every time and with some left out. Not generative: it guides what is.

    Args:
        spec: what the data know of themselves.
        dim: D, length of the embeddings in which slices and captions meet.
        patch: pixels of a side that the image tower's first layer takes together.
        width: channels of its first stage; doubled with each of the next three halvings.
        text_width: channels of the text tower.
        text_layers: its layers of attention.
        context: words of a text at most.
        vocabulary: words that are known; None for all words of all captions of these data.
        temperature: of the cosines at the start; it is learned.
        lambda_where: weight of `where`, where the data have masks; 0: words alone tell of lesions.
        flip: probability that an axial or coronal training slice is mirrored, left and right changing places in its
            caption.
        lr: learning rate of Adam.
        betas: decay rates of Adam's moments.
        warmup_steps: the learning rate rises linearly over this many steps; at most a tenth of all.
        lr_final: the learning rate falls as a cosine to this share of `lr` at the end of training; 1: constant.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/zero_shot", "max")
    instead: ClassVar[str] = "It guides others: mri-synth imagine GENERATOR 'T2 slice' --guide mri_clip:CHECKPOINT"
    explained: ClassVar[dict[str, Any]] = zero_shot.EXPLAINED | {"contrast": image_text, "where": where_lesion}
    protocols: ClassVar[dict[str, str]] = zero_shot.PROTOCOLS
    notes: ClassVar[dict[str, str]] = zero_shot.NOTES
    heard: Tensor

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        dim: Annotated[int, Ge(8)] = 128,
        patch: Annotated[int, Ge(1)] = 4,
        width: Annotated[int, Ge(4)] = 24,
        text_width: Annotated[int, Ge(32), MultipleOf(32)] = 64,
        text_layers: Annotated[int, Ge(0)] = 1,
        context: Annotated[int, Ge(8)] = 48,
        vocabulary: list[str] | None = None,
        temperature: PositiveFloat = 0.07,
        lambda_where: Annotated[float, Ge(0)] = 100.0,
        flip: Share = 0.5,
        lr: PositiveFloat = 2e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.99),
        warmup_steps: Annotated[int, Ge(0)] = 100,
        lr_final: Annotated[float, Ge(0)] = 0.02,
    ) -> None:
        super().__init__(spec)
        self.terms = Terms.of(self.spec)
        known = list(vocabulary) if vocabulary else words_of(self.terms)
        self.hparams["vocabulary"] = known
        self.tokens = Tokens(known, context)
        self.image = ImageTower(self.spec.channels, patch, width, dim)
        self.text = TextTower(len(known), context, text_width, text_layers, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.register_buffer("heard", torch.zeros(len(known) + 1, dtype=torch.uint8))
        self.seen = zero_shot.Seen()

    @staticmethod
    def needs() -> type[Captioned]:  # type: ignore[override]
        """Slices with what is known of them."""
        return Captioned

    @staticmethod
    def refuses(augment: Mapping[str, Any]) -> str:  # type: ignore[override]
        """Why captions would not be true under these settings.

        Args:
            augment: `data.augment`.

        Returns:
            The reason with the way out; "" when they would.
        """
        return Captioned.turns(augment)

    def prepare(self, data: MRIDataModule) -> None:
        """Refuse data of which there is nothing to say: captions that are all the same teach nothing.

        Args:
            data: set up.

        Raises:
            UserError: no fact differs between the training slices.
        """
        view = data.view("train")
        chosen = range(0, len(view), max(1, len(view) // LOOKED_AT))
        facts = [view.__getitems__(list(chosen[at : at + 64])).facts for at in range(0, len(chosen), 64)]
        table = torch.cat([f for f in facts if f is not None])
        if (table == table[0]).all():
            raise UserError(f"model=mri_clip: all captions of {data.title} would say the same; give several contrasts "
                            "(data.contrasts=[T1,T2]), lesion masks, labels, or a table of age and sex")  # fmt: skip

    # -- embeddings ------------------------------------------------------------------------------------------------

    def encode_image(self, image: Tensor) -> Tensor:
        """Slices as points.

        Args:
            image: (B, C, H, W) in [-1, 1].

        Returns:
            (B, D) float32 of unit length.
        """
        return F.normalize(self.image(image)[0], dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts as points; unknown words are left out, what is too long is cut off.

        Args:
            texts: any.

        Returns:
            (n, D) float32 of unit length.
        """
        return F.normalize(self.text(self.tokens(texts).to(self.device)), dim=1)

    def unheard(self, text: str) -> list[str]:
        """Words of a text that no caption of the training had.

        Args:
            text: any.

        Returns:
            In order, as `captions.words` parts them.
        """
        heard = self.heard.tolist()
        return [w for w in captions.words(text) if not heard[self.tokens.numbers.get(w, 0)]]

    def wordings(self, facts: Tensor, numbers: Tensor, whole: bool = False) -> tuple[list[str], Tensor]:
        """A caption of each slice.

        Args:
            facts: (B, F) int64.
            numbers: (B, captions.DRAWS) uniform.
            whole: say all that is known.

        Returns:
            The captions, and (B, F) int64 what each of them says.
        """
        made = [caption(f, self.terms, u, whole) for f, u in zip(facts.tolist(), numbers.tolist(), strict=True)]
        return [text for text, _ in made], torch.tensor([said for _, said in made], device=facts.device)

    # -- training --------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """How well slices and captions find each other among those of the whole step, of all processes.

        `L = lambda_where where + 1/(2B) sum_i (l_i + l'_i), l_i = mean_{p in P_i} -log(exp(k s_ip) / (exp(k s_ip) +
        sum_{n not in P_i} exp(k s_in)))`, s_ij the cosine of slice i and caption j, P_i the captions that are true of
        slice i, k one over the temperature; l' the same from captions to slices; where the cross-entropy of a coarse
        map of the lesion, of data with masks: words alone tell too slowly of something so small

        A short caption is true of many slices ("T2"), which it then all draws near. In evaluation captions say all that
        is known, in the same words every time, and only those of this process's batch are compared.
        """
        assert batch.facts is not None
        image, facts, mask = batch.image, batch.facts, batch.mask
        if self.training:
            u = uniform(self.seed + _STREAM, self.global_step, batch.index.to(image.device), captions.DRAWS + 1)
            if self.spec.plane in ("axial", "coronal"):
                flipped = u[:, -1] < self.hparams["flip"]
                image = torch.where(flipped[:, None, None, None], image.flip(-1), image)
                mask = None if mask is None else torch.where(flipped[:, None, None, None], mask.flip(-1), mask)
                facts = torch.where(flipped[:, None], mirrored(facts), facts)
        else:
            u = uniform(_STREAM, 0, batch.index.to(image.device), captions.DRAWS)
        texts, said = self.wordings(facts, u, whole=not self.training)
        tokens = self.tokens(texts).to(image.device)
        (z_image, places), z_text = self.image(image), self.text(tokens[:, : int((tokens > 0).sum(1).max())])
        where = None if mask is None else torch.where(facts[:, LESION] >= 0, where_lesion(places, mask), 0.0).mean()
        if self.training:
            z_image, z_text = self._of_all(z_image, True), self._of_all(z_text, True)
            facts, said, tokens = (self._of_all(x, False) for x in (facts, said, tokens))
            self.heard[tokens.flatten()] = 1
            self.heard[0] = 0
        else:
            self.seen.update(F.normalize(z_image, dim=1), facts, batch.index)
        scale = self.log_scale.exp().clamp(max=HOTTEST)
        contrast = image_text(z_image, z_text, scale, fits(facts, said)).mean()
        out = {"loss": contrast, "contrast": contrast, "temperature": 1 / scale.detach()}
        if where is not None:
            out |= {"loss": contrast + self.hparams["lambda_where"] * where, "where": where}
        return out

    def _of_all(self, x: Tensor, gradients: bool) -> Tensor:
        """(B, ...) of this process to (B * processes, ...); gradients go back to each."""
        if self.trainer.world_size == 1:
            return x
        gathered: Any = self.all_gather(x, sync_grads=gradients)
        whole: Tensor = gathered.flatten(0, 1)
        return whole

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Slices, and the one of them that each one's whole caption finds."""
        assert batch.facts is not None
        u = uniform(_STREAM, 0, batch.index.to(batch.image.device), captions.DRAWS)
        texts, _ = self.wordings(batch.facts, u, whole=True)
        found = (self.encode_text(texts) @ self.encode_image(batch.image).T).argmax(1)
        return {"slice": batch.image[:, :1], "found by its caption": batch.image[found, :1]}

    # -- scores ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_end(self) -> None:
        """val/zero_shot, val/zero_shot_FACT and val/recall_K_caption and _image over all validation slices."""
        super().on_validation_epoch_end()
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """The same over all test slices; the scores of each slice stay for the report."""
        super().on_test_epoch_end()
        self.test_results = self._log_scores("test")

    def _log_scores(self, split: str) -> dict[str, Any]:
        z_image, facts, index = self.seen.compute()
        self.seen.reset()
        texts, _ = self.wordings(facts, uniform(_STREAM, 0, index, captions.DRAWS), whole=True)
        z_text = torch.cat([self.encode_text(texts[k : k + 256]) for k in range(0, len(texts), 256)])
        guesses = self.guesses(z_image, facts)
        scores = zero_shot.scores(guesses, facts) | zero_shot.recalls(z_image, z_text, facts)
        for name, values in scores.items():
            self.log(f"{split}/{name}", values.nanmean())
        self.log(f"{split}/zero_shot", zero_shot.overall(guesses, facts), prog_bar=split == "val")
        return {name: v.double().cpu().numpy() for name, v in scores.items()} | {"index": index.cpu().numpy()}

    def guesses(self, z_image: Tensor, facts: Tensor) -> dict[int, Tensor]:
        """What each slice shows, by the prompts nearest to it, of all facts in which the slices differ.

        Args:
            z_image: (N, D) of unit length.
            facts: (N, F) of the same slices; what occurs in them may be guessed.

        Returns:
            Fact to (N,) int64.
        """
        out = {}
        for fact in range(len(captions.FACTS)):
            values = facts[:, fact].unique()
            values = values[values >= 0]
            if len(values) > 1:
                nearest = (z_image @ self.ensemble(fact, values.tolist()).T).argmax(1)
                out[fact] = values[nearest]
        return out

    def ensemble(self, fact: int, values: Sequence[int]) -> Tensor:
        """The direction of each value of a fact: the mean of all ways to say it.

        Args:
            fact: column.
            values: in it.

        Returns:
            (n, D) float32 of unit length.
        """
        means = [self.encode_text(prompts(fact, value, self.terms)).mean(0) for value in values]
        return F.normalize(torch.stack(means), dim=1)

    def references(self, data: MRIDataModule) -> dict[str, float]:
        """What the test scores are worth: recall of a random order, accuracy of always guessing the commonest."""
        view = data.view("test")
        facts = [view.__getitems__(list(range(k, min(k + 256, len(view))))).facts for k in range(0, len(view), 256)]
        table = torch.cat([f for f in facts if f is not None]) if facts else torch.zeros(0, len(captions.FACTS))
        return zero_shot.chance(table) if len(table) else {}

    def configure_optimizers(self) -> Any:
        """Adam with linear warm-up and cosine decay, stepped every batch."""
        h = self.hparams
        optimizer: Optimizer = self.adam(self.parameters(), h["lr"], h["betas"])
        if not h["warmup_steps"] and h["lr_final"] == 1:
            return optimizer
        schedule = WarmupCosine(min(h["warmup_steps"], self.total_steps // 10), self.total_steps, h["lr_final"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def words_of(terms: Terms) -> list[str]:
    """`captions.vocabulary`, which an argument of the constructor is called, too."""
    return vocabulary(terms)

"""Images drawn to a text (VQGAN and CLIP: Crowson et al. 2022, arXiv:2204.08583): a generator's latents are optimised.

No network is trained. A frozen generator makes an image of a latent, a frozen guide says how far cutouts of it are
from the prompts, and the latent follows the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Len, Lt
from torch import Tensor

from mri_synth import initial
from mri_synth.cutouts import CutoutSettings, cutouts
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.style_pairs import style_pairs
from mri_synth.data.views import Images
from mri_synth.errors import UserError
from mri_synth.guided import problems, space_of
from mri_synth.guides import Guide, Kind, guide
from mri_synth.losses.guidance import anchor_loss, guidance_loss, similarity, spherical_distance, structure_loss
from mri_synth.models import canvas
from mri_synth.models.canvas import CanvasModule
from mri_synth.models.latent_space import LatentSpace
from mri_synth.palettes import Palette, coloured
from mri_synth.prompts import Prompt, schedule
from mri_synth.targets import Targets

NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Init = Literal["random", "data", "image"]
_KEPT = ("initial", "average", "taken")
_KEEPS = {"init_weight": "start", "structure_weight": "structure"}
_EVALUATION = (1 << 40) + 1
"""Step of the cutouts in evaluation, which no training reaches."""
_NETWORKS = ("space", "guide")


class ClipGuided(CanvasModule):
    """Text guidance in the latents of a generator: each job is a set of prompts, a seed and a start.

    Job k has the prompt set k modulo their number, and the seeds are the run's and those after it: all sets with the
    first seed, then all with the next. What a job becomes depends on its seed and prompts, not on its number.

    Args:
        spec: what the data know of themselves.
        generator: checkpoint of a method with latents (vqgan, vqvae, vae, dcgan, progan), or one of taming-transformers
            with `generator_config`.
        prompts: a set each, such as "MRI spaceship:1 | blurry:-0.5", as `mri_synth.prompts.schedule` reads them.
        generator_config: the latter's yaml.
        guide: what texts are understood by.
        weights: of the guide; a checkpoint, a hub name or a folder.
        jobs: how many; None: one for each prompt set.
        init: where they start: "random" latents, the images of the "data", or one "image" for all.
        init_image: its file.
        init_slice: of it, where it is a volume.
        init_weight: of the distance from the start, in latents.
        structure_weight: of the distance from the start's edges, whatever their contrast.
        size: side of the images, pixels; None: as the generator was trained.
        cutouts: that the guide sees of an image, at each step.
        whole: so many of them are the whole image.
        cut_scale: least and largest side of the others, shares of the image's.
        cut_power: above 1 more small ones.
        rotate_deg: cutouts are turned by up to this many degrees.
        flip: probability that one is mirrored; 0 where texts name sides.
        gain: intensities are multiplied by 1 - gain to 1 + gain.
        noise: largest standard deviation of the noise on a cutout.
        palette: colours of a grey generator's images, which the guide sees too; for art.
        ema_decay: of the moving average of the latent, of which the result is made; 0: the last latent.
        steps: of each job.
        every: of them in an epoch.
        lr: Adam's, in standard deviations of the generator's latents.
    """

    initial: Tensor
    average: Tensor
    taken: Tensor
    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")
    instead: ClassVar[str] = "Its pictures are the run's; draw others with mri-synth imagine, and release its generator"
    explained: ClassVar[dict[str, Any]] = {
        "distance": guidance_loss, "similarity": similarity, "start": anchor_loss, "structure": structure_loss,
        "spherical": spherical_distance,
    }  # fmt: skip
    protocols: ClassVar[dict[str, str]] = {
        "similarity": "mean cosine, in the guide's embedding, of fixed cutouts of the result and its prompts, those "
        "that it is driven away from counted negative",
        "gained": "the same less that of the start",
    }

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generator: str,
        prompts: Annotated[list[str], Len(1)],
        generator_config: str | None = None,
        guide: Kind = "mri_clip",
        weights: str | None = None,
        jobs: canvas.PositiveInt | None = None,
        init: Init = "random",
        init_image: str | None = None,
        init_slice: Annotated[int, Ge(0)] | None = None,
        init_weight: NonNegative = 0.0,
        structure_weight: NonNegative = 0.0,
        size: canvas.PositiveInt | None = None,
        cutouts: canvas.PositiveInt = 16,
        whole: Annotated[int, Ge(0)] = 2,
        cut_scale: tuple[Annotated[float, Gt(0), Le(1)], Annotated[float, Gt(0), Le(1)]] = (0.5, 1.0),
        cut_power: Annotated[float, Gt(0)] = 1.0,
        rotate_deg: NonNegative = 10.0,
        flip: Share = 0.0,
        gain: Share = 0.0,
        noise: NonNegative = 0.2,
        palette: Palette = "none",
        ema_decay: Annotated[float, Ge(0), Lt(1)] = 0.9,
        steps: canvas.PositiveInt = 200,
        every: canvas.PositiveInt | None = None,
        lr: Annotated[float, Gt(0)] = 0.1,
    ) -> None:
        super().__init__(spec, steps, "adam", lr, 1)
        self.stages = [schedule(text, steps) for text in prompts]
        self.cuts = CutoutSettings(count=cutouts, whole=min(whole, cutouts), scale=(cut_scale[0], cut_scale[1]),
                                   power=cut_power, rotate_deg=rotate_deg, flip=flip, gain=gain,
                                   noise=noise)  # fmt: skip
        self._held: dict[str, Any] = {}  # no children: nothing of them is trained or kept in checkpoints
        for name in _KEPT:
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64 if name == "taken" else torch.float32))

    @staticmethod
    def needs(  # type: ignore[override]
        prompts: list[str], jobs: int | None = None, steps: int = 200, every: int | None = None
    ) -> type[Images]:
        """Slices, one a job.

        Args:
            prompts: sets of them.
            jobs: how many.
            steps: of each.
            every: of them in an epoch.

        Returns:
            The view.
        """
        return style_pairs(jobs or len(prompts), canvas.rounds(steps, every), False, False)

    @staticmethod
    def problems(arguments: Mapping[str, Any]) -> list[str]:
        """What is wrong beyond types and ranges: files that are not there, prompts that cannot be read."""
        return problems({
            "generator_config": None, "guide": "mri_clip", "weights": None, "init": "random", "init_image": None,
            "prompts": [], "steps": 200, "cut_scale": (0.5, 1.0), **arguments,
        })  # fmt: skip

    # -- what is frozen --------------------------------------------------------------------------------------------

    @property
    def space(self) -> LatentSpace:
        """The generator's latents, on the canvases' device."""
        if "space" not in self._held:
            self._held["space"], self._held["spec"] = space_of(self.hparams["generator"],
                                                               self.hparams["generator_config"])  # fmt: skip
        space: LatentSpace = self._here("space")
        return space

    @property
    def seer(self) -> Guide:
        """The guide, on the canvases' device."""
        if "guide" not in self._held:
            self._held["guide"] = guide(self.hparams["guide"], self.hparams["weights"])
        seer: Guide = self._here("guide")
        return seer

    def hold(self, space: LatentSpace | None = None, spec: DataSpec | None = None, seer: Guide | None = None,
             seeds: Tensor | None = None) -> None:  # fmt: skip
        """What is loaded already, in place of what the files have, and seeds in place of the run's.

        Args:
            space: the generator's latents.
            spec: what its data knew of themselves.
            seer: the guide.
            seeds: (N,) int64, one a job.
        """
        given = {"space": space, "spec": spec, "guide": seer, "seeds": seeds}
        self._held.update({name: value for name, value in given.items() if value is not None})

    def _here(self, name: str) -> Any:
        there = self._held[name]
        if self._held.get(f"{name} at") != self.canvas.device:
            where = self.canvas.device
            there = there.to(where, memory_format=torch.channels_last) if name in _NETWORKS else there.to(where)
            self._held |= {name: there, f"{name} at": where}
        return there

    @property
    def side(self) -> int:
        """Of the images, pixels."""
        space, size = self.space, self.hparams["size"]
        side: int = size or space.size
        if not space.allows(side):
            able = f"only {space.size}" if space.multiple is None else f"multiples of {space.multiple}"
            near = space.size if space.multiple is None else max(1, round(side / space.multiple)) * space.multiple
            raise UserError(f"size={side}: the generator makes images of {able} pixels; give size={near}")
        return side

    # -- before the first step -------------------------------------------------------------------------------------

    def start(self, batches: list[Batch]) -> None:
        """Everything is loaded, and every prompt understood, before anything is optimised."""
        for name in ("targets", "targets at", "drawn", "drawn at"):
            self._held.pop(name, None)
        wanted, there = self.hparams["jobs"] or len(self.stages), sum(map(len, batches))
        if there < wanted:
            raise UserError(f"{wanted} jobs ({len(self.stages)} prompt sets, model.jobs={self.hparams['jobs']}), and "
                            f"there are {there} slices, one for each; give more data or fewer jobs")  # fmt: skip
        self.targets()
        super().start(batches)
        z = self.canvas.detach()
        self.initial, self.average = z.clone(), torch.zeros_like(z)
        self.taken = torch.zeros(len(z), dtype=torch.int64, device=z.device)

    @torch.no_grad()
    def begin(self, batch: Batch) -> Tensor:
        """Random latents of the jobs' seeds, or those of images."""
        init, side = self.hparams["init"], self.side
        if init == "random":
            return self.space.start(self.seeds(batch.index), side)
        if init == "image":
            path, number = Path(self.hparams["init_image"]), self.hparams["init_slice"]
            image = initial.load(path, number, side, self.space.channels, self._held["spec"], "slice")
            image = image.to(self.canvas.device).expand(len(batch), -1, -1, -1)
        else:
            image = batch.image.to(self.canvas.device)
            if image.shape[-1] != side or image.shape[1] != self.space.channels:
                raise UserError(f"model.init=data: the data's images are {image.shape[1]} x {image.shape[-1]} x "
                                f"{image.shape[-1]}, the generator's {self.space.channels} x {side} x {side}; give "
                                f"data.size={side}, or model.init=random")  # fmt: skip
        try:
            return self.space.encode(image)
        except UserError as error:
            raise UserError(f"model.generator={self.hparams['generator']}: {error}") from None

    def seeds(self, index: Tensor) -> Tensor:
        """Of jobs.

        Args:
            index: (B,) their numbers.

        Returns:
            (B,) int64.
        """
        if "seeds" in self._held:
            own: Tensor = self._held["seeds"]
            return own.to(index.device)[index]
        return self.seed + index // len(self.stages)

    @torch.no_grad()
    def targets(self) -> Targets:
        """What the prompt sets ask for, on the canvases' device."""
        if "targets" not in self._held:
            self._held["targets"] = Targets.of(self.stages, self._embedded)
        found: Targets = self._here("targets")
        return found

    def _embedded(self, prompt: Prompt) -> Tensor:
        """(D,) of a text or an image."""
        if prompt.image is None:
            return self.seer.encode_text([prompt.text])[0].float()
        side, channels = self.side, 3 if self.hparams["palette"] != "none" else self.space.channels
        image = initial.load(prompt.image, prompt.slice, side, channels, self._held["spec"], f"{prompt.image}@")
        return self.seer.encode_image(image.to(self.canvas.device))[0].float()

    # -- the objective ---------------------------------------------------------------------------------------------

    def picture(self, latent: Tensor) -> Tensor:
        """Images of latents, as they are shown and as the guide sees them.

        Args:
            latent: (B, ...).

        Returns:
            (B, 1 or 3, H, W) in [-1, 1].
        """
        return coloured(self.space.decode(latent), self.hparams["palette"])

    def terms(self, batch: Batch, canvas: Tensor) -> dict[str, Tensor]:
        """The objective of each job.

        `L = sum_p w_p mean_k d(e_k, t_p) + init_weight L_init + structure_weight L_structure`, e_k the embeddings of
        cutouts, t_p those of prompts
        """
        step: int | Tensor = self.taken[batch.index] if self.training else _EVALUATION
        picture = self.picture(canvas)
        out = self._scored(picture, batch.index, step)
        out["start"] = anchor_loss(canvas, self.initial[batch.index])
        if self.hparams["structure_weight"]:
            out["structure"] = structure_loss(picture, self.drawn()[batch.index])
        weighted = [self.hparams[key] * out[name] for key, name in _KEEPS.items() if name in out]
        return {"loss": out["distance"] + sum(weighted), **out}

    def _scored(self, picture: Tensor, index: Tensor, step: int | Tensor) -> dict[str, Tensor]:
        cut = cutouts(picture, self.seer.size, self.cuts, 0, step, self.seeds(index))
        embedded = self.seer.encode_image(cut.flatten(0, 1)).view(*cut.shape[:2], -1)
        asked, weight = self.targets().now(index % len(self.stages), self.taken[index])
        return {"distance": guidance_loss(embedded, asked, weight),
                "similarity": similarity(embedded, asked, weight)}  # fmt: skip

    def drawn(self) -> Tensor:
        """(N, 1 or 3, H, W), the pictures of all starts."""
        if "drawn" not in self._held:
            with torch.inference_mode(False), torch.no_grad():  # validation may ask first, and training goes on with it
                self._held["drawn"] = torch.cat([self.picture(z).float() for z in self.initial.split(16)])
        found: Tensor = self._here("drawn")
        return found

    def configure_optimizers(self) -> Any:
        """Adam, each job for itself."""
        self.lr = self.hparams["lr"] * self.space.scale
        return super().configure_optimizers()

    def keep(self, canvas: Tensor) -> Tensor:
        """Latents that the generator knows."""
        return self.space.keep(canvas)

    def stepped(self, rows: Tensor) -> None:
        """The moving average goes on, and each job counts its steps."""
        d = self.hparams["ema_decay"]
        self.average[rows] = d * self.average[rows] + (1 - d) * self.canvas.detach()[rows]
        self.taken[rows] += 1

    def shown(self, index: Tensor) -> Tensor:
        """The averaged latents, free of the bias to their start at zero."""
        taken = self.taken[index].view(-1, *[1] * (self.canvas.dim() - 1))
        weight = 1 - self.hparams["ema_decay"] ** taken.float()
        return torch.where(taken > 0, self.average[index] / weight.clamp(min=1e-12), self.canvas.detach()[index])

    # -- what is seen ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def results(self, index: Tensor) -> Tensor:
        """What jobs have come to.

        Args:
            index: (B,) their numbers.

        Returns:
            (B, 1 or 3, H, W) float32 in [-1, 1].
        """
        return self.picture(self.shown(index)).float().clamp(-1, 1)

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Where they started, and what came of them."""
        first = self.picture(self.initial[batch.index])
        return {"start": first.float().clamp(-1, 1), "result": self.results(batch.index)}

    @torch.no_grad()
    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """What each job came to."""
        now, before = (self._scored(self.picture(z), batch.index, _EVALUATION)["similarity"]
                       for z in (self.shown(batch.index), self.initial[batch.index]))  # fmt: skip
        return {"similarity": now, "gained": now - before}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Of as many jobs as the checkpoint has."""
        for name in _KEPT:
            there = state_dict.get(f"{prefix}{name}")
            if there is not None and not len(getattr(self, name)):
                setattr(self, name, torch.zeros_like(there))
        super()._load_from_state_dict(state_dict, prefix, *rest)

"""What synthetic images are good for: classifiers that are trained on them and tested on real ones. Not generative.

Train on synthetic, test on real (Esteban et al. 2017, arXiv:1706.02633), for several generators at equal budgets, each
with and without style transfer; and how well a fresh classifier tells synthetic from real images.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from mri_synth.data.augment import augment
from mri_synth.data.base import MRIDataModule
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.grouped import grouped
from mri_synth.data.settings import AugmentSettings, Share
from mri_synth.data.views import Images
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.metrics.utility import STYLED, Row, accuracy, rows, table
from mri_synth.models.base import SynthModule
from mri_synth.networks.classifier import BorderAndHistogram, Classifier
from mri_synth.refine.restyler import Restyler
from mri_synth.synthetic_sets import ClassSet, Content, Generator, cached, real_items, restyled

KID_EACH = 500
"""Test images of each group that KID is taken against, at most."""
_STREAM = 1 << 33
"""Between the seeds of what is drawn here: a run's own seed is smaller."""


class Utility(SynthModule):
    """Classifiers of the same kind, each trained on a set of its own, and all tested on the same real images.

    The sets are made once, before the training, and kept in the cache: so many real images of each group, so many of
    each generator, these restyled, and real and synthetic ones together. Every classifier sees as many images in as
    many steps. The trainer's batches count the steps, and their images are not used.

    Args:
        spec: what the data know of themselves.
        generators: name to checkpoint; what it makes must be of these data's size, contrast and classes.
        groups: class names that count as one, for each group; None: every class of the data is one.
        n_per_class: images of each group in a training set.
        style_steps: evaluations of each pair of the style transfer; 0: no rows with it.
        vgg: file of VGG-19's weights for it; None: the weights `vgg19`.
        style_content: "real": real training images in the style of synthetic ones; "synthetic": the other way round.
        seeds: classifiers of each row, each with its own start and order.
        width: of the classifiers, channels after the first halving.
        lr: learning rate of Adam.
        flip: probability that an image is mirrored left to right in training.
        translate: it is shifted by up to this share of its side.
        gain: its intensities on [0, 1] are multiplied by a factor from 1 - gain to 1 + gain.
        published: name to accuracies in percent that were published for it, without and with style transfer, to stand
            beside.
    """

    monitor: ClassVar[tuple[str, str]] = ("val/accuracy", "max")
    instead: ClassVar[str] = "It compares sets of images; release the model that made the synthetic ones"
    explained: ClassVar[dict[str, Any]] = {"accuracy": accuracy}

    def __init__(
        self,
        spec: DataSpec | dict[str, Any],
        generators: dict[str, str] = {},  # noqa: B006
        groups: list[list[str]] | None = None,
        n_per_class: Annotated[int, Ge(4)] = 64,
        style_steps: Annotated[int, Ge(0)] = 30,
        vgg: str | None = None,
        style_content: Content = "real",
        seeds: Annotated[int, Ge(1)] = 3,
        width: Annotated[int, Ge(1)] = 16,
        lr: Annotated[float, Gt(0)] = 3e-3,
        flip: Share = 0.5,
        translate: Share = 0.03,
        gain: Share = 0.1,
        published: dict[str, list[float]] = {},  # noqa: B006
    ) -> None:
        super().__init__(spec)
        self.tasks = self._tasks(groups)
        self.rows = rows(list(generators), style_steps > 0)
        self.changes = AugmentSettings(flip=flip, translate=translate, gain=gain)
        self.networks_of = nn.ModuleDict({
            row.name: nn.ModuleList(self._network(row, width) for _ in range(seeds)) for row in self.rows
        })  # fmt: skip
        measured = "share of the real test images that are told right"
        self.protocols = {row.name: f"{measured}, {row.what}" for row in self.rows}  # type: ignore[misc]
        self.sets: dict[str, ClassSet] = {}
        self.held: dict[str, Tensor] = {}
        self.by_seed: dict[str, list[float]] = {}
        self.shares: dict[str, Tensor] = {}

    @staticmethod
    def needs(groups: list[list[str]] | None = None) -> type[Images]:  # type: ignore[override]
        """Images whose class is known, and in one of the groups.

        Args:
            groups: as the constructor takes them.

        Returns:
            The view.
        """
        return grouped(groups)

    @staticmethod
    def problems(arguments: dict[str, Any]) -> list[str]:
        """Checkpoints that are not there, and groups that are none; no file is opened."""
        found = [f"model.generators.{name}={path}: no such file; train one, such as python -m mri_synth.run "
                 "model=dcgan model.condition=label, and give its outputs/<run>/best.ckpt"
                 for name, path in (arguments.get("generators") or {}).items()
                 if not Path(str(path)).is_file()]  # fmt: skip
        found += [f"model.generators.{name}: not a name of a row; allowed: letters, digits and -, a letter first, and "
                  "neither real nor border" for name in arguments.get("generators") or {}
                  if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", str(name)) or name in ("real", "border")]  # fmt: skip
        groups = arguments.get("groups")
        if groups is not None and (len(groups) < 2 or not all(groups)):
            found.append(f"model.groups={groups}: two groups or more, each of one class or more, such as "
                         "model.groups=[[tumour],[none]]")  # fmt: skip
        if groups is not None and len({n for g in groups for n in g}) < sum(map(len, groups)):
            found.append(f"model.groups={groups}: a class is in one group only")
        return found

    def _tasks(self, groups: list[list[str]] | None) -> list[list[str]]:
        """The class names of each group."""
        told = [[name] for name in self.spec.classes] if groups is None else groups
        if unknown := [n for g in told for n in g if n not in self.spec.classes]:
            raise UserError(f"model.groups: the data have no class {', '.join(unknown)}; they have "
                            f"{', '.join(self.spec.classes)}")  # fmt: skip
        return told

    def _of(self, row: Row) -> list[nn.Module]:
        """The classifiers of a row."""
        own = self.networks_of[row.name]
        assert isinstance(own, nn.ModuleList)
        return list(own)

    def _network(self, row: Row, width: int) -> nn.Module:
        classes = 2 if row.told else len(self.tasks)
        return BorderAndHistogram(classes) if row.shallow else Classifier(self.spec.channels, classes, width)

    # -- the sets ----------------------------------------------------------------------------------------------------

    @property
    def group_of(self) -> Tensor:
        """(classes,) group of each class, -1 of those in none."""
        at = {name: g for g, names in enumerate(self.tasks) for name in names}
        return torch.tensor([at.get(name, -1) for name in self.spec.classes])

    def prepare(self, data: MRIDataModule) -> None:
        """The sets of all rows."""
        h, n = self.hparams, self.hparams["n_per_class"]
        held = {"val": max(4, n // 2)} if h["generators"] else {}
        real = {split: self._real(data, split, count) for split, count in ({"train": n} | held).items()}
        self.sets = {"real": real["train"][1]}
        self.held = {}
        group = self.sets["real"].group
        for name, path in h["generators"].items():
            generator = Generator(name, Path(path), data)
            train = self._synthetic(generator, data, "train", *real["train"])
            val = self._synthetic(generator, data, "val", *real["val"])
            for ending, images in train.items():
                key, fake = name + ending, ClassSet(images, group)
                both = torch.cat([self.sets["real"].image, images])
                self.sets |= {key: fake, f"real_and_{key}": self.sets["real"].with_(fake),
                              f"told_{key}": ClassSet(both, torch.arange(2).repeat_interleave(len(group)))}  # fmt: skip
                self.held[key] = val[ending]
        self.sets["border"] = self.sets["real"]

    def _real(self, data: MRIDataModule, split: str, n: int) -> tuple[list[int], ClassSet]:
        view = data.view(split)
        items = real_items(
            view, self.group_of, n, self.seed, f"model.n_per_class={self.hparams['n_per_class']}, {split}"
        )
        batch = view.__getitems__(items)
        assert batch.label is not None
        return items, ClassSet(batch.image, self.group_of[batch.label])

    def _synthetic(
        self, generator: Generator, data: MRIDataModule, split: str, items: list[int], own: ClassSet
    ) -> dict[str, Tensor]:
        """Images of a generator, of some real ones' classes, and the same restyled, by the ending of the row's name."""
        h, view = self.hparams, data.view(split)
        names = [self.spec.classes[k] for k in view.store.table["label"][view.rows[items]]]
        first = 0 if split == "train" else _STREAM
        about: dict[str, Any] = {"generator": generator.sha256, "split": split, "items": items, "names": names}
        made = {"": cached(data, about, lambda: generator.make(split, view, items, names, first))}
        if steps := h["style_steps"]:
            pair = (own.image, made[""])
            content, style = pair if h["style_content"] == "real" else pair[::-1]
            worker = Restyler([f"steps={steps}"], vgg=h["vgg"])
            about |= {"content": h["style_content"], "style": worker.about}
            made[STYLED] = cached(data, about, lambda: restyled(worker, content, style))
        return made

    # -- training ----------------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of every classifier, each on images of its own set, or in evaluation on the real images.

        `L = sum_rows sum_seeds -mean_i log p(group_i | image_i)`; in evaluation the mean over rows and seeds, and
        `accuracy` of each row that tells groups apart
        """
        if not self.training:
            return self._evaluated(batch)
        total = torch.zeros((), device=batch.image.device)
        for row in self.rows:
            own = self.sets[row.name]
            for seed, network in enumerate(self._of(row)):
                stream = self.seed + (seed + 1) * _STREAM
                places = torch.arange(len(batch)) + self.trainer.global_rank * len(batch)
                at = (uniform(stream, self.global_step, places, 1)[:, 0] * len(own)).long()
                image, group = own.image[at].to(batch.image.device), own.group[at].to(batch.image.device)
                changed = augment(Batch(image=image, index=places.to(image.device)), self.changes, stream + 1,
                                  self.global_step).image  # fmt: skip
                total = total + F.cross_entropy(network(changed), group)
        return {"loss": total}

    def _evaluated(self, batch: Batch) -> dict[str, Tensor]:
        """Mean loss and, row by row, accuracy on real images, every group counting alike."""
        assert batch.label is not None
        group, weight = self.group_of.to(batch.label.device)[batch.label], self._weights(batch)
        found, losses = {}, []
        for row in (r for r in self.rows if not r.told):
            logits = torch.stack([network(batch.image) for network in self._of(row)])
            each = torch.stack([F.cross_entropy(one, group, reduction="none") for one in logits])
            losses.append((each * weight).mean())
            found[f"accuracy_{row.name}"] = (accuracy(logits, group) * weight).mean()
        every = torch.stack(list(found.values())).mean()
        return {"loss": torch.stack(losses).mean(), "accuracy": every} | found

    def _weights(self, batch: Batch) -> Tensor:
        """(B,) by which items of a group that is frequent in val or test count less; 1 on average over the split."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        split = "test" if self.trainer.testing else "val"
        if split not in self.shares:
            view = data.view(split)
            label = torch.from_numpy(view.store.table["label"][view.rows]).long()
            count = torch.bincount(self.group_of[label], minlength=len(self.tasks))
            self.shares[split] = count.sum() / ((count > 0).sum() * count.clamp(min=1))
        assert batch.label is not None
        return self.shares[split].to(batch.image.device)[self.group_of.to(batch.label.device)[batch.label]]

    # -- test --------------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Nothing is told yet."""
        self.right: dict[str, list[Tensor]] = {row.name: [] for row in self.rows}
        self.weights: list[Tensor] = []

    def item_scores(self, batch: Batch) -> dict[str, Tensor]:
        """The share of a row's classifiers that tell each real test image right."""
        assert batch.label is not None
        group, scores = self.group_of.to(batch.label.device)[batch.label], {}
        self.weights.append(self._weights(batch))
        for row in self.rows:
            logits = torch.stack([network(batch.image) for network in self._of(row)])
            right = accuracy(logits, torch.zeros_like(group) if row.told else group)
            self.right[row.name].append(right)
            if not row.told:
                scores[row.name] = right.mean(0)
        return scores

    def on_test_epoch_end(self) -> None:
        """Accuracies of each classifier: on real test images; of what tells real from synthetic, the mean over both."""
        super().on_test_epoch_end()
        weight = torch.cat(self.weights)
        for row in self.rows:
            own = (torch.cat(self.right[row.name], 1) * (1 if row.told else weight)).mean(1)
            if self.trainer.world_size > 1:
                gathered: Any = self.all_gather(own)
                own = gathered.mean(0)
            if row.told:
                fakes = self.held[row.name.removeprefix("told_")]
                parts = [torch.stack([n(p.to(own.device)) for n in self._of(row)]) for p in fakes.split(64)]
                logits = torch.cat(parts, 1)
                ones = torch.ones(logits.shape[1], dtype=torch.int64, device=own.device)
                own = (own + accuracy(logits, ones).mean(1)) / 2
                self.log(f"test/{row.name}", own.mean())
            self.by_seed[row.name] = own.tolist()

    def visuals(self, batch: Batch) -> dict[str, Tensor]:
        """Images of the sets, of all groups."""
        shown = {name: own.image for name, own in self.sets.items() if name == "real" or name in self.held}
        at = torch.linspace(0, len(self.sets["real"]) - 1, len(batch)).long()
        return {name.replace("_", " "): images[at, :1] for name, images in shown.items()}

    def conclude(self, data: MRIDataModule) -> dict[str, Any]:
        """The table: a row for each generator, without and with style transfer."""
        from mri_synth.judgement import spaces

        found, missing = spaces(["auto"], self.device)
        kids: dict[str, Any] = {}
        if found:
            from mri_synth.metrics.kid import kernels, kid, kid_interval

            view = data.view("test")
            label = torch.from_numpy(view.store.table["label"][view.rows]).long()
            each = int(torch.bincount(self.group_of[label], minlength=len(self.tasks)).min())
            items = real_items(view, self.group_of, min(each, KID_EACH), self.seed, "test") if each > 1 else []
            if items:
                real = view.__getitems__(items)
                vectors = found[0](real.image).numpy()
                for name in self.held:
                    k = kernels(found[0](self.sets[name].image).numpy(), vectors)
                    kids[name] = [kid(k), kid_interval(k, real.subject)]
        about = {**self.hparams, "groups": ["/".join(g) for g in self.tasks], "simulated": self.spec.simulated,
                 "space": found[0].name if found else missing}  # fmt: skip
        view, index = data.view("test"), self.test_results["index"]
        group = self.group_of.numpy()[view.store.table["label"][view.rows[index]]]
        return table(self.rows, self.by_seed, self.test_results, group, view.subjects[index].tolist(), kids, about)

    def configure_optimizers(self) -> Any:
        """Adam; what one classifier learns does not depend on the others."""
        return self.adam(self.parameters(), self.hparams["lr"])

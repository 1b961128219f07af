"""What flows from a data module to a method: `Batch`, and what the data knows of itself: `DataSpec`."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What a model must know of its data; plain values, saved with every checkpoint.

    Attributes:
        channels: of an image of one contrast, 1 for MRI.
        size: images are (size, size) pixels.
        contrasts: contrast names in channel or view order.
        sources: what the channels of `Batch.image` are, where a method makes one thing of others: contrasts, "mask", or
            what is derived from the target; empty elsewhere.
        goal: contrast of `Batch.target`; None elsewhere.
        classes: label names in index order; empty when the data are unlabelled.
        spacing_mm: pixel spacing (row, column) where it is the same for all images, else None.
        slices_mm: where slices lie along the axis of the plane, world coordinate (RAS), ascending: all places of the
            training split where they are few, else the middles of equal parts; empty for pictures.
        plane: "axial", "coronal" or "sagittal"; None when files are single pictures of unknown plane.
        sites: where the data were measured, sorted; empty where that is unknown.
        simulated: True when no scanner was involved.
        preparation: the data module's preparation settings (plane, fit, intensity, ...), so that a new file
            can be brought to the model exactly as the training files were; and "ranges": contrast to the source
            units, [low, high], that are -1 and 1 in the median training file.
    """

    channels: int = 1
    size: int
    contrasts: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    goal: str | None = None
    classes: tuple[str, ...] = ()
    spacing_mm: tuple[float, float] | None = None
    slices_mm: tuple[float, ...] = ()
    plane: str | None = None
    sites: tuple[str, ...] = ()
    simulated: bool = False
    preparation: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of plain values, as stored in a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, value: DataSpec | dict[str, Any]) -> DataSpec:
        """The spec itself, or the spec a checkpoint's dict stands for."""
        if isinstance(value, DataSpec):
            return value
        value = dict(value)
        for key in ("contrasts", "sources", "classes", "spacing_mm", "slices_mm", "sites"):
            if isinstance(value.get(key), list):
                value[key] = tuple(value[key])
        return cls(**value)


@dataclass
class Batch:
    """One batch as every method sees it.

    Attributes:
        image: (B, C, H, W) float32 in [-1, 1].
        index: (B,) int64, position of each item in its split: the same item has the same index in every epoch.
        target: (B, C, H, W) float32 in [-1, 1], where the view offers it.
        paired: (B,) bool, whether `target` shows the same slice as `image`; None where it always does.
        label: (B,) int64, index into `spec.classes`, -1 where unlabelled.
        mask: (B, 1, H, W) float32 in {0, 1}, lesion or tumour, where the data has it.
        target_mask: the same of `target`, where that is another slice.
        subject: B subject names.
        contrast: B contrast names.
        slice: (B,) int64, slice number in its volume.
        position_mm: (B,) float32, where the slice lies along the axis of its plane; 0 for pictures.
        age: (B,) float32 years, NaN where unknown.
        sex: B of "F", "M" or "".
        site: B site names or "".
        facts: (B, F) int64 of the view of captions, columns as in `mri_synth.captions.FACTS`; -1 where unknown.
        codes: (B, h, w) int64, the image's codes under the first stage of a two-stage method; None where the image was
            changed after they were made.
    """

    image: Tensor
    index: Tensor
    target: Tensor | None = None
    paired: Tensor | None = None
    label: Tensor | None = None
    mask: Tensor | None = None
    target_mask: Tensor | None = None
    subject: tuple[str, ...] = ()
    contrast: tuple[str, ...] = ()
    slice: Tensor | None = None
    position_mm: Tensor | None = None
    age: Tensor | None = None
    sex: tuple[str, ...] = ()
    site: tuple[str, ...] = ()
    facts: Tensor | None = None
    codes: Tensor | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Several batches as one.

        Args:
            batches: at least one, all with the same fields.

        Returns:
            Their items, in order.
        """
        if len(batches) == 1:
            return batches[0]
        every = {a.name: [getattr(b, a.name) for b in batches] for a in fields(cls)}
        joined: dict[str, Any] = {
            name: None if values[0] is None
            else torch.cat(values) if isinstance(values[0], Tensor) else tuple(chain(*values))
            for name, values in every.items()
        }  # fmt: skip
        return cls(**joined)

    def part(self, here: builtins.slice) -> Batch:
        """Some items.

        Args:
            here: which.

        Returns:
            The same fields of them.
        """
        every = {a.name: getattr(self, a.name) for a in fields(self)}
        cut: dict[str, Any] = {name: None if value is None else value[here] for name, value in every.items()}
        return Batch(**cut)

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Tensors moved as by `Tensor.to`."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def pin_memory(self) -> Batch:
        """Tensors in page-locked memory (called by the DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, f: Any) -> Batch:
        tensors = {a.name: getattr(self, a.name) for a in fields(self) if isinstance(getattr(self, a.name), Tensor)}
        return replace(self, **{name: f(t) for name, t in tensors.items()})

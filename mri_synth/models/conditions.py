"""What samples can be asked for: the image's label, its contrast, or the place of its slice in the head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.captioned import Captioned
from mri_synth.data.views import Images, Labelled
from mri_synth.errors import UserError

Condition = Literal["none", "label", "contrast", "slice"]
Worded = Literal["none", "label", "contrast", "slice", "text"]
"""Of methods that can be asked in words, too."""


def view(condition: Worded) -> type[Images]:
    """The view that a method with such a condition needs.

    Args:
        condition: what samples can be asked for.

    Returns:
        Labelled images where it is the label, those with what is known of them where it is text.
    """
    kinds: dict[str, type[Images]] = {"label": Labelled, "text": Captioned}
    return kinds.get(condition, Images)


def names(condition: Worded, spec: DataSpec) -> tuple[str, ...]:
    """What samples can be asked for, in index order.

    Args:
        condition: which property of an image.
        spec: of the data.

    Returns:
        Labels; contrasts; or places such as "+20mm" along the axis of the plane; empty without a condition, and where
        it is text.

    Raises:
        UserError: by slice, of data without places.
    """
    if condition == "slice" and not spec.slices_mm:
        raise UserError("model.condition=slice: these images have no place in a volume, being single pictures; "
                        "choose model.condition=none, label or contrast")  # fmt: skip
    places = tuple(f"{mm:+.4g}mm" for mm in spec.slices_mm)
    return {"none": (), "text": (), "label": spec.classes, "contrast": spec.contrasts, "slice": places}[condition]


def known(condition: Worded, spec: DataSpec, batch: Batch) -> Tensor | None:
    """What the images of a batch are.

    Args:
        condition: which property.
        spec: of the data the model was made for.
        batch: its label, contrast or position is used.

    Returns:
        (B,) int64 index into `names`, -1 where unknown; None without names. A slice is of the nearest place.
    """
    if condition in ("none", "text"):
        return None
    if condition == "label":
        return batch.label
    if condition == "contrast":
        index = {name: i for i, name in enumerate(spec.contrasts)}
        return torch.tensor([index.get(name, -1) for name in batch.contrast], device=batch.image.device)
    assert batch.position_mm is not None
    places = torch.tensor(spec.slices_mm, device=batch.position_mm.device)
    return (batch.position_mm[:, None] - places).abs().argmin(1)

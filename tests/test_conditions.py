"""What samples can be asked for: names, what images are, and what a data set cannot say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mri_synth.data.base import places
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.phantom import Phantom
from mri_synth.data.views import Images, Labelled
from mri_synth.errors import UserError
from mri_synth.models import conditions

SPEC = DataSpec(size=8, contrasts=("T1", "T2"), classes=("none", "lesion"), slices_mm=(-10.0, -4.0, 2.5))
BATCH = Batch(image=torch.zeros(4, 1, 8, 8), index=torch.arange(4), label=torch.tensor([1, -1, 0, 1]),
              contrast=("T2", "T1", "PD", "T1"), position_mm=torch.tensor([-30.0, -6.9, -7.1, 2.6]))  # fmt: skip


@pytest.mark.parametrize(
    "condition, names, known",
    [
        ("none", (), None),
        ("label", ("none", "lesion"), [1, -1, 0, 1]),
        ("contrast", ("T1", "T2"), [1, 0, -1, 0]),
        ("slice", ("-10mm", "-4mm", "+2.5mm"), [0, 1, 0, 2]),
    ],
)
def test_names_and_what_images_are(condition, names, known):
    assert conditions.names(condition, SPEC) == names
    found = conditions.known(condition, SPEC, BATCH)
    assert (None if found is None else found.tolist()) == known
    assert conditions.view(condition) is (Labelled if condition == "label" else Images)


def test_pictures_have_no_place():
    with pytest.raises(UserError, match=r"condition=slice: these images have no place .* choose model.condition=none"):
        conditions.names("slice", DataSpec(size=8))


def test_places_are_those_of_the_slices_or_the_middles_of_sixteen_parts():
    assert places(np.array([2.04, -4, 2, 8, 8])) == (-4.0, 2.0, 8.0)
    many = places(np.arange(0, 161, dtype=float))
    assert len(many) == 16
    assert many[:2] == (5.0, 15.0)
    assert many[-1] == 155.0


def test_the_phantom_knows_its_ten_places(tmp_path):
    data = Phantom(subjects=[2, 1, 1], size=32, cache=str(tmp_path))
    data.prepare_data()
    data.setup()
    assert data.spec.slices_mm == tuple(float(mm) for mm in range(-10, 45, 6))
    batch = data.view("test").__getitems__([0, 9])
    assert conditions.known("slice", data.spec, batch).tolist() == [0, 9]
    assert DataSpec.of(data.spec.to_dict() | {"slices_mm": list(data.spec.slices_mm)}) == data.spec


def test_parts_of_a_batch_joined_are_the_batch_again():
    again = Batch.join([BATCH.part(slice(0, 1)), BATCH.part(slice(1, 3)), BATCH.part(slice(3, 4))])
    for name, value in vars(BATCH).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert Batch.join([BATCH]) is BATCH

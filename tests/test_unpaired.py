"""The unpaired view: who meets whom in training, and which items validation and test can compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from test_data import SIZE, built, prepared

from mri_synth.data.sampler import EpochBatches
from mri_synth.data.views import Reading, Unpaired

TRAINING = Reading(training=True, seed=4)


def view(tmp_path: Path, how: Reading, subjects: int = 5) -> Unpaired:
    studies = [prepared(k, 3, ("T1", "T2")) for k in range(subjects)]
    return Unpaired(built(tmp_path, *studies), np.arange(3 * subjects), ["T1", "T2"], how)


def test_in_training_every_target_is_drawn_once_from_another_subject(tmp_path: Path) -> None:
    items = view(tmp_path, TRAINING)
    subject = items.store.table["study"]
    orders = [items.drawn(epoch).tolist() for epoch in range(50)]
    for order in orders:
        assert sorted(order) == list(range(15))
        assert (subject[order] != subject[items.rows]).all()
    assert len({tuple(order) for order in orders}) == 50
    again = view(tmp_path, TRAINING)
    assert again.drawn(7).tolist() == orders[7]
    assert view(tmp_path, Reading(training=True, seed=5)).drawn(7).tolist() != orders[7]


def test_the_epoch_comes_with_the_items_and_no_order_changes_a_partner(tmp_path: Path) -> None:
    items = view(tmp_path, TRAINING)
    batches = EpochBatches(len(items), 4, seed=1, shuffle=True, tell_epoch=items.draws_anew)
    batches.set_epoch(3)
    for indices in batches:
        batch = items.__getitems__(indices)
        assert (np.asarray(indices) // 15 == 3).all()
        assert batch.index.tolist() == [i % 15 for i in indices]
        assert batch.paired is None
        assert batch.target is not None
        torch.testing.assert_close(batch.image, items.read("T1", items.rows[batch.index]))
        torch.testing.assert_close(batch.target, items.read("T2", items.drawn(3)[batch.index]))


def test_fewer_targets_are_used_equally_often_and_one_subject_alone_meets_itself(tmp_path: Path) -> None:
    studies = [prepared(0, 4, ("T1",)), prepared(1, 3, ("T1",)), prepared(2, 2, ("T2",))]
    items = Unpaired(built(tmp_path / "a", *studies), np.arange(9), ["T1", "T2"], TRAINING)
    assert len(items) == 7
    assert sorted(np.bincount(items.drawn(0), minlength=9)[7:]) == [3, 4]
    alone = view(tmp_path / "b", TRAINING, subjects=1)
    assert sorted(alone.drawn(0).tolist()) == [0, 1, 2]


def test_evaluation_compares_the_same_slice_where_there_is_one(tmp_path: Path) -> None:
    studies = [prepared(0, 2, ("T1", "T2")), prepared(1, 2, ("T1",)), prepared(2, 2, ("T2",))]
    store = built(tmp_path, *studies)
    items = Unpaired(store, np.arange(6), ["T1", "T2"], Reading(partners={3: 5}))
    batch = items.__getitems__([0, 1, 2, 3])
    assert batch.paired is not None
    assert batch.target is not None
    assert batch.paired.tolist() == [True, True, False, True]
    assert not items.draws_anew
    torch.testing.assert_close(batch.target[[0, 1, 3]], items.read("T2", np.asarray([0, 1, 5])))
    assert batch.target.shape == (4, 1, SIZE, SIZE)


def test_a_split_without_the_second_contrast_is_empty(tmp_path: Path) -> None:
    store = built(tmp_path, prepared(0, 2, ("T1",)), prepared(1, 2, ("T2",)))
    assert len(Unpaired(store, np.arange(2), ["T1", "T2"])) == 0
    assert len(Unpaired(store, np.arange(2, 4), ["T1", "T2"])) == 0

"""Between files and batches: store, split, sampler, augmentation, preparation, views, loaders. Figures by hand."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import layouts
import nibabel as nib
import numpy as np
import pytest
import torch
from test_dicom import write_series

from mri_synth.data import augment as augmentation
from mri_synth.data import prepare, store
from mri_synth.data.augment import augment
from mri_synth.data.batch import Batch, DataSpec
from mri_synth.data.folder import Folder
from mri_synth.data.sampler import EpochBatches
from mri_synth.data.scan import Scan
from mri_synth.data.settings import AugmentSettings, IntensitySettings, SliceSettings, SplitSettings
from mri_synth.data.split import assign, counts_of, drop_leaks, natural, read_manifest, write_manifest
from mri_synth.data.store import MASK, Prepared, Store, open_or_build
from mri_synth.data.views import Images, Labelled, Pairs, Reading
from mri_synth.data.volume import Slices, Volume, read
from mri_synth.draws import uniform
from mri_synth.errors import UserError
from mri_synth.metrics.scores import summarise

SIZE = 8


def prepared(number: int, slices: int = 3, contrasts: tuple[str, ...] = ("T1",), mask: bool = False,
             label: int = -1) -> Prepared:  # fmt: skip
    """One study of noise, `number` its seed and its name."""
    rng = np.random.default_rng(number)
    images = {c: rng.uniform(-1, 1, (slices, SIZE, SIZE)).astype(np.float32) for c in contrasts}
    if mask:
        images[MASK] = rng.integers(0, 2, (slices, SIZE, SIZE)).astype(np.float32)
    columns = {"slice": np.arange(slices), "position_mm": 2.5 * np.arange(slices), "label": np.full(slices, label),
               "foreground": np.full(slices, 0.5)}  # fmt: skip
    about = {
        "subject": f"s{number}",
        "session": "",
        "age": 20.0 + number,
        "sex": "F",
        "site": None,
        "path": f"p{number}",
    }
    return Prepared(images=images, columns=columns, study=about, files=[{"path": f"p{number}", "reason": ""}])


def built(folder: Path, *studies: Prepared) -> Store:
    return open_or_build(folder, "set-key", SIZE, lambda: iter(studies))


# -- store -------------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    first, second = prepared(1, 3, ("T1", "T2"), mask=True), prepared(2, 2, ("T2",))
    opened = built(tmp_path, first, second)
    assert (opened.rows, opened.counts) == (5, {"T1": 3, "T2": 5, MASK: 3})
    assert opened.table["row_T1"].tolist() == [0, 1, 2, -1, -1]
    assert opened.table["row_T2"].tolist() == [0, 1, 2, 3, 4]
    assert opened.table["study"].tolist() == [0, 0, 0, 1, 1]
    assert opened.table["position_mm"].tolist() == [0, 2.5, 5, 0, 2.5]
    back = opened.read("T2", np.array([4, 0])) / store.SCALE
    wanted = np.stack([second.images["T2"][1], first.images["T2"][0]])
    assert np.abs(back - wanted).max() <= 0.5 / 32767 + 1e-7  # half a step of int16
    np.testing.assert_array_equal(opened.read(MASK, np.arange(3)), first.images[MASK])
    assert [s["subject"] for s in opened.studies] == ["s1", "s2"]


def test_ends_of_the_range_are_exact() -> None:
    ends = np.array([[-1.5, -1, 0, 1, 1.5]], np.float32)
    assert store.to_int16(ends).tolist() == [[-32767, -32767, 0, 32767, 32767]]


def test_a_store_is_built_once_and_pickles_without_handles(tmp_path: Path) -> None:
    opened = built(tmp_path, prepared(1))

    def never() -> Iterator[Prepared]:
        raise AssertionError("built twice")

    again = open_or_build(tmp_path, "set-key", SIZE, never)
    copy = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(copy.read("T1", np.arange(3)), opened.read("T1", np.arange(3)))


BUILDER = """
import os, sys, time
sys.path[:0] = [{tests!r}]
from pathlib import Path
import test_data
from mri_synth.data.store import open_or_build

def studies():
    with open("built", "a") as file:
        file.write(f"{{os.getpid()}} ")
    for n in range(8):
        time.sleep({pause})
        yield test_data.prepared(n)
        (Path.cwd() / "begun").touch()

print(open_or_build(Path("cache"), "set-key", test_data.SIZE, studies).rows)
"""


def builder(folder: Path, pause: float) -> subprocess.Popen[str]:
    code = BUILDER.format(tests=str(Path(__file__).parent), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, text=True, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes_build_one_store_once(tmp_path: Path) -> None:
    both = [builder(tmp_path, 0.1) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].strip() for p in both] == ["24", "24"]
    assert [p.returncode for p in both] == [0, 0]
    assert len((tmp_path / "built").read_text().split()) == 1


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_that_opens(tmp_path: Path) -> None:
    process = builder(tmp_path, 0.5)
    limit = time.monotonic() + 120
    while not (tmp_path / "begun").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    left = {p.name for p in (tmp_path / "cache").iterdir()}
    assert any("partial" in name for name in left)
    assert "set-key" not in left
    opened = built(tmp_path / "cache", prepared(5))
    assert [s["subject"] for s in opened.studies] == ["s5"]
    assert not list((tmp_path / "cache").glob("*partial*"))


def test_an_error_in_mid_build_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Prepared]:
        yield prepared(1)
        raise UserError("1 file(s) cannot be used")

    with pytest.raises(UserError, match="cannot be used"):
        open_or_build(tmp_path, "set-key", SIZE, failing)
    assert [p.name for p in tmp_path.iterdir()] == ["set-key.lock"]


def damage_truncated(place: Path) -> None:
    os.truncate(place / "T1.bin", 100)


def damage_byte(place: Path) -> None:
    content = bytearray((place / "T1.bin").read_bytes())
    content[0] ^= 1  # the first row is always among those that are checked
    (place / "T1.bin").write_bytes(content)


def damage_table(place: Path) -> None:
    content = (place / "table.npz").read_bytes()
    (place / "table.npz").write_bytes(content[: len(content) // 2])


def damage_meta(place: Path) -> None:
    (place / "meta.json").write_text('{"format": 1, "si')


def damage_key(place: Path) -> None:
    (place / "meta.json").write_text('{"rows": 3}')


def damage_missing(place: Path) -> None:
    (place / "table.npz").unlink()


def damage_array(place: Path) -> None:
    (place / "T1.bin").unlink()


@pytest.mark.parametrize("damage", [damage_truncated, damage_byte, damage_table, damage_meta, damage_key,
                                    damage_missing, damage_array])  # fmt: skip
def test_a_damaged_store_is_refused(damage: Any, tmp_path: Path) -> None:
    place = built(tmp_path, prepared(1)).path
    damage(place)
    with pytest.raises(
        UserError, match=r"the store .*set-key is damaged; delete it \(rm -r .*set-key\) and it will be"
    ):
        built(tmp_path, prepared(1))
    shutil.rmtree(place)
    assert built(tmp_path, prepared(1)).rows == 3


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    place = built(tmp_path, prepared(1)).path
    meta = json.loads((place / "meta.json").read_text())
    (place / "meta.json").write_text(json.dumps(meta | {"format": 0}))
    with pytest.raises(UserError, match=rf"has format 0, not {store.FORMAT}; delete it \(rm -r "):
        built(tmp_path, prepared(1))


def test_a_store_truncated_while_in_use(tmp_path: Path) -> None:
    opened = built(tmp_path, prepared(1))
    damage_truncated(opened.path)
    with pytest.raises(UserError, match="was truncated while in use; delete it and run again"):
        opened.read("T1", np.array([2]))


def test_a_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(
            UserError, match=r"cannot write the store of prepared slices in .*data\.cache=/path or the var"
        ):
            built(cache, prepared(1))


@pytest.mark.parametrize("number, why", [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "the disk is full"),
                                         (errno.EROFS, "Read-only file system")])  # fmt: skip
def test_a_cache_that_cannot_be_written(number: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", fail)  # the arrays are written by now
        with pytest.raises(UserError, match=f"in {tmp_path}: {why}; nothing half-written was left"):
            built(tmp_path, prepared(1))
    assert [p.name for p in tmp_path.iterdir()] == ["set-key.lock"]
    assert built(tmp_path, prepared(1)).rows == 3


# -- split -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, fractions, counts", [
    (10, [0.8, 0.1, 0.1], [8, 1, 1]),
    (14, [0.8, 0.1, 0.1], [11, 2, 1]),  # 11.2, 1.4, 1.4: to the first with the largest remainder
    (3, [0.8, 0.1, 0.1], [1, 1, 1]),
    (2, [0.8, 0.1, 0.1], [1, 1, 0]),
    (1, [0.8, 0.1, 0.1], [1, 0, 0]),
    (7, [0.5, 0.5, 0.0], [4, 3, 0]),
    (0, [0.8, 0.1, 0.1], [0, 0, 0]),
])  # fmt: skip
def test_counts_by_hand(n: int, fractions: list[float], counts: list[int]) -> None:
    assert counts_of(n, fractions) == counts


def records(n: int, per_subject: int = 1, **more: Any) -> list[dict[str, Any]]:
    plain = [{"subject": f"s{i // per_subject}", "label": None, "split": None, "path": f"img{i}.png"} for i in range(n)]
    return [record | more for record in plain]


def test_a_split_by_subject_never_parts_a_subject() -> None:
    studies, seen = records(60, per_subject=3), set()
    for seed in range(10):
        splits = assign(studies, SplitSettings(seed=seed))
        where = {s["subject"]: {t for r, t in zip(studies, splits, strict=True) if r["subject"] == s["subject"]}
                 for s in studies}  # fmt: skip
        assert all(len(w) == 1 for w in where.values())
        assert [splits.count(x) for x in ("train", "val", "test")] == [48, 6, 6]
        assert splits == assign(studies, SplitSettings(seed=seed))
        assert assign(studies[::-1], SplitSettings(seed=seed)) == splits[::-1]  # not by the order of the files
        seen.add(tuple(splits))
    assert len(seen) == 10


def test_a_split_by_block_keeps_neighbours() -> None:
    studies = records(40, label="a") + [s | {"path": f"z/{s['path']}"} for s in records(25, label="b")]
    shuffled = [studies[i] for i in np.random.default_rng(0).permutation(len(studies))]
    given = assign(shuffled, SplitSettings(by="block", block_size=5, fractions=[0.6, 0.2, 0.2]))
    splits = dict(zip([s["path"] for s in shuffled], given, strict=True))
    for label, count in (("", 40), ("z/", 25)):
        row = [splits[f"{label}img{i}.png"] for i in range(count)]
        assert all(len(set(row[i : i + 5])) == 1 for i in range(0, count, 5))
    assert natural("img10") > natural("img2")


def test_too_few_subjects() -> None:
    with pytest.raises(
        UserError, match=r"1 subjects cannot fill train and val with .*say e\.g\. data\.split\.fractions"
    ):
        assign(records(1), SplitSettings())
    with pytest.raises(UserError, match=r"1 blocks cannot fill train and val.*or a smaller data\.split\.block_size"):
        assign(records(12), SplitSettings(by="block"))
    with pytest.raises(UserError, match=r"data\.split\.fractions=\[0\.9, 0\.2, 0\.1\]: allowed: three shares"):
        assign(records(9), SplitSettings(fractions=[0.9, 0.2, 0.1]))


def test_a_given_split(tmp_path: Path) -> None:
    studies = [r | {"split": s} for r, s in zip(records(4), ("train", "val", None, "test"), strict=True)]
    assert assign(studies, SplitSettings(by="given")) == ["train", "val", "", "test"]
    with pytest.raises(UserError, match=r"by=given, but this data has no split \(a subject here: s0\)"):
        assign(records(3), SplitSettings(by="given"))


def test_a_manifest_gives_the_same_split_again(tmp_path: Path) -> None:
    path, studies = tmp_path / "split.csv", records(30, per_subject=2)
    splits = assign(studies, SplitSettings(seed=3))
    write_manifest(path, [{"split": t, "subject": s["subject"]} for s, t in zip(studies, splits, strict=True)])
    assert assign(studies, SplitSettings(by="given", file=str(path))) == splits
    assert assign(studies, SplitSettings(by="given", seed=99, file=str(path))) == splits
    others = [s | {"subject": f"other-{s['subject']}"} for s in studies]
    with pytest.raises(UserError, match=r"the manifest .* names none of the subjects \(a subject here: other-s0\)"):
        assign(others, SplitSettings(by="given", file=str(path)))
    for by in ("subject", "block"):
        with pytest.raises(UserError, match=rf"data\.split\.file={path} needs data\.split\.by=given; it is .*by={by}"):
            assign(studies, SplitSettings(by=by, file=str(path)))


def test_subjects_in_no_split_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "split.csv"
    path.write_text("subject,split\ns0,train\ns1,val\n")
    assert assign(records(9), SplitSettings(by="given", file=str(path)))[:3] == ["train", "val", ""]
    assert f"7 of 9 subjects are in no split of {path}: s2, s3, s4, s5, s6, ..." in caplog.text


@pytest.mark.parametrize("content, message", [
    (None, r"no such file; give the split\.csv of an earlier run"),
    ("", "needs rows and the columns subject and split"),
    ("subject,where\na,train\n", "needs rows and the columns subject and split"),
    ("subject,split\na,training\n", "split 'training' of a; allowed: train, val, test"),
    ("subject,split\na,train\na,test\n", "subject a is in train and in test"),
])  # fmt: skip
def test_manifests_that_cannot_be_used(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"data\.split\.file=.*split\.csv: {message}"):
        read_manifest(path)


def test_leaks_are_an_error_or_dropped_from_the_earlier_split() -> None:
    keys, names = [[1], [2], [1], [3], [2, 9], []], list("abcdef")
    splits = ["train", "val", "val", "test", "test", "train"]
    said = (r"the split leaks: 2 item\(s\) .*\n  image in train and val: a and c\n  image in val and test: b and e\n"
            r"Mend the split, or say data\.split\.on_leak=drop")  # fmt: skip
    with pytest.raises(UserError, match=said):
        drop_leaks(keys, splits.copy(), names, "image", SplitSettings())
    leaks = drop_leaks(keys, splits, names, "image", SplitSettings(on_leak="drop"))
    assert leaks == [(0, "image in train and val: a and c"), (1, "image in val and test: b and e")]
    assert splits == ["", "", "val", "test", "test", "train"]
    assert drop_leaks(keys, splits, names, "image", SplitSettings()) == []


# -- sampler -----------------------------------------------------------------------------------------------------------


def batches(epoch: int = 0, **arguments: Any) -> list[list[int]]:
    sampler = EpochBatches(**arguments)
    sampler.set_epoch(epoch)
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    plain = {"items": 20, "batch_size": 4, "shuffle": True}
    assert batches(3, seed=0, **plain) == batches(3, seed=0, **plain)
    orders = {str(batches(epoch, seed=seed, **plain)) for epoch in range(5) for seed in range(5)}
    assert len(orders) == 25
    for epoch in range(3):
        assert sorted(chain.from_iterable(batches(epoch, **plain))) == list(range(20))
    assert batches(items=5, batch_size=2) == [[0, 1], [2, 3], [4]]
    assert [len(b) for b in batches(items=5, batch_size=2, shuffle=True, drop_last=True)] == [2, 2]
    assert [len(b) for b in batches(items=3, batch_size=4, shuffle=True, drop_last=True)] == [3]  # the only one stays


@pytest.mark.parametrize("items", [16, 17, 19, 23])
def test_ranks_share_the_global_batch_of_one(items: int) -> None:
    one = batches(2, items=items, batch_size=4, shuffle=True, drop_last=True)
    ranks = [batches(2, items=items, batch_size=2, shuffle=True, drop_last=True, rank=r, world=2) for r in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(b) for b in one]
    assert all(len(a) == len(b) for a, b in zip(*ranks, strict=True))
    ranks = [batches(items=items, batch_size=2, rank=r, world=2) for r in range(2)]  # validation
    assert sorted(chain.from_iterable(ranks[0] + ranks[1])) == list(range(items))
    assert all(a and b for a, b in zip(*ranks, strict=True))


def test_a_resumed_sampler_goes_on_in_mid_epoch() -> None:
    sampler = EpochBatches(20, 4, seed=1, shuffle=True)
    whole = batches(2, items=20, batch_size=4, seed=1, shuffle=True)
    sampler.resume_at = (2, 3)
    sampler.set_epoch(2)
    assert list(sampler) == whole[3:]
    sampler.set_epoch(3)
    assert list(sampler) == batches(3, items=20, batch_size=4, seed=1, shuffle=True)


# -- augmentation ------------------------------------------------------------------------------------------------------


def batch_of(image: torch.Tensor, index: list[int] | None = None, **more: Any) -> Batch:
    return Batch(image=image, index=torch.tensor(index or list(range(len(image)))), **more)


def noise(n: int = 6, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def drawn(monkeypatch: pytest.MonkeyPatch, **values: float) -> None:
    """Fix the draws: flip, angle, zoom, row and column in [0, 1), 0.5 is no change."""
    columns = {"flip": 0, "angle": 1, "zoom": 2, "x": 3, "y": 4, "gain": 7, "gamma": 8}

    def fixed(seed: int, epoch: int, items: torch.Tensor, draws: int) -> torch.Tensor:
        u = torch.full((len(items), draws), 0.5)
        for name, value in values.items():
            u[:, columns[name]] = value
        return u

    monkeypatch.setattr(augmentation, "uniform", fixed)


def test_no_augmentation_is_the_very_batch() -> None:
    batch = batch_of(noise())
    assert augment(batch, AugmentSettings(), 0, 0) is batch
    assert not AugmentSettings()
    assert AugmentSettings(gain=0.1)


def test_flip_moves_a_known_pixel() -> None:
    image = torch.full((1, 1, 8, 8), -1.0)
    image[0, 0, 2, 1] = 1
    for settings in (AugmentSettings(flip=1), AugmentSettings(flip=1, rotate_deg=1e-6)):
        flipped = augment(batch_of(image), settings, 0, 0).image
        torch.testing.assert_close(flipped, image.flip(-1), atol=1e-4, rtol=0)
        assert flipped[0, 0, 2, 6] > 0.999
    both = augment(batch_of(noise(400)), AugmentSettings(flip=0.25), 0, 0).image
    share = float((both != noise(400)).flatten(1).any(1).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_rotation_by_90_degrees(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(2)
    drawn(monkeypatch, angle=0.75, flip=1)
    turned = augment(batch_of(image), AugmentSettings(rotate_deg=180), 0, 0).image
    torch.testing.assert_close(turned, torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)


def test_translation_by_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noise(2)
    drawn(monkeypatch, x=0.75, y=1.0, flip=1)  # half and the whole of 0.25 of 8 pixels: 1 column, 2 rows
    moved = augment(batch_of(image), AugmentSettings(translate=0.25), 0, 0).image
    torch.testing.assert_close(moved[..., :6, :7], image[..., 2:, 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 6:, :], torch.full((2, 1, 2, 8), -1.0), atol=1e-6, rtol=0)  # black, not grey


def test_zoom_about_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((1, 1, 16, 16), -1.0)
    image[..., 6:10, 6:10] = 1
    drawn(monkeypatch, zoom=1.0, flip=1)  # exp(log 2): twice as large
    large = augment(batch_of(image), AugmentSettings(scale=1), 0, 0).image
    assert (large[..., 5:11, 5:11] > 0.99).all()
    assert (large > 0).sum() == 64  # 4x4 becomes 8x8


def test_image_target_and_mask_move_alike() -> None:
    image = noise(8, 32)
    mask = (image > 0).float()
    settings = AugmentSettings(flip=0.5, rotate_deg=20, translate=0.1, scale=0.2)
    out = augment(batch_of(image, target=image.clone(), mask=mask), settings, 7, 3)
    assert out.target is not None
    torch.testing.assert_close(out.image, out.target)
    assert out.mask is not None
    assert set(out.mask.unique().tolist()) <= {0.0, 1.0}
    ones = augment(batch_of(image, mask=torch.ones_like(mask), target=torch.ones_like(image)), settings, 7, 3)
    assert ones.mask is not None
    assert ones.target is not None
    assert (ones.target[ones.mask == 1] > -0.01).all()  # where the mask is, is the image
    with_intensity = augment(batch_of(image, target=image.clone()), replace(settings, gain=0.3, gamma=0.3), 7, 3)
    assert not torch.equal(with_intensity.image, with_intensity.target)  # contrasts vary on their own


def test_what_an_item_gets_does_not_depend_on_its_company() -> None:
    image = noise(12, 16)
    settings = AugmentSettings(flip=0.5, rotate_deg=20, translate=0.1, scale=0.2, gain=0.3, gamma=0.3)
    whole = augment(batch_of(image), settings, 5, 2).image
    for rank in range(2):
        part = augment(batch_of(image[rank::2], list(range(12))[rank::2]), settings, 5, 2).image
        torch.testing.assert_close(part, whole[rank::2])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment(batch_of(image[order], order.tolist()), settings, 5, 2).image, whole[order])
    for seed, epoch in ((5, 3), (6, 2)):
        assert not torch.allclose(augment(batch_of(image), settings, seed, epoch).image, whole)


def test_gain_and_gamma_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(1, 1, 2, 2)  # 0, 1/4, 1/2, 1 on [0, 1]
    drawn(monkeypatch, gain=0.75)
    out = augment(batch_of(image), AugmentSettings(gain=0.4), 0, 0).image  # x 1.2
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, -0.4, 0.2, 1.0]))
    drawn(monkeypatch, gamma=1.0)
    out = augment(batch_of(image), AugmentSettings(gamma=1), 0, 0).image  # the square
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, -0.875, -0.5, 1.0]))


def test_random_numbers_are_splitmix64_of_a_counter() -> None:
    whole = 2**64

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % whole
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % whole
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    assert mix(golden) == 0xE220A8397B1DCDAF  # first output of SplitMix64 seeded with 0 (Vigna's reference)
    found = uniform(2**32 - 1, 7, torch.tensor([0, 123456]), 3)
    for row, item in zip(found, (0, 123456), strict=True):
        start = mix(mix(mix((2**32 - 1 + golden) % whole) ^ 7) ^ item)
        assert row.tolist() == [(mix((start + golden * k) % whole) >> 40) * 2.0**-24 for k in (1, 2, 3)]


def test_random_numbers_look_random() -> None:
    u = uniform(0, 0, torch.arange(20000), 6).double().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(u.mean(0) - 0.5).max() < 4 / np.sqrt(12 * 20000)
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < 4 / np.sqrt(20000)
    assert np.abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 4 / np.sqrt(20000)  # neighbouring items
    after = uniform(0, 1, torch.arange(20000), 6).double().numpy()
    assert np.abs(np.corrcoef(u[:, 0], after[:, 0])[0, 1]) < 4 / np.sqrt(20000)  # consecutive epochs
    counts = np.histogram(u[:, 1], 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared, 19 degrees of freedom: p = 1e-4


# -- preparation -------------------------------------------------------------------------------------------------------


def stack(n: int) -> Slices:
    return Slices(np.zeros((n, 2, 2)), (1.0, 1.0), np.arange(n), -4.0 + 2.0 * np.arange(n))


@pytest.mark.parametrize("settings, chosen", [
    (SliceSettings(unit="index"), [0, 1, 2, 3, 4, 5, 6, 7]),
    (SliceSettings(unit="index", start=2, stop=5), [2, 3, 4, 5]),
    (SliceSettings(unit="index", start=1, step=3), [1, 4, 7]),
    (SliceSettings(unit="mm", start=-1, stop=4), [2, 3, 4]),  # at -4, -2, 0, 2, 4, ... mm
    (SliceSettings(unit="share"), [0, 1, 2, 3, 4, 5, 6, 7]),  # no limits, so nothing is left out
    (SliceSettings(unit="share", start=0), [2, 3, 4, 5, 6, 7]),  # the foreground begins at slice 2 and ends at 6
    (SliceSettings(unit="share", start=0.25, stop=0.75), [3, 4, 5]),
    (SliceSettings(unit="share", start=0, stop=1, min_foreground=0.2), [3, 5]),
])  # fmt: skip
def test_chosen_slices_by_hand(settings: SliceSettings, chosen: list[int]) -> None:
    share = np.array([0, 0, 0.1, 0.2, 0.15, 0.3, 0.02, 0])
    assert prepare.choose(stack(8), share, settings).tolist() == chosen


def test_an_empty_volume_has_no_share() -> None:
    assert prepare.choose(stack(3), np.zeros(3), SliceSettings(unit="share", start=0)).tolist() == []


def scan(name: str, contrast: str, **more: Any) -> Scan:
    return Scan(path=Path(f"{name}_{contrast}{more.get('session', '')}.nii"), subject=name, contrast=contrast, **more)


def test_scans_of_one_visit_are_one_study() -> None:
    scans = [scan("a", "T2"), scan("b", "T1"), scan("a", "T1"), scan("a", "mask"), scan("a", "FLAIR"),
             scan("b", "T1", session="2"), scan("c", "mask")]  # fmt: skip
    found = prepare.group(scans, ["T1", "T2"])
    assert [list(s.scans) for s in found] == [["T1", "T2", "mask"], ["T1"], ["T1"]]
    assert [s.first.subject for s in found] == ["a", "b", "b"]
    twice = [scan("a", "T1"), replace(scan("a", "T1"), path=Path("again.nii")), scan("a", "T2")]
    assert len(prepare.group(twice, ["T1"])) == 2
    with pytest.raises(
        UserError, match=r"subject a has 2 scans of T1 \(a_T1\.nii, again\.nii\); which belongs to which"
    ):
        prepare.group(twice, ["T1", "T2"])


def two_grids(root: Path, landmark: tuple[float, float, float]) -> None:
    """T1 on 2 mm, T2 on a shifted grid of 1.5 mm with other axes; one bright ball at one place of the world."""
    for number, (contrast, spacing, origin, shape) in enumerate(
        [("T1", 2.0, (-20.0, -24.0, -16.0), (20, 24, 16)), ("T2", 1.5, (-19.0, -22.0, -15.5), (26, 30, 21))]
    ):
        affine = np.diag([spacing] * 3 + [1.0])
        affine[:3, 3] = origin
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * spacing + np.array(origin)
        ball = np.exp(-((grid - np.array(landmark)) ** 2).sum(-1) / (2 * 4.0**2))
        array = (200 * (number + 1) * ball).astype(np.float32)
        if contrast == "T2":  # stored as S, P, L
            array = array[::-1, ::-1].transpose(2, 1, 0)
            turn = np.zeros((4, 4))
            turn[2, 0], turn[1, 1], turn[0, 2], turn[3, 3] = 1, -1, -1, 1
            turn[:2, 3] = (shape[0] - 1, shape[1] - 1)
            affine = affine @ turn
        for subject in range(4):
            rng = np.random.default_rng(10 * subject + number)
            path = root / f"s{subject}_{contrast}.nii.gz"
            nib.save(nib.Nifti1Image(array + rng.uniform(0, 1, array.shape).astype(np.float32), affine), path)


def test_pairs_on_two_grids_meet_at_the_landmark(tmp_path: Path) -> None:
    place = (4.0, -6.0, 2.0)
    two_grids(tmp_path / layouts_root(tmp_path), place)
    data = folder(tmp_path, contrasts=["T1", "T2"], size=24, slices=SliceSettings(unit="mm", start=2, stop=2),
                  intensity=IntensitySettings(method="minmax"))  # fmt: skip
    data.view_class = Pairs
    data.setup()
    batch = data.view("train")[0]
    assert batch.target is not None
    assert batch.image.shape == batch.target.shape == (1, 1, 24, 24)
    # 20 columns of 2 mm in the middle of 24: column 2 + (4 + 20) / 2; rows run from anterior: 23 - (-6 + 24) / 2
    wanted = (23 - 9, 2 + 12)
    for image in (batch.image, batch.target):
        assert divmod(int(image.argmax()), 24) == wanted
    assert batch.slice is not None
    assert batch.slice.item() == 9  # (2 + 16) / 2


# -- data modules ------------------------------------------------------------------------------------------------------


def layouts_root(tmp_path: Path) -> str:
    (tmp_path / "data").mkdir(exist_ok=True)
    return "data"


def folder(tmp_path: Path, **more: Any) -> Folder:
    return Folder(**{"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache"), "size": 16, "batch_size": 4,
                     "split": SplitSettings(fractions=[0.5, 0.25, 0.25])} | more)  # fmt: skip


def tree(root: Path, subjects: int = 4, contrasts: tuple[str, ...] = ("T1",), **more: Any) -> None:
    for s in range(subjects):
        for c, contrast in enumerate(contrasts):
            layouts.nifti(root / f"s{s}_{contrast}.nii.gz", 10 * s + c, **more)


def test_values_are_those_of_the_files(tmp_path: Path) -> None:
    tree(tmp_path / "data", shape=(16, 16, 6))
    data = folder(
        tmp_path, slices=SliceSettings(unit="index"), intensity=IntensitySettings(method="minmax"), fit="crop"
    )
    data.setup()
    view = data.view("train")
    batch = view[7]
    subject = batch.subject[0]
    volume = read(tmp_path / f"data/{subject}_T1.nii.gz").array
    low, high = volume.min(), volume.max()
    assert batch.slice is not None
    wanted = (volume[:, :, batch.slice.item()].T[::-1] - low) / (high - low) * 2 - 1  # anterior up, left at the left
    np.testing.assert_allclose(batch.image[0, 0], wanted, atol=2e-5)
    record = next(r for r in data.manifest if r["subject"] == subject)
    assert (record["low"], record["high"], record["slices"]) == (low, high, 6)  # what inverts it is on record
    back = (batch.image[0, 0].double().numpy() + 1) / 2 * (record["high"] - record["low"]) + record["low"]
    assert np.abs(np.rint(back) - volume[:, :, batch.slice.item()].T[::-1]).max() == 0


def test_views(tmp_path: Path) -> None:
    first, second = prepared(1, 3, ("T1", "T2"), mask=True, label=1), prepared(2, 2, ("T2",), label=-1)
    opened = built(tmp_path, first, second)
    rows = np.arange(5)
    images = Images(opened, rows, ["T1", "T2"])
    assert len(images) == 8  # 3 of T1, 5 of T2
    batch = images.__getitems__([0, 1, 7])
    assert (batch.image.shape, batch.image.dtype) == ((3, 1, SIZE, SIZE), torch.float32)
    assert batch.contrast == ("T1", "T2", "T2")
    assert batch.subject == ("s1", "s1", "s2")
    assert batch.label is not None
    assert batch.label.tolist() == [1, 1, -1]
    assert batch.index.tolist() == [0, 1, 7]
    assert batch.age is not None
    assert batch.age.tolist() == [21, 21, 22]
    assert (batch.sex, batch.site) == (("F", "F", "F"), ("", "", ""))
    for k, wanted in enumerate((first.images["T1"][0], first.images["T2"][0], second.images["T2"][1])):
        np.testing.assert_allclose(batch.image[k, 0], wanted, atol=2e-5)
    assert batch.mask is not None
    np.testing.assert_array_equal(batch.mask[0, 0], first.images[MASK][0])
    assert not batch.mask[2].any()  # this study has none
    assert len(Labelled(opened, rows, ["T1", "T2"])) == 6
    pairs = Pairs(opened, rows, ["T1", "T2"])
    both = pairs.__getitems__([0, 2])
    assert both.target is not None
    assert (len(pairs), both.image.shape, both.target.shape) == (3, (2, 1, SIZE, SIZE), (2, 1, SIZE, SIZE))
    np.testing.assert_allclose(both.image[1, 0], first.images["T1"][2], atol=2e-5)
    np.testing.assert_allclose(both.target[1, 0], first.images["T2"][2], atol=2e-5)
    assert Pairs(opened, rows[:3], ["T1", "T2", "T2"]).__getitems__([0]).image.shape == (1, 2, SIZE, SIZE)
    assert (pairs.sources, pairs.goal) == (("T1",), "T2")
    masked = Pairs(opened, rows, ["T1"], Reading(source="mask"))
    assert (masked.sources, masked.goal) == ((MASK,), "T1")
    one = masked.__getitems__([0])
    np.testing.assert_array_equal(one.image[0, 0], 2 * first.images[MASK][masked.store.table["slice"][0]] - 1.0)
    assert set(one.image.unique().tolist()) <= {-1.0, 1.0}
    made = Pairs(opened, rows, ["T1"], Reading(source="derived", classes=("none", "lesion")))
    assert made.sources == ("tissue", "edges", "class:none", "class:lesion")
    assert made.__getitems__([0, 1]).image.shape == (2, 4, SIZE, SIZE)
    turned = augment(one, AugmentSettings(rotate_deg=90, gamma=1.0), seed=0, epoch=0)
    again = Pairs.remade(turned, "mask", ())
    assert set(again.image.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(again.image, 2 * turned.mask - 1)
    assert len(Images(opened, rows[:0], ["T1"])) == 0
    assert images.subjects.tolist() == ["s1"] * 6 + ["s2"] * 2


def test_loaders_read_whole_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "data", 8)
    data = folder(tmp_path, slices=SliceSettings(unit="index"))
    data.setup()
    reads: list[int] = []
    whole = Images.__getitems__

    def counted(self: Images, indices: Any) -> Batch:
        reads.append(len(indices))
        return whole(self, indices)

    def never(self: Images, index: int) -> Batch:
        raise AssertionError("read one by one")

    monkeypatch.setattr(Images, "__getitems__", counted)
    monkeypatch.setattr(Images, "__getitem__", never)
    batches = list(data.train_dataloader())
    assert reads == [4] * 14  # 4 subjects of 14 slices
    assert len(batches) == 14
    for batch in batches:
        assert batch.image.dtype == torch.float32
        assert batch.image.shape == (4, 1, 16, 16)
        assert -1 <= batch.image.min() <= batch.image.max() <= 1
    assert sorted(torch.cat([b.index for b in batches]).tolist()) == list(range(56))
    reads.clear()
    ordered = [b.index.tolist() for b in data.val_dataloader()]
    assert list(chain.from_iterable(ordered)) == list(range(28))


def test_workers_read_the_same(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    inside, outside = folder(tmp_path), folder(tmp_path, workers=1)
    for data in (inside, outside):
        data.setup()
    for a, b in zip(inside.train_dataloader(), outside.train_dataloader(), strict=True):
        assert torch.equal(a.image, b.image)
        assert a.subject == b.subject


def test_the_manifest_splits_another_run_alike(tmp_path: Path) -> None:
    tree(tmp_path / "data", 8, ("T1", "T2"))
    data = folder(tmp_path, contrasts=["T1", "T2"])
    data.setup()
    rows = data.manifest
    assert len(rows) == 16
    assert all(len(r["sha256"]) == 64 and r["orientation"] == "RAS" for r in rows)
    write_manifest(tmp_path / "split.csv", rows)
    with (tmp_path / "split.csv").open(newline="") as file:
        assert [r["split"] for r in csv.DictReader(file)] == [r["split"] for r in rows]
    again = folder(tmp_path, contrasts=["T1", "T2"], split=SplitSettings(by="given", file=str(tmp_path / "split.csv")))
    again.setup()
    assert {r["path"]: r["split"] for r in again.manifest} == {r["path"]: r["split"] for r in rows}


def test_one_store_for_settings_that_do_not_touch_it(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    plain = folder(tmp_path)
    plain.setup()
    for same in (
        {"batch_size": 2},
        {"split": SplitSettings(fractions=[0.5, 0.5, 0])},
        {"augment": AugmentSettings(flip=1)},
    ):
        other = folder(tmp_path, **same)
        other.setup()
        assert (other.data_hash, other.store_key) == (plain.data_hash, plain.store_key)
    for differs in ({"size": 8}, {"plane": "coronal"}, {"intensity": IntensitySettings(method="minmax")},
                    {"slices": SliceSettings(step=2)}, {"fit": "stretch"}, {"on_bad_file": "skip"}):  # fmt: skip
        other = folder(tmp_path, **differs)
        other.setup()
        assert other.store_key != plain.store_key
        assert (other.data_hash == plain.data_hash) == ("on_bad_file" in differs)  # no file is bad here
    layouts.nifti(tmp_path / "data/s0_T1.nii.gz", 99)  # a file changed
    changed = folder(tmp_path)
    changed.setup()
    assert changed.data_hash != plain.data_hash
    assert changed.store_key != plain.store_key


def test_the_data_hash_is_of_the_content(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    plain = folder(tmp_path)
    plain.setup()
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere", copy_function=shutil.copyfile)  # other path, other time
    moved = folder(tmp_path, root=str(tmp_path / "elsewhere"))
    moved.setup()
    assert moved.data_hash == plain.data_hash
    assert moved.store_key != plain.store_key
    (tmp_path / "elsewhere/s3_T1.nii.gz").rename(
        tmp_path / "elsewhere/s4_T1.nii.gz"
    )  # the same voxels of another person
    renamed = folder(tmp_path, root=str(tmp_path / "elsewhere"))
    renamed.setup()
    assert renamed.data_hash != plain.data_hash


def test_a_dicom_file_rewritten_in_place_is_noticed(tmp_path: Path) -> None:
    for subject in range(3):
        image = nib.Nifti1Image(layouts.brain(subject).astype(np.int16), layouts.AFFINE)
        (tmp_path / "data").mkdir(exist_ok=True)
        write_series(tmp_path / f"data/p{subject}", image, f"1.2.{subject}", PatientID=f"p{subject}",
                     SeriesDescription="T1")  # fmt: skip
    split = SplitSettings(fractions=[0.5, 0.5, 0])
    before = folder(tmp_path, split=split)
    before.setup()
    files = sorted((tmp_path / "data/p1").iterdir())
    each = "".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)
    recorded = {r["subject"]: r["sha256"] for r in before.manifest}
    assert recorded["p1"] == hashlib.sha256(each.encode()).hexdigest()
    content = bytearray(files[3].read_bytes())
    content[-1] ^= 1
    folder_time = (tmp_path / "data/p1").stat().st_mtime_ns
    files[3].write_bytes(content)  # as large as before, and the folder's own time does not change
    assert (tmp_path / "data/p1").stat().st_mtime_ns == folder_time
    after = folder(tmp_path, split=split)
    after.setup()
    assert after.store_key != before.store_key
    assert after.data_hash != before.data_hash
    changed = {r["subject"] for r in after.manifest if r["sha256"] != recorded[r["subject"]]}
    assert changed == {"p1"}


def test_single_slices_that_leak_are_counted(tmp_path: Path) -> None:
    tree(tmp_path / "data", 4, shape=(16, 16, 6))
    head = read(tmp_path / "data/s3_T1.nii.gz").array
    other = read(tmp_path / "data/s0_T1.nii.gz").array
    other[:, :, 2:4] = head[:, :, 2:4]
    other[0, 0, 5], head[0, 0, 5] = 1000, 1000  # the same window for both, so that the same slices stay the same
    layouts.nifti(tmp_path / "data/s0_T1.nii.gz", array=other)
    layouts.nifti(tmp_path / "data/s3_T1.nii.gz", array=head)
    (tmp_path / "split.csv").write_text("subject,split\ns0,train\ns1,train\ns2,val\ns3,test\n")
    split = SplitSettings(by="given", file=str(tmp_path / "split.csv"), on_leak="drop")
    data = folder(tmp_path, split=split, intensity=IntensitySettings(method="minmax"),
                  slices=SliceSettings(unit="index", stop=4))  # fmt: skip
    data.setup()
    facts = {r["subject"]: (r["split"], r["slices"], r["slices_dropped"], r["slices_left_out"]) for r in data.manifest}
    assert facts == {
        "s0": ("train", 3, 2, 1),
        "s1": ("train", 5, 0, 1),
        "s2": ("val", 5, 0, 1),
        "s3": ("test", 5, 0, 1),
    }
    reason = {r["subject"]: r["reason"] for r in data.manifest}
    assert reason["s0"].startswith("identical image in train and test: ")
    assert reason["s0"].endswith("; 2 of 5 slices dropped")
    assert reason["s3"] == ""
    assert sum(facts[s][1] for s in ("s0", "s1")) == len(data.view("train")) == 8


def test_a_warm_start_of_12000_slices_takes_a_moment(tmp_path: Path) -> None:
    def slices() -> Iterator[Prepared]:
        rng = np.random.default_rng(0)
        for n in range(12_000):
            study = {"subject": f"s{n}", "path": f"p{n}", "split": None, "label": None, "sex": None, "site": None,
                     "age": None, "spacing_mm": [1.0, 1.0]}  # fmt: skip
            columns = {name: np.ones(1) for name in ("slice", "position_mm", "label", "foreground")}
            yield Prepared({"T1": rng.uniform(-1, 1, (1, 4, 4)).astype(np.float32)}, columns, study, [])

    data = folder(tmp_path, size=4)
    data._scans, data._classes = [], ()
    data._store = open_or_build(tmp_path, "many", 4, slices)
    data.preparation = prepare.Preparation(("T1",), "axial", 4, "contain", None, data.slices, data.intensity)
    start = time.perf_counter()
    data.setup()
    assert time.perf_counter() - start < 1
    assert len(data.view("train")) == 6000


# -- studies with something wrong --------------------------------------------------------------------------------------


def test_a_lesion_of_one_voxel_counts_at_every_size(tmp_path: Path) -> None:
    for s in range(4):
        layouts.nifti(tmp_path / f"data/s{s}/FLAIR.nii.gz", array=layouts.brain(s, (64, 64, 8)))
        mask = np.zeros((64, 64, 8), np.uint8)
        mask[21, 33, 5] = mask[22, 30, 2] = 1
        layouts.nifti(tmp_path / f"data/s{s}/mask.nii.gz", array=mask)

    class Marked(Folder):
        label_from_mask = ("none", "lesion")

    for size in (8, 16, 64):
        data = Marked(root=str(tmp_path / "data"), cache=str(tmp_path / "cache"), contrasts=["FLAIR"], size=size,
                      split=SplitSettings(fractions=[0.5, 0.25, 0.25]), slices=SliceSettings(unit="index"))  # fmt: skip
        data.setup()
        labels = data.view("train").__getitems__(list(range(8))).label
        assert labels is not None
        assert labels.tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


def part(scan: Scan) -> Volume:
    """A head, or a mask of one voxel, on the grid that its name says."""
    grid, spacing = ((32, 32, 8), 2.0) if "thick" in scan.path.name else ((64, 64, 16), 1.0)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    array = layouts.brain(1, grid)
    if scan.contrast == MASK:
        array = np.zeros(grid, np.float32)
        array[25, 41, 11] = 1
    return Volume(array, affine, np.dtype(np.float32))


def test_a_lesion_on_another_grid_is_not_lost() -> None:
    study = prepare.Study({c: Scan(path=Path(f"{name}_{c}.nii"), subject="s", contrast=c)
                           for c, name in (("T1", "thick"), (MASK, "thin"))})  # fmt: skip
    settings = prepare.Preparation(("T1",), "axial", 32, "crop", None, SliceSettings(unit="index"),
                                   IntensitySettings(), ("none", "lesion"))  # fmt: skip
    made = prepare.prepare(study, settings, part)
    # slice 11 of 1 mm lies at 11 mm, which is 5.5 slices of 2 mm from the first: the nearest even one is 6
    assert np.flatnonzero(made.columns["label"]).tolist() == [6]
    narrow = prepare.prepare(study, replace(settings, size=4), part)  # the middle 4 of 32 pixels do not show it
    assert not narrow.columns["label"].any()


def test_the_file_that_is_bad_is_blamed_and_the_rest_is_kept(tmp_path: Path) -> None:
    tree(tmp_path / "data", 4, ("T1", "T2"))
    air = np.zeros((16, 18, 14), np.int16)
    air[8, 8, 8] = 1  # both percentiles are 0
    layouts.nifti(tmp_path / "data/s0_T2.nii.gz", array=air)
    layouts.nifti(tmp_path / "data/s1_T1.nii.gz", array=air)
    contrasts = ["T1", "T2"]
    with pytest.raises(
        UserError, match=r"2 file\(s\) cannot be used:\n  .*s0_T2.*: T2: .*\n  .*s1_T1.*: T1: "
    ) as error:
        folder(tmp_path, contrasts=contrasts).setup()
    assert "s0_T1" not in str(error.value)
    data = folder(tmp_path, contrasts=contrasts, on_bad_file="skip", slices=SliceSettings(unit="index"))
    data.setup()
    facts = {Path(r["path"]).name[:5]: (bool(r["split"]), r["slices"], bool(r["reason"])) for r in data.manifest}
    wanted = {f"s{s}_{c}": (True, 14, False) for s in range(4) for c in contrasts}
    assert facts == wanted | {"s0_T2": (False, 0, True), "s1_T1": (False, 0, True)}
    assert data.store.counts == {"T1": 3 * 14, "T2": 3 * 14}


def test_a_volume_that_is_named_a_slice(tmp_path: Path) -> None:
    for s in range(4):
        layouts.nifti(tmp_path / f"data/p{s}_{s + 3}.nii.gz", s)
    data = folder(tmp_path, contrasts=[], pattern=r"(?P<subject>p\d)_(?P<slice>\d)")
    with pytest.raises(UserError, match=r"p1_4\.nii\.gz: 14 slices, but its name says that it is slice 4 of a volume"
                                        r".* leave the group 'slice' out of data\.pattern"):  # fmt: skip
        data.setup()


# -- scores ------------------------------------------------------------------------------------------------------------


def test_a_score_that_no_slice_has() -> None:
    nothing = summarise(np.array([np.nan, np.inf]), ["a", "b"])
    assert nothing == {"mean": None, "sd": None, "ci": None, "n_subjects": 0, "n_slices": 0}
    one = summarise(np.array([np.nan, 0.5]), ["a", "b"])
    assert one == {"mean": 0.5, "sd": None, "ci": None, "n_subjects": 1, "n_slices": 1}


def test_an_identical_image_in_two_splits(tmp_path: Path) -> None:
    tree(tmp_path / "data", 3)
    shutil.copy(tmp_path / "data/s0_T1.nii.gz", tmp_path / "data/s3_T1.nii.gz")
    given = "subject,split\ns0,train\ns1,train\ns2,val\ns3,test\n"
    (tmp_path / "split.csv").write_text(given)
    settings = SplitSettings(by="given", file=str(tmp_path / "split.csv"))
    with pytest.raises(UserError, match=r"the split leaks: \d+ item\(s\).*\n  identical image in train and test: .*s0_T"
                                        r".*\(slice \d+\) and .*s3_T1"):  # fmt: skip
        folder(tmp_path, split=settings).setup()
    within = SliceSettings(min_foreground=0.05)  # blank slices are no leak
    data = folder(tmp_path, split=replace(settings, on_leak="drop"), slices=within)
    data.setup()
    assert {r["subject"]: r["split"] for r in data.manifest} == {"s0": "", "s1": "train", "s2": "val", "s3": "test"}
    assert data.leaks
    assert set(data.view("train").subjects) == {"s1"}
    reason = next(r["reason"] for r in data.manifest if r["subject"] == "s0")
    assert reason.startswith("identical image in train and test")


def test_a_subject_in_two_splits(tmp_path: Path) -> None:
    for k, split in enumerate(["train", "train", "val", "test"]):
        layouts.png(tmp_path / f"data/{split}/p{k}_slice_0.png", k)
    layouts.png(tmp_path / "data/test/p0_slice_1.png", 9)
    pattern: dict[str, Any] = {"pattern": r"(?P<subject>p\d)_slice_(?P<slice>\d)", "contrasts": []}
    split = SplitSettings(by="given")
    with pytest.raises(
        UserError, match=r"the split leaks.*\n  subject in train and test: .*p0_slice_0\.png and .*slice_1"
    ):
        folder(tmp_path, split=split, **pattern).setup()
    data = folder(tmp_path, split=replace(split, on_leak="drop"), **pattern)
    data.setup()
    assert set(data.view("train").subjects) == {"p1"}
    assert len(data.leaks) == 1


def test_blank_slices_are_no_leak(tmp_path: Path) -> None:
    """Air above the head is alike in all; so is what lies beyond the field of view of the second contrast."""
    for s in range(4):
        head = layouts.brain(s, (16, 16, 8))
        head[:, :, 6:] = 0
        layouts.nifti(tmp_path / f"data/s{s}_T1.nii.gz", array=head)
        path = layouts.nifti(tmp_path / f"data/s{s}_T2.nii.gz", array=layouts.brain(40 + s, (16, 16, 3)))
        assert nib.load(path).shape == (16, 16, 3)
    data = folder(tmp_path, contrasts=["T1", "T2"], slices=SliceSettings(unit="index"))
    data.setup()
    assert data.leaks == []
    data.view_class = Pairs
    target = data.view("train").__getitems__([5]).target
    assert target is not None
    assert (target == -1).all()


def test_spec_makes_a_round_trip(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    data = folder(tmp_path)
    data.setup()
    spec = data.spec
    assert (spec.size, spec.contrasts, spec.plane, spec.channels) == (16, ("T1",), "axial", 1)
    assert spec.spacing_mm == pytest.approx((2.25, 2.25), abs=0.2)  # 36 mm of rows on 16 pixels
    assert (spec.preparation["data"], spec.preparation["title"], data.title) == ("folder", "folder", "folder")
    torch.save(spec.to_dict(), tmp_path / "spec.pt")
    assert DataSpec.of(torch.load(tmp_path / "spec.pt", weights_only=True)) == spec
    listed = json.loads(json.dumps(spec.to_dict()))
    assert DataSpec.of(listed).contrasts == ("T1",)
    assert DataSpec.of(spec) is spec


def test_moving_a_batch_keeps_what_is_no_tensor() -> None:
    batch = batch_of(noise(2), subject=("a", "b"), label=torch.tensor([0, 1]))
    moved = batch.to("meta")
    assert (moved.image.device.type, moved.subject, len(moved)) == ("meta", ("a", "b"), 2)
    assert moved.target is None


def test_every_orientation_of_augmented_batches_stays_in_range() -> None:
    settings = AugmentSettings(flip=0.5, rotate_deg=180, translate=0.5, scale=1, gain=1, gamma=2)
    for epoch in range(5):
        out = augment(batch_of(noise(16, 16)), settings, 0, epoch).image
        assert out.min() >= -1 - 1e-6
        assert out.max() <= 1 + 1e-6
        assert torch.isfinite(out).all()

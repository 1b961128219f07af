"""Two processes at batch b are one at 2b; k-means, revival and resume with two. One pair of processes plays all."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_worker import CASES, play, vectors

from mri_synth import config
from mri_synth.data.sampler import EpochBatches

pytestmark = pytest.mark.slow
EQUAL = ["plain", "augmented", "accumulated", "vae", "pixelcnn", "encoder", "dcgan", "critic", "vqgan", "progan",
         "cyclegan", "pix2pix", "style_gan", "unet_l1", "mri_clip", "style_transfer", "style_lbfgs",
         "dae", "clip_guided"]  # fmt: skip
TOLERANCE = {"encoder": 3e-5}
"""Of what cannot be held to 1e-5: the encoder's gradients nearly cancel, and Adam makes steps of what is left."""
BLIND = ("activity", "qkv.bias")
"""Ends of names: a difference of two large means; a bias of keys, which a softmax does not see."""
MONITORED = {
    "vae": "elbo",
    "pixelcnn": "bits_per_code",
    "encoder": "top1",
    "dcgan": "g_loss",
    "critic": "g_loss",
    "progan": "g_loss",
    "cyclegan": "g_cycle",
    "style_gan": "mae_inside",
    "mri_clip": "zero_shot",
    "style_transfer": "style_left",
    "style_lbfgs": "style_left",
    "dae": "where",
    "clip_guided": "similarity",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two gloo processes, started as torchrun does, left their results."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("ddp_worker.py")), str(folder)]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
                           "OMP_NUM_THREADS": "1"}  # fmt: skip
    logs = [(folder / f"log.{rank}").open("w") for rank in range(2)]
    pair = [subprocess.Popen(command, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, stdout=log, stderr=log)
            for r, log in enumerate(logs)]  # fmt: skip
    try:
        codes = [process.wait(300) for process in pair]
    finally:
        for process, log in zip(pair, logs, strict=True):
            process.kill()
            log.close()
    assert codes == [0, 0], "\n".join((folder / f"log.{rank}").read_text()[-3000:] for rank in range(2))
    return folder


@pytest.fixture(scope="module")
def result(pair: Path) -> Callable[[str, int], Any]:
    return lambda name, rank: torch.load(pair / f"{name}.{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, pair: Path) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """A case played here in one process at batch 2b; each once."""
    known: dict[str, tuple[Path, dict[str, Any]]] = {}

    def call(case: str) -> tuple[Path, dict[str, Any]]:
        if case not in known:
            folder = tmp_path_factory.mktemp(case)
            known[case] = (folder, play(case, folder, 1, first_stage=pair / "plain/best.ckpt"))
        return known[case]

    return call


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open() as file:
        return [(int(r["step"]), float(r["value"])) for r in csv.DictReader(file) if r["name"] == name]


@pytest.mark.parametrize("case", EQUAL)
def test_weights_and_codebook_are_those_of_one_process(case: str, result: Any, alone: Any) -> None:
    one, two = alone(case)[1]["weights"], result(case, 0)["weights"]
    assert one.keys() == two.keys()
    worst = {k: relative(two[k], v) for k, v in one.items() if not k.endswith(BLIND)}
    assert worst.get("quantizer.num_updates", 0) == 0
    assert max(worst.values()) < TOLERANCE.get(case, 1e-5), sorted(worst.items(), key=lambda x: -x[1])[:5]


@pytest.mark.parametrize("case", EQUAL)
def test_training_losses_are_those_of_one_process(case: str, result: Any, pair: Path, alone: Any) -> None:
    usual, losses = ["loss", "lr"], {"accumulated": ["mse", "commitment"], "vae": ["elbo", "kl"],
                                     "pixelcnn": ["bits_per_code"], "encoder": [], "unet_l1": ["l1"],
                                     "mri_clip": ["contrast", "where"],
                                     "style_transfer": ["style", "content"],
                                     "style_lbfgs": ["style", "content"],
                                     "dae": ["mse", "where", "loss", "lr"],
                                     "clip_guided": ["distance"]}  # fmt: skip
    adversarial = ["d_loss", "g_loss", "lr_d", "lr_g"]
    sides = {
        "dcgan": [*adversarial, "d_r1", "d_real"],
        "critic": adversarial,
        "progan": [*adversarial, "d_r1"],
        "vqgan": [*adversarial, "g_weight"],
        "pix2pix": [*adversarial, "g_l1", "d_real"],
        "cyclegan": [*adversarial, "g_cycle", "g_identity", "d_fake"],
        "style_gan": [*adversarial, "g_cycle", "g_place", "g_style", "d_fake"],
    }
    for key in (f"train/{k}" for k in sides.get(case, losses.get(case, ["l1", "commitment"]) + usual)):
        one, two = curve(alone(case)[0], key), curve(pair / case, key)
        assert [s for s, _ in two] == [s for s, _ in one]
        assert len(one) >= (3 if case in ("critic", "cyclegan") else 4)
        assert [v for _, v in two] == pytest.approx([v for _, v in one], rel=TOLERANCE.get(case, 1e-5))


@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("split", ["val", "test"])
def test_metrics_are_those_of_one_process_with_an_uneven_end(case: str, split: str, result: Any, alone: Any) -> None:
    one = alone(case)[1][split]
    assert f"{split}/{MONITORED.get(case, 'ssim')}" in one
    assert f"{split}/loss" in one or f"{split}/d_loss" in one
    sides = ["d_loss", "d_real", "d_fake", "g_loss"]  # these compare the images of one process's batch
    compared = {"encoder": ["loss"], "mri_clip": ["loss", "contrast"], "progan": sides}
    of_batches = {f"{split}/{k}" for k in compared.get(case, [])}
    for rank in range(2):  # both ranks know all: each decides alone which checkpoint is best
        two = {k: v for k, v in result(case, rank)[split].items() if k not in of_batches}
        expected = {k: v for k, v in one.items() if k not in of_batches}
        near_zero = 1e-7  # of scores, whose scale is 1: one that is nearly 0 is a difference of much larger numbers
        assert two == pytest.approx(expected, rel=TOLERANCE.get(case, 1e-5), abs=near_zero)


def test_no_item_is_repeated_or_lost(result: Any, alone: Any) -> None:
    one = alone("plain")[1]
    for rank in range(2):
        two = result("plain", rank)
        assert two["items"].tolist() == list(range(9))
        torch.testing.assert_close(two["scores"], one["scores"], rtol=1e-5, atol=1e-7)
        assert two["usage"].tolist() == one["usage"].tolist()
        assert int(two["usage"].sum()) == 27 * 8 * 8  # every code of every validation slice, once


def test_every_method_is_played_by_two_processes(compose: Any) -> None:
    """With an equality case, but for classifiers with batch norm, whose statistics are those of one process."""
    played = {compose(CASES[case]).model._target_.split(".")[-2] for case in EQUAL}
    assert sorted(played | {"utility"}) == config.choices("model")


def test_each_process_draws_samples_of_its_own_and_their_judgement_is_that_of_one(result: Any, alone: Any) -> None:
    first, second = (result("dcgan", rank)["drawn"] for rank in range(2))
    judgements = len(first) // 4
    assert (first, second) == (judgements * [0, 1, 2, 3], judgements * [4, 5])
    one = alone("dcgan")[1]
    assert one["drawn"] == judgements * [0, 1, 2, 3, 4, 5]
    for key in ("val/kid", "val/ms_ssim"):
        assert result("dcgan", 1)["val"][key] == pytest.approx(one["val"][key], rel=1e-5)


@pytest.mark.parametrize("case", [*EQUAL, "batchnorm", "moving", "utility", "unbroken", "resumed"])
def test_processes_never_drift_apart(case: str, result: Any) -> None:
    first, second = (result(case, rank)["weights"] for rank in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert all(torch.isfinite(v).all() for v in first.values())


def test_kmeans_starts_from_the_first_process_on_both(result: Any) -> None:
    first, second = (result("kmeans", rank) for rank in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert bool(first["initialised"])
    assert first["embedding"].abs().max() < 60, "k-means of the first one's vectors, about 0; the other's are about 100"


def test_dead_codes_are_revived_with_vectors_of_the_first_process(result: Any) -> None:
    first, second = (result("revived", rank) for rank in range(2))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    known = vectors(0)[0].flatten(1).T
    distance = (first["embedding"][:, None] - known).abs().amax(-1).min(1).values
    dead = first["cluster_size"] == 2.5  # what a revived code is given; no count is that
    assert 10 < dead.sum() < 64
    assert distance[dead].max() == 0
    assert distance[~dead].max() > 50, "codes in use follow the vectors of both"


def test_resumed_pair_ends_bit_for_bit_where_the_unbroken_one_did(result: Any, pair: Path) -> None:
    for rank in range(2):
        resumed, unbroken = result("resumed", rank), result("unbroken", rank)
        assert all(torch.equal(v, unbroken["weights"][k]) for k, v in resumed["weights"].items())
        assert resumed["val"] == unbroken["val"]
        assert resumed["test"] == unbroken["test"]
    for key in ("train/loss", "val/ssim"):
        assert curve(pair / "killed", key) == curve(pair / "unbroken", key)


def test_a_loss_that_is_not_finite_on_one_process_stops_both_with_its_batch(result: Any, pair: Path) -> None:
    first, second = (result("spoiled", rank) for rank in range(2))
    assert "not finite at step 3 (epoch 0)" in first["message"]
    assert str(pair / "spoiled/nonfinite_batch.pt") in first["message"]
    assert first["message"] == second["message"]
    order = EpochBatches(36, 4, seed=0, shuffle=True, drop_last=True, rank=1, world=2)
    assert first["batch"]["index"].tolist() == list(order)[2]

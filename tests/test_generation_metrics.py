"""What samples are judged by, against closed forms, definitions written out, and other implementations."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import KernelInceptionDistance

from mri_synth.metrics.diversity import PROTOCOL, WEIGHTS, diversity, ms_ssim, random_pairs, scales
from mri_synth.metrics.frechet import frechet_distance
from mri_synth.metrics.kid import Kernels, kernels, kid, kid_interval, kid_subsets
from mri_synth.metrics.nearest import memorisation, nearest, pixel_vectors
from mri_synth.metrics.prdc import prdc, squared_distances

Array = NDArray[np.float64]


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, size=(n, d))


def correlated(n: int, d: int, seed: int) -> Array:
    """As features are: not negative, correlated, of very different spread."""
    spread = np.exp(-np.arange(d) / 4)[:, None] * np.random.default_rng(99).normal(size=(d, d))
    return np.maximum(normal(n, d, seed) @ spread + 0.3, 0)


# -- Fréchet distance ---------------------------------------------------------------------------------------------


def test_frechet_of_equal_sets_is_zero_and_of_a_shift_its_square() -> None:
    a = correlated(50, 8, 0)
    assert frechet_distance(a, a[::-1].copy()) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + np.array([3.0, 4, 0, 0, 0, 0, 0, 0])) == pytest.approx(25, rel=1e-9)


def test_frechet_in_one_dimension_by_hand() -> None:
    # means 1 and 4, variances 2 and 8: 3^2 + (sqrt 8 - sqrt 2)^2 = 9 + 2
    a, b = np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])
    assert frechet_distance(a, b) == pytest.approx(11.0, rel=1e-12)


@pytest.mark.parametrize("sizes", [(200, 150), (12, 200), (12, 9)])
def test_frechet_equals_scipy_and_torchmetrics(sizes: tuple[int, int]) -> None:
    a, b = correlated(sizes[0], 20, 1), correlated(sizes[1], 20, 2) * 1.1
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b)
    eigenvalues = np.linalg.eigvals(s_a @ s_b).real.clip(0)
    got = frechet_distance(a, b)
    if min(sizes) > 20:  # the root of a singular product is not what sqrtm is made for
        assert got == pytest.approx(expected - 2 * np.trace(sqrtm(s_a @ s_b)).real, rel=1e-8)
    assert got == pytest.approx(expected - 2 * np.sqrt(eigenvalues).sum(), rel=1e-5)
    theirs = _compute_fid(*(torch.from_numpy(m) for m in (a.mean(0), s_a, b.mean(0), s_b)))
    assert got == pytest.approx(theirs.item(), rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(got, rel=1e-9)


def test_frechet_of_fewer_images_than_features_loses_nothing() -> None:
    # 30 images of 5 true dimensions, embedded in 400: the distance is that in 5 dimensions
    a, b = normal(30, 5, 3), 2 * normal(40, 5, 4)
    basis = np.linalg.qr(normal(400, 5, 5))[0].T
    assert frechet_distance(a @ basis, b @ basis) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_frechet_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"N and M at least 2, got \(1, 3\) and \(4, 3\)"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))


# -- kernel distance ----------------------------------------------------------------------------------------------


def test_kid_by_hand() -> None:
    # D = 1: k(x, y) = (x y + 1)^3; fakes 0, 1: k = 1; reals 1, 2: k = 27; between: 1, 1, 8, 27
    k = kernels(np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]]))
    assert kid(k) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4, rel=1e-12)


class Passing(nn.Module):
    """Features that are their own network, as torchmetrics asks for one."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("subset_size", [20, 60])
def test_kid_of_the_same_subsets_equals_torchmetrics(subset_size: int) -> None:
    fake, real = correlated(60, 16, 1), correlated(80, 16, 2) * 1.05
    metric = KernelInceptionDistance(Passing(), subsets=7, subset_size=subset_size).set_dtype(torch.float64)
    metric.update(torch.from_numpy(fake), real=False)
    metric.update(torch.from_numpy(real), real=True)
    torch.manual_seed(5)
    mean, sd = metric.compute()
    assert kid_subsets(kernels(fake, real), 7, subset_size, seed=5) == pytest.approx((mean.item(), sd.item()), rel=1e-5)


def test_kid_is_unbiased_and_its_interval_holds_the_truth() -> None:
    # E (x y + 1)^3 = sum_j C(3, j) E x^j E y^j, so KID of two one-dimensional distributions is a sum over moments
    def moment(order: int, low: float) -> float:  # of the uniform distribution from low to low + 1
        return ((low + 1) ** (order + 1) - low ** (order + 1)) / (order + 1)

    truth = sum(math.comb(3, j) * (moment(j, 0.3) - moment(j, 0.0)) ** 2 for j in range(4))
    values, held, rng = [], 0, np.random.default_rng(0)
    for seed in range(100):
        k = kernels(rng.random((60, 1)) + 0.3, rng.random((80, 1)))
        low, high = kid_interval(k, None, draws=300, seed=seed) or (0.0, 0.0)
        values.append(kid(k))
        held += low <= truth <= high
    assert np.mean(values) == pytest.approx(truth, abs=3 * np.std(values) / 10)
    assert held >= 89  # 95 expected
    same = [kid(kernels(normal(40, 3, 2 * s), normal(40, 3, 2 * s + 1))) for s in range(100)]
    assert np.mean(same) == pytest.approx(0, abs=3 * np.std(same) / 10)


def test_kid_interval_is_wider_when_images_come_from_few_subjects() -> None:
    people = np.repeat(np.arange(12), 8)
    real = normal(12, 6, 0)[people] + 0.1 * normal(96, 6, 1)
    k = kernels(normal(96, 6, 2), real)
    low, high = kid_interval(k, people.astype(str)) or (0.0, 0.0)
    one_by_one = kid_interval(k, None) or [0.0, 0.0]
    assert high - low > 1.5 * (one_by_one[1] - one_by_one[0])
    assert low < kid(k) < high
    assert kid_interval(k, people.astype(str)) == [low, high]


def test_kid_bootstrap_weights_are_those_of_the_drawn_images() -> None:
    from mri_synth.metrics.kid import _estimates

    k = kernels(normal(4, 2, 0), normal(5, 2, 1))
    groups = np.array([0, 0, 1, 1, 2])
    # subject 0 twice, 1 once, 2 not: copies of subject 0 are each their own subject, and never paired with each other
    drawn = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0)]  # image, copy
    pairs = [(i, j) for i, c in drawn for j, d in drawn if i != j and (groups[i] != groups[j] or c == d)]
    cross = np.mean([[k.cross[f, i] for i, _ in drawn] for f in range(4)])
    fakes = np.mean([k.fake[i, j] for i in range(4) for j in range(4) if i != j])
    expected = fakes + np.mean([k.real[i, j] for i, j in pairs]) - 2 * cross
    assert _estimates(k, np.ones((1, 4)), np.array([[2.0, 1, 0]]), groups)[0] == pytest.approx(expected, rel=1e-12)


def test_kid_refuses_what_it_cannot_estimate() -> None:
    k = kernels(normal(4, 2, 0), normal(9, 2, 1))
    assert kid_interval(k, None) is None
    assert kid_interval(Kernels(k.real, k.fake, k.cross.T), ["a", "a", "b", "c"]) is None
    with pytest.raises(ValueError, match="subset_size must be from 2 to 4, the smaller set's size; got 5"):
        kid_subsets(k, 3, 5)
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(9, 2\)"):
        kernels(normal(1, 2, 0), normal(9, 2, 1))


# -- precision, recall, density, coverage -------------------------------------------------------------------------


def from_the_papers(fake: Array, real: Array, k: int) -> dict[str, float]:
    """The definitions, image by image."""

    def radius(x: Array, i: int) -> float:
        return sorted(float(np.linalg.norm(x[i] - x[j])) for j in range(len(x)) if j != i)[k - 1]

    in_real = [[np.linalg.norm(f - r) <= radius(real, i) for i, r in enumerate(real)] for f in fake]
    in_fake = [[np.linalg.norm(f - r) <= radius(fake, j) for j, f in enumerate(fake)] for r in real]
    return {
        "precision": sum(any(row) for row in in_real) / len(fake),
        "recall": sum(any(row) for row in in_fake) / len(real),
        "density": sum(sum(row) for row in in_real) / (k * len(fake)),
        "coverage": sum(any(row[i] for row in in_real) for i in range(len(real))) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_prdc_equals_the_definitions(k: int) -> None:
    fake, real = normal(25, 4, 0, 0.6), normal(30, 4, 1)
    assert prdc(fake, real, k) == pytest.approx(from_the_papers(fake, real, k), rel=1e-12)


def test_prdc_in_one_dimension_by_hand() -> None:
    # reals 0 1 3 with k=1 reach 1, 1, 2: [-1, 1], [0, 2], [1, 5]; fakes 1.5 and 9 reach 7.5: [-6, 9], [1.5, 16.5]
    found = prdc(np.array([[1.5], [9.0]]), np.array([[0.0], [1.0], [3.0]]), 1)
    assert found == {"precision": 0.5, "recall": 1.0, "density": 1.0, "coverage": pytest.approx(2 / 3)}
    # one mode of two: every fake is real, half of the reals are not covered
    fake, real = np.array([[0.1], [0.2], [0.3]]), np.array([[0.05], [0.25], [0.5], [9.0], [9.25], [9.5]])
    assert prdc(fake, real, 1) == {"precision": 1.0, "recall": pytest.approx(1 / 3), "density": 2.0, "coverage": 0.5}


def test_prdc_of_one_distribution_reaches_its_limit() -> None:
    n, k = 600, 5
    found = [prdc(normal(n, 8, 2 * s), normal(n, 8, 2 * s + 1), k) for s in range(3)]
    coverage = 1 - math.prod((n - i) / (2 * n - i) for i in range(1, k + 1))
    assert coverage == pytest.approx(1 - 2**-k, abs=2e-3)
    assert np.mean([f["coverage"] for f in found]) == pytest.approx(coverage, abs=0.012)
    assert np.mean([f["density"] for f in found]) == pytest.approx(1, abs=0.06)


def test_a_copy_lies_inside_the_ball_that_reaches_to_it() -> None:
    real = normal(40, 300, 0, 5.0)
    found = prdc(real[::-1].copy(), real, 5)
    assert found == {"precision": 1.0, "recall": 1.0, "density": pytest.approx(6 / 5), "coverage": 1.0}
    with pytest.raises(ValueError, match="k=40 must be from 1 to one less than the smaller set has, 39"):
        prdc(real, real, 40)


# -- MS-SSIM ------------------------------------------------------------------------------------------------------


def image_pair(side: int, noise: float = 0.2, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    x = torch.nn.functional.interpolate(
        torch.rand(batch, 1, side // 8, side // 8, generator=generator), size=(side, side), mode="bilinear"
    )
    return (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1), x


@pytest.mark.parametrize("side, count", [(192, 5), (128, 4), (64, 3), (32, 2), (16, 1)])
def test_ms_ssim_equals_torchmetrics_but_for_its_border(side: int, count: int) -> None:
    """torchmetrics mirrors the image at the coarsest scale's border; here windows lie inside, as in Wang's code."""
    assert scales(side, side) == count
    a, b = image_pair(side)
    weights = tuple(w / sum(WEIGHTS[:count]) for w in WEIGHTS[:count])
    small_a, small_b = (torch.nn.functional.avg_pool2d(x, 2 ** (count - 1)) for x in (a, b))
    _, full = structural_similarity_index_measure(
        small_a, small_b, data_range=1.0, reduction="none", return_full_image=True
    )
    border = full[..., 5:-5, 5:-5].mean((1, 2, 3)) / full.mean((1, 2, 3))
    if side // max(1, count - 1) ** 2 > 10:  # else torchmetrics refuses
        theirs = multiscale_structural_similarity_index_measure(
            a, b, data_range=1.0, betas=weights, reduction="none", normalize="relu"
        )
        assert torch.allclose(ms_ssim(a, b), theirs * border ** weights[-1], atol=1e-4)
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert (ms_ssim(a, b) < 0.999).all()


def test_ms_ssim_of_opposites_is_zero_and_constants_by_hand() -> None:
    a, _ = image_pair(64, 0.5)
    assert ms_ssim(a, 1 - a).tolist() == [0.0] * 3
    # constants: contrast terms are 1, luminance counts at the coarsest scale alone
    x, y = torch.full((1, 1, 64, 64), 0.5), torch.full((1, 1, 64, 64), 0.25)
    luminance = (2 * 0.5 * 0.25 + 1e-4) / (0.25 + 0.0625 + 1e-4)
    assert ms_ssim(x, y).item() == pytest.approx(luminance ** (WEIGHTS[2] / sum(WEIGHTS[:3])), abs=1e-5)
    assert all(word in PROTOCOL for word in ("data range 1", "4 at 128 px", "3 at 64 px", "renormalised"))
    with pytest.raises(ValueError, match=r"of one shape, got \(1, 1, 16, 16\) and \(1, 1, 16, 17\)"):
        ms_ssim(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 17))


def test_pairs_are_different_images_of_different_subjects() -> None:
    for n, wanted in ((7, 100), (300, 50)):
        people = np.arange(n) // 3
        pairs = random_pairs(n, wanted, people.astype(str), seed=3)
        assert len(pairs) == min(wanted, sum(people[i] != people[j] for i, j in combinations(range(n), 2)))
        assert len({tuple(p) for p in pairs.tolist()}) == len(pairs)
        assert (people[pairs[:, 0]] != people[pairs[:, 1]]).all()
        assert (pairs == random_pairs(n, wanted, people.astype(str), seed=3)).all()
        assert len(random_pairs(n, 15, ["a"] * n)) == 15
    assert random_pairs(1, 10).shape == (0, 2)


def test_diversity_is_the_mean_over_pairs() -> None:
    images = torch.cat(image_pair(32)) * 2 - 1
    pairs = random_pairs(6, 9)
    found = diversity(lambda i: images[list(i)], pairs, batch_size=4)
    values = torch.cat([ms_ssim((images[[i]] + 1) / 2, (images[[j]] + 1) / 2) for i, j in pairs.tolist()])
    assert found["mean"] == pytest.approx(values.mean().item(), abs=1e-6)
    assert found["sd"] == pytest.approx(values.std().item(), abs=1e-6)
    assert (found["pairs"], found["scales"]) == (9, 2)
    same = diversity(lambda i: images[:1].expand(len(i), -1, -1, -1), pairs)
    assert same["mean"] == pytest.approx(1, abs=1e-5)
    assert diversity(lambda i: images, np.zeros((0, 2), int))["mean"] is None


# -- memorisation -------------------------------------------------------------------------------------------------


def test_nearest_finds_copies_and_distances() -> None:
    reference = normal(50, 30, 0, 3.0)
    index, distance = nearest(reference[[7, 3]], reference, rows=1)
    assert (index.tolist(), distance.tolist()) == ([7, 3], [0.0, 0.0])
    a, b = normal(20, 5, 1), normal(30, 5, 2)
    brute = np.linalg.norm(a[:, None] - b[None], axis=2)
    assert np.allclose(squared_distances(a, b), brute**2)
    index, distance = nearest(a, b, rows=7)
    assert (index == brute.argmin(1)).all()
    assert np.allclose(distance, brute.min(1))


@pytest.mark.parametrize("rows, columns", [(1, 1), (7, 4), (40, 9), (100, 100)])
def test_nearest_in_blocks_equals_the_table_of_all_distances(rows: int, columns: int) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 3, (40, 3)).astype(np.float64), rng.integers(0, 3, (27, 3)).astype(np.float64)  # with equals
    index, distance = nearest(a, b, rows, columns)
    every = np.linalg.norm(a[:, None] - b, axis=2)
    np.testing.assert_array_equal(index, every.argmin(1))
    np.testing.assert_array_equal(distance, every.min(1))


@pytest.mark.parametrize("known", [True, False])
def test_copy_rate_and_interval_equal_the_table_of_all_pairs(known: bool) -> None:
    rng = np.random.default_rng(5)
    fake, train, held_out = (rng.integers(0, 4, (n, 2)).astype(np.float64) for n in (50, 6, 36))  # with ties
    subject = np.arange(36) % 12 if known else np.arange(36)
    found = memorisation(fake, train, held_out, subject if known else None, seed=3)
    own, theirs = nearest(fake, train)[1], nearest(held_out, train)[1]
    nearer = (own[:, None] < theirs) + 0.5 * (own[:, None] == theirs)
    assert found["copy_rate"] == nearer.mean()
    draw, count = np.random.default_rng(3), int(subject.max()) + 1
    drawn_fake = draw.multinomial(50, np.full(50, 1 / 50), 1000)
    drawn_real = draw.multinomial(count, np.full(count, 1 / count), 1000)
    means = [np.average(nearer, weights=np.outer(f, r[subject])) for f, r in zip(drawn_fake, drawn_real, strict=True)]
    assert found["copy_rate_ci"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-12)


def test_copies_of_the_training_set_are_found() -> None:
    train, held_out = normal(200, 6, 0), normal(60, 6, 1)
    found = memorisation(train[20:60], train, held_out, np.repeat(np.arange(12), 5).astype(str), show=3)
    assert (found["copy_rate"], found["closer_to_train"], found["near_duplicates"]) == (1.0, 1.0, 1.0)
    assert found["copy_rate_ci"] == [1.0, 1.0]
    assert [p["train"] - p["fake"] for p in found["pairs"]] == [20, 20, 20]
    # half copies
    mixed = memorisation(np.concatenate([train[:100], normal(100, 6, 2)]), train, held_out)
    assert mixed["copy_rate"] == pytest.approx(0.75, abs=0.06)
    assert mixed["near_duplicates"] == pytest.approx(0.5, abs=0.05)


def test_samples_of_the_same_distribution_are_not_called_copies() -> None:
    found = [
        memorisation(normal(300, 6, 3 * s), normal(400, 6, 3 * s + 1), normal(150, 6, 3 * s + 2)) for s in range(4)
    ]
    assert np.mean([f["copy_rate"] for f in found]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([f["closer_to_train"] for f in found]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([f["near_duplicates"] for f in found]) < 0.03
    assert sum(f["copy_rate_ci"][0] <= 0.5 <= f["copy_rate_ci"][1] for f in found) >= 3


def test_memorisation_by_hand() -> None:
    # distances to train {0, 10}: fakes 1 and 5 -> 1, 5; held out 4, 13 -> 4, 3. 1 < both; 5 < none: 1/2
    train, held_out = np.array([[0.0], [10.0]]), np.array([[4.0], [13.0]])
    found = memorisation(np.array([[1.0], [5.0]]), train, held_out)
    assert (found["copy_rate"], found["copy_rate_ci"], found["threshold"]) == (0.5, None, 3.0)
    assert (found["near_duplicates"], found["near_duplicates_held_out"]) == (0.5, 0.5)
    assert found["closer_to_train"] == 0.5  # fake 1 is nearer to train, fake 5 to 4
    assert found["pairs"][0] == {"fake": 0, "train": 0, "held_out": 0, "to_train": 1.0, "to_held_out": 3.0}
    # three times as many training images: 3/4 would be nearer to train by chance
    more = memorisation(np.array([[1.0], [1.0], [1.0], [5.0]]), np.array([[0.0], [10.0]] * 3), held_out)
    assert more["closer_to_train"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no set may be empty, got 1 fake, 0 train, 2 held-out"):
        memorisation(held_out[:1], held_out[:0], held_out)


def test_pixel_vectors_have_rms_distance() -> None:
    a, b = torch.full((1, 1, 64, 48), -1.0), torch.full((1, 1, 64, 48), 0.0)
    x, y = pixel_vectors(a), pixel_vectors(b)
    assert x.shape == (1, 32 * 32)
    assert np.linalg.norm(x - y) == pytest.approx(0.5, rel=1e-6)
    assert pixel_vectors(torch.zeros(2, 1, 16, 16)).shape == (2, 256)

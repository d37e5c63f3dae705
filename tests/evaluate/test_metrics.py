"""Metrics against closed forms, restatements in float64 and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from rewarddance.core.errors import InputError
from rewarddance.core.media import Media
from rewarddance.core.statistics import bootstrap_statistic, half_sample_interval
from rewarddance.evaluate.calibration import fit_tie_threshold
from rewarddance.evaluate.generator import Samples
from rewarddance.evaluate.metrics import (
    Moments,
    among_samples,
    before_and_after,
    clip_score,
    cmmd,
    frechet_distance,
    frechet_inception_distance,
    kendall_tau_b,
    kernel_inception_distance,
    layer_distance,
    mean_distance,
    pairwise_accuracy,
    pairwise_labels,
    precision_and_recall,
    spearman_rho,
    vendi_score,
)
from rewarddance.evaluate.metrics.distributions import polynomial_mmd, squared_distances
from rewarddance.evaluate.metrics.table import Extractors, metrics_table


def sets(n=60, m=50, d=5, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift, rng.normal(size=(m, d))


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    a, b = (np.array(v) for v in ([1.0, 4.0, 0.0], [9.0, 1.0, 2.0]))
    gap = np.array([1.0, -2.0, 0.5])
    distance = frechet_distance(Moments(gap, np.diag(a)), Moments(np.zeros(3), np.diag(b)))
    assert distance == pytest.approx(gap @ gap + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-12)


def test_frechet_distance_of_general_covariances_is_that_of_the_matrix_root():
    (x, _), extra = sets(), np.random.default_rng(1).normal(size=(5, 5))
    a, b = np.cov(x, rowvar=False), extra @ extra.T
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(a @ b)).real
    assert frechet_distance(Moments(np.ones(5), a), Moments(np.ones(5), b)) == pytest.approx(expected, rel=1e-9)


def test_fid_of_samples_comes_near_that_of_the_gaussians_that_made_them():
    rng = np.random.default_rng(2)
    mean, root = np.array([0.5, 0.0, -0.3]), np.array([[1.0, 0, 0], [0.4, 0.8, 0], [0, 0.2, 1.5]])
    x, y = rng.normal(size=(20_000, 3)) @ root.T + mean, rng.normal(size=(20_000, 3))
    exact = frechet_distance(Moments(mean, root @ root.T), Moments(np.zeros(3), np.eye(3)))
    assert frechet_inception_distance(x, y) == pytest.approx(exact, abs=0.03)
    assert frechet_inception_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_fid_with_fewer_pictures_than_dimensions_is_finite_and_invariant_under_rotation():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6, 20)), rng.normal(size=(7, 20))
    turn = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    value = frechet_inception_distance(x, y)
    assert frechet_inception_distance(x @ turn, y @ turn) == pytest.approx(value, rel=1e-8)
    a, b = (v - v.mean(0) for v in (x, y))  # tr((A B)^(1/2)) is the nuclear norm of the centred sets' product
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum() / math.sqrt(5 * 6)
    gap = x.mean(0) - y.mean(0)
    assert value == pytest.approx(gap @ gap + (a**2).sum() / 5 + (b**2).sum() / 6 - 2 * cross, rel=1e-7)


@pytest.mark.parametrize(("n", "m"), [(6, 9), (40, 50), (6, 50), (50, 6), (20, 20)])
def test_fid_is_that_of_the_covariances_and_takes_the_smaller_matrix(n, m, monkeypatch):
    """With 20 dimensions. The covariances of fewer pictures than dimensions are singular."""
    x, y = sets(n, m, 20)
    expected, shapes, svd = frechet_distance(Moments.of(x), Moments.of(y)), [], np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda a, **options: shapes.append(a.shape) or svd(a, **options))
    assert frechet_inception_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert shapes == [(min(n, 20), min(m, 20))]


def test_mmd_is_the_double_sum():
    x, y = sets(7, 6, 3)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [sum(k(v[i], v[j]) for i in range(len(v)) for j in range(len(v)) if i != j) for v in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / 42
    assert polynomial_mmd(x, y) == pytest.approx(within[0] / 42 + within[1] / 30 - 2 * across, rel=1e-12)


def test_kid_is_unbiased_and_takes_subsets():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 4))
    nulls = [polynomial_mmd(*(rng.normal(size=(25, 4)) for _ in range(2))) for _ in range(400)]
    assert abs(np.mean(nulls)) < 3 * np.std(nulls) / 20  # mean 0 for equal distributions
    whole = kernel_inception_distance(x, x + 1, num_subsets=1)[0]
    mean, std = kernel_inception_distance(x, x + 1, num_subsets=200, subset_size=50)
    assert mean == pytest.approx(whole, abs=4 * std / math.sqrt(200) + 0.05 * whole)
    assert std > 0
    assert kernel_inception_distance(x, x + 1) == kernel_inception_distance(x, x + 1)


def test_cmmd_is_the_double_sum_of_gaussians():
    x, y = sets(7, 6, 3)

    def mean_kernel(a, b):
        return np.mean([[math.exp(-((p - q) @ (p - q)) / 200) for q in b] for p in a])

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert cmmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    one, two = np.zeros((1, 4)), np.full((1, 4), 5.0)  # two single points at distance 10
    assert cmmd(one, two) == pytest.approx(2000 * (1 - math.exp(-0.5)))


@pytest.mark.parametrize("distance", [cmmd, frechet_inception_distance])
def test_distances_of_equal_sets_are_not_negative(distance):
    """Without care rounding gives about -2e-13 and -1e-14 for some of these sets."""
    sets_of_points = [np.random.default_rng(seed).normal(size=(40, 6)) for seed in range(20)]
    values = [distance(x, x[::-1].copy()) for x in sets_of_points]
    assert min(values) >= 0
    assert max(values) == pytest.approx(0, abs=1e-12)


def test_squared_distances_keep_their_digits_far_from_the_origin():
    x, y = sets()
    assert squared_distances(x + 1e6, y + 1e6) == pytest.approx(((x[:, None] - y[None]) ** 2).sum(-1), abs=1e-7)


def test_precision_and_recall_of_known_manifolds():
    line = np.arange(10.0)[:, None]
    assert precision_and_recall(line, line) == (1.0, 1.0)
    assert precision_and_recall(line + 1000, line) == (0.0, 0.0)
    mode = np.linspace(0, 0.1, 10)[:, None]  # one mode only: all of it is real, little of the real is reached
    precision, recall = precision_and_recall(mode, line, k=1)
    assert (precision, recall) == (1.0, 0.1)


def test_precision_and_recall_are_what_loops_give():
    x, y = sets(20, 15, 3)

    def covered(points, manifold, k=3):
        inside = 0
        for p in points:
            for q in manifold:
                radius = sorted(np.linalg.norm(q - r) for r in manifold)[k]
                inside += (np.linalg.norm(p - q) <= radius) and 1
                if np.linalg.norm(p - q) <= radius:
                    break
        return inside / len(points)

    assert precision_and_recall(x, y) == (covered(x, y), covered(y, x))


def test_vendi_score_counts_different_items():
    assert vendi_score(np.ones((6, 4))) == pytest.approx(1)
    assert vendi_score(np.eye(5) * 3) == pytest.approx(5)
    assert vendi_score(np.repeat(np.eye(3), 4, 0)) == pytest.approx(3)
    cosine = 0.6  # two items: eigenvalues (1 + c) / 2 and (1 - c) / 2
    p = np.array([1 + cosine, 1 - cosine]) / 2
    assert vendi_score([[1.0, 0], [cosine, 0.8]]) == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    with pytest.raises(InputError, match="all 0"):
        vendi_score(np.zeros((2, 3)))


def test_diversity_is_the_mean_distance_of_pairs():
    assert mean_distance([[0.0, 0], [3, 0], [0, 4]]) == pytest.approx((3 + 4 + 5) / 3)
    with pytest.raises(InputError, match="N of 2 or more"):
        mean_distance([[1.0, 2.0]])


def test_clip_score_is_a_clipped_cosine():
    pictures, texts = np.array([[2.0, 0], [1, 1], [1, 0]]), np.array([[3.0, 0], [1, 0], [-1, 0]])
    assert clip_score(pictures, texts) == pytest.approx([2.5, 2.5 / math.sqrt(2), 0])
    assert clip_score(pictures, texts, 100)[0] == pytest.approx(100)
    with pytest.raises(InputError, match="one text for each"):
        clip_score(pictures, texts[:2])


def test_features_that_cannot_be_measured_are_refused():
    x, y = sets()
    for metric in (frechet_inception_distance, kernel_inception_distance, cmmd, precision_and_recall):
        with pytest.raises(InputError, match="samples have 4 dimensions and the reference set has 5"):
            metric(x[:, :4], y)
        with pytest.raises(InputError, match="not finite"):
            metric(np.where(x == x[0, 0], np.nan, x), y)
    with pytest.raises(InputError, match="3 neighbours need 4 or more"):
        precision_and_recall(x[:3], y)


def test_layer_distance_is_that_of_unit_features():
    a, b = torch.tensor([[[3.0, 0], [0, 2]]]), torch.tensor([[[1.0, 0], [5, 0]]])
    assert layer_distance([a, a], [b, b]).tolist() == pytest.approx([2.0])  # (0 + 2) / 2 places, two layers
    assert layer_distance([a], [a]).tolist() == [0.0]


def grey(*values):
    return tuple(Media(torch.full((1, 3, 2, 2), v)) for v in values)


def gap(a, b):
    return torch.stack([(x.frames - y.frames).abs().mean() for x, y in zip(a, b, strict=True)])


def test_perceptual_distances_pair_what_belongs_together():
    before = Samples(("a", "b"), (grey(0.0, 0.5, 1.0), grey(0.2, 0.2, 0.2)))
    after = Samples(("a", "b"), (grey(0.1, 0.5, 0.8), grey(0.2, 0.3, 0.2)))
    assert before_and_after(before, after, gap) == pytest.approx(np.array([[0.1, 0, 0.2], [0, 0.1, 0]]), abs=1e-6)
    assert among_samples(before, gap) == pytest.approx([(0.5 + 0.5 + 1) / 3, 0], abs=1e-6)
    with pytest.raises(InputError, match="same prompts"):
        before_and_after(before, Samples(("a", "c"), after.media), gap)
    with pytest.raises(InputError, match="two or more noises"):
        among_samples(Samples(("a",), (grey(0.1),)), gap)


def test_pairwise_accuracy_counts_ties_on_both_sides():
    margins, labels = pairwise_labels([3.0, 1.0, 1.1, 0.0], [2, 1, 1, 0])
    assert labels.tolist() == [1, 1, 1, 0.5, 1, 1]
    assert pairwise_accuracy(margins, labels, 0.0) == pytest.approx(5 / 6)  # the tie is called for the third item
    assert pairwise_accuracy(margins, labels, 0.2) == 1
    assert pairwise_accuracy(margins, labels, 10.0) == pytest.approx(1 / 6)
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 80)
    scores = truth + rng.normal(scale=0.2, size=80)
    fitted = fit_tie_threshold(*pairwise_labels(scores[:40], truth[:40]))
    others = pairwise_labels(scores[40:], truth[40:])
    assert pairwise_accuracy(*others, fitted) > pairwise_accuracy(*others, 0.0) + 0.15


def test_rank_correlations_are_scipys_and_have_intervals():
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 5, 100).astype(float)
    scores = truth + rng.normal(scale=2, size=100)
    tau, rho = kendall_tau_b(scores, truth), spearman_rho(scores, truth)
    assert tau.mean == pytest.approx(stats.kendalltau(scores, truth).statistic)
    assert rho.mean == pytest.approx(stats.spearmanr(scores, truth).statistic)
    for interval in (tau, rho):
        assert interval.ci_low < interval.mean < interval.ci_high
    concordant, pairs = 0, [(i, j) for i in range(4) for j in range(i)]
    a, b = [1.0, 2, 2, 4], [1.0, 3, 2, 2]
    concordant = sum(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs)
    assert kendall_tau_b(a, b).mean == pytest.approx(concordant / 5)  # one tie on each side of six pairs
    assert kendall_tau_b([1, 1, 1], [1, 2, 3]).mean == 0


def test_half_samples_give_the_standard_error_of_a_mean():
    x = np.random.default_rng(7).normal(size=60)
    interval = half_sample_interval(lambda rows: x[rows].mean(), 60, num=4000)
    exact = 1.96 * x.std(ddof=1) / math.sqrt(60)
    assert interval.mean == pytest.approx(x.mean())
    assert interval.ci_high - interval.mean == pytest.approx(exact, rel=0.05)
    odd = half_sample_interval(lambda rows: x[:59][rows].mean(), 59, num=4000)
    assert odd.ci_high - odd.mean == pytest.approx(1.96 * x[:59].std(ddof=1) / math.sqrt(59), rel=0.05)
    with pytest.raises(ValueError, match="four units"):
        half_sample_interval(lambda rows: 0.0, 3)


def test_the_bootstrap_of_a_mean_is_the_known_one():
    x = np.random.default_rng(8).normal(size=80)
    interval = bootstrap_statistic(lambda rows: x[rows].mean(), 80)
    assert interval.ci_high - interval.ci_low == pytest.approx(2 * 1.96 * x.std() / math.sqrt(80), rel=0.1)


class Colours:
    """Features, texts and all: the mean colour of a picture."""

    def __call__(self, media):
        return torch.stack([m.frames.mean((0, 2, 3)) for m in media])

    def texts(self, texts):
        return torch.tensor([[1.0, 0, 0] if "red" in t else [0, 0, 1.0] for t in texts])


def test_the_table_shows_that_training_came_nearer_to_the_reference():
    rng = torch.Generator().manual_seed(0)

    def samples(spread):
        rows = []
        for colour in [(1.0, 0, 0), (0, 0, 1.0)] * 6:
            noise = torch.rand(4, 1, 3, 2, 2, generator=rng)
            target = torch.tensor(colour).view(1, 3, 1, 1)
            rows.append([Media((1 - spread) * target + spread * n) for n in noise])
        return Samples(("red", "blue") * 6, tuple(map(tuple, rows)))

    before, after, right = samples(0.8), samples(0.1), samples(0.05)
    reference = [m for row in right.media for m in row]
    extractors = Extractors(
        {"colour": Colours()}, {"gap": gap}, Colours(), {"red": lambda m: float(m.frames[:, 0].mean())}
    )
    table, values = metrics_table(before, after, reference, extractors)
    for metric in ("fid/colour", "kid/colour", "cmmd/colour"):
        assert table[metric]["after"] < table[metric]["before"]
        assert table[metric]["change"]["ci_high"] < 0
    features = {
        name: Colours()([m for row in rows for m in row]).double().numpy()
        for name, rows in (("before", before.media), ("after", after.media), ("reference", right.media))
    }
    for name in ("before", "after"):
        exact = polynomial_mmd(features[name], features["reference"])  # all pictures, none drawn at random
        assert table["kid/colour"][name] == pytest.approx(exact, rel=1e-9)
    assert table["precision/colour"]["after"] >= table["precision/colour"]["before"]
    assert table["clip_score"]["change"]["ci_low"] > 0
    assert table["lpips_among/gap"]["change"]["ci_high"] < 0
    assert table["lpips_moved/gap"]["ci_low"] > 0
    assert table["vendi/colour"]["after"] == pytest.approx(np.mean(values["vendi/colour/after"]))
    assert {len(v) for v in values.values()} == {12}
    assert table["red"]["reference"] == pytest.approx(features["reference"][:, 0].mean())
    assert table["red"]["after"] == pytest.approx(features["after"][:, 0].mean())
    spread = [mean_distance(row) for row in features["before"].reshape(12, 4, 3)]
    assert values["diversity/colour/before"] == pytest.approx(spread)


def test_fid_and_kid_are_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = (v.astype(np.float32) for v in sets())
    moments = [
        torch.tensor(v, dtype=torch.float64) for m in (Moments.of(x), Moments.of(y)) for v in (m.mean, m.covariance)
    ]
    expected = float(fid._compute_fid(*moments))
    assert frechet_inception_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert polynomial_mmd(x[:50], y) == pytest.approx(
        float(kid.poly_mmd(torch.tensor(x[:50]), torch.tensor(y))), rel=1e-4
    )

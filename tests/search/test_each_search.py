"""The arithmetic of every search, against closed forms and independent statements."""

import math

import numpy as np
import pytest
import torch
from toy_flow import SHAPE, Levels, Toy

from rewarddance.core.errors import ConfigError
from rewarddance.generator import flow
from rewarddance.search.config import (
    EvolutionConfig,
    FkConfig,
    PathsConfig,
    ZeroOrderConfig,
    parse_search,
)
from rewarddance.search.evolution import evolution, fitted, low, with_low
from rewarddance.search.fk_steering import Weights, fk_steering, systematic
from rewarddance.search.paths import search_over_paths, stretch
from rewarddance.search.run import rngs_of
from rewarddance.search.verifier import Pointwise
from rewarddance.search.zero_order import neighbours, zero_order

PROMPTS = ["a red circle", "two blue squares on black", "a dog"]


def test_more_noise_keeps_the_marginals_of_the_flow():
    """Exact: the picture's share becomes 1 - up, and the variances of both noises add up to up squared."""
    one, zero = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    for now, up in ((0.0, 0.4), (0.11, 0.89), (0.5, 0.5), (0.3, 1.0)):
        of_picture = flow.add_more_noise((1 - now) * one, zero, now, up)
        old, new = flow.add_more_noise(now * one, zero, now, up), flow.add_more_noise(zero, one, now, up)
        torch.testing.assert_close(of_picture, (1 - up) * one)
        torch.testing.assert_close(old**2 + new**2, up**2 * one)
    z, noise = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(flow.add_more_noise(z, noise, 0.0, 0.4), flow.add_noise(z, noise, 0.4))
    torch.testing.assert_close(flow.add_more_noise(z, noise, 0.4, 0.4), z)


def test_rounds_of_the_published_settings_end_at_zero():
    rounds = PathsConfig().rounds()
    assert [x for r in rounds for x in r] == pytest.approx(
        [0.11, 0.89, 0.08, 0.08, 0.86, 0.05, 0.05, 0.83, 0.02, 0.02, 0.80, 0.0]
    )
    times = stretch(flow.times(10), 0.89, 0.08).tolist()
    assert times == pytest.approx([0.89, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.08])


def test_search_over_paths_equals_its_statement():
    """An independent loop over one prompt, with the same random numbers."""
    toy, prompt, n, m = Toy(), PROMPTS[0], 2, 3
    settings = PathsConfig(keep=n, branches=m, start=0.4, up=0.4, down=0.6)
    result = search_over_paths(toy, Pointwise(Levels()), [prompt], nfe=10**4, num_steps=10, settings=settings)[0]
    rng, mu = rngs_of(0, "search", [prompt])[0], toy.condition([prompt])

    def euler(z, ts):
        for now, after in zip(ts, ts[1:], strict=False):
            v = toy.velocity(z, now, mu)
            z, clean = z + (after - now) * v, z - now * v
        return z, clean

    z, _ = euler(torch.randn(n, *SHAPE, generator=rng), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    for sigma, ts in ((0.4, [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]), (0.2, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])):
        share = (1 - ts[0]) / (1 - sigma)
        noise = torch.randn(n * m, *SHAPE, generator=rng)
        z = share * z.repeat_interleave(m, 0) + math.sqrt(ts[0] ** 2 - (share * sigma) ** 2) * noise
        z, clean = euler(z, ts)
        z = z[clean.flatten(1).mean(1).argsort(descending=True)[:n]]
    torch.testing.assert_close(result.latent, z[0], atol=1e-5, rtol=1e-5)
    assert result.nfe == n * 6 + n * m * 12
    assert result.decodes == 2 * n * m


# zero-order search


def test_neighbours_have_the_pivots_norm_and_the_right_cosine():
    rng = torch.Generator().manual_seed(0)
    pivot, fresh = (
        torch.randn(2, 1, 8, 6, 6, generator=rng).double(),
        torch.randn(2, 5, 8, 6, 6, generator=rng).double(),
    )
    around = neighbours(pivot, fresh, 0.95).flatten(2)
    x = pivot.flatten(2)
    torch.testing.assert_close(around.norm(dim=2), x.norm(dim=2).expand(2, 5))
    torch.testing.assert_close(
        torch.cosine_similarity(around, x.expand(2, 5, -1), dim=2), torch.full((2, 5), 0.95).double()
    )


def test_a_pivot_moves_to_a_better_neighbour_and_starts_afresh_otherwise():
    """The noises of every sample, recorded; one prompt's rounds are replayed by hand."""
    starts, latents = [], []

    class Recording(Toy):
        def velocity(self, z, t, mu):
            if t == 1:
                starts.append(z.clone())
            return super().velocity(z, t, mu)

        def decode(self, z):
            latents.append(z.clone())
            return super().decode(z)

    settings = ZeroOrderConfig(neighbours=3)
    result = zero_order(Recording(), Pointwise(Levels()), PROMPTS[:1], nfe=5 * 40, num_steps=5, settings=settings)[0]
    assert [len(s) for s in starts] == [3] * 13 + [1]
    cosine = lambda a, b: torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()  # noqa: E731
    pivot, height, moves, restarts = None, -math.inf, 0, 0
    for noise, samples in zip(starts, latents, strict=True):
        values = samples.flatten(1).mean(1)
        if pivot is None:  # a fresh base: the others are around it
            assert [cosine(noise[0], other) for other in noise[1:]] == pytest.approx(
                [0.95] * (len(noise) - 1), abs=1e-5
            )
            height, restarts = -math.inf, restarts + 1
        else:
            assert [cosine(pivot, other) for other in noise] == pytest.approx([0.95] * len(noise), abs=1e-5)
        if values.max() > height:
            moves += pivot is not None
            pivot, height = noise[values.argmax()], values.max().item()
        else:
            pivot = None
    assert moves > 1
    assert restarts > 1
    torch.testing.assert_close(result.latent, max(torch.cat(latents), key=lambda x: x.mean().item()))


# Feynman-Kac steering


def numpy_weights(kind, scale, rewards):
    """Log-weights of one particle path without resampling; NaN is potential 1. The last reward closes the product."""
    total, best, added, before = 0.0, -np.inf, 0.0, 0.0
    for r in rewards[:-1]:
        if np.isnan(r):
            continue
        best, added = max(best, r), added + r
        total += scale * {"difference": r - before, "max": best, "sum": added}[kind]
        before = r
    return total if np.isnan(rewards[-1]) else scale * rewards[-1]


@pytest.mark.parametrize("kind", ["difference", "max", "sum"])
def test_weights_equal_an_independent_statement(kind):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(6, 4))  # particles, judgements
    rewards[1, 0] = rewards[2, 1] = rewards[3, 3] = rewards[4, :3] = rewards[5] = np.nan
    settings = FkConfig(potential=kind, scale=2.5)
    weights = Weights.first(1, 6, settings)
    for k in range(3):
        weights = weights.after(torch.tensor(rewards[None, :, k]), settings)
        partial = [numpy_weights(kind, 2.5, [*row[: k + 1], np.nan]) for row in rewards]
        np.testing.assert_allclose(weights.log_weight[0], partial, atol=1e-12)
        w = np.exp(partial - np.max(partial))
        np.testing.assert_allclose(weights.effective_size()[0], w.sum() ** 2 / (w**2).sum())
    last = weights.after(torch.tensor(rewards[None, :, 3]), settings, last=True)
    np.testing.assert_allclose(last.log_weight[0], [numpy_weights(kind, 2.5, row) for row in rewards], atol=1e-12)


def test_resampling_equals_an_independent_statement():
    rng = np.random.default_rng(1)
    logs, uniform = rng.normal(size=(5, 8)), rng.random(5)
    index = systematic(torch.tensor(logs), torch.tensor(uniform))
    for row in range(5):
        w = np.exp(logs[row]) / np.exp(logs[row]).sum()
        assert index[row].tolist() == np.searchsorted(np.cumsum(w), (np.arange(8) + uniform[row]) / 8).tolist()
        assert np.abs(np.bincount(index[row], minlength=8) - 8 * w).max() < 1
    settings = FkConfig()
    weights = Weights.first(2, 8, settings).after(torch.tensor(logs[:2]), settings)
    again = weights.resampled(index[:2], torch.tensor([True, False]))
    assert again.log_weight[0].eq(0).all()
    torch.testing.assert_close(again.log_weight[1], weights.log_weight[1][index[1]])
    torch.testing.assert_close(again.reward, weights.reward.gather(1, index[:2]))


def test_without_lambda_the_particles_are_those_of_the_plain_sampler():
    settings = FkConfig(scale=0.0)
    result = fk_steering(Toy(), Pointwise(Levels()), PROMPTS[:1], nfe=40, num_steps=5, settings=settings)[0]
    toy, rng = Toy(), rngs_of(0, "search", PROMPTS[:1])[0]
    z, ts = toy.noise(8, rng), flow.times(5).tolist()
    for index, (now, after) in enumerate(zip(ts, ts[1:], strict=False)):
        gaussian = flow.step(z, toy.velocity(z, now, toy.condition(PROMPTS[:1])), now, after, 0.7 if index < 4 else 0.0)
        if index in settings.judged_steps(5):
            torch.rand((), generator=rng)  # for the resampling that equal weights never ask for
        z = gaussian.mean if index == 4 else gaussian.sample(torch.randn(z.shape, generator=rng))
    torch.testing.assert_close(result.latent, max(z, key=lambda x: x.mean().item()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["difference", "max", "sum"])
def test_a_drawn_particle_follows_the_tilted_distribution(kind):
    """The level is nearly N(m, s^2), so exp(lambda level) moves its mean by lambda s^2 = 0.2."""
    prompts = [f"{i:04d}" for i in range(150)]
    how = {"nfe": 5 * 24, "num_steps": 5}
    drawn = []
    for scale in (0.0, 10.0):
        settings = FkConfig(potential=kind, scale=scale, pick="sample")
        results = fk_steering(Toy(), Pointwise(Levels()), prompts, settings=settings, **how)
        drawn.append(np.array([r.latent.mean().item() for r in results]))
    moved, variance = drawn[1].mean() - drawn[0].mean(), drawn[0].var()
    assert moved == pytest.approx(10 * variance, rel=0.25)
    assert moved > 10 * drawn[0].std() / math.sqrt(150)


# evolution


def test_low_frequencies_are_orthonormal_and_can_be_replaced():
    noise = torch.randn(2, 3, 4, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coefficients = low(noise, 6)
    torch.testing.assert_close(low(noise, 99).square().sum(), noise.square().sum())
    torch.testing.assert_close(with_low(noise, coefficients), noise)
    changed = with_low(noise, torch.ones_like(low(noise, 2)))
    torch.testing.assert_close(low(changed, 2), torch.ones_like(low(noise, 2)))
    torch.testing.assert_close(low(changed, 6)[..., 2:, :], coefficients[..., 2:, :])
    torch.testing.assert_close(low(noise, 1)[..., 0, 0], noise.sum((-1, -2)) / math.sqrt(48))


def test_elites_are_fitted_without_refused_ones():
    elites = torch.randn(3, 5, 2, 2, 2, dtype=torch.float64)
    answered = torch.ones(3, 5, dtype=torch.bool)
    answered[1, 3:] = False
    answered[2, 1:] = False
    elites[1, 3:] = torch.nan
    mean, std = fitted(elites, answered, None, None)
    for row, num in ((0, 5), (1, 3)):
        own = elites[row, :num].numpy()
        np.testing.assert_allclose(mean[row, 0], own.mean(0))
        np.testing.assert_allclose(std[row, 0], own.std(0))
    assert mean[2].eq(0).all()
    assert std[2].eq(1).all()


def test_the_mean_moves_to_the_optimum_of_a_quadratic():
    """The score is -(c - 1)^2 with c the lowest coefficient of the first channel, which starts as N(0, 1)."""

    def quadratic(frames):
        return -((frames[:, 0].logit().sum((1, 2)) / 4 - 1) ** 2)

    starts = []

    class Recording(Toy):
        def velocity(self, z, t, mu):
            if t == 1:
                starts.append(low(z, 1)[:, 0, 0, 0].mean().item())
            return super().velocity(z, t, mu)

    settings = EvolutionConfig(population=20, elites=5, frequencies=1)
    result = evolution(Recording(), Pointwise(Levels(quadratic)), [""], nfe=4 * 20 * 6, num_steps=4, settings=settings)
    one = torch.zeros(1, *SHAPE)
    one[0, 0] = 0.25  # the coefficient 1; the flow is linear without mu
    gain = run_linear(one)
    assert abs(starts[0]) < 0.6
    assert starts[-1] * gain == pytest.approx(1, abs=0.1)
    assert result[0].score > -0.01


def run_linear(z):
    toy, ts = Toy(), flow.times(4).tolist()
    for now, after in zip(ts, ts[1:], strict=False):
        z = z + (after - now) * toy.velocity(z, now, 0.0)
    return z[0, 0].sum().item() / 4


# settings


def test_settings_are_checked():
    assert parse_search({"kind": "paths", "keep": 3}) == PathsConfig(keep=3)
    for values, message in (
        ({"kind": "path"}, "does not match any of the expected tags"),
        ({"kind": "paths", "up": 0.5, "down": 0.5}, "down 0.5: must be above up"),
        ({"kind": "paths", "start": 0.5}, "start \\+ up is 1.28"),
        ({"kind": "evolution", "elites": 10}, "elites 10: must be fewer than the population"),
        ({"kind": "fk", "window": (0.5, 0.2)}, "window \\(0.5, 0.2\\)"),
        ({"kind": "fk", "lambda": 3}, "lambda: Extra inputs"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_search(values)
    assert FkConfig().judged_steps(10) == {2, 4, 6, 8}
    assert FkConfig(window=(0, 1), every=1).judged_steps(4) == {0, 1, 2}

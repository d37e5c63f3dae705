"""The step kernel against closed forms, float64, finite differences and simulation."""

import itertools
import math

import pytest
import torch

from rewarddance.generator import flow


def test_clean_inverts_add_noise():
    x, noise = torch.randn(4, 3, 5), torch.randn(4, 3, 5)
    t = torch.tensor([0.1, 0.5, 0.9, 0.99])
    assert torch.allclose(flow.clean(flow.add_noise(x, noise, t), noise - x, t), x, atol=1e-5)


def test_euler_on_the_true_velocity_lands_on_the_picture():
    x, noise = torch.randn(2, 7), torch.randn(2, 7)
    z, ts = noise, flow.times(13).tolist()
    for now, after in itertools.pairwise(ts):
        z = flow.step(z, noise - x, now, after).mean
    assert torch.allclose(z, x, atol=1e-5)


def test_sde_step_equals_flow_grpo_formula_in_float64():
    z, v, t, dt, a = 0.3, -0.7, 0.6, -0.1, 0.7
    sigma = a * math.sqrt(t / (1 - t))
    mean = z * (1 + sigma**2 / (2 * t) * dt) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * dt
    found = flow.step(torch.full((1, 1), z), torch.full((1, 1), v), t, t + dt, a)
    assert found.mean.item() == pytest.approx(mean, rel=1e-6)
    assert found.std.item() == pytest.approx(sigma * math.sqrt(-dt), rel=1e-6)


def test_log_prob_equals_torch_normal_averaged():
    policy = flow.step(torch.randn(3, 4, 2), torch.randn(3, 4, 2), 0.7, 0.6, 0.7)
    z = policy.sample(torch.randn(3, 4, 2))
    expected = torch.distributions.Normal(policy.mean, policy.std).log_prob(z).flatten(1).mean(1)
    assert torch.allclose(policy.log_prob(z), expected, atol=1e-6)


def test_kl_equals_torch_kl():
    a, b = (flow.step(torch.zeros(2, 6), torch.randn(2, 6), 0.7, 0.6, 0.7) for _ in range(2))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a.mean, a.std), normal(b.mean, b.std)).mean(1)
    assert torch.allclose(a.kl(b), expected, rtol=1e-5)


def test_log_prob_of_a_deterministic_step_is_refused():
    policy = flow.step(torch.zeros(1, 2), torch.zeros(1, 2), 0.5, 0.4)
    with pytest.raises(ValueError, match="deterministic"):
        policy.log_prob(torch.zeros(1, 2))


@pytest.mark.parametrize(("num_steps", "tolerance"), [(200, 0.02), (10, 0.08)])
def test_sde_and_ode_have_the_same_marginals(num_steps, tolerance):
    """Data N(2, 0.5^2) has a known velocity; both samplers must reproduce its mean and spread, with few steps too."""
    mu, s = 2.0, 0.5

    def velocity(z, t):
        mean, var = (1 - t) * mu, ((1 - t) * s) ** 2 + t**2
        slope = (t - (1 - t) * s**2) / var  # d/dz of E[noise - x | z]
        return -mu + slope * (z - mean)

    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, generator=rng)
    ts = flow.times(num_steps).tolist()
    ends = {}
    for level in (0.0, 0.7):
        z = noise
        for i, (now, after) in enumerate(itertools.pairwise(ts)):
            policy = flow.step(z, velocity(z, now), now, after, level if i < num_steps - 1 else 0.0)
            z = policy.sample(torch.randn(z.shape, generator=rng))
        ends[level] = (z.mean().item(), z.std().item())
    for mean, spread in ends.values():
        assert mean == pytest.approx(mu, abs=tolerance)
        assert spread == pytest.approx(s, abs=tolerance)


def test_times_run_from_noise_to_picture_and_shift_towards_noise():
    even, shifted = flow.times(4), flow.times(4, 3.0)
    assert even.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert shifted[0] == 1
    assert shifted[-1] == 0
    assert (shifted[1:-1] > even[1:-1]).all()

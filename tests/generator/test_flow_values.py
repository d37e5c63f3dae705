"""The step kernel, number by number: times of a batch, the pole, types."""

import math

import pytest
import torch

from rewarddance.generator import flow
from rewarddance.generator.flow import Gaussian

Z = torch.tensor([[[0.3, -1.0]], [[2.0, 0.5]]], dtype=torch.float64)
V = torch.tensor([[[0.7, 0.2]], [[-0.4, 1.1]]], dtype=torch.float64)


def test_times_of_a_batch_are_each_samples_own():
    t = torch.tensor([0.25, 0.8], dtype=torch.float64)
    together = flow.add_noise(Z, V, t)
    expected = torch.stack([0.75 * Z[0] + 0.25 * V[0], 0.2 * Z[1] + 0.8 * V[1]])
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        flow.clean(Z, V, t), torch.stack([Z[0] - 0.25 * V[0], Z[1] - 0.8 * V[1]]), rtol=0, atol=1e-12
    )
    after = t - 0.1
    both = flow.step(Z, V, t, after, 0.7)
    assert both.std.shape == (2, 1, 1)
    for i in range(2):
        alone = flow.step(Z[i : i + 1], V[i : i + 1], float(t[i]), float(after[i]), 0.7)
        torch.testing.assert_close(both.mean[i], alone.mean[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(both.std[i].squeeze(), alone.std, rtol=0, atol=1e-12)


def test_a_step_without_noise_is_eulers_and_has_no_spread():
    point = flow.step(Z, V, 0.6, 0.5)
    torch.testing.assert_close(point.mean, Z - 0.1 * V, rtol=0, atol=1e-12)
    assert point.std.item() == 0
    torch.testing.assert_close(point.sample(torch.ones_like(Z)), point.mean)
    t = torch.tensor([0.6, 0.4], dtype=torch.float64)
    assert flow.step(Z, V, t, t - 0.1).std.shape == ()


def test_a_noisy_step_is_the_formula_of_flow_grpo():
    t, dt, a = 0.6, -0.1, 0.7
    sigma2 = a**2 * t / (1 - t)
    noisy = flow.step(Z, V, t, t + dt, a)
    mean = Z * (1 + sigma2 * dt / (2 * t)) + V * (1 + sigma2 * (1 - t) / (2 * t)) * dt
    torch.testing.assert_close(noisy.mean, mean, rtol=0, atol=1e-12)
    assert noisy.std.item() == pytest.approx(math.sqrt(sigma2 * -dt), rel=1e-12)
    noise = torch.full_like(Z, 0.5)
    torch.testing.assert_close(noisy.sample(noise), mean + 0.5 * noisy.std, rtol=0, atol=1e-12)


@pytest.mark.parametrize("after", [0.9, 0.5])
def test_at_the_pole_the_next_time_stands_in_the_denominator(after):
    assert flow.noise_scale(1.0, after, Z, 0.7).item() == pytest.approx(0.7 * math.sqrt(1 / (1 - after)), rel=1e-12)
    assert flow.noise_scale(0.8, after, Z, 0.7).item() == pytest.approx(0.7 * math.sqrt(0.8 / 0.2), rel=1e-12)
    first = flow.step(Z, V, 1.0, after, 0.7)
    dt = after - 1
    sigma2 = 0.49 / (1 - after)
    torch.testing.assert_close(first.mean, Z * (1 + sigma2 * dt / 2) + V * dt, rtol=0, atol=1e-12)
    assert first.std.item() == pytest.approx(math.sqrt(sigma2 * -dt), rel=1e-12)


def test_densities_and_divergences_in_closed_form():
    std = torch.tensor([[[0.5]], [[2.0]]], dtype=torch.float64)
    policy, other = Gaussian(Z, std), Gaussian(Z + 0.3, std)
    log_p = [-0.5 * (0.3 / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi) for s in (0.5, 2.0)]
    assert policy.log_prob(Z + 0.3).tolist() == pytest.approx(log_p, rel=1e-12)
    assert policy.kl(other).tolist() == pytest.approx([0.09 / (2 * 0.25), 0.09 / (2 * 4.0)], rel=1e-12)
    with pytest.raises(ValueError, match="deterministic"):
        Gaussian(Z, torch.tensor([[[0.5]], [[0.0]]])).log_prob(Z)


@pytest.mark.parametrize(("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_is_computed_in_fp32_and_fp64_stays(given, computed):
    z, v = Z.to(given), V.to(given)
    for out in (
        flow.add_noise(z, v, 0.3),
        flow.clean(z, v, 0.3),
        flow.step(z, v, 0.3, 0.2).mean,
        flow.step(z, v, 0.3, 0.2, 0.7).mean,
        Gaussian(Z.to(computed), torch.ones((), dtype=computed)).log_prob(z),
    ):
        assert out.dtype == computed
    exact = 0.7 * z.double() + 0.3 * v.double()
    torch.testing.assert_close(flow.add_noise(z, v, 0.3).double(), exact, rtol=1e-6, atol=1e-6)


def test_shifted_times_in_closed_form():
    assert flow.times(5).tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0], abs=1e-6)
    for shift in (1.0, 3.0, 0.5):
        even = [1, 0.8, 0.6, 0.4, 0.2, 0]
        wanted = [shift * t / (1 + (shift - 1) * t) for t in even]
        assert flow.times(5, shift).tolist() == pytest.approx(wanted, abs=1e-6)


def test_more_noise_in_closed_form():
    """From 0.2 to 0.6 the picture's share falls to one half of 0.8. It is the flow's state if the noise is shared."""
    noise = torch.full_like(Z, 0.5)
    wanted = 0.5 * Z + math.sqrt(0.36 - 0.01) * noise
    torch.testing.assert_close(flow.add_more_noise(Z, noise, 0.2, 0.6), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow.add_more_noise(Z, noise, 0.0, 0.6), flow.add_noise(Z, noise, 0.6))
    torch.testing.assert_close(flow.add_more_noise(Z, noise, 0.3, 0.3), Z)
    t = torch.tensor([0.2, 0.5], dtype=torch.float64)
    both = flow.add_more_noise(Z, noise, t, t + 0.4)
    for i in range(2):
        alone = flow.add_more_noise(Z[i : i + 1], noise[i : i + 1], float(t[i]), float(t[i]) + 0.4)
        torch.testing.assert_close(both[i], alone[0], rtol=0, atol=1e-12)
    assert flow.add_more_noise(Z.bfloat16(), noise.bfloat16(), 0.2, 0.6).dtype == torch.float32

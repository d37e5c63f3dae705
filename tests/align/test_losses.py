"""Losses of the algorithms on rollouts, against closed forms in float64 and finite differences."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from scipy.special import expit

from rewarddance.align.baselines import Baselines, adapted_weight
from rewarddance.align.distill import distill_step
from rewarddance.align.dpo import dpo_loss
from rewarddance.align.forward import noised, stratified_times
from rewarddance.align.nft import chosen, nft_loss, nft_step, positive_share
from rewarddance.align.policy_gradient import Decision, clipped_loss, log_ratio, noise_levels, window_start
from rewarddance.align.rollout_config import DistillConfig, NftConfig, PolicyGradientConfig
from rewarddance.generator import flow
from rewarddance.generator.flow import Gaussian


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch():
    return noised(rand(3, 2, 4, seed=1), rand(3, 2, 4, seed=2), torch.tensor([0.2, 0.5, 0.9]).double(), None)


def test_advantages_become_shares_in_zero_to_one():
    shares = positive_share(torch.tensor([-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0]), 2.0)
    assert shares.tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_nft_loss_is_the_papers_formula(batch, beta):
    v, old, share, clamp = rand(3, 2, 4, seed=3), rand(3, 2, 4, seed=4), torch.tensor([0.0, 0.4, 1.0]), 2.0
    z, x0, t = batch.z.numpy(), batch.x0.numpy(), batch.t.numpy()[:, None, None]
    expected = []
    for i in range(3):
        terms = []
        for velocity in (beta * v + (1 - beta) * old, (1 + beta) * old - beta * v):
            error = (z - t * velocity.numpy() - x0)[i]
            terms.append((error**2).mean() / np.abs(error).mean())
        r = float(share[i])
        expected.append(clamp * (r * terms[0] + (1 - r) * terms[1]) / beta)
    assert nft_loss(v, old, batch, share, beta, clamp).numpy() == pytest.approx(expected, rel=1e-6)


def test_extremes_are_winners_and_losers_in_turn():
    advantages = torch.tensor([[0.1, -2.0, 1.5, 0.4, -0.6], [3.0, 0.0, 1.0, -1.0, 2.0]])
    assert chosen(advantages, 2).tolist() == [[2, 1, 3, 4], [0, 3, 4, 1]]
    assert chosen(advantages, 0).tolist() == chosen(advantages, 3).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_nft_pulls_towards_good_pictures_and_away_from_bad_ones(batch):
    """At v = v_old the gradient along the error of the clean latent has the sign of 1/2 - r, and vanishes at 1/2."""
    v = batch.target + 0.3 * rand(3, 2, 4, seed=3)
    for share, sign in ((1.0, 1), (0.5, 0), (0.0, -1)):
        trained = v.clone().requires_grad_()
        nft_loss(trained, v, batch, torch.full((3,), share), 1.0, 2.0).sum().backward()
        towards = ((trained.grad * (v - batch.target)).flatten(1).sum(1)).numpy()
        if sign:
            assert (np.sign(towards) == sign).all()
        else:
            assert towards == pytest.approx(0, abs=1e-12)


def test_dpo_loss_in_closed_form():
    v, frozen, target = rand(4, 5, seed=1), rand(4, 5, seed=2), rand(4, 5, seed=3)
    error = ((v - target) ** 2).mean(1) - ((frozen - target) ** 2).mean(1)
    expected = -np.log(expit(-0.5 * 3.0 * (error[0::2] - error[1::2]).numpy()))
    assert dpo_loss(v, frozen, target, 3.0).numpy() == pytest.approx(expected)
    assert dpo_loss(frozen, frozen, target, 3.0).numpy() == pytest.approx(math.log(2))


def check_gradient(loss, v, reference=None):
    """d loss / dv by autograd equals central differences of `reference` (the loss itself when None), in float64."""
    trained = v.clone().requires_grad_()
    loss(trained).backward()
    reference = reference or loss
    for i in range(v.numel()):
        up, down = v.clone(), v.clone()
        up.view(-1)[i] += 1e-6
        down.view(-1)[i] -= 1e-6
        slope = float(reference(up) - reference(down)) / 2e-6
        assert float(trained.grad.view(-1)[i]) == pytest.approx(slope, rel=1e-5, abs=1e-8), i


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_gradient_of_nft_agrees_with_finite_differences_of_its_loss_with_frozen_scales(batch, beta):
    v, old, share, clamp = rand(3, 2, 4, seed=3), rand(3, 2, 4, seed=4), torch.tensor([0.0, 0.4, 1.0]).double(), 2.0

    def errors(velocity):
        both = (beta * velocity + (1 - beta) * old, (1 + beta) * old - beta * velocity)
        return [batch.z - batch.times * side - batch.x0 for side in both]

    scales = [e.abs().flatten(1).mean(1) for e in errors(v)]

    def frozen(velocity):
        plus, minus = (e.square().flatten(1).mean(1) / s for e, s in zip(errors(velocity), scales, strict=True))
        return (clamp * (share * plus + (1 - share) * minus) / beta).sum()

    check_gradient(lambda velocity: nft_loss(velocity, old, batch, share, beta, clamp).sum(), v, frozen)
    full = nft_loss(v, old, batch, share, beta, clamp).sum()
    assert float(frozen(v)) == pytest.approx(float(full), rel=1e-12)


def test_the_gradient_of_dpo_agrees_with_finite_differences():
    v, frozen, target = rand(4, 5, seed=1), rand(4, 5, seed=2), rand(4, 5, seed=3)
    check_gradient(lambda velocity: dpo_loss(velocity, frozen, target, 3.0).sum(), v)


class Fixed:
    """A generator whose policies have one given velocity each."""

    def __init__(self, **velocities):
        self.velocities, self.now = velocities, "trained"

    def velocity(self, z, t, condition):
        return self.velocities[self.now]

    @contextmanager
    def policy(self, name):
        self.now = name
        yield
        self.now = "trained"

    def reference(self):
        return self.policy("frozen")


def test_the_pull_of_nft_agrees_with_finite_differences(batch):
    """nft_step with the weight w minus nft_step without it is w mean |v - v_frozen|^2, in value and gradient."""
    v, old, frozen = (rand(3, 2, 4, seed=i) for i in (3, 4, 5))
    advantages = torch.tensor([-1.0, 0.5, 2.0]).double()

    def step(velocity, weight):
        generator = Fixed(trained=velocity, old=old, frozen=frozen)
        return nft_step(generator, batch, advantages, NftConfig(frozen_weight=weight))

    def pull(velocity):
        return step(velocity, 0.7)["loss"] - step(velocity, 0.0)["loss"]

    distance = ((v - frozen) ** 2).mean()
    assert float(pull(v)) == pytest.approx(0.7 * float(distance))
    assert float(step(v, 0.7)["frozen_distance"]) == pytest.approx(float(distance))
    check_gradient(pull, v)


def test_distillation_in_closed_form_and_its_gradient_by_finite_differences(batch):
    v, frozen = rand(3, 2, 4, seed=3), rand(3, 2, 4, seed=5)

    def step(velocity):
        return distill_step(Fixed(trained=velocity, frozen=frozen), batch, DistillConfig(frozen_weight=0.3))

    out, target = step(v), batch.noise - batch.x0
    assert float(out["loss"]) == pytest.approx(float(((v - target) ** 2).mean() + 0.3 * ((v - frozen) ** 2).mean()))
    assert float(out["frozen_distance"]) == pytest.approx(float(((v - frozen) ** 2).mean()))
    check_gradient(lambda velocity: step(velocity)["loss"], v)


def test_clipped_loss_is_ppos_objective():
    ratios, advantages = torch.tensor([0.8, 1.0, 1.2, 0.8, 1.2]), torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    loss, clipped = clipped_loss(ratios.log(), advantages, 0.1)
    assert loss.tolist() == pytest.approx([-0.8, -1.0, -1.1, 0.9, 1.2])
    assert clipped.tolist() == [False, False, True, True, False]


def decision(mean, std, z_next):
    policy = Gaussian(mean, std)
    return Decision(z_next, z_next, 0.6, 0.5, 0.7, mean, policy.log_prob(z_next))


def test_the_ratio_is_the_quotient_of_densities():
    mean, other, z = rand(2, 3, seed=1), rand(2, 3, seed=2), rand(2, 3, seed=3)
    std = torch.full((1, 1), 0.4, dtype=torch.float64)
    ratios = log_ratio(Gaussian(other, std), decision(mean, std, z), guard=False)
    expected = (((z - mean) ** 2 - (z - other) ** 2) / (2 * 0.4**2)).mean(1)
    assert ratios.numpy() == pytest.approx(expected.numpy())
    assert log_ratio(Gaussian(mean, std), decision(mean, std, z), guard=False).tolist() == [0, 0]


def test_the_guarded_ratio_has_mean_zero_and_one_scale_at_every_step():
    """E over z ~ N(mean, s^2) of the normalised log ratio is 0; its deviation does not depend on s (GRPO-Guard)."""
    shift, deviations = torch.full((1, 64), 0.01, dtype=torch.float64), []
    for s in (0.1, 0.8):
        std = torch.full((1, 1), s, dtype=torch.float64)
        mean = torch.zeros(1, 64, dtype=torch.float64)
        z = s * rand(20_000, 64, seed=5)
        ratios = log_ratio(Gaussian(mean + shift, std), decision(mean, std, z), guard=True)
        assert float(ratios.mean()) == pytest.approx(0, abs=4 * float(ratios.std()) / 20_000**0.5)
        deviations.append(float(ratios.std()))
    assert deviations[0] == pytest.approx(deviations[1], rel=0.05)


def test_the_policy_gradient_agrees_with_finite_differences():
    """d/dv of -A rho at rho = 1 is -A d log pi / dv, here through the kernel in float64."""
    z, v, z_next = rand(1, 6, seed=1), rand(1, 6, seed=2), rand(1, 6, seed=3)
    drawn = flow.step(z, v, 0.6, 0.5, 0.7)
    assert drawn.mean.dtype == torch.float64
    recorded = Decision(z, z_next, 0.6, 0.5, 0.7, drawn.mean, drawn.log_prob(z_next))

    def loss(velocity):
        ratios = log_ratio(flow.step(z, velocity, 0.6, 0.5, 0.7), recorded, guard=False)
        return clipped_loss(ratios, torch.tensor([1.7], dtype=torch.float64), 1e9)[0].sum()

    check_gradient(loss, v)


def test_noisy_steps_lie_in_the_window_and_never_in_the_last_step():
    config = PolicyGradientConfig(window=(0.2, 0.7), noisy_steps=2)
    rng = torch.Generator().manual_seed(0)
    starts = {window_start(10, config, rng) for _ in range(200)}
    assert starts == {2, 3, 4, 5}
    assert noise_levels(10, 3, config) == [0, 0, 0, 0.7, 0.7, 0, 0, 0, 0, 0]
    exact = PolicyGradientConfig(window=(0.4, 0.6), noisy_steps=2)
    assert {window_start(10, exact, rng) for _ in range(20)} == {4}
    everywhere = PolicyGradientConfig(window=(0.0, 1.0), noisy_steps=1)
    assert {window_start(4, everywhere, rng) for _ in range(200)} == {0, 1, 2}


def test_times_are_one_in_each_equal_part():
    t = stratified_times(4, (0.02, 0.98), torch.Generator().manual_seed(0))
    parts = (t.sort().values - 0.02) / 0.96 * 4
    assert parts.floor().tolist() == [0, 1, 2, 3]


def test_baselines_are_running_means_of_a_prompt():
    baselines, nan = Baselines.new(3, 0.5), math.nan
    first = torch.tensor([[1.0, 3.0], [nan, nan]])
    advantages = baselines.advantages([0, 2], first, 5.0)
    assert advantages[0].tolist() == pytest.approx([-1, 1], rel=1e-3)  # its own mean, at the first visit
    assert advantages[1].tolist() == [0, 0]
    baselines.note([0, 2], first)
    assert baselines.table[:, 0].tolist() == [2, 0, 0]
    later = torch.tensor([[4.0, 6.0]])
    assert baselines.advantages([0], later, 5.0)[0].tolist() == pytest.approx([2, 4], rel=1e-3)  # deviation 1
    baselines.note([0], later)
    assert baselines.table[0].tolist() == [0.5 * 2 + 0.5 * 5, 2]


def test_the_weight_of_the_kl_follows_its_target():
    assert adapted_weight(0.1, 0.02, 0.02, 96, 960) == pytest.approx(0.1)
    assert adapted_weight(0.1, 0.2, 0.02, 96, 960) == pytest.approx(0.1 * 1.02)  # at most a fifth
    assert adapted_weight(0.1, 0.0, 0.02, 96, 960) == pytest.approx(0.1 * 0.98)

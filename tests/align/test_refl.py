import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from rewarddance.align.config import ReferenceConfig, ReflConfig
from rewarddance.align.references import ReferenceBank
from rewarddance.align.refl import (
    approach,
    gradient_index,
    gradient_steps,
    refl_step,
    reward_loss,
    shifted,
    view_shifts,
)
from rewarddance.core.media import Media
from rewarddance.core.types import Verdict
from rewarddance.generator import flow
from rewarddance.generator.trace import sample_latents

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


class Redness:
    """Better is redder; smooth, so that finite differences apply."""

    def judge(self, comparisons):
        def red(media):
            return 0.0 if media is None else media.frames[:, 0].mean() - media.frames[:, 1].mean()

        return Verdict.from_margin(
            torch.stack([5 * torch.as_tensor(red(c.candidate) - red(c.reference)) for c in comparisons])
        )


@pytest.fixture
def student(generator):
    generator.add_lora(4, 8.0)
    torch.manual_seed(0)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    return generator


def step(student, config, references=(None, None), seed=3):
    rng = torch.Generator().manual_seed(seed)
    return refl_step(student, Redness(), PROMPTS, references, config, "overall", rng)


@pytest.mark.parametrize("kind", ["log_sigmoid", "margin", "reward"])
def test_reward_losses_in_closed_form(kind):
    margin = torch.tensor([-1.0, 2.0])
    p = 1 / (1 + torch.exp(-margin))
    expected = {"log_sigmoid": -torch.log(p), "margin": -margin, "reward": -p}[kind]
    assert torch.allclose(reward_loss(margin, kind), expected)


def test_gradient_falls_in_the_window():
    rng = torch.Generator().manual_seed(0)
    drawn = {gradient_index(ReflConfig(num_steps=10, window=(0.3, 1.0)), rng) for _ in range(300)}
    assert drawn == set(range(3, 10))
    assert gradient_index(ReflConfig(num_steps=1), rng) == 0
    assert gradient_index(ReflConfig(num_steps=10, window=(1.0, 1.0)), rng) == 9
    for wrong in ((0.8, 0.3), (-0.1, 0.5), (0.5, 1.2)):
        with pytest.raises(ValueError, match="shares of the rollout"):
            ReflConfig(window=wrong)


class Linear:
    """Velocity w z; the frozen policy has another w."""

    def __init__(self, w, frozen):
        self.w, self.frozen, self.chosen = w, frozen, w

    def times(self, num_steps):
        return flow.times(num_steps)

    def velocity(self, z, t, condition):
        return self.chosen * z

    @contextmanager
    def reference(self):
        self.chosen = self.frozen
        yield
        self.chosen = self.w


@pytest.mark.parametrize("num_steps", [1, 3])
def test_the_gradient_of_the_kl_takes_states_as_given(num_steps):
    config = ReflConfig(num_steps=5, gradient_steps=num_steps)
    w, frozen = torch.tensor(0.7, requires_grad=True), torch.tensor(0.4)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    _, kl = gradient_steps(Linear(w, frozen), None, start, 1, config)
    (found,) = torch.autograd.grad(kl, w)
    ts, z, expected = flow.times(5).tolist(), start.double(), 0.0
    for now, after in itertools.pairwise(ts[1 : 2 + num_steps]):
        sigma2 = config.kl_noise**2 * now / (1 - now)
        reach = (1 + sigma2 * (1 - now) / (2 * now)) * (after - now)  # of the mean, for one of velocity
        expected += float((reach**2 * z**2 * (0.7 - 0.4) / (sigma2 * (now - after))).mean()) / num_steps
        z = z + 0.7 * z * (after - now)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_views_are_the_picture_and_small_shifts_of_it():
    picture = Media(torch.rand(1, 3, 48, 48))
    shifts = view_shifts([picture], 40, torch.Generator().manual_seed(0))
    assert shifts[0] == (0, 0)
    assert {d for d, _ in shifts} == {r for _, r in shifts} == {-2, -1, 0, 1, 2}
    x, y = picture.frames, shifted(picture, 2, -1).frames
    assert torch.equal(y[:, :, 2:, :-1], x[:, :, :-2, 1:])
    assert torch.equal(y[:, :, 0], y[:, :, 2])  # the edge repeats
    assert shifted(picture, 0, 0) is picture


def test_approach_is_the_beginning_of_sampling(student):
    condition = student.condition(PROMPTS)
    z = student.noise(2, torch.Generator().manual_seed(0))
    state, (now, after) = approach(student, condition, z, 4, 5), student.times(5)[-2:].tolist()
    last = flow.step(state, student.velocity(state, now, condition), now, after).mean
    assert torch.allclose(last, sample_latents(student, condition, z, 5), atol=1e-5)


@pytest.mark.parametrize(("kl_weight", "num_steps", "views"), [(0.0, 1, 1), (50.0, 1, 1), (0.0, 3, 1), (0.0, 1, 3)])
def test_gradient_equals_finite_differences(student, kl_weight, num_steps, views):
    """Along the gradient, with every step differentiated, because the approach is not."""
    student.pipeline.transformer.double()
    student.pipeline.vae.double()
    student.pipeline.text_encoder.double()
    student.pipeline.text_encoder_2.double()
    config = ReflConfig(
        num_steps=num_steps,
        gradient_steps=num_steps,
        window=(0.0, 0.01),
        kl_weight=kl_weight,
        views=views,
        loss="margin",
    )
    parameters = [p for p in student.transformer.parameters() if p.requires_grad]
    step(student, config)["loss"].backward()
    gradients = [p.grad.clone() for p in parameters]
    norm = torch.sqrt(sum(g.square().sum() for g in gradients))
    scale, values = 0.02, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p += sign * scale * g / norm
            values.append(step(student, config)["loss"])
            for p, g in zip(parameters, gradients, strict=True):
                p -= sign * scale * g / norm
    assert ((values[0] - values[1]) / (2 * scale)).item() == pytest.approx(norm.item(), rel=0.02)


def test_only_the_adapter_gets_a_gradient(student):
    step(student, ReflConfig(num_steps=3))["loss"].backward()
    for name, p in student.transformer.named_parameters():
        assert (p.grad is not None) == ("lora" in name), name


def test_steps_raise_the_reward(student):
    """Three plain gradient steps on one batch, judged without the sampling noise of training."""
    config = ReflConfig(num_steps=2, window=(1.0, 1.0), kl_weight=0.0)
    optimizer = torch.optim.Adam([p for p in student.transformer.parameters() if p.requires_grad], lr=5e-3)
    rewards = []
    for _ in range(6):
        found = step(student, config)
        rewards.append(found["reward"].item())
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert rewards[-1] > rewards[0] + 0.01
    assert step(student, config)["kl"] > 0


class Strict(Redness):
    """`Redness` that is 2 lower for the candidate, in both orders."""

    def judge(self, comparisons):
        margin = super().judge(comparisons).margin
        return replace(Verdict.from_margin(margin - 2), swapped_margin=-margin - 2)


def test_the_win_rate_of_a_conservative_judge_takes_both_orders(student):
    config, rng = ReflConfig(num_steps=3), [torch.Generator().manual_seed(3) for _ in range(2)]
    references = [Media(torch.full((1, 3, 48, 48), 0.5))] * 2
    plain, strict = (
        refl_step(student, judge, PROMPTS, references, config, "overall", r)
        for judge, r in zip((Redness(), Strict()), rng, strict=True)
    )
    assert strict["margin"].item() == pytest.approx(plain["margin"].item() - 2, abs=1e-5)
    assert strict["win_rate"].item() == pytest.approx(plain["reward"].item(), abs=1e-6)
    assert torch.equal(plain["win_rate"], plain["reward"])


def bank(**changes):
    return ReferenceBank(ReferenceConfig(**changes), tuple(PROMPTS), 2, "overall", 0)


def test_best_of_n_references_beat_random_ones(generator):
    judge = Redness()

    def redness(kind):
        chosen = bank(kind=kind, num_candidates=4)
        chosen.draw(generator, judge, 0)
        return sum((m.frames[:, 0].mean() - m.frames[:, 1].mean()).item() for m in chosen.of(PROMPTS))

    assert redness("best_of_n") > redness("random")
    empty = bank(kind="none")
    empty.draw(generator, judge, 0)
    assert empty.of(PROMPTS) == [None, None]


def test_references_move_when_their_policy_says_so(generator):
    never, steps, rate = bank(refresh="never"), bank(refresh="steps", every=5), bank(refresh="win_rate", above=0.7)
    for b in (never, steps, rate):
        assert b.is_due(0)
        b.drawn_at = 0
        assert not b.is_due(1)
    assert not never.is_due(500)
    assert steps.is_due(5)
    for _ in range(40):
        rate.note(0.95)
    assert rate.is_due(41)


def test_copies_average_further_gradient_steps_from_the_clean_picture_noised_again(student):
    """DRaFT-LV by hand: the same draws, each copy's loss alone, their mean."""
    config = ReflConfig(num_steps=4, window=(0.5, 0.5), kl_weight=0.0, loss="margin")
    out = step(student, config.model_copy(update={"copies": 2}))
    assert int(out["num_judged"]) == int(out["num_answered"]) == 3 * len(PROMPTS)

    rng = torch.Generator().manual_seed(3)
    condition, index = student.condition(PROMPTS), gradient_index(config, rng)
    z = approach(student, condition, student.noise(2, rng), index, 4)
    margins = []
    for copy in range(3):
        latent, _ = gradient_steps(student, condition, z, index, config)
        if copy == 0:
            first = latent.detach()
        pictures = student.decode(latent)
        margins += [5 * (m.frames[:, 0].mean() - m.frames[:, 1].mean()) for m in pictures]
        z = flow.add_noise(first, student.noise(2, rng), student.times(4)[index]) if copy < 2 else z
    assert float(out["loss"].detach()) == pytest.approx(-float(torch.stack(margins).mean().detach()), abs=1e-6)

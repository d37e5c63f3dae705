"""The trace port: one iterator that sampling, recording, previews and searches step through."""

import pytest
import torch

from rewarddance.generator import flow
from rewarddance.generator.trace import draw, rollout, sample_latents, trace


class Toy:
    """Velocity 0.5 z + t; counts its calls."""

    def __init__(self):
        self.calls = 0

    def times(self, num_steps):
        return flow.times(num_steps)

    def velocity(self, z, t, condition):
        self.calls += 1
        return 0.5 * z + t


def start(seed=0):
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))


def steps(noise=0.0, begin=0, num_steps=4, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return list(trace(Toy(), None, start(), flow.times(num_steps), noise=noise, rng=rng, start=begin))


def test_without_noise_every_step_is_eulers_and_predicts_the_clean_latent():
    z = start()
    for i, step in enumerate(steps()):
        now, after = 1 - i / 4, 1 - (i + 1) / 4
        assert (step.index, step.now, step.after) == (i, now, after)
        torch.testing.assert_close(step.z, z)
        torch.testing.assert_close(step.clean, z - now * (0.5 * z + now))
        z = z + (0.5 * z + now) * (after - now)
        torch.testing.assert_close(step.next, z)


def test_a_step_costs_one_evaluation_of_the_model():
    model = Toy()
    for _ in trace(model, None, start(), flow.times(5)):
        pass
    assert model.calls == 5


def test_the_rollout_goes_on_from_the_state_that_the_consumer_puts_in_place():
    put = torch.full((2, 3), 7.0)
    z, seen = start(), []
    for step in trace(Toy(), None, z, flow.times(4)):
        seen.append(step.z)
        if step.index == 1:
            step.next = put
    torch.testing.assert_close(seen[2], put)
    expected = put + (0.5 * put + 0.5) * -0.25
    torch.testing.assert_close(seen[3], expected)


def test_one_level_makes_every_step_noisy_but_the_last():
    noisy = [bool((s.policy.std > 0).all()) for s in steps(noise=0.7)]
    assert noisy == [True, True, True, False]


def test_levels_may_differ_by_step():
    found = steps(noise=[0.0, 0.7, 0.0, 0.3])
    assert [bool((s.policy.std > 0).all()) for s in found] == [False, True, False, True]
    torch.testing.assert_close(found[0].next, found[0].policy.mean)
    expected = flow.step(found[1].z, found[1].v, 0.75, 0.5, 0.7)
    torch.testing.assert_close(found[1].policy.std, expected.std)
    with pytest.raises(ValueError, match="3 noise levels for 4 steps"):
        steps(noise=[0.1, 0.2, 0.3])


def test_the_noise_is_the_callers_generator_and_nothing_else():
    a, b, other = steps(0.7, seed=1), steps(0.7, seed=1), steps(0.7, seed=2)
    assert torch.equal(a[-1].next, b[-1].next)
    assert not torch.equal(a[-1].next, other[-1].next)
    draws = torch.Generator().manual_seed(1)
    for step in a[:-1]:
        torch.testing.assert_close(step.next, step.policy.sample(torch.randn(2, 3, generator=draws)))


def test_it_may_begin_in_the_middle():
    (last,) = steps(begin=3)
    assert (last.index, last.now, last.after) == (3, 0.25, 0.0)
    assert last.z.equal(start())


def test_gradients_are_the_callers_choice():
    z = start().requires_grad_()
    assert [s.next.requires_grad for s in trace(Toy(), None, z, flow.times(2))] == [True, True]
    with torch.no_grad():
        assert not any(s.next.requires_grad for s in trace(Toy(), None, z, flow.times(2)))


def test_a_recorded_rollout_holds_its_states_and_log_probabilities():
    rng = torch.Generator().manual_seed(1)
    found, expected = rollout(Toy(), None, start(), 4, 0.7, rng), steps(0.7)
    torch.testing.assert_close(found.states, torch.stack([start(), *(s.next for s in expected)]))
    for row, step in zip(found.log_probs, expected[:-1], strict=True):
        normal = torch.distributions.Normal(step.policy.mean, step.policy.std)
        torch.testing.assert_close(row, normal.log_prob(step.next).mean(1))
    assert rollout(Toy(), None, start(), 4).log_probs is None


PROMPTS = ["a red circle", "two blue squares", "a green star"]


def test_pictures_come_in_order_and_do_not_depend_on_the_batch(generator):
    noise = generator.noise(3, torch.Generator().manual_seed(0))
    one, all_at_once = ([m.frames for m in draw(generator, PROMPTS, noise, 3, batch=b)] for b in (1, 8))
    torch.testing.assert_close(torch.cat(one), torch.cat(all_at_once), atol=1e-4, rtol=0)
    z = sample_latents(generator, generator.condition(PROMPTS[1:2]), noise[1:2], 3)
    torch.testing.assert_close(one[1], generator.decode(z)[0].frames, atol=1e-4, rtol=0)


def test_a_preview_stands_after_its_picture_and_the_last_one_is_the_picture(generator):
    noise = generator.noise(2, torch.Generator().manual_seed(0))
    plain = [m.frames for m in draw(generator, PROMPTS[:2], noise, 4)]
    last = [m.frames for m in draw(generator, PROMPTS[:2], noise, 4, preview=3)]
    for picture, final, preview in zip(plain, last[::2], last[1::2], strict=True):
        torch.testing.assert_close(final, picture)
        torch.testing.assert_close(preview, picture)
    early = list(draw(generator, PROMPTS[:1], noise[:1], 4, preview=0))
    v = generator.velocity(noise[:1], 1.0, generator.condition(PROMPTS[:1]))
    predicted = generator.decode(flow.clean(noise[:1], v, 1.0))[0].frames
    torch.testing.assert_close(early[1].frames, predicted, atol=1e-5, rtol=0)

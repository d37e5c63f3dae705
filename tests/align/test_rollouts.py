"""Rollouts and their scores: the same in every batch, and a judge's refusals are never numbers."""

import math

import pytest
import torch

from rewarddance.align.algorithms import Dpo, Grpo
from rewarddance.align.config import AlignConfig
from rewarddance.align.policy_gradient import policy_step
from rewarddance.align.rollout_config import PolicyGradientConfig, RolloutConfig
from rewarddance.align.rollouts import roll_out, streams_of
from rewarddance.align.scoring import group_advantages, score_groups
from rewarddance.core.media import Media
from rewarddance.core.types import Verdict
from rewarddance.generator import flow

PROMPTS = ["flat drawing of a red circle on white", "striped drawing of two blue squares on black"]


class Brightness:
    """Brighter is better. Refuses pictures that are darker than `least`. Counts its calls."""

    def __init__(self, least=-1.0):
        self.least, self.calls = least, 0

    def judge(self, comparisons):
        self.calls += 1
        means = [[float(m.frames.mean()) if m else 0.0 for m in (c.candidate, c.reference)] for c in comparisons]
        verdict = Verdict.from_margin(torch.tensor([a - b for a, b in means]))
        return verdict.refuse({i: "dark" for i, (a, _) in enumerate(means) if a < self.least})


def flat(*values):
    return [Media(torch.full((1, 3, 4, 4), v)) for v in values]


def test_scores_of_a_group_by_every_way():
    groups = [flat(0.1, 0.5, 0.9), flat(0.3, 0.3, 0.6)]
    judge = Brightness()
    robin = score_groups(judge, PROMPTS, groups, "round_robin", "overall")
    assert robin.values[0].tolist() == pytest.approx([-0.6, 0, 0.6], abs=1e-6)
    assert judge.calls == 1
    assert robin.num_asked == 6
    wins = score_groups(judge, PROMPTS, groups, "win_rate", "overall").values
    p = 1 / (1 + math.exp(0.3))
    assert wins[1].tolist() == pytest.approx([(0.5 + p) / 2, (0.5 + p) / 2, 1 - p], abs=1e-6)
    assert score_groups(judge, PROMPTS, groups, "pointwise", "overall").values[1].tolist() == pytest.approx(
        [0.3, 0.3, 0.6]
    )
    against = score_groups(judge, PROMPTS, groups, "references", "overall", flat(0.2, 0.5)).values
    assert against.flatten().tolist() == pytest.approx([-0.1, 0.3, 0.7, -0.2, -0.2, 0.1], abs=1e-6)


def test_a_refused_picture_has_no_score_and_no_advantage():
    scores = score_groups(Brightness(0.2), PROMPTS[:1], [flat(0.1, 0.5, 0.9)], "pointwise", "overall")
    assert math.isnan(scores.values[0, 0])
    assert scores.num_refused == 1
    advantages, kept = group_advantages(scores.values, 1e-3, 5.0)
    assert advantages[0].tolist() == pytest.approx([0, -1, 1], rel=1e-2)
    assert kept.tolist() == [True]


def test_groups_without_spread_are_dropped_and_large_advantages_clipped():
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 8.0], [math.nan, math.nan, math.nan, 2.0]])
    advantages, kept = group_advantages(scores, 1e-3, 1.5)
    assert kept.tolist() == [False, True, False]
    assert advantages[1].tolist() == pytest.approx([-2 / 12**0.5] * 3 + [1.5], rel=1e-3)
    assert advantages[0].tolist() == advantages[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("levels", [None, [0.0, 0.7, 0.7, 0.0]])
def test_a_group_does_not_depend_on_its_neighbours(generator, levels):
    def drawn(places):
        rngs = streams_of(3, "rollout", 5, places)
        return roll_out(generator, [PROMPTS[p] for p in places], places, 2, 4, rngs, levels)

    both, alone = drawn([0, 1]), drawn([1])
    assert torch.allclose(both.latents[2:], alone.latents, atol=1e-5)
    assert len(both.pictures) == 2
    assert len(both.decisions) == (2 if levels else 0)


def test_the_first_ratio_is_exactly_one_and_replay_gives_the_recorded_log_probability(generator):
    generator.add_lora(2, 4.0)
    rngs = streams_of(0, "rollout", 0, [0, 1])
    rollouts = roll_out(generator, PROMPTS, [0, 1], 3, 4, rngs, [0.0, 0.7, 0.7, 0.0])
    config = PolicyGradientConfig()
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0, 2.0, -2.0])
    out = policy_step(generator, rollouts.condition, rollouts.decisions, advantages, config, 0.0)
    assert float(out["ratio_deviation"]) == 0
    assert float(out["clipped"]) == 0
    assert float(out["loss"].detach()) == pytest.approx(-float(advantages.mean()), abs=1e-6)
    for d in rollouts.decisions:
        policy = flow.step(d.z, generator.velocity(d.z, d.now, rollouts.condition), d.now, d.after, d.noise)
        assert torch.equal(policy.log_prob(d.next), d.log_prob)


def test_a_shared_start_gives_a_group_one_noise_and_other_endings(generator):
    levels, rngs = [0.0, 0.7, 0.0, 0.0], streams_of(0, "rollout", 0, [0])
    shared = roll_out(generator, PROMPTS[:1], [0], 3, 4, rngs, levels, shared_start=True)
    (decision,) = shared.decisions
    assert torch.equal(decision.z[0], decision.z[1])
    assert not torch.equal(shared.latents[0], shared.latents[1])


def config_of(algorithm, **changes):
    return AlignConfig(algorithm=algorithm, batch_size=6, rollout=RolloutConfig(group_size=3, num_steps=4), **changes)


def test_dpo_pairs_share_noise_and_time_and_winners_come_first(generator):
    generator.add_lora(2, 4.0)
    algorithm = Dpo(config_of("dpo"), generator, 4)
    rollouts = algorithm.draw(PROMPTS, [0, 1], 0)
    seen = {}

    def dpo_step(generator, batch, config):
        seen["batch"] = batch
        return {"loss": torch.zeros(())}

    import rewarddance.align.dpo as module

    original, module.dpo_step = module.dpo_step, dpo_step
    try:
        algorithm.loss(rollouts, torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 0.0]]), 0, 0)
    finally:
        module.dpo_step = original
    batch, half = seen["batch"], len(seen["batch"].z) // 2
    assert torch.equal(batch.t[:half], batch.t[half:])
    assert torch.equal(batch.noise[:half], batch.noise[half:])
    draws = algorithm.config.dpo.draws
    assert torch.equal(batch.x0[:half], rollouts.latents[[1, 3] * draws])
    assert torch.equal(batch.x0[half:], rollouts.latents[[2, 4] * draws])


def test_grpo_uses_one_window_in_every_process(generator):
    generator.add_lora(2, 4.0)
    algorithm = Grpo(config_of("grpo"), generator, 4)
    first, second = algorithm.draw(PROMPTS[:1], [0], 7), algorithm.draw(PROMPTS[1:], [1], 7)
    assert [d.now for d in first.decisions] == [d.now for d in second.decisions]


def test_the_batch_must_hold_whole_groups():
    with pytest.raises(ValueError, match=r"batch_size 7: not a multiple of rollout.group_size \(3\)"):
        AlignConfig(algorithm="nft", batch_size=7, rollout=RolloutConfig(group_size=3))

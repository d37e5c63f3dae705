"""Rollouts and their scores: the same in every batch, and a judge's refusals are never numbers."""

import math

import pytest
import torch

from rewarddance.align.algorithms import ALGORITHMS, Distill, Dpo, Grpo, Nft
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
    assert scores.refused == ("dark",)
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


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "nft", "distill", "dpo"])
def test_a_group_that_does_not_count_changes_nothing(algorithm, generator):
    """Loss, metrics and gradients, the KL's included, are those of the other group alone."""
    generator.add_lora(2, 4.0)
    parameters = [p for m in generator.trainable().values() for p in m.parameters() if p.requires_grad]
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    settings = {"window": (0.0, 0.75), "noisy_steps": 2, "kl_weight": 3.0}
    config = config_of(algorithm, grpo=settings, ppo=settings)
    advantages, outs = torch.tensor([[0.0, 0.0, 0.0], [3.0, -3.0, 0.5]]), []
    made = ALGORITHMS[algorithm](config, generator, 4)
    for places, counts in (([0, 1], torch.tensor([False, True])), ([1], None)):
        rollouts = made.draw([PROMPTS[p] for p in places], places, 0)
        out = made.loss(rollouts, advantages[places], 0, 0, counts)
        for p in parameters:
            p.grad = None
        out["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        outs.append(({k: float(v.detach()) for k, v in out.items()}, gradient))
    (both, gradient), (alone, expected) = outs
    assert both == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert float(expected.norm()) > 0
    assert float((gradient - expected).norm()) < 1e-3 * float(expected.norm())


def test_a_shared_start_gives_a_group_one_noise_and_other_endings(generator):
    levels, rngs = [0.0, 0.7, 0.0, 0.0], streams_of(0, "rollout", 0, [0])
    shared = roll_out(generator, PROMPTS[:1], [0], 3, 4, rngs, levels, shared_start=True)
    (decision,) = shared.decisions
    assert torch.equal(decision.z[0], decision.z[1])
    assert not torch.equal(shared.latents[0], shared.latents[1])


def config_of(algorithm, **changes):
    return AlignConfig(
        algorithm=algorithm,
        batch_size=6,
        rollout=RolloutConfig(group_size=3, num_steps=4, score="pointwise"),
        **{"grpo": {"window": (0.0, 0.75)}} | changes,
    )


def test_dpo_pairs_share_noise_and_time_and_keep_their_own_prompts(generator, monkeypatch):
    generator.add_lora(2, 4.0)
    algorithm = Dpo(config_of("dpo"), generator, 4)
    rollouts = algorithm.draw(PROMPTS, [0, 1], 0)
    seen = []
    monkeypatch.setattr("rewarddance.align.dpo.dpo_step", lambda generator, batch, config: seen.append(batch) or {})
    algorithm.loss(rollouts, torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 0.0]]), 0, 0)
    (batch,), draws = seen, algorithm.config.dpo.draws
    assert torch.equal(batch.t[0::2], batch.t[1::2])
    assert torch.equal(batch.noise[0::2], batch.noise[1::2])
    assert torch.equal(batch.x0, rollouts.latents[[1, 2, 3, 4] * draws])  # winner, loser of each group
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]] * draws
    assert torch.equal(batch.condition.embeds, generator.condition(prompts).embeds)


def test_every_copy_of_every_picture_keeps_its_own_prompt(generator, monkeypatch):
    generator.add_lora(2, 4.0)
    algorithm = Nft(config_of("nft", nft={"draws": 3}), generator, 4)
    rollouts = algorithm.draw(PROMPTS, [0, 1], 0)
    seen = []
    monkeypatch.setattr("rewarddance.align.nft.nft_step", lambda generator, batch, *rest: seen.append(batch) or {})
    algorithm.loss(rollouts, torch.ones(2, 3), 0, 0)
    (batch,) = seen
    assert torch.equal(batch.x0, rollouts.latents.repeat(3, 1, 1, 1))
    prompts = [p for p in PROMPTS for _ in range(3)] * 3
    assert torch.equal(batch.condition.embeds, generator.condition(prompts).embeds)
    times, noise = batch.t.view(3, 2, 3), batch.noise.view(3, 6, -1)
    assert torch.equal(times[0], times[1])  # the first two copies are a pair
    assert torch.equal(noise[0], -noise[1])
    assert not torch.equal(noise[2].abs(), noise[0].abs())
    for k in range(2):  # the times of a group's pairs lie one in each equal part
        own = times[::2, k].flatten().sort().values
        assert ((own - 0.02) / 0.96 * 6).floor().tolist() == [0, 1, 2, 3, 4, 5]


def test_extremes_share_noise_and_time_and_lie_in_the_range(generator, monkeypatch):
    generator.add_lora(2, 4.0)
    rollout = RolloutConfig(group_size=4, num_steps=2, times=(0.6, 0.9))
    config = AlignConfig(algorithm="nft", batch_size=8, rollout=rollout, nft={"draws": 2, "extremes": 1})
    algorithm = Nft(config, generator, 4)
    rollouts = algorithm.draw(PROMPTS, [0, 1], 0)
    seen = []
    monkeypatch.setattr("rewarddance.align.nft.nft_step", lambda generator, *rest: seen.append(rest) or {})
    algorithm.loss(rollouts, torch.tensor([[0.0, 2.0, -1.0, 0.5], [3.0, -3.0, 0.0, 1.0]]), 0, 0)
    ((batch, advantages, _),) = seen
    assert advantages.tolist() == [2, -1, 3, -3] * 2
    assert torch.equal(batch.x0, rollouts.latents[[1, 2, 4, 5] * 2])
    assert torch.equal(batch.t[0::2], batch.t[1::2])
    assert torch.equal(batch.noise[0::2], batch.noise[1::2])
    assert torch.equal(batch.noise[:4], -batch.noise[4:])
    assert 0.6 <= float(batch.t.min()) <= float(batch.t.max()) <= 0.9


@pytest.mark.parametrize("algorithm", [Nft, Distill, Dpo])
def test_regression_on_velocities_runs_without_guidance(generator, algorithm):
    generator.add_lora(2, 4.0)
    made, losses = algorithm(config_of(algorithm.__name__.lower()), generator, 4), []
    for guidance in (1.0, 4.5):
        generator.guidance = 1.0
        rollouts = made.draw(PROMPTS, [0, 1], 0)  # the same pictures
        generator.guidance = guidance
        out = made.loss(rollouts, torch.tensor([[0.0, 2.0, -1.0], [3.0, -3.0, 0.0]]), 0, 0)
        losses.append(float(out["loss"].detach()))
        assert generator.guidance == guidance
    assert losses[0] == losses[1]


def test_the_best_picture_is_chosen_before_clipping(generator):
    generator.add_lora(2, 4.0)
    algorithm = Distill(config_of("distill"), generator, 4)
    algorithm.config = algorithm.config.model_copy(
        update={"rollout": algorithm.config.rollout.model_copy(update={"clip_advantage": 0.1})}
    )
    advantages, _ = algorithm.advantages([0], torch.tensor([[1.0, 2.0, 3.0]]))
    assert advantages.argmax(1).tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "rollout.score round_robin: compares the pictures of one group"),
        ({"algorithm": "grpo", "grpo": {"window": (0.0, 0.25)}}, "grpo.noisy_steps 2: the window has room for 1"),
        ({"algorithm": "ppo", "ppo": {"kl_target": 0.1, "kl_horizon": 3}}, "kl_horizon of batch_size or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    score = "pointwise" if "ppo" in changes else "round_robin"  # the case without `ppo` is about the score
    ppo = {"noisy_steps": 2, "window": (0.0, 1.0)} | changes.get("ppo", {})
    rollout = RolloutConfig(group_size=3, num_steps=4, score=score)
    settings = {"batch_size": 6, "rollout": rollout} | changes | {"ppo": ppo}
    with pytest.raises(ValueError, match=message):
        AlignConfig(**settings)


def test_grpo_uses_one_window_in_every_process(generator):
    generator.add_lora(2, 4.0)
    algorithm = Grpo(config_of("grpo"), generator, 4)
    first, second = algorithm.draw(PROMPTS[:1], [0], 7), algorithm.draw(PROMPTS[1:], [1], 7)
    assert [d.now for d in first.decisions] == [d.now for d in second.decisions]


@pytest.mark.parametrize(("kind", "distance"), [(Nft, "frozen_distance"), (Distill, "frozen_distance"), (Grpo, "kl")])
def test_the_factor_of_the_pull_multiplies_its_share_of_the_loss(kind, distance, generator):
    torch.manual_seed(0)
    generator.add_lora(2, 4.0)
    for name, p in generator.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05)
    config = config_of(kind.__name__.lower())
    config = config.with_pull(1 / config.pull)
    algorithm = kind(config, generator, 4)
    rollouts = algorithm.draw(PROMPTS, [0, 1], 0)
    advantages = torch.tensor([[1.0, 0.0, -1.0]] * 2)
    plain = algorithm.loss(rollouts, advantages, 0, 0)
    algorithm.pull_factor = 1001.0
    pulled = algorithm.loss(rollouts, advantages, 0, 0)
    assert plain[distance] > 0
    difference = (pulled["loss"] - plain["loss"]).item()
    assert difference == pytest.approx(1000 * plain[distance].item(), rel=1e-3)


def test_the_batch_must_hold_whole_groups():
    with pytest.raises(ValueError, match=r"batch_size 7: not a multiple of rollout.group_size \(3\)"):
        AlignConfig(algorithm="nft", batch_size=7, rollout=RolloutConfig(group_size=3))

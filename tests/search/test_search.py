"""What all searches promise: counts, independence of company and batch, refusals."""

import math

import pytest
import torch
from tiny_wan import RedClips, tiny_wan
from toy_flow import Levels, Toy, level

from rewarddance.core.errors import ConfigError
from rewarddance.core.media import Media
from rewarddance.core.task import Prompt
from rewarddance.core.types import Comparison
from rewarddance.generator import flow
from rewarddance.generator.trace import draw
from rewarddance.search.anchors import verifier_of
from rewarddance.search.best_of_n import best_of_n
from rewarddance.search.config import (
    BestOfNConfig,
    EvolutionConfig,
    FkConfig,
    PathsConfig,
    VerifierConfig,
    ZeroOrderConfig,
)
from rewarddance.search.methods import run_search
from rewarddance.search.paths import search_over_paths
from rewarddance.search.run import rngs_of
from rewarddance.search.verifier import Anchored, Pointwise, RoundRobin, answers_alone

PROMPTS = ["a red circle", "two blue squares on black", "a dog"]
SETTINGS = [BestOfNConfig(), PathsConfig(start=0.5, up=0.3, down=0.6), ZeroOrderConfig(), FkConfig(), EvolutionConfig()]
KINDS = [s.kind for s in SETTINGS]


def final_latents(prompt, num, num_steps, seed=0):
    """Plain Euler sampling from the noises that a search draws first."""
    toy = Toy()
    z = toy.noise(num, rngs_of(seed, "search", [prompt])[0])
    ts = flow.times(num_steps).tolist()
    for now, after in zip(ts, ts[1:], strict=False):
        z = z + (after - now) * toy.velocity(z, now, toy.condition([prompt]))
    return z


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_counts_are_those_that_were_measured_and_stay_in_the_budget(settings):
    toy, judge = Toy(), Levels()
    results = run_search(toy, Pointwise(judge), PROMPTS, nfe=100, num_steps=5, settings=settings)
    assert [r.prompt for r in results] == PROMPTS
    decodes = {"best_of_n": 20, "zero_order": 20, "evolution": 20, "fk": 20 * (len(FkConfig().judged_steps(5)) + 1)}
    for result in results:
        assert result.nfe * len(PROMPTS) == sum(toy.rows)
        assert result.judge_calls * len(PROMPTS) == sum(judge.calls)
        assert result.refused == 0
        assert result.score == pytest.approx(level(result.picture).item(), abs=1e-5)
        torch.testing.assert_close(result.picture.frames[0], result.latent.sigmoid())
        if settings.kind == "paths":  # 0.5 in 3 steps (0.8, 0.6, 0.5); rounds 0.8 to 0.2 in 3 and 0.5 to 0 in 3
            branches = (100 - 2 * 3) // (2 * (3 + 3))
            assert result.nfe == 2 * 3 + 2 * branches * 6
            assert result.decodes == result.judge_calls == 2 * 2 * branches
        else:
            assert result.nfe == 100
            assert result.decodes == result.judge_calls == decodes[settings.kind]


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_guidance_counts_twice(settings):
    toy = Toy(guidance=4.5)
    result = run_search(toy, Pointwise(Levels()), PROMPTS[:1], nfe=200, num_steps=5, settings=settings)[0]
    alone = run_search(Toy(), Pointwise(Levels()), PROMPTS[:1], nfe=100, num_steps=5, settings=settings)[0]
    assert result.nfe == 2 * sum(toy.rows) == 2 * alone.nfe
    torch.testing.assert_close(result.latent, alone.latent)


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_a_result_depends_neither_on_the_other_prompts_nor_on_the_batch(settings):
    how = {"nfe": 100, "num_steps": 5, "settings": settings, "seed": 3}
    together = run_search(Toy(), Pointwise(Levels()), PROMPTS, batch=7, **how)
    alone = run_search(Toy(), Pointwise(Levels()), PROMPTS[1:2], batch=128, **how)
    torch.testing.assert_close(together[1].latent, alone[0].latent)
    twice = run_search(Toy(), Pointwise(Levels()), [PROMPTS[1]] * 2, **how)
    torch.testing.assert_close(twice[0].latent, alone[0].latent)
    assert not torch.allclose(twice[1].latent, alone[0].latent)


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_all_prompts_share_every_pass(settings):
    toy = Toy()
    run_search(toy, Pointwise(Levels()), PROMPTS * 4, nfe=100, num_steps=5, settings=settings, batch=10**6)
    alone = Toy()
    run_search(alone, Pointwise(Levels()), PROMPTS[:1], nfe=100, num_steps=5, settings=settings)
    assert toy.rows == [12 * n for n in alone.rows]


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
@pytest.mark.parametrize("ask", [Pointwise, RoundRobin])
def test_refused_judgements_never_win(settings, ask):
    judge = Levels(most=0.15)
    for result in run_search(Toy(), ask(judge), PROMPTS, nfe=200, num_steps=5, settings=settings):
        assert result.refused > 0
        assert level(result.picture) <= 0.15
        assert math.isfinite(result.score)


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_where_everything_is_refused_the_first_candidate_has_no_score(settings):
    judge = Levels(most=-math.inf)
    for result in run_search(Toy(), Pointwise(judge), PROMPTS, nfe=100, num_steps=5, settings=settings):
        assert math.isnan(result.score)
        assert result.refused == result.judge_calls


@pytest.mark.parametrize("settings", SETTINGS, ids=KINDS)
def test_a_round_robin_finds_what_a_pointwise_verifier_finds(settings):
    """The toy judge is transitive, so the mean margin against a group is the score minus a constant of the group."""
    settings = settings.model_copy(update={"scale": 0.0}) if settings.kind == "fk" else settings
    one, other = (run_search(Toy(), v(Levels()), PROMPTS, nfe=100, num_steps=5, settings=settings)
                  for v in (Pointwise, RoundRobin))  # fmt: skip
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.latent, b.latent)


def test_too_small_a_budget_names_the_smallest():
    with pytest.raises(ConfigError, match="9 NFE are too few; these settings need 10 for"):
        best_of_n(Toy(), Pointwise(Levels()), PROMPTS, nfe=9, num_steps=10)
    with pytest.raises(ConfigError, match="these settings need 158 for"):  # 2 x 9, and 2 x 2 x (9 + 9 + 9 + 8)
        search_over_paths(Toy(), Pointwise(Levels()), PROMPTS, nfe=80, num_steps=10, settings=PathsConfig())


def test_best_of_n_keeps_the_largest_of_its_samples():
    for prompt, result in zip(
        PROMPTS, best_of_n(Toy(), Pointwise(Levels()), PROMPTS, nfe=40, num_steps=5), strict=True
    ):
        latents = final_latents(prompt, 8, 5)
        torch.testing.assert_close(result.latent, max(latents, key=lambda x: x.mean().item()))


# verifiers


def test_anchors_are_drawn_first_and_count():
    toy, judge = Toy(), Levels()
    settings = VerifierConfig(ask="anchor", num_anchors=2)
    verifier = verifier_of(judge, toy, PROMPTS, num_steps=5, seed=1, settings=settings)
    assert isinstance(verifier, Anchored)
    assert sum(toy.rows) == len(PROMPTS) * verifier.nfe == len(PROMPTS) * 10
    results = best_of_n(toy, verifier, PROMPTS, nfe=30, num_steps=5)
    assert [(r.nfe, r.decodes, r.judge_calls) for r in results] == [(30, 4 + 2, 4 * 2)] * 3
    assert sum(toy.rows) == 30 * len(PROMPTS)
    for result, anchors in zip(results, verifier.anchors, strict=True):
        against = level(result.picture) - torch.stack([level(a) for a in anchors]).mean()
        assert result.score == pytest.approx(against.item(), abs=1e-5)
    again = verifier_of(judge, toy, PROMPTS[1:2], num_steps=5, seed=1, settings=settings)
    torch.testing.assert_close(again.anchors[0][1].frames, verifier.anchors[1][1].frames)


@pytest.mark.parametrize("ask", ["anchor", "round_robin"])
def test_every_verifier_shows_the_judge_the_picture_of_the_prompt(ask):
    generator, judge = tiny_wan(from_picture=True), RedClips()
    pictures = [Media(torch.full((1, 3, 48, 48), value)) for value in (0.25, 0.75)]
    prompts = [Prompt("a red circle moving left, flat style, white background", condition=p) for p in pictures]
    settings = VerifierConfig(ask=ask)
    verifier = verifier_of(judge, generator, prompts, num_steps=2, seed=0, settings=settings)
    best_of_n(generator, verifier, prompts, nfe=12, num_steps=2)
    assert {id(c.condition) for c in judge.asked} == set(map(id, pictures))


def test_a_judge_is_asked_what_it_answers():
    class Pairs(Levels):
        criterion = "overall"

        def problem(self, comparison):
            return "it compares" if comparison.reference is None else None

    how = {"num_steps": 2, "seed": 0}
    assert answers_alone(Levels())
    assert not answers_alone(Pairs())
    assert isinstance(verifier_of(Levels(), Toy(), PROMPTS, **how), Pointwise)
    assert isinstance(verifier_of(Pairs(), Toy(), PROMPTS, **how), Anchored)
    ask = VerifierConfig(ask="round_robin")
    assert isinstance(verifier_of(Levels(), Toy(), PROMPTS, settings=ask, **how), RoundRobin)


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=KINDS[:2])
def test_image_to_video_is_searched_with_each_prompts_picture(settings):
    """The result is a rollout of the generator with this picture, and the judge is shown the picture."""
    generator, judge = tiny_wan(from_picture=True), RedClips()
    pictures = [Media(torch.full((1, 3, 48, 48), value)) for value in (0.25, 0.75)]
    prompts = [Prompt("a red circle moving left, flat style, white background", condition=p) for p in pictures]
    nfe = 6 if settings.kind == "best_of_n" else 14
    results = run_search(generator, Pointwise(judge), prompts, nfe=nfe, num_steps=2, settings=settings)
    assert [r.prompt for r in results] == [p.text for p in prompts]
    assert {id(c.condition) for c in judge.asked} == set(map(id, pictures))
    for prompt, result in zip(prompts, results, strict=True):
        shown = [c for c in judge.asked if c.condition is prompt.condition]
        assert result.score == pytest.approx(RedClips().judge(shown).margin.max().item(), abs=1e-4)
    if settings.kind == "best_of_n":
        for prompt, result, rng in zip(prompts, results, rngs_of(0, "search", prompts), strict=True):
            drawn = list(draw(generator, [prompt] * 3, generator.noise(3, rng), 2))
            best = RedClips().judge([Comparison.of(prompt, m) for m in drawn]).margin.argmax()
            torch.testing.assert_close(result.picture.frames, drawn[best].frames, atol=1e-4, rtol=1e-4)

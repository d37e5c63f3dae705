"""Counted work against counts by hand, and a run that is ended by what it counts."""

import pytest
import torch

from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.align.rollout_config import DistillConfig, NftConfig, PolicyGradientConfig, RolloutConfig
from rewarddance.align.work import Work
from rewarddance.align.work_config import Budget
from rewarddance.core.config import parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.core.loop_config import LoopConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Verdict
from rewarddance.jobs.align import align_generator
from rewarddance.world.task import EmbeddedTask


class Brightness:
    """Brighter is better; it answers both questions."""

    criterion = "fidelity"

    def judge(self, comparisons):
        def level(media):
            return media.frames.mean()

        margins = [level(c.candidate) - (0.5 if c.reference is None else level(c.reference)) for c in comparisons]
        return Verdict.from_margin(20 * torch.stack(margins))


def run_of(generator, out, steps=2, **changes):
    config = AlignConfig(
        batch_size=4,
        num_prompts=4,
        probe_prompts=2,
        lora_rank=2,
        refl=ReflConfig(num_steps=4, window=(0.5, 0.5)),
        rollout=RolloutConfig(num_steps=3, group_size=2, score="pointwise", spread=0.0),
        loop=LoopConfig(num_steps=steps, validate_every=1),
        **changes,
    )
    align_generator(config, generator, Brightness(), out, task=EmbeddedTask())
    return RunFolder(out).metrics()[1:] if changes["algorithm"] != "sft" else RunFolder(out).metrics()


def counts(line):
    names = ("generator_passes", "generator_passes_with_gradient", "judge_calls", "judge_calls_with_gradient")
    return [line[f"work/{n}"] for n in names]


def test_refl_counts_references_approach_gradient_and_frozen_policy(generator, tmp_path):
    references = ReferenceConfig(num_candidates=3, refresh="never")
    first, second = run_of(generator, tmp_path / "run", algorithm="refl", references=references)
    drawn = 4 * 3 * 4  # prompts, candidates, steps
    ranked = 4 * 3  # prompts, pairs of three candidates
    a_step = 4 * (2 + 1 + 1)  # pictures: two steps of approach, the gradient step, the frozen policy at its state
    assert counts(first) == [drawn + a_step, 4, ranked + 4, 4]
    assert counts(second) == [drawn + 2 * a_step, 8, ranked + 8, 8]


def test_guided_passes_count_twice(generator, tmp_path):
    generator.guidance = 2.0
    first = run_of(generator, tmp_path / "run", 1, algorithm="refl", guidance=2.0, references={"kind": "none"})[0]
    assert counts(first)[:2] == [2 * 4 * (2 + 1 + 1), 2 * 4]


@pytest.mark.parametrize(
    ("algorithm", "passes", "with_gradient"),
    [
        # 4 pictures of 3 steps; 2 draws of 4 pictures, each with the trained, the old and the frozen policy
        ("nft", 4 * 3 + 2 * 4 * 3, 2 * 4),
        # 4 pictures of 3 steps; 1 noisy step with the trained and the frozen policy
        ("grpo", 4 * 3 + 4 * 2, 4),
        # 4 pictures of 3 steps; 2 draws of the best picture of 2 groups with the trained and the frozen policy
        ("distill", 4 * 3 + 2 * 2 * 2, 2 * 2),
    ],
)
def test_algorithms_with_groups_count_rollouts_and_updates(generator, tmp_path, algorithm, passes, with_gradient):
    settings = {
        "nft": NftConfig(draws=2),
        "grpo": PolicyGradientConfig(noisy_steps=1),
        "distill": DistillConfig(draws=2),
    }
    first, second = run_of(generator, tmp_path / "run", algorithm=algorithm, **settings)
    assert counts(first) == [passes, with_gradient, 4, 0]
    assert counts(second) == [2 * passes, 2 * with_gradient, 8, 0]


def test_the_supervised_control_counts_its_batch(generator, tmp_path):
    assert [counts(line) for line in run_of(generator, tmp_path / "run", algorithm="sft")] == [
        [4, 4, 0, 0],
        [8, 8, 0, 0],
    ]


def test_counts_go_on_from_those_of_a_checkpoint():
    work, extra = Work(), {"work": {"generator_passes": 7}}
    work.add("generator", 5, True)
    work.add("judge", 2, False)
    assert work.total(extra)["work/generator_passes"] == 12
    assert extra["work"] == {
        "generator_passes": 12,
        "generator_passes_with_gradient": 5,
        "judge_calls": 2,
        "judge_calls_with_gradient": 0,
    }
    assert work.total(extra)["work/judge_calls"] == 2


def test_a_watcher_ends_a_run_with_its_reason(generator, tmp_path):
    class AtTwo:
        def after_step(self, loop, metrics):
            metrics["seen"] = loop.step
            return "two steps" if loop.step == 2 else None

    config = AlignConfig(algorithm="sft", batch_size=2, lora_rank=2, loop=LoopConfig(num_steps=9, validate_every=9))
    align_generator(config, generator, None, tmp_path / "run", task=EmbeddedTask(), watcher=AtTwo())
    lines = RunFolder(tmp_path / "run").metrics()
    assert [line["seen"] for line in lines] == [1, 2]
    assert lines[-1]["stopped"] == "two steps"


def test_a_budget_is_used_up_by_its_first_limit():
    budget = Budget(generator_passes=10, judge_calls=3)
    assert not budget.used_up({"generator_passes": 9, "judge_calls": 2})
    assert budget.used_up({"generator_passes": 10, "judge_calls": 0})
    assert budget.used_up({"generator_passes": 0, "judge_calls": 3})
    with pytest.raises(ConfigError, match="limits nothing"):
        parse_config(Budget, {})

"""Runs on rollouts: a killed run that is resumed repeats the unbroken one; too many refusals end a run."""

import pytest
import torch
from small_runs import trajectory

from rewarddance.align.config import AlignConfig
from rewarddance.align.rollout_config import RolloutConfig
from rewarddance.core.errors import ConfigError, JudgementError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator

KEYS = ("loss", "grad_norm", "within_std", "probe/proxy", "probe/kl")


class Redness:
    """Redder is better, with or without a reference. Refuses everything after `calls` calls."""

    def __init__(self, calls=10**9):
        self.left = calls

    def judge(self, comparisons):
        def red(media):
            return torch.zeros(()) if media is None else media.frames[:, 0].mean() - media.frames[:, 1:].mean()

        verdict = Verdict.from_margin(torch.stack([8 * (red(c.candidate) - red(c.reference)) for c in comparisons]))
        self.left -= 1
        return verdict if self.left >= 0 else verdict.refuse(dict.fromkeys(range(len(verdict)), "no answer"))


def configured(algorithm, score="round_robin", num_steps=6, **changes):
    return AlignConfig(
        algorithm=algorithm,
        precision="fp32",
        num_prompts=6,
        batch_size=8,
        lora_rank=2,
        probe_prompts=3,
        rollout=RolloutConfig(num_steps=4, group_size=4, updates=2, score=score),
        optim=OptimConfig(lr=2e-3, warmup_steps=1, ema_decay=0.5),
        loop=LoopConfig(num_steps=num_steps, validate_every=3, save_every=2),
        **changes,
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("algorithm", "score"), [("nft", "round_robin"), ("ppo", "references"), ("grpo", "pointwise"), ("dpo", "win_rate")]
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(algorithm, score, pipeline_folder, tmp_path):
    config = configured(
        algorithm, score, ppo={"kl_target": 1e-4, "noisy_steps": 2}, references={"num_candidates": 2, "every": 3}
    )
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "whole")

    def kill(step, total, metrics):
        if step == 5:  # between two checkpoints
            raise KilledError

    with pytest.raises(KilledError):
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "killed", on_step=kill)
    torch.manual_seed(99)
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "killed", resume=True)
    whole, resumed = (trajectory(tmp_path / name, *KEYS, "kl_weight") for name in ("whole", "killed"))
    assert len(whole["loss"]) == 6
    for key in whole:
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("algorithm", ["nft", "grpo", "ppo", "distill", "dpo"])
def test_every_algorithm_raises_what_the_judge_likes(algorithm, pipeline_folder, tmp_path):
    config = configured(
        algorithm, num_steps=12, grpo={"kl_weight": 0.0}, distill={"frozen_weight": 0.1}, ppo={"noisy_steps": 2}
    )
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)
    probes = trajectory(tmp_path, "probe/proxy", "probe/kl")
    assert probes["probe/proxy"][-1] > probes["probe/proxy"][0]
    assert probes["probe/kl"][0] == 0
    assert probes["probe/kl"][-1] > 0


def test_a_step_whose_questions_are_refused_ends_the_run(pipeline_folder, tmp_path):
    with pytest.raises(JudgementError, match="step 1: the judge refused 12 of 12 questions"):
        align_generator(configured("nft"), Sd3Generator.load(pipeline_folder), Redness(calls=2), tmp_path)
    assert [m["step"] for m in RunFolder(tmp_path).metrics()] == [0, 1]


def test_more_groups_than_prompts_is_said_before_anything_is_drawn(pipeline_folder, tmp_path):
    config = configured("nft").model_copy(update={"num_prompts": 1})
    with pytest.raises(ConfigError, match="batch_size 8: 2 groups a step, but only 1 prompts"):
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)


def test_the_supervised_regulariser_adds_its_gradient(pipeline_folder, tmp_path):
    """One step with weights 0, 1 and 3: the logged loss is the same, and the update moves with the weight."""
    from rewarddance.align.config import ReflConfig

    norms = []
    for weight in (0.0, 1.0, 3.0):
        config = configured("refl", num_steps=1, refl=ReflConfig(num_steps=4, supervised_weight=weight))
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / str(weight))
        rows = RunFolder(tmp_path / str(weight)).metrics()
        assert ("supervised_loss" in rows[1]) == (weight > 0)
        norms.append(rows[1]["grad_norm"])
    assert norms[0] < norms[1] < norms[2]
    assert norms[2] == pytest.approx(3 * norms[1], rel=0.25)  # the reward's gradient is small beside it

"""Reward feedback against committed trajectories of thirty steps. A changed sign or scale must change them."""

import json

import pytest
import torch
from small_runs import GOLDEN, Redness, check_golden, same, trajectory

from rewarddance.align.config import AlignConfig, ReferenceConfig, ReflConfig
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.types import Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator
from rewarddance.jobs.load import load_judge


class Asked:
    """The shipped judge, through the engine to pixels; or its opposite."""

    def __init__(self, sign=1.0):
        self.judge_, self.sign = load_judge("tiny", precision="fp32"), sign

    def judge(self, comparisons):
        return Verdict.from_margin(self.sign * self.judge_.judge(comparisons).margin)


def redden(pipeline_folder, out, sign=1.0, num_steps=30, judge=Redness, **changes):
    torch.manual_seed(0)
    config = AlignConfig(
        precision="fp32",
        num_prompts=6,
        batch_size=3,
        lora_rank=4,
        probe_prompts=3,
        references=ReferenceConfig(num_candidates=2),
        refl=ReflConfig(num_steps=4, **changes),
        optim=OptimConfig(lr=2e-3, ema_decay=0.9),
        loop=LoopConfig(num_steps=num_steps, validate_every=10),
    )
    align_generator(config, Sd3Generator.load(pipeline_folder), judge(sign), out)
    return trajectory(out, "loss", "grad_norm", "reward", "kl")


def test_refl_follows_the_golden_trajectory(pipeline_folder, tmp_path):
    found = redden(pipeline_folder, tmp_path / "run")
    assert len(found["loss"]) == 30
    check_golden("refl", found, rel=2e-2)
    assert found["kl"][0] == 0
    assert found["kl"][-1] > 0


def test_refl_through_the_judges_engine_follows_the_golden_trajectory(pipeline_folder, tmp_path):
    found = redden(pipeline_folder, tmp_path / "run", judge=Asked, num_steps=16)
    assert len(found["loss"]) == 16
    check_golden("refl_judge", found, num=16, rel=2e-2, abs=1e-4)
    opposite = redden(pipeline_folder, tmp_path / "opposite", num_steps=3, judge=Asked, sign=-1.0)
    with pytest.raises(AssertionError):
        same(opposite, {k: v[:3] for k, v in found.items()}, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "num_steps"),
    [({"sign": -1.0}, 2), ({"kl_weight": 2.0}, 8), ({"kl_noise": 0.6}, 3), ({"loss": "margin"}, 2)],
    ids=str,
)
def test_the_golden_trajectory_catches_a_changed_sign_or_scale(pipeline_folder, tmp_path, change, num_steps):
    golden = json.loads((GOLDEN / "refl.json").read_text())
    found = redden(pipeline_folder, tmp_path / "run", num_steps=num_steps, **change)
    with pytest.raises(AssertionError):
        same(found, {k: v[:num_steps] for k, v in golden.items()}, rel=2e-2)

"""Runs of a few steps that several tests train, and what they are compared with."""

import json
import os
from pathlib import Path

import pytest
import torch

from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Verdict
from rewarddance.reward.train_config import RewardConfig

GOLDEN = Path(__file__).parents[1] / "golden"


def trajectory(folder, *keys):
    rows = RunFolder(folder).metrics()
    return {k: [m[k] for m in rows if k in m] for k in keys}


def same(a, b, **tolerance):
    for key in a:
        assert a[key] == pytest.approx(b[key], **tolerance), key


def check_golden(name, found, num=None, **tolerance):
    """Compare with the committed file, or with its first `num` steps; REWARDDANCE_GOLDEN=write writes it."""
    path = GOLDEN / f"{name}.json"
    if os.environ.get("REWARDDANCE_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=1) + "\n")
    expected = {k: v[:num] for k, v in json.loads(path.read_text()).items()}
    assert expected.keys() == found.keys()
    same(found, expected, **tolerance)


def reward_config(vlm_folder, data_folder, quick, paradigm="generative_pairwise", **changes):
    return RewardConfig(
        backbone=str(vlm_folder),
        data=str(data_folder),
        paradigm=paradigm,
        prompts_per_step=4,
        precision="fp32",
        **quick(**changes),
    )


class Redness:
    """A judge with a slope: redder is better, and a reference counts half."""

    def __init__(self, sign=1.0):
        self.sign = sign

    def judge(self, comparisons):
        def red(media):
            return media.frames[:, 0].mean() - media.frames[:, 1:].mean()

        gaps = torch.stack([red(c.candidate) - 0.5 * red(c.reference) for c in comparisons])
        return Verdict.from_margin(self.sign * 8 * gaps)

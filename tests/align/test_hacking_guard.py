"""The alarm's written rule, and what a run does about it: warn, stop, or go back with half the rate."""

import numpy as np
import pytest
import torch
from small_runs import trajectory

from rewarddance.align.config import AlignConfig
from rewarddance.align.diagnostics import (
    drift,
    pixel_diversity,
    rank_disagreement,
    saturation,
    statistics,
    surface_sensitivity,
)
from rewarddance.align.rollout_config import RolloutConfig
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.monitors import ProbeResult, alarm
from rewarddance.core.types import Comparison, Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator

BASE = np.array([[0.2, 0.4], [0.6, 0.8]])  # standard deviation 0.2236


def probes(*changes):
    """Probes whose proxy and gold differ from the first one by (proxy, gold)."""
    return [ProbeResult(10 * i, 0.5 + p * np.ones((2, 2)), BASE + g) for i, (p, g) in enumerate([(0, 0), *changes])]


def test_the_alarm_follows_its_rule():
    assert alarm(probes()) is None
    assert alarm(probes((0.2, 0.1))) is None  # a gain
    assert alarm(probes((0.2, 0.1), (0.3, 0.09))) is None  # fell by 0.01, less than 0.06 deviations (0.0134)
    text = alarm(probes((0.2, 0.1), (0.3, 0.08)))
    fell = "since step 10 the gold standard fell from 0.600 to 0.580"
    assert text == f"hacking: {fell}, and the judge's reward rose by 0.100"
    assert alarm(probes((0.2, 0.1), (0.1, 0.0))).startswith("collapse: since step 10")


def test_a_fall_within_one_standard_error_raises_no_alarm():
    first, last = probes((0.1, 0.0))
    last.gold[:] += [[-0.5, -0.5], [0.45, 0.45]]  # mean -0.025, standard error 0.475
    assert alarm([first, last]) is None


def test_diagnostics_in_closed_form():
    assert saturation(np.array([[0.01, 0.5], [0.99, np.nan]])) == pytest.approx(2 / 3)
    first, second = np.array([[1, 2, 3], [1, 1, 2]]), np.array([[1, 3, 2], [5, 6, 7]])
    assert rank_disagreement(first, second) == pytest.approx(1 / 5)
    same = torch.zeros(2, 2, 3, 4, 4)
    assert pixel_diversity(same) == 0
    same[:, 1] = 0.5
    assert pixel_diversity(same) == pytest.approx(0.5)
    stripes = torch.zeros(1, 3, 4, 4)
    stripes[..., ::2] = 1.0
    brightness, contrast, colour, sharpness = statistics(stripes)[0].tolist()
    assert brightness == 0.5
    assert contrast == pytest.approx(torch.tensor([0.0, 1.0] * 8).std().item())
    assert colour == 0
    assert sharpness == 0.5  # across 1, down 0
    start = torch.tensor([[0.0, 1, 2, 3], [2, 1, 4, 3]])
    assert drift(start + torch.tensor([2.0, 0, 1, 0]), start)["brightness"] == pytest.approx(2 / 2**0.5)


def test_surface_sensitivity_of_a_linear_judge_is_the_step_times_its_slope():
    class Linear:
        def judge(self, comparisons):
            return Verdict.from_margin(torch.stack([3 * c.candidate.frames.sum() for c in comparisons]))

    comparisons = [Comparison("p", Media(torch.full((1, 3, 4, 4), 0.5)))] * 2
    assert surface_sensitivity(Linear(), comparisons, 0.01) == pytest.approx(0.01 * 3 * 48**0.5, rel=1e-3)


class Redness:
    def judge(self, comparisons):
        def red(media):
            return 0.0 if media is None else float(media.frames[:, 0].mean() - media.frames[:, 1:].mean())

        return Verdict.from_margin(torch.tensor([8 * (red(c.candidate) - red(c.reference)) for c in comparisons]))


class Blue:
    """A task whose gold standard dislikes what the judge likes, from the second measurement on."""

    name, gold_name, features = "blue", "blueness", None

    def __init__(self):
        from rewarddance.world.task import EmbeddedTask

        self.embedded = EmbeddedTask()

    def gold(self, prompts, media, start):
        return [float(m.frames[:, 1:].mean() - m.frames[:, 0].mean()) for m in media]

    def __getattr__(self, name):
        return getattr(self.embedded, name)


def aligned(pipeline_folder, out, on_hacking, num_steps=12):
    config = AlignConfig(
        algorithm="nft",
        precision="fp32",
        num_prompts=6,
        batch_size=8,
        lora_rank=2,
        probe_prompts=4,
        rollout=RolloutConfig(num_steps=4, group_size=4),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, ema_decay=0.0),
        loop=LoopConfig(num_steps=num_steps, validate_every=3, save_every=3),
        on_hacking=on_hacking,
    )
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), out, task=Blue())
    return trajectory(out, "step", "alarm", "probe/gold", "probe/kl", "stopped")


def test_a_hacked_run_stops_or_goes_back(pipeline_folder, tmp_path):
    warned = aligned(pipeline_folder, tmp_path / "warn", "warn")
    assert len(warned["probe/gold"]) == 5
    assert warned["alarm"]
    assert "hacking: since step 0" in warned["alarm"][0]
    stopped = aligned(pipeline_folder, tmp_path / "stop", "stop")
    assert stopped["stopped"] == stopped["alarm"] == warned["alarm"][:1]
    back = aligned(pipeline_folder, tmp_path / "back", "rollback")
    assert back["alarm"][0].endswith("went back to step 0")
    assert back["probe/kl"][-1] < warned["probe/kl"][-1]

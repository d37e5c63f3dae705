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
from rewarddance.core.checkpoint import load_checkpoint
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
            return 0.0 if media is None else float((media.frames[:, 0].mean() - media.frames[:, 1:].mean()).detach())

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


class KilledError(Exception):
    pass


def aligned(pipeline_folder, out, on_hacking, num_steps=12, judge=None, kill_at=None, resume=False, **changes):
    config = AlignConfig(
        algorithm="nft",
        precision="fp32",
        num_prompts=6,
        batch_size=8,
        lora_rank=2,
        probe_prompts=4,
        rollout=RolloutConfig(num_steps=4, group_size=4),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, ema_decay=0.0),
        loop=LoopConfig(num_steps=num_steps, validate_every=3, save_every=1),
        on_hacking=on_hacking,
        **changes,
    )

    def kill(step, total, metrics):
        if step == kill_at:
            raise KilledError

    generator = Sd3Generator.load(pipeline_folder)
    align_generator(config, generator, judge or Redness(), out, task=Blue(), resume=resume, on_step=kill)
    keys = ("step", "alarm", "probe/gold", "probe/kl", "stopped", "loss", "grad_norm")
    return trajectory(out, *keys)


def test_a_hacked_run_stops_or_goes_back(pipeline_folder, tmp_path):
    warned = aligned(pipeline_folder, tmp_path / "warn", "warn")
    assert len(warned["probe/gold"]) == 5
    assert "hacking: since step 0" in warned["alarm"][0]
    stopped = aligned(pipeline_folder, tmp_path / "stop", "stop")
    assert stopped["stopped"] == stopped["alarm"] == warned["alarm"][:1]


def test_a_run_that_went_back_has_the_good_weights_and_half_the_rate(pipeline_folder, tmp_path):
    whole = aligned(pipeline_folder, tmp_path / "whole", "rollback", max_kl=1e9)
    assert whole["alarm"][0].endswith("went back to step 0")
    warned = aligned(pipeline_folder, tmp_path / "warn", "warn")
    assert whole["probe/kl"][-1] < warned["probe/kl"][-1]
    saved = load_checkpoint(tmp_path / "whole" / "checkpoints")
    assert saved.state["extra"]["rate_factor"] == 0.5 ** len(whole["alarm"])
    with pytest.raises(KilledError):  # after the first alarm, between two probes
        aligned(pipeline_folder, tmp_path / "killed", "rollback", max_kl=1e9, kill_at=8)
    resumed = aligned(pipeline_folder, tmp_path / "killed", "rollback", max_kl=1e9, resume=True)
    for key in ("loss", "grad_norm", "probe/kl", "probe/gold"):
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6, abs=1e-9), key
    assert resumed["alarm"] == whole["alarm"]


def test_a_probe_that_was_refused_is_neither_good_nor_an_alarm(pipeline_folder, tmp_path):
    class Silent(Redness):
        """Answers the questions of training and of the first probe (8 pictures against others), no later probe."""

        probes = 0

        def judge(self, comparisons):
            verdict = super().judge(comparisons)
            if len(comparisons) != 8 or comparisons[0].reference is None:
                return verdict
            self.probes += 1
            return verdict if self.probes == 1 else verdict.refuse(dict.fromkeys(range(8), "no answer"))

    found = aligned(pipeline_folder, tmp_path, "rollback", num_steps=6, judge=Silent())
    assert not found["alarm"]
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved.state["extra"]["good_step"] == 0

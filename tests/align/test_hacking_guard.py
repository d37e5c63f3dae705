"""The alarm's written rule, and what a run does about it: warn, stop, or go back with half the rate."""

import itertools
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import trajectory

from rewarddance.align.config import AlignConfig, ReferenceConfig
from rewarddance.align.diagnostics import (
    drift,
    pixel_diversity,
    rank_disagreement,
    saturation,
    statistics,
    surface_sensitivity,
)
from rewarddance.align.references import ReferenceBank
from rewarddance.align.rollout_config import RolloutConfig
from rewarddance.align.watched_run import WatchedRun
from rewarddance.core.checkpoint import load_checkpoint
from rewarddance.core.loop import Loop
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.media import Media
from rewarddance.core.monitors import AlarmRule, HackingMonitor, ProbeResult, find_alarm
from rewarddance.core.runs import RunFolder
from rewarddance.core.types import Comparison, Verdict
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator

BASE = np.array([[0.2, 0.4], [0.6, 0.8]])  # standard deviation 0.2236


def probes(*changes):
    """Probes whose proxy and gold differ from the first one by (proxy, gold)."""
    return [ProbeResult(10 * i, 0.5 + p * np.ones((2, 2)), BASE + g) for i, (p, g) in enumerate([(0, 0), *changes])]


def test_the_alarm_follows_its_rule():
    assert find_alarm(probes()) is None
    assert find_alarm(probes((0.2, 0.1))) is None  # a gain
    assert find_alarm(probes((0.2, 0.1), (0.3, 0.087))) is None  # fell by 0.013, 0.06 deviations are 0.0134
    alarm = find_alarm(probes((0.2, 0.1), (0.3, 0.08)))
    fell = "since step 10 the gold standard fell from 0.600 to 0.580"
    assert (alarm.kind, alarm.text) == ("hacking", f"hacking: {fell}, and the judge's reward rose by 0.100")


@pytest.mark.parametrize(("proxy", "kind"), [(0.2, "hacking"), (0.1, "collapse")])
def test_a_fall_without_a_rise_of_the_proxy_must_be_larger(proxy, kind):
    """0.15 standard deviations are 0.0335."""
    assert find_alarm(probes((0.2, 0.1), (proxy, 0.07))) is None
    alarm = find_alarm(probes((0.2, 0.1), (proxy, 0.06)))
    assert alarm.kind == kind
    assert alarm.text.startswith(f"{kind}: since step 10 the gold standard fell from 0.600 to 0.560")


def paired(drops, rises):
    """Two probes, each prompt with two noises. `drops` and `rises` say by how much gold falls and the proxy rises.

    The standard deviation of gold is 0.2.
    """
    gold = np.tile([0.4, 0.8], (len(drops), 1))
    proxy = np.full(gold.shape, 0.5)
    return [
        ProbeResult(0, proxy, gold),
        ProbeResult(10, proxy + np.array(rises)[:, None], gold - np.array(drops)[:, None]),
    ]


def test_the_limits_in_standard_errors():
    """Four differences m +- s have a standard error of 2 s / sqrt(12). After two probes the limit is 2.177 of them."""
    signs = np.array([1, -1, 1, -1])
    error = 2 / math.sqrt(12)
    clear = 0.05 + 0.99 * 0.05 / error * signs  # the mean is 1.01 standard errors
    doubtful = 0.05 + 1.01 * 0.05 / error * signs
    assert find_alarm(paired(0.02 + 0.02 / 2.17 / error * signs, clear)) is None
    assert find_alarm(paired(0.02 + 0.02 / 2.18 / error * signs, clear)).kind == "hacking"
    # the proxy has risen by less than one standard error: 0.02 is too small a fall, 0.04 is not
    assert find_alarm(paired(np.full(4, 0.02), doubtful)) is None
    assert find_alarm(paired(0.04 + 0.04 / 2.17 / error * signs, doubtful)) is None
    assert find_alarm(paired(0.04 + 0.04 / 2.18 / error * signs, doubtful)).kind == "hacking"
    assert find_alarm(paired(0.04 + 0.04 / 2.18 / error * signs, -doubtful)).kind == "collapse"
    assert find_alarm(paired(np.full(4, 0.02), doubtful), AlarmRule(fall_alone=0.06)) is not None


def test_the_limit_grows_with_the_number_of_probes():
    """The best of many probes is too good: after 20 of them the limit is 3.448 standard errors."""
    signs = np.array([1, -1, 1, -1])
    for ratio, kind in ((3.44, None), (3.45, "hacking")):
        first, last = paired(0.04 + 0.04 / ratio / (2 / math.sqrt(12)) * signs, np.full(4, 0.1))
        earlier = [ProbeResult(-k, first.proxy, first.gold - 0.001) for k in range(18, 0, -1)]
        alarm = find_alarm([*earlier, first, last])
        assert (alarm and alarm.kind) == kind, ratio


def test_two_falls_in_a_row_need_two_standard_errors():
    """After three probes a single fall needs 2.48 standard errors."""
    signs = np.array([1, -1, 1, -1])

    def fall(ratio):
        """A fall by 0.04 of `ratio` standard errors, while the proxy rises."""
        return paired(0.04 + 0.04 / ratio / (2 / math.sqrt(12)) * signs, np.full(4, 0.1))

    first, middle = fall(2.1)
    for ratio, kind in ((1.99, None), (2.01, "hacking")):
        alarm = find_alarm([first, middle, fall(ratio)[1]])
        assert (alarm and alarm.kind) == kind, ratio
    assert find_alarm([first, fall(1.99)[1], middle]) is None  # the first fall is not clear
    assert find_alarm([first, middle]) is None
    assert find_alarm([first, first, middle]) is None


def test_an_unchanged_gold_standard_seldom_raises_an_alarm():
    """The proxy rises clearly, and gold has nothing but noise: about one run of six has an alarm in 10 probes."""
    rng, alarms = np.random.default_rng(0), 0
    easy = 0.2 * rng.random((40, 1))  # differs between prompts, and is the same in all probes
    for _ in range(200):
        proxies, golds = np.full((40, 2), 0.5), easy + rng.normal(0, 0.3, (10, 40, 2))
        seen = [ProbeResult(k, proxies + 0.01 * k, gold) for k, gold in enumerate(golds)]
        alarms += any(find_alarm(seen[:n]) is not None for n in range(2, 11))
    assert alarms <= 40


def test_a_single_prompt_raises_no_alarm():
    monitor = HackingMonitor()
    for step, gold in enumerate((0.9, 0.1)):
        monitor.add(step, [[0.5, 0.5]], [[gold, gold - 0.05]])
    assert monitor.alarm() is None
    assert find_alarm(monitor.probes) is None
    twice = [ProbeResult(p.step, np.repeat(p.proxy, 2, 0), np.repeat(p.gold, 2, 0)) for p in monitor.probes]
    assert find_alarm(twice).text.startswith("hacking: since step 0 the gold standard fell from 0.875 to 0.075")


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
            return torch.zeros(()) if media is None else media.frames[:, 0].mean() - media.frames[:, 1:].mean()

        return Verdict.from_margin(torch.stack([8 * (red(c.candidate) - red(c.reference)) for c in comparisons]))


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


def aligned(
    pipeline_folder, out, on_hacking, num_steps=12, judge=None, copy_at=None, resume=False, gold=None, **changes
):
    config = AlignConfig(
        **{"algorithm": "nft"} | changes,
        precision="fp32",
        num_prompts=6,
        batch_size=8,
        lora_rank=2,
        probe_prompts=4,
        rollout=RolloutConfig(num_steps=4, group_size=4),
        optim=OptimConfig(lr=1e-2, warmup_steps=1, ema_decay=0.0),
        loop=LoopConfig(num_steps=num_steps, validate_every=3, save_every=1),
        on_hacking=on_hacking,
    )

    def copy(step, total, metrics):
        if step == copy_at:  # the files that a run would leave if it were killed now
            shutil.copytree(out, out.with_name("killed"))

    generator = Sd3Generator.load(pipeline_folder)
    align_generator(config, generator, judge or Redness(), out, task=Blue(), gold=gold, resume=resume, on_step=copy)
    keys = ("step", "alarm", "probe/gold", "probe/truth", "probe/kl", "stopped", "loss", "grad_norm")
    keys += ("kl", "frozen_distance")
    return trajectory(out, *keys)


@pytest.fixture(scope="module")
def warned(pipeline_folder, tmp_path_factory):
    """A hacked run that only warns."""
    return aligned(pipeline_folder, tmp_path_factory.mktemp("hacked") / "warn", "warn")


def test_a_hacked_run_stops_or_goes_back(warned, pipeline_folder, tmp_path):
    assert len(warned["probe/gold"]) == 5
    assert "hacking: since step 0" in warned["alarm"][0]
    stopped = aligned(pipeline_folder, tmp_path / "stop", "stop")
    assert stopped["stopped"] == stopped["alarm"] == warned["alarm"][:1]


def test_another_gold_standard_raises_the_alarm_and_the_tasks_own_is_logged(warned, pipeline_folder, tmp_path):
    """This gold standard likes what the judge likes, and refuses to answer about one prompt."""

    def fooled(prompts, media, start):
        values = [float(m.frames[:, 0].mean()) for m in media]
        return [math.nan if p == prompts[0] else v for p, v in zip(prompts, values, strict=True)]

    found = aligned(pipeline_folder, tmp_path, "stop", gold=fooled)
    assert not found["alarm"]
    assert found["probe/gold"][-1] > found["probe/gold"][0]
    assert not warned["probe/truth"]
    assert found["probe/truth"] == pytest.approx(warned["probe/gold"])  # the same run, all prompts


def test_a_run_that_went_back_has_the_good_weights_and_half_the_rate(warned, pipeline_folder, tmp_path):
    """The copy is made after the first alarm, between two probes."""
    whole = aligned(pipeline_folder, tmp_path / "whole", "rollback", max_kl=1e9, copy_at=8)
    assert whole["alarm"][0].endswith("went back to step 0")
    assert whole["probe/kl"][-1] < warned["probe/kl"][-1]
    saved = load_checkpoint(tmp_path / "whole" / "checkpoints")
    assert saved.state["extra"]["rate_factor"] == 0.5 ** len(whole["alarm"])
    resumed = aligned(pipeline_folder, tmp_path / "killed", "rollback", max_kl=1e9, resume=True)
    for key in ("loss", "grad_norm", "probe/kl", "probe/gold"):
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6, abs=1e-9), key
    assert resumed["alarm"] == whole["alarm"]


@pytest.mark.parametrize(
    ("algorithm", "weight", "distance"), [("nft", "frozen_weight", "frozen_distance"), ("refl", "kl_weight", "kl")]
)
def test_an_alarm_doubles_the_pull_from_the_next_step_on(algorithm, weight, distance, pipeline_folder, tmp_path):
    """The weights of both runs are equal until the alarm, so the loss of the next step differs by the pull alone."""
    settings = {"algorithm": algorithm, algorithm: {weight: 0.3}, "references": {"kind": "random"}, "num_steps": 4}
    number = itertools.count()

    def falling(prompts, media, start):
        return [0.5 - 0.1 * next(number)] * len(media)

    warned = aligned(pipeline_folder, tmp_path / "warn", "warn", gold=falling, **settings)
    raised = aligned(pipeline_folder, tmp_path / "raise", "raise_kl", gold=falling, copy_at=3, **settings)
    assert raised["alarm"][0].endswith(f"; {algorithm}.{weight} is 0.6")
    assert raised["loss"][:3] == warned["loss"][:3]
    assert raised[distance][3] == warned[distance][3] > 0
    assert raised["loss"][3] - warned["loss"][3] == pytest.approx(0.3 * warned[distance][3], rel=1e-2)
    resumed = aligned(pipeline_folder, tmp_path / "killed", "raise_kl", gold=falling, resume=True, **settings)
    assert resumed["loss"] == pytest.approx(raised["loss"], rel=1e-6)


def test_every_alarm_doubles_the_pull_again(tmp_path):
    class Run(WatchedRun):
        def step(self, index):
            return {}

    loop = Loop({"module": torch.nn.Linear(2, 2)}, OptimConfig(), LoopConfig(), RunFolder(tmp_path))
    monitor = HackingMonitor(probes((0.2, 0.1), (0.3, 0.0)))
    config = AlignConfig(algorithm="grpo", grpo={"kl_weight": 0.01}, on_hacking="raise_kl", max_kl=0.5)
    run = Run(config, None, loop, None, None, SimpleNamespace(monitor=monitor))
    for weight in (0.02, 0.04):
        metrics = run._guard(20)
        assert metrics["alarm"].endswith(
            f"fell from 0.600 to 0.500, and the judge's reward rose by 0.100; grpo.kl_weight is {weight}"
        )
        assert run.stop(metrics) is None
    assert [p.step for p in monitor.probes] == [0, 10, 20]
    assert run.stop(metrics | {"probe/kl": 0.6}) == "KL of the probes passed 0.5"  # an alarm does not hide it


@pytest.mark.parametrize("algorithm", ["refl", "nft", "grpo", "ppo", "distill"])
def test_a_pull_is_the_algorithms_own(algorithm):
    config = AlignConfig(algorithm=algorithm, rollout={"score": "pointwise"})
    assert config.pull > 0
    doubled = config.with_pull(2)
    assert doubled.pull == 2 * config.pull
    assert doubled.with_pull(0.5) == config
    assert config.with_pull(0).pull == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "dpo"}, "algorithm dpo has no pull to the frozen policy"),
        ({"algorithm": "nft", "nft": {"frozen_weight": 0}}, "nft.frozen_weight is 0, so doubling it has no effect"),
        (
            {"algorithm": "ppo", "ppo": {"kl_target": 0.1}, "rollout": {"score": "pointwise"}},
            "ppo.kl_target already adapts the weight",
        ),
    ],
)
def test_a_pull_that_cannot_be_raised_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AlignConfig(**changes, on_hacking="raise_kl")


@pytest.mark.parametrize(("drawn_at", "kept"), [(0, True), (10, True), (11, False), (20, False)])
def test_going_back_keeps_references_that_are_older_than_the_good_weights(drawn_at, kept, tmp_path):
    """The best probe is that of step 10. Later references were drawn by the policy that is discarded."""

    class Run(WatchedRun):
        def step(self, index):
            return {}

    module = torch.nn.Linear(2, 2)
    loop = Loop({"module": module}, OptimConfig(), LoopConfig(), RunFolder(tmp_path))
    bank = ReferenceBank(ReferenceConfig(refresh="never"), ("p",), 4, "fidelity", 0, drawn_at=drawn_at)
    monitor = HackingMonitor(probes((0.2, 0.1), (0.3, 0.0)))
    run = Run(AlignConfig(on_hacking="rollback"), None, loop, None, bank, SimpleNamespace(monitor=monitor))
    run.good, run.good_step = loop.snapshot(), 10
    with torch.no_grad():
        module.weight += 1
    assert run._guard(20)["alarm"].endswith("went back to step 10")
    assert bank.drawn_at == (drawn_at if kept else -1)
    assert bank.is_due(21) is not kept
    assert torch.equal(module.weight, run.good["module.weight"])
    assert [p.step for p in monitor.probes] == [0, 10]
    assert loop.extra["rate_factor"] == 0.5


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

"""Runs on rollouts: a killed run that is resumed repeats the unbroken one; too many refusals end a run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import trajectory

from rewarddance.align.config import AlignConfig
from rewarddance.align.rollout_config import RolloutConfig
from rewarddance.core.config import load_recipe
from rewarddance.core.disk import list_checkpoints
from rewarddance.core.errors import ConfigError, JudgementError
from rewarddance.core.loop_config import LoopConfig, OptimConfig
from rewarddance.core.runs import RunFolder
from rewarddance.core.task import Prompt
from rewarddance.core.types import Verdict
from rewarddance.data.prompt_task import PromptTask
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator
from rewarddance.lab.alignment_config import AlignmentStudyConfig

KEYS = ("loss", "grad_norm", "within_std", "probe/proxy", "probe/kl")


class Redness:
    """Redder is better for prompts of an odd number of letters, bluer for the others; with or without a reference.

    Refuses everything after `calls` calls.
    """

    def __init__(self, calls=10**9):
        self.left = calls

    def judge(self, comparisons):
        def right(media, prompt):
            if media is None:
                return torch.zeros(())
            red, green, blue = media.frames.mean((0, 2, 3))
            return red - green if len(prompt) % 2 else blue - green

        gaps = [right(c.candidate, c.prompt) - right(c.reference, c.prompt) for c in comparisons]
        verdict = Verdict.from_margin(8 * torch.stack(gaps))
        self.left -= 1
        return verdict if self.left >= 0 else verdict.refuse(dict.fromkeys(range(len(verdict)), "no answer"))


def configured(algorithm, score="round_robin", num_steps=6, validate_every=3, **changes):
    return AlignConfig(
        algorithm=algorithm,
        precision="fp32",
        num_prompts=6,
        batch_size=8,
        lora_rank=2,
        probe_prompts=3,
        rollout=RolloutConfig(num_steps=4, group_size=4, updates=2, score=score),
        grpo={"window": (0.0, 0.75)} | changes.pop("grpo", {}),
        ppo={"noisy_steps": 2, "window": (0.0, 0.75)} | changes.pop("ppo", {}),
        optim=OptimConfig(lr=2e-3, warmup_steps=1, ema_decay=0.5),
        loop=LoopConfig(num_steps=num_steps, validate_every=validate_every, save_every=2),
        **changes,
    )


@pytest.mark.parametrize(
    ("algorithm", "score"), [("nft", "round_robin"), ("ppo", "references"), ("grpo", "pointwise"), ("dpo", "win_rate")]
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(algorithm, score, pipeline_folder, tmp_path):
    """A copy of the folder after step 3 stands for a run that is killed there."""
    changes = {"ppo": {"kl_target": 1e-4}, "references": {"num_candidates": 2, "every": 3}}
    config = configured(algorithm, score, num_steps=4, validate_every=2, **changes)

    def copy(step, total, metrics):
        if step == 3:  # between two checkpoints
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "whole", on_step=copy)
    torch.manual_seed(99)
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "killed", resume=True)
    whole, resumed = (trajectory(tmp_path / name, *KEYS, "kl_weight") for name in ("whole", "killed"))
    assert len(whole["loss"]) == 4
    for key in whole:
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6, abs=1e-9), key


KILLED = """
import sys, time
from pathlib import Path

from test_rollout_runs import Redness, kill_config
from rewarddance.align.algorithms import Nft, Ppo
from rewarddance.core.loop import Loop
from rewarddance.generator.sd3 import Sd3Generator
from rewarddance.jobs.align import align_generator
from rewarddance.lab.alignment_config import AlignmentStudyConfig

where, algorithm, pipeline, out, ready = sys.argv[1:]

def wait_for_the_kill():
    Path(ready).touch()
    time.sleep(600)

def draw(self, prompts, places, index, inner={"nft": Nft, "ppo": Ppo}[algorithm].draw):
    rollouts = inner(self, prompts, places, index)
    if index == 3:
        wait_for_the_kill()
    return rollouts

def update(self, inner=Loop.update):
    size = inner(self)
    if self.step == 3:
        wait_for_the_kill()
    return size

if where == "collecting":
    {"nft": Nft, "ppo": Ppo}[algorithm].draw = draw
else:
    Loop.update = update
align_generator(kill_config(algorithm), Sd3Generator.load(pipeline), Redness(), Path(out))
"""


def kill_config(algorithm):
    score = "pointwise" if algorithm == "ppo" else "round_robin"
    return configured(algorithm, score, num_steps=5, validate_every=5, ppo={"kl_target": 1e-4})


@pytest.mark.slow
@pytest.mark.parametrize(("where", "algorithm"), [("collecting", "nft"), ("between updates", "ppo")])
def test_sigkill_inside_a_step_resumes_to_the_same_metrics(where, algorithm, pipeline_folder, tmp_path):
    """The process is killed in step 3, after its pictures are drawn or after the first of its two updates."""
    here, ready, killed = Path(__file__).parent, tmp_path / "ready", tmp_path / "killed"
    paths = [str(here), str(here.parent / "helpers"), *sys.path]
    program = [sys.executable, "-c", KILLED, where, algorithm, str(pipeline_folder), str(killed), str(ready)]
    process = subprocess.Popen(program, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
    align_generator(kill_config(algorithm), Sd3Generator.load(pipeline_folder), Redness(), tmp_path / "whole")
    while process.poll() is None and not ready.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert RunFolder(killed).metrics()[-1]["step"] == 3
    assert list_checkpoints(killed / "checkpoints") == [2]
    torch.manual_seed(99)
    align_generator(kill_config(algorithm), Sd3Generator.load(pipeline_folder), Redness(), killed, resume=True)
    keys = ("step", *KEYS, *(("kl", "kl_weight", "clipped", "ratio_deviation") if algorithm == "ppo" else ()))
    whole, resumed = (trajectory(folder, *keys) for folder in (tmp_path / "whole", killed))
    assert whole["step"] == list(range(6))
    for key in keys:
        assert whole[key], key
        assert resumed[key] == pytest.approx(whole[key], rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("arm", ["grpo", "ppo"])
def test_the_clip_of_the_studys_policy_gradients_acts(arm, pipeline_folder, tmp_path):
    """The recipe's roll-outs, updates, clip and rate; the first update of a step has ratio 1, later ones do not."""
    study = AlignmentStudyConfig(**load_recipe("recipes/tiny/study-alignment.yaml"))
    recipe = study.align_config(arm, seed=0)
    assert recipe.rollout.updates * recipe.rollout.minibatches == 4
    small = {"num_prompts": 4, "batch_size": 16, "lora_rank": 2, "probe_prompts": 2, "precision": "fp32"}
    loop = LoopConfig(num_steps=4, validate_every=4)
    align_generator(
        recipe.model_copy(update=small | {"loop": loop}), Sd3Generator.load(pipeline_folder), Redness(), tmp_path
    )
    rows = trajectory(tmp_path, "clipped", "ratio_deviation", "kl_weight")
    assert 0 < max(rows["clipped"]) <= 0.75  # the first of four updates is never clipped
    assert min(rows["ratio_deviation"]) > 0
    weights = rows["kl_weight"]
    assert weights == ([] if arm == "grpo" else sorted(weights, reverse=True))
    assert arm == "grpo" or weights[-1] < weights[0] == recipe.ppo.kl_weight  # the KL is below its target here


@pytest.mark.parametrize(
    "algorithm", ["nft", "dpo", *(pytest.param(a, marks=pytest.mark.slow) for a in ("grpo", "ppo", "distill"))]
)
def test_every_algorithm_raises_what_the_judge_likes(algorithm, pipeline_folder, tmp_path):
    score = "pointwise" if algorithm == "ppo" else "round_robin"
    rate, num_steps = {"nft": (1e-2, 8), "dpo": (6e-3, 6)}.get(algorithm, (2e-3, 16))
    weights = {"grpo": {"kl_weight": 0.0}, "distill": {"frozen_weight": 0.1}}
    config = configured(algorithm, score, num_steps, validate_every=num_steps, **weights)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": rate})})
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)
    probes = trajectory(tmp_path, "probe/proxy", "probe/kl")
    assert probes["probe/proxy"][-1] > probes["probe/proxy"][0] + 0.003
    assert probes["probe/kl"][0] == 0
    assert probes["probe/kl"][-1] > 0


def test_references_of_groups_move_when_the_policy_beats_them(pipeline_folder, tmp_path):
    """The win rate begins at one half, and a step above it makes the references due."""
    references = {"num_candidates": 1, "kind": "random", "refresh": "win_rate", "above": 0.001}
    config = configured("nft", "references", num_steps=3, references=references)
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)
    rows = RunFolder(tmp_path).metrics()[1:]
    assert [m["references_from"] for m in rows] == [0, 1, 2]
    assert all(0 < m["win_rate"] < 1 for m in rows)


def test_a_step_whose_questions_are_refused_ends_the_run(pipeline_folder, tmp_path):
    """The first probe asks once about 6 pictures and twice about each for the sensitivity."""
    with pytest.raises(JudgementError, match="step 1: the judge refused 12 of 12 questions; no answer"):
        align_generator(configured("nft"), Sd3Generator.load(pipeline_folder), Redness(calls=14), tmp_path)
    assert [m["step"] for m in RunFolder(tmp_path).metrics()] == [0, 1]


def test_more_groups_than_prompts_is_said_before_anything_is_drawn(pipeline_folder, tmp_path):
    config = configured("nft").model_copy(update={"num_prompts": 1})
    with pytest.raises(ConfigError, match="batch_size 8: 2 groups a step, but only 1 prompts"):
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)


def test_the_supervised_regulariser_adds_its_gradient(pipeline_folder, tmp_path):
    """One step with weights 0, 1 and 3: the losses are the same, and the gradient grows with the weight."""
    from rewarddance.align.config import ReflConfig

    norms, losses = [], []
    for weight in (0.0, 1.0, 3.0):
        config = configured("refl", num_steps=1, refl=ReflConfig(num_steps=4, supervised_weight=weight))
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path / str(weight))
        rows = RunFolder(tmp_path / str(weight)).metrics()
        assert ("supervised_loss" in rows[1]) == (weight > 0)
        norms.append(rows[1]["grad_norm"])
        losses.append(rows[1]["loss"])
    assert norms[0] < norms[1] < norms[2]
    assert losses[0] == losses[1] == losses[2]
    assert norms[2] == pytest.approx(3 * norms[1], rel=0.25)  # the reward's gradient is small beside it


def test_an_algorithm_without_a_kl_of_steps_stops_by_the_kl_of_the_probes(pipeline_folder, tmp_path):
    config = configured("nft", num_steps=12, max_kl=1e-9)
    align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path)
    last = RunFolder(tmp_path).metrics()[-1]
    assert (last["step"], last["stopped"]) == (3, "KL of the probes passed 1e-09")


def test_going_back_needs_a_gold_standard(pipeline_folder, tmp_path):
    task = PromptTask((Prompt("a red circle"), Prompt("a blue square")), (), None)
    config = configured("nft", on_hacking="rollback").model_copy(update={"num_prompts": 2})
    with pytest.raises(ConfigError, match="on_hacking rollback: needs a gold standard"):
        align_generator(config, Sd3Generator.load(pipeline_folder), Redness(), tmp_path, task=task)


def test_a_judge_that_only_compares_is_refused_before_anything_is_drawn(pipeline_folder, tmp_path):
    class Comparing(Redness):
        def problem(self, comparison):
            return "cannot judge a picture alone" if comparison.reference is None else None

    with pytest.raises(ConfigError, match=r"rollout\.score: pointwise: cannot judge a picture alone"):
        align_generator(configured("nft", "pointwise"), Sd3Generator.load(pipeline_folder), Comparing(), tmp_path)

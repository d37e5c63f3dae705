"""What the demos train and measure, and how much of it: all counts. No torch, so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DemoTask = Literal["t2i", "t2v"]


@dataclass(frozen=True)
class DemoSizes:
    """Counts of a demo.

    Attributes:
        prompts, held_out: of the training preferences, and of each of the two held-out sets.
        sampling_steps: of the preferences' samples, on average.
        judge_steps, judge_prompts: of the judge's further training, and prompts of one step.
        align_steps, align_prompts, align_batch: of the alignment; the batch is in samples.
        probe_prompts: of the probes.
        every, noises: the evaluation takes each `every`-th benchmark prompt, with this many noises. The action prompts
            go round 12 actions, so for clips this and `best_of_every` share no divisor with 12.
        diversity_prompts, diversity_noises: of the diversity before and after.
        best_of_every, candidates: best-of-N on each `best_of_every`-th benchmark prompt, with N candidates.
    """

    prompts: int
    held_out: int
    sampling_steps: int
    judge_steps: int
    judge_prompts: int
    align_steps: int
    align_prompts: int
    align_batch: int
    probe_prompts: int
    every: int
    noises: int
    diversity_prompts: int
    diversity_noises: int
    best_of_every: int
    candidates: int


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        task: name of the alignment's task (`core/plugins.py`).
        generator, judge: embedded models.
        criterion: of the preferences and of the judge.
        recipe: of the alignment; the demo replaces its models, sizes and lengths.
        pointwise_weight: of the judge's further training, for a recipe that scores single pictures.
        full, fast: counts of the demo, and of its form for tests, whose figures mean nothing.
    """

    task: str
    generator: str
    judge: str
    criterion: Literal["fidelity", "overall"]
    recipe: str
    pointwise_weight: float
    judge_lr: float
    full: DemoSizes
    fast: DemoSizes


PICTURES = Demo(
    task="embedded",
    generator="tiny",
    judge="tiny",
    criterion="fidelity",
    recipe="recipes/tiny/nft.yaml",
    pointwise_weight=1.0,
    judge_lr=5e-5,
    full=DemoSizes(
        prompts=200, held_out=40, sampling_steps=10,
        judge_steps=20, judge_prompts=10,
        align_steps=50, align_prompts=256, align_batch=96, probe_prompts=30,
        every=1, noises=2, diversity_prompts=24, diversity_noises=6, best_of_every=8, candidates=8,
    ),
    fast=DemoSizes(
        prompts=28, held_out=8, sampling_steps=4,
        judge_steps=6, judge_prompts=4,
        align_steps=3, align_prompts=8, align_batch=16, probe_prompts=4,
        every=24, noises=1, diversity_prompts=4, diversity_noises=3, best_of_every=80, candidates=8,
    ),
)  # fmt: skip
CLIPS = Demo(
    task="embedded-video",
    generator="tiny-video",
    judge="tiny-clips",
    criterion="overall",
    recipe="recipes/tiny/t2v.yaml",
    pointwise_weight=0.0,
    judge_lr=5e-5,
    full=DemoSizes(
        prompts=48, held_out=12, sampling_steps=10,
        judge_steps=16, judge_prompts=4,
        align_steps=40, align_prompts=320, align_batch=48, probe_prompts=8,
        every=1, noises=2, diversity_prompts=9, diversity_noises=4, best_of_every=11, candidates=8,
    ),
    fast=DemoSizes(
        prompts=4, held_out=2, sampling_steps=4,
        judge_steps=2, judge_prompts=2,
        align_steps=2, align_prompts=4, align_batch=6, probe_prompts=2,
        every=11, noises=1, diversity_prompts=2, diversity_noises=2, best_of_every=25, candidates=3,
    ),
)  # fmt: skip
DEMOS: dict[DemoTask, Demo] = {"t2i": PICTURES, "t2v": CLIPS}

"""Configuration of `rewarddance study alignment`. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rewarddance.align.config import AlignConfig
from rewarddance.align.work_config import Budget
from rewarddance.core.config import SECOND_SEED, Config, load_recipe, merge, parse_config
from rewarddance.core.errors import ConfigError

Mark = Literal["work", "kl", "end"]
"""A point of a run at which arms are compared: the budget is used up, the KL is reached, or the run is at its end."""
MAX_TIMES = 3
"""An arm with `match_kl` trains for at most this many times its steps."""
TASKS = ("embedded", "embedded-video", "embedded-image-to-video")
"""Tasks whose prompts the oracles know."""
SAME = ("generator", "guidance", "sample_guidance", "resolution", "generator_dtype", "adapter", "task", "prompts")
"""Settings that all arms share, because all are compared with one start."""


class ArmConfig(Config):
    """One arm: a recipe of `align` with changes, and where it ends."""

    recipe: str | None = None
    """YAML file of an `align` configuration; the study's when not given."""
    align: dict[str, Any] = {}
    """Changes to the recipe, as in its file. `{seed}` in `judge` is replaced by the seed, for judges of several
    seeds."""
    standardise: bool = False
    """Divide the judge's margins by their spread on the start's pictures of the development prompts. A judge with small
    margins then pushes as hard as another one."""
    budget: Budget | None = None
    """Work at which the arm is measured; the study's when not given."""
    match_kl: str | None = None
    """Name of an arm that is listed earlier. This arm trains until its KL is above that of the other arm's first mark
    with the same seed, and is measured there. It trains for at most three times its own steps."""
    baseline: str | None = None
    """The arm that this one is compared with; the study's when not given."""


class AlignmentStudyConfig(Config):
    """Arms that are trained with the same seeds and measured on the same prompts and noises.

    An arm is measured at every mark that it has: `work` if it has a budget, `kl` if it matches a KL, otherwise `end`.
    An arm with both goes on until it has passed both.
    """

    recipe: str = "recipes/tiny/refl.yaml"
    align: dict[str, Any] = {}
    """Changes to the recipes of all arms. An arm's own changes win."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """Arms by name, in the order in which they run."""
    budget: Budget | None = None
    baseline: str | None = None
    """The arm that the others are compared with, paired by seed; the first one when not given."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    split: Literal["benchmark", "development"] = "benchmark"
    """`development` has other held-out prompts, for choosing settings."""
    second_seed: int | None = Field(SECOND_SEED, ge=0)
    """Seed of a second set of held-out prompts that is measured beside the benchmark; null for none. Tasks of clips
    have none."""
    every: int = Field(1, ge=1)
    """Take every n-th of the measured prompts."""
    num_noises: int = Field(4, ge=2)
    num_steps: int = Field(10, ge=1)
    """Steps of a sample that is measured, and of the rollouts whose states the KL is measured at."""
    diversity_prompts: int = Field(60, ge=1)
    diversity_noises: int = Field(8, ge=2)
    kl_every: int = Field(1500, ge=1)
    """Generator passes of training between two measurements of the KL, each of which takes 64 passes."""
    curve_every: int = Field(10_000, ge=1)
    """Generator passes between two measurements of the oracle on development prompts, for the figure."""

    @model_validator(mode="after")
    def _names_are_arms(self) -> Self:
        before: set[str] = set()
        for name, arm in self.arms.items():
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"arm {name!r}: a name has letters, digits, _ . + -, and does not begin with . + or -")
            if arm.match_kl is not None and arm.match_kl not in before:
                raise ValueError(f"arm {name}: match_kl {arm.match_kl!r} is not an arm that is listed before it")
            before.add(name)
        for base in (self.baseline, *(arm.baseline for arm in self.arms.values())):
            if base is not None and base not in self.arms:
                raise ValueError(f"baseline {base!r}: not an arm; known: {', '.join(self.arms)}")
        return self

    def budget_of(self, arm: str) -> Budget | None:
        return self.arms[arm].budget or self.budget

    def baseline_of(self, arm: str) -> str:
        return self.arms[arm].baseline or self.baseline or next(iter(self.arms))

    def marks(self, arm: str) -> tuple[Mark, ...]:
        """Where an arm is measured. The KL of the first one is what other arms match."""
        work: tuple[Mark, ...] = ("work",) if self.budget_of(arm) is not None else ()
        kl: tuple[Mark, ...] = ("kl",) if self.arms[arm].match_kl is not None else ()
        return (*work, *kl) or ("end",)

    def align_config(self, arm: str, seed: int) -> AlignConfig:
        """The configuration of one run; an arm that matches a KL has room for three times its steps.

        Raises:
            ConfigError: a wrong key, or a task that the study cannot measure.
        """
        arm_config = self.arms[arm]
        file = arm_config.recipe or self.recipe
        values = merge(merge(AlignConfig().model_dump(), load_recipe(file)), merge(self.align, arm_config.align))
        values |= {"seed": seed, "judge": str(values["judge"]).replace("{seed}", str(seed))}
        config = parse_config(AlignConfig, values, f"arm {arm} ({file})")
        if config.prompts is not None or config.task not in TASKS:
            raise ConfigError(
                f"arm {arm}: the oracles know only the embedded worlds' prompts; remove `prompts`, and take a task "
                f"of {', '.join(TASKS)}"
            )
        if config.loop.num_steps == 0:
            raise ConfigError(f"arm {arm}: loop.num_steps 0 trains nothing")
        if arm_config.standardise and config.algorithm == "sft":
            raise ConfigError(f"arm {arm}: sft asks no judge, so there is nothing to standardise")
        if config.loop.log_every != 1:
            raise ConfigError(f"arm {arm}: loop.log_every {config.loop.log_every} loses points of the figure; take 1")
        if arm_config.match_kl is None:
            return config
        if config.optim.schedule != "constant":
            raise ConfigError(
                f"arm {arm}: with match_kl a run has {MAX_TIMES} times its steps, which would stretch optim.schedule "
                f"{config.optim.schedule}; take constant"
            )
        loop = config.loop.model_copy(update={"num_steps": MAX_TIMES * config.loop.num_steps})
        return config.model_copy(update={"loop": loop})

    def check(self) -> None:
        """Raises `ConfigError` if an arm's configuration is wrong, or differs from the others in `SAME`."""
        first, *others = ((name, self.align_config(name, self.seeds[0])) for name in self.arms)
        for name, config in others:
            for key in SAME:
                if getattr(config, key) != getattr(first[1], key):
                    raise ConfigError(f"arm {name}: {key} differs from that of arm {first[0]}; all arms share it")


def study_of(content: Mapping[str, Any], file: str, shuffled_judge: str | None) -> dict[str, Any]:
    """The values of a study from a file's content.

    A file without `arms` is a recipe of `align`: it is the arm `refl`, beside supervised continuation and, with a
    `shuffled_judge`, the same recipe with that judge.

    Raises:
        ConfigError: a `shuffled_judge` for a file that has no arm `shuffled`.
    """
    if "arms" in content:
        if shuffled_judge is None:
            return dict(content)
        if "shuffled" not in content["arms"]:
            raise ConfigError(f"{file}: has no arm `shuffled` for --shuffled-judge")
        return merge(content, {"arms": {"shuffled": {"align": {"judge": shuffled_judge}}}})
    arms: dict[str, Any] = {"refl": {}, "sft": {"align": {"algorithm": "sft", "gold_judge": None}}}
    if shuffled_judge is not None:
        arms["shuffled"] = {"align": {"judge": shuffled_judge}}
    return {"recipe": file, "arms": arms, "baseline": "refl"}

"""Commands that train: a recipe gives the configuration, flags override single leaves of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from rewarddance.align.config import AlignConfig
from rewarddance.apps.flags import Flags, read_with_recipe
from rewarddance.core.config import parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.core.progress import console
from rewarddance.jobs.train_reward_config import RewardConfig


@dataclass(frozen=True)
class Train(Flags):
    """Train a judge on preferences: rewarddance train [RECIPE.yaml] --out RUN [flags]

    Example: rewarddance train recipes/tiny/reward.yaml --data data/mine --out runs/judge --loop.num-steps 300
    """

    out: Path
    """Run folder."""
    config: Annotated[RewardConfig, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the run's newest checkpoint."""

    @classmethod
    def read(cls, program: str, args: list[str]) -> Self:
        found: Self = read_with_recipe(cls, RewardConfig, program, args)
        return found

    def run(self) -> None:
        from rewarddance.core.parallel import is_leader, processes
        from rewarddance.jobs.train import train_from_data

        with processes():
            folder = train_from_data(self.config, self.out, resume=self.resume)
            if is_leader():
                console.print(f"judge: {folder}", highlight=False)


@dataclass(frozen=True)
class Align(Flags):
    """Train a generator with a judge: rewarddance align [RECIPE.yaml] --out RUN [flags]

    Example: rewarddance align recipes/tiny/refl.yaml --judge runs/judge --out runs/refl --optim.lr 3e-5
    """

    out: Path
    """Run folder."""
    config: Annotated[AlignConfig, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the run's newest checkpoint."""

    @classmethod
    def read(cls, program: str, args: list[str]) -> Self:
        found: Self = read_with_recipe(cls, AlignConfig, program, args)
        return found

    def run(self) -> None:
        from rewarddance.jobs.align import align_from_names

        console.print(f"adapter: {align_from_names(self.config, self.out, self.resume)}", highlight=False)


@dataclass(frozen=True)
class Rerun(Flags):
    """Repeat a run from its run.json into a new folder.

    Example: rewarddance rerun runs/refl --out runs/refl-again
    """

    run_folder: tyro.conf.Positional[Path]
    out: Path

    def run(self) -> None:
        from rewarddance.core.runs import RunFolder

        found: dict[str, Any] = RunFolder(self.run_folder).read()
        if found["kind"] == "judge":
            Train(self.out, parse_config(RewardConfig, found["config"], str(self.run_folder))).run()
        elif found["kind"] == "align":
            Align(self.out, parse_config(AlignConfig, found["config"], str(self.run_folder))).run()
        else:
            raise ConfigError(f"{self.run_folder}: a {found['kind']} run is repeated by `rewarddance build`")


@dataclass(frozen=True)
class Build(Flags):
    """Train the embedded models from scratch and put them into the package (hours; resumes where it stopped).

    Example: rewarddance build --only vlm

    Example: torchrun --nproc-per-node 2 -m rewarddance build --only vlm
    """

    out: Path = Path("build")
    """Run folders of the trainings."""
    only: Literal["all", "autoencoder", "generator", "vision", "preferences", "vlm", "judge"] = "all"

    def run(self) -> None:
        from rewarddance.core.parallel import processes
        from rewarddance.jobs.build.assets import build_assets

        with processes():
            build_assets(self.out, self.only)

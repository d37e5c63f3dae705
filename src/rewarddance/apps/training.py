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

    Example: rewarddance train recipes/tiny/reward.yaml --data data/mine --out runs/folds --cross-validate 5
    """

    out: Path
    """Run folder."""
    config: Annotated[RewardConfig, tyro.conf.arg(name="")]
    resume: bool = False
    """Go on from the run's newest checkpoint. Folds always do."""
    cross_validate: int = 0
    """Train this many judges, each measured on the prompts that it was not trained on; 0 trains one judge."""
    leave_one_out: str | None = None
    """Train a judge for every value of a group (style, category, generator, annotator, source), each measured on the
    records of that value, which it has not seen."""

    @classmethod
    def read(cls, program: str, args: list[str]) -> Self:
        found: Self = read_with_recipe(cls, RewardConfig, program, args)
        return found

    def run(self) -> None:
        from rewarddance.core.parallel import is_leader, processes
        from rewarddance.jobs.train import train_from_data

        with processes():
            if self.cross_validate or self.leave_one_out:
                self._folds()
                return
            folder = train_from_data(self.config, self.out, resume=self.resume)
            if is_leader():
                console.print(f"judge: {folder}", highlight=False)

    def _folds(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.core.parallel import is_leader
        from rewarddance.data.parquet import RecordTable
        from rewarddance.jobs.cross_validate import cross_validate, folds_by_group, folds_by_prompt
        from rewarddance.jobs.train import data_folder

        if self.cross_validate and self.leave_one_out:
            raise ConfigError("train: --cross-validate and --leave-one-out are two ways to make folds; choose one")
        table = RecordTable.open(data_folder(self.config, self.out) / "train.parquet")
        if self.leave_one_out:
            folds = folds_by_group(table.group(self.leave_one_out), self.leave_one_out)
        else:
            folds = folds_by_prompt(table.prompts, self.cross_validate, self.config.seed)
        found = cross_validate(self.config, folds, table, self.out)
        if is_leader():
            show({"mean": found["mean"], "folds": found["folds"], "next": f"rewarddance report {self.out}"})


@dataclass(frozen=True)
class Align(Flags):
    """Train a generator with a judge: rewarddance align [RECIPE.yaml] --out RUN [flags]

    Example: rewarddance align recipes/tiny/refl.yaml --judge runs/judge --out runs/refl --optim.lr 3e-5

    Example: torchrun --nproc-per-node 8 -m rewarddance align recipes/sd3.yaml --prompts prompts.txt --out runs/refl
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
        from rewarddance.core.parallel import is_leader, processes
        from rewarddance.jobs.align_names import align_from_names

        with processes():
            adapter = align_from_names(self.config, self.out, self.resume)
            if is_leader():
                console.print(f"adapter: {adapter}", highlight=False)


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

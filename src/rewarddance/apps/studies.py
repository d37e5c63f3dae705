"""Commands that run studies: several trainings, one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rewarddance.align.config import AlignConfig
from rewarddance.apps.flags import Count, Flags, Least, SomeCount
from rewarddance.core.config import parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.reward.train_config import RewardConfig


@dataclass(frozen=True)
class StudyAlignment(Flags):
    """Ways to align a generator side by side, with controls, at equal counted work and at equal KL.

    The file lists the arms: recipes/tiny/study-alignment.yaml has the algorithms, recipes/tiny/study-judges.yaml has
    judges and references. A recipe of `align` is taken as the arm `refl`, beside supervised continuation (`sft`) and,
    with --shuffled-judge, the same recipe with that judge.

    Finished arms under --out are kept, and stopped arms are resumed. Several processes may share the folder.

    Example: rewarddance study alignment recipes/tiny/study-alignment.yaml --out runs/study --arms refl sft --seeds 0
    """

    file: tyro.conf.Positional[Path]
    """YAML file of the study's arms, or a recipe of `align`."""
    out: Path
    """Folder of the study: one run folder for every arm and seed, study.json and table.md."""
    shuffled_judge: str | None = None
    """A judge trained with `rewarddance train --shuffle-labels`, for the arm `shuffled`."""
    seeds: tuple[int, ...] = ()
    """Seeds to run now; those of the file when not given."""
    arms: tuple[str, ...] = ()
    """Arms to run now; all when not given."""
    split: Literal["benchmark", "development"] | None = None
    """`development` measures on other held-out prompts, for choosing settings."""
    num_noises: Annotated[int | None, Least(2)] = None
    """Fixed noises for each measured prompt."""
    every: SomeCount = None
    """Take every n-th of the measured prompts."""

    def run(self) -> None:
        from rewarddance.core.config import load_recipe
        from rewarddance.core.progress import say
        from rewarddance.lab.alignment_config import AlignmentStudyConfig, study_of
        from rewarddance.lab.alignment_tables import alignment_tables
        from rewarddance.lab.study_alignment import study_alignment
        from rewarddance.lab.study_tables import as_markdown

        values = study_of(load_recipe(self.file), str(self.file), self.shuffled_judge)
        given = {k: getattr(self, k) for k in ("split", "num_noises", "every")}
        values |= {k: v for k, v in given.items() if v is not None}
        config = parse_config(AlignmentStudyConfig, values, str(self.file))
        study = study_alignment(config, self.out, seeds=self.seeds, arms=self.arms)
        say(as_markdown(alignment_tables(study)))


@dataclass(frozen=True)
class StudyParadigms(Flags):
    """Ways of learning a reward side by side: scalar and generative, one at a time and in pairs, layouts, reasons.

    All variants see the same preferences for the same number of steps. Finished ones under --out are kept.

    Example: rewarddance study paradigms recipes/tiny/reward-few.yaml --data data/embedded --out runs/paradigms
    """

    out: Path
    """Folder of the study: one run folder for every variant and seed, study.json and table.md."""
    config: Annotated[RewardConfig, tyro.conf.arg(name="")]
    seeds: tuple[int, ...] = (0, 1, 2)
    only: tuple[str, ...] = ()
    """Names of variants; all variants if none is given."""

    def run(self) -> None:
        from rewarddance.core.parallel import process_group
        from rewarddance.core.progress import say
        from rewarddance.jobs.train import data_folder
        from rewarddance.lab.study_judges import PARADIGM_VARIANTS, study_judges
        from rewarddance.lab.study_tables import as_markdown, judge_tables

        unknown = [n for n in self.only if n not in PARADIGM_VARIANTS]
        if unknown:
            raise ConfigError(f"no variant {unknown[0]!r}; known: {', '.join(map(repr, PARADIGM_VARIANTS))}")
        chosen = {n: PARADIGM_VARIANTS[n] for n in self.only or PARADIGM_VARIANTS}
        with process_group():
            study = study_judges(self.config, chosen, data_folder(self.config, self.out), self.out, self.seeds)
        say(as_markdown(judge_tables(study)))


@dataclass(frozen=True)
class StudySizes(Flags):
    """The size table: each size of the embedded VLM, pretrained and taught to judge on the same data.

    The smallest size takes hours on a CPU. The command stops at the budget and continues at its next call. Unfinished
    sizes are empty in the table.

    Example: rewarddance study sizes --data data/embedded --out runs/sizes --sizes tiny-2m tiny-20m --budget 36000

    Example: rewarddance study sizes --data data/embedded --out runs/sizes --pretrained runs/pretrained --num-seeds 3
    """

    data: Path
    """A folder of `data build`."""
    out: Path
    """Folder of the study: run folders by size, study.json and table.md."""
    sizes: tuple[Literal["tiny-2m", "tiny-20m", "tiny-200m"], ...] = ("tiny-2m", "tiny-20m", "tiny-200m")
    budget: float = 3600.0
    """Seconds for this call."""
    recipe: Path = Path("recipes/tiny/reward.yaml")
    """How the judges are trained."""
    grow_from: str | None = None
    """A VLM (`tiny` or a folder) that every size starts from. It is made wider and deeper, and still computes the
    same function. It replaces the training of the vision tower."""
    pretrained: tuple[str, ...] = ()
    """VLMs with a pretraining of their own, which replace it: a folder of `rewarddance build --size`, or SIZE=FOLDER
    for each size."""
    vision_steps: int = 1500
    vlm_steps: int = 2400
    """Training steps of the VLM on its lessons. With --grow-from these are further steps; 0 for none."""
    large_batches: bool = False
    """Pretrain in large batches, for a GPU."""
    judge_steps: int | None = None
    """Steps of the judges' training; as the recipe says when not given."""
    seed: int = 0
    num_seeds: Count = 1
    """Judges of each size."""
    folds: Annotated[int, Least(0)] = 0
    """Folds of a cross-validation of each size; 0 for none."""
    device: str = "auto"
    """Device of the pretraining; judges use CUDA if there is one."""
    workers: Annotated[int | None, Least(0)] = None
    """Processes that make lessons ahead; by default 0 on a CPU, and up to 14 beside a GPU."""

    def run(self) -> None:
        from rewarddance.core.config import load_recipe, merge
        from rewarddance.core.parallel import process_group
        from rewarddance.core.progress import say
        from rewarddance.lab.study_sizes import SizesConfig, study_sizes
        from rewarddance.lab.study_tables import as_markdown, judge_tables

        judge = merge(RewardConfig().model_dump(), load_recipe(self.recipe))
        if self.judge_steps is not None:
            judge = merge(judge, {"loop": {"num_steps": self.judge_steps}})
        values = {k: getattr(self, k) for k in SizesConfig.model_fields.keys() & vars(self).keys()}
        values["pretrained"] = pretrained_by_size(self.pretrained, self.sizes)
        values["judge"] = parse_config(RewardConfig, judge, str(self.recipe))
        config = parse_config(SizesConfig, values, "study sizes")
        with process_group():
            study = study_sizes(config, self.data, self.out, self.budget)
        say(as_markdown(judge_tables(study)))


def pretrained_by_size(given: Sequence[str], sizes: Sequence[str]) -> dict[str, str]:
    """Folders of pretrained VLMs by size.

    Args:
        given: `SIZE=FOLDER`, or folders of `rewarddance build --size`, which have a folder for every size.

    Raises:
        ConfigError: a size that is not studied, or a folder without any of the sizes.
    """
    folders: dict[str, str] = {}
    for text in given:
        size, equals, folder = text.partition("=")
        if equals and size not in sizes:
            raise ConfigError(f"--pretrained {text}: {size!r} is not one of --sizes ({', '.join(sizes)})")
        by_size = {size: folder} if equals else {s: f"{text}/{s}/vlm" for s in sizes if (Path(text) / s).is_dir()}
        if not by_size:
            raise ConfigError(f"--pretrained {text}: has none of the folders {', '.join(sizes)}")
        folders |= by_size
    return folders


@dataclass(frozen=True)
class StudyOracle(Flags):
    """Does another algorithm (a network that was trained on renders) order the generator's pictures as the oracle does?

    Example: rewarddance study oracle
    """

    every: Count = 2
    """Take every n-th benchmark prompt."""
    num: Annotated[int, Least(2)] = 8
    """Pictures of each prompt."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.lab.study_oracle import study_oracle

        show(study_oracle(every=self.every, num=self.num, seed=self.seed))


@dataclass(frozen=True)
class StudyHacking(Flags):
    """Runs that are hacked on purpose against sound ones: does the alarm go off in time, and only then?

    A hacked run has a judge from a few pairs, no pull to the frozen policy and a high learning rate. Finished runs
    under --out are kept. The oracle measures how far a run has fallen, also if the alarm reads a judge.

    Example: rewarddance study hacking --data data/embedded --out runs/hacking
    """

    data: Path
    """A folder of `data build`; the judges of the hacked runs learn from a few of its records."""
    out: Path
    """Folder of the study: one run folder for every kind and seed, and study.json."""
    recipe: Path = Path("recipes/tiny/refl.yaml")
    """Recipe of the runs: refl or nft on the embedded world (`recipes/tiny/nft.yaml`)."""
    seeds: tuple[int, ...] = tuple(range(10))
    arms: tuple[Literal["hacked", "sound"], ...] = ("hacked", "sound")
    gold: Literal["oracle", "judge"] = "oracle"
    """What the alarm reads: the exact oracle, or a held-out judge only."""
    gold_judge: str | None = None
    """The held-out judge of --gold judge."""
    num_pairs: Count = 200
    hacked_steps: Count = 20
    sound_steps: Count = 100
    every: Count = 2
    """Steps between the probes of a hacked run."""
    sound_every: Count = 10
    """Steps between the probes of a sound run."""
    probe_prompts: Count = 160

    def run(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.core.config import load_recipe
        from rewarddance.lab.study_hacking import HackingStudyConfig, study_hacking

        values = {k: getattr(self, k) for k in HackingStudyConfig.model_fields.keys() & vars(self).keys()}
        align = parse_config(AlignConfig, load_recipe(self.recipe), str(self.recipe))
        few = Path("recipes/tiny/reward-few.yaml")
        reward = parse_config(RewardConfig, load_recipe(few), str(few))
        config = parse_config(HackingStudyConfig, values, "study hacking")
        show(study_hacking(config, align, reward, self.data, self.out, seeds=self.seeds, arms=self.arms))


@dataclass(frozen=True)
class StudyWeights(Flags):
    """What the parts of a composite are worth: each one dropped, each one doubled, and all weights fitted to people's
    choices by logistic regression, with 95% intervals over prompts.

    Example: rewarddance study weights reward.yaml --data data/mine --goal "posters" --out runs/weights
    """

    file: tyro.conf.Positional[Path]
    """A composite that is fitted (`rewarddance composite`)."""
    data: Path
    """A data folder (its held-out prompts, if it has some), or a Parquet file of it."""
    out: Path
    """Folder of the study: study.json and table.md. `rewarddance report` makes its page."""
    goal: str = ""
    """What the reward is for, in words; kept as part of the reasons."""
    constraints: str = ""
    """What the deployment forbids, in words."""
    criterion: str | None = None
    """Criterion of the records to use. If not given: `overall` if it is one of several criteria, otherwise all
    records."""
    most: Count = 1000
    """Largest number of records to use, evenly spread."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.core.progress import say
        from rewarddance.lab.study_tables import as_markdown, weight_tables
        from rewarddance.lab.study_weights import study_weights

        study = study_weights(
            self.file,
            self.data,
            self.out,
            goal=self.goal,
            constraints=self.constraints,
            criterion=self.criterion,
            most=self.most,
            seed=self.seed,
        )
        say(as_markdown(weight_tables(study)))


@dataclass(frozen=True)
class StudySearch(Flags):
    """Searches at inference against best-of-N, at equal numbers of forward passes (NFE), measured by the oracle.

    Cells under --out that are finished are kept; several processes may share the folder. Choose settings with --split
    development, and report with the benchmark.

    Example: rewarddance study search --out runs/search --nfe 50 100 200
    """

    out: Path
    """Folder of the study: cells/, study.json and table.md."""
    judge: str = "tiny"
    generator: str = "tiny"
    task: str = "embedded"
    """Where prompts and oracle come from: embedded; embedded-video or embedded-image-to-video with a generator and a
    judge of clips."""
    settings: Path | None = None
    """A YAML file with settings by name, each with its `kind`; recipes/tiny/search.yaml is one. Without it every search
    with its defaults."""
    only: tuple[str, ...] = ()
    """Names of settings; all if none is given."""
    verifiers: tuple[Literal["pointwise", "anchor", "round_robin", "oracle"], ...] = ()
    """Ways to ask the judge, and `oracle` for the upper bound. When not given: `anchor` and `oracle`, and `pointwise`
    if the judge answers that question."""
    nfe: tuple[int, ...] = (50, 100, 200, 400, 800)
    """Budgets: forward passes of the generator for each prompt."""
    seeds: tuple[int, ...] = (0, 1)
    """With two or more, the study measures the diversity of the winners across seeds."""
    num_steps: Count = 10
    """Steps of a whole sample."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is off. With guidance a step counts two forward passes."""
    split: Literal["benchmark", "development"] = "benchmark"
    """`development` has other held-out prompts, for choosing settings."""
    every: Count = 5
    """Take every n-th of the prompts (240 in the benchmark, 100 for development; for clips 48 and 48)."""

    def run(self) -> None:
        from rewarddance.core.config import load_recipe
        from rewarddance.core.progress import say
        from rewarddance.lab.study_search import SearchStudyConfig, study_search
        from rewarddance.lab.study_tables import as_markdown, search_tables

        values = {k: getattr(self, k) for k in SearchStudyConfig.model_fields.keys() & vars(self).keys()}
        if self.settings is not None:
            values["searches"] = load_recipe(self.settings)
        config = parse_config(SearchStudyConfig, values, "study search")
        unknown = [n for n in self.only if n not in config.searches]
        if unknown:
            raise ConfigError(f"no settings {unknown[0]!r}; known: {', '.join(map(repr, config.searches))}")
        searches = {n: s for n, s in config.searches.items() if n in self.only or not self.only}
        study = study_search(config.model_copy(update={"searches": searches}), self.out)
        say(as_markdown(search_tables(study)))

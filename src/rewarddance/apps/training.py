"""Commands that train: a recipe gives the configuration, flags override single keys of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rewarddance.align.config import AlignConfig
from rewarddance.apps.flags import Count, Flags, Least
from rewarddance.core.config import parse_config
from rewarddance.core.errors import ConfigError
from rewarddance.core.progress import say
from rewarddance.lab.video_config import VideoBuildConfig, VideoPart
from rewarddance.reward.learned_config import KIND, LearnedConfig
from rewarddance.reward.train_config import RewardConfig

if TYPE_CHECKING:
    from rewarddance.data.parquet import RecordTable
    from rewarddance.jobs.cross_validate import Fold


def chosen_folds(table: RecordTable, num: int, group: str | None, seed: int) -> list[Fold]:
    """The folds that the flags --cross-validate and --leave-one-out ask for.

    Raises:
        ConfigError: both were given.
    """
    from rewarddance.jobs.cross_validate import folds_by_group, folds_by_prompt

    if num and group:
        raise ConfigError("train: --cross-validate and --leave-one-out are two ways to make folds; choose one")
    return folds_by_group(table.group(group), group) if group else folds_by_prompt(table.prompts, num, seed)


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
    """Continue from the run's newest checkpoint. Folds always continue."""
    cross_validate: int = 0
    """Train this many judges. Each is measured on the prompts that it was not trained on. 0 trains one judge."""
    leave_one_out: str | None = None
    """Train one judge for each value of a group (style, category, generator, annotator, source). Each is measured on
    the records of its value, which it has not seen in training."""

    def run(self) -> None:
        from rewarddance.core.parallel import is_leader, process_group
        from rewarddance.jobs.train import train_from_data

        with process_group():
            if self.cross_validate or self.leave_one_out:
                self._folds()
                return
            folder = train_from_data(self.config, self.out, resume=self.resume)
            if is_leader():
                say(f"judge: {folder}")

    def _folds(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.core.parallel import is_leader
        from rewarddance.data.parquet import RecordTable
        from rewarddance.jobs.cross_validate import cross_validate
        from rewarddance.jobs.train import data_folder

        table = RecordTable.open(data_folder(self.config, self.out) / "train.parquet")
        folds = chosen_folds(table, self.cross_validate, self.leave_one_out, self.config.seed)
        result = cross_validate(self.config, folds, table, self.out)
        if is_leader():
            show({"mean": result["mean"], "folds": result["folds"], "next": f"rewarddance report {self.out}"})


@dataclass(frozen=True)
class TrainLearned(Flags):
    """Train a learned reward, a small transformer on frozen embeddings, on ratings of pictures.

    It has a head for every criterion and a scalar head. Figures on held-out prompts are in RUN/ratings.json.

    Example: rewarddance train learned recipes/tiny/learned.yaml --data data/rated --out runs/learned

    Example: rewarddance train learned recipes/tiny/learned.yaml --data data/rated --out runs/folds --cross-validate 5
    """

    out: Path
    """Run folder."""
    config: Annotated[LearnedConfig, tyro.conf.arg(name="")]
    resume: bool = False
    """Continue from the run's newest checkpoint. Folds always continue."""
    cross_validate: int = 0
    """Train this many judges. Each is measured on the prompts that it was not trained on. 0 trains one judge."""
    leave_one_out: str | None = None
    """Train one judge for each value of a group (style, category, generator, annotator, source). Each is measured on
    the records of its value, which it has not seen in training."""

    def run(self) -> None:
        from rewarddance.apps.commands import show
        from rewarddance.data.parquet import RecordTable
        from rewarddance.jobs.learned import cross_validate_learned, train_learned_from_data

        if not (self.cross_validate or self.leave_one_out):
            say(f"judge: {train_learned_from_data(self.config, self.out, resume=self.resume)}")
            return
        table = RecordTable.open(Path(self.config.data) / "train.parquet")
        folds = chosen_folds(table, self.cross_validate, self.leave_one_out, self.config.seed)
        result = cross_validate_learned(self.config, folds, table, self.out)
        show({"mean": result["mean"], "folds": result["folds"], "next": f"rewarddance report {self.out}"})


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
    """Continue from the run's newest checkpoint."""

    def run(self) -> None:
        from rewarddance.core.parallel import is_leader, process_group
        from rewarddance.jobs.align import align_from_names

        with process_group():
            adapter = align_from_names(self.config, self.out, self.resume)
            if is_leader():
                say(f"adapter: {adapter}")


@dataclass(frozen=True)
class Rerun(Flags):
    """Repeat a run from its run.json into a new folder.

    Example: rewarddance rerun runs/refl --out runs/refl-again
    """

    run_folder: tyro.conf.Positional[Path]
    out: Path
    resume: bool = False
    """Continue from the newest checkpoint under --out."""

    def run(self) -> None:
        from rewarddance.core.runs import RunFolder

        record: dict[str, Any] = RunFolder(self.run_folder).read()
        commands: dict[str, tuple[Any, Any]] = {
            "judge": (Train, RewardConfig),
            KIND: (TrainLearned, LearnedConfig),
            "align": (Align, AlignConfig),
        }
        if record["kind"] not in commands:
            raise ConfigError(f"{self.run_folder}: a {record['kind']} run is repeated by `rewarddance build`")
        command, schema = commands[record["kind"]]
        command(self.out, parse_config(schema, record["config"], str(self.run_folder)), self.resume).run()


@dataclass(frozen=True)
class Build(Flags):
    """Train the embedded models from scratch and put them into the package (hours; continues where it stopped).

    With --size only a VLM of that size is pretrained, from random weights, under OUT/SIZE. It is not put into the
    package; `rewarddance study sizes --pretrained OUT` takes it.

    Example: rewarddance build --only vlm

    Example: torchrun --nproc-per-node 2 -m rewarddance build --only vlm

    Example: rewarddance build --size tiny-20m --data data/embedded --vlm-steps 3000 --out runs/pretrained
    """

    out: Path = Path("build")
    """Run folders of the trainings."""
    only: Literal["all", "autoencoder", "generator", "vision", "contrastive", "preferences", "vlm", "judge"] = "all"
    """`contrastive` is the embedded CLIP. It starts from the shipped vision tower and generator."""
    size: Literal["tiny-2m", "tiny-20m", "tiny-200m"] | None = None
    """Pretrain a VLM of this size alone, from random weights."""
    vision_steps: Count = 600
    """With --size: steps of the vision tower."""
    vlm_steps: Count = 2400
    """With --size: steps of the VLM."""
    data: Path | None = None
    """With --size: a folder of `data build`, for lessons on the generator's pictures. Renders alone if not given."""
    shipped_batches: bool = False
    """With --size: small batches as for the shipped VLM, not large ones for a GPU."""
    device: str = "auto"
    """`auto` is CUDA if there is one."""
    workers: Annotated[int | None, Least(0)] = None
    """Processes that make batches ahead; by default 0 on a CPU, and up to 14 beside a GPU."""
    seed: int = 0
    """With --size: seed of the pretraining."""

    def run(self) -> None:
        from rewarddance.core.parallel import process_group
        from rewarddance.lab.assets import SizeSettings, build_assets, build_size

        with process_group():
            if self.size is None:
                build_assets(self.out, self.only, self.device, self.workers)
                return
            settings = SizeSettings(
                size=self.size,
                vision_steps=self.vision_steps,
                vlm_steps=self.vlm_steps,
                large=not self.shipped_batches,
                device=self.device,
                workers=self.workers,
                seed=self.seed,
            )
            build_size(settings, self.out, None if self.data is None else self.data / "train.parquet")


@dataclass(frozen=True)
class BuildVideo(Flags):
    """Train the embedded video models, measure them on held-out prompts, and pack each into a tar.

    Stages: video_autoencoder, text_to_video, image_to_video, and clip_vlm, a VLM that judges of clips begin from.
    Finished stages are kept; stopped ones are resumed.

    Example: rewarddance build video --out build/video --seconds 180

    Example: rewarddance build video --only text_to_video --text-to-video.loop.num-steps 2000
    """

    config: Annotated[VideoBuildConfig, tyro.conf.arg(name="")]
    out: Path = Path("build/video")
    """Run folders of the trainings."""
    only: VideoPart = "all"
    seconds: float | None = None
    """Training time of each stage but clip_vlm. A short run measures the speed, and the number of steps follows from
    it."""

    def run(self) -> None:
        from rewarddance.lab.build_video import build_video

        build_video(self.config, self.out, self.only, self.seconds)


@dataclass(frozen=True)
class BuildShip(Flags):
    """Put the model of a finished run into the package, in bf16, with the run's configuration beside it.

    `tiny-video` and `tiny-image-to-video` are runs of `build video`, `tiny-clips` is a judge of clips.

    Example: rewarddance build ship build/video/text_to_video --name tiny-video
    """

    run_folder: tyro.conf.Positional[Path]
    """The finished run."""
    name: Literal["tiny-video", "tiny-image-to-video", "tiny-clips"]
    """The name by which commands will know it."""

    def run(self) -> None:
        from rewarddance.lab.assets import ship_clip_model

        ship_clip_model(self.run_folder, self.name)

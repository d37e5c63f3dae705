"""Commands on preference data: build, import, statistics, splits, export, and which pairs to label next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, Least, SomeCount, need
from rewarddance.core.progress import say
from rewarddance.data.names import Format, SplitBy, Strategy


@dataclass(frozen=True)
class DataBuild(Flags):
    """Preferences of the embedded world, or with --prompts a pool of pictures without votes.

    The embedded world gives train.parquet, id.parquet (held out) and ood.parquet. Clips have changes.parquet too:
    held-out pairs of a right clip and one with a single thing wrong. `evaluate --judge` reports the accuracy for each
    kind of fault. A pool has pictures of every prompt, seed and setting, for `data select` and annotation tools. A
    stopped build of a pool continues, and several processes on one folder share the work. `--engine ray` draws it on
    the actors of a Ray cluster, which must share the folder.

    Example: rewarddance data build --out data/embedded --num-prompts 3000

    Example: rewarddance data build --task t2v --criterion overall --num-prompts 4800 --out data/clips

    Example: rewarddance data build --task t2v --criterion overall --generator tiny-video --out data/own-clips

    Example: rewarddance data build --prompts prompts.txt --images-per-prompt 4 --guidance 1 4.5 --out data/pool
    """

    out: Path
    """Folder to write."""
    prompts: Path | None = None
    """A file of prompts: text, JSONL with `prompt` (GenEval's too), JSON of COCO's captions or VBench. Or a set of
    pictures with captions: LAION's Parquet, webdataset tars, a folder or CSV of WikiArt."""
    images_per_prompt: Count = 4
    """With --prompts: seeds of every prompt and setting."""
    num_steps: tuple[int, ...] = (20,)
    """With --prompts: sampling steps; every one is combined with every guidance."""
    guidance: tuple[float, ...] = (1.0,)
    """With --prompts: guidance scales."""
    sample_batch: Count = 128
    """With --prompts: pictures sampled and decoded at once."""
    resolution: SomeCount = None
    """With --prompts: side of the pictures in pixels; the checkpoint's own by default."""
    adapter: Path | None = None
    """With --prompts: a run folder of `rewarddance align`."""
    engine: Literal["local", "ray"] = "local"
    """With --prompts: who draws, this process or Ray's actors (RAY_ADDRESS, or a Ray that this command starts)."""
    actors: SomeCount = None
    """With --engine ray: actors, each with one generator; by default one for each GPU, or for each CPU without GPUs."""
    task: Literal["t2i", "t2v", "i2v"] = "t2i"
    """What the embedded world shows: pictures, clips of prompts, or clips that go on from a given first frame."""
    num_prompts: Count = 9600
    num_held_out: Count = 128
    """Prompts in each of the two held-out splits."""
    pictures: Annotated[int, Least(2)] = 4
    """Pictures (or clips) of each prompt of the embedded world."""
    generator: str = "tiny"
    """Generator whose samples are judged beside renders; `none` for renders alone. Clips are renders alone unless you
    name a generator, such as `tiny-video`. With --prompts it draws all pictures."""
    generator_share: float = 0.7
    """Share of prompts whose pictures (or clips) the generator draws."""
    single_share: float = 0.0
    """Clips: share of the rendered training records with one right clip, and others with a single change each."""
    criterion: Literal[
        "fidelity", "style", "composition", "novelty", "overall", "each", "motion", "consistency", "first_frame"
    ] = "fidelity"
    """The criterion of the raters. Clips: `fidelity`, `motion`, `consistency`, `first_frame` (i2v) or `overall`. With
    `each` they judge the pictures of every prompt by all five criteria of pictures, one record for each; `train
    learned` needs these ratings."""
    votes: Count = 5
    """Simulated raters who judge each pair; its label is their mean choice."""
    shuffle_labels: bool = False
    """Random labels, for the control judge."""
    seed: int = 0

    def run(self) -> None:
        pool_flags = {"images_per_prompt", "num_steps", "guidance", "sample_batch", "resolution", "adapter"}
        pool_flags |= {"engine", "actors"}
        world_flags = {"num_prompts", "num_held_out", "pictures", "generator_share", "criterion", "votes"}
        world_flags |= {"shuffle_labels", "task", "single_share"}
        unused = self.given() & (pool_flags if self.prompts is None else world_flags)
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        which = "without" if self.prompts is None else "with"
        need(not flags, f"data build: {flags} cannot be used in a build {which} --prompts")
        if self.prompts is not None:
            self._build_pool(self.prompts)
            return
        clips = self.task != "t2i"
        renders_alone = clips and (self.generator == "none" or "generator" not in self.given())
        need(
            not renders_alone or "generator_share" not in self.given(),
            f"data build: --task {self.task} is made of renders alone without --generator; leave --generator-share out",
        )
        need(clips or not self.single_share, "data build: --single-share is for clips; add --task t2v or i2v")
        need(0 <= self.single_share <= 1, f"data build: --single-share {self.single_share:g}: a share between 0 and 1")
        wrong = ("motion", "consistency", "first_frame") if not clips else ("style", "composition", "novelty", "each")
        need(self.criterion not in wrong, f"data build: --task {self.task} has no criterion {self.criterion}")
        need(self.task == "i2v" or self.criterion != "first_frame", "data build: first_frame needs --task i2v")
        if clips:
            self._build_clips(None if renders_alone else self.generator)
            return
        from rewarddance.jobs.data.build import build_embedded

        folder = build_embedded(
            self.out,
            self.seed,
            self.num_held_out,
            None if self.generator == "none" else self.generator,
            num_prompts=self.num_prompts,
            pictures=self.pictures,
            generator_share=self.generator_share,
            criterion=self.criterion,
            votes=self.votes,
            shuffle_labels=self.shuffle_labels,
        )
        say(f"wrote {folder}")

    def _build_clips(self, generator: str | None) -> None:
        from rewarddance.jobs.data.build import build_moving

        folder = build_moving(
            self.out,
            self.seed,
            self.num_held_out,
            generator,
            task=self.task,
            num_prompts=self.num_prompts,
            clips=self.pictures,
            generator_share=self.generator_share,
            single_share=self.single_share,
            criterion=self.criterion,
            votes=self.votes,
            shuffle_labels=self.shuffle_labels,
        )
        say(f"wrote {folder}")

    def _build_pool(self, prompts: Path) -> None:
        from rewarddance.jobs.data.pictures import Pool, build_pictures, draw_here
        from rewarddance.jobs.data.ray_engine import ray_engine
        from rewarddance.jobs.sample import Sampling

        need(self.actors is None or self.engine == "ray", "data build: --actors needs --engine ray")
        need(
            min(self.num_steps, default=0) >= 1 and bool(self.guidance), "data build: needs --num-steps and --guidance"
        )
        sampling = Sampling(self.generator, sample_batch=self.sample_batch, resolution=self.resolution)
        pool = Pool(sampling, self.images_per_prompt, self.num_steps, self.guidance, self.seed)
        engine = ray_engine(self.actors) if self.engine == "ray" else draw_here
        made = build_pictures(prompts, self.out, pool, self.adapter, engine)
        show(made)
        if not made["complete"]:
            say("other processes are still drawing; the last one to end writes train.parquet")


@dataclass(frozen=True)
class DataImport(Flags):
    """Preferences to Parquet that `datasets.load_dataset` reads, with every vote, a manifest and a data card.

    Reads the files of ImageReward, ImageRewardDB, HPDv2, HPDv3, Pick-a-Pic, RichHF-18K, VideoFeedback,
    VideoGen-RewardBench, GenAI-Bench, MJ-Bench, MMRB2, TRL, Label Studio, Argilla and FastChat as published, and your
    own rows.

    Own rows of a JSONL or CSV file: prompt with image_a, image_b and label (a, b, tie or both_bad), probability (of
    the first), votes_a and votes_b, or rating_a and rating_b (1 to 5); or chosen, rejected; or (JSONL) images and
    ranking, lower is better, or ratings; equal ones are ties. A column criterion says what a choice is about;
    annotator, created, seconds, shown (ab or ba) and strength (0 to 1) say who judged and how. The columns of pictures
    may name clips (MP4, WebM, or a GIF of several frames). A column condition names the picture that the candidates
    were made from, such as the first frame of image-to-video. `import.json` counts rows and lists broken ones.

    Example: rewarddance data import votes.csv --media-root images --out data/mine

    Example: rewarddance data import train.json --format hpdv3 --media-root HPDv3 --out data/hpdv3 --on-error skip
    """

    file: tyro.conf.Positional[Path]
    """The preferences; for Parquet and TFRecord also a folder of shards."""
    out: Path
    """Folder to write."""
    format: Literal["auto"] | Format = "auto"
    """`auto` recognises the format by the keys of the first rows, and prints it."""
    media_root: Path | None = None
    """Folder that paths of pictures and clips are relative to; nothing outside it is read. The file's own folder when
    not given."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with broken rows: list them and stop, or leave them out."""
    criteria: tuple[str, ...] = ()
    """Criteria of your own that a column `criterion` may name; give each a sentence with `train
    --context.instructions`."""
    shard_mib: Count = 512
    """MiB of pictures at which a new Parquet file begins."""
    store_clips: bool = False
    """Keep the files of clips in the data, so that judges can be trained and evaluated on them. Without it a record
    only names its clips."""

    def run(self) -> None:
        from rewarddance.data.importers import import_preferences
        from rewarddance.reward.context import Context

        words = Context()
        known = (*dict.fromkeys([*words.words.criteria, *words.clip_words.criteria]), *self.criteria)
        root = self.media_root or (self.file if self.file.is_dir() else self.file.parent)
        report = import_preferences(
            self.file,
            self.format,
            root,
            self.out,
            self.on_error,
            known,
            shard_bytes=self.shard_mib << 20,
            store_clips=self.store_clips,
        )
        show({k: v for k, v in report.as_dict().items() if k != "rejected"})
        for line in report.messages(known):
            say(line)


@dataclass(frozen=True)
class DataStats(Flags):
    """Statistics of a data folder: labels, ties, agreement between annotators, side bias, duplicates, contradictions.

    Agreement is Krippendorff's alpha of choices (nominal) and of ratings (interval), with bootstrap intervals. Leakage
    counts the prompts (without regard to case and punctuation) and pictures that two splits share.

    Example: rewarddance data stats data/mine
    """

    data: tyro.conf.Positional[Path]
    """A folder of `data import`, `data build` or `data split`, or one Parquet file."""
    pixels: bool = True
    """Open every picture, to find equal pictures in different files too."""

    def run(self) -> None:
        from rewarddance.data.stats import data_stats

        show(data_stats(self.data, self.pixels))


@dataclass(frozen=True)
class DataSplit(Flags):
    """Hold records out: train.parquet, and id.parquet (other prompts) or ood.parquet (other models, styles, people).

    A split by annotator divides the votes, so that a judge can be measured against people it never learned from. A
    split by model holds out every record with a picture of a held-out model.

    Example: rewarddance data split data/mine --out data/split --share 0.1

    Example: rewarddance data split data/mine --out data/folds --by annotator --folds 5
    """

    data: tyro.conf.Positional[Path]
    """A data folder, whose training records are divided, or one Parquet file."""
    out: Path
    """Folder to write; with --folds it holds a folder for each fold."""
    by: SplitBy = "prompt"
    """The key to split by: records with the same value are on the same side."""
    share: float = 0.1
    """Share of the records to hold out."""
    hold_out: tuple[str, ...] = ()
    """Values to hold out by name, in place of a share."""
    folds: Annotated[int | None, Least(2)] = None
    """K folders, each with another part held out."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.data.splits import split_data

        need(0 < self.share < 1, f"data split: --share {self.share}: needs a number between 0 and 1")
        need(not (self.folds and self.hold_out), "data split: --folds and --hold-out do not go together")
        show(split_data(self.data, self.out, self.by, self.share, self.seed, self.folds, self.hold_out))


@dataclass(frozen=True)
class DataExport(Flags):
    """Records as a file of another format, with their pictures beside it. `jsonl` keeps everything.

    The result says how many records the format could not hold, why, and which fields it has no place for.

    Example: rewarddance data export data/mine --format trl --out export
    """

    data: tyro.conf.Positional[Path]
    """A data folder, whose training records are exported, or one Parquet file."""
    format: Format
    out: Path
    """Folder to write."""
    criterion: str | None = None
    """The criterion to export to a format that knows no criteria; `overall` if the data have it."""

    def run(self) -> None:
        from rewarddance.data.export import export
        from rewarddance.data.folder import splits_of

        show(export(splits_of(self.data).get("train") or self.data, self.format, self.out, self.criterion))


@dataclass(frozen=True)
class DataSelect(Flags):
    """Choose which pairs without votes to label next. Writes them as a data folder that `annotate` takes, and as
    pairs.jsonl with an empty `label`.

    Strategies: `disagreement` (each judge is sure, but the judges disagree), `uncertainty` (P(yes) near one half),
    `coverage` (pairs unlike each other), `mixed` (coverage among the best pairs of the others), `random` (the control).

    Example: rewarddance data select data/pool --judges runs/a runs/b --budget 200 --out data/next
    """

    data: tyro.conf.Positional[Path]
    """A data folder, or one Parquet file."""
    out: Path
    """Folder to write."""
    budget: Count = 100
    """Pairs to choose."""
    judges: tuple[str, ...] = ("tiny",)
    """Judges that are asked, each as `score --judge` takes it."""
    strategy: Strategy = "mixed"
    criterion: str = "overall"
    """The criterion of the labels."""
    most_per_prompt: SomeCount = 4
    """Largest number of pairs of one prompt, as long as other prompts have pairs left."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.jobs.data.select import judges_needed, select_pairs
        from rewarddance.jobs.load import load_judge

        judge_names = self.judges if judges_needed(self.strategy) else ()
        judges = {name: load_judge(name) for name in judge_names}
        most = self.most_per_prompt or self.budget
        show(select_pairs(self.data, judges, self.out, self.budget, self.strategy, self.criterion, most, self.seed))

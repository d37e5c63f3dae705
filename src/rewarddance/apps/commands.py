"""Commands that do not train."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rewarddance.apps.flags import Count, Flags, Least, SomeCount, need
from rewarddance.core.progress import console


def show(values: Any) -> None:
    """Results go to standard output as JSON, one object."""
    print(json.dumps(values, indent=2))


@dataclass(frozen=True)
class Demo(Flags):
    """The main job on the embedded world: preferences, judge, alignment, evaluation, report.

    Example: rewarddance demo --out runs/demo
    """

    out: Path = Path("runs/demo")
    """Folder for everything; an earlier demo there is replaced."""
    fast: bool = False
    """A few steps of everything, for tests; its figures mean nothing."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.apps.report import write_report
        from rewarddance.jobs.demo import run_demo

        summary = run_demo(self.out, fast=self.fast, seed=self.seed)
        page = write_report(self.out)
        gain = summary["gain"]
        console.print(
            f"oracle fidelity {gain['mean']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}] ({gain['verdict']}); "
            f"{summary['seconds']:.0f} s, {summary['peak_memory_mib'] / 1024:.1f} GiB; open {page}",
            highlight=False,
            soft_wrap=True,
        )


@dataclass(frozen=True)
class DataBuild(Flags):
    """Preferences of the embedded world: train.parquet, id.parquet (held out) and ood.parquet.

    Example: rewarddance data build --out data/embedded --num-prompts 3000
    """

    out: Path
    """Folder to write."""
    num_prompts: Count = 9600
    num_held_out: Count = 128
    """Prompts in each of the two held-out splits."""
    pictures: Annotated[int, Least(2)] = 4
    """Pictures of each prompt."""
    generator: str = "tiny"
    """Whose samples are judged beside renders; `none` for renders alone."""
    generator_share: float = 0.7
    criterion: Literal["fidelity", "style", "composition", "novelty", "overall"] = "fidelity"
    """What the raters judge by."""
    votes: Count = 5
    """Simulated raters who see each pair; its label is their mean choice."""
    shuffle_labels: bool = False
    """Labels that know nothing, for the control."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.jobs.build.preferences import PreferencesConfig
        from rewarddance.jobs.data_build import build_data

        config = PreferencesConfig(
            seed=self.seed,
            num_prompts=self.num_prompts,
            pictures=self.pictures,
            generator_share=self.generator_share,
            criterion=self.criterion,
            votes=self.votes,
            shuffle_labels=self.shuffle_labels,
        )
        generator = None if self.generator == "none" else self.generator
        console.print(f"wrote {build_data(config, self.num_held_out, generator, self.out)}", highlight=False)


@dataclass(frozen=True)
class DataImport(Flags):
    """Your own PNG, JPEG or WebP pictures and preferences to Parquet that `datasets.load_dataset` reads.

    Rows of a JSONL or CSV file: prompt with image_a, image_b and label (a, b or tie), probability (of the first),
    votes_a and votes_b, or rating_a and rating_b (1 to 5); or chosen, rejected; or (JSONL) images and ranking, lower is
    better, or ratings; equal ones are ties. A column criterion says what a choice is about. `import.json` counts rows
    and lists broken ones.

    Example: rewarddance data import votes.csv --format csv --media-root images --out data/mine
    """

    file: tyro.conf.Positional[Path]
    """The preferences."""
    format: Literal["jsonl", "csv", "imagereward"]
    media_root: Path
    """Folder that picture paths are relative to; nothing outside it is read."""
    out: Path
    """Folder to write."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about broken rows: list them and stop, or leave them out."""
    criteria: tuple[str, ...] = ()
    """Criteria of your own that a column `criterion` may name; `train --context.instructions` words them."""

    def run(self) -> None:
        from rewarddance.data.importers import import_preferences
        from rewarddance.reward.context import INSTRUCTIONS

        found = import_preferences(
            self.file, self.format, self.media_root, self.out, self.on_error, (*INSTRUCTIONS, *self.criteria)
        )
        show({k: v for k, v in found.as_dict().items() if k != "rejected"})
        for number, why in found.rejected[:20]:
            console.print(f"row {number}: {why}", highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class DataRationales(Flags):
    """Ask a teacher for reasons and keep those whose verdict agrees with the label; for chain-of-thought judges.

    Answers are kept as they come, so a stopped run goes on where it was. `rationales.json` counts what was kept, what
    disagreed, was refused or could not be read, and what it cost.

    Example: rewarddance data rationales data/embedded --out data/reasons

    Example: rewarddance data rationales data/mine --url http://localhost:8000/v1 --model Qwen3-VL-32B --out data/why
    """

    folder: tyro.conf.Positional[Path]
    """A folder of `data build` or `data import`."""
    out: Path
    """Folder to write."""
    url: str | None = None
    """An OpenAI-compatible server, with its version; without one, the embedded world's oracle tells."""
    model: str | None = None
    """Its model."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the server's key; not needed where it is unset."""
    workers: Count = 8
    """Questions under way at once."""
    limit: SomeCount = None
    """Ask about this many choices only."""
    price: tuple[float, float] = (0.0, 0.0)
    """Of a million tokens read and written, for the cost count."""
    instructions: dict[str, str] = field(default_factory=dict)
    """Words for criteria of your own, as `train --context.instructions` takes them."""

    def run(self) -> None:
        from rewarddance.jobs.rationales import OracleTeacher, Teacher, add_rationales

        need((self.url is None) == (self.model is None), "data rationales: --url and --model go together")
        teacher: Teacher = OracleTeacher()
        if self.url is not None and self.model is not None:
            from rewarddance.jobs.teacher_http import HttpTeacher

            teacher = HttpTeacher(self.url, self.model, os.environ.get(self.key_env), instructions=self.instructions)
        workers = 1 if self.url is None else self.workers
        show(add_rationales(self.folder, teacher, self.out, limit=self.limit, workers=workers, price=self.price))


@dataclass(frozen=True)
class Score(Flags):
    """Judge one picture (pointwise), two (candidate against reference), or every comparison of a data folder.

    Example: rewarddance score --prompt "a red circle" --candidate a.png --reference b.png

    Example: rewarddance score data/mine --judge runs/judge --out scores.jsonl
    """

    data: Annotated[Path | None, tyro.conf.Positional] = None
    """A folder written by `data build` or `data import`, or a Parquet file of it."""
    judge: str = "tiny"
    """`tiny`, a run folder of `rewarddance train`, or a local checkpoint."""
    prompt: str | None = None
    candidate: Path | None = None
    reference: Path | None = None
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    out: Path | None = None
    """Where to write one line a comparison when a data folder is scored."""
    tiles: SomeCount = None
    """Parts that a large picture is cut into at most, beside a view of the whole; as in training when not given."""

    def run(self) -> None:
        from rewarddance.jobs.score import score_data, score_one

        idle = {"out"} if self.data is None else {"prompt", "candidate", "reference", "criterion"}
        kind = "one picture" if self.data is None else "a data folder, whose records bring their own"
        flags = ", ".join(f"--{flag}" for flag in sorted(idle & self.given()))
        need(not flags, f"score: {flags} has no part in judging {kind}")
        if self.data is not None:
            show(score_data(self.data, self.judge, self.out, self.tiles))
            return
        need(
            self.prompt is not None and self.candidate is not None,
            "score: give a data folder, or --prompt and --candidate",
        )
        assert self.prompt is not None
        assert self.candidate is not None
        show(score_one(self.judge, self.prompt, self.candidate, self.reference, self.criterion, self.tiles))


@dataclass(frozen=True)
class Rank(Flags):
    """Order pictures of one prompt by round robin, best first.

    Example: rewarddance rank a.png b.png c.png --prompt "a red circle"
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    prompt: str
    judge: str = "tiny"
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    tiles: SomeCount = None
    """Parts that a large picture is cut into at most, beside a view of the whole; as in training when not given."""

    def run(self) -> None:
        from rewarddance.core.media import Media
        from rewarddance.jobs.load import load_judge

        media = [Media.open(p) for p in self.images]
        found = load_judge(self.judge, tiles=self.tiles).rank(self.prompt, media, self.criterion)
        order = [{"path": str(self.images[i]), "margin": round(float(found.margin[i]), 4)} for i in found.order]
        show({"order": order, "wins": [[round(x, 4) for x in row] for row in found.wins.tolist()]})


@dataclass(frozen=True)
class Sample(Flags):
    """Draw pictures of prompts; with --best-of N the judge keeps the best of N for each. Writes samples.json too.

    Example: rewarddance sample --prompt "flat drawing of a red circle on white" --num 4 --best-of 8 --out samples

    Example: rewarddance sample --prompts prompts.txt --adapter runs/refl --best-of 4 --judge runs/judge --out samples
    """

    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    """A text file, one prompt a line, instead of --prompt."""
    num: Count = 4
    """Pictures of each prompt."""
    adapter: Path | None = None
    """A run folder of `rewarddance align`; what is not given of generator, num-steps, guidance, sample-batch, dtype
    and resolution is as that run had it."""
    generator: str | None = None
    """`tiny` (the default), or a local folder of a `StableDiffusion3Pipeline`."""
    num_steps: SomeCount = None
    """20 by default."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 (the default) is off, which public checkpoints were not made for: they take
    about 4.5."""
    sample_batch: SomeCount = None
    """Pictures sampled and decoded at once, 128 by default; 4 or so at 1024 pixels."""
    generator_dtype: Literal["fp32", "bf16"] | None = None
    """Of the generator's weights; fp32 by default."""
    resolution: SomeCount = None
    """Side of the pictures in pixels; the checkpoint's own by default."""
    best_of: Count = 1
    judge: str = "tiny"
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.jobs.align_names import read_prompts
        from rewarddance.jobs.sample import Drawing, sample_to_folder

        need((self.prompt is None) != (self.prompts is None), "sample: give --prompt or --prompts")
        for flag in ("judge", "criterion"):
            need(
                flag not in self.given() or self.best_of > 1,
                f"sample: --{flag} chooses among candidates; add --best-of N",
            )
        asked = [self.prompt] if self.prompts is None else read_prompts(self.prompts)[0]
        flags = {
            "generator": self.generator,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
            "sample_batch": self.sample_batch,
            "dtype": self.generator_dtype,
            "resolution": self.resolution,
        }
        drawing = replace(Drawing.of_run(self.adapter), **{k: v for k, v in flags.items() if v is not None})  # type: ignore[arg-type]
        found = sample_to_folder(
            [p for p in asked if p is not None],
            self.out,
            drawing,
            num=self.num,
            best_of=self.best_of,
            adapter=self.adapter,
            judge=self.judge,
            criterion=self.criterion,
            seed=self.seed,
        )
        show({"written": [str(self.out / x["file"]) for x in found]})


@dataclass(frozen=True)
class Report(Flags):
    """Write report.html in the folder of a run, a demo, a study or a cross-validation: one self-contained page.

    Example: rewarddance report runs/refl
    """

    run_folder: tyro.conf.Positional[Path]

    def run(self) -> None:
        from rewarddance.apps.report import write_report

        print(write_report(self.run_folder))

"""Commands that do not train."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from rewarddance.apps.flags import Count, Flags, Least, SomeCount, need
from rewarddance.core.config import Precision
from rewarddance.core.errors import UsageError
from rewarddance.core.progress import say

if TYPE_CHECKING:
    from rewarddance.core.types import Comparison


def show(values: Any) -> None:
    """Print a result to standard output, as one JSON object."""
    print(json.dumps(values, indent=2))


@dataclass(frozen=True)
class Demo(Flags):
    """The main job on the embedded world: preferences, judge, alignment, evaluation, report.

    Example: rewarddance demo --out runs/demo
    """

    out: Path = Path("runs/demo")
    """Folder for everything; an earlier demo in it is replaced."""
    fast: bool = False
    """A few steps of everything, for tests; its figures mean nothing."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.apps.report import write_report
        from rewarddance.lab.demo import run_demo

        summary = run_demo(self.out, fast=self.fast, seed=self.seed)
        page = write_report(self.out)
        gain = summary["gain"]
        say(
            f"oracle fidelity {gain['mean']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}] ({gain['verdict']}); "
            f"{summary['seconds']:.0f} s, {summary['peak_memory_mib'] / 1024:.1f} GiB; open {page}"
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
    """Generator whose samples are judged beside renders; `none` for renders alone."""
    generator_share: float = 0.7
    criterion: Literal["fidelity", "style", "composition", "novelty", "overall"] = "fidelity"
    """What the raters judge by."""
    votes: Count = 5
    """Simulated raters who judge each pair; its label is their mean choice."""
    shuffle_labels: bool = False
    """Random labels, for the control judge."""
    seed: int = 0

    def run(self) -> None:
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


@dataclass(frozen=True)
class DataImport(Flags):
    """Your own pictures and preferences to Parquet that `datasets.load_dataset` reads.

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
    """What to do with broken rows: list them and stop, or leave them out."""
    criteria: tuple[str, ...] = ()
    """Criteria of your own that a column `criterion` may name; `train --context.instructions` words them."""

    def run(self) -> None:
        from rewarddance.data.importers import import_preferences
        from rewarddance.reward.context import Context

        known = (*Context().words.criteria, *self.criteria)
        report = import_preferences(self.file, self.format, self.media_root, self.out, self.on_error, known)
        show({k: v for k, v in report.as_dict().items() if k not in ("rejected", "warnings")})
        for line in report.messages():
            say(line)


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
    """An OpenAI-compatible server, with its version; without one, the embedded world's oracle is the teacher."""
    model: str | None = None
    """Name of the server's model."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the server's key; unset for a server that needs none."""
    workers: Count = 8
    """Questions that are asked at the same time."""
    max_tokens: Count = 200
    """Tokens of an answer at most; reasoning models need more."""
    limit: SomeCount = None
    """Ask about this many choices only."""
    price: tuple[float, float] = (0.0, 0.0)
    """Of a million tokens read and written, for the cost count."""
    instructions: dict[str, str] = field(default_factory=dict)
    """Words for criteria of your own, as `train --context.instructions` takes them."""

    def run(self) -> None:
        from rewarddance.jobs.data.rationales import OracleTeacher, Teacher, add_rationales

        need((self.url is None) == (self.model is None), "data rationales: --url and --model go together")
        teacher: Teacher = OracleTeacher()
        if self.url is not None and self.model is not None:
            from rewarddance.jobs.data.teacher import HttpTeacher

            key = os.environ.get(self.key_env)
            teacher = HttpTeacher(self.url, self.model, key, max_tokens=self.max_tokens, instructions=self.instructions)
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
    """`tiny`, a run folder of `rewarddance train`, a local checkpoint, or a composite's YAML file."""
    prompt: str | None = None
    candidate: Path | None = None
    reference: Path | None = None
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    out: Path | None = None
    """File for one JSON line a comparison when a data folder is scored."""
    tiles: SomeCount = None
    """Parts that a large picture is cut into at most, beside a view of the whole; as in training when not given."""
    precision: Precision | None = None
    """What passes compute in. `auto` is bf16 where the hardware has it, and fp32 for models of at most 100M parameters
    on a CPU; it is the default, unless the judge was trained in fp32. The result says what it came to."""
    template: str | None = None
    """Words for a checkpoint that was not trained to judge: `rewarddance` (the default), `embedded`, or a YAML file."""
    explain: bool = False
    """Add the parts of a composite (raw value, standardised value, weight, contribution), or a judge's own words."""

    def run(self) -> None:
        from rewarddance.jobs.load import load_judge
        from rewarddance.jobs.score import score_data, score_one

        idle = {"out"} if self.data is None else {"prompt", "candidate", "reference", "criterion", "explain"}
        kind = "one picture" if self.data is None else "a data folder, whose records bring their own"
        flags = ", ".join(f"--{flag}" for flag in sorted(idle & self.given()))
        need(not flags, f"score: {flags} has no part in judging {kind}")
        comparison = None if self.data is not None else self._comparison()
        settings = {"tiles": self.tiles, "precision": self.precision, "template": self.template}
        judge = load_judge(self.judge, **settings, compile=self.data is not None)  # type: ignore[arg-type]
        if self.data is not None:
            show(score_data(self.data, judge, self.out))
        elif comparison is not None:
            show(score_one(judge, comparison, self.explain))

    def _comparison(self) -> Comparison:
        """The pictures, opened before the judge is loaded, so that a wrong path is said at once."""
        from rewarddance.core.media import Media
        from rewarddance.core.types import Comparison

        if self.prompt is None or self.candidate is None:
            raise UsageError("score: give a data folder, or --prompt and --candidate")
        reference = None if self.reference is None else Media.open(self.reference)
        return Comparison(self.prompt, Media.open(self.candidate), reference, self.criterion)


@dataclass(frozen=True)
class Rank(Flags):
    """Order pictures of one prompt by round robin.

    `order` in the result is best first. `wins` is P(row is better than column), in the order in which the pictures were
    given.

    Example: rewarddance rank a.png b.png c.png --prompt "a red circle"
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    prompt: str
    judge: str = "tiny"
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    tiles: SomeCount = None
    """Parts that a large picture is cut into at most, beside a view of the whole; as in training when not given."""
    precision: Precision | None = None
    """What passes compute in, as for `score`."""
    template: str | None = None
    """Words for a checkpoint that was not trained to judge, as for `score`."""

    def run(self) -> None:
        from rewarddance.core.media import Media
        from rewarddance.jobs.load import load_judge
        from rewarddance.jobs.rank import rank_files

        twice = [p for i, p in enumerate(self.images) if p in self.images[:i]]
        need(not twice, f"rank: {', '.join(map(str, twice))} is given twice")
        pictures = {p: Media.open(p) for p in self.images}
        judge = load_judge(self.judge, tiles=self.tiles, precision=self.precision, template=self.template)
        show(rank_files(judge, self.prompt, pictures, self.criterion))


@dataclass(frozen=True)
class Sample(Flags):
    """Draw pictures of prompts. With --best-of N the judge keeps the best of N candidates. Writes samples.json too.

    Example: rewarddance sample --prompt "flat drawing of a red circle on white" --num 4 --best-of 8 --out samples

    Example: rewarddance sample --prompts prompts.txt --adapter runs/refl --best-of 4 --judge runs/judge --out samples
    """

    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    """A file of prompts instead of --prompt: text with one prompt a line, or JSONL with a field `prompt`."""
    num: Count = 4
    """Pictures of each prompt."""
    adapter: Path | None = None
    """A run folder of `rewarddance align`. Generator, num-steps, guidance, sample-batch, dtype, resolution and
    precision are that run's, where they are not given."""
    generator: str | None = None
    """`tiny` (the default), or a local folder of a `StableDiffusion3Pipeline`."""
    num_steps: SomeCount = None
    """20 by default."""
    guidance: float | None = None
    """Classifier-free guidance scale. 1 (the default) is off; public checkpoints need about 4.5."""
    sample_batch: SomeCount = None
    """Pictures sampled and decoded at once, 128 by default; 4 or so at 1024 pixels."""
    generator_dtype: Literal["fp32", "bf16"] | None = None
    """Type of the generator's weights; fp32 by default."""
    resolution: SomeCount = None
    """Side of the pictures in pixels; the checkpoint's own by default."""
    max_sequence_length: SomeCount = None
    """Tokens of a prompt that a T5 text encoder reads; 256 by default."""
    precision: Precision | None = None
    """What generator and judge compute in; `auto` by default, as for `score`."""
    best_of: Count = 1
    judge: str = "tiny"
    criterion: str | None = None
    """What to judge by; what the judge was trained for when not given."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.data.prompts import read_prompts
        from rewarddance.jobs.sample import Sampling, sample_to_folder

        need((self.prompt is None) != (self.prompts is None), "sample: give --prompt or --prompts")
        for flag in ("judge", "criterion"):
            need(
                flag not in self.given() or self.best_of > 1,
                f"sample: --{flag} chooses among candidates; add --best-of N",
            )
        prompts = [self.prompt or ""] if self.prompts is None else [p.text for p in read_prompts(self.prompts)[0]]
        flags = {
            "generator": self.generator,
            "num_steps": self.num_steps,
            "guidance": self.guidance,
            "sample_batch": self.sample_batch,
            "dtype": self.generator_dtype,
            "resolution": self.resolution,
            "max_sequence_length": self.max_sequence_length,
            "precision": self.precision,
        }
        given = {k: v for k, v in flags.items() if v is not None}
        result = sample_to_folder(
            prompts,
            self.out,
            replace(Sampling.of_run(self.adapter), **given),  # type: ignore[arg-type]
            num=self.num,
            best_of=self.best_of,
            adapter=self.adapter,
            judge=self.judge,
            criterion=self.criterion,
            seed=self.seed,
        )
        written = [str(self.out / x["file"]) for x in result["samples"]]
        show({"written": written, "computes_in": result["computes_in"]})


@dataclass(frozen=True)
class Diagnose(Flags):
    """Signs of reward hacking in alignment runs, side by side on one page: gold, proxy, KL, diversity, drift, alarms.

    Example: rewarddance diagnose runs/refl runs/nft --out runs/diagnosis.html
    """

    run_folders: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("runs/diagnosis.html")
    """The page to write."""

    def run(self) -> None:
        from rewarddance.apps.diagnose import write_diagnosis

        if not self.run_folders:
            raise UsageError("name one alignment run or more")
        print(write_diagnosis(self.run_folders, self.out))


@dataclass(frozen=True)
class ReportCommand(Flags):
    """Write report.html, one self-contained page, into the folder of a run, a demo, a study or a cross-validation.

    Example: rewarddance report runs/refl
    """

    run_folder: tyro.conf.Positional[Path]

    def run(self) -> None:
        from rewarddance.apps.report import write_report

        print(write_report(self.run_folder))

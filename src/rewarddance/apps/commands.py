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
from rewarddance.lab.demo_config import DemoTask
from rewarddance.search.config import Ask

if TYPE_CHECKING:
    from rewarddance.core.types import Comparison
    from rewarddance.jobs.sample import Searching
    from rewarddance.reward.composite import AnyJudge


def show(values: Any) -> None:
    """Print a result to standard output, as one JSON object."""
    print(json.dumps(values, indent=2))


@dataclass(frozen=True)
class Demo(Flags):
    """The main job on the embedded world: preferences, judge, alignment, evaluation, report.

    Example: rewarddance demo --out runs/demo

    Example: rewarddance demo --task t2v --out runs/clips-demo
    """

    out: Path = Path("runs/demo")
    """Folder for everything; an earlier demo in it is replaced."""
    task: DemoTask = "t2i"
    """What the generator draws: pictures (`t2i`), or clips of the moving world (`t2v`)."""
    fast: bool = False
    """A few steps of each part, for tests; the figures mean nothing."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.apps.report import write_report
        from rewarddance.lab.demo import run_demo

        summary = run_demo(self.out, task=self.task, fast=self.fast, seed=self.seed)
        page = write_report(self.out)
        gain = summary["gain"]
        say(
            f"gain in {summary['gold']}: {gain['mean']:+.3f} [{gain['ci_low']:+.3f}, {gain['ci_high']:+.3f}] "
            f"({gain['verdict']}); {summary['seconds']:.0f} s, {summary['peak_memory_mib'] / 1024:.1f} GiB; open {page}"
        )


@dataclass(frozen=True)
class DataRationales(Flags):
    """Ask a teacher for reasons and keep those whose verdict agrees with the label; for chain-of-thought judges.

    Answers are saved at once, so a stopped run continues where it was. `rationales.json` counts the answers that were
    kept, that disagreed, and that were refused or unreadable. It also has their cost.

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
    """Largest number of tokens of an answer; reasoning models need more."""
    limit: SomeCount = None
    """Ask about this many choices only."""
    price: tuple[float, float] = (0.0, 0.0)
    """Price of a million tokens that the teacher reads, and of a million that it writes; for the count of the cost."""
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


@dataclass(frozen=True, kw_only=True)
class JudgeFlags(Flags):
    """Flags of commands that ask a judge."""

    judge: str = "tiny"
    """`tiny`, `tiny-clips`, a run folder of `rewarddance train`, a checkpoint, a composite's YAML file, or the address
    of a server: `http://HOST:PORT` of `rewarddance serve`, or a reward server's
    `http://HOST:PORT/score?reward=NAME`."""
    criterion: str | None = None
    """What to judge by; if not given, what the judge was trained for."""
    tiles: SomeCount = None
    """Largest number of parts that a large picture is cut into, beside a view of the whole; if not given, as in
    training."""
    clip_fps: Annotated[float | None, Least(0.01)] = None
    """Frames of a second of a clip that the judge sees. If not given, as in training, or 2 for a checkpoint that was
    not trained to judge. The judge's own limit of frames stays (`clips.max_frames`)."""
    precision: Precision | None = None
    """Precision in which the judge computes. `auto` is bf16 where the hardware has it, and fp32 on a CPU for models of
    at most 100M parameters. It is the default, unless the judge was trained in fp32. The result names the
    precision."""
    template: str | None = None
    """Words for a checkpoint that was not trained to judge: `rewarddance` (the default), `embedded`, or a YAML file."""

    def load(self, *, compile: bool) -> AnyJudge:
        from rewarddance.jobs.load import load_judge

        return load_judge(
            self.judge,
            tiles=self.tiles,
            precision=self.precision,
            template=self.template,
            clips=self.clip_fps,
            compile=compile,
        )


MEDIA_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".mp4", ".webm", ".mov", ".m4v", ".mkv"),
)
"""Endings of the names of pictures and clips. `score` takes any other file for data."""


@dataclass(frozen=True)
class Score(JudgeFlags):
    """Judge one picture or clip (pointwise), two (candidate against reference), or every comparison of a data folder.

    Example: rewarddance score --prompt "a red circle" --candidate a.png --reference b.png

    Example: rewarddance score a.mp4 b.mp4 --prompt "a red circle moving left" --judge runs/clips

    Example: rewarddance score a.mp4 b.mp4 --condition boat.png --prompt "the boat leaves" --judge runs/i2v-judge

    Example: rewarddance score data/mine --judge runs/judge --out scores.jsonl
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """A folder written by `data build` or `data import`, or a Parquet file of it; or the candidate and its reference,
    pictures or clips."""
    prompt: str | None = None
    candidate: Path | None = None
    reference: Path | None = None
    condition: Path | None = None
    """The picture that both samples were made from, for example the first frame of image-to-video. The judge sees it
    before the samples. A learned reward refuses it."""
    out: Path | None = None
    """File for one JSON line a comparison when a data folder is scored."""
    explain: bool = False
    """Add the parts of a composite (raw value, standardised value, weight, contribution), or a judge's own words."""

    def run(self) -> None:
        from rewarddance.jobs.score import score_data, score_one

        data = self.files[0] if len(self.files) == 1 and _is_data(self.files[0]) else None
        unused = {"out"} if data is None else {"prompt", "candidate", "reference", "condition", "criterion", "explain"}
        kind = "one picture" if data is None else "a data folder, whose records have their own"
        flags = ", ".join(f"--{flag}" for flag in sorted(unused & self.given()))
        need(not flags, f"score: {flags} cannot be used with {kind}")
        comparison = None if data is not None else self._comparison()
        judge = self.load(compile=data is not None)
        if data is not None:
            show(score_data(data, judge, self.out))
        elif comparison is not None:
            show(score_one(judge, comparison, self.explain))

    def _comparison(self) -> Comparison:
        """Open the pictures. This happens before the judge is loaded, so that a wrong path is reported at once."""
        from rewarddance.core.media import Media
        from rewarddance.core.types import Comparison

        named = (self.candidate, self.reference)
        need(not self.files or named == (None, None), "score: give files, or --candidate and --reference, not both")
        need(len(self.files) <= 2, f"score: {len(self.files)} files; give a candidate and a reference, or `rank` them")
        candidate, reference = (*self.files, None, None)[:2] if self.files else named
        if self.prompt is None or candidate is None:
            raise UsageError("score: give a data folder, or --prompt and --candidate")
        reference_media = None if reference is None else Media.open(reference)
        condition = None if self.condition is None else Media.open_picture(self.condition)
        return Comparison(self.prompt, Media.open(candidate), reference_media, self.criterion, condition=condition)


def _is_data(path: Path) -> bool:
    """Whether a path is a data folder or a split of one, and not a picture or a clip."""
    return path.is_dir() or path.suffix.lower() not in MEDIA_SUFFIXES


@dataclass(frozen=True)
class Rank(JudgeFlags):
    """Order pictures or clips of one prompt by round robin.

    `order` in the result is best first. `wins` is P(row is better than column), in the order in which the pictures were
    given.

    Example: rewarddance rank a.png b.png c.png --prompt "a red circle"

    Example: rewarddance rank a.mp4 b.mp4 c.mp4 --condition boat.png --prompt "the boat leaves" --judge runs/i2v-judge
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    prompt: str
    condition: Path | None = None
    """The picture that all samples were made from, as for `score`."""

    def run(self) -> None:
        from rewarddance.core.media import Media
        from rewarddance.core.task import Prompt
        from rewarddance.jobs.rank import rank_files

        repeated = [p for i, p in enumerate(self.images) if p in self.images[:i]]
        need(not repeated, f"rank: {', '.join(map(str, repeated))} is given twice")
        condition = None if self.condition is None else Media.open_picture(self.condition)
        pictures = {p: Media.open(p) for p in self.images}
        prompt = Prompt(self.prompt, condition=condition)
        show(rank_files(self.load(compile=False), prompt, pictures, self.criterion))


@dataclass(frozen=True)
class Sample(Flags):
    """Draw pictures of prompts, or clips with a Wan folder (MP4 files, and a sheet.png of all). With --best-of N the
    judge keeps the best of N candidates; with --search the judge is the verifier of a search. Also writes samples.json,
    with the cost of a search.

    Example: rewarddance sample --prompt "flat drawing of a red circle on white" --num 4 --best-of 8 --out samples

    Example: rewarddance sample --prompts prompts.txt --adapter runs/refl --best-of 4 --judge runs/judge --out samples

    Example: rewarddance sample --prompt "the boat leaves" --condition boat.png --generator Wan2.1-I2V --out clips

    Example: rewarddance sample --prompts prompts.txt --search paths --nfe 400 --out samples

    Example: rewarddance sample --prompts evaluation_metadata.jsonl --layout geneval --out geneval
    """

    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    """A file of prompts instead of --prompt: text with one prompt a line, JSONL with a field `prompt`, or what `data
    build --prompts` takes."""
    condition: Path | None = None
    """The picture that the clips of --prompt begin with (image-to-video). A JSONL file of prompts has a field
    `condition` instead."""
    num: SomeCount = None
    """Pictures or clips of each prompt: 4 by default, or as many as the layout's scorer expects (GenEval 4,
    T2I-CompBench 10, VBench 5; its prompts of temporal flickering need --num 25)."""
    layout: Literal["plain", "geneval", "compbench", "vbench"] = "plain"
    """Folders and names as the scorer of a benchmark expects them; `evaluate --results` reads what it writes."""
    adapter: Path | None = None
    """A run folder of `rewarddance align`. Generator, num-steps, guidance, sample-batch, dtype, resolution and
    precision are those of that run, unless you give them."""
    generator: str | None = None
    """`tiny` (the default), `tiny-video`, `tiny-image-to-video`, or a local folder of an SD3, FLUX.1,
    Qwen-Image, Z-Image or Wan pipeline."""
    num_steps: SomeCount = None
    """Steps of a rollout; 20 by default."""
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
    """Precision in which generator and judge compute; `auto` by default, as for `score`."""
    best_of: Count = 1
    search: str | None = None
    """Search at inference: `best_of_n`, `paths`, `zero_order`, `fk`, `evolution`, or a YAML file with its settings."""
    nfe: SomeCount = None
    """Forward passes of the generator that the search may spend on each picture."""
    ask: Ask = "auto"
    """How the search asks the judge. `pointwise`: about every picture alone. `anchor`: it compares with a picture that
    is drawn first. `round_robin`: it compares every two candidates. `auto`: `pointwise` if the judge answers that
    question, otherwise `anchor`."""
    judge: str = "tiny"
    criterion: str | None = None
    """What to judge by; if not given, what the judge was trained for."""
    seed: int = 0

    def run(self) -> None:
        from rewarddance.core.media import Media
        from rewarddance.core.task import Prompt
        from rewarddance.data.prompts import read_prompts
        from rewarddance.jobs.sample import Sampling, sample_to_folder
        from rewarddance.jobs.sample_files import PER_PROMPT

        need((self.prompt is None) != (self.prompts is None), "sample: give --prompt or --prompts")
        need((self.search is None) == (self.nfe is None), "sample: --search and --nfe go together")
        need(self.search is None or self.best_of == 1, "sample: --best-of and --search do not go together")
        need(self.search is not None or self.ask == "auto", "sample: --ask is about a search; add --search and --nfe")
        for flag in ("judge", "criterion"):
            need(
                flag not in self.given() or self.best_of > 1 or self.search is not None,
                f"sample: --{flag} chooses among candidates; add --best-of N",
            )
        need(self.condition is None or self.prompt is not None, "sample: --condition goes with --prompt")
        if self.prompts is not None:
            prompts = read_prompts(self.prompts)[0]
        else:
            picture = None if self.condition is None else Media.open_picture(self.condition)
            prompts = (Prompt(self.prompt or "", condition=picture),)
        names = ("generator", "num_steps", "guidance", "sample_batch", "resolution", "max_sequence_length", "precision")
        flags: dict[str, Any] = {name: getattr(self, name) for name in names} | {"dtype": self.generator_dtype}
        run = Sampling.of_run(self.adapter)
        result = sample_to_folder(
            prompts,
            self.out,
            replace(run, **{name: value for name, value in flags.items() if value is not None}),
            num=self.num or PER_PROMPT[self.layout],
            layout=self.layout,
            best_of=self.best_of,
            searching=self._searching(),
            adapter=self.adapter,
            judge=self.judge,
            criterion=self.criterion,
            seed=self.seed,
        )
        written = [str(self.out / x["file"]) for x in result["samples"]]
        show({"written": written, "computes_in": result["computes_in"]})

    def _searching(self) -> Searching | None:
        from rewarddance.core.config import load_recipe
        from rewarddance.jobs.sample import Searching
        from rewarddance.search.config import VerifierConfig, parse_search

        if self.search is None or self.nfe is None:
            return None
        recipe = self.search.endswith((".yaml", ".yml"))
        settings = parse_search(load_recipe(self.search) if recipe else {"kind": self.search}, "sample: --search")
        return Searching(settings, self.nfe, VerifierConfig(ask=self.ask))

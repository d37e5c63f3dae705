"""`rewarddance evaluate`: several measurements in one command, each with its own flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, SomeCount, need
from rewarddance.core.config import HeldOut, Precision

_SAMPLING = {"num_steps", "guidance", "num_noises", "seed", "precision"}
_EXTRACTORS = ("inception", "lpips", "clip", "dino")
_TAKES: dict[str, set[str]] = {
    "--generator": {"generator", "task", "split", "every", *_SAMPLING},
    "--prompts": {"run_folder", "prompts", "judge", *_SAMPLING},
    "--study": {"run_folder", "study", "database", "criterion", "judge", "precision"},
    "--metrics": {"run_folder", "metrics", "every", "reference", "style", *_EXTRACTORS, *_SAMPLING},
    "--judge": {"judge", "data", "seed", "precision"},
    "--vlm": {"vlm", "clips", "seed"},
    "--results": {"results", "samples"},
    "of a judge's run": {"run_folder", "precision"},
    "of an alignment run": {"run_folder", "split", "every", *_SAMPLING},
}
"""Measurements, and the flags that each takes. Any other flag is an error."""


@dataclass(frozen=True)
class Evaluate(Flags):
    """Measure a run (an alignment's gain by category, a judge's accuracy) or a model without a run.

    Evaluations of runs are also written into the run, as evaluation.json (with --prompts evaluation_prompts.json,
    with --study evaluation_people.json).

    Example: rewarddance evaluate runs/refl

    Example: rewarddance evaluate runs/refl --prompts held_out.txt --judge runs/other-judge

    Example: rewarddance evaluate runs/refl --study studies/refl

    Example: rewarddance evaluate runs/refl --metrics

    Example: rewarddance evaluate runs/refl --split second

    Example: rewarddance evaluate --generator tiny

    Example: rewarddance evaluate --judge tiny

    Example: rewarddance evaluate --judge runs/judge --data data/mine

    Example: rewarddance evaluate --vlm tiny

    Example: rewarddance evaluate --vlm build/video/clip_vlm --clips

    Example: rewarddance evaluate --results geneval/results.jsonl
    """

    run_folder: Annotated[Path | None, tyro.conf.Positional] = None
    """A run of `rewarddance train` or `rewarddance align`."""
    generator: str | None = None
    """Measure a generator of the embedded world instead of a run."""
    task: str = "embedded"
    """With --generator: embedded, embedded-video or embedded-image-to-video."""
    split: HeldOut = "benchmark"
    """Held-out prompts: those of the benchmark, development prompts (to choose settings on), or a second benchmark on
    which no setting was chosen. Figures of the last two are written as evaluation_SPLIT.json."""
    judge: str | None = None
    """Measure a judge on held-out prompts of the embedded world: accuracy and rank correlation with the oracle. A judge
    of clips needs --data."""
    prompts: Path | None = None
    """With a run of `align`: a file of prompts for which a judge compares before and after."""
    study: Path | None = None
    """With a run of `align`: a study of `ab create` with the run and its generator; people are the gold standard."""
    database: str | None = None
    """With --study: the database, if `annotate` was started with --database."""
    criterion: str | None = None
    """With --study: the criterion; the first one of the study when not given."""
    metrics: bool = False
    """With a run of `align`: FID, KID, CMMD, precision and recall against right pictures of the benchmark, Vendi score,
    diversity, CLIPScore, and LPIPS between before and after and among the pictures of a prompt. The features come from
    the embedded VLM's vision tower and the embedded CLIP. Clips have dynamic degree, share of moving clips and flicker
    in place of CLIPScore and LPIPS, and features of five frames. Written as evaluation_metrics.json."""
    reference: Path | None = None
    """With --metrics of pictures: another reference set: a folder of pictures (WikiArt's too), webdataset tar, Parquet
    with pictures, or COCO's captions_*.json beside its pictures."""
    style: str | None = None
    """With --reference: only its pictures of this style."""
    inception: Path | None = None
    """With --metrics of pictures: a TorchScript file from bytes (N, 3, H, W) to features, for published FID and KID."""
    lpips: Path | None = None
    """With --metrics of pictures: a TorchScript file from two batches in [-1, 1] to distances."""
    clip: Path | None = None
    """With --metrics of pictures: a local folder of a `CLIPModel` in place of the embedded one (CLIPScore, CMMD)."""
    dino: Path | None = None
    """With --metrics of pictures: a local folder of a `Dinov2Model`."""
    data: Path | None = None
    """With --judge: a data folder whose held-out prompts replace the embedded world's."""
    vlm: str | None = None
    """Measure how often a VLM answers questions about the embedded world exactly, by kind of question. For a CLIP
    (`clip-tiny`): how often the right picture is the nearest one to its prompt."""
    clips: bool = False
    """With --vlm: ask about clips of the moving world instead of pictures."""
    results: Path | None = None
    """Read the result file of the scorer of GenEval, T2I-CompBench or VBench, and print means by category."""
    samples: Path | None = None
    """With --results of T2I-CompBench: the folder of `sample`. Its samples.json gives the prompt of each picture."""
    num_steps: SomeCount = None
    """Sampling steps; a run's own, or 10 for --generator, when not given."""
    guidance: float | None = None
    """Classifier-free guidance scale; a run's own, or 1 (off) for --generator, when not given."""
    num_noises: Count = 4
    """Fixed noises for each prompt."""
    every: Count = 1
    """Take every n-th prompt."""
    seed: int = 0
    precision: Precision | None = None
    """Precision of the models. `auto` (the default) is bf16 where the hardware has it, and fp32 on a CPU for models of
    at most 100M parameters. The result names the precision."""

    def run(self) -> None:
        kind = self._kind()
        extra = sorted(self.given() - _TAKES[kind])
        flags = ", ".join(str(self.run_folder) if f == "run_folder" else f"--{f.replace('_', '-')}" for f in extra)
        need(not extra, f"evaluate {kind}: takes no {flags}")
        figures = self._measure(kind)
        show({k: v for k, v in figures.items() if k != "per_prompt"})  # the file has `per_prompt`, for `compare`

    def _kind(self) -> str:
        from rewarddance.core.runs import RunFolder

        if self.generator is not None:
            return "--generator"
        if self.results is not None:
            return "--results"
        if self.prompts is not None:
            need(self.run_folder is not None, "evaluate: --prompts needs a run of `align`")
            need(not self.metrics, "evaluate: --metrics and --prompts are two evaluations; ask for one at a time")
            return "--prompts"
        if self.study is not None:
            need(self.run_folder is not None, "evaluate: --study needs a run of `align`")
            need(not self.metrics, "evaluate: --metrics and --study are two evaluations; ask for one at a time")
            return "--study"
        if self.metrics:
            need(self.run_folder is not None, "evaluate: --metrics needs a run of `align`")
            return "--metrics"
        if self.run_folder is None and self.judge is not None:
            return "--judge"
        if self.vlm is not None:
            return "--vlm"
        need(self.run_folder is not None, "evaluate: name a run folder, --generator, --judge, --vlm or --results")
        assert self.run_folder is not None
        judged = RunFolder(self.run_folder).read()["kind"] in ("judge", "learned")
        return "of a judge's run" if judged else "of an alignment run"

    def _measure(self, kind: str) -> dict[str, Any]:
        """The figures. Flags that are not given keep the defaults of the functions below."""
        if kind == "--results":
            from rewarddance.evaluate.benchmarks import benchmark_results

            assert self.results is not None
            return benchmark_results(self.results, self.samples)
        from rewarddance.jobs import evaluate

        flags: dict[str, Any] = {f: getattr(self, f) for f in _TAKES[kind] if getattr(self, f) is not None}
        if kind == "--generator":
            return evaluate.evaluate_generator(flags.pop("generator"), **flags)
        if kind == "--prompts":
            return evaluate.evaluate_on_prompts(flags.pop("run_folder"), flags.pop("prompts"), **flags)
        if kind == "--vlm":
            from rewarddance.lab.vlm_benchmark import benchmark_vlm

            return benchmark_vlm(flags.pop("vlm"), **flags)
        if kind == "--judge" and self.data is None:
            from rewarddance.lab.judge_benchmark import benchmark_judge

            return benchmark_judge(flags.pop("judge"), **flags)
        if kind == "--metrics":
            return self._metrics()
        if kind == "--study":
            return self._by_people()
        if kind == "--judge":
            return evaluate.evaluate_judge_on_data(flags.pop("judge"), flags.pop("data"), **flags)
        if kind == "of a judge's run":
            return evaluate.evaluate_judge_run(flags.pop("run_folder"), **flags)
        return evaluate.evaluate_alignment(flags.pop("run_folder"), **flags)

    def _by_people(self) -> dict[str, Any]:
        from rewarddance.apps.ab import read_ballots, read_study
        from rewarddance.jobs.evaluate_people import evaluate_by_people

        assert self.run_folder is not None
        assert self.study is not None
        study = read_study(self.study)
        desk = read_ballots(self.study, study, self.database, self.criterion)
        return evaluate_by_people(
            self.run_folder,
            self.study,
            study["systems"],
            desk.ballots,
            self.criterion or study["criteria"][0],
            judge=self.judge,
            precision=self.precision or "auto",
        )

    def _metrics(self) -> dict[str, Any]:
        from rewarddance.jobs.metrics import ExtractorPaths, ReferenceSet, evaluate_metrics

        assert self.run_folder is not None
        need(self.reference is not None or self.style is None, "evaluate: --style needs --reference")
        return evaluate_metrics(
            self.run_folder,
            ExtractorPaths(self.inception, self.lpips, self.clip, self.dino),
            None if self.reference is None else ReferenceSet(self.reference, self.style),
            num_noises=self.num_noises,
            every=self.every,
            seed=self.seed,
            num_steps=self.num_steps,
            guidance=self.guidance,
            precision=self.precision or "auto",
        )

"""`rewarddance evaluate`: several measurements in one command, each with its own flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rewarddance.apps.commands import show
from rewarddance.apps.flags import Count, Flags, SomeCount, need
from rewarddance.core.config import Precision

_SAMPLING = {"num_steps", "guidance", "num_noises", "seed", "precision"}
_TAKES: dict[str, set[str]] = {
    "--generator": {"generator", "every", *_SAMPLING},
    "--prompts": {"run_folder", "prompts", "judge", *_SAMPLING},
    "--metrics": {"run_folder", "metrics", "every", "inception", "lpips", "clip", "dino", *_SAMPLING},
    "--judge": {"judge", "data", "seed", "precision"},
    "--vlm": {"vlm", "seed"},
    "of a judge's run": {"run_folder", "precision"},
    "of an alignment run": {"run_folder", "every", *_SAMPLING},
}
"""Measurements, and the flags that each takes. Any other flag is an error."""


@dataclass(frozen=True)
class Evaluate(Flags):
    """Measure a run (an alignment's gain by category, a judge's accuracy) or a model without a run.

    Evaluations of runs are also written into the run, as evaluation.json (with --prompts evaluation_prompts.json).

    Example: rewarddance evaluate runs/refl

    Example: rewarddance evaluate runs/refl --prompts held_out.txt --judge runs/other-judge

    Example: rewarddance evaluate runs/refl --metrics

    Example: rewarddance evaluate --generator tiny

    Example: rewarddance evaluate --judge tiny

    Example: rewarddance evaluate --judge runs/judge --data data/mine

    Example: rewarddance evaluate --vlm tiny
    """

    run_folder: Annotated[Path | None, tyro.conf.Positional] = None
    """A run of `rewarddance train` or `rewarddance align`."""
    generator: str | None = None
    """Measure a generator of the embedded world instead of a run."""
    judge: str | None = None
    """Measure a judge on held-out prompts of the embedded world: accuracy and rank correlation with the oracle."""
    prompts: Path | None = None
    """With a run of `align`: a file of prompts for which a judge compares before and after."""
    metrics: bool = False
    """With a run of `align`: FID, KID, CMMD, precision, recall, Vendi score and LPIPS against right pictures of the
    benchmark, seen through the embedded VLM's vision tower; written as evaluation_metrics.json."""
    inception: Path | None = None
    """With --metrics: a TorchScript file from bytes (N, 3, H, W) to features, for FID and KID as published."""
    lpips: Path | None = None
    """With --metrics: a TorchScript file from two batches in [-1, 1] to distances."""
    clip: Path | None = None
    """With --metrics: a local folder of a `CLIPModel`, for CLIPScore and CMMD."""
    dino: Path | None = None
    """With --metrics: a local folder of a `Dinov2Model`."""
    data: Path | None = None
    """With --judge: a data folder whose held-out prompts replace the embedded world's."""
    vlm: str | None = None
    """Measure the exact answers of a VLM about the embedded world, by kind of question."""
    num_steps: SomeCount = None
    """Sampling steps; a run's own, or 10 for --generator, when not given."""
    guidance: float | None = None
    """Classifier-free guidance scale; a run's own, or 1 (off) for --generator, when not given."""
    num_noises: Count = 4
    """Fixed noises for each prompt."""
    every: Count = 1
    """Take every n-th benchmark prompt."""
    seed: int = 0
    precision: Precision | None = None
    """Precision of the models. `auto` (the default) is bf16 where the hardware has it, and fp32 for models of at most
    100M parameters on a CPU. The result names the precision."""

    def run(self) -> None:
        kind = self._kind()
        extra = sorted(self.given() - _TAKES[kind])
        flags = ", ".join(str(self.run_folder) if f == "run_folder" else f"--{f.replace('_', '-')}" for f in extra)
        need(not extra, f"evaluate {kind}: takes no {flags}")
        figures = self._measure(kind)
        show({k: v for k, v in figures.items() if k != "per_prompt"})  # the file has them; `compare` reads them

    def _kind(self) -> str:
        from rewarddance.core.runs import RunFolder

        if self.generator is not None:
            return "--generator"
        if self.prompts is not None:
            need(self.run_folder is not None, "evaluate: --prompts needs a run of `align`")
            need(not self.metrics, "evaluate: --metrics and --prompts are two evaluations; ask for one at a time")
            return "--prompts"
        if self.metrics:
            need(self.run_folder is not None, "evaluate: --metrics needs a run of `align`")
            return "--metrics"
        if self.run_folder is None and self.judge is not None:
            return "--judge"
        if self.vlm is not None:
            return "--vlm"
        need(self.run_folder is not None, "evaluate: name a run folder, --generator, --judge or --vlm")
        assert self.run_folder is not None
        judged = RunFolder(self.run_folder).read()["kind"] in ("judge", "learned")
        return "of a judge's run" if judged else "of an alignment run"

    def _measure(self, kind: str) -> dict[str, Any]:
        """The figures. Flags that are not given keep the defaults of the functions below."""
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
        if kind == "--judge":
            return evaluate.evaluate_judge_on_data(flags.pop("judge"), flags.pop("data"), **flags)
        if kind == "of a judge's run":
            return evaluate.evaluate_judge_run(flags.pop("run_folder"), **flags)
        return evaluate.evaluate_alignment(flags.pop("run_folder"), **flags)

    def _metrics(self) -> dict[str, Any]:
        from rewarddance.jobs.metrics import ExtractorPaths, evaluate_metrics

        assert self.run_folder is not None
        return evaluate_metrics(
            self.run_folder,
            ExtractorPaths(self.inception, self.lpips, self.clip, self.dino),
            num_noises=self.num_noises,
            every=self.every,
            seed=self.seed,
            num_steps=self.num_steps,
            guidance=self.guidance,
            precision=self.precision or "auto",
        )

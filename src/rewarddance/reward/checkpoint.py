"""Judges as folders: the VLM's ordinary Hugging Face layout, plus `judge.json` (and `head.safetensors`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarddance.core.device import computes_in_bf16
from rewarddance.core.errors import InputError, JudgementError, RunError
from rewarddance.core.media import Media
from rewarddance.core.types import Comparison, RewardModel, Verdict
from rewarddance.reward.config import SCALAR, JudgeSpec
from rewarddance.reward.context import UNNAMED
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.rank import Ranking, rank
from rewarddance.reward.scalar import ScalarJudge
from rewarddance.reward.wrappers import Symmetrised
from rewarddance.vlm.backbone import Backbone, load_backbone_folder
from rewarddance.vlm.engine import Engine


@dataclass
class Judge:
    """A ready judge: order-symmetrised where it compares, with ranking.

    Attributes:
        single: asks one order only, which is what training wants.
    """

    spec: JudgeSpec
    single: GenerativeJudge | ScalarJudge

    @property
    def engine(self) -> Engine:
        return self.single.engine

    @property
    def criterion(self) -> str:
        """What it was trained to judge by most; "overall" for a judge that does not know."""
        return self.spec.criteria[0] if self.spec.criteria else UNNAMED

    def own_or(self, criterion: str) -> str:
        """The criterion, if this judge was trained for it or (trained for none) has words for it; else its own."""
        known = self.spec.criteria or tuple(self.spec.context.wordings)
        return criterion if criterion in known else self.criterion

    def _asked(self, comparison: Comparison) -> Comparison:
        """With the criterion filled in. One output answers for each criterion of a regression; others mean nothing."""
        if comparison.criterion is None:
            return replace(comparison, criterion=self.criterion)
        learnt = self.spec.criteria
        if self.spec.paradigm == "regression" and learnt and comparison.criterion not in learnt:
            raise InputError(f"this judge has learnt no ratings of {comparison.criterion!r}, only: {', '.join(learnt)}")
        return comparison

    def judge(self, comparisons: Sequence[Comparison]) -> Verdict:
        """Verdicts (N,), differentiable to pixels. Both orders are asked and their margins averaged.

        A pointwise judge answers a comparison by the difference of two pointwise margins.

        Raises:
            InputError: an empty prompt, or a criterion that the judge cannot be asked by.
            JudgementError: an answer cannot be had, for one comparison or more.
        """
        if not comparisons:
            empty = torch.zeros(0)
            return Verdict(empty, empty, empty)
        comparisons = [self._asked(c) for c in comparisons]
        if self.spec.paradigm == "generative_pairwise":
            if self.spec.trained and any(c.reference is None for c in comparisons):
                raise JudgementError(
                    "this judge was trained to compare (generative_pairwise) and cannot judge a picture alone; give a "
                    "reference, or train with paradigm generative_pointwise"
                )
            return Symmetrised(self.single).judge(comparisons)
        if self.spec.paradigm == "generative_pointwise":
            return _pointwise_difference(self.single, comparisons)
        return self.single.judge(comparisons)

    def rank(self, prompt: str, images: Sequence[Media], criterion: str | None = None) -> Ranking:
        """Order pictures of one prompt by round robin; by the judge's own `criterion` when none is named."""
        return rank(self, prompt, images, criterion)

    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """What the judge says when it is let speak: the verdict, and reasons where it was taught to give them.

        Raises:
            JudgementError: a judge that scores has no words.
        """
        if not isinstance(self.single, GenerativeJudge):
            raise JudgementError(f"a {self.spec.paradigm} judge scores; only generative judges have words")
        return self.single.explain([self._asked(c) for c in comparisons])

    def trainable(self) -> dict[str, nn.Module]:
        return self.single.trainable()


def _pointwise_difference(single: RewardModel, comparisons: Sequence[Comparison]) -> Verdict:
    if all(c.reference is None for c in comparisons):
        return single.judge(comparisons)
    n = len(comparisons)
    alone = [replace(c, reference=None) for c in comparisons]
    others = [replace(c, candidate=c.reference, reference=None) for c in comparisons if c.reference is not None]
    both = single.judge([*alone, *others])
    rows = torch.tensor([i for i, c in enumerate(comparisons) if c.reference is not None])
    rows = rows.to(both.margin.device)
    margin = both.margin[:n].index_add(0, rows, both.margin[n:], alpha=-1)
    mass = both.answer_mass[:n].clone()
    mass[rows] = (mass[rows] + both.answer_mass[n:]) / 2
    return Verdict.from_margin(margin, mass)


def new_judge(
    spec: JudgeSpec, backbone: Backbone, *, strict: bool = False, image_cache: int = 0, device: str = "auto"
) -> Judge:
    """A judge on a backbone that has not been trained to judge yet.

    Args:
        device: where it will compute; a backbone that is to be sharded is still in main memory.

    Raises:
        ConfigError: an answer word is more than one token of the backbone's.
    """
    half = computes_in_bf16(spec.precision, device)
    engine = Engine(backbone, image_cache=image_cache, autocast=torch.bfloat16 if half else None)
    if spec.paradigm in SCALAR:
        return Judge(spec, ScalarJudge.new(engine, spec.context, spec.paradigm))
    before = " " if spec.context.cot == "reason_first" else ""
    for word in (spec.context.yes, spec.context.no):
        engine.word_id(before + word)  # say now what no question could be answered with
    return Judge(spec, GenerativeJudge(engine, spec.context, strict, spec.temperature))


def save_judge(judge: Judge, folder: Path, weights: Mapping[str, Mapping[str, Tensor]] | None = None) -> Path:
    """Write the folder that `load_judge_folder` reads.

    Args:
        weights: by name of the trained module (`vlm`, `head`), what to write when the modules' own are sharded.
    """
    weights = weights or {}
    judge.engine.backbone.save(folder, weights.get("vlm"))
    (folder / "judge.json").write_text(judge.spec.model_dump_json(indent=2) + "\n")
    if isinstance(judge.single, ScalarJudge):
        head = weights.get("head") or judge.single.head.state_dict()
        save_file({k: v.contiguous() for k, v in head.items()}, folder / "head.safetensors")
    return folder


def spec_of(folder: Path) -> JudgeSpec:
    """What a folder says of its judge; of a folder without `judge.json`, a plain VLM that is asked as it is.

    Raises:
        RunError: `judge.json` cannot be read.
    """
    path = folder / "judge.json"
    try:
        return JudgeSpec.model_validate_json(path.read_text()) if path.is_file() else JudgeSpec(precision="bf16")
    except (ValidationError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: not a judge's description ({error})") from None


def load_judge_folder(
    folder: Path,
    *,
    precision: Literal["fp32", "bf16"] | None = None,
    image_cache: int = 0,
    tiles: int | None = None,
    device: str = "auto",
) -> Judge:
    """Load a judge, frozen and in evaluation mode. A folder without `judge.json` is a plain VLM, asked as it is.

    Where it will compute in bf16 its weights are loaded in bf16: nobody trains them, so nobody needs masters.

    Args:
        precision: overrides what the judge was saved with (a plain VLM: bf16).
        image_cache: pictures whose tokens are kept from one call to the next.
        tiles: parts that a large picture is cut into at most (InternVL only); as in training when None.

    Raises:
        RunError: `judge.json` or the head cannot be read.
    """
    spec = spec_of(folder)
    if precision is not None:
        spec = spec.model_copy(update={"precision": precision})
    half = computes_in_bf16(spec.precision, device)
    backbone = load_backbone_folder(folder, torch.bfloat16 if half else torch.float32)
    backbone.module.requires_grad_(False)
    backbone.tile(spec.tiles if tiles is None else tiles)
    judge = new_judge(spec, backbone, strict=True, image_cache=image_cache, device=device)
    if isinstance(judge.single, ScalarJudge):
        judge.single.head.load_state_dict(load_file(folder / "head.safetensors"))
        judge.single.head.requires_grad_(False)
    return judge

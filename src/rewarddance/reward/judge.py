"""A ready judge: what users load and call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from rewarddance.core.config import Computed
from rewarddance.core.device import num_parameters, resolve_precision
from rewarddance.core.errors import JudgementError
from rewarddance.core.media import Media
from rewarddance.core.task import Request
from rewarddance.core.types import Comparison, RewardModel, Verdict, judge_answerable
from rewarddance.reward.config import SCALAR, JudgeSpec
from rewarddance.reward.context import UNNAMED
from rewarddance.reward.generative import GenerativeJudge
from rewarddance.reward.rank import Ranking, rank
from rewarddance.reward.scalar import ScalarJudge
from rewarddance.reward.wrappers import PointwiseDifference, Symmetrised
from rewarddance.vlm.backbone import Backbone
from rewarddance.vlm.engine import Engine

ALONE = (
    "this judge was trained to compare (generative_pairwise) and cannot judge a picture alone; give a reference, or "
    "train with pointwise_weight above 0"
)


@dataclass
class Judge:
    """Compares in both orders, divides margins by its calibration temperature, and ranks.

    Attributes:
        single: asks one order only, as training does.
    """

    spec: JudgeSpec
    single: GenerativeJudge | ScalarJudge
    differentiable: bool = field(default=True, init=False)
    """Whether margins have gradients to the pixels."""

    @property
    def engine(self) -> Engine:
        return self.single.engine

    @property
    def precision(self) -> Computed:
        """Precision of passes."""
        stored = self.engine.backbone.module.parameters()
        is_bf16 = self.engine.autocast == torch.bfloat16 or next(stored).dtype == torch.bfloat16
        return "bf16" if is_bf16 else "fp32"

    @property
    def criterion(self) -> str:
        """The criterion that most of its training records had; "overall" for a judge that was not trained."""
        return self.spec.criteria[0] if self.spec.criteria else UNNAMED

    def own_or(self, criterion: str) -> str:
        """The criterion if this judge was trained on it, or was not trained and has words for it; else its own."""
        context = self.spec.context
        known = self.spec.criteria or (*context.words.criteria, *context.clip_words.criteria)
        return criterion if criterion in known else self.criterion

    def problem(self, comparison: Comparison) -> str | None:
        """Why this judge cannot be asked about a comparison; None if it can."""
        spec = self.spec
        compares_only = spec.paradigm == "generative_pairwise" and spec.trained and not spec.pointwise
        if compares_only and comparison.reference is None:
            return ALONE
        media = comparison.candidate
        if spec.trained and ("clip" if media.is_clip else "picture") not in spec.kinds:
            shown = f"a clip of {media.num_frames} frames" if media.is_clip else "a picture"
            return f"{shown}; this judge was trained on {spec.kinds[0]}s"
        learnt = spec.criteria if spec.paradigm == "regression" else ()
        if learnt and comparison.criterion not in learnt:
            return f"this judge has learnt no ratings of {comparison.criterion!r}, only: {', '.join(learnt)}"
        return self.single.problem(comparison)

    def judge(self, comparisons: Sequence[Comparison], *, on_refused: Literal["mark", "raise"] = "mark") -> Verdict:
        """Verdicts (N,), differentiable to pixels.

        A pairwise judge is asked in both orders, and the margins are averaged. A pointwise judge answers a comparison
        by the difference of two pointwise margins. Items that cannot be answered are refused (`Verdict.refused`).

        Raises:
            JudgementError: with `on_refused="raise"`, if an item is refused.
        """
        comparisons = [c if c.criterion is not None else replace(c, criterion=self.criterion) for c in comparisons]
        verdict = judge_answerable(comparisons, self.problem, self._answer)
        return verdict.or_raise(comparisons) if on_refused == "raise" else verdict

    def _answer(self, comparisons: Sequence[Comparison]) -> Verdict:
        model: RewardModel = self.single
        if self.spec.paradigm == "generative_pairwise":
            model = Symmetrised(self.single)
        elif self.spec.paradigm == "generative_pointwise":
            model = PointwiseDifference(self.single)
        return model.judge(comparisons).tempered(self.spec.calibration.temperature)

    def keep_images(self, num_prompts: int, reference: Media | None, num_conditions: int) -> None:
        """Keep image tokens between calls: those of the references and the condition pictures of `num_prompts` prompts.

        Args:
            reference: a sample of the references' size; None without references.
            num_conditions: condition pictures of a prompt.
        """
        num = num_conditions + (0 if reference is None else self.engine.num_images(reference))
        self.engine.keep_images(num_prompts * num)

    def rank(self, prompt: Request, images: Sequence[Media], criterion: str | None = None) -> Ranking:
        """Order pictures of one prompt by round robin; by the judge's own criterion when none is given."""
        return rank(self, prompt, images, criterion)

    def explain(self, comparisons: Sequence[Comparison]) -> list[str]:
        """The judge's free answers: the verdict, and reasons if it was trained to give them.

        Raises:
            JudgementError: a scalar judge has no words.
            InputError: a comparison that cannot be asked.
        """
        if not isinstance(self.single, GenerativeJudge):
            raise JudgementError(f"a {self.spec.paradigm} judge scores; only generative judges have words")
        named = [c if c.criterion is not None else replace(c, criterion=self.criterion) for c in comparisons]
        return self.single.explain(named)

    def trainable(self) -> dict[str, nn.Module]:
        return self.single.trainable()


def new_judge(
    spec: JudgeSpec,
    backbone: Backbone,
    *,
    strict: bool = False,
    device: torch.device | None = None,
    examples: Sequence[Comparison] = (),
) -> Judge:
    """A judge on a backbone that has not been trained to judge yet.

    Args:
        strict: refuse unclear answers, as at inference.
        device: where it will compute, if the backbone is not there yet (one that will be sharded).
        examples: labelled comparisons that stand before every question.

    Raises:
        ConfigError: no spelling of an answer word is one token of the backbone.
    """
    where = device or backbone.device
    computed = resolve_precision(spec.precision, where, num_parameters(backbone.module))
    engine = Engine(backbone, autocast=torch.bfloat16 if computed == "bf16" else None)
    if spec.paradigm in SCALAR:
        return Judge(spec, ScalarJudge.new(engine, spec.context, spec.paradigm, spec.columns))
    single = GenerativeJudge(engine, spec.context, strict, spec.temperature, examples)
    for word in single.words:
        engine.word_ids(word)
    return Judge(spec, single)
